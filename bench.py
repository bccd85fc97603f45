"""Speed and memory of everything here, each comparison in one run on one machine.

    python bench.py NAME [options]        # python bench.py NAME --help: what it measures, and its options

Every benchmark prints a table, and with --json the same figures as one line of JSON. Run one only on a machine that
does nothing else.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from checkpoint import save
from configurator import exit_on_error
from data.source import Parser
from model import GPT, GPTConfig


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
        save(Path(folder) / "ckpt.pt", {"model": model.state_dict(), "model_args": model.config.to_args()})
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


BENCHMARKS = {"eval": evaluation}  # name: function of the arguments that follow it


def main(argv: list[str]) -> None:
    if argv[:1] in ([], ["-h"], ["--help"]):
        print(f"{__doc__}\nNAME: {', '.join(sorted(BENCHMARKS))}")
    elif argv[0] not in BENCHMARKS:
        raise ValueError(f"no benchmark {argv[0]!r}: choose from {', '.join(sorted(BENCHMARKS))}")
    else:
        BENCHMARKS[argv[0]](argv[1:])


if __name__ == "__main__":
    exit_on_error(main)
