"""Hongloumeng (Dream of the Red Chamber), or any novel, in the tokens of your choice.

    python data/hongloumeng/prepare.py                  # characters; downloads 2.6 MB to input.txt, once
    python data/hongloumeng/prepare.py --input FILE...  # your own text; needs no network
    python data/hongloumeng/prepare.py --tokenizer=bpe --vocab_size=4096
    python data/hongloumeng/prepare.py --tokenizer=qwen2 --tokenizer_file=tokenizer.json
    python data/hongloumeng/prepare.py --tokenizer=qwen2 --tokenizer_file=tokenizer.json --trim

Without --out_dir, these write to data/hongloumeng, data/hongloumeng_bpe, data/hongloumeng_qwen2 and
data/hongloumeng_qwen2_trimmed. Qwen2's tokenizer.json is part of the Hugging Face repository Qwen/Qwen2-0.5B, and is
downloaded from there (or from HF_ENDPOINT) without --tokenizer_file. Of its 151,646 ids, --trim keeps 9,332: those in
the training text, and all single bytes, so that a small model does not spend its parameters on the others.
"""

import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from configurator import exit_on_error
from data.build import config_for, prepare_text
from data.download import HONGLOUMENG
from data.options import prepare_parser


def main(argv: list[str]) -> None:
    args = prepare_parser(__doc__, HERE, tokenizer="char", eot=False, out_dir=None).parse_args(argv)
    name = re.sub(r"\W+", "_", Path(args.tokenizer).name.removesuffix(".json"))
    if args.out_dir is None:
        suffix = ("" if name == "char" else f"_{name}") + "_trimmed" * args.trim
        args.out_dir = HERE.with_name(HERE.name + suffix)
    of_words = "qwen2" if name == "qwen2" else "bpe"
    config = config_for(args, f"config/train_hongloumeng_{of_words}.py", "config/train_hongloumeng_char.py")
    prepare_text(args, *HONGLOUMENG, config)


if __name__ == "__main__":
    exit_on_error(main)
