"""An n-gram model of the training text, whose probabilities are mixed into a GPT's.

    ngram = NGram([dataset.array("train")], vocab_size, share=0.2)
    model = join_models([model], ngram)             # 0.8 of the GPT's probabilities and 0.2 of the n-gram model's

A model of one book learns its common words well and its rare ones badly; counts remember what occurred only once. They
are smoothed by the interpolated Kneser-Ney method with three discounts (Chen & Goodman 1999, "An Empirical Study of
Smoothing Techniques for Language Modeling"). An id that was seen c times after the context h gets
(c - D(c)) / n(h), where n(h) is the sum of these c. What the discounts took is shared among all ids by the same rule,
for h without its first id. For these shorter contexts, c is not how often the id followed, but how many different ids
stood before the context and the id.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

ORDER = 6  # ids of the longest n-gram
MOST_IDS = 2**25  # counting novels of this length takes half a minute and 4 GB; 1.4 GB stay in use, in each process
DISCOUNTS = (0.5, 1.0, 1.5)  # KenLM's (Heafield et al. 2013), where a text is too short or unusual to tell


@dataclass
class Level:
    """The distinct n-grams of one length, numbered in order."""

    keys: np.ndarray  # (N,) int64: the number of an n-gram's context times vocab_size, plus its last id
    own: np.ndarray  # (N,) float32: (c - D(c)) / n(h) of each
    backoff: np.ndarray  # (contexts,) float32: for each context, the share left to the next shorter one


class NGram:
    """share: what its probabilities weigh in a mixture, above 0; 1 = the counts alone. name: what was counted."""

    def __init__(self, texts: Sequence[np.ndarray], vocab_size: int, share: float, name: str = ""):
        """texts: ids (N,) each, all below vocab_size. ValueError if they are too long or too short to be counted."""
        if not 2 <= (n_ids := sum(map(len, texts))) <= MOST_IDS:
            found = name or f"{n_ids:,} tokens"
            raise ValueError(f"--ngram counts from 2 to {MOST_IDS:,} tokens, found {found}: change --ngram_data")
        self.vocab_size, self.name, self.levels = vocab_size, name, []
        self.log_shares = math.log(share), math.log(1 - share) if share < 1 else -math.inf  # the counts', the GPT's
        ids = np.concatenate(texts).astype(np.int64)
        keys, at = np.arange(vocab_size), ids  # of all n-grams; the number of the one that begins at each place
        lengths = range(2, min(ORDER, n_ids) + 1)
        for n in tqdm(lengths, desc="counting n-grams", leave=False, disable=None, delay=1):  # many books take a while
            longer, first, longer_at = distinct(at[:-1] * vocab_size + ids[n - 1 :])
            ending = at[first + 1]  # what each longer one is without its first id
            self.levels.append(self.level(keys, np.bincount(ending, minlength=len(keys))))
            keys, at = longer, longer_at
        self.levels.append(self.level(keys, np.bincount(at, minlength=len(keys))))

    def level(self, keys: np.ndarray, counts: np.ndarray) -> Level:
        taken = np.array([0, *discounts(counts)])[np.minimum(counts, 3)]
        context, n_contexts = keys // self.vocab_size, len(self.levels[-1].keys) if self.levels else 1
        total, left = (np.bincount(context, weights, n_contexts) for weights in (counts, taken))
        left[total == 0] = 1  # nothing was seen after it
        total[total == 0] = 1
        return Level(keys, ((counts - taken) / total[context]).astype(np.float32), (left / total).astype(np.float32))

    def find(self, level: Level, contexts: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """The numbers of the n-grams made of contexts, given by number, and ids; -1 for those the text lacks."""
        keys = contexts * self.vocab_size + ids
        at = np.searchsorted(level.keys, keys).clip(max=len(level.keys) - 1)
        return np.where((contexts >= 0) & (ids >= 0) & (level.keys[at] == keys), at, -1)

    def contexts(self, x: np.ndarray) -> list[np.ndarray]:
        """For each length below the longest, the numbers of the n-grams that end at the ids x (B, T), (B, T) each."""
        found = [x]
        for level in self.levels[1:-1]:
            before = np.pad(found[-1][:, :-1], ((0, 0), (1, 0)), constant_values=-1)
            found.append(self.find(level, before, x))
        return found

    def probabilities(self, texts: Sequence[Sequence[int]]) -> np.ndarray:
        """Of each id after texts of at least one id, (B, vocab_size) float32."""
        width = len(self.levels) - 1
        last = np.full((len(texts), width), -1)
        for row, text in zip(last, texts, strict=True):
            row[-len(text) :] = text[-width:]
        found = np.tile(self.levels[0].own + self.levels[0].backoff / self.vocab_size, (len(texts), 1))
        for level, contexts in zip(self.levels[1:], self.contexts(last), strict=True):
            ends = contexts[:, -1]
            edges = np.searchsorted(level.keys, np.stack([ends, ends + 1]) * self.vocab_size)
            for row, context, begin, end in zip(found, ends, *edges, strict=True):
                if context >= 0:
                    row *= level.backoff[context]
                    row[level.keys[begin:end] - context * self.vocab_size] += level.own[begin:end]
        return found

    def mix(self, logits: torch.Tensor, texts: Sequence[Sequence[int]]) -> torch.Tensor:
        """A model's logits (B, vocab_size) float32 after texts -> the logarithm of the mixture. A GPU waits for it."""
        counts, (ours, models) = torch.from_numpy(self.probabilities(texts)), self.log_shares
        return torch.logaddexp(logits.log_softmax(-1) + models, counts.log().to(logits.device) + ours)

    def mix_nats(self, nats: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """A model's nats (N,) for the targets in y (B, T) that are not -1 -> those of the mixture. x (B, T): the ids
        before them; what precedes a row is not used."""
        is_target, (ours, models) = y >= 0, self.log_shares
        target, first = y[is_target], self.levels[0]
        p = first.own[target] + first.backoff / self.vocab_size
        for level, contexts in zip(self.levels[1:], self.contexts(x), strict=True):
            context = contexts[is_target]
            at = self.find(level, context, target)
            p = np.where(context >= 0, np.where(at >= 0, level.own[at], 0) + level.backoff[context] * p, p)
        return -np.logaddexp(models - nats, ours + np.log(p))


def distinct(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The distinct keys, all at least 0, in order; where each is found first; each key's number among them: what
    np.unique returns, in about half the time, as a key and its place are sorted as one number, without an argsort."""
    bits = len(keys).bit_length()
    if int(keys.max()) >> (63 - bits):  # the two do not fit into one number
        return np.unique(keys, return_index=True, return_inverse=True)
    both = keys << bits
    both |= np.arange(len(keys))
    both.sort()
    order = both & ((1 << bits) - 1)
    both >>= bits  # the keys, in order
    is_first = np.concatenate([[True], both[1:] != both[:-1]])
    numbers = np.empty_like(keys)
    numbers[order] = np.cumsum(is_first) - 1
    return both[is_first], order[is_first], numbers


def discounts(counts: np.ndarray) -> tuple[float, float, float]:
    """What is taken from counts of 1, 2, and 3 or more, by the numbers of n-grams with counts of 1 to 4."""
    n1, n2, n3, n4 = (int((counts == c).sum()) for c in range(1, 5))
    if not n1 * n2 * n3:
        return DISCOUNTS
    y = n1 / (n1 + 2 * n2)
    found = 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3
    return found if all(0 < d <= c for c, d in enumerate(found, 1)) else DISCOUNTS
