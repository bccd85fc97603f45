"""The exact loss of a whole text, and two multiple-choice tasks, for a checkpoint, a folder or GPT-2.

    python eval.py --out_dir=out-x                              # the validation split of its dataset
    python eval.py --out_dir=out-x --stride=64 --baselines      # more context per token; also gzip, bzip2, xz and zstd
    python eval.py --out_dir=out-x --split=test                 # what no choice has seen: prepare.py --test_fraction
    python eval.py --out_dir=out-x --ngram=0.2                  # with an n-gram model of the training text
    python eval.py --out_dir=out-x --memorised                  # how much of its samples is copied
    python eval.py --out_dir=out-x --input=novel.txt            # any plain UTF-8 text, with the checkpoint's tokenizer
    torchrun --standalone --nproc_per_node=4 eval.py --out_dir=out-x    # the same numbers, faster
    python eval.py --init_from=gpt2 --input=data/wikitext/wiki.test.raw --join_rows --definition=huggingface \\
        --stride=512
    python eval.py --init_from=gpt2 --task=hellaswag --input=hellaswag_val.jsonl
    python eval.py --init_from=gpt2 --task=lambada --input=lambada_test.jsonl
    python eval.py --out_dir=out-chat --task=chat               # answers in its dataset, or --input=chats.jsonl
    python eval.py --out_dir=out-pycode --task=fim              # gaps in its validation files, or --input=code.py

Every token of the text except the first is predicted exactly once. With context T (block_size) and stride S, window 0
reads ids 0 to T-1 and predicts ids 1 to T; window k > 0 reads ids kS to kS+T-1 and scores its last S predictions, ids
(k-1)S+T+1 to kS+T; the last window ends with the text. So a token's context is at most T ids, and at least T-S+1 where
the text has that many before it. S = T, the default, gives disjoint windows.

--per_document restarts the context at each end-of-text id: it begins with the id that ended the previous document, as
in training, and the id that ends the document is predicted too. That id stands for no text, so its bits count but it
adds no bytes. The tokens scored are the same as without --per_document.

The last line of stdout is a JSON object with all the figures of the table above it, unrounded.
"""

import argparse
import json
import math
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np

from configurator import answer_early, exit_on_error
from data.options import Parser
from data.tokenizer import EOT
from evaluation import tasks
from evaluation.figures import baselines, bits_per_unit, exp, huggingface_perplexity
from evaluation.windows import CPU_BATCH, FIRST, GPU_BATCH, STOP
from system.dtypes import DTYPES

SHOWN = """loss perplexity perplexity_weighted bits_per_byte bits_per_character acc acc_norm acc_bytes
    exact_match exact_match_spm exact_match_cut exact_match_cut_spm exact_match_l2r
    edit_similarity edit_similarity_spm edit_similarity_l2r
    ended words_used distinct_4 distinct_4_expected""".split()  # figures, in the table's order


def arguments() -> argparse.ArgumentParser:
    layout = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog="eval.py", description=__doc__, allow_abbrev=False, formatter_class=layout)
    add = parser.add_argument
    add("--init_from", default="resume", help="'resume' = from out_dir, or a checkpoint, a folder, 'gpt2', 'gpt2-xl'")
    add("--out_dir", default="out", help="folder of the run, or several as one: out-1,out-2 (default: out)")
    add("--dataset", help="name of a folder under data/, or a path (default: the one the run was trained on)")
    add("--split", help="of the dataset: val, train, or test if it was prepared with --test_fraction (default: val)")
    text = "evaluate this plain text (UTF-8, or any bytes if the model's tokens are bytes), or the .jsonl of a --task"
    add("--input", type=Path, metavar="FILE", help=text)
    task = "the task in the .jsonl, in its official format; chat: conversations, as data/chat/prepare.py reads them; "
    task += "fim: gaps in a text, filled with and without the text after them"
    add("--task", choices=(*tasks.READ, "chat", "fim"), help=task)
    add("--stride", type=int, help="new tokens scored per window, 1 to block_size (default: block_size)")
    add("--block_size", type=int, help="longest context (default: the model's)")
    documents = f"context never crosses an end-of-text id, written {EOT} in a file (which is plain text otherwise)"
    add("--per_document", action="store_true", help=documents)
    definition = "huggingface: windows of block_size ids, the text's first id unscored, and the mean of their means, "
    definition += "as on its page 'Perplexity of fixed-length models'"
    add("--definition", choices=("exact", "huggingface"), default="exact", help=definition)
    rows = "join the lines of FILE as that page does WikiText's rows: with two newlines, blank lines emptied"
    add("--join_rows", action="store_true", help=rows)
    add("--baselines", action="store_true", help="also compress the same bytes with gzip, bzip2, xz and zstd")
    copied = "also the longest passages that samples of the model have in common with the training text"
    add("--memorised", action="store_true", help=copied)
    batch = f"windows per batch (default: as many as hold {CPU_BATCH:,} tokens, on a GPU {GPU_BATCH:,})"
    add("--batch_size", type=int, help=batch)
    counts = "mix in an n-gram model of the training text with this share, for a book 0.2 (default: 0, off)"
    add("--ngram", type=float, default=0.0, metavar="SHARE", help=counts)
    texts = "datasets whose training texts are counted: novels,hongloumeng (default: the one the run was trained on)"
    add("--ngram_data", metavar="DATASETS", help=texts)
    penalty = "of the answers in --task=chat, as in sample.py (default: 0, off)"
    add("--no_repeat_ngram", type=int, default=0, help=penalty)
    add("--dry_multiplier", type=float, default=0.0, help=penalty)
    add("--device", default="auto", help="cuda, cuda:1, mps, cpu (default: the best available)")
    precision = "of the matrix products; the 16-bit formats are faster on a GPU and change the loss by about 0.001"
    add("--dtype", choices=("float32", "bfloat16", "float16", *DTYPES), default="float32", help=precision)
    return parser


if __name__ == "__main__":
    answer_early(arguments().parse_args)  # --help and mistakes, before the slow imports

import torch

from checkpoints.build import build_model
from evaluation.chat import answer, count_chat, open_conversations
from evaluation.fim import fill_gaps, open_gaps
from evaluation.memorised import open_known, overlap_figures
from evaluation.scoring import score
from evaluation.text import AS_BYTES, Text, open_task, open_text
from inference.ensemble import Ensemble, join_models
from inference.load import make_ready, open_models, open_ngram
from inference.sampling import Sampling
from model import GPT
from system.device import pick_device, pick_dtype
from system.distributed import Ranks


def main(argv: list[str]) -> None:
    args = arguments().parse_args(argv)
    validate(args)
    args.split = args.split or "val"
    ranks = Ranks()
    device = pick_device(args.device, ranks.local_rank if ranks.under_torchrun else None)
    sources, states = open_models(args.init_from, args.out_dir)
    state, longest = states[0], min(state["model_args"]["block_size"] for state in states)
    block_size, stride = pick_context(args, longest)
    text = open_asked(args, state, block_size, stride)
    known = open_known(args.dataset, state, args.split) if args.memorised else None
    iter_num = state.get("iter_num") if len(states) == 1 else None
    model, n_params, dtype = ready_models(args, states, device)
    del state, states
    # gloo on any device: only a few sums are exchanged, from the CPU
    ranks.start("gloo", torch.device("cpu"))
    autocast = torch.autocast(device.type, dtype) if dtype != torch.float32 else nullcontext()
    start_time = time.perf_counter()
    with torch.inference_mode(), autocast:
        if args.task == "fim":
            found = fill_gaps(model, text, block_size, ranks)
        else:
            nats, misses = score(model, text.get_ids, text.windows, args.batch_size, bool(args.task), ranks)
        answers = answer(model, text, answers_sampling(args), ranks) if args.task == "chat" else None
    ranks.stop()
    seconds = time.perf_counter() - start_time
    if not ranks.is_main:
        return

    n_tokens = int((text.windows[:, STOP] - text.windows[:, FIRST]).sum())
    result = {
        "checkpoint": ", ".join(map(str, sources)), "iter": iter_num, "parameters": n_params,
        "task": args.task or "text", "text": text.name, "tokens": n_tokens,
        "windows": len(text.windows), "block_size": block_size,
        "device": device.type, "dtype": str(dtype).removeprefix("torch."), "processes": ranks.world_size,
        "seconds": seconds, "tokens_per_second": n_tokens / seconds,
    }  # fmt: skip
    if args.task == "fim":
        result |= {"questions": len(text.questions)} | found
    elif args.task == "chat":
        result |= count_chat(text, nats, misses, answers)
    elif args.task:
        result |= {"questions": len(text.questions)} | tasks.COUNT[args.task](text.questions, nats, misses)
    else:
        result |= {"stride": stride, "documents": text.documents, "definition": args.definition}
        result |= {"ngram": args.ngram, "counted": model.ngram.name} if args.ngram else {}
        result |= text_figures(args, text, nats, n_tokens)
    result |= overlap_figures(model, known, args.split) if known else {}
    print(table(result))
    print(json.dumps(finite(result), ensure_ascii=False))


def open_asked(args: argparse.Namespace, state: dict, block_size: int, stride: int) -> Text:
    """What the options name."""
    if args.task == "fim":
        return open_gaps(args, state)
    if args.task == "chat":
        return open_conversations(args, state, block_size)
    return open_task(args, state, block_size) if args.task else open_text(args, state, block_size, stride)


def ready_models(
    args: argparse.Namespace, states: list[dict], device: torch.device
) -> tuple[GPT | Ensemble, int, torch.dtype]:
    """(the model of one checkpoint or several, its parameters, the format of its products)."""
    ngram = open_ngram(args.ngram, args.ngram_data, states[0])
    models, dtype = [build_model(state, dropout=0.0) for state in states], pick_dtype(args.dtype, device)
    n_params = sum(model.get_num_params(non_embedding=False) for model in models)
    for model in models:
        make_ready(model, device, "float32", plain=dtype != torch.float32)  # else autocast converts the weights
    return join_models(models, ngram), n_params, dtype


def text_figures(args: argparse.Namespace, text: Text, nats: np.ndarray, n_tokens: int) -> dict:
    """Losses, bits per byte and character and, with --baselines, the compressors' bits per byte."""
    if args.definition == "huggingface":
        return huggingface_perplexity(nats, text.windows)
    loss = math.fsum(nats) / n_tokens
    figures = {"loss": loss, "perplexity": exp(loss)}
    if text.tokenizer and text.tokenizer.lossy:
        print(f"note: no bits per byte: {text.tokenizer.lossy}", file=sys.stderr)
    elif text.tokenizer:
        figures |= bits_per_unit(nats, text.get_ids(), text.tokenizer)
    if text.name.endswith(AS_BYTES):  # in an unknown encoding
        del figures["characters"], figures["bits_per_character"]
    if args.baselines:
        figures["baselines"] = baselines(text.get_ids(), text.tokenizer)
    return figures


def validate(args: argparse.Namespace) -> None:
    """Raises ValueError for options that cannot be combined."""
    if args.input and (args.dataset or args.split):
        raise ValueError("--input replaces the dataset: leave --dataset and --split out")
    if args.task in tasks.READ and not args.input:
        raise ValueError(f"--task={args.task} needs its questions: --input=FILE.jsonl")
    for name in ("stride", "per_document", "join_rows", "baselines", "memorised", "ngram", "ngram_data"):
        if args.task and getattr(args, name):
            raise ValueError(f"--{name} is for a text, not for --task={args.task}: leave one out")
    if args.memorised and args.input:
        raise ValueError("--memorised compares samples with the dataset's training text: leave --input out")
    if args.memorised and args.split == "train":
        raise ValueError(
            "--memorised compares samples with the train split, which is no held-out text: leave --split out"
        )
    if args.ngram and args.split == "train":
        raise ValueError("--ngram counts the train split, so its loss there says nothing: leave one of them out")
    if args.join_rows and not args.input:
        raise ValueError("--join_rows joins the lines of a text file: use it with --input=FILE")
    if args.definition == "huggingface" and (args.task or args.per_document or args.baselines):
        others = "--task, --per_document and --baselines"
        raise ValueError(f"--definition=huggingface only gives the perplexity of a text: leave {others} out")
    answers_sampling(args).validate()
    if answers_sampling(args).looks_back and args.task != "chat":
        raise ValueError("--no_repeat_ngram and --dry_multiplier are for the answers of --task=chat: leave them out")
    if args.batch_size is not None and args.batch_size < 1:
        raise ValueError(f"batch_size={args.batch_size} must be at least 1")


def answers_sampling(args: argparse.Namespace) -> Sampling:
    return Sampling(temperature=0, no_repeat_ngram=args.no_repeat_ngram, dry_multiplier=args.dry_multiplier)


def pick_context(args: argparse.Namespace, longest: int) -> tuple[int, int]:
    """(block_size, stride). Raises ValueError if they do not fit the model."""
    block_size = longest if args.block_size is None else args.block_size
    if not 1 <= block_size <= longest:
        raise ValueError(f"block_size={block_size} must be 1 to {longest}, the model's own")
    stride = block_size if args.stride is None else args.stride
    if not 1 <= stride <= block_size:
        raise ValueError(f"stride={stride} must be 1 to block_size={block_size}, the length of a window")
    return block_size, stride


def finite(value):
    """`value` with None for inf and nan, which JSON lacks."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def table(result: dict) -> str:
    """The figures for reading, one per line."""
    r = result
    steps = f", iter {r['iter']:,}" if r["iter"] is not None else ""
    processes = "1 process" if r["processes"] == 1 else f"{r['processes']} processes"
    rows = [("checkpoint", f"{r['checkpoint']}{steps}, {r['parameters'] / 1e6:.2f}M parameters")]
    if r["task"] == "text":
        documents = "" if r["documents"] is None else f" in {r['documents']:,} documents"
        rows.append(("text", f"{r['text']}: {r['tokens']:,} tokens scored{documents}"))
        sizes = f"block_size {r['block_size']}, stride {r['stride']}, definition {r['definition']}"
        rows.append(("windows", f"{r['windows']:,} of {sizes}"))
        rows += [("counts", f"of {r['counted']}, with a share of {r['ngram']:g}")] if "ngram" in r else []
    else:
        left_out = f"; {r['left_out']:,} are longer and left out" if r.get("left_out") else ""
        rows.append((r["task"], f"{r['text']}: {r['questions']:,} questions, block_size {r['block_size']}{left_out}"))
    speed = f"{r['seconds']:.1f} s, {r['tokens_per_second']:,.0f} tokens/s"
    rows += [("computed", f"in {r['dtype']} on {r['device']} by {processes} in {speed}"), ("", "")]
    for key in SHOWN:
        if key in r:
            error = f" ± {r[f'{key}_stderr']:.4f}" if f"{key}_stderr" in r else ""
            rows.append((key.replace("_", " "), f"{r[key]:.4f}{error}{' nats per token' * (key == 'loss')}"))
    for key in ("samples", "held_out"):
        if f"copied_{key}_longest" in r:
            longest, median = r[f"copied_{key}_longest"], r[f"copied_{key}_median"]
            passage = json.dumps(r[f"copied_{key}_text"], ensure_ascii=False)
            rows.append((f"copied, {key.replace('_', ' ')}", f"{longest} characters, median {median:g}: {passage}"))
    for kind, found in r.get("kinds", {}).items():
        shown = [f"{found[key]:.3f} {key.replace('_', ' ')}" for key in SHOWN if key in found and key != "perplexity"]
        rows.append((kind, f"{found['questions']:,} questions: {', '.join(shown)}"))
    rows += [(name, f"{bits:.4f} bits per byte") for name, bits in r.get("baselines", {}).items()]
    return "\n".join(f"{name:<20}{value}".rstrip() for name, value in rows) + "\n"


if __name__ == "__main__":
    exit_on_error(main)
