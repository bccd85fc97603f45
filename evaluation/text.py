"""The text that eval.py evaluates: a file, or a split of a dataset with the checkpoint's ids."""

import argparse
import io
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from data.dataset import GPT2_VOCAB_SIZE, display_path, find_folder, open_dataset
from data.matching import has_ids_of
from data.tokenizer import EOT, Tokenizer
from evaluation import tasks
from evaluation.windows import document_edges, plan_windows
from inference.load import find_tokenizer

AS_BYTES = " (not UTF-8: read as bytes)"
ESCAPED = re.compile("[\udc80-\udcff]")  # what "surrogateescape" makes of bytes that are not UTF-8


@dataclass
class Text:
    """What is evaluated. get_ids() -> its ids (n,): mapped afresh where they are a dataset's, so that pages read
    earlier do not pile up in memory."""

    name: str
    get_ids: Callable[[], np.ndarray]
    windows: np.ndarray  # (K, 3), see windows.py
    tokenizer: Tokenizer | None  # None: nobody knows it
    documents: int | None = None  # with --per_document
    questions: list[dict] | None = None  # of a task


def open_task(args: argparse.Namespace, state: dict, block_size: int) -> Text:
    """The questions of --task in --input, laid out one after the other."""
    tokenizer, questions = find_tokenizer(state), tasks.READ[args.task](args.input)
    ids, windows = tasks.lay_out(questions, tokenizer, block_size, args.input)
    return Text(str(display_path(args.input)), lambda: ids, windows, tokenizer, questions=questions)


def open_text(args: argparse.Namespace, state: dict, block_size: int, stride: int) -> Text:
    """The text of --input, or a split of a dataset. Raises ValueError if nothing in it can be predicted."""
    name, get_ids, tokenizer, eot = (open_file if args.input else open_split)(args, state)
    edges = document_edges(get_ids(), eot) if args.per_document else np.array([0, len(get_ids()) - 1])
    windows = plan_windows(edges, block_size + (args.definition == "exact"), stride)
    if not len(windows):
        raise ValueError(f"{name}: {len(get_ids()):,} tokens, a prediction needs 2: evaluate a longer text")
    if args.baselines and tokenizer is None:
        raise ValueError(f"--baselines: {name} has no tokenizer that would say which bytes to compress")
    return Text(name, get_ids, windows, tokenizer, documents=len(edges) - 1 if args.per_document else None)


def open_file(args: argparse.Namespace, state: dict) -> tuple[str, Callable[[], np.ndarray], object, int | None]:
    """(name, a function that returns the ids (n,), tokenizer, end-of-text id or None) of the text of --input."""
    if args.input.is_dir():
        raise ValueError(
            f"--input={args.input} is a folder, expected a text file: name one, or prepare the folder "
            "with the checkpoint's tokenizer and name that with --dataset and --split"
        )
    tokenizer, name = find_tokenizer(state), str(display_path(args.input))
    text, encode = tasks.read_text(args.input, any_bytes=tokenizer.kind == "byte"), tokenizer.encode
    if ESCAPED.search(text):
        if tokenizer.eot is not None and "\udcff" in text:
            raise ValueError(
                f"--input={args.input} is not UTF-8 and has the byte 0xff, which is the checkpoint's "
                f"end-of-text id and never text: {tasks.CONVERT}"
            )
        name, encode = name + AS_BYTES, raw_bytes
    if args.join_rows:
        rows = io.StringIO(text, newline=None)  # lines end as they may
        text = "\n\n".join(row if row.strip() else "" for row in rows)
    if args.per_document and tokenizer.eot is None:
        raise ValueError(f"--per_document: the tokenizer of {name} has no end-of-text id: leave it out")
    first, *others = [encode(part) for part in (text.split(EOT) if args.per_document else [text])]
    ids = np.concatenate([first, *(np.append(np.uint32(tokenizer.eot), part) for part in others)])
    return name, lambda: ids, tokenizer, tokenizer.eot


def raw_bytes(text: str) -> np.ndarray:
    """The ids (n,) of a byte tokenizer for a text that was decoded with "surrogateescape"."""
    return np.frombuffer(text.encode("utf-8", "surrogateescape"), np.uint8).astype(np.uint16)


def open_split(args: argparse.Namespace, state: dict) -> tuple[str, Callable[[], np.ndarray], object, int | None]:
    """As open_file, of a dataset's split. Its tokenizer is None if nobody knows it."""
    dataset = open_matching_dataset(args.dataset or state.get("config", {}).get("dataset"), state)
    split, tokenizer = args.split or "val", dataset.tokenizer
    name = f"{display_path(dataset.folder)} {split}"
    dataset.tokens(split)  # for its error
    if tokenizer is None:
        with suppress(ValueError):
            tokenizer = find_tokenizer(state)
    is_gpt2 = dataset.vocab_size in (GPT2_VOCAB_SIZE, 50304)  # as it is, or padded as nanoGPT does
    eot = tokenizer.eot if tokenizer else GPT2_VOCAB_SIZE - 1 if is_gpt2 else None
    if args.per_document and eot is None:
        raise ValueError(f"--per_document: {name} has no end-of-text id: leave it out")
    return name, lambda: dataset.array(split), tokenizer, eot


def open_matching_dataset(name: str | None, state: dict):
    """The dataset, whose ids must be the checkpoint's: ValueError if they stand for other text."""
    if name is None:
        raise ValueError("the checkpoint doesn't say what it was trained on: name a --dataset or an --input")
    size, folder = state["model_args"]["vocab_size"], find_folder(name)
    knows_size = (folder / "meta.json").exists() or (folder / "meta.pkl").exists()
    dataset = open_dataset(folder, None if knows_size else size)
    if not has_ids_of(dataset, state):
        raise ValueError(
            f"dataset {dataset.name} (vocabulary {dataset.vocab_size}) does not match the checkpoint "
            f"(vocabulary {size}): its ids stand for other text; evaluate the text itself with "
            "--input=FILE, or a dataset prepared with the checkpoint's tokenizer"
        )
    return dataset
