"""Units of text: what a worker of data/encode.py reads at a time, as cleaned pieces of documents in their splits."""

import argparse
import ctypes
import hashlib
import re
import sys
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby

from data.clean import Cleaner, Report
from data.formats import EMPTY, UNIT, UNKNOWN, Part, Passage, Reading, documents
from data.options import held_out
from data.source import printable
from data.tokenizer import find_cut

PIECE = 1 << 17  # characters, roughly, that are encoded at a time
LONGEST_PIECE = 1 << 22
ROW_NUMBER = re.compile(r"(@\d+)?:\d+$")  # in the name of a document


@dataclass(frozen=True)
class Piece:
    """The next part of a document, in reading order."""

    document: str  # its name, for reports: "stdlib/os.py", "books.jsonl:17"
    text: str  # cleaned; at least PIECE characters, except in the last piece
    ends: bool  # the document's last piece (in each split, if it is cut by position)
    split: str | None  # 'train', 'val' or 'test' if the corpus or its position decides; None: by hash
    begins: bool = True  # the document's first piece (in each split)


@dataclass(frozen=True)
class Unit:
    """What one worker reads at a time. Small and picklable; it gives the same pieces wherever it is read."""

    parts: tuple[Part, ...]
    reading: Reading
    train_characters: tuple[int, ...] | None = None  # of the text, or of each file in it; None: the parts' own splits
    whole_words: bool = False  # extend a split to the next place where a tokenizer allows a cut
    test_from: tuple[int, ...] | None = None  # likewise, where test begins; None: there is none, or it is by hash

    @property
    def key(self) -> str:
        """Changes with the files and everything else that affects the text."""
        return hashlib.sha256(repr(self).encode()).hexdigest()

    @property
    def size(self) -> int:
        return sum(part.size for part in self.parts)

    def pieces(self, report: Report | None = None, left_out: Counter | None = None) -> Iterator[Piece]:
        """The unit's text as a stream, in memory that does not grow with it; left_out counts what has none."""
        pieces = (piece for part in self.parts for piece in pieces_of(part, self.reading, report, left_out))
        for cuts, names in ((self.train_characters, ("train", "val")), (self.test_from, (None, "test"))):
            if cuts is not None:
                pieces = cut_files(pieces, cuts, self.whole_words, *names)
        try:
            yield from pieces
        finally:  # also if the reader stops early
            trim()


def trim() -> None:
    """Return freed memory to the system, if the C library is glibc.

    Decoding text with multi-byte characters allocates more than it needs and frees the excess: glibc keeps hundreds of
    such remainders (in its tcache), each of which separates the free memory on its two sides. The less is decoded at a
    time (DECODED) and the more often this is called, the less is lost.
    """
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


def make_units(args: argparse.Namespace, parts: Iterable[Part], reading: Reading, single: bool = False) -> list[Unit]:
    """Parts as units, small ones grouped up to UNIT bytes unless `single`. A dry run reports the cleaning."""
    made, group, size = [], [], 0
    for part in parts:
        if group and (single or size + part.size > UNIT or group[-1].split != part.split):
            made.append(Unit(tuple(group), reading))
            group, size = [], 0
        group.append(part)
        size += part.size
    made += [Unit(tuple(group), reading)] if group else []
    if args.dry_run and args.clean:
        report = Report()
        for unit in made:
            for _ in unit.pieces(report):
                pass
        report.summary()
    return made


def pieces_of(
    part: Part, reading: Reading, report: Report | None = None, left_out: Counter | None = None
) -> Iterator[Piece]:
    """The documents of a part, cleaned, in pieces cut where a tokenizer allows it."""
    cleaner = Cleaner(part.rules, report and (lambda *removal: report.add(document, *removal)), not part.first)
    buffer, begun, taken, had_text = "", not part.first, True, False
    if report:
        report.begin(part.path, part.name)
    for document, text, ends in in_slices(documents(part, reading, left_out)):
        document = printable(document)  # it may be a member of a compressed archive
        start, had_text = max(PIECE, len(buffer)), had_text or bool(text)  # there is no cut before start
        text = cleaner.feed(text, ends) if part.rules else text
        buffer += only_known(text, reading.known, left_out)
        while len(buffer) > PIECE and (at := cut_in(buffer, start)):
            taken = taken if begun else is_taken(buffer, part, reading)
            if taken:
                yield Piece(document, buffer[:at], False, part.split, not begun)
            buffer, begun, start = buffer[at:], True, PIECE
        if ends:
            if had_text and not begun and not buffer and left_out is not None:  # cleaning left nothing
                left_out[EMPTY, ROW_NUMBER.sub("", document)] += 1
            taken = taken if begun else bool(buffer) and is_taken(buffer, part, reading)
            if taken:
                yield Piece(document, buffer, True, part.split, not begun)
            buffer, begun, taken, had_text = "", False, True, False
    lines = cleaner.line - 1
    rest = cleaner.feed("", True)  # a last line without a newline, at a cut
    buffer += only_known(rest, reading.known, left_out)
    if report:
        report.line = 0 if part.last else report.line + lines
    if buffer:
        yield Piece(document, buffer, False, part.split, not begun)


def only_known(text: str, known: str, left_out: Counter | None) -> str:
    """The text without the characters that are not in `known`, if that names any; left_out counts them."""
    unknown = without(known).findall(text) if known else []
    if left_out is not None:
        left_out.update((UNKNOWN, character) for character in unknown)
    return without(known).sub("", text) if unknown else text


@lru_cache(maxsize=1)
def without(known: str) -> re.Pattern:
    return re.compile(f"[^{re.escape(known)}]")


def in_slices(texts: Iterable[Passage]) -> Iterator[Passage]:
    """The same with no text longer than PIECE: taking pieces off a long one would copy the rest each time."""
    for document, text, ends in texts:
        last = max(0, len(text) - 1) // PIECE
        for i in range(last + 1):
            yield document, text[i * PIECE : (i + 1) * PIECE], ends and i == last


def cut_in(text: str, start: int) -> int:
    """The first cut from `start` on, or 0 if there is none yet; LONGEST_PIECE if the text has grown too long."""
    at = find_cut(text, start)
    return at if at > 0 else LONGEST_PIECE if len(text) > LONGEST_PIECE else 0


def is_taken(text: str, part: Part, reading: Reading) -> bool:
    """Whether the document starting with `text` is in the --fraction of the training text."""
    if reading.fraction == 1 or part.split == "val":
        return True
    return zlib.crc32(text[:PIECE].encode()) < reading.fraction * 2**32


def by_position(args: argparse.Namespace, parts: Iterable[Part], reading: Reading, each: bool = False) -> list[Unit]:
    """Units whose text is cut (each: every file): train is the first 1 - val_fraction - test_fraction of all
    characters, then comes val, and the last test_fraction is test.

    So a test split leaves as much to train on, and the same text, as a val_fraction that is larger by test_fraction.
    Exactly for characters and bytes; other tokenizers, and special tokens that are encoded, are not cut in two, so that
    the ids are those of the whole text.
    This reads everything once to count the characters. With --val_input only test is cut off.
    """
    from tqdm import tqdm

    test_fraction = args.test_fraction
    if args.val_input and not test_fraction:
        return make_units(args, parts, reading)
    if args.val_input:
        parts = [replace(part, split=part.split or "train") for part in parts]
    groups: dict[tuple, list[tuple[int, int]]] = {}  # by file: (number of the unit, characters in it)
    whole_words = args.tokenizer not in ("char", "byte") or args.special == "encode"
    single = make_units(args, parts, reading, single=True)
    for i, unit in enumerate(tqdm(single, desc="counting characters", unit=" parts", disable=None)):
        part = unit.parts[0]
        if part.split == "val":
            continue
        for j, file in enumerate(by_file(unit.pieces()) if each else [unit.pieces()]):
            n = sum(len(piece.text) for piece in file)
            groups.setdefault((part.path, part.member, j) if each else (), []).append((i, n))
    cuts = cuts_of(groups, 1 - held_out(args)), cuts_of(groups, 1 - test_fraction)
    for i in cuts[0]:
        train = None if args.val_input else tuple(cuts[0][i])
        test = tuple(cuts[1][i]) if test_fraction else None
        single[i] = replace(single[i], train_characters=train, whole_words=whole_words, test_from=test)
    return single


def cuts_of(groups: dict[tuple, list[tuple[int, int]]], share: float) -> dict[int, list[int]]:
    """For each unit, how many of the characters of each file in it are among the first `share` of the file's, or 0."""
    cuts: dict[int, list[int]] = {}
    for group in groups.values():
        left = int(sum(n for _, n in group) * share)
        for i, n in group:
            cuts.setdefault(i, []).append(left)
            left = max(0, left - n)
    return cuts


def by_file(pieces: Iterable[Piece]) -> Iterator[Iterator[Piece]]:
    """The pieces of each file in a row. Only members of a compressed archive are several files of one part."""
    return (file for _, file in groupby(pieces, lambda piece: ROW_NUMBER.sub("", piece.document)))


def is_one_text(parts: Sequence[Part], reading: Reading) -> bool:
    """Whether all parts but those of --val_input are ranges of one text, which is then the only document there."""
    parts = [part for part in parts if part.split != "val"]
    if not parts or any((part.path, part.member) != (parts[0].path, parts[0].member) for part in parts):
        return False
    part = parts[0]
    document, *_ = next(documents(part, reading), ("",))
    return document == part.name  # rows, separated documents and members of archives have names of their own


def cut_files(
    pieces: Iterator[Piece], cuts: tuple[int, ...], whole_words: bool, head: str | None, tail: str
) -> Iterator[Piece]:
    """The pieces of each file, or of the only one there is, cut at its number of characters."""
    files = [pieces] if len(cuts) == 1 else by_file(pieces)
    for file, n in zip(files, cuts, strict=True):
        yield from cut_at(file, n, whole_words, head, tail)


def cut_at(
    pieces: Iterable[Piece], left: int, whole_words: bool, first: str | None = "train", rest: str = "val"
) -> Iterator[Piece]:
    """The first `left` characters in the split `first` (None: the one they have), the others in `rest`; the last piece
    of each ends a document."""
    begins = False  # whether `rest` begins with the next piece
    for piece in pieces:
        if whole_words and 0 < left < len(piece.text):
            at = find_cut(piece.text, left)
            # The end of a piece allows a cut, unless it ends its document or was cut for its length
            anywhere = piece.ends or len(piece.text) >= LONGEST_PIECE
            left = at if at > 0 else left if anywhere else len(piece.text)
        head, tail = piece.text[:left], piece.text[left:]
        if head:
            left -= len(head)
            yield replace(piece, text=head, ends=piece.ends and not tail or not left, split=first or piece.split)
            begins = not left
        if tail:
            yield replace(piece, text=tail, split=rest, begins=piece.begins or begins or bool(head))
            begins = False
        elif not head and piece.ends:  # only the end of the document
            yield replace(piece, split=(first or piece.split) if left else rest)
