"""Where text comes from, in which order and splits: the first half of every prepare.py.

    python data/<name>/prepare.py --input novel.txt books/ more.jsonl.gz --encoding=auto --clean --dry_run

    args = prepare_parser(__doc__, HERE, tokenizer="bpe").parse_args(argv)
    reading = reading_of(args)                               # the encoding, the cleaning rules, ...
    parts = find_parts(args, reading)                        # files, byte ranges, archive members: data/formats.py
    prepare_dataset(args, parts, make_units(args, parts, reading), "config/x.py")           # data/build.py

Without --normalize or --clean, text is kept as it is, newlines, byte-order marks and full-width spaces included; only a
known file (see find_parts) is normalized unasked, and reported.
"""

import argparse
import codecs
import ctypes
import hashlib
import os
import re
import sys
import zlib
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import groupby, islice
from pathlib import Path
from typing import Any, NoReturn

from data.bpe import WORDS
from data.clean import CODE_RULES, NORMALIZE, RULES, Cleaner, Report, parse_rules
from data.dataset import open_dataset
from data.download import download_file, hash_file
from data.encodings import check_encoding
from data.fim import CHARS, SINGLE_CHARS, fim_of, fim_settings
from data.formats import (
    EMPTY,
    OTHER_TYPE,
    UNIT,
    UNKNOWN,
    Part,
    Passage,
    Reading,
    cannot_read,
    documents,
    import_pyarrow,
    kind_of,
    parts_of,
    report_replaced,
    report_skipped,
    walk,
)
from data.progress import byte_bar
from data.tokenizer import EOT, CharTokenizer, Tokenizer, find_cut, make_tokenizer

PIECE = 1 << 17  # characters, roughly, that are encoded at a time
LONGEST_PIECE = 1 << 22
SHOWN_NAMES = 8  # names listed in a message before "and n more"
ROW_NUMBER = re.compile(r"(@\d+)?:\d+$")  # in the name of a document
TEST_HELP = "share of the text for a test split, taken out of the training text and read only by eval.py --split=test, "
TEST_HELP += "to measure what was chosen by the validation split (default: 0, none)"
SPLIT_NAMES = re.compile(r"(?:^|[^a-z])(?:(train)|(valid|validation|val|dev)|(test))(?:[^a-z]|$)")

# ---- the command line of every prepare.py ------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; see --help")


class PrepareParser(Parser):
    """Refuses options that would have no effect."""

    def parse_args(self, *argv: Any) -> argparse.Namespace:
        args = super().parse_args(*argv)
        trained = args.tokenizer in WORDS and not args.tokenizer_file
        name = f"--tokenizer_file={args.tokenizer_file}" if args.tokenizer_file else f"--tokenizer={args.tokenizer}"
        for flag in ("vocab_size", "special_tokens"):
            if getattr(args, flag) is not None and not trained:
                self.error(
                    f"--{flag} is only for a bpe tokenizer trained on the text, found {name}; drop one of the two"
                )
        if args.min_count != 1 and not args.trim:
            self.error(f"--min_count={args.min_count} needs --trim; pass both or neither")
        others = args.tokenizer_file or args.trim or args.special == "encode"
        if args.vocabulary and (args.tokenizer != "char" or others):
            needs = "--tokenizer=char, without --tokenizer_file, --trim and --special=encode"
            self.error(f"--vocabulary={args.vocabulary} needs {needs}")
        for flag in ("spm_rate", "fim_chars"):
            if getattr(args, flag) != self.get_default(flag) and not args.fim_rate:
                self.error(f"--{flag}={getattr(args, flag)} needs --fim_rate; pass both or neither")
        check_held_out(args)
        if args.vocab_size is None:
            args.vocab_size = args.default_vocab_size
        return args


def check_held_out(args: argparse.Namespace) -> None:
    """ValueError if the splits that are held out leave nothing to train on."""
    if held_out(args) >= 1:
        raise ValueError(
            f"--test_fraction={args.test_fraction} and --val_fraction={args.val_fraction} leave no text to train on: "
            "their sum must be below 1"
        )


def held_out(args: argparse.Namespace) -> float:
    """The share of the text of --input that is not for training."""
    return (0.0 if args.val_input else args.val_fraction) + args.test_fraction


def prepare_parser(
    description: str, folder: Path, vocab_size: int = 8192, clean: str = "all", **defaults: Any
) -> argparse.ArgumentParser:
    """The options common to all prepare scripts; `folder` is the script's own, `defaults` replaces their defaults, and
    `clean` is what --clean alone means. With out_dir=None, `description` says where the dataset goes."""
    style = argparse.RawDescriptionHelpFormatter
    parser = PrepareParser(description=description, allow_abbrev=False, formatter_class=style)
    add_text_options(parser.add_argument_group("text").add_argument, clean)
    add_token_options(parser.add_argument_group("tokens").add_argument, vocab_size)
    add_fim_options(parser.add_argument_group("fill in the middle").add_argument)
    add = parser.add_argument_group("result").add_argument
    place = "see above" if "out_dir" in defaults else "beside the script"
    add("--out_dir", type=Path, default=folder, help=f"where to write the dataset (default: {place})")
    add("--dry_run", action="store_true", help="do everything and print the report, but leave out_dir as it is")
    workers = "number of processes, which does not change the result (default: 0, all cores)"
    add("--workers", type=nonnegative, default=0, help=workers)
    parser.set_defaults(**{"folder": folder, "eot": True, "default_vocab_size": vocab_size, **defaults})
    return parser


def add_text_options(add: Callable, clean: str) -> None:
    formats = (
        "files, folders and archives: .txt .md, rows in .jsonl .json .csv .tsv .parquet, .zip .tar, and .gz .xz .bz2 "
        ".zst of these; needs no network"
    )
    add("--input", nargs="+", type=Path, default=[], metavar="PATH", help=formats)
    add("--val_input", nargs="+", type=Path, default=[], metavar="PATH", help="the same for the validation split")
    share = "share of the text for validation, unless the data has its own split (default: %(default)s)"
    add("--val_fraction", type=open_fraction, default=0.1, help=share)
    add("--test_fraction", type=test_share, default=0.0, help=TEST_HELP)
    add("--encoding", default="utf-8", help="gb18030, big5, utf-16, ..., or auto to detect it (default: utf-8)")
    errors = "strict: stop at undecodable bytes; replace: put U+FFFD in their place, and list the files (default: "
    errors += "strict)"
    add("--errors", choices=("strict", "replace"), default="strict", help=errors)
    add("--normalize", action="store_true", help="remove byte-order marks and turn CRLF into LF")
    what = "long runs of machine-written lines" if clean == "code" else "what web books carry besides their text"
    rules = (
        f"remove {what}: {', '.join(parse_rules(clean))}, or only the rules named; --dry_run then shows the removed "
        "text and counts changes of white space"
    )
    add("--clean", nargs="?", const=clean, metavar="RULE,...", help=rules)
    add("--field", help="field or column of rows (default: the first of text, content and story that has text)")
    add("--separator", help=r"separator between the documents of a text file, such as '\n\n\n'")
    add("--skip_bad", action="store_true", help="report and skip unreadable files instead of stopping")


def add_token_options(add: Callable, vocab_size: int) -> None:
    tokenizer = (
        "char, byte, bpe or bpe_code (trained on the text), gpt2, cl100k_base, qwen2, a repository on the Hugging Face "
        "hub, or the path of a tokenizer.json, a model's folder or a dataset's (default: %(default)s)"
    )
    add("--tokenizer", default="char", help=tokenizer)
    add("--vocab_size", type=int, help=f"size of a bpe vocabulary trained here (default: {vocab_size})")
    special = "special tokens for a bpe trained here, in addition to <|endoftext|>: '<|user|>' ..."
    add("--special_tokens", nargs="+", metavar="TOKEN", help=special)
    typed = "what special tokens typed in the text become: text like any other, or their ids (default: %(default)s)"
    add("--special", choices=("text", "encode"), default="text", help=typed)
    add("--tokenizer_file", type=Path, help="a local copy of the tokenizer's file, or its folder")
    vocabulary = "a prepared dataset whose character ids to use, so that training can start from its model; characters "
    vocabulary += "that it lacks are left out of the text"
    add("--vocabulary", metavar="DATASET", help=f"{vocabulary} (with --tokenizer=char)")
    add("--trim", action="store_true", help="keep only the ids the training text uses, and all single bytes")
    add("--min_count", type=int, default=1, help="with --trim, keep ids used at least this often (default: 1)")


def add_fim_options(add: Callable) -> None:
    rate = "share of the training documents rearranged so that the model learns to fill in a middle; 0.5 is usual"
    add("--fim_rate", type=closed_fraction, default=0.0, help=f"{rate} (default: 0, none)")
    spm = "share of the rearranged parts with the suffix before the prefix (default: %(default)s)"
    add("--spm_rate", type=closed_fraction, default=0.5, help=spm)
    chars = "longest part to rearrange, in characters: at most the model's context"
    add("--fim_chars", type=positive, help=f"{chars} (default: {CHARS}; char and byte: {SINGLE_CHARS})")
    names = "put a line with the file's name, after a marker, before every document and rearranged part"
    add("--file_names", action="store_true", help=names)


def number(kind: Callable[[str], Any], is_allowed: Callable[[Any], bool], expected: str) -> Callable[[str], Any]:
    """What argparse calls as the type of an option."""

    def parse(text: str) -> Any:
        with suppress(ValueError):
            if is_allowed(value := kind(text)):
                return value
        raise argparse.ArgumentTypeError(f"{text} is not {expected}")

    return parse


open_fraction = number(float, lambda x: 0 < x < 1, "between 0 and 1")
test_share = number(float, lambda x: 0 <= x < 1, "from 0 to below 1")
closed_fraction = number(float, lambda x: 0 <= x <= 1, "from 0 to 1")
nonnegative = number(int, lambda n: n >= 0, "a whole number from 0 on")
positive = number(int, lambda n: n >= 1, "a whole number from 1 on")


def tokenizer_of(args: argparse.Namespace) -> Callable[[Callable], Tokenizer]:
    """A function from `texts` (see make_tokenizer) to the tokenizer the options describe."""
    names, fim = [EOT, *(args.special_tokens or ())] if args.special == "encode" else [], fim_of(args)
    trained = args.tokenizer in WORDS and not args.tokenizer_file
    special = [*(args.special_tokens or ()), *(fim.markers if trained else ())]
    if args.vocabulary:
        return lambda texts: vocabulary_of(args)
    return lambda texts: make_tokenizer(
        args.tokenizer,
        partial(texts_around, texts, names),
        file=args.tokenizer_file,
        vocab_size=args.vocab_size,
        special_tokens=list(dict.fromkeys(special)),
        eot=args.eot,
        trim=args.trim,
        min_count=args.min_count,
    )


def vocabulary_of(args: argparse.Namespace) -> CharTokenizer:
    """The tokenizer of the dataset --vocabulary; ValueError if it is not of characters, or would be overwritten."""
    name, dataset = args.vocabulary, open_dataset(args.vocabulary)
    if args.out_dir.resolve() == dataset.folder.resolve():
        raise ValueError(f"--vocabulary={name}: that dataset would be overwritten; choose another place with --out_dir")
    if not isinstance(dataset.tokenizer, CharTokenizer):
        kind = dataset.tokenizer.kind if dataset.tokenizer else "unknown tokens"
        raise ValueError(f"--vocabulary={name}: that dataset is of {kind}; choose one prepared with --tokenizer=char")
    return dataset.tokenizer


def texts_around(texts: Callable[[str | None], Iterable[str]], names: list[str], split: str | None) -> Iterator[str]:
    """texts(split) without these special tokens: what a tokenizer that is trained here has to spell."""
    pattern = re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))))
    return (part for text in texts(split) for part in (pattern.split(text) if names else [text]))


def reading_of(args: argparse.Namespace, **options: Any) -> Reading:
    """The Reading described by the command line and by the script's own `options`, which are fields of Reading."""
    rules = parse_rules(args.clean) if args.clean else ()
    separator = args.separator and args.separator.replace("\\r", "\r").replace("\\n", "\n").replace("\\t", "\t")
    defaults = {
        "encoding": check_encoding(args.encoding),
        "errors": args.errors,
        "field": args.field,
        "separator": separator,
        "known": vocabulary_of(args).chars if args.vocabulary else "",
        "rules": tuple(r for r in (*RULES, *CODE_RULES) if r in rules or args.normalize and r in NORMALIZE),
    }
    return Reading(**{**defaults, **options})


# ---- finding -----------------------------------------------------------------------------------------------


def find_parts(args: argparse.Namespace, reading: Reading, known: str = "") -> list[Part]:
    """What --input and --val_input name, in parts: files in the order given, folders in order of their names.

    ValueError: nothing there, or an unreadable file (in a folder it is reported and skipped if `reading` is lenient).
    The file with the sha256 `known` is always normalized: the public copy of Hongloumeng has CRLF newlines by accident,
    and its published numbers count them as LF.
    """
    parts, left_out = [], Counter()
    rest = "train" if args.val_input and not args.test_fraction else None
    for paths, split in ((args.val_input, "val"), (args.input, rest)):
        for path in paths:
            with read_errors(path):
                found = list(parts_under(path, reading, args.skip_bad, left_out))
                is_known = known and path.is_file() and hash_file(path) == known
                if is_known:
                    report_normalized(path, reading)
            left_out.update((EMPTY, part.name) for part in found if not part.size)
            found = [part for part in found if part.size]
            if not found and not args.skip_bad:
                looked = "; ".join([f"looked for {' '.join(reading.suffixes)}", *described(left_out)])
                raise ValueError(f"{path} holds nothing to read; {looked}")
            if is_known:
                found = [replace(part, rules=tuple(dict.fromkeys(NORMALIZE + part.rules))) for part in found]
            parts += found if split is None else [replace(part, split=split) for part in found]
    parts = read_once(parts)
    if reading.named_splits and not args.val_input:
        parts = split_by_name(parts, keep=not args.test_fraction)
    for line in described(left_out):
        print(line)
    if reading.errors == "replace":
        parts = report_replaced(parts, reading)
    if not parts:
        raise ValueError(f"nothing to read in {', '.join(map(str, args.input))}")
    show_encodings(args, parts)
    return sorted(parts, key=lambda part: part.split != "val")  # val first: its copies are then dropped from train


def read_once(parts: list[Part]) -> list[Part]:
    """Without what a split has already: files named twice, or by themselves and with their folder."""
    first = {}
    for part in parts:
        first.setdefault((os.path.realpath(part.path), part.member, part.start, part.split), part)
    return list(first.values())


def split_by_name(parts: list[Part], keep: bool = True) -> list[Part]:
    """The parts without test files, in the splits their names tell; in none unless a name says validation. Those of
    training are in none either, unless they `keep` together."""
    packed = next((part.path for part in parts if kind_of(part.path)[0] == ".tar" and not part.member), None)
    if packed:
        raise ValueError(f"{packed}: unpack it and pass the folder, so that file names tell the splits")
    parts = [replace(part, split=split_of(part.name)) for part in parts]
    left_out = dict.fromkeys(part.name for part in parts if part.split == "test")
    if left_out:
        print(f"left out {len(left_out):,} as test, by name: {first_few(left_out)}")
    parts = [part for part in parts if part.split != "test"]
    has_val = any(part.split == "val" for part in parts)
    return [part if has_val and (keep or part.split == "val") else replace(part, split=None) for part in parts]


def report_normalized(path: Path, reading: Reading) -> None:
    """Prints how much shorter normalization makes a known file, unless the user asked for it."""
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
    """ValueError for what the user can fix: no permission, a vanished file, a broken disk."""
    try:
        yield
    except OSError as error:
        raise ValueError(cannot_read(error.filename or path, error)) from error


def parts_under(path: Path, reading: Reading, skip_bad: bool, left_out: Counter) -> Iterator[Part]:
    """The parts of a file or of a folder's files, of size 0 for empty ones. Lenient parts are read once, to check that
    they can be."""
    is_folder, folder = path.is_dir(), path.resolve().name
    lenient = skip_bad or is_folder and reading.lenient
    for file in walk(path, reading, lenient, left_out) if is_folder else [path]:
        name = f"{folder}/{file.relative_to(path).as_posix()}" if is_folder else path.name
        try:
            is_empty = is_folder and os.path.isfile(file) and not os.path.getsize(file)
            parts = [Part(str(file), name, 0, 0)] if is_empty else parts_of(file, name, reading, lenient, left_out)
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


@lru_cache(maxsize=1)  # called for every piece of a document
def printable(name: str) -> str:
    """A file name as valid text: what is not UTF-8 is decoded as GB18030, or else gets U+FFFD."""
    return "/".join(decoded(os.fsencode(part)) for part in name.split("/"))


def decoded(name: bytes) -> str:
    for encoding in ("utf-8", "gb18030"):
        with suppress(UnicodeDecodeError):
            return name.decode(encoding)
    return name.decode("utf-8", "replace")


def split_of(name: str) -> str | None:
    """The split a file name tells: "wiki.valid.raw" -> "val"; None if it tells none."""
    match = SPLIT_NAMES.search(name.lower().rsplit("/", 1)[-1])
    return match and ("train" if match[1] else "val" if match[2] else "test")


def first_few(names: Collection[str], n: int = 0) -> str:
    """The first few names, and how many more there are; n: the total, if not all are in `names`."""
    n = max(n, len(names))
    return ", ".join(islice(names, SHOWN_NAMES)) + f" and {n - SHOWN_NAMES:,} more" * (n > SHOWN_NAMES)


def described(left_out: Counter) -> list[str]:
    """A line for each reason why something was left out: how many, of which types, and the first few names."""
    lines = []
    for reason in dict.fromkeys(reason for reason, _ in left_out):
        names = {printable(name): n for (why, name), n in left_out.items() if why == reason}
        types = Counter()
        for name, n in names.items():
            types["".join(kind_of(name)) or "without suffix"] += n
        shown = ", ".join(f"{n:,} {suffix}" for suffix, n in types.most_common(SHOWN_NAMES))
        counted = [name if n == 1 else f"{name} ({n:,})" for name, n in names.items()]
        of_types = f" ({shown})" * (reason == OTHER_TYPE)
        lines.append(f"left out {sum(names.values()):,} {reason}{of_types}: {first_few(counted)}")
    return lines


def show_encodings(args: argparse.Namespace, parts: list[Part]) -> None:
    if args.encoding == "auto":
        files = {(part.path, part.member): part for part in parts}.values()
        for part in files:
            if part.encoding != "utf-8":
                print(f"encoding {part.name}: {part.encoding if part.encoding != 'auto' else 'of each file in it'}")
        print(f"encoding utf-8: {sum(part.encoding == 'utf-8' for part in files):,} of {len(files):,} files")


def download_inputs(args: argparse.Namespace, files: dict[str, tuple[Sequence[str], str | None]]) -> bool:
    """Without --input, make it the script's own files, {name: (addresses, sha256)}, downloaded beside the script.

    Returns False if some are missing in a dry run, which downloads nothing.
    """
    if args.input:
        return True
    for name, (urls, sha256) in files.items():
        path = args.folder / name
        if args.dry_run and not path.exists():
            print(f"dry run: would download {urls[0]} to {path}")
            continue
        if not path.exists():
            if path.suffix == ".parquet":
                import_pyarrow()  # fail now rather than after gigabytes
            download_file(urls, sha256, path)
        args.input = [*args.input, path]
    return len(args.input) == len(files)


def origin(args: argparse.Namespace, parts: Sequence[Part], where: str = "") -> dict:
    """The "source" of meta.json. The sha256 is the file's; of several, that of their concatenated hex digests."""
    files, digest = dict.fromkeys(part.path for part in parts), hashlib.sha256()
    with read_errors("the text"):
        n_bytes = sum(map(os.path.getsize, files))
        with byte_bar("hashing", n_bytes) as bar:
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
        "special": args.special,
        **fim_settings(fim_of(args)),
    }


# ---- units -------------------------------------------------------------------------------------------------


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
    buffer, begun, taken = "", not part.first, True
    if report:
        report.begin(part.path, part.name)
    for document, text, ends in in_slices(documents(part, reading, left_out)):
        document = printable(document)  # it may be a member of a compressed archive
        start = max(PIECE, len(buffer))  # there is no cut before it
        text = cleaner.feed(text, ends) if part.rules else text
        buffer += only_known(text, reading.known, left_out)
        while len(buffer) > PIECE and (at := cut_in(buffer, start)):
            taken = taken if begun else is_taken(buffer, part, reading)
            if taken:
                yield Piece(document, buffer[:at], False, part.split, not begun)
            buffer, begun, start = buffer[at:], True, PIECE
        if ends:
            taken = taken if begun else bool(buffer) and is_taken(buffer, part, reading)
            if taken:
                yield Piece(document, buffer, True, part.split, not begun)
            buffer, begun, taken = "", False, True
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
