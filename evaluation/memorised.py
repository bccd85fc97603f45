"""How much of what a model writes is copied: the longest passages that its samples share, byte for byte, with the text
it was trained on. The held-out text is measured too, since stock phrases recur in any text."""

from dataclasses import dataclass

import numpy as np
import torch

from data.dataset import Dataset
from inference.ensemble import Ensemble
from inference.generate import stream
from inference.sampling import Sampling
from model import GPT

N_SAMPLES, N_PROMPT, N_WRITTEN = 16, 16, 512  # texts, ids of the held-out text that each continues, ids of each
SHORTEST = 24  # bytes: shorter passages are not looked for
TEXT_AT_ONCE = 2**22  # bytes of the training text
FACTORS = np.array([0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB], "<u8")  # odd, of SplitMix64


@dataclass
class Overlap:
    start: int  # in the sample, bytes
    length: int  # bytes; 0 if below SHORTEST


def overlap_figures(model: GPT | Ensemble, dataset: Dataset, split: str) -> dict:
    """Characters of the longest passage that each of the samples, which continue `split` at even distances, shares with
    the training text; the same for the text that really follows there. ValueError if a split is too short, or the
    tokenizer does not give its text back."""
    tokenizer, held_out = dataset.tokenizer, dataset.array(split)
    if tokenizer is None or tokenizer.lossy:
        problem = f"the tokenizer of dataset {dataset.name} does not give them back" if tokenizer else "there is none"
        raise ValueError(f"--memorised compares texts, so it needs their tokenizer, but {problem}: leave it out")
    length = min(N_WRITTEN, len(held_out) - N_PROMPT)
    if length < 1:
        problem = f"{split} has {len(held_out)} ids, and its first {N_PROMPT} are a prompt"
        raise ValueError(f"--memorised continues the text of a split, but {problem}: leave it out")
    starts = np.linspace(0, len(held_out) - N_PROMPT - length, N_SAMPLES).astype(int)
    prompts = torch.from_numpy(np.stack([held_out[i : i + N_PROMPT] for i in starts]).astype(np.int64))
    sampling = Sampling(temperature=0.8, top_k=200, vocab_size=tokenizer.vocab_size)  # sample.py's own
    generators = [torch.Generator().manual_seed(seed) for seed in range(N_SAMPLES)]
    drawn = stream(model, prompts.to(model.transformer.wte.weight.device), length, sampling, generators)
    written = torch.stack([ids for ids, _ in drawn], dim=1).cpu().numpy()
    real = np.stack([held_out[i + N_PROMPT : i + N_PROMPT + length] for i in starts])
    figures = {}
    text = np.frombuffer(as_bytes(tokenizer, dataset.array("train")), np.uint8)
    for name, rows in (("samples", written), ("held_out", real)):
        texts = [as_bytes(tokenizer, row) for row in rows]
        passages = [
            sample[found.start : found.start + found.length].decode("utf-8", "ignore")
            for sample, found in zip(texts, longest_overlaps(texts, text), strict=True)
        ]
        sizes = [len(passage) for passage in passages]
        figures |= {f"copied_{name}_longest": max(sizes), f"copied_{name}_median": float(np.median(sizes))}
        figures |= {f"copied_{name}_text": max(passages, key=len)}
    return figures


def as_bytes(tokenizer, ids: np.ndarray) -> bytes:
    return b"".join([tokenizer.token_bytes(id) for id in ids.tolist()])


def longest_overlaps(samples: list[bytes], text: np.ndarray, shortest: int = SHORTEST) -> list[Overlap]:
    """For each sample its longest passage that occurs in text (N,) uint8: all hashes of `shortest` bytes, a multiple of
    8, are compared, and hits that follow each other at the same distance are one passage."""
    places, hashes, number = [], [], []
    for i, sample in enumerate(samples):
        found = hashes_of(np.frombuffer(sample, np.uint8), shortest)
        places, hashes = [*places, np.arange(len(found))], [*hashes, found]
        number.append(np.full(len(found), i))
    places, hashes, number = np.concatenate(places), np.concatenate(hashes), np.concatenate(number)
    order = np.argsort(hashes, kind="stable")
    hashes, at, hit = hashes[order], [], []  # of the pairs: position in text, index into order
    for start in range(0, max(1, len(text)), TEXT_AT_ONCE):
        part = hashes_of(text[start : start + TEXT_AT_ONCE + shortest - 1], shortest)
        first, last = (np.searchsorted(hashes, part, side) for side in ("left", "right"))
        found = np.flatnonzero(first < last)
        counts = (last - first)[found]
        at.append(np.repeat(found + start, counts))
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        hit.append(np.repeat(first[found], counts) + within)
    at, hit = np.concatenate(at), order[np.concatenate(hit)]
    number, places = number[hit], places[hit]
    order = np.lexsort((places, at - places, number))
    at, number, places = at[order], number[order], places[order]
    breaks = (np.diff(at) != 1) | (np.diff(places) != 1) | (np.diff(number) != 0)
    begin = np.flatnonzero(np.concatenate([[True], breaks])) if len(at) else np.array([], int)
    lengths = np.diff(np.append(begin, len(at))) + shortest - 1
    best = [Overlap(0, 0) for _ in samples]
    for i, n in zip(begin.tolist(), lengths.tolist(), strict=True):
        if n > best[number[i]].length:
            best[number[i]] = Overlap(int(places[i]), n)
    return best


def hashes_of(data: np.ndarray, shortest: int) -> np.ndarray:
    """data (n,) uint8 -> a 64-bit hash of the `shortest` bytes from each position on, (max(0, n - shortest + 1),)."""
    n = len(data) - shortest + 1
    if n <= 0:
        return np.zeros(0, "<u8")
    words = np.lib.stride_tricks.sliding_window_view(data, 8).copy().view("<u8")[:, 0]  # (len - 7,)
    total = np.zeros(n, "<u8")
    for k in range(0, shortest, 8):
        word = words[k : k + n] * FACTORS[k // 8 % len(FACTORS)]
        total = (total ^ word ^ (word >> np.uint64(29))) * FACTORS[0]
    return total
