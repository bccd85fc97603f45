"""WikiText-2 or -103, raw, in GPT-2's tokens: data/wikitext/ or data/wikitext103/.

    python data/wikitext/prepare.py                            # downloads 7 MB beside this file
    python data/wikitext/prepare.py --size=103                 # 314 MB
    python data/wikitext/prepare.py --input wikitext-2-raw-v1.zip --tokenizer_file=DIR      # needs no network
    python data/wikitext/prepare.py --input wiki.train.raw wiki.valid.raw --tokenizer_file=DIR

The splits follow the file names (.zip, .raw, .tokens, .txt, .parquet); test is left out, but a download also writes it
to wiki.test.raw in the dataset's folder, for eval.py --input. Each split is one running text without end-of-text ids,
the convention of published perplexities. The files come from the Hugging Face dataset Salesforce/wikitext (HF_ENDPOINT
names a mirror), whose rows are lines. DIR holds GPT-2's encoder.json or vocab.bpe.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from configurator import exit_on_error
from data.build import prepare_documents
from data.download import hub_urls
from data.formats import TEXT_SUFFIXES, import_pyarrow
from data.options import prepare_parser
from data.source import download_inputs

TRAIN_FILES = {"2": 1, "103": 2}


def main(argv: list[str]) -> None:
    parser = prepare_parser(__doc__, HERE, tokenizer="gpt2", eot=False, out_dir=None)
    parser.add_argument("--size", choices=TRAIN_FILES, default="2", help="which one to download (default: 2)")
    args = parser.parse_args(argv)
    args.out_dir = args.out_dir or HERE.with_name("wikitext" if args.size == "2" else "wikitext103")
    n, folder = TRAIN_FILES[args.size], f"wikitext-{args.size}-raw-v1"
    names = [f"train-{i:05}-of-{n:05}.parquet" for i in range(n)]
    names += [f"{split}-00000-of-00001.parquet" for split in ("validation", "test")]
    urls = {f"{folder}-{name}": (hub_urls("Salesforce/wikitext", f"{folder}/{name}"), None) for name in names}
    is_own = not args.input
    if download_inputs(args, urls):
        suffixes = (*TEXT_SUFFIXES, ".raw", ".tokens")
        prepare_documents(args, "config/train_gpt2.py", suffixes=suffixes, named_splits=True, joined=True)
        if is_own and not args.dry_run:
            write_test_text(args.input[-1], args.out_dir / "wiki.test.raw")


def write_test_text(rows: Path, text: Path) -> None:
    """The rows of a .parquet file as the text that they were made of, where an empty one was a line with a space."""
    lines = import_pyarrow().parquet.read_table(rows, columns=["text"])["text"].to_pylist()
    text.write_text("".join(line or " \n" for line in lines), encoding="utf-8", newline="\n")
    print(f"{text}: for eval.py --input")


if __name__ == "__main__":
    exit_on_error(main)
