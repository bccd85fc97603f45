"""Drawing the next id from the logits: temperature, filters, penalties, and reproducible random numbers."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

Generators = torch.Generator | Sequence[torch.Generator] | None


@dataclass
class Sampling:
    """The filters apply in this order."""

    temperature: float = 1.0  # logits are divided by it; 0 = always the likeliest id
    top_k: int | None = None  # keep the k likeliest ids; None or 0 = all
    top_p: float | None = None  # keep the fewest ids whose probabilities sum to this (arXiv:1904.09751)
    min_p: float | None = None  # keep ids at least this fraction as probable as the likeliest (arXiv:2407.01082)
    # applied first: divides positive logits of ids in the text so far, and multiplies negative ones, as Hugging Face's
    repetition_penalty: float = 1.0  # (Keskar et al. 2019, arXiv:1909.05858)
    no_repeat_ngram: int = 0  # never the same n ids twice; 0 = off (see inference/repetition.py)
    dry_multiplier: float = 0.0  # DRY: what it takes from the logit of an id that repeats dry_allowed_length ids
    dry_base: float = 1.75  # and times this for each further id
    dry_allowed_length: int = 2
    new_only: bool = False  # whether no_repeat_ngram and DRY see new ids alone: an answer may quote its question
    unpenalized: Sequence[int] = ()  # ids that no penalty applies to, such as those that end a text
    vocab_size: int | None = None  # draw only ids below this: the model's vocabulary may be padded
    logprobs: bool = False  # whether stream() yields log-probabilities

    def validate(self) -> None:
        """Raises ValueError for a value out of range."""
        if not math.isfinite(self.temperature):
            raise ValueError(f"temperature={self.temperature} must be a finite number")
        for name, high in {"temperature": math.inf, "top_k": math.inf, "top_p": 1, "min_p": 1}.items():
            value = getattr(self, name)
            if value is not None and not 0 <= value <= high:
                limits = "must not be negative" if high == math.inf else "must be from 0 to 1"
                raise ValueError(f"{name}={value} {limits}")
        if 0 < self.temperature < 1e-5:  # the division would overflow float32
            raise ValueError(f"temperature={self.temperature} must be 0, for the likeliest id, or at least 1e-5")
        lowest = {"no_repeat_ngram": 0, "dry_multiplier": 0, "dry_base": 1, "dry_allowed_length": 1}
        lowest["repetition_penalty"] = 0.01  # as with temperature
        for name, low in lowest.items():
            if not low <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)} must be finite and at least {low}")

    @property
    def looks_back(self) -> bool:
        """Whether it needs the ids so far, in their order: see inference/repetition.py."""
        return self.no_repeat_ngram > 0 or self.dry_multiplier > 0


def uniforms(generator: Generators, batch_size: int, device: torch.device) -> Iterator[torch.Tensor]:
    """Endless draws from [0, 1), (batch_size,) at a time. They depend on the generator only: one on the CPU gives the
    same draws for every device."""
    while True:
        if isinstance(generator, Sequence):
            draws = torch.stack([torch.rand(64, generator=g, device=g.device) for g in generator])
        else:
            draws = torch.rand(batch_size, 64, generator=generator, device=generator.device if generator else "cpu")
        yield from draws.to(device).unbind(1)


def sample_next(
    logits: torch.Tensor, sampling: Sampling, uniform: torch.Tensor | None = None, seen: torch.Tensor | None = None
) -> torch.Tensor:
    """Picks one id per row from logits (B, V) float32; returns (B,) int64.

    uniform (B,) in [0, 1) decides: the id at which the cumulative probability reaches 1 - uniform of its total, in the
    order of ids or, with top_k or top_p, of decreasing probability; unused if temperature is 0. seen (B, V) bool: the
    ids that repetition_penalty applies to.
    """
    if seen is not None:
        penalty = sampling.repetition_penalty
        logits = torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    order, k = None, min(sampling.top_k or logits.size(-1), logits.size(-1))
    if k < logits.size(-1) or sampling.top_p is not None:
        logits, order = logits.topk(k, dim=-1)  # (B, k), decreasing
    probs = F.softmax(logits / sampling.temperature, dim=-1)
    if sampling.top_p is not None:
        before = probs.cumsum(dim=-1) - probs  # of the likelier ids
        before[:, 0] = -1.0  # the likeliest stays
        probs = probs.masked_fill(before >= sampling.top_p, 0.0)
    if sampling.min_p is not None:
        probs = probs.masked_fill(probs < sampling.min_p * probs.amax(dim=-1, keepdim=True), 0.0)
    cumulative = probs.cumsum(dim=-1)
    # the first to reach a positive share of the total has a positive probability itself
    ids = torch.searchsorted(cumulative, (1 - uniform[:, None]) * cumulative[:, -1:])
    return (ids if order is None else order.gather(1, ids))[:, 0]
