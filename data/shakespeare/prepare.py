"""Tiny Shakespeare, or any text, in GPT-2's tokens: data/shakespeare/{train.bin,val.bin,meta.json}.

    python data/shakespeare/prepare.py                                          # downloads 1.1 MB to input.txt, once
    python data/shakespeare/prepare.py --input FILE... --tokenizer_file=DIR     # needs no network

DIR holds GPT-2's encoder.json or vocab.bpe; without --tokenizer_file, TIKTOKEN_CACHE_DIR and data/gpt2/ are searched,
and then it is downloaded. Tiny Shakespeare gives 301,966 training tokens and 36,059 validation tokens.
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
    args = prepare_parser(__doc__, HERE, tokenizer="gpt2", eot=False).parse_args(argv)  # one running text
    config = config_for(args, "config/train_shakespeare.py", "config/train_shakespeare_char.py")
    prepare_text(args, *TINY_SHAKESPEARE, config)


if __name__ == "__main__":
    exit_on_error(main)
