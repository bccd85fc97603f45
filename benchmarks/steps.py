"""Speed and memory of a training step."""

import inspect
import pickle
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.report import parser, report
from benchmarks.runs import run_train, shape_of, vocabulary
from configurator import configure
from model import GPT
from system.device import keep_memory, pick_compile, pick_device, pick_dtype
from train import TrainConfig
from training.optim import make_optimizer


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
