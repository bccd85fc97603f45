"""Units of text -> a dataset folder, on all cores: the second half of every prepare.py.

    prepare_dataset(args, parts, make_units(args, parts, reading), "config/train_pycode.py")

Workers encode units (data/source.py) into encoded parts: files with the ids of a unit and a row for each of its
documents. The parent takes these in the order of the units, decides where each document goes, and appends it to
train.bin, val.bin or test.bin. So the result does not depend on the number of workers, memory does not grow with the
text, and a killed run can resume: units with rows but no ids are already in the .bin files, those with both are
finished, and the others are encoded again.

A document's rank, a hash of its text, decides its split: the share val_fraction of lowest ranks is val, the share
test_fraction above them is test, and the rest is train. So a test split takes its documents from train alone, no
document of val moves, and train is what it would be with a val_fraction that is larger by test_fraction.
"""

import hashlib
import json
import math
import os
import shutil
import signal
import tempfile
import threading
from argparse import Namespace
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from functools import cache, partial
from itertools import islice
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from typing import Any

import numpy as np

from data.dataset import (
    SPLITS,
    TEST,
    Dataset,
    DatasetWriter,
    dataset_option,
    display_path,
    id_dtype,
    open_dataset,
    os_errors,
)
from data.fim import Fim, fim_of, find_markers, name_ids, rearranged, with_markers
from data.progress import byte_bar
from data.source import (
    SHOWN_NAMES,
    Part,
    Piece,
    Unit,
    by_position,
    described,
    download_inputs,
    find_parts,
    first_few,
    origin,
    reading_of,
    tokenizer_of,
)
from data.tokenizer import Tokenizer, find_cut, fingerprint, tokenizer_from_json
from system.files import lock_file
from system.quota import cpu_quota

PARTS_FORMAT = 3  # of the encoded parts; those of another format are not reused
LOCK = ".prepare.lock"  # held while a folder is written to
RANK_BYTES = 2**16  # bytes of a document, white space folded, whose hash decides its split
BYTES_PER_WORKER = 2**23  # of text: less is not worth starting a worker process
SLICE = 2**18  # ids copied at a time
CACHED_BYTES = 2**16  # bytes per numpy step: the intermediate arrays fit the processor's cache
NUMBERED = (*SPLITS, TEST)  # the splits by the numbers that rows and the ledger have for them
DROPPED = len(NUMBERED)  # where a duplicate goes
Limits = tuple[tuple[str, int], ...]  # (split, largest rank that is in it), ascending; higher ranks are train
# Of a document in one unit; split -1: its rank decides
ROW = np.dtype("<i8,<i8,<i8,<u8,<u8,i1,?")
ROW.names = ("tokens", "bytes", "characters", "rank", "hash", "split", "ends")


def prepare_dataset(args: Namespace, parts: list[Part], units: list[Unit], config: str, where: str = "") -> None:
    """Encode the units made of `parts` as the command line says; `where` describes them in place of their names."""
    build(args, units, tokenizer_of(args), origin(args, parts, where), config)


def prepare_text(args: Namespace, urls: list[str], sha256: str, config: str) -> None:
    """Prepare --input, or the script's own text, with the end of the text as the validation split (or, with
    --test_fraction, as validation and then test)."""
    if download_inputs(args, {"input.txt": (urls, sha256)}):
        reading = reading_of(args)
        parts = find_parts(args, reading, sha256)
        prepare_dataset(args, parts, by_position(args, parts, reading), config)


def build(args: Namespace, units: Iterable[Unit], make_tokenizer: Callable, source: dict, config: str) -> None:
    """Encode `units` into the dataset args.out_dir, print a report for checking, and the next command to run.

    make_tokenizer(texts) returns a tokenizer; texts() iterates over the texts of the training split, texts(None) over
    all. args: of a prepare_parser, with eot (False: no end-of-text id after documents). `source` goes into meta.json.
    ValueError for everything the user can fix.
    """
    units = list(units)
    splits = NUMBERED if args.test_fraction else SPLITS
    limits = find_limits(units, args.val_fraction, args.test_fraction)
    tokenizer = make_tokenizer(partial(split_texts, units, limits))
    fim = fim_of(args)
    tokenizer = with_markers(tokenizer, fim)
    end = tokenizer.eot if args.eot else None
    layout = Layout(end, args.special == "encode", limits, fim)
    if layout.special:
        check_special(tokenizer)
    n = worker_count(args.workers, units)
    with folder_beside(args.out_dir) if args.dry_run else nullcontext(args.out_dir) as folder:
        folder = Path(folder)
        with (
            work_folder(folder, [fingerprint(tokenizer), *layout.settings]) as work,
            worker_pool(n, tokenizer) as pool,
            DatasetWriter(folder, tokenizer, source, work, splits) as writer,
        ):
            start = partial(pool.submit, encode_unit, layout)
            ledger = assemble(units, start, 3 * n, writer, limits)
            used = {split: count_ids(pool, writer, split) for split in splits}
        print(f"source {source['from']}" + (f", {source['bytes']:,} bytes" if "bytes" in source else ""))
        special = special_tokens_report(args, tokenizer, ledger, used, end) + fim_report(fim, tokenizer, used)
        print_report(open_dataset(folder), ledger, used, special)
    if args.dry_run:
        print(f"dry run, nothing written to {args.out_dir}")
        return
    print(f"wrote  {', '.join(f'{split}.bin' for split in splits)} and meta.json in {display_path(args.out_dir)}")
    print(f"next   python train.py {config} {dataset_option(args.out_dir)}")


def check_special(tokenizer: Tokenizer) -> None:
    """ValueError if special tokens cannot be encoded: there are none, or texts may be cut within one."""
    if not tokenizer.special_tokens:
        raise ValueError("--special=encode: this tokenizer has no special tokens; leave it out, or choose another one")
    cut = next((name for name in tokenizer.special_tokens if find_cut(name, 0) > 0), None)
    if cut:
        raise ValueError(
            f"--special=encode: the special token {cut!r} has white space or punctuation after a letter, where texts "
            "are cut; choose another spelling, such as <|name|>"
        )


def folder_beside(out_dir: Path) -> tempfile.TemporaryDirectory:
    """A temporary folder next to out_dir, where there is room; the system's is often in memory. Removes those of dry
    runs that were killed."""

    def leave(number: int, _: Any) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGHUP"):  # whose defaults would leave the folder behind
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), leave)
    parent = next((parent for parent in out_dir.absolute().parents if os.path.isdir(parent)), None)
    for stale in parent.glob(".dry-run-*") if parent else ():
        if is_abandoned(stale):
            shutil.rmtree(stale, ignore_errors=True)
    try:
        return tempfile.TemporaryDirectory(prefix=".dry-run-", dir=parent)
    except OSError:  # not writable
        return tempfile.TemporaryDirectory()


def config_for(args: Namespace, of_words: str, of_characters: str) -> str:
    """The config to recommend: small vocabularies are trained otherwise than large ones."""
    return of_characters if args.tokenizer in ("char", "byte") else of_words


# ---- splits and duplicates -----------------------------------------------------------------------------------


class Fold:
    """Hashes of a document that arrives in pieces, independent of its white space.

    Runs of blanks (spaces, control characters, no-break and full-width spaces) count as one, and as none at either end.
    `rank` is the hash of the first RANK_BYTES bytes of the result, None until they have been seen.
    """

    def __init__(self) -> None:
        self.sha1, self.length, self.gap, self.rank = hashlib.sha1(usedforsecurity=False), 0, False, None

    def add(self, piece: Piece) -> int:
        """Returns the number of UTF-8 bytes of the piece."""
        n_bytes = 0
        for first in range(0, len(piece.text), CACHED_BYTES):
            part = piece.text[first : first + CACHED_BYTES]
            spaced = part if part.isascii() else part.replace("\xa0", " ").replace("\u3000", " ")
            try:
                text = spaced.encode()
                n_bytes += len(text) if spaced is part else len(part.encode())
            except UnicodeEncodeError as error:
                raise ValueError(
                    f"{piece.document}: the text has a lone surrogate, U+{ord(spaced[error.start]):04X}, which cannot "
                    "be written as UTF-8; remove or replace it"
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
        if self.rank is None and self.length + len(folded) >= RANK_BYTES:
            head = RANK_BYTES - self.length
            self.sha1.update(folded[:head])
            self.rank = self.value()
            self.sha1.update(folded[head:])
        else:
            self.sha1.update(folded)
        self.length += len(folded)

    def value(self) -> int:
        """64 bits of the hash of everything added."""
        return int.from_bytes(self.sha1.digest()[:8], "little")


def ranked_pieces(units: Iterable[Unit], left_out: Counter | None = None) -> Iterator[tuple[Piece, str | int]]:
    """Every piece with the split, or else the rank, of its document; pieces are held until that is known."""
    document = None  # the split or rank of the current one, which may span units
    for unit in units:
        held, fold = [], Fold()
        for piece in unit.pieces(left_out=left_out):
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


def with_progress(units: list[Unit], desc: str) -> Iterator[Unit]:
    with byte_bar(desc, total_bytes(units), leave=False) as bar:
        for unit in units:
            yield unit
            bar.update(unit.size)


def total_bytes(units: Iterable[Unit]) -> int:
    return sum(unit.size for unit in units)


def find_limits(units: list[Unit], val_fraction: float, test_fraction: float = 0.0) -> Limits:
    """The largest ranks (of 0 to 2**64 - 1) that are val and test: shares of all ranks, test's above val's.

    If that leaves a split without documents, the ones of lowest rank are val and test, or that of the highest is train.
    Reads until each split has a document, and stops at once if the corpus has splits of its own. If only validation is
    given, as by --val_input, test is a share of the other ranks.
    """
    limits = shares_of_ranks(("val", val_fraction), (TEST, test_fraction))
    kept, left_out = {}, Counter()  # by split: the lowest and highest ranks, which are all that may be needed below
    for _, rank in ranked_pieces(with_progress(units, "splitting"), left_out):
        if rank == "val" and test_fraction:
            limits = shares_of_ranks((TEST, test_fraction))
        elif isinstance(rank, str):
            return limits
        else:
            split = split_of_rank(rank, limits)
            ranks = sorted({rank, *kept.get(split, ())})
            kept[split] = ranks if len(ranks) <= 6 else [*ranks[:3], *ranks[-3:]]
            if len(kept) > len(limits):
                return limits
    return moved_limits(limits, sorted(rank for ranks in kept.values() for rank in ranks), left_out)


def shares_of_ranks(*shares: tuple[str, float]) -> Limits:
    """Limits that give each split its share, one above the other."""
    limits, total = [], 0.0
    for split, share in shares:
        total += share
        limits += [(split, min(int(total * 2**64), 2**64 - 1))] * (share > 0)
    return tuple(limits)


def moved_limits(limits: Limits, ranks: list[int], left_out: Counter) -> Limits:
    """Those nearest to `limits` that leave no split without a rank. ranks: sorted, the three lowest and highest of each
    split, or all. ValueError if there are fewer than splits."""
    n = len(limits) + 1
    if len(ranks) < n:
        few = "one document, or copies of one" if len(ranks) == 1 else f"{len(ranks)} documents without their copies"
        found = "; ".join([few if ranks else "no text", *described(left_out)])
        splits = " or ".join(["train", *(split for split, _ in limits)])
        raise ValueError(
            f"{found}: need at least {n}, as each goes to {splits} whole; pass more with --input, split the text "
            "into documents with --separator, or choose the field of rows with --field"
        )
    moved, count = [], 0
    for i, (split, limit) in enumerate(limits):
        wanted = sum(rank <= limit for rank in ranks)
        count = min(max(wanted, count + 1), len(ranks) - (len(limits) - i))
        moved.append((split, limit if count == wanted else ranks[count - 1]))
    return tuple(moved)


def split_of_rank(rank: int, limits: Limits) -> str:
    return next((split for split, limit in limits if rank <= limit), "train")


def split_texts(units: list[Unit], limits: Limits, split: str | None = "train") -> Iterator[str]:
    """The texts of a split (None: all) piece by piece, duplicates included."""
    for piece, rank in ranked_pieces(with_progress(units, "reading")):
        if split in (None, rank if isinstance(rank, str) else split_of_rank(rank, limits)):
            yield piece.text


class Seen:
    """A set of uint64s, about 10 bytes each: sorted arrays, each more than twice as long as the next."""

    def __init__(self) -> None:
        self.arrays: list[np.ndarray] = []

    def add(self, keys: np.ndarray) -> np.ndarray:
        """Adds `keys`; whether each was already present, or occurs earlier in `keys`."""
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
    """Decides, unit by unit, where documents go, and counts them. Equal rows give equal decisions."""

    def __init__(self, limits: Limits, splits: Sequence[str]):
        self.limits, self.splits, self.seen = limits, splits, Seen()
        keys = ("tokens", "bytes", "characters", "documents", "duplicates")
        self.counts = {split: dict.fromkeys(keys, 0) for split in splits}
        self.longest = dict.fromkeys(splits, (0, ""))  # characters, name
        self.copies: list[str] = []  # names of the first duplicates
        self.left_out = Counter()  # (why, name)
        self.open = None  # (split number, row so far (1,)) of a document that continues in the next unit

    def add(self, rows: np.ndarray, names: list[str], left_out: Counter) -> np.ndarray:
        """Rows of the next unit's documents (n,) -> for each the index of its split in NUMBERED, or DROPPED.

        If the first completes an open document and is dropped, its earlier rows no longer count either.
        """
        rows = rows.copy()
        self.left_out.update(left_out)
        by_rank = np.zeros(len(rows), np.int8)  # train
        for split, limit in reversed(self.limits):
            by_rank[rows["rank"] <= np.uint64(limit)] = NUMBERED.index(split)
        where = np.where(rows["split"] < 0, by_rank, rows["split"])
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
        for split, n in zip(self.splits, np.bincount(where[copies], minlength=len(self.splits)), strict=True):
            self.counts[split]["duplicates"] += int(n)
        where[copies] = DROPPED
        self.copies += [names[i] for i in copies[: SHOWN_NAMES - len(self.copies)]]
        for i, split in enumerate(self.splits):
            self.tally(rows[where == i], i)
            kept = np.flatnonzero((where == i) & rows["ends"])
            if kept.size and rows["characters"][kept].max() > self.longest[split][0]:
                at = kept[rows["characters"][kept].argmax()]
                self.longest[split] = int(rows["characters"][at]), names[at]
        if rows.size and not rows["ends"][-1]:
            self.open = where[-1], rows[-1:]
        return where

    def tally(self, rows: np.ndarray, i: int, sign: int = 1) -> None:
        counts = self.counts[NUMBERED[i]]
        for key in ("tokens", "bytes", "characters"):
            counts[key] += sign * int(rows[key].sum())
        counts["documents"] += sign * int(np.count_nonzero(rows["ends"]))


# ---- workers -------------------------------------------------------------------------------------------------

ENCODE = None  # this worker's (tokenizer, number of threads)


def use_tokenizer(tokenizer: Tokenizer, num_threads: int | None) -> None:
    global ENCODE
    ENCODE = tokenizer, num_threads


def start_worker(description: dict) -> None:
    """Initializes a worker process: one thread, and an exit on Ctrl-C or when the parent is gone."""

    def follow_parent() -> None:
        connection.wait([parent_process().sentinel])
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=follow_parent, daemon=True).start()
    use_tokenizer(tokenizer_from_json(description), 1)


def worker_count(wanted: int, units: list[Unit]) -> int:
    """`wanted` processes (0: one per usable core), but no more than the text is worth."""
    if not wanted:
        wanted = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        wanted = min(wanted, math.ceil(cpu_quota() or wanted))
    useful = min(len(units), 1 + total_bytes(units) // BYTES_PER_WORKER, 61)  # 61: the most Windows can wait for
    return max(1, min(wanted, useful))


@contextmanager
def worker_pool(n: int, tokenizer: Tokenizer) -> Iterator[Executor]:
    """n processes with the tokenizer; for n = 1 a thread of this one."""
    if n == 1:
        pool = ThreadPoolExecutor(1, initializer=use_tokenizer, initargs=(tokenizer, None))
    else:
        pool = ProcessPoolExecutor(n, get_context("spawn"), start_worker, (tokenizer.to_json(),))
    try:
        yield pool
    except BrokenProcessPool:
        raise ValueError(
            "a worker process was killed, perhaps out of memory; run the same command again to resume, with "
            f"--workers={n // 2} to use less memory"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)  # wait=False races with interpreter shutdown (EBADF in its exit handler)


@dataclass(frozen=True)
class Layout:
    """What documents become besides the ids of their text."""

    end: int | None  # the id after each
    special: bool  # special tokens typed in the text become their ids, whose bytes do not count: they stand for no text
    limits: Limits  # of the ranks in each split (see find_limits)
    fim: Fim  # of training documents

    @property
    def settings(self) -> list:
        settings = [self.end, *(limit for _, limit in self.limits), self.special]
        return settings + [asdict(self.fim)] * (self.fim != Fim())


def encode_unit(layout: Layout, unit: Unit, path: Path) -> None:
    """Encode a unit into path.ids, all ids in the layout, and then path.rows."""
    tokenizer, num_threads = ENCODE
    dtype = part_dtype(tokenizer.vocab_size)
    rows, names, left_out, fold = [], [], Counter(), None
    temp = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with open(temp, "wb") as file:
        for piece in unit.pieces(left_out=left_out):
            if fold is None:
                fold, n_tokens, n_bytes, n_characters, begins = Fold(), 0, 0, 0, piece.begins
                rows.append(())
                names.append(piece.document)
            n_bytes += fold.add(piece)
            n_characters += len(piece.text)
            rank = fold.value() if fold.rank is None else fold.rank
            is_known = begins and (piece.ends or fold.rank is not None)  # else the rank may still change
            split = piece.split or (split_of_rank(rank, layout.limits) if is_known else None)
            try:
                arrays, more_bytes = encode_piece(layout, piece, split == "train", tokenizer, num_threads)
            except ValueError as error:
                raise ValueError(f"{piece.document}: {error}") from None
            n_bytes += more_bytes
            for ids in arrays:
                with os_errors(path.parent):
                    file.write(ids.astype(dtype, copy=False).data)
                n_tokens += ids.size
            given = -1 if piece.split is None else NUMBERED.index(piece.split)
            rows[-1] = n_tokens, n_bytes, n_characters, rank, fold.value(), given, piece.ends
            if piece.ends:
                fold = None
    with os_errors(path.parent):
        os.replace(temp, path.with_suffix(".ids"))
        with open(temp, "wb") as file:
            np.save(file, np.array(rows, ROW))
            file.write(json.dumps([names, [[*key, n] for key, n in left_out.items()]]).encode())
        os.replace(temp, path.with_suffix(".rows"))


def encode_piece(
    layout: Layout, piece: Piece, is_train: bool, tokenizer: Tokenizer, num_threads: int | None
) -> tuple[list[np.ndarray], int]:
    """The ids of a piece in the layout, one array after the other, and the bytes they stand for beyond its text's."""
    fim, name, name_bytes = layout.fim, [], 0
    if fim.names:
        name, name_bytes = name_ids(tokenizer, piece.document), len(f"{piece.document}\n".encode())
    parts = fim.parts(piece.text) if is_train and fim.rate else None
    if parts is not None:
        found = [rearranged(tokenizer, part, [*tokenizer.begin, *name]) for part in parts]
        return [np.array(ids) for ids in found], len(found) * name_bytes
    encode = tokenizer.encode_document if piece.begins else partial(tokenizer.encode, inside=True)
    ids, more_bytes = encode(piece.text, special=layout.special, num_threads=num_threads), 0
    if layout.special:
        typed = ids[len(tokenizer.begin) :] if piece.begins else ids  # no one types what every text begins with
        more_bytes = -int(spelled_bytes(tokenizer).take(typed).sum())
    arrays = [ids]
    if fim.names and piece.begins:
        n, more_bytes = len(tokenizer.begin), name_bytes
        arrays = [ids[:n], np.array(name), ids[n:]]
    return arrays + [np.array([layout.end])] * (piece.ends and layout.end is not None), more_bytes


@cache
def spelled_bytes(tokenizer: Tokenizer) -> np.ndarray:
    """(V,): the bytes by which a special token is typed; 0 for other ids."""
    spelled = np.zeros(tokenizer.vocab_size, np.int64)
    for name, id in tokenizer.special_tokens.items():
        spelled[id] = len(name.encode())
    return spelled


def part_dtype(vocab_size: int) -> np.dtype:
    """The dtype of ids in a part: bytes if possible, since writing takes a good part of the time."""
    return np.dtype(np.uint8) if vocab_size <= 256 else id_dtype(vocab_size)


def read_rows(path: Path) -> tuple[np.ndarray, list[str], Counter]:
    """The rows (n,) of a part, the names of the documents, and what was left out."""
    with open(path.with_suffix(".rows"), "rb") as file:
        rows = np.load(file, allow_pickle=False)
        names, left_out = json.loads(file.read())
        return rows, names, Counter({(why, name): n for why, name, n in left_out})


def is_finished(path: Path, vocab_size: int) -> bool:
    """Whether a part exists and is complete."""
    try:
        rows, *_ = read_rows(path)
        return path.with_suffix(".ids").stat().st_size == rows["tokens"].sum() * part_dtype(vocab_size).itemsize
    except (OSError, ValueError, EOFError):
        return False


# ---- from encoded parts to .bin files --------------------------------------------------------------------------


@contextmanager
def work_folder(folder: Path, settings: list) -> Iterator[Path]:
    """The folder in `folder` for parts made with these settings; finished ones stay there until all are.

    ValueError if another process works there.
    """
    key = hashlib.sha256(json.dumps([PARTS_FORMAT, *settings]).encode()).hexdigest()[:16]
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
            with suppress(OSError):  # not empty
                folder.rmdir()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other prepares, whatever their settings, out of `folder`, at most until this process ends. ValueError
    if one is there already."""
    path = folder / LOCK
    with os_errors(folder):
        file = open(path, "wb")
    try:
        with file:
            if not take_lock(file, path):
                raise ValueError(f"another prepare.py is writing to {folder}: wait until it finishes, or stop it")
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


def is_abandoned(folder: Path) -> bool:
    """Whether a process that was killed had locked this folder."""
    path = folder / LOCK
    try:
        with open(path, "r+b") as file:
            lock_file(file)
            return True
    except OSError:  # no lock, or a living process has it, or this file system has none
        return False


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
    units: list[Unit], start: Callable[[Unit, Path], Future], n_ahead: int, writer: DatasetWriter, limits: Limits
) -> Ledger:
    """Append all units' ids to the writer's files, in order; `start` encodes one, n_ahead at a time."""
    paths = [writer.temp / f"{i:06}-{unit.key[:16]}" for i, unit in enumerate(units)]
    n_done, ledger = resume(paths, writer, limits)
    todo = zip(units[n_done:], paths[n_done:], strict=True)

    def start_one() -> None:
        for unit, path in islice(todo, 1):
            finished = is_finished(path, writer.tokenizer.vocab_size)
            started.append((unit, path, None if finished else start(unit, path)))

    started = deque()
    for _ in range(n_ahead):
        start_one()
    with byte_bar("encoding", total_bytes(units), initial=total_bytes(units[:n_done])) as bar:
        while started:
            unit, path, future = started.popleft()
            if future is not None:
                future.result()
            append_part(path, writer, ledger)
            bar.update(unit.size)
            start_one()
    assert ledger.open is None  # the last document has ended
    if not ledger.counts["train"]["tokens"] and ledger.copies:
        raise ValueError(
            f"{writer.folder}: all documents for training are copies of others in the validation split, such as "
            f"{next(iter(ledger.copies))}; name other files"
        )
    for split, counts in ledger.counts.items():
        assert writer.counts[split]["tokens"] == counts["tokens"]
        writer.counts[split] = {key: counts[key] for key in ("tokens", "bytes", "documents")}
    return ledger


def resume(paths: list[Path], writer: DatasetWriter, limits: Limits) -> tuple[int, Ledger]:
    """How many of the first units are in the writer's files from an earlier run, and the ledger after them.

    The files are cut there. Of the other leftovers, parts of `paths` are kept.
    """
    names = {path.name for path in paths}
    for file in writer.temp.iterdir():
        if file.suffix == ".tmp" or file.suffix in (".ids", ".rows") and file.stem not in names:
            with suppress(OSError):  # Windows: a worker may not have ended yet
                file.unlink()
    n, ledger = 0, Ledger(limits, writer.splits)
    with suppress(OSError, ValueError, EOFError):
        while n < len(paths) and not paths[n].with_suffix(".ids").exists():
            ledger.add(*read_rows(paths[n]))
            n += 1
    if n:
        print(f"resuming after {n:,} of {len(paths):,} parts, finished by an earlier run", flush=True)
    if not all([writer.cut(split, ledger.counts[split]["tokens"]) for split in writer.splits]):
        n, ledger = 0, Ledger(limits, writer.splits)  # killed while the files were moved into place
        for split in writer.splits:
            writer.cut(split, 0)
    for path in paths[n:]:
        if not path.with_suffix(".ids").exists():
            path.with_suffix(".rows").unlink(missing_ok=True)
    return n, ledger


def append_part(path: Path, writer: DatasetWriter, ledger: Ledger) -> None:
    """Move the ids of a part to where the ledger sends them."""
    rows, names, left_out = read_rows(path)
    unfinished = ledger.open
    where = ledger.add(rows, names, left_out)
    if unfinished is not None and where.size and where[0] == DROPPED:
        split = NUMBERED[unfinished[0]]
        writer.cut(split, writer.counts[split]["tokens"] - int(unfinished[1]["tokens"][0]))
    bounds = np.concatenate([[0], np.cumsum(rows["tokens"])])
    with os_errors(writer.folder):
        with open(path.with_suffix(".ids"), "rb") as file:
            for first in range(0, bounds[-1], SLICE):
                ids = np.fromfile(file, part_dtype(writer.tokenizer.vocab_size), SLICE)
                lengths = np.diff(np.clip(bounds, first, first + SLICE))
                targets = set(where[lengths > 0].tolist())
                target_of = np.repeat(where.astype(np.int8), lengths) if len(targets) > 1 else None
                for i in targets - {DROPPED}:
                    writer.write(NUMBERED[i], ids if target_of is None else ids[target_of == i], 0, 0)
        for file in writer.bins.values():
            file.flush()
        path.with_suffix(".ids").unlink()


# ---- the report ------------------------------------------------------------------------------------------------


def count_ids(pool: Executor, writer: DatasetWriter, split: str) -> np.ndarray:
    """How often each id occurs in the split, (vocab_size,) int64."""
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
    """How often each id occurs among the n from `first` on."""
    counts = np.zeros(vocab_size, np.int64)
    with open(path, "rb") as file:
        file.seek(first * dtype.itemsize)
        while (ids := np.fromfile(file, dtype, min(CACHED_BYTES, n))).size:
            n -= ids.size
            counts += np.bincount(ids, minlength=vocab_size)
    return counts


def special_tokens_report(
    args: Namespace, tokenizer: Tokenizer, ledger: Ledger, used: dict[str, np.ndarray], end: int | None
) -> str:
    """How often each special token was typed, where it became an id; "" if nobody asked for special tokens."""
    if args.special != "encode":
        advice = "stay unused, as typed ones are text: --special=encode gives them their ids"
        return f"special {first_few(args.special_tokens)}: {advice}\n" if args.special_tokens else ""
    counts = sum(used.values())
    around = [*tokenizer.begin, *([] if end is None else [end])]  # of each document, which no one typed
    for id in around:
        counts[id] -= sum(counts["documents"] for counts in ledger.counts.values())
    found = [f"{name} {counts[id]:,}" for name, id in tokenizer.special_tokens.items() if counts[id]]
    unused = [name for name, id in tokenizer.special_tokens.items() if not counts[id] and id not in around]
    line = f"special {first_few(found) or 'none'}" + f"; unused: {first_few(unused)}" * bool(unused)
    return f"{line}\n"


def fim_report(fim: Fim, tokenizer: Tokenizer, used: dict[str, np.ndarray]) -> str:
    """How many parts were rearranged; "" if none."""
    if not fim.rate:
        return ""
    n = used["train"][find_markers(tokenizer)[-1]]
    others = "val and test are" if TEST in used else "val is"
    return f"fim    {n:,} parts of at most {fim.chars:,} characters have their middle last; {others} left to right\n"


def print_report(dataset: Dataset, ledger: Ledger, used: dict[str, np.ndarray], special: str) -> None:
    """What a person wants to check about a dataset; `used` counts the occurrences of each id, per split."""
    tokenizer = dataset.tokenizer
    for counts in used.values():
        counts[[*tokenizer.ends, *tokenizer.begin]] = 0
    print(counts_table(ledger.counts, used))
    if ledger.copies:
        n = sum(counts["duplicates"] for counts in ledger.counts.values())
        print(f"left out as copies of earlier documents: {first_few(ledger.copies, n)}")
    for line in described(ledger.left_out):
        print(line)
    print(f"vocab  {tokenizer.vocab_size:,} ({tokenizer.kind}), ids stored as {dataset.dtype.name}\n{special}", end="")
    for split, (n, name) in ledger.longest.items():
        print(f"\n{split}: longest document {name}, {n:,} characters")
        print(f"most frequent: {most_frequent(tokenizer, used[split])}")
        ids = dataset.array(split)
        for part in range(1, 6, 2):
            sample = tokenizer.decode(ids[ids.size * part // 6 :][:60]).strip("\ufffd")
            print(f"sample: {sample[:200]!r}")
    print()


def counts_table(counts: dict[str, dict[str, int]], used: dict[str, np.ndarray]) -> str:
    keys = ("documents", "duplicates", "characters", "bytes", "tokens")
    rows = {split: [counts[split][key] for key in keys] for split in counts}
    rows["all"] = [sum(column) for column in zip(*rows.values(), strict=True)]
    used = used | {"all": sum(used.values())}
    lines = ["        documents duplicates      characters           bytes          tokens  bytes/token  ids used"]
    for name, (n_documents, n_copies, n_characters, n_bytes, n_tokens) in rows.items():
        lines.append(
            f"{name:5}{n_documents:12,}{n_copies:11,}{n_characters:16,}{n_bytes:16,}{n_tokens:16,}"
            f"{n_bytes / n_tokens:13.2f}{np.count_nonzero(used[name]):10,}"
        )
    return "\n".join(lines)


def most_frequent(tokenizer: Tokenizer, counts: np.ndarray) -> str:
    """The 20 most frequent tokens, each with its share in percent."""
    shown, names = [], {id: name for name, id in tokenizer.special_tokens.items()}
    for id in np.argsort(-counts, kind="stable")[: min(20, np.count_nonzero(counts))].tolist():
        token = tokenizer.tokens[id].encode() if tokenizer.lossy else tokenizer.token_bytes(id)
        with suppress(UnicodeDecodeError):  # otherwise it is shown as bytes
            token = token.decode()
        shown.append(f"{names.get(id) or repr(token)} {100 * counts[id] / counts.sum():.1f}")
    return "  ".join(shown) + " %"
