"""HellaSwag and LAMBADA: their questions, how they are put to a model, and how the answers are scored.

Questions and figures follow EleutherAI's lm-evaluation-harness, so that the numbers are comparable. A question is a
dict: its "line" in the file, "context", "choices" (texts that may follow it), and for HellaSwag "label", the right one.
"""

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data.encodings import not_text, not_utf8
from evaluation.figures import exp


def read_text(path: Path, any_bytes: bool = False) -> str:
    """Raises ValueError for a file that is unreadable, empty or, unless any_bytes ("surrogateescape"), not UTF-8."""
    try:
        data = path.read_bytes()
        text = data.decode("utf-8", "surrogateescape" if any_bytes else "strict")
    except OSError as error:
        raise ValueError(f"--input={path} cannot be read: {error.strerror or error}; expected a text file") from error
    except UnicodeDecodeError as error:
        raise ValueError(not_utf8(f"--input={path}", error)) from error
    if data[257:262] == b"ustar":  # a .tar of UTF-8 files is valid UTF-8
        raise ValueError(not_text(f"--input={path}"))
    if not text.strip():
        raise ValueError(f"--input={path} is empty: there is nothing to evaluate")
    return text


def read_jsonl(path: Path, fields: dict[str, type | tuple]) -> Iterator[tuple[int, dict]]:
    """(number, object) of each non-blank line. Raises ValueError for a line that lacks fields of these types."""
    for number, line in enumerate(read_text(path).removeprefix("\ufeff").split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: not JSON ({error}): download the file again") from None
        for name, kind in fields.items():
            if not isinstance(record, dict) or not isinstance(record.get(name), kind):
                found = f"{name!r} is missing or of the wrong type, expected an object with {', '.join(fields)}"
                raise ValueError(f"{path}, line {number}: {found}: is this the task's own .jsonl?")
        yield number, record


def read_hellaswag(path: Path) -> list[dict]:
    """hellaswag_val.jsonl of Zellers et al. 2019 (arXiv:1905.07830)."""

    def clean(text: str) -> str:  # WikiHow's articles contain markup in brackets
        return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")

    fields = {"activity_label": str, "ctx_a": str, "ctx_b": str, "endings": list, "label": (int, str)}
    questions = []
    for line, record in read_jsonl(path, fields):
        label, endings = str(record["label"]), record["endings"]
        if not label.isdecimal() or int(label) >= len(endings) or not all(isinstance(e, str) for e in endings):
            found = f"label {label!r} does not number one of the {len(endings)} endings"
            raise ValueError(f"{path}, line {line}: {found}; the test split has none: use hellaswag_val.jsonl")
        context = clean(f"{record['activity_label']}: {record['ctx_a']} {record['ctx_b'].capitalize()}")
        choices = [f" {clean(ending)}" for ending in endings]
        questions.append({"line": line, "context": context, "choices": choices, "label": int(label)})
    return questions


def read_lambada(path: Path) -> list[dict]:
    """OpenAI's lambada_test.jsonl (Paperno et al. 2016, arXiv:1606.06031): predict the word after the last space."""
    questions = []
    for line, record in read_jsonl(path, {"text": str}):
        context, space, word = record["text"].rpartition(" ")
        if not space or not word:
            raise ValueError(f"{path}, line {line}: no word after a last space in {record['text'][-40:]!r}")
        questions.append({"line": line, "context": context, "choices": [f" {word}"]})
    return questions


def lay_out(questions: list[dict], tokenizer, block_size: int, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """ids (n,): each context with each of its choices, truncated on the left to fit, and windows (K, 3) that score the
    choices. Raises ValueError naming the line of a question that cannot be asked."""
    sequences, windows, stop = [], [], 0
    for question in tqdm(questions, desc="encoding", unit=" questions", disable=None):
        for choice in question["choices"]:
            where = f"{path}, line {question['line']}"
            try:
                ids, n = encode_pair(tokenizer, question["context"], choice)
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from None
            if n > block_size:
                raise ValueError(f"{where}: {choice[:40]!r} has {n} tokens, but the context is block_size={block_size}")
            sequences.append(ids[-(block_size + 1) :])
            start, stop = stop, stop + len(sequences[-1])
            windows.append((start, stop - n, stop))
    return np.concatenate(sequences), np.array(windows)


def encode_pair(tokenizer, context: str, choice: str) -> tuple[np.ndarray, int]:
    """Ids of both together, and how many of the last ones are the choice's: all beyond the context's own number. Spaces
    that end the context belong to the choice. An empty context becomes the end-of-text id."""
    ids = tokenizer.encode_document(context + choice)
    n = len(ids) - len(tokenizer.encode_document(context.rstrip()))
    if n == len(ids):
        if tokenizer.eot is None:
            raise ValueError(f"{choice[:40]!r} has no context, and the tokenizer no end-of-text id to start from")
        ids = np.append(tokenizer.eot, ids)
    return ids, max(1, n)  # 1 if the tokenizer merged the whole choice into the context


def count_hellaswag(questions: list[dict], nats: np.ndarray, misses: np.ndarray) -> dict:
    """acc: the likeliest choice is right; acc_norm, acc_bytes: likeliest per character and per UTF-8 byte, without the
    leading space. acc_norm is the harness's; for English the two are nearly equal."""
    right = np.zeros((3, len(questions)), bool)
    for i, question in enumerate(questions):
        endings = [choice[1:] for choice in question["choices"]]
        theirs, nats = np.split(nats, [len(endings)])
        for j, size in enumerate((lambda ending: 1, len, lambda ending: len(ending.encode()))):
            right[j, i] = np.argmin(theirs / [max(1, size(ending)) for ending in endings]) == question["label"]
    figures = {}
    for name, row in zip(("acc", "acc_norm", "acc_bytes"), right, strict=True):
        figures |= {name: row.mean().item(), f"{name}_stderr": standard_error(row)}
    return figures


def count_lambada(questions: list[dict], nats: np.ndarray, misses: np.ndarray) -> dict:
    """acc: every token of the word was the likeliest; perplexity: per word."""
    right, loss = misses == 0, math.fsum(nats) / len(questions)
    figures = {"acc": right.mean().item(), "acc_stderr": standard_error(right)}
    return figures | {"perplexity": exp(loss)}


def standard_error(right: np.ndarray) -> float:
    return right.std(ddof=1).item() / math.sqrt(len(right)) if len(right) > 1 else math.nan


READ = {"hellaswag": read_hellaswag, "lambada": read_lambada}
COUNT = {"hellaswag": count_hellaswag, "lambada": count_lambada}
