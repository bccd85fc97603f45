"""Units of text -> a dataset folder, on all cores: what every prepare.py ends with.

    build(args, units(args), make_tokenizer, source, "config/train_pycode.py")

A unit is what one worker reads at a time. It has .key (which changes with its text), .size (bytes, for the progress
bar) and .pieces(), an iterator over pieces of documents with .document (a name), .text, .ends (the document's last
piece) and .split ('train', 'val', or None: the document's hash decides).

Workers encode units into parts, files that hold the ids of a unit and a row about each of its documents. The parent
takes the parts in the order of the units, decides where each document goes, and appends it to train.bin or val.bin.
So the result is the same for any number of workers, memory does not grow with the text, and a run that was killed
goes on: units whose rows are there and whose ids are gone are in the .bin files already, those with both are
finished parts, all others are encoded.
"""

import argparse
import hashlib
import json
import os
import shutil
import signal
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from typing import Any

import numpy as np

from data.dataset import DATA, SPLITS, DatasetWriter, id_dtype, open_dataset, os_errors, shown
from data.tokenizer import tokenizer_from_json

FORMAT = 1  # of the parts; parts of another one are not used
HEAD = 2**16  # bytes of a document, whitespace folded, whose hash decides on its split
SMALL = 2**23  # bytes of text a worker process is worth starting for
SLICE = 2**21  # ids that are copied at a time
ROW = np.dtype([("tokens", "<i8"), ("bytes", "<i8"), ("characters", "<i8"), ("rank", "<u8"), ("hash", "<u8"),
                ("split", "i1"), ("ends", "?")])  # of one document in one unit; split -1: rank decides


def build(args: argparse.Namespace, units: Iterable[Any], make_tokenizer: Callable, source: dict,
          config: str) -> None:
    """Encode `units` into the dataset args.out_dir and print what one wants to check, and the next command.

    make_tokenizer(texts) -> a tokenizer; texts() iterates over the texts of the training split, texts(None) over
    all. Of `args`: out_dir, val_fraction, dry_run (a temporary folder takes the place of out_dir) and, if there,
    workers (processes; 0 = all cores). `source` goes into meta.json. ValueError: whatever a user can mend.
    """
    units = list(units)
    limit = find_limit(units, args.val_fraction)
    tokenizer = make_tokenizer(partial(texts, units, limit))
    with tempfile.TemporaryDirectory() if args.dry_run else nullcontext(args.out_dir) as folder:
        with (work_folder(Path(folder), tokenizer, limit) as work,
              start_workers(getattr(args, "workers", 0), units, tokenizer) as pool):
            ledger = Ledger(limit)
            with DatasetWriter(folder, tokenizer, source, work) as writer:
                assemble(units, pool, writer, ledger)
                counts = {split: count_ids(pool, writer, split) for split in SPLITS}
        print_report(Path(folder), tokenizer, source, ledger, counts)
    if args.dry_run:
        print(f"dry run, nothing written to {args.out_dir}")
        return
    print(f"wrote  train.bin, val.bin and meta.json in {shown(args.out_dir)}")
    name = args.out_dir.name if args.out_dir.resolve().parent == DATA else shown(args.out_dir)
    print(f"next   python train.py {config} --dataset={name}")


# ---- splits and duplicates -----------------------------------------------------------------------------------


class Fold:
    """Hashes of a document that comes in pieces of UTF-8, which its whitespace does not change.

    Runs of blanks (spaces, control characters, the no-break and the full-width space) count as one space, and as
    none at both ends. `rank` is the hash of the first HEAD bytes of what is left, None until they were seen.
    """

    def __init__(self) -> None:
        self.sha1, self.length, self.gap, self.rank = hashlib.sha1(usedforsecurity=False), 0, False, None

    def add(self, text: bytes) -> None:
        if not text:
            return
        if not text.isascii():
            text = text.replace(b"\xc2\xa0", b" ").replace(b"\xe3\x80\x80", b" ")
        text = np.maximum(np.frombuffer(text, np.uint8), np.uint8(32))
        is_ink = text != 32
        keep = is_ink.copy()
        keep[1:] |= is_ink[:-1]
        folded = text[keep]  # at most one space at the end, and none at the start
        self.gap |= not is_ink[0]
        if folded.size:
            if self.gap and self.length:
                self._update(b" ")
            self.gap = bool(folded[-1] == 32)
            self._update(folded[:folded.size - self.gap].tobytes())

    def _update(self, folded: bytes) -> None:
        if self.rank is None and self.length + len(folded) >= HEAD:
            self.sha1.update(folded[:HEAD - self.length])
            self.rank = self.value()
            folded = folded[HEAD - self.length:]
            self.length = HEAD
        self.length += len(folded)
        self.sha1.update(folded)

    def value(self) -> int:
        """64 bits of the hash of all that was added."""
        return int.from_bytes(self.sha1.digest()[:8], "little")


def ranked(units: Iterable[Any]) -> Iterator[tuple[Any, str | int]]:
    """Every piece, with the split or else the rank of its document; keeps pieces back until that is known."""
    document = None  # the split or rank of the one that is being read, perhaps over several units
    for unit in units:
        held, fold = [], Fold()
        for piece in unit.pieces():
            held.append(piece)
            if document is None:
                fold.add(utf8(piece))
                document = piece.split or fold.rank
                if document is None and piece.ends:
                    document = fold.value()
            if document is not None:
                yield from ((piece, document) for piece in held)
                held = []
            if piece.ends:
                document, fold = None, Fold()
        if held:
            document = fold.value()
            yield from ((piece, document) for piece in held)


def find_limit(units: Iterable[Any], val_fraction: float) -> int:
    """The largest rank (of 0 to 2**64 - 1) that is validation: val_fraction of all.

    Where that would leave a split without documents, the lowest rank is val, or the highest is train. So one has
    to read on until both splits have a document, and no further where the corpus itself has splits.
    """
    limit = min(int(val_fraction * 2**64), 2**64 - 1)
    lowest, highest = 2**64, -1
    for _, rank in ranked(units):
        if isinstance(rank, str):
            return limit
        lowest, highest = min(lowest, rank), max(highest, rank)
        if lowest <= limit < highest:
            return limit
    if lowest >= highest:
        raise ValueError(f"{'no text' if highest < 0 else 'one document, or copies of one'}: need at least 2, as each "
                         "goes to train or val whole; pass more with --input")
    return lowest if limit < lowest else highest - 1


def texts(units: Iterable[Any], limit: int, split: str | None = "train") -> Iterator[str]:
    """The texts of a split piece by piece, of both for split=None. Duplicates are still among them."""
    for piece, rank in ranked(units):
        if split in (None, rank if isinstance(rank, str) else SPLITS[rank <= limit]):
            yield piece.text


def utf8(piece: Any) -> bytes:
    try:
        return piece.text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{piece.document}: the text has a lone surrogate, U+{ord(piece.text[error.start]):04X}, "
                         "which cannot be written as UTF-8; remove or replace it") from None


class Seen:
    """A set of uint64s at about 10 bytes each: sorted arrays, each more than twice as long as the next."""

    def __init__(self) -> None:
        self.arrays: list[np.ndarray] = []

    def add(self, keys: np.ndarray) -> np.ndarray:
        """For each of `keys` whether it was there, or is among those before it; then all are there."""
        new, first = np.unique(keys, return_index=True)
        for array in self.arrays:
            is_new = array[np.searchsorted(array[:-1], new)] != new
            new, first = new[is_new], first[is_new]
        was_there = np.ones(keys.size, bool)
        was_there[first] = False
        while self.arrays and self.arrays[-1].size <= 2 * new.size:
            new = np.concatenate([self.arrays.pop(), new])
            new.sort(kind="stable")  # quick, as both parts are sorted
        if new.size:
            self.arrays.append(new)
        return was_there


class Ledger:
    """Decides, unit by unit, where documents go, and counts them. The same rows lead to the same decisions."""

    def __init__(self, limit: int):
        self.limit, self.seen = np.uint64(limit), Seen()
        keys = ("tokens", "bytes", "characters", "documents", "duplicates")
        self.counts = {split: dict.fromkeys(keys, 0) for split in SPLITS}
        self.longest = dict.fromkeys(SPLITS, (0, ""))  # characters, name
        self.open = None  # (where it goes, its row so far (1,)) of a document that goes on in the next unit

    def add(self, rows: np.ndarray, names: list[str]) -> np.ndarray:
        """The documents of the next unit (n,) -> for each its split's number in SPLITS, or DROPPED.

        If the first is the rest of an open document and dropped, what was there of it counts no longer.
        """
        rows = rows.copy()
        where = np.where(rows["split"] < 0, rows["rank"] <= self.limit, rows["split"])
        if self.open is not None and rows.size:
            where[0], before = self.open
            self.tally(before, where[0], -1)
            for key in ("tokens", "bytes", "characters"):
                rows[key][0] += before[key][0]
            both = np.array([before["hash"][0], rows["hash"][0]], "<u8")
            rows["hash"][0] = int.from_bytes(hashlib.sha1(both.tobytes()).digest()[:8], "little")
            self.open = None
        copies = np.flatnonzero(rows["ends"])
        copies = copies[self.seen.add(rows["hash"][copies])]
        for split, n in zip(SPLITS, np.bincount(where[copies], minlength=2), strict=True):
            self.counts[split]["duplicates"] += int(n)
        where[copies] = DROPPED
        for i, split in enumerate(SPLITS):
            self.tally(rows[where == i], i)
            kept = np.flatnonzero((where == i) & rows["ends"])
            if kept.size and rows["characters"][kept].max() > self.longest[split][0]:
                at = kept[rows["characters"][kept].argmax()]
                self.longest[split] = int(rows["characters"][at]), names[at]
        if rows.size and not rows["ends"][-1]:
            self.open = where[-1], rows[-1:]
        return where

    def tally(self, rows: np.ndarray, i: int, sign: int = 1) -> None:
        counts = self.counts[SPLITS[i]]
        for key in ("tokens", "bytes", "characters"):
            counts[key] += sign * int(rows[key].sum())
        counts["documents"] += sign * int(np.count_nonzero(rows["ends"]))


# ---- workers -------------------------------------------------------------------------------------------------

TOKENIZER = None  # of this worker


def use_tokenizer(tokenizer: Any) -> None:
    global TOKENIZER
    TOKENIZER = tokenizer


def start_worker(description: dict) -> None:
    """Prepares a process of its own: one thread, and an end when Ctrl-C is typed or the parent is gone."""
    def follow_parent() -> None:
        connection.wait([parent_process().sentinel])
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=follow_parent, daemon=True).start()
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"}
    use_tokenizer(tokenizer_from_json(description))


@contextmanager
def workers(n: int, units: list[Any], tokenizer: Any) -> Iterator[Executor]:
    """n processes (0: one a core), or a thread of this one where so little text isn't worth starting any."""
    affinity = getattr(os, "sched_getaffinity", None)
    n = n or (len(affinity(0)) if affinity else os.cpu_count() or 1)
    n = min(n, len(units), 1 + sum(unit.size for unit in units) // SMALL, 61)  # Windows can wait for 61
    if n == 1:
        pool = ThreadPoolExecutor(1, initializer=use_tokenizer, initargs=(tokenizer,))
    else:
        pool = ProcessPoolExecutor(n, get_context("spawn"), start_worker, (tokenizer.to_json(),))
    pool.n = n
    with pool:
        try:
            yield pool
        except BrokenProcessPool:
            raise ValueError("a worker process was killed, perhaps because memory ran out; the same command goes on "
                             f"where it stopped; --workers={max(1, n // 2)} takes less memory") from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def encode_unit(unit: Any, path: Path) -> None:
    """Makes the part of a unit: path.ids, all ids in order, and then path.rows, one ROW and name a document."""
    dtype, eot = id_dtype(TOKENIZER.vocab_size), TOKENIZER.eot
    end = np.array([] if eot is None else [eot], dtype)
    rows, names, fold = [], [], None
    temp = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with os_errors(path.parent):
        file = open(temp, "wb")
    with file:
        for piece in unit.pieces():
            if fold is None:
                fold, n_ids, n_bytes, n_characters = Fold(), 0, 0, 0
            text = utf8(piece)
            try:
                ids = TOKENIZER.encode(piece.text)
            except ValueError as error:
                raise ValueError(f"{piece.document}: {error}") from None
            with os_errors(path.parent):
                for array in [ids.astype(dtype, copy=False), *[end] * piece.ends]:
                    file.write(array.data)
                    n_ids += array.size
