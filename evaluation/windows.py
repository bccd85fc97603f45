"""Which ids each window of a text reads and scores, as eval.py's docstring defines them."""

import numpy as np

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


def cut(ids: np.ndarray, windows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Windows (B, 3) of ids (n,) -> x, y, both int64 (B, T): y is x shifted by one id, -1 where not scored."""
    at = windows[:, START, None] + np.arange((windows[:, STOP] - windows[:, START]).max())  # (B, T+1)
    inside = at < windows[:, STOP, None]
    taken = np.where(inside, ids[np.minimum(at, len(ids) - 1)], 0).astype(np.int64)
    scored = inside & (at >= windows[:, FIRST, None])
    return taken[:, :-1], np.where(scored, taken, -1)[:, 1:]
