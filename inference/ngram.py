"""Counts of the training text beside a model: how often the last few ids were followed by which.

    ngram = NGram(dataset.array("train"), vocab_size, share=0.2)
    model = join_models([model], ngram)             # 0.8 of the model's probabilities and 0.2 of the counts'

A model of one book learns its common words well and its rare ones hardly; counts know what was there once. They are
smoothed by the interpolated Kneser-Ney method with three discounts (Chen & Goodman 1999, "An Empirical Study of
Smoothing Techniques for Language Modeling"): an id seen c times behind h has the probability (c - D(c)) / n(h), and
what the discounts took from all that were seen is dealt out by the same rule for h without its first id. There c is not
how often an id was seen behind h, but behind how many ids with h.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

ORDER = 6  # ids of the longest run that is counted
MOST_IDS = 2**25  # which take a minute and 6 GB
DISCOUNTS = (0.5, 1.0, 1.5)  # KenLM's (Heafield et al. 2013), where the text is too short or odd to say


@dataclass
class Level:
    """The distinct runs of k ids, numbered in order."""

    keys: np.ndarray  # (n,) int64: the number of a run's first k - 1 ids times vocab_size, plus its last id
    own: np.ndarray  # (n,) float32: (c - D(c)) / n(h) of each, where h is its first k - 1 ids
    rest: np.ndarray  # (runs of k - 1,) float32: for each h, the share that is left for shorter ones


class NGram:
    """share: what its probabilities weigh in a mixture, above 0; 1 = the counts alone. text: what was counted."""

    def __init__(self, ids: np.ndarray, vocab_size: int, share: float, text: str = ""):
        """ids (N,), all below vocab_size. ValueError for a text too long or too short to be counted."""
        if not 2 <= len(ids) <= MOST_IDS:
            found = f"the training text has {len(ids):,} ids"
            raise ValueError(f"--ngram counts what a text of 2 to {MOST_IDS:,} ids repeats, {found}: leave it out")
        self.vocab_size, self.text, self.levels = vocab_size, text, []
        self.log_shares = math.log(share), math.log(1 - share) if share < 1 else -math.inf  # the counts', the model's
        ends = ids = np.asarray(ids, np.int64)
        counted = [(np.arange(vocab_size), ends)]  # for each k: the keys of its runs, and the run that ends at each id
        for _ in range(min(ORDER, len(ids)) - 1):
            keys, ends = np.unique(ends[:-1] * vocab_size + ids[len(ids) - len(ends) + 1 :], return_inverse=True)
            counted.append((keys, ends))
        for k, (keys, ends) in enumerate(counted, 1):
            if k == len(counted):
                counts = np.bincount(ends, minlength=len(keys))
            else:  # of each run, the different ids before it: the distinct longer runs that end with it
                longer_keys, longer_ends = counted[k]
                one_more = np.empty(len(longer_keys), np.int64)
                one_more[longer_ends] = ends[1:]
                counts = np.bincount(one_more, minlength=len(keys))
            contexts = len(counted[k - 2][0]) if k > 1 else 1
            self.levels.append(level_of(keys, counts, vocab_size, contexts))

    def follow(self, runs: list[np.ndarray], ids: np.ndarray) -> list[np.ndarray]:
        """The numbers of the runs of 1, 2, ... ids that end with `ids` (B,), given those of the runs right before; -1
        where the text has no such run."""
        longer = zip(self.levels[1:-1], runs[:-1], strict=True)
        return [ids, *(find(level, run, ids, self.vocab_size) for level, run in longer)]

    def start(self, prompts: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """The same for the ends of the prompts, one row each."""
        width, B = len(self.levels) - 1, len(prompts)
        last = np.full((B, width), -1)
        for row, prompt in zip(last, prompts, strict=True):
            row[width - min(width, len(prompt)) :] = prompt[-width:] if width else []
        runs = [np.full(B, -1)] * width
        for ids in last.T:
            runs = self.follow(runs, ids)
        return runs

    def probabilities(self, runs: list[np.ndarray]) -> np.ndarray:
        """Of each id behind `runs` (see follow), (B, vocab_size) float32."""
        first, B = self.levels[0], len(runs[0])
        found = np.tile(first.own + first.rest / self.vocab_size, (B, 1))
        for level, contexts in zip(self.levels[1:], runs, strict=True):
            edges = np.searchsorted(level.keys, np.stack([contexts, contexts + 1]) * self.vocab_size)
            for row, context, begin, end in zip(found, contexts, *edges, strict=True):
                if context >= 0:
                    row *= level.rest[context]
                    row[level.keys[begin:end] - context * self.vocab_size] += level.own[begin:end]
        return found

    def mix(self, logits: torch.Tensor, runs: list[np.ndarray]) -> torch.Tensor:
        """Logits (B, up to vocab_size) float32 of a model behind `runs` -> the logarithm of the mixture."""
        counts = torch.from_numpy(self.probabilities(runs)[:, : logits.size(-1)]).to(logits.device)
        ours, models = self.log_shares
        return torch.logaddexp(logits.log_softmax(-1) + models, counts.log() + ours)

    def mix_nats(self, nats: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """A model's nats (N,) for the targets in y (B, T) that are not -1 -> those of the mixture. x (B, T): the ids
        before them; what is before a row is not known."""
        runs, found = [np.full(x.shape[:1], -1)] * (len(self.levels) - 1), np.empty(x.shape)
        for t in range(x.shape[1]):
            runs, target = self.follow(runs, x[:, t]), np.maximum(y[:, t], 0)
            p = self.levels[0].own[target] + self.levels[0].rest / self.vocab_size
            for level, contexts in zip(self.levels[1:], runs, strict=True):
                at = find(level, contexts, target, self.vocab_size)
                mixed = np.where(at >= 0, level.own[at], 0) + level.rest[contexts] * p
                p = np.where(contexts >= 0, mixed, p)
            found[:, t] = p
        ours, models = self.log_shares
        return -np.logaddexp(models - nats, ours + np.log(found[y >= 0]))


class Follower:
    """The ends of growing rows of ids, step by step."""

    def __init__(self, ngram: NGram, prompts: Sequence[torch.Tensor]):
        self.ngram, self.runs = ngram, ngram.start([row.cpu().numpy() for row in prompts])

    def mix(self, logits: torch.Tensor, new: torch.Tensor | None) -> torch.Tensor:
        """NGram.mix behind the rows, to which `new` (B,) is appended first."""
        if new is not None:
            self.runs = self.ngram.follow(self.runs, new.cpu().numpy())
        return self.ngram.mix(logits, self.runs)


def find(level: Level, contexts: np.ndarray, ids: np.ndarray, vocab_size: int) -> np.ndarray:
    """The numbers of the runs made of `contexts` (B,), numbers of shorter runs, and `ids` (B,); -1 if there is none."""
    keys = contexts * vocab_size + ids
    at = np.searchsorted(level.keys, keys).clip(max=len(level.keys) - 1)
    return np.where((contexts >= 0) & (ids >= 0) & (level.keys[at] == keys), at, -1)


def level_of(keys: np.ndarray, counts: np.ndarray, vocab_size: int, contexts: int) -> Level:
    """The level of runs with these counts. contexts: how many runs are one id shorter."""
    taken = np.array([0, *discounts(counts)])[np.minimum(counts, 3)]
    context = keys // vocab_size
    total, left = (np.bincount(context, weights, contexts) for weights in (counts, taken))
    left[total == 0] = 1  # nothing was seen behind it
    total[total == 0] = 1
    return Level(keys, ((counts - taken) / total[context]).astype(np.float32), (left / total).astype(np.float32))


def discounts(counts: np.ndarray) -> tuple[float, float, float]:
    """What is taken from counts of 1, 2, and 3 or more, by the numbers of runs with counts of 1 to 4."""
    n1, n2, n3, n4 = (int((counts == c).sum()) for c in range(1, 5))
    if not n1 * n2 * n3:
        return DISCOUNTS
    y = n1 / (n1 + 2 * n2)
    found = 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3
    return found if all(0 < d <= c for c, d in enumerate(found, 1)) else DISCOUNTS
