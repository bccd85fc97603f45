"""Speed and memory of everything here, each comparison in one run on one machine.

    python bench.py NAME [options]        # python bench.py NAME --help: what it measures, and its options

Every benchmark prints a table, and with --json the same figures as one line of JSON. Run one only on a machine that
does nothing else.
"""

import argparse
import inspect
import io
import itertools
import json
import math
import multiprocessing
import os
import pickle
import platform
import queue
import re
import shlex
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import fields
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from checkpoints.file import save_checkpoint
from checkpoints.saver import Saver
from configurator import configure, exit_on_error
from data.dataset import eval_windows, open_dataset
from data.source import Parser
from data.tokenizer import BPETokenizer, make_tokenizer
from inference.load import make_ready
from inference.pack import pack
from inference.quantize import quantize
from model import GPT, GPTConfig, LinearCrossEntropy, Sampling
from system.device import keep_memory, pick_compile, pick_device, pick_dtype
from train import TrainConfig, make_model
from training.optim import make_optimizer


def parser(name: str, description: str) -> argparse.ArgumentParser:
    made = Parser(
        prog=f"bench.py {name}",
        description=description,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--json", action="store_true", help="also print the figures as one line of JSON")
    return made


def report(name: str, rows: list[dict], as_json: bool) -> None:
    """Prints rows that share their keys as a Markdown table, under what machine made them."""
    print(f"{name} on {machine()}\n")
    print("| " + " | ".join(rows[0]) + " |\n|" + " --- |" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(shown(value) for value in row.values()) + " |")
    if as_json:
        print(json.dumps({"benchmark": name, "machine": machine(), "rows": rows}, ensure_ascii=False))


def shown(value) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def machine() -> str:
    """The processor, its threads in use, the GPU if there is one, and PyTorch's version."""
    cpu = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            cpu = next((line.split(":")[1].strip() for line in file if line.startswith("model name")), cpu)
    gpu = f"{torch.cuda.get_device_name()}, " if torch.cuda.is_available() else ""
    return f"{gpu}{cpu}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def save(argv: list[str]) -> None:
    made = parser(
        "save",
        """How long training waits for a checkpoint: a GPT with AdamW, by default of GPT-2's size.

The stall is the time that the loop waits, also given as a share of what a plain save takes; a step is timed alone and
while a file is being written. The first save in the background also allocates the memory for its copy.""",
    )
    for name, default in (("n_layer", 12), ("n_embd", 768), ("vocab_size", 50304), ("block_size", 64)):
        made.add_argument(f"--{name}", type=int, default=default)
    made.add_argument("--saves", type=int, default=3, help="of each kind (default 3); medians are shown")
    made.add_argument("--device", default="auto")
    made.add_argument("--folder", default=".", help="on the disk to write to (default: the current folder)")
    args = made.parse_args(argv)
    device = pick_device(args.device)
    heads = max(1, args.n_embd // 64)
    model = GPT(GPTConfig(args.block_size, args.vocab_size, args.n_layer, heads, args.n_embd)).to(device)
    optimizer = make_optimizer(model, 1e-4, 0.1, (0.9, 0.95))
    idx = torch.randint(args.vocab_size, (1, args.block_size), device=device)
    found = {}
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        path = Path(folder, "last.pt")
        for background in (False, True):
            saver = Saver(device, keep=2, background=background)
            alone = [timed_step(model, optimizer, idx, saver)[0] for _ in range(5)][2:]
            for number in range(args.saves + background):
                kind = "plain" if not background else "in the background" if number else "the first in the background"
                found.setdefault(kind, []).append((timed_save(model, optimizer, idx, saver, path), alone))
        size = path.stat().st_size
    plain = statistics.median(seconds for (seconds, *_), _ in found["plain"])
    rows = []
    for kind, saves in found.items():
        stall = statistics.median(stall for (_, stall, _), _ in saves)
        during = [seconds for (*_, steps), _ in saves for seconds in steps]
        rows.append({
            "save": kind, "parameters": model.get_num_params(non_embedding=False), "file (MB)": round(size / 1e6),
            "seconds to the disk": statistics.median(seconds for (seconds, *_), _ in saves),
            "stall (ms)": stall * 1000, "stall (%)": 100 * stall / plain,
            "step (ms)": 1000 * statistics.median(saves[0][1]),
            "step while saving (ms)": 1000 * statistics.median(during) if during else "",
        })  # fmt: skip
    report("save", rows, args.json)


def timed_save(
    model: GPT, optimizer: torch.optim.Optimizer, idx: torch.Tensor, saver: Saver, path: Path
) -> tuple[float, float, list[float]]:
    """Seconds until the file is on the disk, seconds that the loop waited, and those of each step meanwhile."""
    start, steps = time.perf_counter(), []
    saver.save({"model": model.state_dict(), "model_args": {}, "optimizer": optimizer.state_dict()}, path)
    stall = time.perf_counter() - start
    while saver.thread and saver.thread.is_alive():
        seconds, waited = timed_step(model, optimizer, idx, saver)
        stall += waited
        steps.append(seconds - waited)
    saver.wait()
    return time.perf_counter() - start, stall, steps


def timed_step(model: GPT, optimizer: torch.optim.Optimizer, idx: torch.Tensor, saver: Saver) -> tuple[float, float]:
    """Seconds of a step of training on idx (B, T), and those of them that it waited for the saver."""
    start = time.perf_counter()
    model(idx, idx, return_logits=False)[1].backward()
    waiting = time.perf_counter()
    saver.before_update()
    waited = time.perf_counter() - waiting
    optimizer.step()
    optimizer.zero_grad()
    if idx.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start, waited


# What a reader would have without this project: nanoGPT's recipe and a plain loop. The shape and the batch are the
# config's, unless --baseline says otherwise.
PLAIN = {
    "optimizer": "adamw", "learning_rate": 1e-3, "min_lr": 1e-4, "warmup_iters": 100, "beta1": 0.9, "beta2": 0.99,
    "weight_decay": 0.1, "grad_clip": 1.0, "schedule": "cosine", "dropout": 0.0, "bias": False, "pos": "learned",
    "norm": "layernorm", "mlp": "gelu", "qk_norm": False, "softcap": 0.0, "smear": False, "tie_weights": True,
    "init": "normal", "max_minutes": None,
}  # fmt: skip


def time_to_loss(argv: list[str]) -> None:
    """How long train.py takes to a loss on the validation split, all of it: with a config, and with --baseline also by
    nanoGPT's recipe (AdamW, cosine, LayerNorm, GELU, learned positions, tied head; in float32 on a CPU, as there).

    Other --key=value go to both runs, those in --plain's text to the second alone. Both evaluate every --eval_interval
    steps; "training s" leaves that out. A schedule that ends (--max_iters) sets how soon it gets where.
    """
    made = parser("time_to_loss", inspect.getdoc(time_to_loss))
    made.add_argument("config", help="a config file")
    made.add_argument("--target", type=float, required=True, help="validation loss to reach, nats a token")
    made.add_argument("--baseline", action="store_true", help="run the plain recipe as well")
    made.add_argument("--plain", default="", help="settings of that run: --plain='--key=value ...'")
    made.add_argument("--seeds", type=int, nargs="+", default=[1337], help="a run for each (default: 1337)")
    args, options = made.parse_known_args(argv)
    runs = [(Path(args.config).stem, [args.config, *options])]
    if args.baseline:
        cpu = pick_device("auto").type == "cpu"
        plain = [f"--{key}={value}" for key, value in (PLAIN | ({"dtype": "float32"} if cpu else {})).items()]
        runs.insert(0, ("plain recipe", [args.config, *options, *plain, *args.plain.split()]))
    rows = []
    for seed in args.seeds:
        for name, command in runs:
            records = run_train([*command, f"--seed={seed}", f"--eval_iters={whole_split(command)}"])
            evals = [record for record in records if record["kind"] == "eval"]
            evaluating, row = 0.0, None
            for record in evals:
                evaluating += record["eval_seconds"]
                times = {
                    "tokens": record["tokens"],
                    "training s": record["seconds"] - evaluating,
                    "with evaluation s": record["seconds"],
                }
                if record["val_loss"] <= args.target and row is None:
                    row = {f"to {args.target:g}: {key}": value for key, value in times.items()}
            row = row or {f"to {args.target:g}: {key}": "not reached" for key in times}
            best = min(record["val_loss"] for record in evals)
            rows.append(
                {
                    "run": name,
                    "seed": seed,
                    **row,
                    **{f"in all: {k}": v for k, v in times.items()},
                    "last val loss": evals[-1]["val_loss"],
                    "best": best,
                }
            )
    report(f"time to a validation loss of {args.target:g}", rows, args.json)


def whole_split(options: list[str]) -> int:
    """The eval_iters with which train.py reads all of the validation split."""
    config, _ = configure(TrainConfig, options)
    windows = eval_windows(open_dataset(config.dataset, config.vocab_size), "val", config.block_size, 2**60)
    return math.ceil(len(windows) / config.batch_size)


def ablation(argv: list[str]) -> None:
    """What each part of a recipe is worth: train.py with a config, then without one of the settings in which it differs
    from nanoGPT's recipe, all for --minutes (the first evaluation, of both splits, is in them). Other --key=value go to
    all runs. AdamW in Muon's place has nanoGPT's learning rate, as one of 6e-3 is too high for it.
    """
    made = parser("ablation", inspect.getdoc(ablation))
    made.add_argument("config", help="a config file")
    made.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="(default: 1 2 3)")
    made.add_argument("--minutes", type=float, default=0.25, help="of each run (default: 0.25)")
    made.add_argument("--also", action="append", default=[], help="one more row: --also='--key=value ...'")
    args, options = made.parse_known_args(argv)
    config, explicit = configure(TrainConfig, [args.config])
    keys = (
        "optimizer",
        "pos",
        "tie_weights",
        "init",
        "schedule",
        "dropout",
        "qk_norm",
        "norm",
        "mlp",
        "softcap",
        "smear",
    )
    changes = {"as it is": []}
    for key in keys:
        if key in explicit and getattr(config, key) != PLAIN[key]:
            with_it = ("learning_rate", "min_lr", "warmup_iters") if key == "optimizer" else ()
            changes[f"{key}: {PLAIN[key]}"] = [f"--{k}={PLAIN[k]}" for k in (key, *with_it)]
    options += [f"--max_minutes={args.minutes}", "--max_iters=1000000000", "--eval_interval=1000000000"]
    changes |= {text: text.split() for text in args.also}
    rows, ends = [], {name: [] for name in changes}
    for seed, (name, change) in itertools.product(args.seeds, changes.items()):  # all of a row at once would take the
        command = [args.config, *options, *change, f"--seed={seed}"]  # machine's slow minutes for the change's effect
        records = run_train([*command, f"--eval_iters={whole_split(command)}"])
        ends[name].append([record for record in records if record["kind"] == "eval"][-1])
    for name, last in ends.items():
        losses = [record["val_loss"] for record in last]
        mean = statistics.mean(losses)
        rows.append(
            {
                "with": name,
                "steps": statistics.mean(record["iter"] for record in last),
                "validation loss": mean,
                "lowest": min(losses),
                "highest": max(losses),
                "worse by": mean - rows[0]["validation loss"] if rows else 0.0,
            }
        )
    report(f"ablation of {Path(args.config).stem}, {args.minutes:g} minutes a run", rows, args.json)


def run_script(name: str, *options: str) -> str:
    """What a script of ours prints to stdout; ValueError with the last line of all that it says if it fails."""
    command = [sys.executable, str(Path(__file__).parent / name), *options]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    if done.returncode:
        said = (done.stdout + done.stderr).strip() or f"status {done.returncode}"
        raise ValueError(f"{name} stopped with: {said.splitlines()[-1]}")
    return done.stdout


def run_train(options: list[str], out_dir: Path | None = None) -> list[dict]:
    """The records that train.py writes when it runs with these options, in out_dir or a folder that is gone then."""
    with nullcontext(out_dir) if out_dir else tempfile.TemporaryDirectory() as folder:
        run_script("train.py", *options, f"--out_dir={folder}")
        return [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def train(argv: list[str]) -> None:
    """Speed and memory of train.py with a config, on random tokens: the median of its steps after the first five.

    Other --key=value go to train.py. --sweep runs it once for each value of one key. With --baseline every row is
    compared with a plain loop: the same model and batch, eager float32 with all logits at once and PyTorch's default
    AdamW.
    """
    made = parser("train", inspect.getdoc(train))
    made.add_argument("config", help="a config file")
    made.add_argument("--sweep", default="", help="KEY=VALUE,VALUE,... or dataset_mb=10,10000")
    made.add_argument("--steps", type=int, default=25, help="(default: 25)")
    made.add_argument("--baseline", action="store_true", help="compare with a plain float32 loop")
    made.add_argument("--peer", type=Path, help="a checkout of nanoGPT: compare with its train.py too")
    args, options = made.parse_known_args(argv)
    key, _, values = args.sweep.partition("=")
    rows = []
    for value in values.split(","):
        changed = [f"--{key}={value}"] if key and key != "dataset_mb" else []
        config, _ = configure(TrainConfig, [args.config, *options, *changed])
        with tempfile.TemporaryDirectory() as folder:
            megabytes = float(value) if key == "dataset_mb" else 10
            n_ids = random_dataset(Path(folder), vocabulary(config), int(megabytes * 1e6))
            records = run_train([
                args.config, *options, *changed, f"--dataset={folder}", f"--vocab_size={n_ids}", "--max_minutes=None",
                f"--max_iters={args.steps}", "--log_interval=1", "--eval_interval=1000000", "--eval_iters=1",
                "--wandb_log=False"])  # fmt: skip
            peer = peer_loop(args.peer, config, folder, n_ids, args.steps) if args.peer else None
        steps = [record for record in records if record["kind"] == "train"][5:]
        middle = {k: statistics.median(r[k] for r in steps) for k in ("time_ms", "data_wait_ms")}
        tokens = config.gradient_accumulation_steps * config.batch_size * config.block_size
        with torch.device("meta"):
            flops = GPT(shape_of(config, n_ids)).flops_per_token() * tokens
        mfu = steps[-1]["mfu"] * steps[-1]["time_ms"] / middle["time_ms"] if "mfu" in steps[-1] else None
        row = {
            "run": Path(args.config).stem,
            **({key: value} if key else {}),
            "ms/iter": middle["time_ms"],
            "tokens/s": 1000 * tokens / middle["time_ms"],
            "TFLOP/s": flops / middle["time_ms"] / 1e9,
            "MFU %": 100 * mfu if mfu else "unknown",
            "waiting for data ms": middle["data_wait_ms"],
            "peak MB": max(record["memory_mb"] for record in steps) * 2**20 / 1e6,
        }
        if args.baseline:
            plain = plain_loop(config, n_ids, args.steps)
            row |= {"plain ms/iter": plain, "share": middle["time_ms"] / plain}
        if peer:
            row |= {"nanoGPT ms/iter": peer[0], "share of it": middle["time_ms"] / peer[0], "nanoGPT peak MB": peer[1]}
        rows.append(row)
    report("train", rows, args.json)


def random_dataset(folder: Path, vocab_size: int, n_bytes: int) -> int:
    """Writes val.bin and, of n_bytes, train.bin: 16 MB of random ids over and over. Returns vocab_size."""
    ids = np.random.default_rng(0).integers(0, vocab_size, 2**23)
    ids = ids.astype("<u2" if vocab_size <= 2**16 else "<u4")[: n_bytes // (2 if vocab_size <= 2**16 else 4)]
    ids.tofile(folder / "val.bin")
    with open(folder / "train.bin", "wb") as file:
        for first in range(0, n_bytes, ids.nbytes):
            file.write(ids.tobytes()[: n_bytes - first])
    return vocab_size


def vocabulary(config: TrainConfig) -> int:
    """The number of ids that the model of a run with this config would have; GPT-2's where its dataset is not here."""
    try:
        found = config.vocab_size or open_dataset(config.dataset).vocab_size
    except ValueError:
        found = 50257
    return found if config.vocab_size or found <= 10_000 else 64 * math.ceil(found / 64)


def shape_of(config: TrainConfig, vocab_size: int) -> GPTConfig:
    shape = {field.name: getattr(config, field.name) for field in fields(GPTConfig)}
    return GPTConfig(**shape | {"vocab_size": vocab_size})


def plain_loop(config: TrainConfig, vocab_size: int, steps: int) -> float:
    """Median milliseconds of a step of a loop as it is written first: see `train`."""
    device = pick_device(config.device)
    model = GPT(shape_of(config, vocab_size)).to(device)
    optimizer, times = torch.optim.AdamW(model.parameters(), lr=1e-4), []
    data = torch.randint(vocab_size, (2, config.batch_size, config.block_size), device=device)
    for _ in range(steps):
        start = time.perf_counter()
        for _ in range(config.gradient_accumulation_steps):
            _, loss = model(data[0], data[1])
            (loss / config.gradient_accumulation_steps).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times[5:])


PEER = """import atexit, runpy, sys, torch
if torch.cuda.is_available():
    atexit.register(lambda: print("peak", torch.cuda.max_memory_allocated() / 1e6))
sys.argv[0] = "train.py"
runpy.run_path("train.py", run_name="__main__")"""


def peer_loop(
    folder: Path, config: TrainConfig, dataset: str, vocab_size: int, steps: int
) -> tuple[float, float | str]:
    """Median milliseconds of a step of nanoGPT's train.py in that folder with the same shape, batch and ids, compiled
    where ours is; and the most memory its tensors took on a GPU, 10^6 bytes."""
    device = pick_device(config.device)
    Path(dataset, "meta.pkl").write_bytes(pickle.dumps({"vocab_size": vocab_size}))
    same = ("batch_size", "block_size", "gradient_accumulation_steps", "n_layer", "n_head", "n_embd", "dropout", "bias")
    options = {key: getattr(config, key) for key in same} | {
        "dataset": dataset,
        "out_dir": dataset,
        "device": device.type,
        "max_iters": steps,
        "log_interval": 1,
        "eval_interval": 10**6,
        "eval_iters": 1,
        "compile": pick_compile(config.compile, device),
        "wandb_log": False,
    }
    command = [sys.executable, "-c", PEER, *[f"--{key}={value}" for key, value in options.items()]]
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8")
    times = [float(ms) for ms in re.findall(r"^iter \d+: .*time ([\d.]+)ms", done.stdout, re.MULTILINE)]
    if done.returncode or len(times) < 7:
        raise ValueError(f"{folder}/train.py stopped with: {done.stdout.strip().splitlines()[-1:]}")
    peak = re.search(r"^peak ([\d.]+)", done.stdout, re.MULTILINE)
    return statistics.median(times[5:]), float(peak.group(1)) if peak else ""


def profile(argv: list[str]) -> None:
    """Where the time of a training step goes, for a config: each operation's own time, and that of the parts.

    Other --key=value are the config's. The step is train.py's, on random tokens, without what is around it: data,
    logging, messages between processes.
    """
    made = parser("profile", inspect.getdoc(profile))
    made.add_argument("config", help="a config file")
    made.add_argument("--steps", type=int, default=5, help="(default: 5)")
    made.add_argument("--rows", type=int, default=20, help="operations to show (default: 20)")
    args, options = made.parse_known_args(argv)
    config, _ = configure(TrainConfig, [args.config, *options])
    device = pick_device(config.device)
    dtype, vocab_size = pick_dtype(config.dtype, device), vocabulary(config)
    model = GPT(shape_of(config, vocab_size)).to(device)
    muon = config.muon_learning_rate if config.optimizer == "muon" else None
    optimizer = make_optimizer(model, 1e-4, config.weight_decay, (config.beta1, config.beta2), muon)
    if device.type == "cpu":
        keep_memory()
    elif device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # as train.py
    run = torch.compile(model) if pick_compile(config.compile, device) else model
    data = torch.randint(vocab_size, (2, config.batch_size, config.block_size), device=device)
    parts = {"forward": 0.0, "backward": 0.0, "clip": 0.0, "optimizer": 0.0}

    def part(name: str, function):
        start = time.perf_counter()
        result = function()
        if device.type == "cuda":
            torch.cuda.synchronize()
        parts[name] += time.perf_counter() - start
        return result

    def forward():
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            return run(data[0], data[1], return_logits=False)[1]

    def step() -> None:
        part("backward", part("forward", forward).backward)
        part("clip", lambda: torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0))
        part("optimizer", optimizer.step)
        optimizer.zero_grad(set_to_none=True)

    for _ in range(3):
        step()
    parts = dict.fromkeys(parts, 0.0)
    for _ in range(args.steps):
        step()
    rows = [{"part": name, "ms a step": 1000 * seconds / args.steps, "%": 100 * seconds / sum(parts.values())}
            for name, seconds in parts.items()]  # fmt: skip
    report(f"profile of {Path(args.config).stem}", rows, args.json)
    key = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    with torch.profiler.profile() as profiler:  # after the times, which it lengthens
        for _ in range(args.steps):
            step()
    print("\n" + profiler.key_averages().table(sort_by=key, row_limit=args.rows, max_name_column_width=50))


def loss(argv: list[str]) -> None:
    """The loss over a vocabulary with its gradients, by all logits at once, by PyTorch's linear_cross_entropy (where it
    has one) and by model.py's LinearCrossEntropy: time, and the most memory of a process of its own beyond what it had
    before."""
    made = parser("loss", loss.__doc__)
    made.add_argument("--vocab_size", type=int, nargs="+", default=[4435, 50304], help="(default: 4435 50304)")
    made.add_argument("--rows", type=int, default=2048, help="tokens of a batch (default: 2048)")
    made.add_argument("--n_embd", type=int, default=384, help="(default: 384)")
    made.add_argument("--dtype", default="auto", help="of the products (default: auto)")
    args = made.parse_args(argv)
    dtype, context = pick_dtype(args.dtype, torch.device("cpu")), multiprocessing.get_context("spawn")
    kinds = ["all logits", *["linear_cross_entropy"] * hasattr(F, "linear_cross_entropy"), "LinearCrossEntropy"]
    rows = []
    for vocab_size in args.vocab_size:
        for kind in kinds:
            with context.Pool(1) as pool:
                ms, megabytes = pool.apply(time_loss, (kind, args.rows, args.n_embd, vocab_size, dtype))
            rows.append({"vocabulary": vocab_size, "loss": kind, "ms": ms, "peak MB": megabytes})
    report(f"loss of {args.rows} tokens, {args.n_embd} wide, in {dtype}", rows, args.json)


def time_loss(kind: str, n: int, width: int, vocab_size: int, dtype: torch.dtype) -> tuple[float, float]:
    """Median milliseconds, and 10^6 bytes."""
    keep_memory()
    x, weight = (torch.randn(size, width).mul_(0.02).requires_grad_() for size in (n, vocab_size))
    targets, times, before = torch.randint(vocab_size, (n,)), [], peak_memory()
    for _ in range(7):
        x.grad = weight.grad = None
        start = time.perf_counter()
        if kind == "LinearCrossEntropy":
            total = LinearCrossEntropy.apply(x, weight, targets, 0.0, dtype, True)
        else:
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                total = (
                    F.linear_cross_entropy(x, weight, targets)
                    if kind == "linear_cross_entropy"
                    else F.cross_entropy(F.linear(x, weight).float(), targets)
                )
        total.backward()
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times[2:]), peak_memory() - before


def peak_memory() -> float:
    """The most memory that this process has had, 10^6 bytes."""
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def evaluation(argv: list[str]) -> None:
    """eval.py on a model of random weights, by 1, 2, ... processes of one thread each. "seconds" are those of the
    scoring, from when all processes have loaded the model to when the sum is known; "whole command" has the rest."""
    options = parser("eval", evaluation.__doc__)
    add = options.add_argument
    add("--processes", type=int, nargs="+", default=[1, 2], help="numbers to compare (default: 1 2)")
    add("--tokens", type=int, default=65536, help="of the text (default: 65536)")
    add("--stride", type=int, help="as in eval.py")
    for key, value in (("n_layer", 4), ("n_head", 4), ("n_embd", 256), ("block_size", 256), ("vocab_size", 32768)):
        add(f"--{key}", type=int, default=value, help=f"of the model (default: {value})")
    add("--repeats", type=int, default=3, help="the fastest of so many runs counts (default: 3)")
    args = options.parse_args(argv)
    shape = {key: getattr(args, key) for key in ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")}
    model = GPT(GPTConfig(**shape), torch.Generator().manual_seed(0))
    ids = np.random.default_rng(0).integers(0, args.vocab_size, args.tokens)
    rows, environment = [], {**os.environ, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(Path(folder) / "ckpt.pt", {"model": model.state_dict(), "model_args": model.config.to_args()})
        for split in ("train", "val"):
            ids.astype("<u2" if args.vocab_size <= 2**16 else "<u4").tofile(f"{folder}/{split}.bin")
        for n in args.processes:
            command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={n}",
                       str(Path(__file__).with_name("eval.py")), f"--out_dir={folder}", f"--dataset={folder}",
                       "--device=cpu", *([f"--stride={args.stride}"] if args.stride else [])]  # fmt: skip
            runs = []
            for _ in range(args.repeats):
                start = time.perf_counter()
                done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, encoding="utf-8")
                runs.append((json.loads(done.stdout.splitlines()[-1]), time.perf_counter() - start))
            result, seconds = min(runs, key=lambda run: run[0]["seconds"])
            rows.append(
                {
                    "processes": n,
                    "seconds": result["seconds"],
                    "tokens/s": result["tokens_per_second"],
                    "times as fast": None,
                    "whole command, s": seconds,
                    "loss": f"{result['loss']:.9f}",
                }
            )
            rows[-1]["times as fast"] = rows[0]["seconds"] / result["seconds"]
    report("eval", rows, args.json)


def generate(argv: list[str]) -> None:
    """Tokens a second, and milliseconds from a prompt to its first token, of GPT-2-shaped models of random weights.

    Greedy, on one device. "ours": model.stream in each number format, on a CPU with weights as by pack.py or int8 as by
    quantize.py, on a GPU also compiled with CUDA graphs; "uncached": our model with plain weights on the whole context
    for every token (the mean of the first and the last);
    "transformers": generate() of GPT2LMHeadModel with its cache and the same weights. "times ..." divide by the fastest
    format of that tool; "batch 8", whose rows have one prompt, by the same row's batch 1. * marks our fastest, that is
    the best of sample.py's `--dtype`, `--quantize` and `--compile`.
    """
    made = parser("generate", inspect.getdoc(generate))
    add = made.add_argument
    add("--models", nargs="+", choices=SHAPES, default=list(SHAPES), help="(default: all)")
    add("--prompt", type=int, default=200, help="its tokens (default: 200)")
    add("--tokens", type=int, default=200, help="to write (default: 200)")
    add("--batch", type=int, default=8, help="rows of the second batch size (default: 8)")
    add("--repeats", type=int, default=3, help="medians of so many runs (default: 3)")
    add("--device", default="auto", help="(default: auto)")
    args = made.parse_args(argv)
    device = pick_device(args.device)
    formats = ("float32", "bfloat16", "int8" if device.type == "cpu" else "bfloat16 compiled")
    rows = []
    for shape in args.models:
        model = GPT(GPTConfig(1024, **SHAPES[shape], mlp="gelu_tanh"), torch.Generator().manual_seed(0)).eval()
        model.to(device)
        vocab_size = model.config.vocab_size
        prompt = torch.randint(vocab_size, (1, args.prompt), generator=torch.Generator().manual_seed(0)).to(device)
        found = []
        for tool, kind in itertools.product(("ours", "uncached", "transformers"), formats):
            run = make_writer(tool, kind, model, [args.prompt, args.prompt + args.tokens - 1])
            if run is None:
                continue
            rates, first = {}, None
            if tool == "uncached":
                rates[1] = 2 / median_seconds(run, 5 * args.repeats)  # two tokens
            else:
                for batch in (1, args.batch):
                    prompts = prompt.expand(batch, -1)
                    start = median_seconds(partial(run, prompts, 1), args.repeats)
                    whole = median_seconds(partial(run, prompts, args.tokens), args.repeats)
                    rates[batch] = batch * (args.tokens - 1) / (whole - start)  # without the prompt
                    first = first or start
            found.append((tool, kind, rates, first))
        best = {
            tool: max((rates[1] for t, _, rates, _ in found if t == tool), default=None)
            for tool in ("ours", "uncached", "transformers")
        }
        for tool, kind, rates, first in found:
            many, ours = rates.get(args.batch), tool == "ours"
            rows.append({
                "model": shape, "tool": tool, "weights": kind + " *" * (ours and rates[1] == best["ours"]),
                "tokens/s": rates[1], "times transformers": rates[1] / best["transformers"] if ours and
                best["transformers"] else "", "times uncached": rates[1] / best["uncached"] if ours else "",
                f"batch {args.batch} tokens/s": many or "",
                f"batch {args.batch}, times": many / rates[1] if many else "",
                "first token ms": first * 1000 if first else "",
            })  # fmt: skip
    report("generate", rows, args.json)


SHAPES = {
    "6x384": {"vocab_size": 256, "n_layer": 6, "n_head": 6, "n_embd": 384},
    "12x768": {"vocab_size": 50304, "n_layer": 12, "n_head": 12, "n_embd": 768},
}


def make_writer(tool: str, kind: str, model: GPT, lengths: list[int]):
    """run(prompts (B, T), tokens) -> the ids of each step, or for "uncached" run(): the forward pass of the first token
    and of the last, since the cost grows evenly between them. None: the tool lacks the number format."""
    if tool != "ours" and kind not in ("float32", "bfloat16"):
        return None
    if tool == "transformers":
        return transformers_writer(model, getattr(torch, kind))
    ours = deepcopy(model).to(torch.bfloat16 if kind.startswith("bfloat16") else torch.float32)
    device = ours.lm_head.weight.device
    if kind == "int8":
        quantize(ours)
    elif tool == "ours" and not kind.endswith("compiled"):
        pack(ours)

    def write(prompts, tokens):  # a list in every step: as one who reads along does; a GPU would have to wait for it
        if kind.endswith("compiled") and len(prompts) not in ours.compiled:
            ours.compile_decoding(len(prompts), mode="reduce-overhead")
        steps = (ids for ids, _ in ours.stream(prompts, tokens, Sampling(temperature=0)))
        return [ids.tolist() for ids in steps] if device.type == "cpu" else torch.stack(list(steps)).tolist()

    @torch.no_grad()
    def recompute():
        for n in lengths:
            ours(torch.zeros(1, n, dtype=torch.int64, device=device))[0].argmax(-1).tolist()

    return write if tool == "ours" else recompute


def transformers_writer(model: GPT, dtype: torch.dtype):
    try:
        import transformers
    except ImportError:
        print("note: the package transformers is not installed, so its rows are missing", file=sys.stderr)
        return None
    from checkpoints.huggingface import hf_config, hf_tensors

    config = transformers.GPT2Config(**hf_config(model.config, "gpt2", None, "float32"))
    theirs = transformers.GPT2LMHeadModel(config).eval()
    theirs.load_state_dict(hf_tensors(model, "gpt2", torch.float32), strict=False)
    theirs.tie_weights()
    theirs.to(model.lm_head.weight.device, dtype)

    def run(prompts, tokens):
        text = theirs.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            use_cache=True,
            pad_token_id=0,
        )
        return text[:, prompts.size(1) :].T.tolist()

    return run


def median_seconds(function, repeats: int) -> float:
    function()  # to warm up
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def complete(argv: list[str]) -> None:
    """From a key to what the screen shows, in the editor of complete.py with a pipe for a keyboard.

    Types a file's text after its first --context bytes, key by key, the next one when the suggestion stands. Without
    --out_dir by a 10M-parameter byte model that is sure of nonsense: every suggestion is 32 bytes long and the next
    key never agrees with it, which is the worst case (a trained model stops earlier, and is often right).
    """
    made = parser("complete", inspect.getdoc(complete))
    made.add_argument("--out_dir", help="a run's folder; default: the worst case described above")
    made.add_argument("--text", default=__file__, help="UTF-8 file to type (default: this one)")
    made.add_argument("--context", type=int, default=500, help="its bytes that are there already (default: 500)")
    made.add_argument("--keys", type=int, default=300, help="keys to press (default: 300)")
    made.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16"], help="of the weights")
    made.add_argument("--quantize", default="auto", choices=["auto", "none", "int8"], help="as in complete.py")
    args = made.parse_args(argv)

    from complete import CompleteConfig, apart, load_completer
    from sample import read_file

    config = CompleteConfig(out_dir=args.out_dir or "", dtype=args.dtype, quantize=args.quantize)
    text = read_file("--text=", args.text)
    if args.out_dir:
        completer, _ = apart(load_completer, config)
    else:
        completer = apart(sure_completer, config)
    start = len(text.encode()[: args.context].decode("utf-8", "ignore"))
    times = type_into_editor(completer, text[:start], text[start : start + args.keys], config)
    rows = []
    for name, seconds in times.items():
        p50, p95, most = np.percentile(seconds or [math.nan], [50, 95, 100]) * 1000
        rows.append({"from the key to": name, "keys": len(seconds), "p50 ms": p50, "p95 ms": p95, "most ms": most})
    report("complete", rows, args.json)


def sure_completer(config):
    from complete import Completer
    from data.tokenizer import ByteTokenizer

    return Completer(make_ready(sure_model(), torch.device("cpu"), config.dtype, config.quantize), ByteTokenizer())


def sure_model() -> GPT:
    """6 layers, 384 wide, random but for its head: one printable ASCII character has all of the probability."""
    config = GPTConfig(block_size=1024, vocab_size=256, n_layer=6, n_head=6, n_embd=384, tie_weights=False)
    model = GPT(config, torch.Generator().manual_seed(1))
    with torch.no_grad():
        model.lm_head.weight.mul_(1e5)
        model.transformer.ln_f.bias[0] = 100.0
        model.lm_head.weight[:, 0] = -1e4
        model.lm_head.weight[33:127, 0] = 1e4
    return model.eval()


def type_into_editor(completer, text: str, keys: str, config) -> dict[str, list[float]]:
    """Seconds from each key to the screen with its echo, the first of the ghost text (if there is any), all of it."""
    from prompt_toolkit.data_structures import Size
    from prompt_toolkit.input import create_pipe_input
    from prompt_toolkit.output.vt100 import Vt100_Output
    from pygments.lexers import PythonLexer

    from complete import Editor

    times = {"its echo": [], "the first of the suggestion": [], "the whole suggestion": []}
    output = Vt100_Output(io.StringIO(), lambda: Size(rows=40, columns=120), term="xterm-256color")
    with create_pipe_input() as keyboard:
        editor = Editor(
            completer,
            text,
            PythonLexer,
            input=keyboard,
            output=output,
            max_bytes=config.max_bytes,
            min_confidence=config.min_confidence,
        )
        drawn = queue.Queue()  # (time, text before the cursor, ghost text, whether the suggestion is whole)
        editor.app.after_render += lambda _: drawn.put(
            (time.perf_counter(), editor.before, editor.ghost, editor.state != "...")
        )

        def type_all() -> None:
            before = None
            for key in ["", *keys]:
                start, seen = time.perf_counter(), {}
                keyboard.send_text("\r" if key == "\n" else key)
                while "the whole suggestion" not in seen:
                    now, at, ghost, is_whole = drawn.get(timeout=60)
                    for name, is_there in zip(times, (True, bool(ghost), is_whole), strict=True):
                        if is_there and at != before:
                            seen.setdefault(name, now - start)
                before = at
                for name, seconds in seen.items() if key else ():
                    times[name].append(seconds)

        def type_and_leave() -> None:
            try:
                type_all()
            finally:
                keyboard.send_text("\x04")

        typist = threading.Thread(target=type_and_leave)
        typist.start()
        editor.run()
        typist.join()
    return times


def lines(argv: list[str]) -> None:
    """How often a model knows how a line goes on, at a random place in lines of the validation split.

    The places are characters chosen with --seed, the context is what the editor would give (whole lines), decoding is
    greedy. "the next token": the first token that the model writes there (the rest of it, where the place is inside
    of one) is what follows; "the rest of the line": all up to the newline is. The suggestion is the one that the
    editor would show.
    """
    made = parser("lines", inspect.getdoc(lines))
    made.add_argument("--out_dir", required=True, help="a run's folder")
    made.add_argument("--dataset", help="default: the one that it was trained on")
    made.add_argument("--lines", type=int, default=500, help="lines to try (default: 500)")
    made.add_argument("--seed", type=int, default=1, help="of the choice of lines and places (default: 1)")
    made.add_argument("--min_confidence", type=float, default=None, help="of a suggestion (default: the editor's)")
    made.add_argument("--device", default="auto", help="default: auto")
    args = made.parse_args(argv)

    if args.lines < 1:
        raise ValueError(f"--lines={args.lines} must be at least 1")
    from tqdm import tqdm

    from complete import CompleteConfig, load_completer

    config = CompleteConfig(out_dir=args.out_dir, device=args.device)
    floor = config.min_confidence if args.min_confidence is None else args.min_confidence
    completer, trained_on = load_completer(config)
    dataset = open_dataset(args.dataset or trained_on)
    found = []
    places = choose_places(dataset.array("val"), completer.tokenizer, args.lines, args.seed)
    for before, rest in tqdm(places, desc="lines", disable=None):
        *_, shown = completer.suggest(before, min_confidence=floor)
        found.append((*next_and_rest(completer, before, rest.encode()), shown.text, rest.startswith(shown.text)))
    next_right, rest_right, texts, are_right = zip(*found, strict=True)
    right = [text for text, is_right in zip(texts, are_right, strict=True) if text and is_right]
    shares = [
        ("the next token is right", sum(next_right), len(found)),
        ("the rest of the line is right", sum(rest_right), len(found)),
        (f"a suggestion is shown (confidence {floor:g})", sum(map(bool, texts)), len(found)),
        ("such a suggestion is right", len(right), sum(map(bool, texts))),
    ]
    rows = [{"of": n, "times": share, "%": 100 * k / max(1, n)} for share, k, n in shares]
    report(f"lines of {dataset.name}", rows, args.json)
    print(f"characters of a right suggestion: {sum(map(len, right)) / max(1, len(right)):.1f} on average")


def choose_places(ids: np.ndarray, tokenizer, n: int, seed: int) -> list[tuple[str, str]]:
    """n times (the text of a document up to a place inside of a line, the rest of the line, not empty)."""
    ends = np.flatnonzero(ids == tokenizer.eot) if tokenizer.eot is not None else []
    documents = [tokenizer.decode(part) for part in np.split(ids, ends)]
    spans = []  # of the lines' texts: document, start, end
    for number, text in enumerate(documents):
        spans += [(number, match.start(), match.end()) for match in re.finditer(r"[^\s].*", text)]
    if not spans:
        raise ValueError("the validation split has no line with text on it")
    rng = np.random.default_rng(seed)
    places = []
    for i in rng.permutation(len(spans))[:n]:
        number, start, end = spans[i]
        place = int(rng.integers(start, end))
        places.append((documents[number][:place], documents[number][place:end]))
    return places


def next_and_rest(completer, before: str, rest: bytes) -> tuple[bool, bool]:
    """Whether the first token that the model writes is right, and whether all up to the newline are."""
    written = b""
    for number, (piece, _) in enumerate(completer.greedy(before)):
        line, newline, _ = piece.partition(b"\n")
        written += line
        if newline or not rest.startswith(written):
            return number > 0 or written == rest, written == rest
    return bool(written), False  # the text or the context ends before the line


def prepare(argv: list[str]) -> None:
    """Speed and peak memory of data/text/prepare.py, all of the command, on a folder of text files that repeat real
    text, each with a number of its own in its lines. "library": tiktoken's or tokenizers' own batch encoder on the same
    files, already in memory, on as many threads. Memory is the sum over its processes, without file pages."""
    made = parser("prepare", prepare.__doc__)
    made.add_argument("--input", type=Path, nargs="+", help="text to repeat (default: Python's standard library)")
    made.add_argument("--mb", type=int, nargs="+", default=[200, 2000], help="sizes in 10^6 bytes (default: 200 2000)")
    made.add_argument(
        "--tokenizers",
        nargs="+",
        default=["byte", "char", "gpt2", "bpe"],
        choices=["byte", "char", "gpt2", "bpe"],
        help="(default: all; bpe: 8,192 ids learned from 10 MB)",
    )
    made.add_argument("--tokenizer_file", type=Path, help="folder with GPT-2's encoder.json (default: as prepare.py)")
    made.add_argument("--cores", type=int, default=2, help="(default: 2)")
    args = made.parse_args(argv)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.cores])
    rows, text = [], real_text(args.input)
    with tempfile.TemporaryDirectory() as folder:
        learned = Path(folder, "tokenizer.json")
        for mb in args.mb:
            files = write_files(Path(folder, f"text{mb}"), text, mb * 10**6)
            size = sum(os.path.getsize(file) for file in files) / 1e6
            if hasattr(os, "sync"):
                os.sync()  # the disk would still be writing these while the first command writes
            for name in args.tokenizers:
                if name == "bpe" and not learned.exists():
                    trained = BPETokenizer.train([text[: 10**7]], 8192)
                    learned.write_text(trained.to_json()["tokenizer"], encoding="utf-8")
                file = {"bpe": learned, "gpt2": args.tokenizer_file}.get(name)
                command = [
                    sys.executable,
                    "data/text/prepare.py",
                    f"--input={files[0].parent}",
                    f"--tokenizer={name}",
                    f"--workers={args.cores}",
                    f"--out_dir={Path(folder, 'out')}",
                ]
                seconds, peak = run_and_watch(command + ([f"--tokenizer_file={file}"] if file else []))
                library = library_rate(name, file, files, args.cores) if name in LIBRARIES else None
                rows.append(
                    {
                        "tokenizer": name,
                        "MB": size,
                        "seconds": seconds,
                        "MB/s": size / seconds,
                        "library MB/s": library or "",
                        "share": library and size / seconds / library or "",
                        "peak MB": peak,
                    }
                )
                shutil.rmtree(Path(folder, "out"))
            shutil.rmtree(files[0].parent)
    report("prepare", rows, args.json)


LIBRARIES = {
    "gpt2": lambda tokenizer, texts, n: tokenizer._encoding.encode_ordinary_batch(texts, num_threads=n),
    "bpe": lambda tokenizer, texts, n: tokenizer._tokenizer.encode_batch_fast(texts, add_special_tokens=False),
}


def real_text(paths: list[Path] | None) -> str:
    library = Path(sysconfig.get_paths()["stdlib"])
    paths = paths or sorted(path for path in library.rglob("*.py") if "site-packages" not in path.parts)
    return "".join(path.read_text(encoding="utf-8", errors="ignore") for path in paths)


def write_files(folder: Path, text: str, n_bytes: int) -> list[Path]:
    """About n_bytes of text in files of 250,000 characters, no two of which are the same."""
    folder.mkdir()
    files, step = [], 250_000
    text += text[:step]
    while n_bytes > 0:
        at = len(files) * step % (len(text) - step)
        files.append(folder / f"{len(files):05}.txt")
        n_bytes -= files[-1].write_bytes(f"{len(files)}\n{text[at : at + step]}".encode())
    return files


def run_and_watch(command: list[str]) -> tuple[float, float | None]:
    """Seconds that a command takes, and the peak, in 10^6 bytes, of the resident memory of it and its children."""
    start, peak = time.perf_counter(), 0

    def watch() -> None:
        nonlocal peak
        while process.returncode is None:
            peak = max(peak, resident(process.pid))
            time.sleep(0.05)

    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=Path(__file__).parent)
    watcher = threading.Thread(target=watch)
    watcher.start()
    process.wait()
    seconds = time.perf_counter() - start
    watcher.join()
    if process.returncode:
        raise ValueError(f"{' '.join(command)} failed")
    return seconds, peak / 1e6 or None


def resident(pid: int) -> int:
    """Bytes of memory of a process and all below it, without pages of files, which the system can drop at any time;
    0 where there is no /proc."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
        children = [
            child
            for task in Path(f"/proc/{pid}/task").iterdir()
            for child in (task / "children").read_text(encoding="utf-8").split()
        ]
    except OSError:  # it ended, or this isn't Linux
        return 0
    kilobytes = sum(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
    return 1024 * kilobytes + sum(map(resident, map(int, children)))


def library_rate(name: str, file: Path | None, files: list[Path], n_threads: int) -> float:
    """10^6 bytes a second of the library's own batch encoder, on the first 200 MB of the files."""
    tokenizer, n_bytes, seconds = make_tokenizer(name, file=file), 0, 0.0
    for first in range(0, len(files), 32):
        raw = [file.read_bytes() for file in files[first : first + 32]]
        texts = [text.decode() for text in raw]
        start = time.perf_counter()
        LIBRARIES[name](tokenizer, texts, n_threads)
        seconds += time.perf_counter() - start
        n_bytes += sum(map(len, raw))
        if n_bytes > 2e8:
            break
    return n_bytes / 1e6 / seconds


VOCABULARIES = {  # name: the options of data/hongloumeng/prepare.py
    "byte": ["--tokenizer=byte"],
    "char": ["--tokenizer=char"],
    **{f"bpe-{k}k": ["--tokenizer=bpe", f"--vocab_size={1024 * k}"] for k in (2, 4, 8, 16)},
    "qwen2": ["--tokenizer=qwen2"],
    "qwen2-trimmed": ["--tokenizer=qwen2", "--trim"],
}


def tokenizers(argv: list[str]) -> None:
    """Which tokenizer for a Chinese novel? The same model at the same cost, in bits per byte of the held-out text.

    For each tokenizer: data/hongloumeng/prepare.py; train.py config/quickstart.py with 4 layers, 256 wide, context
    256, for as many steps as --tflop pays for, the head over its vocabulary included; eval.py on the whole validation
    split with the best checkpoint of five; a sample by sample.py. "seconds" are those of the steps alone. Other
    --key=value go to train.py.
    """
    made = parser("tokenizers", inspect.getdoc(tokenizers))
    made.add_argument("--input", type=Path, nargs="+", help="the text (default: 红楼梦, as prepare.py gets it)")
    made.add_argument("--qwen2", type=Path, help="Qwen2's tokenizer.json or its folder (default: as prepare.py)")
    made.add_argument("--only", nargs="+", choices=VOCABULARIES, default=list(VOCABULARIES), help="(default: all)")
    made.add_argument("--tflop", type=float, default=30, help="10^12 operations of training each (default: 30)")
    made.add_argument("--seed", type=int, default=1337, help="of training and samples (default: 1337)")
    made.add_argument("--prompt", default="\n", help="where the samples begin (default: a newline)")
    args, options = made.parse_known_args(argv)

    from tqdm import tqdm

    rows, samples = [], {}
    for name in tqdm(args.only, desc="tokenizers", disable=None):
        with tempfile.TemporaryDirectory() as folder:
            data, out = Path(folder, "data"), Path(folder, "out")
            file = [f"--tokenizer_file={args.qwen2}"] if args.qwen2 and "qwen2" in name else []
            run_script(
                "data/hongloumeng/prepare.py",
                *VOCABULARIES[name],
                *file,
                f"--out_dir={data}",
                *(["--input", *map(str, args.input)] if args.input else []),
            )
            dataset = open_dataset(data)
            row = train_for(args.tflop * 1e12, dataset, [*options, f"--seed={args.seed}"], out)
            result = json.loads(run_script("eval.py", f"--out_dir={out}").splitlines()[-1])
            rows.append({"tokenizer": name} | row | {"bits per byte": result["bits_per_byte"]})
            length = math.ceil(80 * 3 / row["bytes/token"])  # tokens of about 80 Chinese characters
            text = run_script(
                "sample.py",
                f"--out_dir={out}",
                f"--start={args.prompt}",
                "--num_samples=1",
                f"--max_new_tokens={length}",
                "--temperature=0.8",
                "--top_k=200",
                f"--seed={args.seed}",
                "--output=-",
            )
            samples[name] = json.loads(text.splitlines()[-1])["text"]
    report(f"tokenizers, {args.tflop:g} TFLOP each,", rows, args.json)
    for name, text in samples.items():
        print(f"\n{name}: {text}")


def train_for(flops: float, dataset, options: list[str], out_dir: Path) -> dict:
    """Trains a model on `dataset` for so many operations; what it cost. The best of five checkpoints is kept."""
    options = [
        str(Path(__file__).parent / "config/quickstart.py"),
        "--n_layer=4",
        "--n_embd=256",
        "--block_size=256",
        "--max_minutes=None",
        "--eval_iters=4",
        "--always_save_checkpoint=False",
        *options,
        f"--dataset={dataset.folder}",
    ]
    config, explicit = configure(TrainConfig, options)
    model = make_model(config, explicit, None, dataset, torch.Generator(), "meta")
    tokens = config.gradient_accumulation_steps * config.batch_size * config.block_size
    steps = max(1, round(flops / (model.flops_per_token() * tokens)))
    records = run_train([*options, f"--max_iters={steps}", f"--eval_interval={math.ceil(steps / 5)}"], out_dir)
    evals = [record for record in records if record["kind"] == "eval"]
    n_tokens, n_bytes = (sum(split[key] for split in dataset.meta["splits"].values()) for key in ("tokens", "bytes"))
    embeddings = model.transformer.wte.weight.numel() * (1 if config.tie_weights else 2)
    return {
        "ids": dataset.vocab_size, "tokens": n_tokens, "bytes/token": n_bytes / n_tokens,
        "parameters in embeddings": embeddings, "% of all": 100 * embeddings / model.get_num_params(False),
        "steps": steps, "epochs": steps * tokens / dataset.tokens("train"),
        "seconds": evals[-1]["seconds"] - sum(record["eval_seconds"] for record in evals),
    }  # fmt: skip


GPU = {  # name: commands
    "profile of a step": ["bench.py profile config/train_gpt2.py --batch_size=32 --gradient_accumulation_steps=1"],
    "124M": ["bench.py train config/train_gpt2.py --batch_size=32 --gradient_accumulation_steps=1 --steps=40 "
             "--peer={peer}"],
    "124M with Muon": ["bench.py train config/speed_gpt2.py --gradient_accumulation_steps=1 --steps=40"],
    "350M": ["bench.py train config/train_gpt2.py --n_layer=24 --n_head=16 --n_embd=1024 --batch_size=16 "
             "--gradient_accumulation_steps=1 --steps=40"],
    "baby GPT": ["bench.py time_to_loss config/speed_shakespeare_char.py --target=1.47 --n_layer=6 --n_head=6 "
                 "--n_embd=384 --block_size=256 --batch_size=64 --dropout=0.2 --max_iters=800 --eval_interval=50 "
                 "--baseline --plain='--max_iters=5000 --eval_interval=250'"],
    "Python": ["bench.py time_to_loss config/speed_pycode.py --target=0 --max_minutes=8 --eval_interval=100 "
               "--baseline --plain=--max_minutes=8"],
    "generation": ["bench.py generate --models 12x768 --batch 64 --device=cuda"],
    "红楼梦, deep": [
        "train.py config/train_hongloumeng_deep.py --out_dir=out-gpu-hongloumeng",
        "eval.py --out_dir=out-gpu-hongloumeng --baselines",
        "sample.py --out_dir=out-gpu-hongloumeng --start=却说宝玉 --num_samples=2 --max_new_tokens=200"],
    "Python by BPE": [
        "train.py config/speed_pycode.py --max_minutes=10 --out_dir=out-gpu-pycode",
        "eval.py --out_dir=out-gpu-pycode --baselines", "bench.py lines --out_dir=out-gpu-pycode",
        "sample.py --out_dir=out-gpu-pycode '--start=import numpy as' --num_samples=3 --max_new_tokens=120"],
    "C++ by bytes": [
        "train.py config/train_cppcode_bytes.py --max_minutes=10 --out_dir=out-gpu-cppcode",
        "eval.py --out_dir=out-gpu-cppcode --baselines", "bench.py lines --out_dir=out-gpu-cppcode",
        "sample.py --out_dir=out-gpu-cppcode '--start=for (int i = ' --num_samples=3 --max_new_tokens=300"],
}  # fmt: skip


def gpu(argv: list[str]) -> None:
    """All that is to be known of a GPU, one table after another, each under its commands. Needs the datasets
    shakespeare_char, hongloumeng, cppcode and pycode (see the config files); takes more than an hour in all."""
    made = parser("gpu", gpu.__doc__)
    made.add_argument("--only", nargs="+", choices=list(GPU), default=list(GPU), help="some of: " + ", ".join(GPU))
    made.add_argument("--peer", type=Path, help="a checkout of nanoGPT to run beside")
    args = made.parse_args(argv)
    peer, failed = args.peer and args.peer.resolve(), []
    for name in args.only:
        print(f"\n## {name}", flush=True)
        for line in GPU[name]:
            words = [word.format(peer=peer) for word in shlex.split(line) if peer or "{peer}" not in word]
            print(f"\n$ python {shlex.join(words)}\n", flush=True)
            words += ["--json"] * (args.json and words[0] == "bench.py")
            # processes of their own, so that each finds all of the GPU's memory
            if subprocess.run([sys.executable, *words], cwd=Path(__file__).parent, check=False).returncode:
                failed.append(name)  # it has said why; the other tables are worth having all the same
                break
    if failed:
        raise ValueError(f"failed: {', '.join(failed)}; the reasons are above")


BENCHMARKS = {  # name: function of the arguments that follow it
    "ablation": ablation,
    "complete": complete,
    "eval": evaluation,
    "generate": generate,
    "gpu": gpu,
    "lines": lines,
    "loss": loss,
    "prepare": prepare,
    "profile": profile,
    "save": save,
    "time_to_loss": time_to_loss,
    "tokenizers": tokenizers,
    "train": train,
}


def main(argv: list[str]) -> None:
    if argv[:1] in ([], ["-h"], ["--help"]):
        print(f"{__doc__}\nNAME: {', '.join(sorted(BENCHMARKS))}")
    elif argv[0] not in BENCHMARKS:
        raise ValueError(f"no benchmark {argv[0]!r}: choose from {', '.join(sorted(BENCHMARKS))}")
    else:
        BENCHMARKS[argv[0]](argv[1:])


if __name__ == "__main__":
    exit_on_error(main)
