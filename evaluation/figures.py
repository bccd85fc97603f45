"""Losses and bits from the nats of windows, and the bits of general compressors for the same text."""

import bz2
import lzma
import math
import sys
import zlib

import numpy as np
from tqdm import tqdm

from data.tokenizer import token_table
from evaluation.windows import FIRST, START, STOP


def bits_per_unit(nats: np.ndarray, ids: np.ndarray, tokenizer) -> dict:
    """Bits per UTF-8 byte and per character of the text of ids (n,), without the first id, which is not predicted. A
    character split over several tokens counts where its first byte is."""
    known = token_table(tokenizer)
    begins = [sum(byte & 0xC0 != 0x80 for byte in token) for token in known]
    counts = np.zeros(len(known), np.int64)
    for part in parts(ids):
        counts += np.bincount(part[part < len(known)], minlength=len(known))  # the rest pad the vocabulary
    bits = math.fsum(nats) / math.log(2)
    n_bytes, n_characters = int(counts @ [len(token) for token in known]), int(counts @ begins)
    added = added_spaces(ids, known, tokenizer) if tokenizer.first_space else 0
    n_bytes, n_characters = n_bytes - added, n_characters - added
    per_byte, per_character = (bits / n if n else math.nan for n in (n_bytes, n_characters))
    counted = {"bytes": n_bytes, "characters": n_characters}
    return {"bits_per_byte": per_byte, "bits_per_character": per_character, **counted}


def added_spaces(ids: np.ndarray, known: list[bytes], tokenizer) -> int:
    """How many of the spaces in ids (n,) the tokenizer put before a text: before the first ones of documents."""
    is_special = np.array([not token for token in known])
    is_space = np.array([token.startswith(b" ") for token in known])
    at = np.flatnonzero(is_special[ids[:-1]] & ~is_special[ids[1:]])
    return int(is_space[ids[at + 1]].sum())


def parts(ids: np.ndarray) -> list[np.ndarray]:
    """ids (n,) without the first, in pieces to be read one at a time."""
    width = 2**20
    return [ids[i : i + width] for i in range(1, len(ids), width)]


def huggingface_perplexity(nats: np.ndarray, windows: np.ndarray) -> dict:
    """As defined by huggingface.co/docs/transformers/perplexity: "perplexity" from the plain mean of the windows' means
    (19.44 and, at stride 512, 16.45 for GPT-2 large on WikiText-2), and "perplexity_weighted" as in the page's later
    version (16.44), which weights each mean by its window's number of new ids, less one."""
    means = nats / (windows[:, STOP] - windows[:, FIRST])
    weights = np.diff(windows[:, STOP], prepend=windows[0, START]) - 1
    mean = math.fsum(means) / len(means)
    weighted = math.fsum(means * weights) / weights.sum() if weights.any() else math.nan
    return {"loss": mean, "perplexity": exp(mean), "perplexity_weighted": exp(weighted)}


def exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf


def baselines(ids: np.ndarray, tokenizer) -> dict[str, float]:
    """Bits per byte of general compressors for the text of ids (n,) without the first; zstd's if it is installed."""
    known = token_table(tokenizer)
    compressors = {"gzip -9": zlib.compressobj(9, wbits=31), "bzip2 -9": bz2.BZ2Compressor(9)}
    compressors["xz -9"] = lzma.LZMACompressor(preset=9)
    try:
        import zstandard

        compressors["zstd -19"] = zstandard.ZstdCompressor(level=19).compressobj()
    except ImportError:
        print("note: without zstd, which needs the package zstandard", file=sys.stderr)
    size, compressed = 0, dict.fromkeys(compressors, 0)
    for part in tqdm(parts(ids), desc="compressing", unit="M tokens", disable=None):
        text = b"".join([known[id] for id in part[part < len(known)].tolist()])
        size += len(text)
        for name, compressor in compressors.items():
            compressed[name] += len(compressor.compress(text))
    for name, compressor in compressors.items():
        compressed[name] += len(compressor.flush())
    return {name: 8 * n / size if size else math.nan for name, n in compressed.items()}
