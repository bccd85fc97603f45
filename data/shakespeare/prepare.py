"""Tiny Shakespeare, or any text, in GPT-2's tokens, to fine-tune GPT-2 on: data/shakespeare/.

    python data/shakespeare/prepare.py                                   # downloads 1.1 MB to input.txt, once
    python data/shakespeare/prepare.py --input FILE... --gpt2_dir DIR    # needs no network

DIR holds GPT-2's encoder.json (or vocab.json); without --gpt2_dir it is looked for in TIKTOKEN_CACHE_DIR and
data/gpt2/, and then downloaded.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from configurator import exit_on_error
from data.dataset import prepare_dataset
from data.shakespeare_char.prepare import SHA256, URLS
from data.source import arguments, origin, read_input, split_by_characters
from data.tokenizer import TiktokenTokenizer


def main(argv: list[str]) -> None:
    parser = arguments(__doc__, HERE)
    parser.add_argument("--gpt2_dir", type=Path, help="folder with GPT-2's encoder.json")
    args = parser.parse_args(argv)
    tokenizer = TiktokenTokenizer("gpt2", args.gpt2_dir)
    documents = read_input(args, URLS, SHA256)
    if not documents:
        return
    parts = split_by_characters([document.text for document in documents], args.val_fraction)
    prepare_dataset(args, tokenizer, parts, origin(args, documents), "config/finetune_shakespeare.py")


if __name__ == "__main__":
    exit_on_error(main)
