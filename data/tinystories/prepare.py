"""TinyStories V2 (stories by GPT-4), or any stories, in Llama 2's tokens or with a BPE of their own: data/tinystories/.

    python data/tinystories/prepare.py                         # downloads 2.2 GB beside this file, and Llama 2's tokens
    python data/tinystories/prepare.py --fraction=0.1          # a tenth of the training stories
    python data/tinystories/prepare.py --tokenizer=llama2 --tokenizer_file=tokenizer.json \
        --input TinyStoriesV2-GPT4-train.txt --val_input TinyStoriesV2-GPT4-valid.txt    # needs no network
    python data/tinystories/prepare.py --input stories/ --tokenizer=bpe --vocab_size=4096

In a .txt, stories are separated by <|endoftext|> (or --separator); .parquet and .jsonl have one per row. Files in
--input named train and valid are those splits. The files come from the Hugging Face dataset roneneldan/TinyStories;
HF_ENDPOINT names a mirror.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from configurator import exit_on_error
from data.build import prepare_documents
from data.download import hub_urls
from data.options import number, prepare_parser
from data.source import download_inputs

STORIES = ("TinyStoriesV2-GPT4-train.txt", "TinyStoriesV2-GPT4-valid.txt")
share = number(float, lambda x: 0 < x <= 1, "above 0 and at most 1")


def main(argv: list[str]) -> None:
    defaults = {"tokenizer": "llama2", "separator": "<|endoftext|>", "val_fraction": 0.01}
    parser = prepare_parser(__doc__, HERE, vocab_size=32000, **defaults)
    parser.add_argument("--fraction", type=share, default=1.0, help="share of the training stories (default: 1, all)")
    args = parser.parse_args(argv)
    if download_inputs(args, {name: (hub_urls("roneneldan/TinyStories", name), None) for name in STORIES}):
        config = "config/train_tinystories_llama.py"
        prepare_documents(args, config, named_splits=True, fraction=args.fraction)


if __name__ == "__main__":
    exit_on_error(main)
