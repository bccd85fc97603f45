"""The nats of the ids that windows score, by one process or many, to float64's accuracy."""

from collections.abc import Callable

import numpy as np
import torch
from tqdm import tqdm

from evaluation.windows import CPU_BATCH, GPU_BATCH, START, STOP, cut
from inference.ensemble import Ensemble, mean_logits, members, ngram_of
from model import GPT, logits_at_once
from system.distributed import Ranks


def score(
    model: GPT | Ensemble, get_ids: Callable, windows: np.ndarray, batch_size: int | None, greedy: bool, ranks: Ranks
) -> tuple[np.ndarray, np.ndarray]:
    """For each window, the total nats of its scored ids, and how many were not the likeliest (0 unless `greedy`). Both
    (K,) float64, the same on every rank. get_ids: as in Text.

    Each rank takes a contiguous range of windows with an equal share of the ids, and reads no others. Padding is at a
    window's end, which the positions before it do not see, so a window's nats do not depend on its batch.
    """
    nats, misses, largest = found = np.zeros((3, len(windows)))
    device, vocab_size = model.transformer.wte.weight.device, model.config.vocab_size
    batch_tokens = CPU_BATCH if device.type == "cpu" else GPU_BATCH
    length = windows[:, STOP] - windows[:, START]
    before = np.cumsum(length) - length
    begin, end = np.searchsorted(before, length.sum() * np.array([ranks.rank, ranks.rank + 1]) / ranks.world_size)
    mine = begin + np.argsort(-length[begin:end], kind="stable")  # by length, for little padding
    with tqdm(total=len(mine), unit=" windows", disable=None if ranks.is_main else True) as bar:
        while len(mine):
            rows, mine = np.split(mine, [batch_size or max(1, batch_tokens // length[mine[0]])])
            x, y = cut(get_ids(), windows[rows])
            largest[rows] = np.maximum(x, y).max(1)
            if largest[rows].max() < vocab_size:
                row = np.nonzero(y >= 0)[0]
                loss, miss = losses(model, torch.from_numpy(x).to(device), torch.from_numpy(y).to(device), greedy)
                loss = ngram.mix_nats(loss, x, y) if (ngram := ngram_of(model)) else loss
                nats[rows], misses[rows] = np.bincount(row, loss, len(rows)), np.bincount(row, miss, len(rows))
            bar.update(len(rows))
    if ranks.world_size > 1:  # exact: all ranks but one have zeros for a window
        nats, misses, largest = np.array(ranks.sum(found.ravel().tolist())).reshape(found.shape)
    if (found := largest.max()) >= vocab_size:  # only now, on all ranks, so that none waits for one that gave up
        raise ValueError(f"the text holds id {found:.0f}, but the model's vocab_size is {vocab_size}: prepare it again")
    return nats, misses


def losses(
    model: GPT | Ensemble, x: torch.Tensor, y: torch.Tensor, greedy: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """For each target in y (B, T) that is not -1, in order: nats (N,) float64, and whether another id was likelier
    (N,) bool; all False unless `greedy`, which doubles the time. Only these positions go through the head, in chunks.
    A float32 near 10 is off by up to 5e-7, so the logarithm and the difference are computed in float64."""
    models, targets = members(model), y[y >= 0]  # (N,)
    hidden = [one.transformer.ln_f(one.hidden(x)[y >= 0]) for one in models]  # (N, C) each
    rows = max(128, logits_at_once(x.device) // model.config.vocab_size)
    parts = []
    for t, *chunks in zip(targets.split(rows), *(h.split(rows) for h in hidden), strict=True):
        # (rows, V)
        logits = mean_logits([one.logits(h).float() for one, h in zip(models, chunks, strict=True)])
        target = logits.gather(1, t[:, None])[:, 0]
        largest, likeliest = logits.max(1) if greedy else (logits.amax(1), t)
        total = logits.sub_(largest[:, None]).exp_().sum(1)
        parts.append(torch.stack((target, largest, total, likeliest != t)))
    target, largest, total, miss = torch.cat(parts, dim=1).cpu().double()
    return (total.log() + largest - target).numpy(), miss.bool().numpy()
