"""The command line of every prepare.py."""

import argparse
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from data.bpe import WORDS
from data.clean import CODE_RULES, NORMALIZE, RULES, parse_rules
from data.dataset import open_dataset
from data.encodings import check_encoding
from data.fim import CHARS, SINGLE_CHARS, fim_of
from data.formats import Reading
from data.tokenizer import EOT, CharTokenizer, Tokenizer, make_tokenizer

TEST_HELP = "share of the text for a test split, taken out of the training text and read only by eval.py --split=test, "
TEST_HELP += "to measure what was chosen by the validation split (default: 0, none)"


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; see --help")


class PrepareParser(Parser):
    """Refuses options that would have no effect."""

    def parse_args(self, *argv: Any) -> argparse.Namespace:
        args = super().parse_args(*argv)
        trained = args.tokenizer in WORDS and not args.tokenizer_file
        name = f"--tokenizer_file={args.tokenizer_file}" if args.tokenizer_file else f"--tokenizer={args.tokenizer}"
        for flag in ("vocab_size", "special_tokens"):
            if getattr(args, flag) is not None and not trained:
                self.error(
                    f"--{flag} is only for a bpe tokenizer trained on the text, found {name}; drop one of the two"
                )
        if args.min_count != 1 and not args.trim:
            self.error(f"--min_count={args.min_count} needs --trim; pass both or neither")
        others = args.tokenizer_file or args.trim or args.special == "encode"
        if args.vocabulary and (args.tokenizer != "char" or others):
            needs = "--tokenizer=char, without --tokenizer_file, --trim and --special=encode"
            self.error(f"--vocabulary={args.vocabulary} needs {needs}")
        for flag in ("spm_rate", "fim_chars"):
            if getattr(args, flag) != self.get_default(flag) and not args.fim_rate:
                self.error(f"--{flag}={getattr(args, flag)} needs --fim_rate; pass both or neither")
        check_held_out(self, args)
        if args.vocab_size is None:
            args.vocab_size = args.default_vocab_size
        return args


def check_held_out(parser: Parser, args: argparse.Namespace) -> None:
    """ValueError if the splits that are held out leave nothing to train on, or are named in two ways."""
    if args.val_input and args.val_fraction != parser.get_default("val_fraction"):
        parser.error(f"--val_fraction={args.val_fraction} and --val_input both name the validation split; drop one")
    if held_out(args) >= 1:
        raise ValueError(
            f"--test_fraction={args.test_fraction} and --val_fraction={args.val_fraction} leave no text to train on: "
            "their sum must be below 1"
        )


def held_out(args: argparse.Namespace) -> float:
    """The share of the text of --input that is not for training."""
    return (0.0 if args.val_input else args.val_fraction) + args.test_fraction


def prepare_parser(
    description: str, folder: Path, vocab_size: int = 8192, clean: str = "all", **defaults: Any
) -> argparse.ArgumentParser:
    """The options common to all prepare scripts; `folder` is the script's own, `defaults` replaces their defaults, and
    `clean` is what --clean alone means. With out_dir=None, `description` says where the dataset goes."""
    style = argparse.RawDescriptionHelpFormatter
    parser = PrepareParser(description=description, allow_abbrev=False, formatter_class=style)
    add_text_options(parser.add_argument_group("text").add_argument, clean)
    add_token_options(parser.add_argument_group("tokens").add_argument, vocab_size)
    add_fim_options(parser.add_argument_group("fill in the middle").add_argument)
    add = parser.add_argument_group("result").add_argument
    place = "see above" if "out_dir" in defaults else "beside the script"
    add("--out_dir", type=Path, default=folder, help=f"where to write the dataset (default: {place})")
    add("--dry_run", action="store_true", help="do everything and print the report, but leave out_dir as it is")
    workers = "number of processes, which does not change the result (default: 0, all cores)"
    add("--workers", type=nonnegative, default=0, help=workers)
    parser.set_defaults(**{"folder": folder, "eot": True, "default_vocab_size": vocab_size, **defaults})
    return parser


def add_text_options(add: Callable, clean: str) -> None:
    formats = (
        "files, folders and archives: .txt .md .epub, rows in .jsonl .json .csv .tsv .parquet, .zip .tar, and .gz .xz "
        ".bz2 .zst of these; needs no network"
    )
    add("--input", nargs="+", type=Path, default=[], metavar="PATH", help=formats)
    add("--val_input", nargs="+", type=Path, default=[], metavar="PATH", help="the same for the validation split")
    share = "share of the text for validation, unless the data has its own split (default: %(default)s)"
    add("--val_fraction", type=open_fraction, default=0.1, help=share)
    add("--test_fraction", type=test_share, default=0.0, help=TEST_HELP)
    add("--encoding", default="utf-8", help="gb18030, big5, utf-16, ..., or auto to detect it (default: utf-8)")
    errors = "strict: stop at undecodable bytes; replace: put U+FFFD in their place, and list the files (default: "
    errors += "strict)"
    add("--errors", choices=("strict", "replace"), default="strict", help=errors)
    add("--normalize", action="store_true", help="remove byte-order marks and turn CRLF into LF")
    what = "long runs of machine-written lines" if clean == "code" else "what web books carry besides their text"
    rules = (
        f"remove {what}: {', '.join(parse_rules(clean))}, or only the rules named; --dry_run then shows the removed "
        "text and counts changes of white space"
    )
    add("--clean", nargs="?", const=clean, metavar="RULE,...", help=rules)
    add("--field", help="field or column of rows (default: the first of text, content and story that has text)")
    add("--separator", help=r"separator between the documents of a text file, such as '\n\n\n'")
    add("--skip_bad", action="store_true", help="report and skip unreadable files instead of stopping")


def add_token_options(add: Callable, vocab_size: int) -> None:
    tokenizer = (
        "char, byte, bpe or bpe_code (trained on the text), gpt2, cl100k_base, qwen2, a repository on the Hugging Face "
        "hub, or the path of a tokenizer.json, a model's folder or a dataset's (default: %(default)s)"
    )
    add("--tokenizer", default="char", help=tokenizer)
    add("--vocab_size", type=int, help=f"size of a bpe vocabulary trained here (default: {vocab_size})")
    special = "special tokens for a bpe trained here, in addition to <|endoftext|>: '<|user|>' ..."
    add("--special_tokens", nargs="+", metavar="TOKEN", help=special)
    typed = "what special tokens typed in the text become: text like any other, or their ids (default: %(default)s)"
    add("--special", choices=("text", "encode"), default="text", help=typed)
    add("--tokenizer_file", type=Path, help="a local copy of the tokenizer's file, or its folder")
    vocabulary = "a prepared dataset whose character ids to use, so that training can start from its model; characters "
    vocabulary += "that it lacks are left out of the text"
    add("--vocabulary", metavar="DATASET", help=f"{vocabulary} (with --tokenizer=char)")
    add("--trim", action="store_true", help="keep only the ids the training text uses, and all single bytes")
    add("--min_count", type=int, default=1, help="with --trim, keep ids used at least this often (default: 1)")


def add_fim_options(add: Callable) -> None:
    rate = "share of the training documents rearranged so that the model learns to fill in a middle; 0.5 is usual"
    add("--fim_rate", type=closed_fraction, default=0.0, help=f"{rate} (default: 0, none)")
    spm = "share of the rearranged parts with the suffix before the prefix (default: %(default)s)"
    add("--spm_rate", type=closed_fraction, default=0.5, help=spm)
    chars = "longest part to rearrange, in characters: at most the model's context"
    add("--fim_chars", type=positive, help=f"{chars} (default: {CHARS}; char and byte: {SINGLE_CHARS})")
    names = "put a line with the file's name, after a marker, before every document and rearranged part"
    add("--file_names", action="store_true", help=names)


def number(kind: Callable[[str], Any], is_allowed: Callable[[Any], bool], expected: str) -> Callable[[str], Any]:
    """What argparse calls as the type of an option."""

    def parse(text: str) -> Any:
        with suppress(ValueError):
            if is_allowed(value := kind(text)):
                return value
        raise argparse.ArgumentTypeError(f"{text} is not {expected}")

    return parse


open_fraction = number(float, lambda x: 0 < x < 1, "between 0 and 1")
test_share = number(float, lambda x: 0 <= x < 1, "from 0 to below 1")
closed_fraction = number(float, lambda x: 0 <= x <= 1, "from 0 to 1")
nonnegative = number(int, lambda n: n >= 0, "a whole number from 0 on")
positive = number(int, lambda n: n >= 1, "a whole number from 1 on")


def tokenizer_of(args: argparse.Namespace) -> Callable[[Callable], Tokenizer]:
    """A function from `texts` (see make_tokenizer) to the tokenizer the options describe."""
    names, fim = [EOT, *(args.special_tokens or ())] if args.special == "encode" else [], fim_of(args)
    trained = args.tokenizer in WORDS and not args.tokenizer_file
    special = [*(args.special_tokens or ()), *(fim.markers if trained else ())]
    if args.vocabulary:
        return lambda texts: vocabulary_of(args)
    return lambda texts: make_tokenizer(
        args.tokenizer,
        partial(texts_around, texts, names),
        file=args.tokenizer_file,
        vocab_size=args.vocab_size,
        special_tokens=list(dict.fromkeys(special)),
        eot=args.eot,
        trim=args.trim,
        min_count=args.min_count,
    )


def vocabulary_of(args: argparse.Namespace) -> CharTokenizer:
    """The tokenizer of the dataset --vocabulary; ValueError if it is not of characters, or would be overwritten."""
    name, dataset = args.vocabulary, open_dataset(args.vocabulary)
    if args.out_dir.resolve() == dataset.folder.resolve():
        raise ValueError(f"--vocabulary={name}: that dataset would be overwritten; choose another place with --out_dir")
    if not isinstance(dataset.tokenizer, CharTokenizer):
        kind = dataset.tokenizer.kind if dataset.tokenizer else "unknown tokens"
        raise ValueError(f"--vocabulary={name}: that dataset is of {kind}; choose one prepared with --tokenizer=char")
    return dataset.tokenizer


def texts_around(texts: Callable[[str | None], Iterable[str]], names: list[str], split: str | None) -> Iterator[str]:
    """texts(split) without these special tokens: what a tokenizer that is trained here has to spell."""
    pattern = re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))))
    return (part for text in texts(split) for part in (pattern.split(text) if names else [text]))


def reading_of(args: argparse.Namespace, **options: Any) -> Reading:
    """The Reading described by the command line and by the script's own `options`, which are fields of Reading."""
    rules = parse_rules(args.clean) if args.clean else ()
    separator = args.separator and args.separator.replace("\\r", "\r").replace("\\n", "\n").replace("\\t", "\t")
    defaults = {
        "encoding": check_encoding(args.encoding),
        "errors": args.errors,
        "field": args.field,
        "separator": separator,
        "known": vocabulary_of(args).chars if args.vocabulary else "",
        "rules": tuple(r for r in (*RULES, *CODE_RULES) if r in rules or args.normalize and r in NORMALIZE),
    }
    return Reading(**{**defaults, **options})
