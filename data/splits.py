"""Which split a document goes to, and which documents are copies of earlier ones.

A document's rank, a hash of its text, decides its split: the share val_fraction of lowest ranks is val, the share
test_fraction above them is test, and the rest is train. So a test split takes its documents from train alone, no
document of val moves, and train is what it would be with a val_fraction that is larger by test_fraction.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from data.dataset import SPLITS, TEST
from data.progress import byte_bar
from data.source import SHOWN_NAMES, described
from data.units import Piece, Unit

RANK_BYTES = 2**16  # bytes of a document, white space folded, whose hash decides its split
CACHED_BYTES = 2**16  # bytes per numpy step: the intermediate arrays fit the processor's cache
NUMBERED = (*SPLITS, TEST)  # the splits by the numbers that rows and the ledger have for them
DROPPED = len(NUMBERED)  # where a duplicate goes
Limits = tuple[tuple[str, int], ...]  # (split, largest rank that is in it), ascending; higher ranks are train


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
