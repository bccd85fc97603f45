"""TinyStories V2 (stories by GPT-4), or any stories, with Llama 2's tokens or a BPE of their own: data/tinystories/.

    python data/tinystories/prepare.py                         # downloads 2.2 GB beside this file, and Llama 2's tokens
    python data/tinystories/prepare.py --fraction=0.1          # of the training stories
    python data/tinystories/prepare.py --tokenizer=llama2 --tokenizer_file=tokenizer.json \
        --input TinyStoriesV2-GPT4-train.txt --val_input TinyStoriesV2-GPT4-valid.txt    # needs no network
    python data/tinystories/prepare.py --input stories/ --tokenizer=bpe --vocab_size=4096

In a .txt, <|endoftext|> stands between stories (or what --separator says); .parquet and .jsonl have one in each
row. Where --input has files named train and valid, those are the splits. The files are of the Hugging Face data set
roneneldan/TinyStories; HF_ENDPOINT names a mirror.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from configurator import exit_on_error
from data.build import build
from data.download import hub_urls
from data.source import (
    downloaded,
    find_parts,
    make_units,
    open_fraction,
    origin,
    prepare_parser,
    reading_of,
    tokenizer_of,
)

DATASET = "roneneldan/TinyStories"
FILES = ("TinyStoriesV2-GPT4-train.txt", "TinyStoriesV2-GPT4-valid.txt")


def share(text: str) -> float:
    return 1.0 if float(text) == 1 else open_fraction(text)


def main(argv: list[str]) -> None:
    parser = prepare_parser(
        __doc__, HERE, tokenizer="llama2", vocab_size=32000, separator="<|endoftext|>", val_fraction=0.01
    )
    parser.add_argument("--fraction", type=share, default=1.0, help="of the training stories (default: 1, all)")
    args = parser.parse_args(argv)
    if not args.input:
        args.input = [path for name in FILES for path in downloaded(args, name, hub_urls(DATASET, name))]
        if len(args.input) < len(FILES):
            return
    reading = reading_of(args, named_splits=True, fraction=args.fraction)
    parts = find_parts(args, reading)
    build(
        args,
        make_units(args, parts, reading),
        tokenizer_of(args),
        origin(args, parts),
        "config/train_tinystories_llama.py",
    )


if __name__ == "__main__":
    exit_on_error(main)
