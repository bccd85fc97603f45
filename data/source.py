"""Where text comes from, in which order and splits: the first half of every prepare.py.

    python data/<name>/prepare.py --input novel.txt books/ more.jsonl.gz --encoding=auto --clean --dry_run

    args = prepare_parser(__doc__, HERE, tokenizer="bpe").parse_args(argv)
    reading = reading_of(args)                       # data/options.py: the encoding, the cleaning rules, ...
    parts = find_parts(args, reading)                # files, byte ranges, archive members: data/formats.py
    units = make_units(args, parts, reading)         # data/units.py: what a worker reads at a time
    prepare_dataset(args, parts, units, "config/x.py")  # data/build.py

Without --normalize or --clean, text is kept as it is, newlines, byte-order marks and full-width spaces included; only a
known file (see find_parts) is normalized unasked, and reported.
"""

import argparse
import codecs
import hashlib
import os
import re
from collections import Counter, deque
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import lru_cache
from itertools import islice
from pathlib import Path

from data.clean import NORMALIZE, parse_rules
from data.download import download_file, hash_file
from data.fim import fim_of, fim_settings
from data.formats import (
    EMPTY,
    OTHER_TYPE,
    Part,
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

SHOWN_NAMES = 8  # names listed in a message before "and n more"
SPLIT_NAMES = re.compile(r"(?:^|[^a-z])(?:(train)|(valid|validation|val|dev)|(test))(?:[^a-z]|$)")


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
