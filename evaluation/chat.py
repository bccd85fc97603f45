"""How well a model answers: the loss of the assistant's words, exact answers, and answers that end by themselves.

A conversation's answer is a window that begins with the conversation and scores the answer with the marker that ends
it. So loss is what train.py calls the loss, and an answer is exact, in greedy decoding, if none of its ids is missed.
"""

import argparse
import math

import numpy as np
import torch

from data.conversations import pieces_of_conversation, read_conversations
from data.dataset import TARGET, conversation_edges, display_path
from evaluation.figures import exp
from evaluation.tasks import standard_error
from evaluation.text import Text, open_matching_dataset
from evaluation.windows import FIRST, START
from inference.chat import answer_all, chat_tokenizer_of
from inference.sampling import Sampling
from model import GPT
from system.distributed import Ranks

LONGEST_ANSWER = 512  # tokens within which an answer has to end
ROWS = 16  # answers that are drawn together


def open_conversations(args: argparse.Namespace, state: dict, block_size: int) -> Text:
    """Those of --input, or of a split of a dataset. ValueError if there are none, or the model knows no turns."""
    tokenizer = chat_tokenizer_of(state)
    if args.input:
        pieces, too_long = [], 0
        for _, messages in read_conversations(args.input, refuse_row):
            found, more = pieces_of_conversation(messages, tokenizer, block_size + 1)
            pieces, too_long = pieces + found, too_long + more
        if too_long or not pieces:
            problem = (
                f"{too_long:,} answers that do not fit block_size={block_size}" if too_long else "no conversations"
            )
            raise ValueError(f"--input={args.input} has {problem}: leave them out, or name another file")
        ids, mask = (np.concatenate(parts) for parts in zip(*pieces, strict=True))
        edges = np.cumsum([0, *(len(ids) for ids, _ in pieces)])
        name, get_ids = str(display_path(args.input)), lambda: ids
    else:
        dataset, split = open_matching_dataset(args.dataset, state), "val"
        split = args.split or split
        if not dataset.is_masked:
            raise ValueError(f"dataset {dataset.name} has no conversations: name one that has, or --input=FILE")
        edges, mask = conversation_edges(dataset, split, block_size), dataset.mask(split) & TARGET > 0
        name, get_ids = f"{display_path(dataset.folder)} {split}", lambda: dataset.array(split)
    return Text(name, get_ids, answer_windows(edges, mask), tokenizer)


def refuse_row(place: str, reason: str) -> None:
    raise ValueError(f"{place}: {reason}; leave the row out, or correct it")


def answer_windows(edges: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Windows (K, 3), as scoring.py's, of the runs of a mask (n,), each from the start of its conversation."""
    change = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    first, stop = change[::2], change[1::2]
    return np.stack([edges[np.searchsorted(edges, first, "right") - 1], first, stop], axis=1)


def count_chat(nats: np.ndarray, misses: np.ndarray, n_tokens: int) -> dict:
    loss, exact = math.fsum(nats) / n_tokens, misses == 0
    figures = {"loss": loss, "perplexity": exp(loss), "exact_match": exact.mean().item()}
    return figures | {"exact_match_stderr": standard_error(exact)}


def share_ended(model: GPT, text: Text, ranks: Ranks) -> float:
    """The share of greedy answers that the model ends itself, on all ranks together."""
    ids, ended = text.get_ids(), 0
    mine = text.windows[ranks.rank :: ranks.world_size]
    for first in range(0, len(mine), ROWS):
        prompts = [ids[window[START] : window[FIRST]].tolist() for window in mine[first : first + ROWS]]
        with torch.no_grad():
            found = answer_all(model, text.tokenizer, prompts, Sampling(temperature=0), LONGEST_ANSWER, [0] * ROWS)
        ended += sum(finish == "end" for _, finish, _ in found)
    return ranks.sum([float(ended)])[0] / len(text.windows)
