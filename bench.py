"""Speed and memory of everything here, each comparison in one run on one machine.

    python bench.py NAME [options]        # python bench.py NAME --help: what it measures, and its options

Every benchmark prints a table, and with --json the same figures as one line of JSON. Run one only on a machine that
does nothing else.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

import checkpoint
from configurator import exit_on_error
from data.source import Parser
from device import pick_device
from model import GPT, GPTConfig
from optim import make_optimizer


def parser(name: str, description: str) -> argparse.ArgumentParser:
    made = Parser(prog=f"bench.py {name}", description=description, allow_abbrev=False,
                  formatter_class=argparse.RawDescriptionHelpFormatter)
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
    made = parser("save", """How long training waits for a checkpoint: a GPT with AdamW, by default of GPT-2's size.

The stall is the time that the loop waits, also given as a share of what a plain save takes; a step is timed alone and
while a file is being written. The first save in the background also allocates the memory for its copy.""")
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
            saver = checkpoint.Saver(device, keep=2, fresh=True, background=background)
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


def timed_save(model: GPT, optimizer: torch.optim.Optimizer, idx: torch.Tensor, saver: checkpoint.Saver,
               path: Path) -> tuple[float, float, list[float]]:
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


def timed_step(model: GPT, optimizer: torch.optim.Optimizer, idx: torch.Tensor,
               saver: checkpoint.Saver) -> tuple[float, float]:
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
        checkpoint.save(Path(folder) / "ckpt.pt", {"model": model.state_dict(), "model_args": model.config.to_args()})
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
            rows.append({"processes": n, "seconds": result["seconds"], "tokens/s": result["tokens_per_second"],
                         "times as fast": None, "whole command, s": seconds, "loss": f"{result['loss']:.9f}"})
            rows[-1]["times as fast"] = rows[0]["seconds"] / result["seconds"]
    report("eval", rows, args.json)


BENCHMARKS = {"save": save, "eval": evaluation}  # name: function of the arguments that follow it


def main(argv: list[str]) -> None:
    if argv[:1] in ([], ["-h"], ["--help"]):
        print(f"{__doc__}\nNAME: {', '.join(sorted(BENCHMARKS))}")
    elif argv[0] not in BENCHMARKS:
        raise ValueError(f"no benchmark {argv[0]!r}: choose from {', '.join(sorted(BENCHMARKS))}")
    else:
        BENCHMARKS[argv[0]](argv[1:])


if __name__ == "__main__":
    exit_on_error(main)
