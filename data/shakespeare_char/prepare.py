"""Tiny Shakespeare, or any text, as single characters: data/shakespeare_char/{train.bin,val.bin,meta.json}.

    python data/shakespeare_char/prepare.py                       # downloads 1.1 MB to input.txt, once
    python data/shakespeare_char/prepare.py --input FILE...       # your own text; needs no network

One running text, whose last tenth is the validation split.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from configurator import exit_on_error
from data.build import config_for, prepare_text
from data.download import TINY_SHAKESPEARE
from data.options import prepare_parser


def main(argv: list[str]) -> None:
    args = prepare_parser(__doc__, HERE, tokenizer="char", eot=False).parse_args(argv)  # one running text
    config = config_for(args, "config/train_shakespeare.py", "config/train_shakespeare_char.py")
    prepare_text(args, *TINY_SHAKESPEARE, config)


if __name__ == "__main__":
    exit_on_error(main)
