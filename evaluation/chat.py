"""How well a model answers: its loss on the assistant's words, and what it answers itself, by greedy decoding with or
without penalties for repetition.

A conversation's answer is a window that begins with the conversation and scores the answer with the marker that ends
it. So loss is what train.py calls the loss, and an answer is exact, in greedy decoding, if none of its ids is missed.
ended: the share of its own answers that it ends within LONGEST_ANSWER tokens. words_used: of the "words" that rows of
--input ask for, the share that the answer has, as whole words in any case. distinct_4: the distinct runs of four tokens
within an answer over all such runs, summed over the answers, so 1 where no answer repeats four tokens of its own;
distinct_4_expected is that of the answers in the data. Rows with a "kind" get the same figures for each kind.
"""

import argparse
import math
import re

import numpy as np
from tqdm import tqdm

from data.conversations import check_messages, messages_in, pieces_of_conversation, rows_of
from data.dataset import TARGET, display_path
from data.windows import conversation_edges
from evaluation.figures import exp
from evaluation.tasks import standard_error
from evaluation.text import Text
from evaluation.windows import FIRST, START, STOP
from inference.chat import answer_all, chat_tokenizer_of
from inference.load import open_matching_dataset
from inference.sampling import Sampling
from model import GPT
from system.distributed import Ranks

LONGEST_ANSWER = 512  # tokens within which an answer has to end
ROWS = 16  # answers that are drawn together


def open_conversations(args: argparse.Namespace, state: dict, block_size: int) -> Text:
    """Those of --input, or of a split of a dataset. ValueError if there are none, or the model knows no turns."""
    tokenizer = chat_tokenizer_of(state)
    questions, left_out = None, None
    if args.input:
        pieces, questions, left_out = read_answered(args, tokenizer, block_size)
        ids, mask = (np.concatenate(parts) for parts in zip(*pieces, strict=True))
        edges = np.cumsum([0, *(len(ids) for ids, _ in pieces)])
        name, get_ids = str(display_path(args.input)), lambda: ids
    else:
        dataset, split = open_matching_dataset(args.dataset, state), args.split
        if not dataset.is_masked:
            raise ValueError(f"dataset {dataset.name} has no conversations: name one that has, or --input=FILE")
        edges, mask = conversation_edges(dataset, split, block_size), dataset.mask(split) & TARGET > 0
        name, get_ids = f"{display_path(dataset.folder)} {split}", lambda: dataset.array(split)
    return Text(name, get_ids, answer_windows(edges, mask), tokenizer, questions=questions, left_out=left_out)


def read_answered(args: argparse.Namespace, tokenizer, block_size: int) -> tuple[list, list[dict], int]:
    """(the windows of --input's conversations, the row of each answer in them, the number of answers left out because
    they and their questions do not fit). ValueError for a row that is not a conversation, or if no answer fits."""
    pieces, questions, too_long = [], [], 0
    for number, row in rows_of(args.input):
        try:
            if isinstance(row, ValueError):
                raise row
            messages = messages_in(row)
            check_messages(messages)
            found, more = pieces_of_conversation(messages, tokenizer, block_size + 1)
        except ValueError as error:
            raise ValueError(f"{args.input}:{number}: {error}; leave the row out, or correct it") from None
        pieces, too_long = pieces + found, too_long + more
        questions += [row] * (sum(message["role"] == "assistant" for message in messages) - more)
    if not pieces:
        found = f"no answer that fits block_size={block_size} with its question" if too_long else "no conversations"
        raise ValueError(f"--input={args.input} has {found}: name another file")
    return pieces, questions, too_long


def answer_windows(edges: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Windows (K, 3), as scoring.py's, of the runs of a mask (n,), each from the start of its conversation."""
    change = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    first, stop = change[::2], change[1::2]
    return np.stack([edges[np.searchsorted(edges, first, "right") - 1], first, stop], axis=1)


def count_chat(text: Text, nats: np.ndarray, misses: np.ndarray, answers: np.ndarray) -> dict:
    """The figures of all answers, "left_out" if known and, if the rows have kinds, "kinds": those of each."""
    tokens = text.windows[:, STOP] - text.windows[:, FIRST]
    table = np.stack([nats, misses == 0, tokens, *answers.T], axis=1)
    figures = figures_of(table) | ({} if text.left_out is None else {"left_out": text.left_out})
    kinds = np.array([str(row.get("kind", "")) for row in text.questions or []])
    if any(kinds):
        figures["kinds"] = {kind: figures_of(table[kinds == kind]) for kind in sorted(set(kinds))}
    return figures


def figures_of(table: np.ndarray) -> dict:
    """Of answers (K, 3 + 7): nats, whether exact, tokens, and the columns of answer."""
    nats, exact, tokens, ended, used, asked, *four = table.T
    loss, runs = math.fsum(nats) / tokens.sum(), [column.sum() for column in four]
    figures = {"questions": len(table), "loss": loss, "perplexity": exp(loss), "exact_match": exact.mean().item()}
    figures |= {"exact_match_stderr": standard_error(exact), "ended": ended.mean().item()}
    figures |= {"words_used": used.sum().item() / asked.sum().item()} if asked.sum() else {}
    shares = {"distinct_4": runs[:2], "distinct_4_expected": runs[2:]}
    return figures | {name: (distinct / n).item() for name, (distinct, n) in shares.items() if n}


def answer(model: GPT, text: Text, sampling: Sampling, ranks: Ranks) -> np.ndarray:
    """Of the model's answer in each window (K, 7): whether the model ended it, how many of the words asked for it has,
    and how many there are, its distinct runs of four tokens, all its runs, and both of the answer in the data. On all
    ranks together."""
    ids, found = text.get_ids(), np.zeros((len(text.windows), 7))
    mine = np.arange(len(text.windows))[ranks.rank :: ranks.world_size]
    for first in tqdm(range(0, len(mine), ROWS), unit=" batches", disable=None if ranks.is_main else True):
        rows = mine[first : first + ROWS]
        prompts = [ids[window[START] : window[FIRST]].tolist() for window in text.windows[rows]]
        answers = answer_all(model, text.tokenizer, prompts, sampling, LONGEST_ANSWER, [0] * ROWS)
        for row, (words, finish, _) in zip(rows, answers, strict=True):
            asked = required_words(text.questions[row]) if text.questions else []
            said = text.tokenizer.encode(words, inside=True)
            expected = ids[text.windows[row, FIRST] : text.windows[row, STOP] - 1]  # without the marker that ends it
            found[row] = finish == "end", used(asked, words), len(asked), *runs_of_4(said), *runs_of_4(expected)
    return np.array(ranks.sum(found.ravel().tolist())).reshape(found.shape)


def required_words(row: dict) -> list[str]:
    words = row.get("words")
    return [word for word in words if isinstance(word, str) and word] if isinstance(words, list) else []


def used(asked: list[str], text: str) -> int:
    """How many of the words asked for are in the text."""
    pattern = r"(?<![a-z]){}(?![a-z])"
    return sum(bool(re.search(pattern.format(re.escape(word)), text, re.IGNORECASE)) for word in asked)


def runs_of_4(ids: np.ndarray) -> tuple[int, int]:
    """(the distinct ones, all) of the runs of four ids."""
    runs = list(zip(*(ids[i:].tolist() for i in range(4)), strict=False))
    return len(set(runs)), len(runs)
