"""Hongloumeng (Dream of the Red Chamber), or any novel, in the tokens of your choice.

    python data/hongloumeng/prepare.py                  # characters; downloads 2.6 MB to input.txt, once
    python data/hongloumeng/prepare.py --input FILE...  # your own text; needs no network
    python data/hongloumeng/prepare.py --tokenizer=bpe --vocab_size=4096
    python data/hongloumeng/prepare.py --tokenizer=qwen2 --tokenizer_file=tokenizer.json
    python data/hongloumeng/prepare.py --tokenizer=qwen2 --tokenizer_file=tokenizer.json --trim

They go to data/hongloumeng, data/hongloumeng_bpe, data/hongloumeng_qwen2 and data/hongloumeng_qwen2_trimmed, if
there is no --out_dir. The tokenizer.json of Qwen2 is a file of the Hugging Face repository Qwen/Qwen2-0.5B, and
is fetched from there (or from HF_ENDPOINT) without --tokenizer_file. It has 151,646 ids, of which --trim leaves
9,332 (those that the training text uses, and the single bytes), so that a small model does not spend its parameters
on the others.
"""

import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from configurator import exit_on_error
from data.build import build
from data.download import github_urls
from data.source import by_position, downloaded, find_parts, origin, prepare_parser, reading_of, tokenizer_of

URLS = github_urls(
    "ybdesire/baby_gpt_hongloumeng", "5e62a99d2639c366e0376731e9e2d4938f7adc24", "data/hongloumeng_char_local/input.txt"
)
SHA256 = "a9b2f3096c4dc1b1c83bdf185dcf121a03b9b68e8c1979c6744dff856879d01d"


def main(argv: list[str]) -> None:
    parser = prepare_parser(__doc__, HERE, tokenizer="char", vocab_size=8192, eot=False, out_dir=None)
    args = parser.parse_args(argv)
    name = re.sub(r"\W+", "_", args.tokenizer.rpartition("/")[2].removesuffix(".json"))
    if args.out_dir is None:
        suffix = ("" if name == "char" else f"_{name}") + "_trimmed" * args.trim
        args.out_dir = HERE.with_name(HERE.name + suffix)
    args.input = args.input or downloaded(args, "input.txt", URLS, SHA256)
    if not args.input:
        return
    reading = reading_of(args)
    parts = find_parts(args, reading, SHA256)
    texts = by_position(args, parts, reading)
    config = name if name in ("bpe", "qwen2") else "char"
    build(args, texts, tokenizer_of(args), origin(args, parts), f"config/train_hongloumeng_{config}.py")


if __name__ == "__main__":
    exit_on_error(main)
