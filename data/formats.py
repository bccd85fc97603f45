"""Files of every kind as documents, in bounded memory: text, rows, compressed and in archives.

    for part in parts_of(path, name, reading):                    # files, byte ranges, archive members, row groups
        for document, text, ends in documents(part, reading):     # their text, in order

Rows are those of .jsonl, .json, .csv, .tsv (data/rows.py) and .parquet; a book in .epub (data/epub.py) is one document.
What is left out is counted in a Counter of (why, name), which all that finds or reads files takes as `left_out`.

Text may be in any encoding; 'auto' detects it. .gz, .xz, .bz2 and .zst are decompressed whatever they contain, .zip and
.tar are read member by member. A compressed file without a second suffix is inspected: OpenWebText's .xz are archives.
"""

import codecs
import errno
import hashlib
import io
import json
import lzma
import os
import re
import sys
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, lru_cache, partial
from itertools import pairwise
from multiprocessing import parent_process
from pathlib import Path
from typing import Any, BinaryIO

from data.clean import NORMALIZE
from data.encodings import detect_encoding, wrong_encoding, zip_name
from data.epub import chapters_of
from data.rows import FIELDS, csv_rows, first_text, is_json_lines, json_rows, lines_of, text_of
from data.streams import Window, decompressed, peek
from data.tokenizer import CUT

UNIT = 1 << 24  # bytes, roughly, that a worker reads at a time
READ_BYTES = 1 << 20  # bytes read at a time
DECODED = 1 << 14  # bytes decoded at a time; data/units.py's trim() says why so few
DETECTED_BYTES = 1 << 22  # bytes from which the encoding is detected, from the first that is not ASCII on
MOST_REPLACED = 0.05  # undecodable bytes per character; a book in another encoding has about one
FEW_REPLACED = 8  # undecodable bytes that are damage however short the file is
LINE_SUFFIXES = (".jsonl", ".ndjson")  # a row in each line
TABLE_SUFFIXES = (".csv", ".tsv")
ROW_SUFFIXES = (*LINE_SUFFIXES, ".json", *TABLE_SUFFIXES)
TEXT_SUFFIXES = (".txt", ".text", ".md", ".epub", *ROW_SUFFIXES, ".parquet", ".zip", ".tar")  # read in a folder
COMPRESSED = {".gz": "", ".xz": "", ".bz2": "", ".zst": "", ".tgz": ".tar", ".txz": ".tar", ".tbz2": ".tar"}
NOT_SOURCE = {"site-packages", "dist-packages", "__pycache__", "node_modules", "__MACOSX"}  # not the user's own source
STRINGS = re.compile(r"(dictionary<values=)?((large_)?(string|binary)(_view)?)\b")  # parquet types of a text column
DAMAGE = (OSError, EOFError, zlib.error, lzma.LZMAError, tarfile.TarError, zipfile.BadZipFile)
ASCII = bytes(range(128))
LINE_END = re.compile(CUT.pattern.partition("(?=")[0] + r"(?=\r?\n)")  # the CUTs before a newline
Passage = tuple[str, str, bool]  # a document's name, the next part of its text, whether it ends there
# why something is left out, as the report words it
EMPTY, DOTTED, SKIPPED, OTHER_TYPE = "as empty", "as hidden", "in folders to skip", "of another type"
UNKNOWN = "characters that the vocabulary lacks"
NO_TEXT, NO_ROWS = "rows without text", "as JSON that has no rows of text"


@dataclass(frozen=True)
class Reading:
    """How a corpus is read: together with the files, all that determines the text."""

    encoding: str = "utf-8"  # or 'auto'
    errors: str = "strict"  # 'replace': U+FFFD for bytes that do not decode
    rules: tuple[str, ...] = ()  # of data/clean.py
    field: str | None = None  # of rows; None: the first of FIELDS that has text
    separator: str | None = None  # between the documents of a text file
    suffixes: tuple[str, ...] = TEXT_SUFFIXES  # of the files read in folders and archives
    skip: tuple[str, ...] = ()  # folders to leave out, besides NOT_SOURCE and hidden ones
    joined: bool = False  # rows are the lines of one document, in which blank lines have lost their " \n"
    lenient: bool = False  # source code: in folders and archives, report and skip what is unreadable or contains NUL
    named_splits: bool = False  # file names tell the splits
    fraction: float = 1.0  # of the training documents, chosen by hash
    known: str = ""  # the characters that stay; "": all

    @property
    def fields(self) -> tuple[str, ...]:
        return (self.field,) if self.field else FIELDS


@dataclass(frozen=True, slots=True)  # slots: there is one for every file
class Part:
    """What is read in one go: a file, a range of its bytes, a member of an archive, or some row groups."""

    path: str
    name: str  # for reports
    size: int  # bytes on disk, roughly
    mtime_ns: int
    member: str = ""  # of an archive
    start: int = 0  # bytes, or row groups
    stop: int | None = None
    first: bool = True  # False: starts within a document
    last: bool = True  # False: ends within a document
    encoding: str = "utf-8"
    rules: tuple[str, ...] = ()  # of data/clean.py
    lenient: bool = False  # report and skip what cannot be read
    split: str | None = None

    @property
    def where(self) -> str:
        """For error messages: the path as the user typed it, or the name of a member."""
        return self.name if self.member else self.path

    @property
    def label(self) -> str:
        """The name, with the offset unless the part starts at the beginning of the file."""
        return self.name if self.member or not self.start else f"{self.name}@{self.start}"


# ---- finding -----------------------------------------------------------------------------------------------


def kind_of(name: str) -> tuple[str, str]:
    """Format and packing: "b.jsonl.gz" -> (".jsonl", ".gz"), "b.tgz" -> (".tar", ".tgz"), "b.txt" -> (".txt", "")."""
    stem, suffix = os.path.splitext(name.lower())
    if suffix in COMPRESSED:
        return COMPRESSED[suffix] or os.path.splitext(stem)[1], suffix
    return suffix, ""


def why_skipped(folder: str, reading: Reading) -> str | None:
    return DOTTED if folder.startswith(".") else SKIPPED if folder in NOT_SOURCE or folder in reading.skip else None


def why_left_out(name: str, reading: Reading) -> str | None:
    """Why not to read the file `name` of an archive or a folder; None if it is wanted."""
    *folders, file = name.replace("\\", "/").removeprefix("./").split("/")
    kind, compression = kind_of(file)
    reasons = [why_skipped(folder, reading) for folder in folders]
    reasons += [DOTTED if file.startswith(".") else None]
    reasons += [None if kind in reading.suffixes or compression and not kind else OTHER_TYPE]
    return next(filter(None, reasons), None)


def walk(folder: Path, reading: Reading, lenient: bool = False, left_out: Counter | None = None) -> Iterator[Path]:
    """The files to read in a folder, in order of their names.

    Links are followed, to each folder once; broken ones are reported. ValueError: an unreadable folder (if lenient, it
    is only reported).
    """
    left_out = Counter() if left_out is None else left_out

    def refuse_folder(error: OSError) -> None:  # os.walk would skip it silently
        raise_or_report(f"cannot read {error.filename}: {error.strerror}; expected a folder with text", lenient)

    # Folders by their real paths: links may form a cycle, or lead out of `folder` to one of its parents
    seen = set(map(str, Path(os.path.realpath(folder)).parents))
    for parent, folders, names in os.walk(folder, onerror=refuse_folder, followlinks=True):
        target = os.path.realpath(parent)
        if target in seen:
            folders.clear()
            continue
        seen.add(target)
        left_out.update((why, str(Path(parent, name))) for name in folders if (why := why_skipped(name, reading)))
        folders[:] = sorted(name for name in folders if not why_skipped(name, reading))
        for path in (Path(parent, name) for name in sorted(names)):
            is_there, why = os.path.exists(path), why_left_out(path.name, reading)
            if not is_there and os.path.islink(path) and why != DOTTED and (not why or not path.suffix):
                report_skipped(f"{path} is a link to {os.readlink(path)}, which does not exist")
            elif why:
                left_out[why, str(path)] += 1
            elif not is_there or path.is_file():
                yield path  # without permission to look it seems absent; reading it will say so


def parts_of(
    path: Path, name: str, reading: Reading, lenient: bool = False, left_out: Counter | None = None
) -> list[Part]:
    """A file as parts of about UNIT bytes, if it can be divided. Empty members of archives are parts of size 0.

    ValueError: missing, empty or damaged.
    """
    kind, compression = kind_of(path.name)
    try:
        stat = path.stat()
        if path.is_dir() or not stat.st_size:
            raise ValueError(f"{path} is {'a folder' if path.is_dir() else 'empty'}; expected text")
        whole = Part(str(path), name, stat.st_size, stat.st_mtime_ns, encoding=reading.encoding)
        whole = replace(whole, rules=reading.rules, lenient=lenient)
        if not compression and kind in DIVIDED:
            return DIVIDED[kind](whole, reading, Counter() if left_out is None else left_out)
        whole = with_encoding(whole, reading)
        is_one = compression or kind == ".epub" or whole.encoding == "auto"
        return [whole] if is_one else range_parts(whole, kind, reading)
    except DAMAGE as error:
        raise ValueError(cannot_read(path, error)) from error


def cannot_read(name: str | Path, error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        may_not = error.errno in (errno.EACCES, errno.EPERM)
        advice = "make it readable, or leave it out" if may_not else "expected a file with text"
        return f"cannot read {name}: {error.strerror}; {advice}"
    return f"cannot read {name}: {error or type(error).__name__}; the file is damaged, get another copy"


def zip_parts(whole: Part, reading: Reading, left_out: Counter) -> list[Part]:
    infos = [info for info in open_zip(whole.path, whole.mtime_ns).infolist() if not info.is_dir()]
    members = [info for info in infos if is_member(zip_name(info), info.filename, whole.name, reading, left_out)]
    if any(info.flag_bits & 1 for info in members):
        raise ValueError(f"{whole.path} is password-protected; unpack it and pass the folder")
    members.sort(key=lambda info: info.filename)
    return [member_part(whole, reading, zip_name(info), info.filename, info.file_size) for info in members]


def is_member(name: str, stored: str, archive: str, reading: Reading, left_out: Counter) -> bool:
    """Whether to read a member of an archive; `stored` is its name there."""
    why = why_left_out(stored, reading)
    if why:
        left_out[why, f"{archive}/{name}"] += 1
    return not why


def member_part(whole: Part, reading: Reading, name: str, member: str, size: int, start: int = 0) -> Part:
    """A member of an archive; `start` is its offset in a .tar, from which it can be read directly."""
    lenient, stop = whole.lenient or reading.lenient, start + size if start else None
    name = f"{whole.name}/{name}"
    part = replace(whole, name=name, size=size, member=member, start=start, stop=stop, lenient=lenient)
    return with_encoding(part, reading)


@lru_cache(maxsize=1)
def open_zip(path: str, mtime_ns: int) -> zipfile.ZipFile:
    """Stays open for the members that follow: the directory of a large archive is slow to read."""
    try:
        return zipfile.ZipFile(path)
    except NotImplementedError as error:
        raise ValueError(f"{path}: {error}; unpack the archive and pass the folder") from error


def tar_parts(whole: Part, reading: Reading, left_out: Counter) -> list[Part]:
    with tarfile.open(whole.path, "r:") as archive:
        files = (info for info in archive if info.isfile())
        members = [info for info in files if is_member(info.name, info.name, whole.name, reading, left_out)]
    return [member_part(whole, reading, info.name, info.name, info.size, info.offset_data) for info in members]


def parquet_parts(whole: Part, reading: Reading, _: Counter) -> list[Part]:
    with open_parquet(whole) as file:
        sizes = [file.metadata.row_group(i).total_byte_size for i in range(file.num_row_groups)]
    bounds = [0]
    for stop in range(1, len(sizes) + 1):
        if stop == len(sizes) or sum(sizes[bounds[-1] : stop + 1]) > UNIT:
            bounds.append(stop)
    return divided(whole, bounds, reading.joined)


DIVIDED = {".zip": zip_parts, ".tar": tar_parts, ".parquet": parquet_parts}


def divided(whole: Part, bounds: list[int], is_one_document: bool) -> list[Part]:
    """A file as parts, given their bounds in bytes or row groups."""
    return [
        replace(
            whole,
            size=whole.size * (stop - start) // bounds[-1],
            start=start,
            stop=stop,
            first=not is_one_document or not start,
            last=not is_one_document or stop == bounds[-1],
        )
        for start, stop in pairwise(bounds)
    ]


def range_parts(whole: Part, kind: str, reading: Reading) -> list[Part]:
    """A file of text or of rows as byte ranges that can be read and encoded independently."""
    # Read whole: encodings in which a byte 0x0A may be no newline (UTF-16), or which depend on what came before
    lookup = codecs.lookup(whole.encoding).name
    if whole.size < 2 * UNIT or "\n".encode(whole.encoding) != b"\n" or lookup.startswith(("utf-7", "hz", "iso2022")):
        return [whole]
    if kind == ".json":
        with open_part(whole) as stream:
            kind, _ = kind_of_json(stream, whole.encoding)
    if kind in ROW_SUFFIXES and kind not in LINE_SUFFIXES:  # a newline need not end a row
        return [whole]
    separator = "\n" if kind in LINE_SUFFIXES else reading.separator
    if separator and lookup != "utf-8" and separator[0] != "\n":  # its bytes may be parts of other characters
        return [whole]
    if separator:
        find_cut = partial(cut_after, mark=separator_pattern(separator, whole.encoding))
    else:
        find_cut = partial(cut_of_text, encoding=whole.encoding, only_lines=not set(whole.rules) <= set(NORMALIZE))
    return divided(whole, [0, *cuts(whole, find_cut), whole.size], is_one_document=not separator)


def cuts(whole: Part, find_cut: Callable[[bytes], int]) -> Iterator[int]:
    """Offsets at which a file can be cut, about UNIT apart. find_cut(window) -> an offset in the window, or 0."""
    with open(whole.path, "rb") as file:
        at = UNIT
        while at < whole.size - UNIT // 2:
            file.seek(at)
            window = file.read(READ_BYTES)
            found = find_cut(window)
            if found and at + found < whole.size:
                yield at + found
                at += found + UNIT
            else:
                at += len(window)


def separator_pattern(separator: str, encoding: str | None = None) -> re.Pattern:
    """Matches a separator, with CRLF for its newlines too; as bytes, given an encoding."""
    lines, newline = separator.split("\n"), r"\r?\n"
    if encoding:
        lines, newline = [line.encode(encoding) for line in lines], newline.encode()
    return re.compile(newline.join(map(re.escape, lines)))


def cut_after(window: bytes, mark: re.Pattern) -> int:
    found = mark.search(window)
    return found.end() if found else 0


def cut_of_text(window: bytes, encoding: str, only_lines: bool) -> int:
    """Where a tokenizer allows a cut: at the end of a line if possible, else (unless only_lines) anywhere.

    The search starts at a newline, from which every encoding can be decoded, and ends at the first damage, after which
    byte offsets of characters are uncertain.
    """
    newline = window.find(b"\n")
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(window[newline:]) if newline >= 0 else ""
    except UnicodeDecodeError as error:
        text = error.object[: error.start].decode(encoding)
    match = LINE_END.search(text) or (None if only_lines else CUT.search(text))
    return newline + len(text[: match.end()].encode(encoding)) if match else 0


# ---- reading -----------------------------------------------------------------------------------------------


def documents(part: Part, reading: Reading, left_out: Counter | None = None) -> Iterator[Passage]:
    """The part's documents, each in one or more passages. ValueError, naming the file, if it cannot be read."""
    kind, compression = kind_of(part.member or part.path)
    left_out = Counter() if left_out is None else left_out
    try:
        if kind == ".parquet" and not compression and not part.member:
            yield from parquet_rows(part, reading, left_out)
        else:
            with open_part(part) as stream:
                yield from read_stream(stream, part.member or part.path, part, reading, part.label, left_out)
    except DAMAGE as error:
        raise ValueError(cannot_read(part.where, error)) from error


def open_part(part: Part) -> BinaryIO:
    if part.member and part.path.lower().endswith(".zip"):
        try:
            return open_zip(part.path, part.mtime_ns).open(part.member)
        except NotImplementedError as error:
            raise ValueError(f"{part.name}: {error}; unpack the archive and pass the folder") from error
    file = open(part.path, "rb")
    file.seek(part.start)
    return file if part.stop is None else io.BufferedReader(Window(file, b"", part.stop - part.start), READ_BYTES)


def hash_part(part: Part) -> str:
    """The sha256 of a part's bytes, in hex."""
    digest = hashlib.sha256()
    with open_part(part) as stream:
        while data := stream.read(READ_BYTES):
            digest.update(data)
    return digest.hexdigest()


def read_stream(
    stream: BinaryIO, file: str, part: Part, reading: Reading, name: str, left_out: Counter
) -> Iterator[Passage]:
    """The documents of a stream whose format the suffixes of `file` tell; `name` is for reports."""
    kind, compression = kind_of(file)
    if compression:
        head, stream = peek(decompressed(stream, compression), 512)
        if not kind and head[257:262] == b"ustar":
            kind = ".tar"
    if kind == ".tar":
        yield from read_tar(stream, part, reading, name, left_out)
        return
    if kind in (".zip", ".parquet"):
        raise ValueError(f"{name}: cannot read a {kind} inside another file; unpack that first")
    if kind == ".epub":
        chunks = book_chunks(stream, part, reading, name, left_out)
        yield from separated(chunks, reading.separator) if reading.separator else chunks
        return
    encoding = part.encoding
    if encoding == "auto":
        head, stream = peek(stream, DETECTED_BYTES)
        if len(head) < DETECTED_BYTES or not head.isascii():  # else text_chunks detects it later
            encoding = detect_encoding(head, name, len(head) < DETECTED_BYTES)
    if kind in ROW_SUFFIXES:
        yield from read_rows_of(stream, kind, encoding, part, reading, name, left_out)
    elif reading.separator:
        yield from separated(text_chunks(stream, encoding, part, reading, name), reading.separator)
    else:
        yield from text_chunks(stream, encoding, part, reading, part.name if name == part.label else name)


def read_tar(stream: BinaryIO, part: Part, reading: Reading, name: str, left_out: Counter) -> Iterator[Passage]:
    with tarfile.open(fileobj=stream, mode="r|") as archive:
        while member := archive.next():
            archive.members.clear()  # it would keep every header
            label = f"{name}/{member.name}"
            if not member.isfile() or not is_member(member.name, member.name, name, reading, left_out):
                continue
            if not member.size:
                left_out[EMPTY, label] += 1
                continue
            try:
                yield from read_stream(archive.extractfile(member), member.name, part, reading, label, left_out)
            except ValueError as error:
                if not (part.lenient or reading.lenient):
                    raise
                report_skipped(str(error))
                yield label, "", True  # ends the document, had it begun


def book_chunks(stream: BinaryIO, part: Part, reading: Reading, name: str, left_out: Counter) -> Iterator[Passage]:
    """The text of an .epub, which may be empty: one of pictures."""
    is_file = isinstance(stream, io.BufferedReader) and isinstance(stream.raw, io.FileIO)
    file = stream if is_file else io.BytesIO(stream.read())  # of an archive's member one cannot read the end first
    name, has_text = part.name if name == part.label else name, False
    where = part.where if name == part.name else name
    for text in chapters_of(file, where, reading.errors, report_skipped):
        yield name, text, False
        has_text = True
    if has_text:
        yield name, "", True
    else:
        left_out[EMPTY, name] += 1


def text_chunks(stream: BinaryIO, encoding: str, part: Part, reading: Reading, name: str) -> Iterator[Passage]:
    """The text of a stream; the encoding 'auto' is ASCII until it is detected from the first bytes that are not."""
    decoder = codecs.getincrementaldecoder("ascii" if encoding == "auto" else encoding)(reading.errors)
    offset, where = 0 if part.member else part.start, part.where if name == part.name else name
    while True:
        data, pending = stream.read(DECODED), decoder.getstate()[0]
        if encoding == "auto" and not data.isascii():
            head, stream = peek(io.BufferedReader(Window(stream, data)), DETECTED_BYTES)
            encoding = detect_encoding(head, name, len(head) < DETECTED_BYTES)
            data = stream.read(DECODED)
            decoder = codecs.getincrementaldecoder(encoding)(reading.errors)
        try:
            text = decoder.decode(data, not data)
        except UnicodeDecodeError as error:
            raise ValueError(wrong_encoding(where, encoding, reading.encoding, error, offset - len(pending))) from error
        except UnicodeError as error:  # UTF-16 without a byte-order mark
            raise ValueError(f"{where} is not {encoding}: {error}; pass another --encoding") from error
        if part.lenient and reading.lenient and "\0" in text:
            raise ValueError(f"{name} has a NUL character, so it is not source code")
        offset += len(data)
        yield name, text, not data and part.last
        if not data:
            return


def separated(chunks: Iterator[Passage], separator: str) -> Iterator[Passage]:
    """The documents between separators, numbered from 1, stripped of surrounding white space."""
    pattern, longest = separator_pattern(separator), len(separator) + separator.count("\n")
    rest, number, begun = "", 1, False
    for name, text, ends in chunks:
        found = pattern.search(rest[-longest:] + text)
        rest += text
        *complete, rest = pattern.split(rest) if found else [rest]
        for document in [*complete, rest] if ends else complete:
            document = document.rstrip() if begun else document.strip()
            if document or begun:
                yield f"{name}:{number}", document, True
            number, begun = number + 1, False
        if len(rest) > 4 * READ_BYTES:  # no separators?
            head, rest = rest[:-longest], rest[-longest:]
            yield f"{name}:{number}", head if begun else head.lstrip(), False
            begun = True


def kind_of_json(stream: BinaryIO, encoding: str) -> tuple[str, BinaryIO]:
    """(".jsonl" if the text has a row in each line, else ".json"; a stream that starts where this one did)."""
    head, stream = peek(stream, READ_BYTES)
    text = head.decode("ascii" if encoding == "auto" else encoding, "ignore")
    return ".jsonl" if is_json_lines(text) else ".json", stream


def read_rows_of(
    stream: BinaryIO, kind: str, encoding: str, part: Part, reading: Reading, name: str, left_out: Counter
) -> Iterator[Passage]:
    """The rows of a stream of one of ROW_SUFFIXES, each a document."""
    if kind == ".json":
        kind, stream = kind_of_json(stream, encoding)
    refuse, n = partial(raise_or_report, lenient=part.lenient), 0
    if kind in LINE_SUFFIXES:
        rows = line_rows(stream, encoding, part, reading, name, refuse)
    else:
        texts = (text for _, text, _ in text_chunks(stream, encoding, part, reading, name))
        if kind == ".json":  # in a folder, an object is often not data but describes it
            rows = json_rows(texts, reading.fields, name, nested="/" not in name)
        else:
            rows = csv_rows(texts, reading.fields, name, refuse, tabs=kind == ".tsv")
    for n, row in rows:
        document = f"{name}:{n}"
        try:
            text = text_of(row, reading.fields, document) if row else None
        except ValueError as error:
            refuse(str(error))
            continue
        if text:
            yield document, text, True
        else:
            left_out[NO_TEXT, part.name if name == part.label else name] += 1
    if kind == ".json" and not n:
        left_out[NO_ROWS, name] += 1


def line_rows(
    stream: BinaryIO, encoding: str, part: Part, reading: Reading, name: str, refuse: Callable[[str], None]
) -> Iterator[tuple[int, Any]]:
    lines = stream
    if encoding == "auto" or "\n".encode(encoding) != b"\n":  # UTF-16, where a byte 0x0A may be no newline
        texts = (text for _, text, _ in text_chunks(stream, encoding, part, reading, name))
        lines, encoding = (line.encode() for line in lines_of(texts)), "utf-8"
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                row = row_of_line(line, encoding, reading, f"{name}:{number}")
            except ValueError as error:
                refuse(str(error))
            else:
                yield number, row


def row_of_line(line: bytes, encoding: str, reading: Reading, name: str) -> Any:
    """ValueError says what is wrong with a line of JSON."""
    try:
        return json.loads(line.decode(encoding, reading.errors).removeprefix("\ufeff"))
    except UnicodeDecodeError as error:
        raise ValueError(wrong_encoding(name, encoding, reading.encoding, error, 0)) from None
    except (ValueError, RecursionError) as error:  # not JSON, a number too long, or nested too deeply
        raise ValueError(f"{name} is not a readable line of JSON ({error})") from None


def raise_or_report(message: str, lenient: bool) -> None:
    """ValueError; if lenient, only a line of the report."""
    if not lenient:
        raise ValueError(message)
    report_skipped(message)


@cache
def report_skipped(message: str) -> None:
    """Prints it once, however often the text is read, and not in worker processes."""
    if parent_process() is None:
        print(f"skipped: {message}", file=sys.stderr)


def import_pyarrow() -> Any:
    try:
        import pyarrow.parquet

        return pyarrow
    except ImportError:
        raise ValueError("reading .parquet files needs pyarrow: pip install pyarrow") from None


@contextmanager
def parquet_errors(name: str | Path) -> Iterator[None]:
    try:
        yield
    except import_pyarrow().ArrowException as error:
        raise ValueError(cannot_read(name, error)) from error


@contextmanager
def open_parquet(part: Part) -> Iterator[Any]:
    pyarrow = import_pyarrow()
    # With a buffer, columns are read page by page, however large the row groups
    with (
        parquet_errors(part.where),
        pyarrow.parquet.ParquetFile(part.path, buffer_size=READ_BYTES, pre_buffer=False) as file,
    ):
        yield file


def parquet_rows(part: Part, reading: Reading, left_out: Counter) -> Iterator[Passage]:
    pyarrow = import_pyarrow()
    with open_parquet(part) as file:
        schema, groups = file.schema_arrow, range(part.start, part.stop)
        types = {name: str(schema.field(name).type) for name in reading.fields if name in schema.names}
        fields = [name for name, type in types.items() if STRINGS.match(type)]
        if not fields:
            columns = ", ".join(f"{column.name} ({column.type})" for column in schema)
            raise ValueError(
                f"{part.path} has no text column {' or '.join(reading.fields)}, only: {columns}; choose one with "
                "--field"
            )
        number = sum(file.metadata.row_group(i).num_rows for i in range(part.start))
        for batch in file.iter_batches(batch_size=256, row_groups=groups, columns=fields):
            columns = [batch.column(name).cast(pyarrow.large_binary()).to_pylist() for name in fields]
            for values in zip(*columns, strict=True):
                number += 1
                try:
                    text = first_text([(value or b"").decode("utf-8", reading.errors) for value in values])
                except UnicodeDecodeError as error:
                    found = f"byte 0x{error.object[error.start]:02x} at offset {error.start} ({error.reason})"
                    message = f"{part.name}:{number} is not UTF-8: {found}; --errors=replace reads the rest of it"
                    raise_or_report(message, part.lenient)
                    continue
                if reading.joined:
                    yield part.name, text or " \n", False
                elif text:
                    yield f"{part.name}:{number}", text, True
                else:
                    left_out[NO_TEXT, part.name] += 1
    if reading.joined:
        yield part.name, "", part.last


# ---- encodings ---------------------------------------------------------------------------------------------


def report_replaced(parts: list[Part], reading: Reading) -> list[Part]:
    """The parts, after printing how many bytes of each file errors='replace' replaces; reads everything to count them.
    A file with so many that it is no damage is a ValueError or, if its parts are lenient, reported and left out."""
    from tqdm import tqdm

    counts, lengths, refused = Counter(), Counter(), set()

    def file_of(part: Part) -> tuple[str, str, str, bool]:
        return part.path, part.member, part.name, part.lenient

    def count(error: UnicodeDecodeError) -> tuple[str, int]:
        counts[file_of(part)] += error.end - error.start
        return "\ufffd", error.end

    codecs.register_error("count", count)
    for part in tqdm(parts, desc="counting damage", unit=" parts", leave=False, disable=None):
        found = documents(part, replace(reading, errors="count"))
        lengths[file_of(part)] += sum(len(text) for _, text, _ in found)
    for file, n in counts.items():
        *_, name, lenient = file
        if n > max(FEW_REPLACED, MOST_REPLACED * lengths[file]):
            message = (
                f"{name}: {n:,} bytes among {lengths[file]:,} characters cannot be decoded, too many to be damage: it "
                "is in another encoding (--encoding=auto finds out which), or it is not text (leave it out)"
            )
            raise_or_report(message, lenient)
            refused.add(file)
        else:
            print(f"{name}: replaced {n:,} undecodable bytes with U+FFFD")
    return [part for part in parts if file_of(part) not in refused]


def with_encoding(part: Part, reading: Reading) -> Part:
    """The part with 'auto' resolved, if it is a text; in compressed archives that happens on reading."""
    kind, compression = kind_of(part.member or part.path)
    if reading.encoding != "auto" or not part.size or not kind and compression or kind in (".tar", ".parquet", ".epub"):
        return part  # nothing to decode yet, or it says its encoding itself
    with open_part(part) as stream:
        head, rest = peek(decompressed(stream, compression) if compression else stream, DETECTED_BYTES)
        if len(head) == DETECTED_BYTES and head.isascii():
            if compression:
                return part  # rather than unpack it twice
            head = beyond_first_ascii(rest)
    try:
        return replace(part, encoding=detect_encoding(head, part.where, len(head) < DETECTED_BYTES))
    except ValueError:
        if not part.lenient:
            raise
        return part  # reported when it is read


def beyond_first_ascii(stream: BinaryIO) -> bytes:
    """The DETECTED_BYTES from the first byte on that is not ASCII."""
    while (head := stream.read(READ_BYTES)) and head.isascii():
        pass
    head = head[len(head) - len(head.lstrip(ASCII)) :]
    return head + stream.read(DETECTED_BYTES - len(head))
