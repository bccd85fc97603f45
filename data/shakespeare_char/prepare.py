"""Tiny Shakespeare, or any text, as single characters: data/shakespeare_char/{train.bin,val.bin,meta.json}.

python data/shakespeare_char/prepare.py                       # downloads 1.1 MB to input.txt, once
python data/shakespeare_char/prepare.py --input FILE...       # your own text; needs no network
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from configurator import exit_on_error
from data.build import prepare_text
from data.download import github_urls
from data.source import prepare_parser

URLS = github_urls("karpathy/char-rnn", "6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e", "data/tinyshakespeare/input.txt")
SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"


def main(argv: list[str]) -> None:
    args = prepare_parser(__doc__, HERE, tokenizer="char", eot=False).parse_args(argv)  # one running text
    prepare_text(args, URLS, SHA256, "config/train_shakespeare_char.py")


if __name__ == "__main__":
    exit_on_error(main)
