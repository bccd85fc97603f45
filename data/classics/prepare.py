"""The four classic novels 红楼梦 三国演义 水浒传 西游记, or any novels, with one BPE: data/classics/.

    python data/classics/prepare.py --clean                       # downloads 9 MB beside this file, once
    python data/classics/prepare.py --clean --dry_run             # only shows what --clean removes
    python data/classics/prepare.py --clean --input FILE...       # your own; needs no network

Each novel is a document: its first 90 % are train, the rest is validation. The files are as found on the web, with
advertisements and upload dates, hence --clean.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from configurator import exit_on_error
from data.build import config_for, prepare_dataset
from data.download import HONGLOUMENG, github_urls
from data.options import prepare_parser, reading_of
from data.source import download_inputs, find_parts
from data.units import by_position

SHA256 = {
    "三国演义.txt": "b434d3c6eb307a3f91f7fc770728a650829f4eb2cdbe21e3064f883c18fb4026",
    "水浒传.txt": "5747ee7d3e4bc98de646aea5d2454cd7d7ca4b81d8fe8417b934c48a78d7039b",
    "西游记.txt": "acd8762011876f79740f86ab1da855aab40e9690bf2ccbf14e456ddc91352b67",
}
REPOSITORY = "hexhero/book-txt", "b46b8dda733b74f0173757d37a513099c9690173"
NOVELS = {"红楼梦.txt": HONGLOUMENG}
NOVELS |= {name: (github_urls(*REPOSITORY, name), sha256) for name, sha256 in SHA256.items()}


def main(argv: list[str]) -> None:
    args = prepare_parser(__doc__, HERE, tokenizer="bpe").parse_args(argv)
    if not download_inputs(args, NOVELS):
        return
    reading = reading_of(args)
    parts = find_parts(args, reading, HONGLOUMENG[1])
    config = config_for(args, "config/train_classics_bpe.py", "config/train_book_char.py")
    prepare_dataset(args, parts, by_position(args, parts, reading, each=True), config)


if __name__ == "__main__":
    exit_on_error(main)
