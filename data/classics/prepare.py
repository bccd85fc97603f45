"""The four classic novels 红楼梦 三国演义 水浒传 西游记, or any novels, each a document, with one BPE: data/classics/.

    python data/classics/prepare.py --clean                       # downloads 9 MB beside this file, once
    python data/classics/prepare.py --clean --dry_run             # ... and only shows what --clean removes
    python data/classics/prepare.py --clean --input FILE...       # your own; needs no network

The first 90 % of each novel are train, the rest is validation. The files are as found on the web, with
advertisements and dates of upload, hence --clean.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from configurator import exit_on_error
from data.build import build
from data.download import github_urls
from data.hongloumeng import prepare as hongloumeng
from data.source import by_position, downloaded, find_parts, origin, prepare_parser, reading_of, tokenizer_of

REPOSITORY = "hexhero/book-txt", "b46b8dda733b74f0173757d37a513099c9690173"
NOVELS = {
    "红楼梦.txt": (hongloumeng.URLS, hongloumeng.SHA256),
    "三国演义.txt": (
        github_urls(*REPOSITORY, "三国演义.txt"),
        "b434d3c6eb307a3f91f7fc770728a650829f4eb2cdbe21e3064f883c18fb4026",
    ),
    "水浒传.txt": (
        github_urls(*REPOSITORY, "水浒传.txt"),
        "5747ee7d3e4bc98de646aea5d2454cd7d7ca4b81d8fe8417b934c48a78d7039b",
    ),
    "西游记.txt": (
        github_urls(*REPOSITORY, "西游记.txt"),
        "acd8762011876f79740f86ab1da855aab40e9690bf2ccbf14e456ddc91352b67",
    ),
}


def main(argv: list[str]) -> None:
    args = prepare_parser(__doc__, HERE, tokenizer="bpe", vocab_size=8192).parse_args(argv)
    if not args.input:
        args.input = [path for name, where in NOVELS.items() for path in downloaded(args, name, *where)]
        if len(args.input) < len(NOVELS):
            return
    reading = reading_of(args)
    parts = find_parts(args, reading, hongloumeng.SHA256)
    texts = by_position(args, parts, reading, each=True)
    build(args, texts, tokenizer_of(args), origin(args, parts), "config/train_classics_bpe.py")


if __name__ == "__main__":
    exit_on_error(main)
