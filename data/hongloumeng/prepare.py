"""Hongloumeng (Dream of the Red Chamber), or any novel: data/hongloumeng/{train.bin,val.bin,meta.json}.

    python data/hongloumeng/prepare.py                            # downloads 2.6 MB to input.txt, once
    python data/hongloumeng/prepare.py --input FILE...            # your own text; needs no network
    python data/hongloumeng/prepare.py --tokenizer=bpe --vocab_size=8192
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from configurator import exit_on_error
from data.dataset import prepare_dataset
from data.source import arguments, github_urls, origin, read_input, split_by_characters
from data.tokenizer import BPETokenizer, ByteTokenizer, CharTokenizer

URLS = github_urls("ybdesire/baby_gpt_hongloumeng", "5e62a99d2639c366e0376731e9e2d4938f7adc24",
                   "data/hongloumeng_char_local/input.txt")
SHA256 = "a9b2f3096c4dc1b1c83bdf185dcf121a03b9b68e8c1979c6744dff856879d01d"


def main(argv: list[str]) -> None:
    parser = arguments(__doc__, HERE)
    parser.add_argument("--tokenizer", choices=["char", "byte", "bpe"], default="char", help="default: char")
    parser.add_argument("--vocab_size", type=int, default=8192, help="of the bpe tokenizer (default: 8192)")
    args = parser.parse_args(argv)
    documents = read_input(args, URLS, SHA256)
    if not documents:
        return
    texts = [document.text for document in documents]
    parts = list(split_by_characters(texts, args.val_fraction))
    if args.tokenizer == "char":
        tokenizer = CharTokenizer.train(texts)
    elif args.tokenizer == "byte":
        tokenizer = ByteTokenizer()
    else:
        tokenizer = BPETokenizer.train((text for split, text in parts if split == "train"), args.vocab_size)
    prepare_dataset(args, tokenizer, parts, origin(args, documents), "config/train_hongloumeng_char.py")


if __name__ == "__main__":
    exit_on_error(main)
