"""Questions with answers out of a dataset's own texts, for data/chat/prepare.py; needs no network.

    python data/chat/make.py --dataset=quickstart --kinds body explain continue --show=2
    python data/chat/make.py --dataset=quickstart --kinds body explain continue
    python data/chat/prepare.py --input data/chat/train.jsonl --val_input data/chat/val.jsonl --init_from=out-quickstart

The kinds:
    continue   a passage after its beginning
    who        who says a line, in a novel (X道：“...”) or a play (X:, and the line below)
    couplet    the second line of a couplet
    words      a short story with the three words asked for (in training up to eight, which teaches more), in their
               order; the row names them as "words"
    body       the body of a Python function, from its head and docstring
    explain    what a Python function does

The texts are those of the dataset that the model was trained on: train.jsonl comes from its training split, val.jsonl
from its validation split, so the model has not read what it is asked there. Validation leaves out what the rows for
training have too, such as a function copied from one file to another. A test split is not read.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

import numpy as np

from configurator import exit_on_error
from data.dataset import SPLITS, Dataset, display_path, open_dataset
from data.fim import FILE_SEP, find_markers
from data.options import Parser, closed_fraction, nonnegative, positive
from data.questions import MOST_WORDS, QUESTIONS, by_ending, common_words, count_words, exchange_words

SPREAD = 100  # documents that rows are drawn from, if there are as many, even where one alone has enough
LONG_ANSWER = 40  # characters: no two passages have such an answer by chance


def main(argv: list[str]) -> None:
    args = make_options().parse_args(argv)
    dataset = open_dataset(args.dataset)
    if dataset.tokenizer is None or dataset.is_masked:
        what = "has conversations already" if dataset.is_masked else "does not say what its ids stand for"
        raise ValueError(f"dataset {dataset.name} {what}: name one that a prepare.py made from texts")
    rows = rows_of_splits(dataset, args)
    for split, kinds in rows.items():
        print(f"{split}: " + (", ".join(f"{len(found):,} {kind}" for kind, found in kinds.items() if found) or "none"))
    for kind in args.kinds:
        for row in rows["train"][kind][: args.show]:
            print("\n".join([f"\n---- {kind}", *(f"{m['role']}: {m['content']}" for m in row["messages"])]))
    if args.show:
        print(f"\n--show: nothing written to {display_path(args.out_dir)}")
        return
    for split, kinds in rows.items():
        if not any(kinds.values()):
            raise ValueError(f"the {split} split of {dataset.name} gives no {', '.join(args.kinds)}: try other --kinds")
    args.out_dir.mkdir(parents=True, exist_ok=True)
    for split, kinds in rows.items():
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for found in kinds.values() for row in found]
        Random(args.seed).shuffle(lines)
        path = args.out_dir / f"{split}.jsonl"
        path.with_suffix(".tmp").write_text("".join(lines), encoding="utf-8", newline="\n")
        os.replace(path.with_suffix(".tmp"), path)
    train, val = (display_path(args.out_dir / f"{split}.jsonl") for split in SPLITS)
    print(f"wrote {train} and {val}")
    prepare = f"python data/chat/prepare.py --input {train} --val_input {val} --init_from=OUT_DIR"
    print(f"next: {prepare}, where OUT_DIR has the model trained on {dataset.name}")


def make_options() -> argparse.ArgumentParser:
    layout = argparse.RawDescriptionHelpFormatter
    parser = Parser(description=__doc__, allow_abbrev=False, formatter_class=layout)
    add = parser.add_argument
    add("--dataset", required=True, help="of texts, which the model was trained on: a folder under data/, or a path")
    kinds = {"nargs": "+", "choices": QUESTIONS, "default": list(QUESTIONS), "metavar": "KIND"}
    add("--kinds", **kinds, help="some of those above (default: all)")
    add("--max_rows", type=positive, default=10000, help="most rows of a kind for training (default: %(default)s)")
    val_rows = "most rows of a kind for validation (default: %(default)s)"
    add("--max_val_rows", type=positive, default=200, help=val_rows)
    passes = "times that passages are drawn from each training text, cut differently every time (default: %(default)s)"
    add("--passes", type=positive, default=1, help=passes)
    exchange = "share of the training stories whose words are exchanged for others, asked for as well, so that a model "
    exchange += "of few texts learns to read the question and not the stories by heart (default: %(default)s)"
    add("--exchange", type=closed_fraction, default=0.5, help=exchange)
    add("--show", type=nonnegative, default=0, metavar="N", help="print N rows of each kind, and write nothing")
    add("--seed", type=int, default=1337, help="of all that is drawn (default: %(default)s)")
    add("--out_dir", type=Path, default=HERE, help="where to write the two files (default: beside the script)")
    return parser


def rows_of_splits(dataset: Dataset, args: argparse.Namespace) -> dict[str, dict[str, list[dict]]]:
    """The rows of each split by kind, in an order that depends on the seed alone."""
    counts = count_words(documents_of(dataset, "train") if "words" in args.kinds else [])
    common = common_words(counts)
    others = by_ending(counts.keys() - common)
    train = rows_of_split(dataset, "train", args, common, args.max_rows, args.passes, others)
    asked, answered = (
        {row["messages"][turn]["content"] for found in train.values() for row in found} for turn in (0, 1)
    )
    val, in_both = rows_of_split(dataset, "val", args, common, sys.maxsize), 0
    for kind, found in val.items():
        unread = [row for row in found if not is_known(row, asked, answered)]
        in_both += len(found) - len(unread)
        val[kind] = some_of(unread, args.max_val_rows, args.seed)
    if in_both:
        print(f"left out {in_both:,} rows of the validation split that the training split has too")
    return {"train": {k: some_of(found, args.max_rows, args.seed) for k, found in train.items()}, "val": val}


def rows_of_split(
    dataset: Dataset,
    split: str,
    args: argparse.Namespace,
    common: set[str],
    most: int,
    passes: int = 1,
    others: dict[str, list[str]] | None = None,
) -> dict[str, list[dict]]:
    """By kind the rows of the first SPREAD documents, and of more until a kind has `most`; every question once. The
    order of documents is random."""
    rows, asked = {kind: [] for kind in args.kinds}, set()
    for number, text in enumerate(documents_of(dataset, split, Random(args.seed))):
        wanted = [kind for kind in args.kinds if number < SPREAD or len(rows[kind]) < most]
        for kind in wanted:
            rng = Random(f"{args.seed} {split} {number} {kind}")
            for _ in range(passes):
                more = {"most": MOST_WORDS} if kind == "words" and others else {}
                for row in QUESTIONS[kind](text, rng, common, **more):
                    if "words" in row and others and rng.random() < args.exchange:
                        row = exchange_words(row, rng, others)
                    question = row["messages"][0]["content"]
                    if question not in asked:
                        asked.add(question)
                        rows[kind].append({"kind": kind, **row})
        if not wanted:
            break
    return rows


def documents_of(dataset: Dataset, split: str, rng: Random | None = None) -> Iterator[str]:
    """The texts of a split without their files' names, in its own order or, with rng, a random one."""
    ids, eot, markers = dataset.array(split), dataset.tokenizer.eot, find_markers(dataset.tokenizer) or ()
    before_name, n_begin = dataset.tokenizer.special_tokens.get(FILE_SEP), len(dataset.tokenizer.begin)
    ends = np.array([], np.int64) if eot is None else np.flatnonzero(ids == eot)
    bounds = [*zip([0, *(ends + 1).tolist()], [*ends.tolist(), len(ids)], strict=True)]
    if rng:
        rng.shuffle(bounds)
    for start, stop in bounds:
        if stop > start and np.isin(ids[start:stop], markers).sum() == 0:  # rearranged texts are no longer texts
            text = dataset.tokenizer.decode(ids[start:stop])
            is_named = before_name is not None and before_name in ids[start : start + n_begin + 1]
            yield text.partition("\n")[2] if is_named else text


def is_known(row: dict, asked: set[str], answered: set[str]) -> bool:
    question, answer = (message["content"] for message in row["messages"])
    return question in asked or (len(answer) >= LONG_ANSWER and answer in answered)


def some_of(rows: list[dict], most: int, seed: int) -> list[dict]:
    return rows if len(rows) <= most else Random(seed).sample(rows, most)


if __name__ == "__main__":
    exit_on_error(main)
