"""The exact loss of a whole text, and two multiple-choice tasks, for a checkpoint, a folder or GPT-2.

    python eval.py --out_dir=out-x                              # the validation split that it was trained with
    python eval.py --out_dir=out-x --stride=64 --baselines      # more context for every token; gzip, xz, ... beside it
    python eval.py --out_dir=out-x --input=novel.txt            # any UTF-8 text, by the checkpoint's tokenizer
    torchrun --standalone --nproc_per_node=4 eval.py --out_dir=out-x    # the same numbers, sooner
    python eval.py --init_from=gpt2 --input=wiki.test.raw --join_rows --definition=huggingface --stride=512
    python eval.py --init_from=gpt2 --task=hellaswag --input=hellaswag_val.jsonl
    python eval.py --init_from=gpt2 --task=lambada --input=lambada_test.jsonl

Every token of the text but the first, which has nothing before it, is predicted once. With context T (block_size)
and stride S, window 0 reads ids 0 to T-1 and predicts ids 1 to T; window k > 0 reads ids kS to kS+T-1 and scores its
last S predictions, ids (k-1)S+T+1 to kS+T; the last window ends where the text ends. So a token is predicted from at
least T-S+1 ids, if there are that many before it, and from T at most. S = T, the default, gives disjoint windows.

--per_document starts afresh at each end-of-text id: the context begins with the one that ended the document before,
as in training, and the one that ends the document is predicted too. It stands for no text: its bits count, its bytes
don't exist. The tokens that are scored are the same ones as without --per_document.

The last line on stdout is one JSON object with everything in the table above it, unrounded.
"""

import argparse
import bz2
import io
import json
import lzma
import math
import re
import time
import zlib
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from checkpoints.build import build_model
from configurator import exit_on_error
from data.dataset import GPT2_VOCAB_SIZE, find_folder, open_dataset, shown
from data.source import Parser
from data.tokenizer import EOT, token_table
from evaluation import tasks
from inference.load import find_tokenizer, make_ready, open_trained
from model import CHUNK, GPT
from system.device import DTYPES, pick_device, pick_dtype
from system.distributed import Ranks

# of a batch, where --batch_size doesn't say how many windows it has: on a CPU more of them don't fit into its cache
CPU_BATCH, GPU_BATCH = 4096, 16384
AS_BYTES = " (not UTF-8: read as bytes)"
ESCAPED = re.compile("[\udc80-\udcff]")  # what "surrogateescape" makes of bytes that are not UTF-8
START, FIRST, STOP = range(3)  # columns of windows (K, 3): they read ids START to STOP-1, and score those from FIRST on


def arguments() -> argparse.ArgumentParser:
    parser = Parser(
        prog="eval.py", description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--init_from", default="resume", help="'resume' = from out_dir, or a checkpoint, a folder, 'gpt2', 'gpt2-xl'")
    add("--out_dir", default="out", help="folder of the run (default: out)")
    add("--dataset", help="name of a folder under data/, or a path (default: the one the run was trained on)")
    add("--split", help="of the dataset (default: val)")
    add(
        "--input",
        type=Path,
        metavar="FILE",
        help="evaluate this text (in UTF-8, unless the model's tokens are bytes), or this .jsonl of a --task, instead",
    )
    add("--task", choices=tuple(tasks.READ), help="what the .jsonl is, in its official format")
    add("--stride", type=int, help="new tokens a window scores, 1 to block_size (default: block_size)")
    add("--block_size", type=int, help="longest context (default: the model's)")
    add(
        "--per_document",
        action="store_true",
        help="context never crosses an end-of-text id; in a text file the "
        f"marker {EOT} stands for it (otherwise it is text like any other)",
    )
    add(
        "--definition",
        choices=("exact", "huggingface"),
        default="exact",
        help="huggingface: windows of block_size "
        "ids, of which the first is never scored, and the mean of the windows' means, as in the numbers that its "
        "page 'Perplexity of fixed-length models' gives for GPT-2 on WikiText-2",
    )
    add(
        "--join_rows",
        action="store_true",
        help="join the lines of FILE as that page does the rows of WikiText: "
        "with two newlines between, blank ones emptied",
    )
    add("--baselines", action="store_true", help="also compress the same bytes with gzip, bzip2, xz and zstd")
    add(
        "--batch_size",
        type=int,
        help=f"windows a batch (default: those of {CPU_BATCH:,} tokens, on a GPU {GPU_BATCH:,})",
    )
    add("--device", default="auto", help="cuda, cuda:1, mps, cpu (default: the best there is)")
    add(
        "--dtype",
        choices=("float32", "bfloat16", "float16", *DTYPES),
        default="float32",
        help="of the matrix products; the two short ones are faster on a GPU and change the loss by some 0.001",
    )
    return parser


def main(argv: list[str]) -> None:
    args = arguments().parse_args(argv)
    validate(args)
    ranks = Ranks()
    device = pick_device(args.device, ranks.local_rank if ranks.under_torchrun else None)
    source, state = open_trained(args.init_from, args.out_dir)
    block_size, stride = pick_context(args, state["model_args"]["block_size"])
    if args.task:
        tokenizer, edges = find_tokenizer(state), None
        questions = tasks.READ[args.task](args.input)
        ids, windows = tasks.lay_out(questions, tokenizer, block_size, args.input)
        text, get_ids = str(shown(args.input)), lambda: ids
    else:
        text, get_ids, tokenizer, eot = (open_file if args.input else open_split)(args, state)
        edges = document_edges(get_ids(), eot) if args.per_document else np.array([0, len(get_ids()) - 1])
        windows = plan_windows(edges, block_size + (args.definition == "exact"), stride)
        if not len(windows):
            raise ValueError(f"{text}: {len(get_ids()):,} tokens, a prediction needs 2: evaluate a longer text")
        if args.baselines and tokenizer is None:
            raise ValueError(f"--baselines: {text} has no tokenizer that would say which bytes to compress")
    model = build_model(state, dropout=0.0)
    iter_num, n_params = state.get("iter_num"), model.get_num_params(non_embedding=False)
    del state
    dtype = pick_dtype(args.dtype, device)
    make_ready(model, device, "float32", plain=dtype != torch.float32)  # autocast shortens the rest

    # only a few sums travel, and from the CPU: gloo will do, whatever the device
    ranks.start("gloo", torch.device("cpu"))
    autocast = torch.autocast(device.type, dtype) if dtype != torch.float32 else nullcontext()
    start_time = time.perf_counter()
    try:
        with torch.inference_mode(), autocast:
            nats, misses = score(model, get_ids, windows, args.batch_size, bool(args.task), ranks)
    finally:
        ranks.stop()
    seconds = time.perf_counter() - start_time
    if not ranks.is_main:
        return

    n_tokens = int((windows[:, STOP] - windows[:, FIRST]).sum())
    result = {
        "checkpoint": str(source), "iter": iter_num, "parameters": n_params,
        "task": args.task or "text", "text": text, "tokens": n_tokens, "windows": len(windows),
        "block_size": block_size, "device": device.type, "dtype": str(dtype).removeprefix("torch."),
        "processes": ranks.world_size, "seconds": seconds, "tokens_per_second": n_tokens / seconds,
    }  # fmt: skip
    if args.task:
        result |= {"questions": len(questions)} | tasks.COUNT[args.task](questions, nats, misses)
    else:
        result |= {"stride": stride, "documents": len(edges) - 1 if args.per_document else None,
                   "definition": args.definition}  # fmt: skip
        exact = args.definition == "exact"
        result |= exact_loss(nats, n_tokens) if exact else huggingface_perplexity(nats, windows)
        if exact and tokenizer:
            result |= bits_per_unit(nats, get_ids(), tokenizer)
        if text.endswith(AS_BYTES):  # nobody knows its characters
            result = {key: result[key] for key in result if key not in ("characters", "bits_per_character")}
        if args.baselines:
            result["baselines"] = baselines(get_ids(), tokenizer)
    print(table(result))
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in result.items()}
    print(json.dumps(finite, ensure_ascii=False))


def validate(args: argparse.Namespace) -> None:
    """Raises ValueError for options that contradict each other."""
    if args.input and (args.dataset or args.split):
        raise ValueError("--input is evaluated instead of a dataset's split: leave --dataset and --split out")
    if args.task and not args.input:
        raise ValueError(f"--task={args.task} needs its questions: --input=FILE.jsonl")
    for name in ("stride", "per_document", "join_rows", "baselines"):
        if args.task and getattr(args, name):
            raise ValueError(f"--{name} is for a text, not for --task={args.task}: leave one out")
    if args.join_rows and not args.input:
        raise ValueError("--join_rows joins the lines of a text file: give it with --input=FILE")
    if args.definition == "huggingface" and (args.task or args.per_document or args.baselines):
        raise ValueError(
            "--definition=huggingface is the perplexity of one text and nothing else: leave "
            "--task, --per_document and --baselines out"
        )
    if args.batch_size is not None and args.batch_size < 1:
        raise ValueError(f"batch_size={args.batch_size} must be at least 1")
    if args.baselines:
        import_zstandard()


def pick_context(args: argparse.Namespace, longest: int) -> tuple[int, int]:
    """(block_size, stride) to evaluate with. ValueError if the model or the text does not allow them."""
    block_size = longest if args.block_size is None else args.block_size
    if not 1 <= block_size <= longest:
        raise ValueError(f"block_size={block_size} must be 1 to {longest}, the model's own")
    stride = block_size if args.stride is None else args.stride
    if not 1 <= stride <= block_size:
        raise ValueError(
            f"stride={stride} must be 1 to block_size={block_size}: a window can't score more tokens than it reads"
        )
    return block_size, stride


# ---- what is evaluated -----------------------------------------------------------------------------------


def open_file(args: argparse.Namespace, state: dict) -> tuple[str, Callable[[], np.ndarray], object, int | None]:
    """(name, a function that returns the ids (n,), tokenizer, end-of-text id or None) of the text of --input."""
    if args.input.is_dir():
        raise ValueError(
            f"--input={args.input} is a folder, expected a text file: name one, or prepare the folder "
            "with the checkpoint's tokenizer and name that with --dataset and --split"
        )
    tokenizer, name = find_tokenizer(state), str(shown(args.input))
    text, encode = tasks.read_text(args.input, any_bytes=tokenizer.kind == "byte"), tokenizer.encode
    if ESCAPED.search(text):
        if tokenizer.eot is not None and "\udcff" in text:
            raise ValueError(
                f"--input={args.input} is not UTF-8 and has the byte 0xff, which is the checkpoint's "
                f"end-of-text id and never text: {tasks.CONVERT}"
            )
        name, encode = name + AS_BYTES, raw_bytes
    if args.join_rows:
        rows = io.StringIO(text, newline=None)  # lines end as they may
        text = "\n\n".join(row if row.strip() else "" for row in rows)
    if args.per_document and tokenizer.eot is None:
        raise ValueError(f"--per_document: the tokenizer of {name} has no end-of-text id: leave it out")
    first, *others = [encode(part) for part in (text.split(EOT) if args.per_document else [text])]
    ids = np.concatenate([first, *(np.append(np.uint32(tokenizer.eot), part) for part in others)])
    return name, lambda: ids, tokenizer, tokenizer.eot


def raw_bytes(text: str) -> np.ndarray:
    """The ids (n,) of a byte tokenizer for a text that was decoded with "surrogateescape"."""
    return np.frombuffer(text.encode("utf-8", "surrogateescape"), np.uint8).astype(np.uint16)


def open_split(args: argparse.Namespace, state: dict) -> tuple[str, Callable[[], np.ndarray], object, int | None]:
    """As open_file, of a dataset's split. Its tokenizer is None if nobody knows it.

    Each call maps the ids afresh, so that pages read earlier don't pile up in memory.
    """
    dataset = open_matching_dataset(args.dataset or state.get("config", {}).get("dataset"), state)
    split, tokenizer = args.split or "val", dataset.tokenizer
    name = f"{shown(dataset.folder)} {split}"
    dataset.tokens(split)  # for its error
    if tokenizer is None:
        with suppress(ValueError):
            tokenizer = find_tokenizer(state)
    is_gpt2 = dataset.vocab_size in (GPT2_VOCAB_SIZE, 50304)  # as it is, or padded as nanoGPT does
    eot = tokenizer.eot if tokenizer else GPT2_VOCAB_SIZE - 1 if is_gpt2 else None
    if args.per_document and eot is None:
        raise ValueError(f"--per_document: {name} has no end-of-text id: leave it out")
    return name, lambda: dataset.array(split), tokenizer, eot


def open_matching_dataset(name: str | None, state: dict):
    """The dataset, whose ids must be the checkpoint's: ValueError if they stand for other text."""
    if name is None:
        raise ValueError("the checkpoint doesn't say what it was trained on: name a --dataset or an --input")
    size, folder = state["model_args"]["vocab_size"], find_folder(name)
    knows_size = (folder / "meta.json").exists() or (folder / "meta.pkl").exists()
    dataset = open_dataset(folder, None if knows_size else size)
    if dataset.tokenizer and state.get("tokenizer"):
        same = token_table(dataset.tokenizer) == token_table(find_tokenizer(state))
    else:
        same = size in (dataset.vocab_size, 64 * math.ceil(dataset.vocab_size / 64))
    if not same or dataset.vocab_size > size:
        raise ValueError(
            f"dataset {dataset.name} (vocabulary {dataset.vocab_size}) does not match the checkpoint "
            f"(vocabulary {size}): its ids stand for other text; evaluate the text itself with "
            "--input=FILE, or a dataset prepared with the checkpoint's tokenizer"
        )
    return dataset


def document_edges(ids: np.ndarray, eot: int) -> np.ndarray:
    """Where documents begin and end: 0, the places of all end-of-text ids, n-1. Document i has the ids from
    edges[i] to edges[i + 1], both included."""
    width = 2**22
    places = [np.flatnonzero(ids[i : i + width] == eot) + i for i in range(0, len(ids), width)]
    return np.unique(np.concatenate([[0], *places, [len(ids) - 1]]))


def plan_windows(edges: np.ndarray, width: int, stride: int) -> np.ndarray:
    """Windows (K, 3) of `width` ids, `stride` apart in each document, that score each of its ids but the first.

    Documents are as document_edges describes them. Those of one id, and windows with nothing to score, are left out.
    """
    begin, end = edges[:-1], edges[1:] + 1
    n = np.maximum(0, -(-(end - begin - width) // stride)) + 1  # windows of each document
    document = np.repeat(np.arange(len(n)), n)
    number = np.arange(n.sum()) - np.repeat(np.cumsum(n) - n, n)  # of the window in its document
    start = begin[document] + number * stride
    # all but a document's first window begin to score where the one before ended, a place that they must hold
    first = np.where(number == 0, start + 1, np.maximum(start + 1, start - stride + width))
    windows = np.stack([start, first, np.minimum(start + width, end[document])], axis=1)
    return windows[windows[:, FIRST] < windows[:, STOP]]


# ---- scoring ---------------------------------------------------------------------------------------------


def score(
    model: GPT,
    get_ids: Callable[[], np.ndarray],
    windows: np.ndarray,
    batch_size: int | None,
    greedy: bool,
    ranks: Ranks,
) -> tuple[np.ndarray, np.ndarray]:
    """Of the ids that each window scores: their nats together, and how many were not the likeliest (0 unless
    `greedy`). Both (K,) float64, the same on every rank.

    Each rank takes one stretch of the windows, with its share of the ids, and reads no others. Padding comes last
    in a window, where no causal model sees it, so that a window's nats do not depend on its batch.
    """
    nats, misses, largest = found = np.zeros((3, len(windows)))
    device, vocab_size = next(model.parameters()).device, model.config.vocab_size
    batch_tokens = CPU_BATCH if device.type == "cpu" else GPU_BATCH
    length = windows[:, STOP] - windows[:, START]
    before = np.cumsum(length) - length
    begin, end = np.searchsorted(before, length.sum() * np.array([ranks.rank, ranks.rank + 1]) / ranks.world_size)
    mine = begin + np.argsort(-length[begin:end], kind="stable")  # so there is little padding
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
    if ranks.world_size > 1:  # of the ranks' numbers for a window all but one are zero, so the sum is exact
        nats, misses, largest = np.array(ranks.sum(found.ravel().tolist())).reshape(found.shape)
    if largest.max() >= vocab_size:  # only now, so that no rank waits for one that gave up
        raise ValueError(
            f"the text holds id {largest.max():.0f}, but the model's vocab_size is {vocab_size}: prepare "
            "the dataset again"
        )
    return nats, misses


def cut(ids: np.ndarray, windows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Windows (B, 3) of ids (n,) -> x, y, both int64 (B, T): y is x one id later, -1 where nothing is scored."""
    at = windows[:, START, None] + np.arange((windows[:, STOP] - windows[:, START]).max())  # (B, T+1)
    inside = at < windows[:, STOP, None]
    taken = np.where(inside, ids[np.minimum(at, len(ids) - 1)], 0).astype(np.int64)
    scored = inside & (at >= windows[:, FIRST, None])
    return taken[:, :-1], np.where(scored, taken, -1)[:, 1:]


def losses(model: GPT, x: torch.Tensor, y: torch.Tensor, greedy: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Of each target in y (B, T) that is not -1, in order: nats (N,) float64, and whether another id was likelier
    (N,) bool; all False unless `greedy`, which takes as long again.

    Only the positions of these targets go through the head, a chunk of them at a time. A float32 near 10 is off by
    up to 5e-7, so the logarithm and the difference are taken in float64.
    """
    hidden, targets = model.transformer.ln_f(model.hidden(x)[y >= 0]), y[y >= 0]  # (N, C), (N,)
    rows = max(128, (CHUNK if x.device.type == "cpu" else 64 * CHUNK) // model.config.vocab_size)
    parts = []
    for h, t in zip(hidden.split(rows), targets.split(rows), strict=True):
        logits = model._logits(h).float()  # (rows, V)
        target = logits.gather(1, t[:, None])[:, 0]
        largest, likeliest = logits.max(1) if greedy else (logits.amax(1), t)
        total = logits.sub_(largest[:, None]).exp_().sum(1)
        parts.append(torch.stack((target, largest, total, likeliest != t)))
    target, largest, total, miss = torch.cat(parts, dim=1).cpu().double()
    return (total.log() + largest - target).numpy(), miss.bool().numpy()


# ---- figures ---------------------------------------------------------------------------------------------


def exact_loss(nats: np.ndarray, n_tokens: int) -> dict:
    loss = math.fsum(nats) / n_tokens
    return {"loss": loss, "perplexity": exp(loss)}


def bits_per_unit(nats: np.ndarray, ids: np.ndarray, tokenizer) -> dict:
    """Bits per UTF-8 byte and per character of the text of ids (n,) but the first, which is not predicted.

    A character in several tokens counts where its first byte is.
    """
    known = token_table(tokenizer)
    begins = [sum(byte & 0xC0 != 0x80 for byte in token) for token in known]
    counts = np.zeros(len(known), np.int64)
    for part in parts(ids):
        counts += np.bincount(part[part < len(known)], minlength=len(known))  # others are padding of the vocabulary
    bits = math.fsum(nats) / math.log(2)
    n_bytes, n_characters = int(counts @ [len(token) for token in known]), int(counts @ begins)
    return {"bits_per_byte": bits / n_bytes if n_bytes else math.nan,
            "bits_per_character": bits / n_characters if n_characters else math.nan,
            "bytes": n_bytes, "characters": n_characters}  # fmt: skip


def parts(ids: np.ndarray) -> list[np.ndarray]:
    """ids (n,) but the first, in pieces to be read one at a time."""
    width = 2**20
    return [ids[i : i + width] for i in range(1, len(ids), width)]


def huggingface_perplexity(nats: np.ndarray, windows: np.ndarray) -> dict:
    """As huggingface.co/docs/transformers/perplexity has it: "perplexity" from the plain mean of the windows' means
    (19.44 and, at stride 512, 16.45 for GPT-2 large on WikiText-2), and "perplexity_weighted" as the page has had it
    since it says 16.44, each mean weighing as much as its window has new ids, less one."""
    means = nats / (windows[:, STOP] - windows[:, FIRST])
    weights = np.diff(windows[:, STOP], prepend=windows[0, START]) - 1
    mean = math.fsum(means) / len(means)
    weighted = math.fsum(means * weights) / weights.sum() if weights.any() else math.nan
    return {"loss": mean, "perplexity": exp(mean), "perplexity_weighted": exp(weighted)}


def exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf


def baselines(ids: np.ndarray, tokenizer) -> dict[str, float]:
    """Bits per byte that general compressors need for the text of ids (n,) but the first."""
    known = token_table(tokenizer)
    compressors = {
        "gzip -9": zlib.compressobj(9, wbits=31), "bzip2 -9": bz2.BZ2Compressor(9),
        "xz -9": lzma.LZMACompressor(preset=9), "zstd -19": import_zstandard().ZstdCompressor(level=19).compressobj(),
    }  # fmt: skip
    size, compressed = 0, dict.fromkeys(compressors, 0)
    for part in tqdm(parts(ids), desc="compressing", unit="M tokens", disable=None):
        text = b"".join([known[id] for id in part[part < len(known)].tolist()])
        size += len(text)
        for name, compressor in compressors.items():
            compressed[name] += len(compressor.compress(text))
    for name, compressor in compressors.items():
        compressed[name] += len(compressor.flush())
    return {name: 8 * n / size if size else math.nan for name, n in compressed.items()}


def import_zstandard():
    try:
        import zstandard
    except ImportError:
        raise ValueError("--baselines needs the package zstandard: pip install zstandard") from None
    return zstandard


# ---- output ----------------------------------------------------------------------------------------------


def table(result: dict) -> str:
    """The figures to be read by people."""
    r = result
    steps = f", iter {r['iter']:,}" if r["iter"] is not None else ""
    processes = "1 process" if r["processes"] == 1 else f"{r['processes']} processes"
    rows = [("checkpoint", f"{r['checkpoint']}{steps}, {r['parameters'] / 1e6:.2f}M parameters")]
    if r["task"] == "text":
        documents = "" if r["documents"] is None else f" in {r['documents']:,} documents"
        rows += [("text", f"{r['text']}: {r['tokens']:,} tokens scored{documents}"),
                 ("windows", f"{r['windows']:,} of block_size {r['block_size']}, stride {r['stride']}, "
                             f"definition {r['definition']}")]  # fmt: skip
    else:
        rows += [(r["task"], f"{r['text']}: {r['questions']:,} questions, block_size {r['block_size']}")]
    rows += [("computed", f"in {r['dtype']} on {r['device']} by {processes} in {r['seconds']:.1f} s, "
                          f"{r['tokens_per_second']:,.0f} tokens/s"), ("", "")]  # fmt: skip
    figures = ("loss perplexity perplexity_weighted bits_per_byte bits_per_character acc acc_norm acc_bytes").split()
    for key in figures:
        if key in r:
            unit = " nats per token" if key == "loss" else ""
            error = f" ± {r[f'{key}_stderr']:.4f}" if f"{key}_stderr" in r else ""
            rows.append((key.replace("_", " "), f"{r[key]:.4f}{error}{unit}"))
    rows += [(name, f"{bits:.4f} bits per byte") for name, bits in r.get("baselines", {}).items()]
    return "\n".join(f"{name:<20}{value}".rstrip() for name, value in rows) + "\n"


if __name__ == "__main__":
    exit_on_error(main)
