"""Several models as one, whose probabilities are averaged: a lower loss than the best of them alone.

    model = join_models([model_1, model_2])             # in eval mode; a single one stays itself
    model = join_models([model_1], ngram)               # with an n-gram model (ngram.py)
    for ids, _ in stream(model, prompts, 100): ...

Lakshminarayanan et al. 2017 (arXiv:1612.01474). train.py's --distill_from makes one model of them.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from inference.ngram import NGram
from model import GPT


class Ensemble:
    """Models over the same ids. `config` is the first one's, with the shortest context of all; `transformer` too is the
    first one's, for callers that ask a model for its device."""

    def __init__(self, models: Sequence[GPT], ngram: NGram | None = None):
        shortest = min(model.config.block_size for model in models)
        self.models, self.ngram, self.transformer = models, ngram, models[0].transformer
        self.config = replace(models[0].config, block_size=shortest)
        for model in models:
            model.config = replace(model.config, block_size=shortest)  # tables of positions may stay longer

    @property
    def training(self) -> bool:
        return any(model.training for model in self.models)


def members(model: GPT | Ensemble) -> Sequence[GPT]:
    return model.models if isinstance(model, Ensemble) else [model]


def ngram_of(model: GPT | Ensemble) -> NGram | None:
    return model.ngram if isinstance(model, Ensemble) else None


def mean_logits(logits: Sequence[torch.Tensor]) -> torch.Tensor:
    """Logits (..., V) float32 of several models -> the logarithm of their mean probabilities; one model's stay."""
    if len(logits) == 1:
        return logits[0]
    return torch.stack([part.log_softmax(-1) for part in logits]).logsumexp(0) - math.log(len(logits))


def join_models(models: Sequence[GPT], ngram: NGram | None = None) -> GPT | Ensemble:
    return models[0] if len(models) == 1 and ngram is None else Ensemble(models, ngram)
