"""Tiny Shakespeare, or any text, in GPT-2's tokens: data/shakespeare/{train.bin,val.bin,meta.json}.

    python data/shakespeare/prepare.py                                          # downloads 1.1 MB to input.txt, once
    python data/shakespeare/prepare.py --input FILE... --tokenizer_file=DIR     # needs no network

DIR holds GPT-2's encoder.json or vocab.bpe; without --tokenizer_file it is looked for in TIKTOKEN_CACHE_DIR and
data/gpt2/, and then downloaded. Tiny Shakespeare gives 301,966 tokens for training and 36,059 for validation.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from configurator import exit_on_error
from data.build import build
from data.shakespeare_char.prepare import SHA256, URLS
from data.source import by_position, downloaded, find_parts, origin, prepare_parser, reading_of, tokenizer_of


def main(argv: list[str]) -> None:
    parser = prepare_parser(__doc__, HERE, tokenizer="gpt2", eot=False)  # one running text
    parser.add_argument("--gpt2_dir", type=Path, dest="tokenizer_file", help="an older name of --tokenizer_file")
    args = parser.parse_args(argv)
    args.input = args.input or downloaded(args, "input.txt", URLS, SHA256)
    if not args.input:
        return
    reading = reading_of(args)
    parts = find_parts(args, reading, SHA256)
    texts = by_position(args, parts, reading)
    build(args, texts, tokenizer_of(args), origin(args, parts), "config/train_shakespeare.py")


if __name__ == "__main__":
    exit_on_error(main)
