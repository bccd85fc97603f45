"""Penalties for repetition: what each does to the texts of a small model."""

import math
from dataclasses import replace

import numpy as np
import torch

from benchmarks.report import parser, print_table
from checkpoints.build import build_model
from evaluation.chat import runs_of_4
from evaluation.scoring import score
from inference.generate import stream
from inference.load import find_tokenizer, make_ready, open_matching_dataset, open_trained
from inference.sampling import Sampling
from system.distributed import Ranks

SETTINGS = (
    {}, {"repetition_penalty": 1.1}, {"repetition_penalty": 1.3},
    {"no_repeat_ngram": 3}, {"no_repeat_ngram": 4}, {"no_repeat_ngram": 6},
    {"dry_multiplier": 0.4}, {"dry_multiplier": 0.8}, {"dry_multiplier": 0.8, "dry_allowed_length": 4},
    {"dry_multiplier": 0.8, "dry_allowed_length": 6},
)  # fmt: skip


def repetition_penalties(argv: list[str]) -> None:
    """Continues held-out passages with each setting, and reads what was written with a larger model.

    distinct_4: distinct runs of four tokens within a text over all of its runs. scorer: bits per byte of the texts by
    the model in --scorer, given the passage; best one with other training text, or at least more parameters. A text
    that repeats itself is easy to predict, so low is not good: the last row has both of how the passages really go on,
    and the best setting is the one closest to it.
    """
    made = parser("repetition", repetition_penalties.__doc__)
    add = made.add_argument
    add("--out_dir", required=True, help="of the model that writes")
    add("--scorer", required=True, help="a checkpoint, or its folder: the model that reads")
    add("--dataset", help="whose val split has the passages (default: the model's)")
    add("--passages", type=int, default=48, help="how many (default: 48)")
    add("--given", type=int, default=32, help="tokens of a passage that are given (default: 32)")
    add("--new", type=int, default=160, help="tokens that are written (default: 160)")
    add("--temperature", type=float, default=0.8, help="0 = the likeliest token (default: 0.8)")
    add("--top_p", type=float, default=0.95, help="as in sample.py (default: 0.95)")
    args = made.parse_args(argv)
    writer, tokenizer, state = read_model("resume", args.out_dir)
    scorer, reader, _ = read_model(args.scorer, args.scorer)
    ids = np.array(open_matching_dataset(args.dataset, state).array("val"), np.int64)
    if len(ids) <= args.given + args.new:
        raise ValueError(
            f"the val split has {len(ids):,} tokens, --given={args.given} and --new={args.new} need "
            f"{args.given + args.new + 1:,}: use less of both, or another --dataset"
        )
    starts = np.linspace(0, len(ids) - args.given - args.new - 1, args.passages).astype(int)
    passages = [torch.from_numpy(ids[start : start + args.given + args.new]) for start in starts]
    prompts, rows = [passage[: args.given] for passage in passages], []
    plain = Sampling(args.temperature, top_p=args.top_p, vocab_size=tokenizer.vocab_size)
    for setting in SETTINGS:
        sampling, generators = replace(plain, **setting), [torch.Generator().manual_seed(i) for i in range(len(starts))]
        texts = torch.stack([new for new, _ in stream(writer, prompts, args.new, sampling, generators)], dim=1)
        name = ", ".join(f"{key}={value}" for key, value in setting.items()) or "none"
        rows.append({"setting": name, **figures(prompts, texts, tokenizer, scorer, reader)})
    real = torch.stack([passage[args.given :] for passage in passages])
    rows.append({"setting": "the passages themselves", **figures(prompts, real, tokenizer, scorer, reader)})
    print_table("repetition", rows, args.json)


def read_model(init_from: str, out_dir: str) -> tuple:
    """(model, tokenizer, checkpoint)"""
    _, state = open_trained(init_from, out_dir)
    model = make_ready(build_model(state, dropout=0.0), torch.device("cpu"), "float32")
    return model, find_tokenizer(state), state


def figures(prompts, texts: torch.Tensor, tokenizer, scorer, reader) -> dict:
    """texts (B, N): what follows the prompts."""
    counts = np.array([runs_of_4(text.numpy()) for text in texts]).sum(0)
    ids, windows, n_bytes, at = [], [], 0, 0
    for prompt, text in zip(prompts, texts, strict=True):
        given, written = tokenizer.decode(prompt), tokenizer.decode(text)
        before, after = reader.encode_document(given), reader.encode(written, inside=True)
        windows.append((at, at + len(before), at + len(before) + len(after)))
        at, n_bytes = windows[-1][-1], n_bytes + len(written.encode())
        ids += [before, after]
    with torch.no_grad():
        nats, _ = score(scorer, lambda: np.concatenate(ids), np.array(windows), None, False, Ranks())
    return {"distinct_4": counts[0] / counts[1], "scorer": math.fsum(nats) / math.log(2) / n_bytes}
