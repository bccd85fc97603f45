"""eval.py on a model with random weights, by 1, 2, ... processes of one thread each. "seconds" is the scoring alone,
after all processes have loaded the model. "whole command" includes the rest.
"""

import json
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.report import parser, print_table
from benchmarks.runs import ROOT, random_dataset, run_python
from checkpoints.file import save_checkpoint
from model import GPT, GPTConfig

SHAPE = {"n_layer": 4, "n_head": 4, "n_embd": 256, "block_size": 256, "vocab_size": 32768}


def evaluation_speed(argv: list[str]) -> None:
    made = parser("eval", __doc__)
    made.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="counts to compare (default: 1 2)")
    made.add_argument("--tokens", type=int, default=65536, help="length of the text (default: 65536)")
    made.add_argument("--stride", type=int, help="as in eval.py")
    for key, value in SHAPE.items():
        made.add_argument(f"--{key}", type=int, default=value, help=f"of the model (default: {value})")
    made.add_argument("--repeats", type=int, default=3, help="runs, of which the fastest counts (default: 3)")
    args = made.parse_args(argv)
    model = GPT(GPTConfig(**{key: getattr(args, key) for key in SHAPE}), torch.Generator().manual_seed(0))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(Path(folder) / "ckpt.pt", {"model": model.state_dict(), "model_args": model.config.to_args()})
        random_dataset(Path(folder), args.vocab_size, args.tokens)
        command = [str(ROOT / "eval.py"), f"--out_dir={folder}", f"--dataset={folder}", "--split=train", "--device=cpu"]
        command += [f"--stride={args.stride}"] * (args.stride is not None)
        for n in args.processes:
            torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={n}"]
            runs = []
            for _ in range(args.repeats):
                start = time.perf_counter()
                output = run_python("eval.py", [*torchrun, *command], OMP_NUM_THREADS="1")
                runs.append((json.loads(output.splitlines()[-1]), time.perf_counter() - start))
            result, whole = min(runs, key=lambda run: run[0]["seconds"])
            row = {"processes": n, "seconds": result["seconds"], "tokens/s": result["tokens_per_second"]}
            row["times as fast"] = rows[0]["seconds"] / row["seconds"] if rows else 1.0
            rows.append(row | {"whole command, s": whole, "loss": f"{result['loss']:.9f}"})
    print_table("eval", rows, args.json)
