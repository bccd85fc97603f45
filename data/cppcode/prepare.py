"""C and C++ source as bytes, for code completion; by default PyTorch's own headers, already on disk: data/cppcode/.

    python data/cppcode/prepare.py                            # 38 MB of headers that come with PyTorch
    python data/cppcode/prepare.py --input FOLDER REPO.zip... # folders, and archives as GitHub offers them
    python data/cppcode/prepare.py --input FOLDER --clean --dry_run     # shows the floods of lines that --clean removes
    python data/cppcode/prepare.py --fim_rate=0.5             # for a model that also reads what follows the cursor
    python data/cppcode/prepare.py --tokenizer=bpe --vocab_size=32768 --out_dir=data/cppcode_bpe

Each file is a document, ended by the byte 0xFF, which occurs in no UTF-8 text; the hash of its text decides whether it
goes, whole, to train or to val. Duplicates are dropped. config/train_cppcode_bytes.py samples windows that start after
a newline (sampling = "line"). --clean keeps the first 32 of #define lines in a row, such as a device's registers, and
of lines of numbers, such as generated tables: they teach a model little, and fill its suggestions. GitHub's archive of
a repository is at
https://github.com/OWNER/NAME/archive/refs/heads/main.zip
"""

import importlib.util
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from configurator import exit_on_error
from data.build import config_for, prepare_documents
from data.options import prepare_parser

SUFFIXES = (".c", ".cc", ".cpp", ".cxx", ".cu", ".cuh", ".h", ".hh", ".hpp", ".hxx", ".inl", ".ipp", ".zip", ".tar")


def main(argv: list[str]) -> None:
    args = prepare_parser(__doc__, HERE, tokenizer="byte", clean="code").parse_args(argv)
    where = ""
    if not args.input:
        torch = Path(importlib.util.find_spec("torch").origin).parent
        args.input, where = [torch / "include"], "the headers of PyTorch"
    config = config_for(args, "config/train_pycode.py", "config/train_cppcode_bytes.py")
    prepare_documents(args, config, where, suffixes=SUFFIXES, lenient=True)


if __name__ == "__main__":
    exit_on_error(main)
