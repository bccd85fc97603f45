"""What prepare.py prints of a dataset, for a person to check."""

from argparse import Namespace
from concurrent.futures import Executor
from contextlib import suppress
from pathlib import Path

import numpy as np

from data.dataset import TEST, Dataset, DatasetWriter
from data.fim import Fim, find_markers
from data.source import described, first_few
from data.splits import CACHED_BYTES, Ledger
from data.tokenizer import Tokenizer


def count_ids(pool: Executor, writer: DatasetWriter, split: str) -> np.ndarray:
    """How often each id occurs in the split, (vocab_size,) int64."""
    from tqdm import tqdm

    n, path = writer.counts[split]["tokens"], writer.temp / f"{split}.bin"
    step = max(2**23, -(-n // 64))
    jobs = [
        pool.submit(count_range, path, writer.dtype, first, step, writer.tokenizer.vocab_size)
        for first in range(0, n, step)
    ]
    bar = tqdm(jobs, desc=f"counting the ids of {split}", leave=False, disable=None)
    return sum((job.result() for job in bar), np.zeros(writer.tokenizer.vocab_size, np.int64))


def count_range(path: Path, dtype: np.dtype, first: int, n: int, vocab_size: int) -> np.ndarray:
    """How often each id occurs among the n from `first` on."""
    counts = np.zeros(vocab_size, np.int64)
    with open(path, "rb") as file:
        file.seek(first * dtype.itemsize)
        while (ids := np.fromfile(file, dtype, min(CACHED_BYTES, n))).size:
            n -= ids.size
            counts += np.bincount(ids, minlength=vocab_size)
    return counts


def special_tokens_report(
    args: Namespace, tokenizer: Tokenizer, ledger: Ledger, used: dict[str, np.ndarray], end: int | None
) -> str:
    """How often each special token was typed, where it became an id; "" if nobody asked for special tokens."""
    if args.special != "encode":
        advice = "stay unused, as typed ones are text: --special=encode gives them their ids"
        return f"special {first_few(args.special_tokens)}: {advice}\n" if args.special_tokens else ""
    counts = sum(used.values())
    around = [*tokenizer.begin, *([] if end is None else [end])]  # of each document, which no one typed
    for id in around:
        counts[id] -= sum(counts["documents"] for counts in ledger.counts.values())
    found = [f"{name} {counts[id]:,}" for name, id in tokenizer.special_tokens.items() if counts[id]]
    unused = [name for name, id in tokenizer.special_tokens.items() if not counts[id] and id not in around]
    line = f"special {first_few(found) or 'none'}" + f"; unused: {first_few(unused)}" * bool(unused)
    return f"{line}\n"


def fim_report(fim: Fim, tokenizer: Tokenizer, used: dict[str, np.ndarray]) -> str:
    """How many parts were rearranged; "" if none."""
    if not fim.rate:
        return ""
    n = used["train"][find_markers(tokenizer)[-1]]
    others = "val and test are" if TEST in used else "val is"
    return f"fim    {n:,} parts of at most {fim.chars:,} characters have their middle last; {others} left to right\n"


def print_report(dataset: Dataset, ledger: Ledger, used: dict[str, np.ndarray], special: str) -> None:
    """What a person wants to check about a dataset; `used` counts the occurrences of each id, per split."""
    tokenizer = dataset.tokenizer
    for counts in used.values():
        counts[[*tokenizer.ends, *tokenizer.begin]] = 0
    print(counts_table(ledger.counts, used))
    if ledger.copies:
        n = sum(counts["duplicates"] for counts in ledger.counts.values())
        print(f"left out as copies of earlier documents: {first_few(ledger.copies, n)}")
    for line in described(ledger.left_out):
        print(line)
    print(f"vocab  {tokenizer.vocab_size:,} ({tokenizer.kind}), ids stored as {dataset.dtype.name}\n{special}", end="")
    for split, (n, name) in ledger.longest.items():
        print(f"\n{split}: longest document {name}, {n:,} characters")
        print(f"most frequent: {most_frequent(tokenizer, used[split])}")
        ids = dataset.array(split)
        for part in range(1, 6, 2):
            sample = tokenizer.decode(ids[ids.size * part // 6 :][:60]).strip("\ufffd")
            print(f"sample: {sample[:200]!r}")
    print()


def counts_table(counts: dict[str, dict[str, int]], used: dict[str, np.ndarray]) -> str:
    keys = ("documents", "duplicates", "characters", "bytes", "tokens")
    rows = {split: [counts[split][key] for key in keys] for split in counts}
    rows["all"] = [sum(column) for column in zip(*rows.values(), strict=True)]
    used = used | {"all": sum(used.values())}
    lines = ["        documents duplicates      characters           bytes          tokens  bytes/token  ids used"]
    for name, (n_documents, n_copies, n_characters, n_bytes, n_tokens) in rows.items():
        lines.append(
            f"{name:5}{n_documents:12,}{n_copies:11,}{n_characters:16,}{n_bytes:16,}{n_tokens:16,}"
            f"{n_bytes / n_tokens:13.2f}{np.count_nonzero(used[name]):10,}"
        )
    return "\n".join(lines)


def most_frequent(tokenizer: Tokenizer, counts: np.ndarray) -> str:
    """The 20 most frequent tokens, each with its share in percent."""
    shown, names = [], {id: name for name, id in tokenizer.special_tokens.items()}
    for id in np.argsort(-counts, kind="stable")[: min(20, np.count_nonzero(counts))].tolist():
        token = tokenizer.tokens[id].encode() if tokenizer.lossy else tokenizer.token_bytes(id)
        with suppress(UnicodeDecodeError):  # otherwise it is shown as bytes
            token = token.decode()
        shown.append(f"{names.get(id) or repr(token)} {100 * counts[id] / counts.sum():.1f}")
    return "  ".join(shown) + " %"
