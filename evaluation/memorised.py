"""How much of what a model writes is copied: the longest passages that its samples share, byte for byte, with the text
it was trained on. The held-out text is measured too, since stock phrases recur in any text."""

import sys
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from tqdm import tqdm

from data.dataset import Dataset
from data.fim import text_ids
from data.tokenizer import token_table
from inference.ensemble import Ensemble
from inference.generate import stream
from inference.load import open_matching_dataset
from inference.sampling import Sampling
from model import GPT

N_SAMPLES, N_PROMPT, N_WRITTEN = 16, 16, 512  # texts, ids of the held-out text that each continues, ids of each
SHORTEST = 24  # bytes: shorter passages are not looked for
SEARCHED = 2**27  # training ids at most that are searched, which takes some minutes
IDS_AT_ONCE = 2**17
FACTORS = np.array([0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB], "<u8")  # odd, of SplitMix64


def open_known(name: str | None, state: dict, split: str) -> Dataset:
    """The dataset whose training text is searched. ValueError if the split is too short, or the tokenizer does not give
    its text back."""
    dataset = open_matching_dataset(name, state)
    tokenizer, n = dataset.tokenizer, dataset.tokens(split)
    if tokenizer is None or tokenizer.lossy:
        problem = f"the tokenizer of dataset {dataset.name} does not give them back" if tokenizer else "there is none"
        raise ValueError(f"--memorised compares texts, so it needs their tokenizer, but {problem}: leave it out")
    if n <= N_PROMPT:
        problem = f"{split} has {n} ids, and its first {N_PROMPT} are a prompt"
        raise ValueError(f"--memorised continues the text of a split, but {problem}: leave it out")
    return dataset


def overlap_figures(model: GPT | Ensemble, dataset: Dataset, split: str) -> dict:
    """Characters of the longest passage that each of the samples, which continue `split` at even distances, shares with
    the training text; the same for the text that really follows there."""
    tokenizer, held_out = dataset.tokenizer, dataset.array(split)
    length = min(N_WRITTEN, len(held_out) - N_PROMPT)
    starts = np.linspace(0, len(held_out) - N_PROMPT - length, N_SAMPLES).astype(int)
    prompts = torch.from_numpy(np.stack([held_out[i : i + N_PROMPT] for i in starts]).astype(np.int64))
    sampling = Sampling(temperature=0.8, top_k=200, vocab_size=text_ids(tokenizer))  # sample.py's own
    generators = [torch.Generator().manual_seed(seed) for seed in range(N_SAMPLES)]
    drawn = stream(model, prompts.to(model.transformer.wte.weight.device), length, sampling, generators)
    written = torch.stack([ids for ids, _ in drawn], dim=1).cpu().numpy()
    real = np.stack([held_out[i + N_PROMPT : i + N_PROMPT + length] for i in starts])
    texts = [as_bytes(tokenizer, row) for row in (*written, *real)]
    parts = text_in_parts(dataset.array("train"), tokenizer, overlap=max(map(len, texts)))
    passages = [passage.decode("utf-8", "ignore") for passage in longest_passages(texts, parts)]
    figures = {}
    for name, own in (("samples", passages[:N_SAMPLES]), ("held_out", passages[N_SAMPLES:])):
        sizes = [len(passage) for passage in own]
        figures |= {f"copied_{name}_longest": max(sizes), f"copied_{name}_median": float(np.median(sizes))}
        figures |= {f"copied_{name}_text": max(own, key=len)}
    return figures


def as_bytes(tokenizer, ids: np.ndarray) -> bytes:
    return b"".join(map(token_table(tokenizer).__getitem__, ids.tolist()))


def text_in_parts(ids: np.ndarray, tokenizer, overlap: int) -> Iterator[bytes]:
    """The text of ids (N,), or of more than SEARCHED every n-th part of it. Each part begins with the last `overlap`
    bytes of the one before, so that a passage that is no longer is in one of them."""
    every = max(1, -(-len(ids) // SEARCHED))
    if every > 1:
        print(f"note: of {len(ids):,} training tokens, one part in {every} is searched for passages", file=sys.stderr)
    before = b""
    for start in tqdm(range(0, len(ids), every * IDS_AT_ONCE), unit=" parts", disable=None):
        text = before + as_bytes(tokenizer, ids[start : start + IDS_AT_ONCE])
        before = text[max(0, len(text) - overlap) :] if every == 1 else b""
        yield text


def longest_passages(samples: list[bytes], parts: Iterable[bytes], shortest: int = SHORTEST) -> list[bytes]:
    """For each sample its longest passage that occurs in a part of the text; b"" if it is shorter than `shortest`, a
    multiple of 8. Bytes are compared only where the hashes of `shortest` of them allow more than was found so far."""
    known = np.unique(np.concatenate([hashes_of(sample, shortest) for sample in samples]))
    best = [b""] * len(samples)
    for text in parts if len(known) else ():
        hashes = hashes_of(text, shortest)
        is_hit = known[np.searchsorted(known, hashes).clip(max=len(known) - 1)] == hashes
        at, misses = np.flatnonzero(is_hit), np.append(np.flatnonzero(~is_hit), len(is_hit))
        most = misses[np.searchsorted(misses, at)] - at + shortest - 1  # bytes that a passage from there on can have
        for number, sample in enumerate(samples):
            n = max(len(best[number]), shortest - 1)
            longer = most > n
            for start, limit in zip(at[longer].tolist(), most[longer].tolist(), strict=True):
                while n < limit and text[start : start + n + 1] in sample:
                    n += 1
                    best[number] = text[start : start + n]
    return best


def hashes_of(text: bytes, shortest: int) -> np.ndarray:
    """A 64-bit hash of the `shortest` bytes from each position on, (max(0, n - shortest + 1),)."""
    data = np.frombuffer(text, np.uint8)
    n = len(data) - shortest + 1
    if n <= 0:
        return np.zeros(0, "<u8")
    words = np.lib.stride_tricks.sliding_window_view(data, 8).copy().view("<u8")[:, 0]  # (len - 7,)
    total = np.zeros(n, "<u8")
    for k in range(0, shortest, 8):
        word = words[k : k + n] * FACTORS[k // 8 % len(FACTORS)]
        total = (total ^ word ^ (word >> np.uint64(29))) * FACTORS[0]
    return total
