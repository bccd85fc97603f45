"""What a training recipe is worth: runs of train.py compared by the loss on the whole validation split."""

import itertools
import math
import statistics
from pathlib import Path

from benchmarks.report import parser, print_table
from benchmarks.runs import as_options, run_train, settings_of
from data.dataset import eval_windows, open_dataset
from system.device import pick_device

PLAIN = {  # nanoGPT's recipe; shape and batch are the config's
    "optimizer": "adamw", "learning_rate": 1e-3, "min_lr": 1e-4, "warmup_iters": 100, "beta1": 0.9, "beta2": 0.99,
    "weight_decay": 0.1, "grad_clip": 1.0, "schedule": "cosine", "dropout": 0.0, "bias": False, "pos": "learned",
    "norm": "layernorm", "mlp": "gelu", "qk_norm": False, "softcap": 0.0, "smear": False, "tie_weights": True,
    "init": "normal", "max_minutes": None,
}  # fmt: skip
PARTS = "optimizer pos tie_weights init schedule dropout qk_norm norm mlp softcap smear".split()  # of a recipe
NEVER = 10**9  # steps


def time_to_loss(argv: list[str]) -> None:
    """How long train.py takes to reach a loss on the whole validation split: with a config and, with --baseline, also
    with nanoGPT's recipe (AdamW, cosine, LayerNorm, GELU, learned positions, tied head; float32 on a CPU, as there).

    Any other --key=value goes to both runs, those in --plain only to the plain recipe. Both evaluate every
    --eval_interval steps; "training s" leaves evaluation out. The learning rate falls until --max_iters, so fewer steps
    may reach the loss sooner.
    """
    made = parser("time_to_loss", time_to_loss.__doc__)
    made.add_argument("config", help="a config file")
    made.add_argument("--target", type=float, required=True, help="validation loss to reach, nats per token")
    made.add_argument("--baseline", action="store_true", help="run the plain recipe as well")
    made.add_argument("--plain", default="", help="settings for that run: --plain='--key=value ...'")
    made.add_argument("--seeds", type=int, nargs="+", default=[1337], help="one run each (default: 1337)")
    args, options = made.parse_known_args(argv)
    runs = {Path(args.config).stem: [args.config, *options]}
    if args.baseline:
        plain = PLAIN | ({"dtype": "float32"} if pick_device("auto").type == "cpu" else {})
        runs = {"plain recipe": [args.config, *options, *as_options(plain), *args.plain.split()], **runs}
    runs = {name: with_whole_split(command) for name, command in runs.items()}
    rows = []
    for seed, (name, command) in itertools.product(args.seeds, runs.items()):
        evals = run_train([*command, f"--seed={seed}"], "eval")
        costs = [
            {"tokens": record["tokens"], "training s": seconds, "with evaluation s": record["seconds"]}
            for record, seconds in zip(evals, training_seconds(evals), strict=True)
        ]
        losses = [record["val_loss"] for record in evals]
        reached = [cost for cost, loss in zip(costs, losses, strict=True) if loss <= args.target]
        first = reached[0] if reached else dict.fromkeys(costs[0], "not reached")
        row = {f"to {args.target:g}: {key}": value for key, value in first.items()}
        row |= {f"in all: {key}": value for key, value in costs[-1].items()}
        rows.append({"run": name, "seed": seed, **row, "last val loss": losses[-1], "best": min(losses)})
    print_table(f"time to a validation loss of {args.target:g}", rows, args.json)


def training_seconds(evals: list[dict]) -> list[float]:
    """Seconds of a run up to each evaluation, without the evaluations."""
    evaluating = itertools.accumulate(record["eval_seconds"] for record in evals)
    return [record["seconds"] - seconds for record, seconds in zip(evals, evaluating, strict=True)]


def with_whole_split(command: list[str]) -> list[str]:
    """The options of train.py, and the eval_iters with which it reads the whole validation split."""
    settings, _ = settings_of(command)
    windows = eval_windows(open_dataset(settings.dataset, settings.vocab_size), "val", settings.block_size)
    return [*command, f"--eval_iters={math.ceil(len(windows) / settings.batch_size)}"]


def ablation(argv: list[str]) -> None:
    """What each part of a recipe is worth: train.py with a config, then with one setting at a time changed back to
    nanoGPT's recipe. A run takes --minutes, including its first evaluation.

    Any other --key=value goes to all runs. AdamW in place of Muon also gets nanoGPT's learning rate, because the one
    used beside Muon is too high for it.
    """
    made = parser("ablation", ablation.__doc__)
    made.add_argument("config", help="a config file")
    made.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="one run each (default: 1 2 3)")
    made.add_argument("--minutes", type=float, default=0.25, help="length of a run (default: 0.25)")
    made.add_argument("--also", action="append", default=[], help="one more row: --also='--key=value ...'")
    args, options = made.parse_known_args(argv)
    settings, explicit = settings_of([args.config])
    changes = {"as it is": []}
    for key in PARTS:
        if key in explicit and getattr(settings, key) != PLAIN[key]:
            keys = [key, "learning_rate", "min_lr", "warmup_iters"] if key == "optimizer" else [key]
            changes[f"{key}: {PLAIN[key]}"] = as_options({k: PLAIN[k] for k in keys})
    changes |= {text: text.split() for text in args.also}
    options += as_options({"max_minutes": args.minutes, "max_iters": NEVER, "eval_interval": NEVER})
    runs = {name: with_whole_split([args.config, *options, *change]) for name, change in changes.items()}
    ends = {name: [] for name in runs}
    # seed by seed, so that a slow spell of the machine affects all rows alike
    for seed, (name, command) in itertools.product(args.seeds, runs.items()):
        ends[name].append(run_train([*command, f"--seed={seed}"], "eval")[-1])
    rows = []
    for name, records in ends.items():
        losses = [record["val_loss"] for record in records]
        mean, steps = statistics.mean(losses), statistics.mean(record["iter"] for record in records)
        row = {"with": name, "steps": steps, "validation loss": mean, "lowest": min(losses), "highest": max(losses)}
        rows.append(row | {"worse by": mean - rows[0]["validation loss"] if rows else 0.0})
    print_table(f"ablation of {Path(args.config).stem}, {args.minutes:g} minutes a run", rows, args.json)
