"""Any books: files, folders and archives of text, .epub or rows, compressed or not, in any tokens: data/text/.

    python data/text/prepare.py --input books/ --encoding=auto --clean --dry_run   # shows what would be done
    python data/text/prepare.py --input books/ --encoding=auto --clean
    python data/text/prepare.py --input novels.zip more.jsonl.gz --tokenizer=char --out_dir=data/novels
    python data/text/prepare.py --input books/ --tokenizer=gpt2 --tokenizer_file=DIR

Rows are those of .jsonl, .json, .csv, .tsv and .parquet; --field names the one with the text. The report says what was
left out of folders and archives, and why. Every file, row or archive member is a document; a hash of its text decides
whether it is train or val. A single book is cut by position: its end is val. Nothing is downloaded except published
tokenizers.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from configurator import exit_on_error
from data.build import config_for, prepare_dataset
from data.options import prepare_parser, reading_of
from data.source import find_parts
from data.units import by_position, is_one_text, make_units


def main(argv: list[str]) -> None:
    args = prepare_parser(__doc__, HERE, tokenizer="bpe").parse_args(argv)
    if not args.input:
        raise ValueError("nothing to read: name files, folders or archives of text with --input")
    reading = reading_of(args)
    parts = find_parts(args, reading)
    split = by_position if is_one_text(parts, reading) else make_units
    config = config_for(args, "config/train_classics_bpe.py", "config/train_book_char.py")
    prepare_dataset(args, parts, split(args, parts, reading), config)


if __name__ == "__main__":
    exit_on_error(main)
