"""Which ids each window of a text reads and scores, as eval.py's docstring defines them, and the nats of the scored
ones, by one process or many, to float64's accuracy."""

from collections.abc import Callable

import numpy as np
import torch
from tqdm import tqdm

from model import GPT, logits_at_once
from system.distributed import Ranks

# default tokens per batch; more would not fit into a CPU's cache
CPU_BATCH, GPU_BATCH = 4096, 16384
START, FIRST, STOP = range(3)  # columns of windows (K, 3), which read ids START to STOP-1 and score those from FIRST on


def document_edges(ids: np.ndarray, eot: int) -> np.ndarray:
    """Where documents begin and end: 0, the positions of all end-of-text ids, n-1. Document i has the ids edges[i] to
    edges[i + 1], inclusive."""
    width = 2**22
    places = [np.flatnonzero(ids[i : i + width] == eot) + i for i in range(0, len(ids), width)]
    return np.unique(np.concatenate([[0], *places, [len(ids) - 1]]))


def plan_windows(edges: np.ndarray, width: int, stride: int) -> np.ndarray:
    """Windows (K, 3) of `width` ids, `stride` apart in each document (see document_edges), which score all its ids but
    the first. Documents of one id, and windows with nothing to score, are left out."""
    begin, end = edges[:-1], edges[1:] + 1
    n = np.maximum(0, -(-(end - begin - width) // stride)) + 1  # windows per document
    document = np.repeat(np.arange(len(n)), n)
    number = np.arange(n.sum()) - np.repeat(np.cumsum(n) - n, n)  # of each window in its document
    start = begin[document] + number * stride
    # a later window starts scoring where the previous one ended, or at its own second id if that is further
    first = np.where(number == 0, start + 1, np.maximum(start + 1, start - stride + width))
    windows = np.stack([start, first, np.minimum(start + width, end[document])], axis=1)
    return windows[windows[:, FIRST] < windows[:, STOP]]


def score(
    model: GPT, get_ids: Callable, windows: np.ndarray, batch_size: int | None, greedy: bool, ranks: Ranks
) -> tuple[np.ndarray, np.ndarray]:
    """For each window, the total nats of its scored ids, and how many were not the likeliest (0 unless `greedy`). Both
    (K,) float64, the same on every rank. get_ids: as in Text.

    Each rank takes a contiguous range of windows with an equal share of the ids, and reads no others. Padding is at a
    window's end, which the positions before it do not see, so a window's nats do not depend on its batch.
    """
    nats, misses, largest = found = np.zeros((3, len(windows)))
    device, vocab_size = next(model.parameters()).device, model.config.vocab_size
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
                nats[rows], misses[rows] = np.bincount(row, loss, len(rows)), np.bincount(row, miss, len(rows))
            bar.update(len(rows))
    if ranks.world_size > 1:  # exact: all ranks but one have zeros for a window
        nats, misses, largest = np.array(ranks.sum(found.ravel().tolist())).reshape(found.shape)
    if (found := largest.max()) >= vocab_size:  # only now, on all ranks, so that none waits for one that gave up
        raise ValueError(f"the text holds id {found:.0f}, but the model's vocab_size is {vocab_size}: prepare it again")
    return nats, misses


def losses(model: GPT, x: torch.Tensor, y: torch.Tensor, greedy: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """For each target in y (B, T) that is not -1, in order: nats (N,) float64, and whether another id was likelier
    (N,) bool; all False unless `greedy`, which doubles the time. Only these positions go through the head, in chunks.
    A float32 near 10 is off by up to 5e-7, so the logarithm and the difference are computed in float64."""
    hidden, targets = model.transformer.ln_f(model.hidden(x)[y >= 0]), y[y >= 0]  # (N, C), (N,)
    rows = max(128, logits_at_once(x.device) // model.config.vocab_size)
    parts = []
    for h, t in zip(hidden.split(rows), targets.split(rows), strict=True):
        logits = model.logits(h).float()  # (rows, V)
        target = logits.gather(1, t[:, None])[:, 0]
        largest, likeliest = logits.max(1) if greedy else (logits.amax(1), t)
        total = logits.sub_(largest[:, None]).exp_().sum(1)
        parts.append(torch.stack((target, largest, total, likeliest != t)))
    target, largest, total, miss = torch.cat(parts, dim=1).cpu().double()
    return (total.log() + largest - target).numpy(), miss.bool().numpy()


def cut(ids: np.ndarray, windows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Windows (B, 3) of ids (n,) -> x, y, both int64 (B, T): y is x shifted by one id, -1 where not scored."""
    at = windows[:, START, None] + np.arange((windows[:, STOP] - windows[:, START]).max())  # (B, T+1)
    inside = at < windows[:, STOP, None]
    taken = np.where(inside, ids[np.minimum(at, len(ids) - 1)], 0).astype(np.int64)
    scored = inside & (at >= windows[:, FIRST, None])
    return taken[:, :-1], np.where(scored, taken, -1)[:, 1:]
