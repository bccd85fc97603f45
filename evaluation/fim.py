"""How well a model fills in gaps: exact ones and edit similarity, beside what it writes from left to right.

A gap begins inside a line and has its rest, a piece of it, or its rest and up to three more lines. The model writes
greedily: with prefix-suffix-middle, as programs ask for it, until it ends the text itself; with suffix-prefix-middle,
as complete.py asks, likewise; and from left to right, without the suffix, where it cannot know where the gap ends. So
there its text is cut to the gap's length, which favours it: exact_match_l2r compares with exact_match_cut, for which
the others are cut too, as they are for the edit similarity. That is 2 M / T (M characters in a longest common
subsequence of T in both texts), as fuzz.ratio in CodeXGLUE (Lu et al. 2021, arXiv:2102.04664).
"""

import argparse
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from tqdm import tqdm

from completion.infill import has_learned, infill_prompt, last_ids
from data.dataset import display_path
from data.fim import FILE_SEP
from data.tokenizer import Tokenizer
from evaluation import tasks
from evaluation.text import Text
from evaluation.windows import STOP
from inference.generate import stream
from inference.healing import begin_with, prefix_index
from inference.load import find_tokenizer, open_matching_dataset
from inference.sampling import Sampling
from model import GPT
from system.distributed import Ranks

GAPS = 200  # of each kind
MOST_CHARS, MOST_LINES = 200, 4  # in a gap
GAPS_AT_ONCE = 16  # gaps that are filled together
SPARE = 16  # tokens more than the gap's that the model may write
FIGURES = ("exact_match", "exact_match_cut", "edit_similarity")
ORDERS = {"": "psm", "_spm": "spm", "_l2r": "l2r"}  # suffixes of the figures' names


@dataclass(frozen=True)
class Gap:
    name: str  # of the file, if the model has seen names
    prefix: str
    middle: str
    suffix: str


def open_gaps(args: argparse.Namespace, state: dict) -> Text:
    """The gaps of --input or of a split, and the orders in which the model can fill them. ValueError if there are none.
    The windows hold just the gaps' numbers of tokens."""
    tokenizer = find_tokenizer(state)
    infill, names = has_learned(state, tokenizer)
    if args.input:
        # as complete.py reads it: a model that learned from LF would never write what ends a line here
        name, texts = str(display_path(args.input)), [("", tasks.read_text(args.input).replace("\r\n", "\n"))]
    else:
        dataset = open_matching_dataset(args.dataset, state)
        name = f"{display_path(dataset.folder)} {args.split}"
        texts = list(texts_of(dataset.array(args.split), tokenizer))  # raises if there is no such split
    gaps = choose_gaps(texts)
    if tokenizer.eot is None and not tokenizer.begin:  # nothing precedes a text, and a model needs an id to start from
        gaps = [gap for gap in gaps if gap.prefix]
    if not gaps:
        raise ValueError(f"{name} has no line with text on it: there is no gap to fill; name another text")
    if not names:
        gaps = [replace(gap, name="") for gap in gaps]
    windows = np.array([(0, 0, len(tokenizer.encode(gap.middle))) for gap in gaps])
    orders = [order for order in ORDERS.values() if infill or order == "l2r"]
    return Text(name, lambda: windows[:, STOP], windows, tokenizer, questions=gaps, orders=orders)


def texts_of(ids: np.ndarray, tokenizer: Tokenizer) -> Iterator[tuple[str, str]]:
    """(name, text) of the documents of a split that is left to right."""
    ends = np.flatnonzero(ids == tokenizer.eot) if tokenizer.eot is not None else []
    named = tokenizer.special_tokens.get(FILE_SEP, -1)
    for part in np.split(ids, ends):
        name, text = "", tokenizer.decode(part)
        if named in part[: 2 + len(tokenizer.begin)]:  # after the end of the last one and what begins every text
            name, _, text = text.partition("\n")
        yield name, text


def choose_gaps(texts: Sequence[tuple[str, str]]) -> list[Gap]:
    """At most GAPS of each kind at random places, the same for the same texts."""
    lines = [(i, *match.span()) for i, (_, text) in enumerate(texts) for match in re.finditer(r"\S.*", text)]
    draw, gaps = random.Random(0), []
    for kind in ("piece", "rest", "lines"):
        found, order = 0, draw.sample(lines, len(lines))
        for i, start, end in order:
            name, text = texts[i]
            first = start + int(draw.random() * (end - start))
            last = end
            if kind == "piece":
                last = first + 1 + int(draw.random() * (end - first - 1))
            elif kind == "lines":
                for _ in range(1 + int(draw.random() * (MOST_LINES - 1))):
                    last = text.find("\n", last + 1)
            if 0 < last - first <= MOST_CHARS and (kind != "piece" or last < end):
                gaps.append(Gap(name, text[:first], text[first:last], text[last:]))
                found += 1
            if found == GAPS:
                break
    return gaps


def fill_gaps(model: GPT, text: Text, block_size: int, ranks: Ranks) -> dict:
    """The figures, the same on every rank. Each rank fills every world_size-th gap."""
    gaps, orders = text.questions, text.orders
    found = np.zeros((len(orders), len(FIGURES), len(gaps)))
    longest = sorted(range(len(gaps)), key=lambda i: -len(gaps[i].middle))  # together, for little waiting
    mine = longest[ranks.rank :: ranks.world_size]
    starts = range(0, len(mine), GAPS_AT_ONCE)
    for first in tqdm(starts, unit=" batches", disable=None if ranks.is_main else True):
        rows = mine[first : first + GAPS_AT_ONCE]
        for i, order in enumerate(orders):
            written = fill(model, text.tokenizer, [gaps[row] for row in rows], order, block_size)
            for row, own in zip(rows, written, strict=True):
                gap = gaps[row].middle
                cut = own[: len(gap)]
                exact = cut if order == "l2r" else own
                found[i, :, row] = exact == gap, cut == gap, edit_similarity(cut, gap)
    found = np.array(ranks.sum(found.ravel().tolist())).reshape(found.shape)
    figures = {}
    for suffix, order in ((suffix, order) for suffix, order in ORDERS.items() if order in orders):
        for key, values in zip(FIGURES, found[orders.index(order)], strict=True):
            if key != "exact_match_cut" or order != "l2r":
                figures |= {key + suffix: values.mean().item(), f"{key}{suffix}_stderr": tasks.standard_error(values)}
    return figures


def fill(model: GPT, tokenizer: Tokenizer, gaps: list[Gap], order: str, block_size: int) -> list[str]:
    """What the model writes into the gaps, greedily."""
    limits = [min(len(tokenizer.encode(gap.middle)) + SPARE, block_size // 2) for gap in gaps]
    index, device = prefix_index(tokenizer), model.transformer.wte.weight.device
    front = list(tokenizer.begin) or ([] if tokenizer.eot is None else [tokenizer.eot])
    prompts, healed = [], []
    for gap, limit in zip(gaps, limits, strict=True):
        room = block_size - limit  # so a row does not depend on the others
        if order == "l2r":
            ids = [*front, *last_ids(tokenizer, gap.prefix, room - len(front))]
        else:
            ids = infill_prompt(tokenizer, gap.prefix, gap.suffix, room, gap.name, spm=order == "spm")
        keep, typed = len(ids), b""  # a middle begins with a token of its own; a text after a prefix need not
        for boundary, rest, _ in index.boundaries(ids) if order != "psm" else ():
            keep, typed = boundary, rest
        prompts.append(torch.tensor(ids[:keep], device=device))
        healed.append(typed)
    texts, ended = [b""] * len(gaps), [False] * len(gaps)
    sampling, constrain = Sampling(temperature=0, vocab_size=tokenizer.vocab_size), begin_with(index, healed, device)
    for n, (drawn, _) in enumerate(stream(model, prompts, max(limits), sampling, constrain=constrain)):
        for row, id in enumerate(drawn.tolist()):
            ended[row] = ended[row] or n == limits[row] or not index.bytes[id]
            texts[row] += b"" if ended[row] else index.bytes[id]
        if all(ended):
            break
    return [text[len(typed) :].decode("utf-8", "replace") for text, typed in zip(texts, healed, strict=True)]


def edit_similarity(a: str, b: str) -> float:
    """2 M / T, see above; 1 for two empty texts. The subsequence is found by whole rows of bits (Hyyrö 2004)."""
    row = all_set = (1 << len(a)) - 1
    places = {}
    for i, char in enumerate(a):
        places[char] = places.get(char, 0) | 1 << i
    for char in b:
        hits = row & places.get(char, 0)
        row = (row + hits | row - hits) & all_set
    common = len(a) - row.bit_count()
    return 2 * common / (len(a) + len(b)) if a or b else 1.0
