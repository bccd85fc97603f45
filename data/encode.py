"""Workers that encode units of text (data/units.py) into encoded parts: files with the ids of a unit, and a row for
each of its documents. data/build.py puts them together."""

import json
import math
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache, partial
from multiprocessing import connection, get_context, parent_process
from pathlib import Path

import numpy as np

from data.dataset import id_dtype, os_errors
from data.fim import Fim, name_ids, rearranged
from data.splits import NUMBERED, Fold, Limits, split_of_rank, total_bytes
from data.tokenizer import Tokenizer, tokenizer_from_json
from data.units import Piece, Unit
from system.quota import cpu_quota

PARTS_FORMAT = 3  # of the encoded parts; those of another format are not reused
BYTES_PER_WORKER = 2**23  # of text: less is not worth starting a worker process
# Of a document in one unit; split -1: its rank decides
ROW = np.dtype("<i8,<i8,<i8,<u8,<u8,i1,?")
ROW.names = ("tokens", "bytes", "characters", "rank", "hash", "split", "ends")
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
