"""Python source code; by default the standard library of this Python, already on disk: data/pycode/.

    python data/pycode/prepare.py                                 # about 10 MB of source, without its tests
    python data/pycode/prepare.py --max_bytes=2000000             # less of it, for a quick start
    python data/pycode/prepare.py --installed --vocab_size=50000  # and every installed package
    python data/pycode/prepare.py --input FOLDER_OR_ZIP...        # your own code, tests included
    python data/pycode/prepare.py --fim_rate=0.5                  # for a model that also reads what follows the cursor
    python data/pycode/prepare.py --tokenizer=byte                # bytes, with 0xFF between files

Each file is a document: the hash of its text decides whether it goes, whole, to train or to val, and the hash of its
bytes whether it is within --max_bytes. Duplicates are dropped.
"""

import argparse
import platform
import sys
import sysconfig
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from configurator import exit_on_error
from data.build import config_for, prepare_dataset
from data.formats import Part, hash_part
from data.options import prepare_parser, reading_of
from data.source import find_parts, read_errors
from data.units import make_units

# What a library contains besides exemplary Python: tests (60 % of the standard library; repetitive, or broken on
# purpose), and generated tables and help texts
LEFT_OUT = ("test", "tests", "idle_test", "encodings", "pydoc_data")


def choose(parts: list[Part], max_bytes: int) -> list[Part]:
    """As many as fit into max_bytes (0: all), without duplicates, in the order of their hashes."""
    if not max_bytes:
        return parts
    with read_errors("the source"):
        by_hash = {hash_part(part): part for part in reversed(parts)}
    total, chosen = 0, set()
    for _, part in sorted(by_hash.items()):
        if total + part.size <= max_bytes:
            chosen.add(part)
            total += part.size
    if len(chosen) < 2 <= len(by_hash):
        raise ValueError(
            f"--max_bytes={max_bytes:,} leaves {len(chosen)} of {len(by_hash):,} files, need at least 2; raise it"
        )
    return [part for part in parts if part in chosen]


def own_code(args: argparse.Namespace) -> str:
    """Set args.input to the standard library, with --installed also to all packages, and return a description."""
    paths = sysconfig.get_paths()
    args.input = [Path(paths["stdlib"])]
    if args.installed:
        args.input += dict.fromkeys(Path(paths[key]) for key in ("purelib", "platlib"))
    return f"the standard library of Python {platform.python_version()}" + " and what is installed" * args.installed


def main(argv: list[str]) -> None:
    parser = prepare_parser(__doc__, HERE, tokenizer="bpe_code", vocab_size=32768)
    parser.add_argument("--installed", action="store_true", help="also read all installed packages")
    parser.add_argument("--max_bytes", type=int, default=0, help="read at most this much (default: 0, all)")
    args = parser.parse_args(argv)
    skip = () if args.input else LEFT_OUT
    where = "" if args.input else own_code(args)
    reading = reading_of(args, suffixes=(".py", ".zip", ".tar"), skip=skip, lenient=True)
    # _sysconfigdata: settings of the machine that built this Python
    parts = [part for part in find_parts(args, reading) if "/_sysconfigdata" not in part.name]
    parts = choose(parts, args.max_bytes)
    config = config_for(args, "config/train_pycode.py", "config/train_cppcode_bytes.py")
    prepare_dataset(args, parts, make_units(args, parts, reading), config, where)


if __name__ == "__main__":
    exit_on_error(main)
