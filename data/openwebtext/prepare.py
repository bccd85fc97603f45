"""OpenWebText in GPT-2's tokens, about 9 billion of them: data/openwebtext/{train.bin,val.bin,meta.json}.

    python data/openwebtext/prepare.py                         # downloads 24 GB of .parquet beside this file
    python data/openwebtext/prepare.py --shards=1              # the first of 80 files: 110 million tokens
    python data/openwebtext/prepare.py --input FOLDER --tokenizer_file=DIR        # needs no network

FOLDER holds the .parquet files of the Hugging Face dataset Skylion007/openwebtext (HF_ENDPOINT names a mirror), or the
original archives: urlsf_subset00.tar and so on, or the urlsf_subset*_data.xz inside them. openwebtext.tar.xz works too,
but on one core only: unpack it first. DIR holds GPT-2's encoder.json or vocab.bpe.

Every page is a document; 0.05 % of them are validation, by a hash of the text. The result takes 18 GB. If it is killed,
the same command resumes.
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

SHARDS = 80
shards = number(int, lambda n: 1 <= n <= SHARDS, f"a whole number from 1 to {SHARDS}")


def main(argv: list[str]) -> None:
    parser = prepare_parser(__doc__, HERE, tokenizer="gpt2", val_fraction=0.0005)
    parser.add_argument("--shards", type=shards, default=SHARDS, help=f"files to download (default: {SHARDS}, all)")
    args = parser.parse_args(argv)
    names = [f"train-{i:05}-of-{SHARDS:05}.parquet" for i in range(args.shards)]
    urls = {name: (hub_urls("Skylion007/openwebtext", f"plain_text/{name}"), None) for name in names}
    if download_inputs(args, urls):
        prepare_documents(args, "config/train_gpt2.py")


if __name__ == "__main__":
    exit_on_error(main)
