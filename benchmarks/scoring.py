"""Speed of eval.py."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.report import parser, report
from checkpoints import checkpoint
from model import GPT, GPTConfig


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
                       str(Path(__file__).parents[1] / "eval.py"), f"--out_dir={folder}", f"--dataset={folder}",
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
