"""Penalties for repeating a sequence of ids: what small models do when they are sure of little.

    penalty = Repetition(sampling, prompts)                # None in stream(), if sampling has neither of the two
    logits = penalty.apply(logits)                         # (B, V), before temperature and filters
    penalty.add(ids)                                       # (B,), those drawn

For every earlier position, both count how many ids before it are those at the text's end; the id at that position would
go on repeating them.
no_repeat_ngram=n forbids what would make n ids the same, as Hugging Face's NoRepeatNGramLogitsProcessor. DRY ("don't
repeat yourself", p-e-w 2024, github.com/oobabooga/text-generation-webui/pull/5677) takes from the logit
multiplier * base ** (length - allowed_length), if the length is at least allowed_length.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch

from inference.sampling import Sampling

FORBIDDEN = 1e9  # the most a logit loses: finite, so that where every id is forbidden one of them is still drawn


class Repetition:
    """Of B rows of ids, which must be on the CPU at every step: a GPU waits for them."""

    def __init__(self, sampling: Sampling, prompts: Iterable[torch.Tensor | Sequence[int]]):
        self.sampling, known = sampling, ([] if sampling.new_only else ids for ids in prompts)
        self.rows = [History(ids.tolist() if torch.is_tensor(ids) else ids) for ids in known]

    def add(self, ids: torch.Tensor) -> None:
        for row, id in zip(self.rows, ids.tolist(), strict=True):
            row.add(id)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits (B, V), less what each id costs; a new tensor."""
        costs = [
            (i, id, cost) for i, row in enumerate(self.rows) for id, cost in self.costs(row).items()
            if id < logits.size(-1)
        ]  # fmt: skip
        if not costs:
            return logits
        rows, ids, cost = zip(*costs, strict=True)
        places = torch.tensor(rows, device=logits.device), torch.tensor(ids, device=logits.device)
        return logits.index_put(places, -torch.tensor(cost, device=logits.device, dtype=logits.dtype), accumulate=True)

    def costs(self, row: "History") -> dict[int, float]:
        """What each id costs that would repeat something."""
        costs, sampling = {}, self.sampling
        n = sampling.no_repeat_ngram
        least = min([n - 1] * (n > 0) + [sampling.dry_allowed_length] * (sampling.dry_multiplier > 0))
        for i in np.flatnonzero(row.lengths >= least).tolist():
            id, length = row.ids[i], int(row.lengths[i])
            cost = FORBIDDEN if n and length >= n - 1 else self.dry_cost(length)
            costs[id] = max(cost, costs.get(id, 0.0))
        for id in sampling.unpenalized:
            costs.pop(id, None)
        return costs

    def dry_cost(self, length: int) -> float:
        s = self.sampling
        log = math.log(s.dry_multiplier) + (length - s.dry_allowed_length) * math.log(s.dry_base)
        return math.exp(min(log, math.log(FORBIDDEN)))


class History:
    """ids so far, and lengths: how many ids before position i are those at the end of the row."""

    def __init__(self, ids: Sequence[int]):
        self.ids, backwards = list(ids), list(reversed(ids))
        self.lengths = np.array([0, *common_prefixes(backwards)[:0:-1]][: len(self.ids)], np.int64)

    def add(self, id: int) -> None:
        same = np.array(self.ids, np.int64) == id  # whether the id before position i + 1 is the new last one
        self.lengths = np.concatenate([[0], np.where(same, self.lengths + 1, 0)])
        self.ids.append(id)


def common_prefixes(ids: Sequence[int]) -> list[int]:
    """For each position, how many ids from there on are those at the beginning: the Z function (Gusfield 1997), in as
    many steps as there are ids."""
    lengths, left, right = [len(ids)] * bool(ids), 0, 0  # ids[left:right] are known to be ids[: right - left]
    for i in range(1, len(ids)):
        n = min(lengths[i - left], right - i) if i < right else 0
        while i + n < len(ids) and ids[n] == ids[i + n]:
            n += 1
        lengths.append(n)
        if i + n > right:
            left, right = i, i + n
    return lengths
