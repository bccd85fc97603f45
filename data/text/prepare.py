"""Any books: files, folders and archives of .txt, .md, .jsonl, .parquet, packed or not, in any tokens: data/text/.

    python data/text/prepare.py --input books/ --encoding=auto --clean --dry_run   # see what would be done
    python data/text/prepare.py --input books/ --encoding=auto --clean
    python data/text/prepare.py --input novels.zip more.jsonl.gz --tokenizer=char --out_dir=data/novels
    python data/text/prepare.py --input books/ --tokenizer=gpt2 --tokenizer_file=DIR

Every file, row or member of an archive is a document; a hash of its text decides whether it is train or val. A
single book is cut by position: its end is val. Nothing is downloaded, but for a tokenizer that is published.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from configurator import exit_on_error
from data.build import build
from data.source import (
    by_position,
    find_parts,
    is_one_text,
    make_units,
    origin,
    prepare_parser,
    reading_of,
    tokenizer_of,
)


def main(argv: list[str]) -> None:
    args = prepare_parser(__doc__, HERE, tokenizer="bpe", vocab_size=8192).parse_args(argv)
    if not args.input:
        raise ValueError("nothing to read: name files, folders or archives of text with --input")
    reading = reading_of(args)
    parts = find_parts(args, reading)
    if is_one_text(parts, reading):
        texts = by_position(args, parts, reading)
    else:
        texts = make_units(args, parts, reading)
    build(args, texts, tokenizer_of(args), origin(args, parts), "config/train_classics_bpe.py")


if __name__ == "__main__":
    exit_on_error(main)
