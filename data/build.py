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
import shlex
import shutil
import signal
import subprocess
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from itertools import islice
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from typing import Any

import numpy as np

from data.dataset import DATA, SPLITS, Dataset, DatasetWriter, id_dtype, open_dataset, os_errors, shown
from data.source import SOME, some
from data.tokenizer import fingerprint, tokenizer_from_json
from system.files import lock_file

FORMAT = 2  # of the parts; parts of another one are not used
HEAD = 2**16  # bytes of a document, whitespace folded, whose hash decides on its split
SMALL = 2**23  # bytes of text a worker process is worth starting for
SLICE = 2**18  # ids that are copied at a time
NEAR = 2**16  # bytes that numpy works on at a time: what its steps leave stays in the processor's cache
DROPPED = len(SPLITS)  # where a duplicate goes
ROW = np.dtype(
    [
        ("tokens", "<i8"),
        ("bytes", "<i8"),
        ("characters", "<i8"),
        ("rank", "<u8"),
        ("hash", "<u8"),
        ("split", "i1"),
        ("ends", "?"),
    ]
)  # of one document in one unit; split -1: rank decides


def build(args: argparse.Namespace, units: Iterable[Any], make_tokenizer: Callable, source: dict, config: str) -> None:
    """Encode `units` into the dataset args.out_dir, print what one wants to check, and the next command.

    make_tokenizer(texts) -> a tokenizer; texts() iterates over the texts of the training split, texts(None) over
    all. Of `args`: out_dir, val_fraction, dry_run (a temporary folder takes the place of out_dir) and, if there,
    workers (processes; 0 = all cores) and eot (False: documents don't end with the tokenizer's end-of-text id).
    `source` goes into meta.json. ValueError: whatever a user can mend.
    """
    units = list(units)
    limit = find_limit(units, args.val_fraction)
    tokenizer = make_tokenizer(partial(texts, units, limit))
    end = tokenizer.eot if getattr(args, "eot", True) else None
    n = n_workers(getattr(args, "workers", 0), units)
    with folder_beside(args.out_dir) if args.dry_run else nullcontext(args.out_dir) as folder:
        folder = Path(folder)
        with (
            work_folder(folder, [fingerprint(tokenizer), end, limit]) as work,
            workers(n, tokenizer) as pool,
            DatasetWriter(folder, tokenizer, source, work) as writer,
        ):
            start = partial(pool.submit, encode_unit, end)
            ledger = assemble(units, start, 3 * n, writer, limit)
            used = {split: count_ids(pool, writer, split) for split in SPLITS}
        print(f"source {source['from']}" + (f", {source['bytes']:,} bytes" if "bytes" in source else ""))
        print_report(open_dataset(folder), ledger, used)
    if args.dry_run:
        print(f"dry run, nothing written to {args.out_dir}")
        return
    print(f"wrote  train.bin, val.bin and meta.json in {shown(args.out_dir)}")
    name = args.out_dir.name if args.out_dir.resolve().parent == DATA else shown(args.out_dir)
    quoted = subprocess.list2cmdline([str(name)]) if os.name == "nt" else shlex.quote(str(name))
    print(f"next   python train.py {config} --dataset={quoted}")


def folder_beside(out_dir: Path) -> tempfile.TemporaryDirectory:
    """A temporary folder where out_dir is, or would be: there is room, while the system's is often in memory."""

    def leave(*_) -> None:
        raise SystemExit(143)

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, leave)  # which would end the process with the folder still there
    parent = next((parent for parent in out_dir.absolute().parents if os.path.isdir(parent)), None)
    try:
        return tempfile.TemporaryDirectory(prefix=".dry-run-", dir=parent)
    except OSError:  # it can't be written
        return tempfile.TemporaryDirectory()


# ---- splits and duplicates -----------------------------------------------------------------------------------


class Fold:
    """Hashes of a document that comes in pieces, which its whitespace does not change.

    Runs of blanks (spaces, control characters, the no-break and the full-width space) count as one blank, and as
    none at both ends. `rank` is the hash of the first HEAD bytes of what is left, None until they were seen.
    """

    def __init__(self) -> None:
        self.sha1, self.length, self.gap, self.rank = hashlib.sha1(usedforsecurity=False), 0, False, None

    def add(self, piece: Any) -> int:
        """Returns how many bytes of UTF-8 the piece has."""
        n_bytes = 0
        for first in range(0, len(piece.text), NEAR):
            part = piece.text[first : first + NEAR]
            spaced = part if part.isascii() else part.replace("\xa0", " ").replace("\u3000", " ")
            try:
                text = spaced.encode()
                n_bytes += len(text) if spaced is part else len(part.encode())
            except UnicodeEncodeError as error:
                raise ValueError(
                    f"{piece.document}: the text has a lone surrogate, U+{ord(spaced[error.start]):04X}, "
                    "which cannot be written as UTF-8; remove or replace it"
                ) from None
            self._add(np.frombuffer(text, np.uint8))
        return n_bytes

    def _add(self, text: np.ndarray) -> None:
        is_ink = text > 32
        keep = is_ink.copy()
        keep[1:] |= is_ink[:-1]
        folded = (text & -is_ink.view(np.uint8))[keep]  # blanks are 0: at most one at the end, none at the start
        self.gap |= not is_ink[0]
        if folded.size:
            if self.gap and self.length:
                self._hash(memoryview(b"\0"))
            self.gap = not folded[-1]
            self._hash(folded[: folded.size - self.gap].data)

    def _hash(self, folded: memoryview) -> None:
        if self.rank is None and self.length + len(folded) >= HEAD:
            head = HEAD - self.length
            self.sha1.update(folded[:head])
            self.rank = self.value()
            self.sha1.update(folded[head:])
        else:
            self.sha1.update(folded)
        self.length += len(folded)

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
                fold.add(piece)
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


def with_bar(units: list[Any], what: str) -> Iterator[Any]:
    from tqdm import tqdm

    with tqdm(desc=what, total=total(units), unit="B", unit_scale=True, leave=False, disable=None) as bar:
        for unit in units:
            yield unit
            bar.update(unit.size)


def total(units: Iterable[Any]) -> int:
    """Bytes."""
    return sum(unit.size for unit in units)


def find_limit(units: list[Any], val_fraction: float) -> int:
    """The largest rank (of 0 to 2**64 - 1) that is validation: val_fraction of all.

    Where that would leave a split without documents, the lowest rank is val, or the highest is train. So one has
    to read on until both splits have a document, and no further where the corpus itself has splits.
    """
    limit = min(int(val_fraction * 2**64), 2**64 - 1)
    lowest, highest = 2**64, -1
    for _, rank in ranked(with_bar(units, "splitting")):
        if isinstance(rank, str):
            return limit
        lowest, highest = min(lowest, rank), max(highest, rank)
        if lowest <= limit < highest:
            return limit
    if lowest >= highest:
        raise ValueError(
            f"{'no text' if highest < 0 else 'one document, or copies of one'}: need at least 2, as each "
            "goes to train or val whole; pass more with --input, or say with --separator what stands "
            "between documents"
        )
    return lowest if limit < lowest else highest - 1


def texts(units: list[Any], limit: int, split: str | None = "train") -> Iterator[str]:
    """The texts of a split piece by piece, of both for split=None. Duplicates are still among them."""
    for piece, rank in ranked(with_bar(units, "reading")):
        if split in (None, rank if isinstance(rank, str) else SPLITS[rank <= limit]):
            yield piece.text


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
        self.copies: list[str] = []  # names of the first duplicates
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
        self.copies += [names[i] for i in copies[: SOME - len(self.copies)]]
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

ENCODE = None  # of this worker: its tokenizer, how many threads it may use


def use_tokenizer(tokenizer: Any, num_threads: int | None) -> None:
    global ENCODE
    ENCODE = tokenizer, num_threads


def start_worker(description: dict) -> None:
    """Prepares a process of its own: one thread, and an end when Ctrl-C is typed or the parent is gone."""

    def follow_parent() -> None:
        connection.wait([parent_process().sentinel])
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=follow_parent, daemon=True).start()
    use_tokenizer(tokenizer_from_json(description), 1)


def n_workers(wanted: int, units: list[Any]) -> int:
    """`wanted` processes, or as many as this one may use cores, but none for less than SMALL bytes of text."""
    if not wanted:
        wanted = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(wanted, len(units), 1 + total(units) // SMALL, 61))  # 61: the most that Windows can wait for


@contextmanager
def workers(n: int, tokenizer: Any) -> Iterator[Executor]:
    """n processes that know the tokenizer; for n = 1 a thread of this one."""
    if n == 1:
        pool = ThreadPoolExecutor(1, initializer=use_tokenizer, initargs=(tokenizer, None))
    else:
        pool = ProcessPoolExecutor(n, get_context("spawn"), start_worker, (tokenizer.to_json(),))
    try:
        yield pool
    except BrokenProcessPool:
        raise ValueError(
            "a worker process was killed, perhaps because memory ran out; the same command goes on "
            f"where it stopped, and with --workers={n // 2} it takes less memory"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)  # wait=False races with the interpreter's end (EBADF in its exit handler)


def encode_unit(end: int | None, unit: Any, path: Path) -> None:
    """Makes the part of a unit: path.ids, all ids in a row, documents with `end` behind, then path.rows."""
    tokenizer, num_threads = ENCODE
    dtype = part_dtype(tokenizer.vocab_size)
    ends = np.array([] if end is None else [end], dtype)
    rows, names, fold = [], [], None
    temp = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with open(temp, "wb") as file:
        for piece in unit.pieces():
            if fold is None:
                fold, n_tokens, n_bytes, n_characters = Fold(), 0, 0, 0
            n_bytes += fold.add(piece)
            n_characters += len(piece.text)
            try:
                ids = tokenizer.encode(piece.text, num_threads=num_threads).astype(dtype, copy=False)
            except ValueError as error:
                raise ValueError(f"{piece.document}: {error}") from None
            for array in (ids, ends) if piece.ends else (ids,):
                with os_errors(path.parent):
                    file.write(array.data)
                n_tokens += array.size
            if piece.ends:
                rows.append(row(piece, fold, n_tokens, n_bytes, n_characters))
                names.append(piece.document)
                fold = None
        if fold is not None:
            rows.append(row(piece, fold, n_tokens, n_bytes, n_characters))
            names.append(piece.document)
    with os_errors(path.parent):
        os.replace(temp, path.with_suffix(".ids"))
        with open(temp, "wb") as file:
            np.save(file, np.array(rows, ROW))
            file.write("\0".join(names).encode("utf-8", "surrogateescape"))
        os.replace(temp, path.with_suffix(".rows"))


def part_dtype(vocab_size: int) -> np.dtype:
    """Of the ids in a part: bytes where they do, since writing is a good part of the work."""
    return np.dtype(np.uint8) if vocab_size <= 256 else id_dtype(vocab_size)


def row(piece: Any, fold: Fold, n_tokens: int, n_bytes: int, n_characters: int) -> tuple:
    split = -1 if piece.split is None else SPLITS.index(piece.split)
    rank = fold.value() if fold.rank is None else fold.rank
    return n_tokens, n_bytes, n_characters, rank, fold.value(), split, piece.ends


def read_rows(path: Path) -> tuple[np.ndarray, list[str]]:
    """The rows (n,) of a part, and the names of their documents."""
    with open(path.with_suffix(".rows"), "rb") as file:
        rows = np.load(file, allow_pickle=False)
        return rows, file.read().decode("utf-8", "surrogateescape").split("\0")


def is_finished(path: Path, vocab_size: int) -> bool:
    """Whether a part is there, and whole."""
    try:
        rows, _ = read_rows(path)
        return path.with_suffix(".ids").stat().st_size == rows["tokens"].sum() * part_dtype(vocab_size).itemsize
    except (OSError, ValueError, EOFError):
        return False


# ---- from parts to .bin files ----------------------------------------------------------------------------------


@contextmanager
def work_folder(folder: Path, settings: list) -> Iterator[Path]:
    """The folder in `folder` for parts made with these settings; what is finished stays there until all is.

    ValueError if another process works there.
    """
    key = hashlib.sha256(json.dumps([FORMAT, *settings]).encode()).hexdigest()[:16]
    work, is_new = folder / f".prepare-{key}", not folder.exists()
    with os_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        with locked(folder):
            with os_errors(folder):
                work.mkdir(exist_ok=True)
            try:
                yield work
            finally:
                if not any(work.glob("*.rows")):
                    shutil.rmtree(work, ignore_errors=True)
    finally:
        if is_new:
            with suppress(OSError):  # there is something in it
                folder.rmdir()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other prepares, whatever their settings, out of `folder` until the end, or until this process ends,
    however it does. ValueError if another one is there."""
    path = folder / ".prepare.lock"
    with os_errors(folder):
        file = open(path, "wb")  # noqa: SIM115
    try:
        with file:
            if not take_lock(file, path):
                raise ValueError(f"another prepare is at work in {folder}; wait for its end, or stop it")
            try:
                yield
            finally:
                if os.name != "nt":  # removed while locked: later it may be another process's file
                    with suppress(OSError):
                        path.unlink()
    finally:
        if os.name == "nt":  # removes no file that a process has open
            with suppress(OSError):
                path.unlink()


def take_lock(file: Any, path: Path) -> bool:
    """Locks `file`, opened from `path`, until it is closed. False if another process holds the lock."""
    try:
        lock_file(file)
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))  # not if its owner just removed it and ended
    except (BlockingIOError, PermissionError, FileNotFoundError):
        return False
    except OSError:
        return True  # a file system without locks


def assemble(
    units: list[Any], start: Callable[[Any, Path], Future], n_ahead: int, writer: DatasetWriter, limit: int
) -> Ledger:
    """Append all units' ids to the writer's files, in order; `start` encodes, n_ahead units are under way."""
    from tqdm import tqdm

    hashes = [hashlib.sha256(unit.key.encode("utf-8", "surrogateescape")).hexdigest()[:16] for unit in units]
    paths = [writer.temp / f"{i:06}-{key}" for i, key in enumerate(hashes)]
    n_done, ledger = go_on(paths, writer, limit)
    todo = zip(units[n_done:], paths[n_done:], strict=True)

    def start_one() -> None:
        for unit, path in islice(todo, 1):
            finished = is_finished(path, writer.tokenizer.vocab_size)
            started.append((unit, path, None if finished else start(unit, path)))

    started = deque()
    for _ in range(n_ahead):
        start_one()
    with tqdm(
        desc="encoding", total=total(units), initial=total(units[:n_done]), unit="B", unit_scale=True, disable=None
    ) as bar:
        while started:
            unit, path, future = started.popleft()
            if future is not None:
                future.result()
            append(path, writer, ledger)
            bar.update(unit.size)
            start_one()
    assert ledger.open is None  # the last document ends
    for split, counts in ledger.counts.items():
        assert writer.counts[split]["tokens"] == counts["tokens"]
        writer.counts[split] = {key: counts[key] for key in ("tokens", "bytes", "documents")}
    return ledger


def go_on(paths: list[Path], writer: DatasetWriter, limit: int) -> tuple[int, Ledger]:
    """How many of the first units the writer's files hold from an earlier run, and the ledger behind them.

    The files are cut there. What else that run left is kept if it is a part of one of `paths`.
    """
    names = {path.name for path in paths}
    for file in writer.temp.iterdir():
        if file.suffix == ".tmp" or file.suffix in (".ids", ".rows") and file.stem not in names:
            with suppress(OSError):  # Windows: a worker that has not ended yet
                file.unlink()
    n, ledger = 0, Ledger(limit)
    with suppress(OSError, ValueError, EOFError):
        while n < len(paths) and not paths[n].with_suffix(".ids").exists():
            ledger.add(*read_rows(paths[n]))
            n += 1
    if n:
        print(f"going on behind {n:,} of {len(paths):,} parts, which an earlier run finished", flush=True)
    if not all([writer.cut(split, ledger.counts[split]["tokens"]) for split in SPLITS]):
        n, ledger = 0, Ledger(limit)  # killed while the files were moved to their places
        for split in SPLITS:
            writer.cut(split, 0)
    for path in paths[n:]:
        if not path.with_suffix(".ids").exists():
            path.with_suffix(".rows").unlink(missing_ok=True)
    return n, ledger


def append(path: Path, writer: DatasetWriter, ledger: Ledger) -> None:
    """Move the ids of a part to where the ledger says."""
    rows, names = read_rows(path)
    unfinished = ledger.open
    where = ledger.add(rows, names)
    if unfinished is not None and where.size and where[0] == DROPPED:
        split = SPLITS[unfinished[0]]
        writer.cut(split, writer.counts[split]["tokens"] - int(unfinished[1]["tokens"][0]))
    bounds = np.concatenate([[0], np.cumsum(rows["tokens"])])
    with os_errors(writer.folder):
        with open(path.with_suffix(".ids"), "rb") as file:
            for first in range(0, bounds[-1], SLICE):
                ids = np.fromfile(file, part_dtype(writer.tokenizer.vocab_size), SLICE)
                lengths = np.diff(np.clip(bounds, first, first + SLICE))
                goes = set(where[lengths > 0].tolist())
                of = np.repeat(where.astype(np.int8), lengths) if len(goes) > 1 else None
                for i in goes - {DROPPED}:
                    writer.write(SPLITS[i], ids if of is None else ids[of == i], 0, 0)
        for file in writer.bins.values():
            file.flush()
        path.with_suffix(".ids").unlink()


# ---- the report ------------------------------------------------------------------------------------------------


def count_ids(pool: Executor, writer: DatasetWriter, split: str) -> np.ndarray:
    """How often each id is in the split, (vocab_size,) int64."""
    from tqdm import tqdm

    n, path = writer.counts[split]["tokens"], writer.temp / f"{split}.bin"
    step = max(2**23, -(-n // 64))
    jobs = [
        pool.submit(count_range, path, writer.dtype, first, step, writer.tokenizer.vocab_size)
        for first in range(0, n, step)
    ]
    bar = tqdm(jobs, desc=f"counting the ids of {split}", leave=False, disable=None)
    return sum((job.result() for job in bar), np.zeros(writer.tokenizer.vocab_size, np.int64))


def count_range(path: Path, dtype: np.dtype, first: int, n: int, vocab_size: int) -> np.ndarray:
    """How often each id is among the n from `first` on; bytes two at a time, which takes half as long."""
    counts, pairs = np.zeros(vocab_size, np.int64), np.zeros((256, 256), np.int64)
    with open(path, "rb") as file:
        file.seek(first * dtype.itemsize)
        while (ids := np.fromfile(file, dtype, min(SLICE if vocab_size == 256 else NEAR, n))).size:
            n -= ids.size
            if vocab_size == 256:
                even = ids.size // 2 * 2
                pairs += np.bincount(ids[:even].astype(np.uint8).view(np.uint16), minlength=2**16).reshape(256, 256)
                ids = ids[even:]
            counts += np.bincount(ids, minlength=vocab_size)
    return counts + pairs.sum(0) + pairs.sum(1) if vocab_size == 256 else counts


def print_report(dataset: Dataset, ledger: Ledger, used: dict[str, np.ndarray]) -> None:
    """What a person wants to check of a dataset; `used` has the number of occurrences of each id, per split."""
    tokenizer = dataset.tokenizer
    for counts in used.values():
        if tokenizer.eot is not None:
            counts[tokenizer.eot] = 0
    print(table(ledger.counts, used))
    if ledger.copies:
        n = sum(counts["duplicates"] for counts in ledger.counts.values())
        print(f"left out as copies of documents before them: {some(ledger.copies, n)}")
    print(f"vocab  {tokenizer.vocab_size:,} ({tokenizer.kind}), ids stored as {dataset.dtype.name}")
    for split in SPLITS:
        n, name = ledger.longest[split]
        print(f"\n{split}: longest document {name}, {n:,} characters")
        print(f"most frequent: {frequent(tokenizer, used[split])}")
        ids = dataset.array(split)
        for part in range(1, 6, 2):
            sample = tokenizer.decode(ids[ids.size * part // 6 :][:60]).strip("\ufffd")
            print(f"sample: {sample[:200]!r}")
    print()


def table(counts: dict[str, dict[str, int]], used: dict[str, np.ndarray]) -> str:
    keys = ("documents", "duplicates", "characters", "bytes", "tokens")
    rows = {split: [counts[split][key] for key in keys] for split in SPLITS}
    rows["all"] = [sum(column) for column in zip(*rows.values(), strict=True)]
    used = used | {"all": sum(used.values())}
    lines = ["        documents duplicates      characters           bytes          tokens  bytes/token  ids used"]
    for name, (n_documents, n_copies, n_characters, n_bytes, n_tokens) in rows.items():
        lines.append(
            f"{name:5}{n_documents:12,}{n_copies:11,}{n_characters:16,}{n_bytes:16,}{n_tokens:16,}"
            f"{n_bytes / n_tokens:13.2f}{np.count_nonzero(used[name]):10,}"
        )
    return "\n".join(lines)


def frequent(tokenizer: Any, counts: np.ndarray) -> str:
    """The 20 most frequent tokens with their share of all, in percent."""
    shown = []
    for id in np.argsort(-counts, kind="stable")[: min(20, np.count_nonzero(counts))].tolist():
        token = tokenizer.token_bytes(id)
        with suppress(UnicodeDecodeError):  # then it shows as bytes
            token = token.decode()
        shown.append(f"{token!r} {100 * counts[id] / counts.sum():.1f}")
    return "  ".join(shown) + " %"
