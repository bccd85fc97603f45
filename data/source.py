"""Where text comes from, and in what order and splits: what every prepare.py begins with.

    python data/<name>/prepare.py --input novel.txt books/ more.jsonl.gz --encoding=auto --clean --dry_run

    args = prepare_parser(__doc__, HERE, tokenizer="bpe").parse_args(argv)
    reading = reading_of(args)                         # the encoding, what to clean, ...
    parts = find_parts(args, reading)                        # files, ranges, members: data/formats.py
    build(args, make_units(args, parts, reading), tokenizer_of(args), origin(args, parts), "config/x.py")

Text is kept as it is, its newlines, byte-order mark and full-width spaces too, unless --normalize or --clean is
given; only a known file (see find_parts) is normalized unasked, and says so.
"""

import argparse
import codecs
import ctypes
import hashlib
import os
import re
import sys
import zlib
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

from data.clean import NORMALIZE, RULES, Cleaner, Report, parse_rules
from data.download import download_file, hash_file
from data.formats import (
    UNIT,
    Part,
    Reading,
    cannot_read,
    check_encoding,
    documents,
    import_pyarrow,
    kind_of,
    parts_of,
    report_replaced,
    report_skipped,
    walk,
)
from data.tokenizer import find_cut

PIECE = 1 << 17  # characters: about what is encoded at a time
LONGEST_PIECE = 1 << 22
SHOWN_NAMES = 8  # names that a report shows of many
SPLIT_NAMES = re.compile(r"(?:^|[^a-z])(?:(train)|(valid|validation|val|dev)|(test))(?:[^a-z]|$)")

# ---- the command line of every prepare.py ------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; --help shows the options")


class PrepareParser(Parser):
    """Refuses flags that would have no effect. `vocab_size` is what --vocab_size is when it isn't given."""

    def __init__(self, vocab_size: int, **options: Any):
        super().__init__(**options)
        self.vocab_size = vocab_size

    def parse_args(self, *argv: Any) -> argparse.Namespace:
        args = super().parse_args(*argv)
        name = f"--tokenizer_file={args.tokenizer_file}" if args.tokenizer_file else f"--tokenizer={args.tokenizer}"
        for flag in ("vocab_size", "special_tokens"):
            if getattr(args, flag) is not None and name != "--tokenizer=bpe":
                self.error(
                    f"--{flag} is for a bpe tokenizer that is trained on the text, found {name}; leave one of them out"
                )
        if args.min_count != 1 and not args.trim:
            self.error(f"--min_count={args.min_count} is for --trim, found none; pass both, or neither")
        if args.vocab_size is None:
            args.vocab_size = self.vocab_size
        return args


def prepare_parser(description: str, folder: Path, vocab_size: int = 8192, **defaults: Any) -> argparse.ArgumentParser:
    """The flags that all prepare scripts share; `folder` is the script's own. `defaults` are other defaults: where
    out_dir's is None, `description` says where the dataset goes."""
    parser = PrepareParser(
        vocab_size, description=description, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument_group("text").add_argument
    add(
        "--input",
        nargs="+",
        type=Path,
        default=[],
        metavar="PATH",
        help="local files, folders and archives (.txt .jsonl .parquet .zip .tar, .gz .xz .bz2 .zst): no network",
    )
    add("--val_input", nargs="+", type=Path, default=[], metavar="PATH", help="those of the validation split")
    add(
        "--val_fraction",
        type=open_fraction,
        default=0.1,
        help="part of the text for validation, if nothing else says which (default: %(default)s)",
    )
    add("--encoding", default="utf-8", help="of the text: gb18030, big5, utf-16, ... or auto (default: utf-8)")
    add(
        "--errors",
        choices=("strict", "replace"),
        default="strict",
        help="where bytes do not decode: stop, or put U+FFFD in their place and say in which files (default: strict)",
    )
    add("--normalize", action="store_true", help="drop a byte-order mark, read CRLF as LF (default: keep)")
    add(
        "--clean",
        nargs="?",
        const="all",
        metavar="RULE,...",
        help=f"take out what web books carry besides their text; all of {', '.join(RULES)}, or the ones named; "
        "with --dry_run all text that goes is shown, line ends, spaces and blank lines are counted",
    )
    add("--field", help="of .jsonl and .parquet rows (default: text, content or story)")
    add("--separator", help=r"what stands between the documents of a text file, such as '\n\n\n'")
    add("--skip_bad", action="store_true", help="report and leave out what can't be read, instead of stopping")
    add = parser.add_argument_group("tokens").add_argument
    add(
        "--tokenizer",
        default="char",
        help="char, byte, bpe (trained on the text), gpt2, cl100k_base, qwen2, the name of a repository on the "
        "Hugging Face hub, or a tokenizer.json (default: %(default)s)",
    )
    add("--vocab_size", type=int, help=f"of a bpe tokenizer that is trained (default: {vocab_size})")
    add("--special_tokens", nargs="+", metavar="TOKEN", help="more of them for it than <|endoftext|>: '<|user|>' ...")
    add("--tokenizer_file", type=Path, help="the tokenizer's file, or its folder, where it is on this machine")
    add("--trim", action="store_true", help="keep only the ids that the training text uses, and the single bytes")
    add("--min_count", type=int, default=1, help="... at least so often (default: 1)")
    add = parser.add_argument_group("result").add_argument
    place = "see above" if "out_dir" in defaults else "beside the script"
    add("--out_dir", type=Path, default=folder, help=f"where the dataset goes (default: {place})")
    add("--dry_run", action="store_true", help="do it all, print the numbers, but leave out_dir as it is")
    add(
        "--workers",
        type=nonnegative,
        default=0,
        help="processes; the result is the same for any number (default: 0, all cores)",
    )
    parser.set_defaults(**{"folder": folder, "eot": True, **defaults})
    return parser


def open_fraction(text: str) -> float:
    if not 0 < float(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return float(text)


def nonnegative(text: str) -> int:
    if int(text) < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return int(text)


def tokenizer_of(args: argparse.Namespace) -> Callable:
    """What `build` calls with the texts to get the tokenizer that the flags describe."""
    from data.tokenizer import make_tokenizer

    def make(texts: Callable) -> Any:
        return make_tokenizer(
            args.tokenizer,
            texts,
            file=args.tokenizer_file,
            vocab_size=args.vocab_size,
            special_tokens=args.special_tokens or (),
            eot=args.eot,
            trim=args.trim,
            min_count=args.min_count,
        )

    return make


def reading_of(args: argparse.Namespace, **options: Any) -> Reading:
    """How the flags and a script's own `options` (fields of Reading) say to read."""
    rules = parse_rules(args.clean) if args.clean else ()
    separator = args.separator and args.separator.replace("\\r", "\r").replace("\\n", "\n").replace("\\t", "\t")
    defaults = {
        "encoding": check_encoding(args.encoding),
        "errors": args.errors,
        "field": args.field,
        "separator": separator,
        "rules": tuple(rule for rule in RULES if rule in rules or args.normalize and rule in NORMALIZE),
    }
    return Reading(**{**defaults, **options})


# ---- finding -----------------------------------------------------------------------------------------------


def find_parts(args: argparse.Namespace, reading: Reading, known: str = "") -> list[Part]:
    """What --input and --val_input name, in parts: files in the order given, folders in the order of names.

    ValueError: nothing there, or a file that can't be read (one from a folder is reported and left out if
    `reading` is lenient). The very file with the sha256 `known` is always normalized: the public copy of
    Hongloumeng has CRLF newlines by accident, and what is known of it counts them as LF.
    """
    parts, empty = [], []
    for paths, split in ((args.val_input, "val"), (args.input, "train" if args.val_input else None)):
        for path in paths:
            with read_errors(path):
                found = list(parts_under(path, reading, args.skip_bad))
                is_known = known and path.is_file() and hash_file(path) == known
                if is_known:
                    report_normalized(path, reading)
            empty += [part.name for part in found if not part.size]
            found = [part for part in found if part.size]
            if not found and not args.skip_bad:
                found_empty = f", empty: {first_few(empty)}" * bool(empty)
                raise ValueError(f"{path} holds nothing to read; looked for {' '.join(reading.suffixes)}{found_empty}")
            if is_known:
                found = [replace(part, rules=tuple(dict.fromkeys(NORMALIZE + part.rules))) for part in found]
            parts += found if split is None else [replace(part, split=split) for part in found]
    if reading.named_splits and not args.val_input:
        packed = next((part.path for part in parts if kind_of(part.path)[0] == ".tar" and not part.member), None)
        if packed:
            raise ValueError(f"{packed}: unpack it and pass the folder, so that names of files tell the splits")
        parts = [replace(part, split=split_of(part.name)) for part in parts]
        left_out = dict.fromkeys(part.name for part in parts if part.split == "test")
        if left_out:
            print(f"left out {len(left_out):,} as test, by name: {first_few(left_out)}")
        parts = [part for part in parts if part.split != "test"]
        if not any(part.split == "val" for part in parts):  # what is called train is then split like anything
            parts = [replace(part, split=None) for part in parts]
    if empty:
        print(f"left out {len(empty):,} as empty: {first_few(empty)}")
    if not parts:
        raise ValueError(f"nothing to read in {', '.join(map(str, args.input))}")
    show_encodings(args, parts)
    if reading.errors == "replace":
        report_replaced(parts, reading)
    return sorted(parts, key=lambda part: part.split != "val")  # a copy of a val document is dropped from train


def report_normalized(path: Path, reading: Reading) -> None:
    """Prints by how many bytes the text of a known file is shorter than the file, unless that was asked for."""
    with open(path, "rb") as file:
        text = file.read()
    n, mark = text.count(b"\r\n"), text.startswith(codecs.BOM_UTF8)
    if (n or mark) and not set(NORMALIZE) <= set(reading.rules):
        print(
            f"newlines {path.name}: {n:,} CRLF{' and a byte-order mark' * mark} of this public copy are read as LF: "
            f"{n + 3 * mark:,} bytes less than the file has (other files keep theirs without --normalize)"
        )


@contextmanager
def read_errors(path: str | Path) -> Iterator[None]:
    """No permission, a file that has gone, a broken disk: the user's to mend. `path` if the error names none."""
    try:
        yield
    except OSError as error:
        raise ValueError(cannot_read(error.filename or path, error)) from error


def parts_under(path: Path, reading: Reading, skip_bad: bool) -> Iterator[Part]:
    """The parts of a file, or of the files of a folder, of size 0 if those are empty. Lenient ones are read once, to
    know whether they can be."""
    is_folder, folder = path.is_dir(), path.resolve().name
    lenient = skip_bad or is_folder and reading.lenient
    for file in walk(path, reading, lenient) if is_folder else [path]:
        name = f"{folder}/{file.relative_to(path).as_posix()}" if is_folder else path.name
        try:
            is_empty = is_folder and os.path.isfile(file) and not os.path.getsize(file)
            parts = [Part(str(file), name, 0, 0)] if is_empty else parts_of(file, name, reading, lenient)
        except ValueError as error:
            if not lenient:
                raise
            report_skipped(str(error))
            continue
        yield from (
            replace(part, name=printable(part.name))
            for part in parts
            if not part.size or not part.lenient or can_be_read(part, reading)
        )


def can_be_read(part: Part, reading: Reading) -> bool:
    try:
        deque(documents(part, reading), maxlen=0)
        return True
    except ValueError as error:
        report_skipped(str(error))
        return False


@lru_cache(maxsize=1)  # a document comes in many pieces
def printable(name: str) -> str:
    """A file's name as text that can be written: what is not UTF-8 is read as GB18030, or else gets U+FFFD."""
    return "/".join(decoded(os.fsencode(part)) for part in name.split("/"))


def decoded(name: bytes) -> str:
    for encoding in ("utf-8", "gb18030"):
        with suppress(UnicodeDecodeError):
            return name.decode(encoding)
    return name.decode("utf-8", "replace")


def split_of(name: str) -> str | None:
    """The split that a file's name speaks of: "wiki.valid.raw" -> "val"; None if it speaks of none."""
    match = SPLIT_NAMES.search(name.lower().rsplit("/", 1)[-1])
    return match and ("train" if match[1] else "val" if match[2] else "test")


def first_few(names: Collection[str], n: int = 0) -> str:
    """The first few of the names, of which there are n, if not only these."""
    n = max(n, len(names))
    return ", ".join(islice(names, SHOWN_NAMES)) + f" and {n - SHOWN_NAMES:,} more" * (n > SHOWN_NAMES)


def show_encodings(args: argparse.Namespace, parts: list[Part]) -> None:
    if args.encoding == "auto":
        files = {(part.path, part.member): part for part in parts}.values()
        for part in files:
            if part.encoding != "utf-8":
                print(f"encoding {part.name}: {part.encoding if part.encoding != 'auto' else 'of each file in it'}")
        print(f"encoding utf-8: {sum(part.encoding == 'utf-8' for part in files):,} of {len(files):,} files")


def downloaded(args: argparse.Namespace, name: str, urls: Sequence[str], sha256: str | None = None) -> list[Path]:
    """[the file `name` beside the script], downloaded if it isn't there; [] in a dry run, which does not."""
    path = args.folder / name
    if path.exists():
        return [path]
    if args.dry_run:
        print(f"dry run: would download {urls[0]} to {path}")
        return []
    if path.suffix == ".parquet":
        import_pyarrow()  # better now than after some gigabytes
    download_file(urls, sha256, path)
    return [path]


def origin(args: argparse.Namespace, parts: Sequence[Part], where: str = "") -> dict:
    """The "source" of meta.json. The sha256 is the file's, or that of the files' hex digests in a row."""
    from tqdm import tqdm

    files, digest = dict.fromkeys(part.path for part in parts), hashlib.sha256()
    with read_errors("the text"):
        n_bytes = sum(map(os.path.getsize, files))
        with tqdm(desc="hashing", total=n_bytes, unit="B", unit_scale=True, disable=None) as bar:
            for path in files:
                sha256 = hash_file(path, bar.update)
                digest.update(sha256.encode())
    names = dict.fromkeys(part.name for part in parts)
    return {
        "from": where or first_few(names),
        "files": len({(part.path, part.member) for part in parts}),
        "bytes": n_bytes,
        "sha256": sha256 if len(files) == 1 else digest.hexdigest(),
        "encoding": args.encoding,
        "errors": args.errors,
        "normalize": any(set(NORMALIZE) <= set(part.rules) for part in parts),
        "clean": list(parse_rules(args.clean)) if args.clean else [],
    }


# ---- units -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Piece:
    """The next part of a document, in reading order."""

    document: str  # its name, for reports: "stdlib/os.py", "books.jsonl:17"
    text: str  # cleaned; PIECE characters or more, but for the last
    ends: bool  # True on the document's last piece (of each split, where it is cut by position)
    split: str | None  # 'train' or 'val' where the corpus decides, None = by hash


@dataclass(frozen=True)
class Unit:
    """What one worker reads at a time. Small and picklable; read anywhere, it gives the same pieces."""

    parts: tuple[Part, ...]
    reading: Reading
    train_characters: int | None = None  # so many, or all, are train, the rest is val; None: the parts' splits
    whole_words: bool = False  # and a few more, up to where a tokenizer allows a cut

    @property
    def key(self) -> str:
        """Changes with the files, and with everything else that changes the text."""
        return hashlib.sha256(repr(self).encode()).hexdigest()

    @property
    def size(self) -> int:
        return sum(part.size for part in self.parts)

    def pieces(self, report: Report | None = None) -> Iterator[Piece]:
        """Streams the unit's text; memory does not grow with it."""
        pieces = (piece for part in self.parts for piece in pieces_of(part, self.reading, report))
        if self.train_characters is not None:
            pieces = cut_at(pieces, self.train_characters, self.whole_words)
        try:
            yield from pieces
        finally:  # also where the reader stops early
            trim()


def trim() -> None:
    """Gives freed memory back to the system, where the C library is glibc. Where text has characters of several bytes,
    Python decodes into more memory than it needs, and gives the rest back: glibc keeps hundreds of such rests for later
    (its tcache), each of which keeps the free memory on its two sides apart. The less is decoded at a time (DECODED),
    and the more often this is called, the less is lost."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


def make_units(args: argparse.Namespace, parts: Iterable[Part], reading: Reading, single: bool = False) -> list[Unit]:
    """Parts as units: small ones together up to UNIT bytes, or each by itself. A dry run shows the cleaning."""
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


def pieces_of(part: Part, reading: Reading, report: Report | None = None) -> Iterator[Piece]:
    """The documents of a part, cleaned, in pieces that begin and end where a tokenizer allows a cut."""
    cleaner = Cleaner(part.rules, report and (lambda *removal: report.add(document, *removal)), not part.first)
    buffer, begun, taken = "", not part.first, True
    if report:
        report.begin(part.path, part.name)
    for document, text, ends in in_slices(documents(part, reading)):
        document = printable(document)  # of a member of a compressed archive
        start = max(PIECE, len(buffer))  # before it there is no cut
        buffer += cleaner.feed(text, ends) if part.rules else text
        while len(buffer) > PIECE and (at := cut_in(buffer, start)):
            taken = taken if begun else is_taken(buffer, part, reading)
            if taken:
                yield Piece(document, buffer[:at], False, part.split)
            buffer, begun, start = buffer[at:], True, PIECE
        if ends:
            taken = taken if begun else bool(buffer) and is_taken(buffer, part, reading)
            if taken:
                yield Piece(document, buffer, True, part.split)
            buffer, begun, taken = "", False, True
    lines = cleaner.line - 1
    buffer += cleaner.feed("", True)  # the line before a cut, which no newline ended
    if report:
        report.line = 0 if part.last else report.line + lines
    if buffer:
        yield Piece(document, buffer, False, part.split)


def in_slices(texts: Iterable[tuple[str, str, bool]]) -> Iterator[tuple[str, str, bool]]:
    """The same with no text longer than PIECE: taking pieces off a long one would copy its rest each time."""
    for document, text, ends in texts:
        last = max(0, len(text) - 1) // PIECE
        for i in range(last + 1):
            yield document, text[i * PIECE : (i + 1) * PIECE], ends and i == last


def cut_in(text: str, start: int) -> int:
    """The first cut from `start` on; 0 if there is none yet, LONGEST_PIECE if there won't be one."""
    at = find_cut(text, start)
    return at if at > 0 else LONGEST_PIECE if len(text) > LONGEST_PIECE else 0


def is_taken(text: str, part: Part, reading: Reading) -> bool:
    """Whether the document that begins with `text` is in the --fraction of the training text."""
    if reading.fraction == 1 or part.split == "val":
        return True
    return zlib.crc32(text[:PIECE].encode()) < reading.fraction * 2**32


def by_position(args: argparse.Namespace, parts: Iterable[Part], reading: Reading, each: bool = False) -> list[Unit]:
    """Units whose text (each: every file's) is cut once: the first 1 - val_fraction of all characters are train.

    Exactly so for characters and bytes; for other tokenizers no word is cut in two, so that the ids are those of the
    whole text. This reads everything once, to count the characters. With --val_input nothing is cut.
    """
    from tqdm import tqdm

    if args.val_input:
        return make_units(args, parts, reading)
    groups: dict[tuple, list[tuple[Unit, int]]] = {}
    whole_words = args.tokenizer not in ("char", "byte")
    single = make_units(args, parts, reading, single=True)
    for unit in tqdm(single, desc="counting characters", unit=" parts", disable=None):
        n = sum(len(piece.text) for piece in unit.pieces())
        part = unit.parts[0]
        groups.setdefault((part.path, part.member) if each else (), []).append((unit, n))
    cut = []
    for group in groups.values():
        left = int(sum(n for _, n in group) * (1 - args.val_fraction))
        for unit, n in group:
            cut.append(replace(unit, train_characters=left, whole_words=whole_words))
            left = max(0, left - n)
    return cut


def is_one_text(parts: Sequence[Part], reading: Reading) -> bool:
    """Whether all parts are ranges of one text, so that there is only one document to split."""
    part = parts[0]
    if part.split or any((other.path, other.member) != (part.path, part.member) for other in parts):
        return False
    document, *_ = next(documents(part, reading), ("",))
    return document == part.name  # those of rows, separators and archives have names of their own


def cut_at(pieces: Iterable[Piece], left: int, whole_words: bool) -> Iterator[Piece]:
    """The first `left` characters as train, and what follows as val; each side's last piece ends a document."""
    for piece in pieces:
        if whole_words and 0 < left < len(piece.text):
            at = find_cut(piece.text, left)
            # a piece ends where one may cut, unless it is a document's last or was cut for its length
            anywhere = piece.ends or len(piece.text) >= LONGEST_PIECE
            left = at if at > 0 else left if anywhere else len(piece.text)
        head, tail = piece.text[:left], piece.text[left:]
        if head:
            left -= len(head)
            yield replace(piece, text=head, ends=piece.ends and not tail or not left, split="train")
        if tail:
            yield replace(piece, text=tail, split="val")
        elif not head and piece.ends:  # nothing but the end of the document
            yield replace(piece, split="train" if left else "val")
