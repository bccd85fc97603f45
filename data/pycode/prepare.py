"""Python source code: by default this Python's own standard library, which needs no download.

    python data/pycode/prepare.py                                 # about 10 MB of source, without its tests
    python data/pycode/prepare.py --max_bytes=2000000             # less of it, for a quick start
    python data/pycode/prepare.py --input FOLDER_OR_FILE...       # your own code, tests included

The hash of a file's contents decides whether it goes, whole, to train or to val, and in what order files are
taken until --max_bytes is reached: names, folders and the machine make no difference. Copies go in once.
"""

import platform
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from configurator import exit_on_error
from data.dataset import prepare_dataset
from data.source import Document, arguments, origin, read_python
from data.tokenizer import BPETokenizer, ByteTokenizer

# Parts of the library that teach nobody to write Python: tests (60 % of it, repetitive or broken on purpose), and
# generated tables and help texts
LEFT_OUT = {"test", "tests", "idle_test", "encodings", "pydoc_data"}


def choose(documents: Iterable[Document], max_bytes: int) -> list[Document]:
    """Each content once, in the order of the hashes, as many as fit into max_bytes (0: all)."""
    chosen, total = [], 0
    for _, document in sorted({document.sha256: document for document in documents}.items()):
        if not max_bytes or total + document.size <= max_bytes:
            chosen.append(document)
            total += document.size
    return chosen


def split_by_hash(documents: list[Document], val_fraction: float) -> list[tuple[str, str]]:
    """(split, text) per document, by the last 32 bits of its hash; the lowest is val in any case."""
    ranks = [int(document.sha256[-8:], 16) / 2**32 for document in documents]
    limit = max(val_fraction, min(ranks))
    return [("val" if rank <= limit else "train", document.text)
            for rank, document in zip(ranks, documents, strict=True)]


def main(argv: list[str]) -> None:
    parser = arguments(__doc__, HERE)
    parser.add_argument("--tokenizer", choices=["bpe", "byte"], default="bpe", help="default: bpe")
    parser.add_argument("--vocab_size", type=int, default=4096, help="of the bpe tokenizer (default: 4096)")
    parser.add_argument("--max_bytes", type=int, default=0, help="at most so much of it (default: 0, all)")
    args = parser.parse_args(argv)
    inputs, skip, where = args.input, set(), ""
    if not inputs:
        inputs, skip = [Path(sysconfig.get_paths()["stdlib"])], LEFT_OUT
        where = f"the standard library of Python {platform.python_version()}"
    documents = choose(read_python(args, inputs, skip), args.max_bytes)
    if len(documents) < 2:
        raise ValueError(f"{len(documents)} .py files in {', '.join(map(str, inputs))}, need at least 2, as "
                         "each goes to train or val whole; pass more with --input, or raise --max_bytes")
    parts = split_by_hash(documents, args.val_fraction)
    if args.tokenizer == "byte":
        tokenizer = ByteTokenizer(eot=0xFF)
    else:
        tokenizer = BPETokenizer.train((text for split, text in parts if split == "train"), args.vocab_size)
    prepare_dataset(args, tokenizer, parts, origin(args, documents, where), "config/quickstart.py")


if __name__ == "__main__":
    exit_on_error(main)
