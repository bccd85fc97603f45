"""Conversations for a trained model to answer like: data/chat/, in the tokens of that model.

    python data/chat/prepare.py --input chats.jsonl more.parquet --init_from=out-x
    python data/chat/prepare.py --input chats.jsonl --init_from=out-x --bad_rows=stop --out_dir=data/my_chat
    python data/chat/prepare.py --input chats.jsonl --init_from=out-x --text=hongloumeng --text_share=0.3
    python train.py config/chat_small.py --init_from=out-x

A row of .jsonl, .json or .parquet (also .gz, .xz, .bz2, .zst) has one of these shapes:

    {"messages": [{"role": "system", "content": "..."}, {"role": "user", ...}, {"role": "assistant", ...}]}
    {"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]}
    {"instruction": "...", "input": "...", "output": "..."}       or "prompt" and "response"

These last may have earlier questions and answers as "history": [["...", "..."], ...]. After a system turn or none, user
and assistant take turns. Only the assistant's words, and the marker that ends them, are learned. Each conversation is a
window of its own: it sees no other; one that is longer than the model's context is cut, but only before a user's turn.
The first question decides whether it is train, val or, with --test_fraction, test, so the same question is never in two
of them. With --text, some windows are plain text from the training split of the dataset that the model was trained on,
so that it does not forget how to write.
"""

import argparse
import hashlib
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from configurator import answer_early, exit_on_error
from data.conversations import chat_template, chat_tokenizer, pieces_of_conversation, read_conversations
from data.dataset import SPLITS, TARGET, TEST, DatasetWriter, dataset_option, display_path
from data.extended import ExtendedTokenizer
from data.options import TEST_HELP, Parser, check_held_out, open_fraction, test_share

SHOWN_REASONS = 12


def prepare_options() -> argparse.ArgumentParser:
    layout = argparse.RawDescriptionHelpFormatter
    parser = Parser(description=__doc__, allow_abbrev=False, formatter_class=layout)
    add = parser.add_argument
    add("--input", nargs="+", type=Path, required=True, metavar="FILE", help="conversations, as above")
    add("--val_input", nargs="+", type=Path, default=[], metavar="FILE", help="the same for the validation split")
    add("--init_from", required=True, help="the model to be trained on them: a checkpoint, a folder, 'gpt2'")
    share = "share of the questions for validation, without --val_input (default: %(default)s)"
    add("--val_fraction", type=open_fraction, default=0.1, help=share)
    add("--test_fraction", type=test_share, default=0.0, help=TEST_HELP)
    add("--block_size", type=int, help="longest conversation in tokens (default: the model's context)")
    text = "a dataset in the model's tokens: some of its training split is learned as it is, so that none is forgotten"
    add("--text", metavar="DATASET", help=text)
    part = "share of the training targets that are such text (default: %(default)s)"
    add("--text_share", type=open_fraction, default=0.3, help=part)
    bad = "skip rows that are not conversations, and count them, or stop at the first (default: skip)"
    add("--bad_rows", choices=("skip", "stop"), default="skip", help=bad)
    add("--out_dir", type=Path, default=HERE, help="where to write the dataset (default: beside the script)")
    return parser


if __name__ == "__main__":
    answer_early(prepare_options().parse_args)  # --help and mistakes are answered before the slow imports

from checkpoints.pretrained import load_pretrained
from evaluation.text import open_matching_dataset
from inference.load import find_tokenizer


class Counts:
    """What became of the rows, for the report."""

    def __init__(self, stop: bool):
        self.stop, self.reasons, self.first, self.too_long = stop, Counter(), {}, 0

    def refuse(self, place: str, reason: str, detail: str = "") -> None:
        """detail: what differs from row to row."""
        if self.stop:
            raise ValueError(f"{place}: {detail or reason}; correct it, or leave such rows out with --bad_rows=skip")
        self.leave_out(f"{place}: {detail}" if detail else place, reason)

    def leave_out(self, place: str, reason: str) -> None:
        self.reasons[reason] += 1
        self.first.setdefault(reason, place)


def main(argv: list[str]) -> None:
    parser = prepare_options()
    args = parser.parse_args(argv)
    check_held_out(parser, args)
    if args.text_share != parser.get_default("text_share") and not args.text:
        parser.error(f"--text_share={args.text_share} needs --text; pass both or neither")
    state = load_pretrained(args.init_from)
    tokenizer, longest = chat_tokenizer(find_tokenizer(state)), state["model_args"]["block_size"]
    block_size = args.block_size or longest
    if not 8 <= block_size <= longest:
        raise ValueError(f"block_size={block_size} must be 8 to {longest}, the context of {args.init_from}")
    text = open_matching_dataset(args.text, state).array("train") if args.text else None
    del state
    counts = Counts(stop=args.bad_rows == "stop")
    source = {"from": [path.name for path in [*args.input, *args.val_input]], "special": "text", "text": args.text}
    splits = (*SPLITS, TEST) if args.test_fraction else SPLITS
    lengths = {split: [] for split in splits}
    with DatasetWriter(args.out_dir, tokenizer, source, splits=splits) as writer:
        writer.extra = {"chat": {"template": chat_template(tokenizer), "block_size": block_size}}
        for split, found in conversations(args, tokenizer, block_size, counts):
            lengths[split] += write_conversation(writer, split, *found)
        print_counts(counts, lengths, writer.counts, block_size, text is not None)
        if text is not None:
            n = write_text(writer, text, args.text_share, block_size)
            print(f"train: {n:,} windows of text from {args.text}")
        if not any(lengths.values()):
            raise ValueError(f"{args.input[0]}: no conversation that can be used; see the reasons above")
    command = f"python train.py config/chat_small.py --init_from={args.init_from} {dataset_option(args.out_dir)}"
    print(f"wrote {display_path(args.out_dir)}; next: {command}")
    print("(config/chat.py instead for a large model)")


def conversations(
    args: argparse.Namespace, tokenizer: ExtendedTokenizer, block_size: int, counts: Counts
) -> Iterator[tuple[str, tuple[list, int]]]:
    """(split, (the windows of a conversation, the bytes of its words)). A window's last id has nothing to predict."""
    held_out = set()  # questions of --val_input
    for paths, fixed in ((args.val_input, "val"), (args.input, None)):
        for path in paths:
            for place, messages in read_conversations(path, counts.refuse):
                question = next(message["content"] for message in messages if message["role"] == "user")
                if fixed:
                    held_out.add(question)
                elif question in held_out:
                    counts.leave_out(place, "the question is one of --val_input")
                    continue
                try:
                    pieces, too_long = pieces_of_conversation(messages, tokenizer, block_size + 1)
                except ValueError as error:  # a character the tokenizer lacks
                    counts.refuse(place, "the tokenizer cannot encode the text", str(error))
                    continue
                counts.too_long += too_long
                n_bytes = sum(len(message["content"].encode()) for message in messages)
                yield fixed or split_of_question(question, args), (pieces, n_bytes)


def write_conversation(writer: DatasetWriter, split: str, pieces: list, n_bytes: int) -> list[int]:
    """Writes the windows of a conversation; returns their lengths."""
    for i, (ids, targets) in enumerate(pieces):
        writer.write_conversation(split, ids, targets, 0 if i else n_bytes)
    return [len(ids) for ids, _ in pieces]


def write_text(writer: DatasetWriter, ids: np.ndarray, share: float, block_size: int) -> int:
    """Writes windows spread over the text, of which everything is learned; returns their number."""
    targets = sum(int((mask & TARGET).sum()) for mask in writer.masks["train"])
    length = min(block_size + 1, len(ids))
    n = max(1, min(len(ids) // length, round(targets * share / (1 - share) / (length - 1))))
    for start in np.linspace(0, len(ids) - length, n).astype(int):
        writer.write_conversation("train", ids[start : start + length], np.arange(length) > 0, 0)
    return n


def split_of_question(question: str, args: argparse.Namespace) -> str:
    """Of a question in --input: val and, above it, test are shares of all hashes, so a test split moves no question of
    validation."""
    draw = int.from_bytes(hashlib.sha256(question.encode()).digest()[:8], "big") / 2**64
    val_share = 0.0 if args.val_input else args.val_fraction
    return "val" if draw < val_share else TEST if draw < val_share + args.test_fraction else "train"


def print_counts(counts: Counts, lengths: dict[str, list[int]], written: dict, block_size: int, has_text: bool) -> None:
    for reason, n in counts.reasons.most_common(SHOWN_REASONS):
        print(f"left out {n:,} row{'s' * (n > 1)}: {reason} (first: {counts.first[reason]})")
    if more := sum(n for _, n in counts.reasons.most_common()[SHOWN_REASONS:]):
        print(f"left out {more:,} rows for other reasons; --bad_rows=stop shows the first")
    if counts.too_long:
        print(f"left out {counts.too_long:,} questions with their answers, longer than block_size={block_size}")
    for split, sizes in lengths.items():
        if sizes:
            filled = (sum(sizes) - len(sizes)) / (len(sizes) * block_size)
            tokens = f"{written[split]['tokens']:,} tokens, the longest {max(sizes):,}"
            print(f"{split}: {len(sizes):,} windows with {tokens}; windows of {block_size} are filled to {filled:.0%}")
    sizes = sorted(lengths["train"])
    if sizes and sizes[-1] <= block_size // 2 and not has_text:
        print(f"note: train.py --block_size={sizes[-1] - 1} is enough for all of them, and saves time spent on padding")


if __name__ == "__main__":
    exit_on_error(main)
