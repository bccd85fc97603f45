"""Windows of a dataset: deterministic batches to train on, and evenly spread ones to evaluate.

    dataset = open_dataset("shakespeare_char")
    x, y = batch(dataset, "train", seed=1337, index=np.arange(64), block_size=256)

A batch reads only its own windows from a .bin, never the whole file. Windows of conversations hold one each.
"""

import math
import zlib

import numpy as np

from data.dataset import FIRST_ID, TARGET, Dataset
from data.tokenizer import ByteTokenizer


def windows_per_epoch(dataset: Dataset, split: str, block_size: int) -> int:
    """Windows of block_size tokens in an epoch of `batch`. ValueError if the split is too short for one, or has a
    conversation that is longer."""
    if dataset.is_masked:
        return len(conversation_edges(dataset, split, block_size)) - 1
    n = dataset.tokens(split)
    if n <= block_size:
        raise ValueError(
            f"{dataset.folder}: {split} has {n:,} tokens, but block_size={block_size} needs at least "
            f"{block_size + 1:,}; use a smaller block_size or more text"
        )
    return max(1, n // block_size - 1)  # one fewer than fit, to leave room for the phase


def batch(
    dataset: Dataset, split: str, seed: int, index: np.ndarray, block_size: int, sampling: str = "contiguous"
) -> tuple[np.ndarray, np.ndarray]:
    """Windows number `index` (B,) -> x, y, both int64 (B, T) with T = block_size; y is x shifted by one token.

    A pure function of (seed, split, index) for a given dataset and T. Windows e * n to (e + 1) * n - 1, where
    n = windows_per_epoch, are epoch e: they share no target, and their order and the offset of the whole grid (the
    phase) are drawn anew for every epoch, so that every token gets its turn.

    sampling="line" moves each window on to the next start of a line: see line_windows. Of conversations, window k is a
    whole one (see conversation_windows), and an epoch has each of them once.
    """
    index = np.asarray(index, dtype=np.int64)
    assert index.ndim == 1 and (index >= 0).all()
    n = windows_per_epoch(dataset, split, block_size)
    epoch, k = np.divmod(index.astype(np.uint64), np.uint64(n))
    key = mix(mix(epoch + np.uint64(zlib.crc32(split.encode()))) ^ mix(np.full(1, seed % 2**64, np.uint64)))
    if dataset.is_masked:
        return conversation_windows(dataset, split, permute(k, n, key).astype(np.int64), block_size)
    phase = mix(key) % np.uint64(dataset.tokens(split) - n * block_size)
    start = phase + permute(k, n, key) * np.uint64(block_size)
    if sampling == "line":
        return line_windows(dataset, split, start.astype(np.int64), block_size)
    taken = np.lib.stride_tricks.sliding_window_view(dataset.array(split), block_size + 1)[start]
    taken = check_ids(dataset, split, taken).astype(np.int64)
    return taken[:, :-1], taken[:, 1:]


def check_ids(dataset: Dataset, split: str, ids: np.ndarray) -> np.ndarray:
    """`ids` unchanged; ValueError if one is out of range, since the file may have been modified."""
    if ids.max() >= dataset.vocab_size:
        raise ValueError(
            f"{dataset.folder / split}.bin holds id {ids.max()}, but vocab_size is {dataset.vocab_size}; "
            "prepare the dataset again"
        )
    return ids


def mix(x: np.ndarray) -> np.ndarray:
    """Hash of uint64s to uint64s: the output step of SplitMix64 (Steele, Lea, Flood 2014)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def permute(k: np.ndarray, n: int, key: np.ndarray) -> np.ndarray:
    """Position k (B,) of the pseudo-random permutation of 0..n-1 selected by key (B,); all uint64.

    A Feistel network on pairs (left, right) in a grid of rows x columns barely larger than n. Values outside 0..n-1 go
    through again until they are inside (cycle walking), so it remains a permutation.
    """
    rows = math.isqrt(n - 1) + 1
    columns = -(-n // rows)
    k, todo = k.copy(), np.arange(k.size)
    while todo.size:
        k[todo] = feistel(k[todo], key[todo], np.uint64(rows), np.uint64(columns))
        todo = todo[k[todo] >= n]
    return k


def feistel(k: np.ndarray, key: np.ndarray, rows: np.uint64, columns: np.uint64) -> np.ndarray:
    left, right = np.divmod(k, columns)  # (B,) each
    for _ in range(8):
        key = mix(key)
        left = (left + mix(right ^ key) % rows) % rows
        key = mix(key)
        right = (right + mix(left ^ key) % columns) % columns
    return left * columns + right


def eval_windows(dataset: Dataset, split: str, block_size: int, limit: int | None = None) -> np.ndarray:
    """Indices of the windows to evaluate a split on, for eval_batch: all of them, or `limit` spread evenly.

    Window k predicts tokens k*T + 1 ... k*T + T. All windows together predict every token but the first exactly once;
    the last may be short. A subset contains full windows only, so that all weigh the same. Of conversations, window k
    is number k.
    """
    if dataset.is_masked:
        n = windows_per_epoch(dataset, split, block_size)
        return np.arange(n) if limit is None or limit >= n else np.arange(limit) * n // limit
    n = dataset.tokens(split)
    if n < 2:
        raise ValueError(f"{dataset.folder}: {split} has 1 token, evaluation needs at least 2")
    n_all, n_full = -(-(n - 1) // block_size), (n - 1) // block_size
    if limit is None or limit >= n_all:
        return np.arange(n_all)
    assert limit > 0
    return np.arange(limit) * n_full // limit


def eval_batch(
    dataset: Dataset, split: str, windows: np.ndarray, block_size: int, sampling: str = "contiguous"
) -> tuple[np.ndarray, np.ndarray]:
    """Windows of eval_windows (B,) -> x, y, both int64 (B, T); past the end of the text x is 0 and y is -1.

    sampling="line": window k is line_windows' for position k*T.
    """
    if sampling == "line":
        return line_windows(dataset, split, np.asarray(windows, dtype=np.int64) * block_size, block_size)
    if dataset.is_masked:
        return conversation_windows(dataset, split, np.asarray(windows, dtype=np.int64), block_size)
    ids = dataset.array(split)
    at = np.asarray(windows, dtype=np.int64)[:, None] * block_size + np.arange(block_size + 1)  # (B, T+1)
    inside = at < ids.size
    taken = check_ids(dataset, split, ids[np.minimum(at, ids.size - 1)])
    taken = np.where(inside, taken, 0).astype(np.int64)
    return taken[:, :-1], np.where(inside[:, 1:], taken[:, 1:], -1)


# ---- windows that hold a conversation ----------------------------------------------------------------------


def conversation_edges(dataset: Dataset, split: str, block_size: int) -> np.ndarray:
    """Where the n conversations of a split begin, and the end of the last, (n + 1,) int64. ValueError if one does not
    fit into a window of block_size tokens."""
    if split not in dataset.edges:
        starts = np.flatnonzero(dataset.mask(split) & FIRST_ID)
        if not len(starts) or starts[0]:
            raise ValueError(f"{dataset.folder / split}.mask is damaged: no conversation begins it; prepare it again")
        dataset.edges[split] = np.append(starts, dataset.tokens(split))
    longest = int(np.diff(dataset.edges[split]).max())
    if longest > block_size + 1:
        raise ValueError(
            f"{dataset.folder}: {split} has a conversation of {longest:,} tokens, but block_size={block_size} has room "
            f"for {block_size + 1:,}; use --block_size={longest - 1} or prepare it again with --block_size={block_size}"
        )
    return dataset.edges[split]


def conversation_windows(
    dataset: Dataset, split: str, numbers: np.ndarray, block_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Conversations (B,) -> x, y, both int64 (B, T): y is x shifted by one token, -1 where the mask has no TARGET; past
    the end of the conversation x is 0 and y is -1, so that none sees another."""
    edges, ids = conversation_edges(dataset, split, block_size), dataset.array(split)
    at = edges[numbers, None] + np.arange(block_size + 1)  # (B, T+1)
    inside = at < edges[numbers + 1, None]
    at = np.minimum(at, ids.size - 1)
    taken = np.where(inside, check_ids(dataset, split, ids[at]), 0).astype(np.int64)
    is_target = inside & (dataset.mask(split)[at] & TARGET > 0)
    return taken[:, :-1], np.where(is_target, taken, -1)[:, 1:]


# ---- windows that start at a line --------------------------------------------------------------------------

BOS = 0  # precedes a line's first token in x
FAR = 2**16  # tokens to search for the end of a line


def line_windows(dataset: Dataset, split: str, positions: np.ndarray, block_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Windows at the first line starts from `positions` (B,) on -> x, y, both int64 (B, T).

    y is the text from the line's start, x is BOS followed by y without its last token. After the end-of-text id of the
    document (still a target) x is 0 and y is -1: no window continues into another document.

    A line starts where a document does, and after every token whose bytes end in a newline. Evenly spread positions,
    such as those of `batch`, pick a line with a probability proportional to the length of the line before it: this
    needs no index of the lines, and an epoch is as long as with contiguous windows. The search wraps from the last
    line to the first. A line longer than FAR tokens counts as starting at the position itself.
    """
    ids, (ends, eot) = dataset.array(split), line_ends(dataset)
    start = np.array([line_start(ids, int(position), ends, eot) for position in positions])
    at = start[:, None] + np.arange(block_size)  # (B, T)
    taken = check_ids(dataset, split, ids[np.minimum(at, ids.size - 1)]).astype(np.int64)
    is_eot = taken == eot
    past_end = (np.cumsum(is_eot, axis=1) > is_eot) | (at >= ids.size)
    y = np.where(past_end, -1, taken)
    x = np.concatenate([np.full((len(y), 1), BOS), np.where(y[:, 1:] < 0, 0, y[:, :-1])], axis=1)
    return x, y


def line_start(ids: np.ndarray, position: int, ends: np.ndarray, eot: int) -> int:
    """The first line start at or after `position` whose first token is not an end of text."""
    first, width = position - 1, 2**8
    while 0 <= first < position + FAR:
        near = ids[first : first + width + 1]
        found = np.flatnonzero(ends.take(near[:-1], mode="clip") & (near[1:] != eot))
        if found.size:
            return first + 1 + int(found[0])
        if first + width + 1 >= ids.size:
            return 0
        first, width = first + width, 2 * width
    return position


def line_ends(dataset: Dataset) -> tuple[np.ndarray, int]:
    """Whether a line starts after each id, (vocab_size,) bool; and the end-of-text id, or -1. ValueError if unknown.

    A vocabulary of 256 without a tokenizer is taken as bytes, with 0xFF between files.
    """
    if dataset.line_ends is None:
        tokenizer = dataset.tokenizer or (ByteTokenizer(eot=255) if dataset.vocab_size == 256 else None)
        if tokenizer is None:
            raise ValueError(
                f"{dataset.folder}: sampling=line needs to know which tokens end in a newline, but this dataset has no "
                "tokenizer; use sampling=contiguous, or prepare it again"
            )
        ends = np.array([tokenizer.token_bytes(i).endswith(b"\n") for i in range(dataset.vocab_size)])
        if not ends.any():
            raise ValueError(
                f"{dataset.folder}: sampling=line, but no token of this dataset ends in a newline; use "
                "sampling=contiguous"
            )
        if tokenizer.eot is not None:
            ends[tokenizer.eot] = True
        dataset.line_ends = ends, -1 if tokenizer.eot is None else tokenizer.eot
    return dataset.line_ends
