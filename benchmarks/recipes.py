"""What recipes are worth: runs of train.py compared."""

import inspect
import itertools
import math
import statistics
from pathlib import Path

from benchmarks.report import parser, report
from benchmarks.runs import run_train
from configurator import configure
from data.dataset import eval_windows, open_dataset
from system.device import pick_device
from train import TrainConfig

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
