"""The text to evaluate: a file, a task's questions, or a split of a dataset with the checkpoint's ids."""

import argparse
import io
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from data.dataset import GPT2_VOCAB_SIZE, display_path
from data.matching import has_size_of_gpt2
from data.tokenizer import EOT, Tokenizer
from evaluation import tasks
from evaluation.windows import document_edges, plan_windows
from inference.load import find_tokenizer, open_matching_dataset, special_of

AS_BYTES = " (not UTF-8: read as bytes)"
ESCAPED = re.compile("[\udc80-\udcff]")  # bytes that are not UTF-8, decoded with "surrogateescape"


@dataclass
class Text:
    """get_ids() returns the ids (n,), mapping a dataset's anew, so that pages already read do not pile up in memory."""

    name: str
    get_ids: Callable[[], np.ndarray]
    windows: np.ndarray  # (K, 3), see scoring.py
    tokenizer: Tokenizer | None  # None = unknown
    documents: int | None = None  # with --per_document
    questions: list | None = None  # of a task
    left_out: int | None = None  # answers of --input that do not fit the context; of a dataset it is not known
    orders: list[str] | None = None  # in which gaps can be filled, see fim.py


def open_task(args: argparse.Namespace, state: dict, block_size: int) -> Text:
    """The questions of --task in --input, one after the other."""
    tokenizer, questions = find_tokenizer(state), tasks.READ[args.task](args.input)
    ids, windows = tasks.lay_out(questions, tokenizer, block_size, args.input)
    return Text(str(display_path(args.input)), lambda: ids, windows, tokenizer, questions=questions)


def open_text(args: argparse.Namespace, state: dict, block_size: int, stride: int) -> Text:
    """The text of --input, or a split of a dataset. Raises ValueError if it has nothing to predict."""
    name, get_ids, tokenizer, eot = (open_file if args.input else open_split)(args, state)
    edges = document_edges(get_ids(), eot) if args.per_document else np.array([0, len(get_ids()) - 1])
    windows = plan_windows(edges, block_size + (args.definition == "exact"), stride)
    if not len(windows):
        raise ValueError(f"{name}: {len(get_ids()):,} tokens, a prediction needs 2: use a longer text")
    if args.baselines and (tokenizer is None or tokenizer.lossy):
        reason = tokenizer.lossy if tokenizer else f"{name} has no tokenizer"
        raise ValueError(f"--baselines needs the text's bytes, but {reason}: leave it out")
    return Text(name, get_ids, windows, tokenizer, documents=len(edges) - 1 if args.per_document else None)


def open_file(args: argparse.Namespace, state: dict) -> tuple[str, Callable[[], np.ndarray], object, int | None]:
    """(name, get_ids, tokenizer, end-of-text id or None) of the text of --input."""
    if args.input.is_dir():
        instead = "name one, or prepare the folder with the checkpoint's tokenizer and use --dataset and --split"
        raise ValueError(f"--input={args.input} is a folder, expected a text file: {instead}")
    tokenizer, name = find_tokenizer(state), str(display_path(args.input))
    text = tasks.read_text(args.input, any_bytes=tokenizer.kind == "byte")
    if state.get("meta", {}).get("source", {}).get("normalize"):  # as the training text was, by prepare.py
        text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    if ESCAPED.search(text):
        if tokenizer.eot is not None and "\udcff" in text:
            problem = "is not UTF-8 and has the byte 0xff, which is the checkpoint's end-of-text id and never text"
            raise ValueError(f"--input={args.input} {problem}: convert it to UTF-8 first")
        name += AS_BYTES
    if args.join_rows:
        rows = io.StringIO(text, newline=None)  # any line ends
        text = "\n\n".join(row if row.strip() else "" for row in rows)
    if args.per_document and tokenizer.eot is None:
        raise ValueError(f"--per_document: the tokenizer of {name} has no end-of-text id: leave it out")
    parts = text.split(EOT) if args.per_document else [text]
    if name.endswith(AS_BYTES):  # the byte tokenizer's ids
        raw = [part.encode("utf-8", "surrogateescape") for part in parts]
        first, *others = [np.frombuffer(part, np.uint8).astype(np.uint16) for part in raw]
    else:
        special = special_of(state) == "encode"
        first, *others = (tokenizer.encode_document(part, special=special) for part in parts)
    ids = np.concatenate([first, *(np.append(np.uint32(tokenizer.eot), part) for part in others)])
    return name, lambda: ids, tokenizer, tokenizer.eot


def open_split(args: argparse.Namespace, state: dict) -> tuple[str, Callable[[], np.ndarray], object, int | None]:
    """As open_file, for a split of a dataset. The tokenizer is None if unknown."""
    dataset = open_matching_dataset(args.dataset, state)
    split, tokenizer = args.split, dataset.tokenizer
    if dataset.is_masked:
        print("note: this is the loss of all words; --task=chat gives that of the assistant's", file=sys.stderr)
    name = f"{display_path(dataset.folder)} {split}"
    if tokenizer is None:
        with suppress(ValueError):
            tokenizer = find_tokenizer(state)
    eot = tokenizer.eot if tokenizer else GPT2_VOCAB_SIZE - 1 if has_size_of_gpt2(dataset.vocab_size) else None
    if args.per_document and eot is None:
        raise ValueError(f"--per_document: {name} has no end-of-text id: leave it out")
    return name, lambda: dataset.array(split), tokenizer, eot
