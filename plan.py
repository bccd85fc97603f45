"""What can be learned from a dataset on this machine in a given time: sizes, speed, epochs, and the loss to expect.

    python plan.py config/speed_hongloumeng_char.py --minutes=10            # each size for some seconds
    python plan.py config/speed_hongloumeng_char.py --minutes=10 --sweep    # and in short runs, as long as the plan
    python plan.py config/train_pycode.py --minutes=60 --sizes 4x256 6x384 --dataset=mycode --batch_size=16

Everything is measured by train.py with the config's settings; only the shape changes, from LAYERSxWIDTH in --sizes
(with the config's head size). Any other --key=value goes to train.py.

--sweep trains each size for 1/32, 1/16 and 1/8 of the steps, with a schedule that ends there. Where the loss is
E + A t^-b, what each doubling of the time t gains shrinks by one factor, so three losses give those to come. The
prediction is for one pass over new text: beyond some four epochs a text teaches less (Muennighoff et al. 2023,
arXiv:2305.16264), and the loss of a small one rises again. So the proposed command evaluates twenty times and keeps the
best checkpoint, and has dropout where the epochs are many.
"""

import argparse
import json
import math
import re
import shlex
import statistics
import sys

from configurator import answer_early, exit_on_error
from data.source import Parser

SIZES = ("2x128", "4x128", "4x256", "6x384", "8x512", "12x768")
SHARES = (1 / 32, 1 / 16, 1 / 8)  # of the steps, for the short runs: each twice the one before
TRIAL_SECONDS = 10  # for a size's speed, or a tenth of the time if that is less
DROPOUT = ((4, 0.0), (12, 0.1), (math.inf, 0.2))  # (epochs up to which, dropout): a rule of thumb, of RESULTS.md's runs


def plan_options() -> argparse.ArgumentParser:
    layout = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog="plan.py", description=__doc__, allow_abbrev=False, formatter_class=layout)
    add = parser.add_argument
    add("config", help="a config file of train.py, with the recipe and the dataset")
    add("--minutes", type=float, required=True, help="time for the training")
    add("--sizes", nargs="+", type=size, default=[], metavar="LxC", help=f"(default: from {' '.join(SIZES)})")
    add("--sweep", action="store_true", help="train the most promising sizes in short runs, and predict their losses")
    add("--json", action="store_true", help="also print the figures as one line of JSON")
    return parser


def size(text: str) -> tuple[int, int]:
    """(layers, width)."""
    if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no size: expected LAYERSxWIDTH, such as 4x256")
    layers, width = text.split("x")
    return int(layers), int(width)


if __name__ == "__main__":
    answer_early(
        lambda words: plan_options().parse_known_args(words)[0]
    )  # --help and mistakes, before the slow imports

from benchmarks.report import machine, print_rows
from benchmarks.runs import as_options, model_of, run_train, settings_of


def main(argv: list[str]) -> None:
    args, options = plan_options().parse_known_args(argv)
    if not 0 < args.minutes < math.inf:
        raise ValueError(f"--minutes={args.minutes} must be above 0")
    options = [args.config, *options]
    settings, _ = settings_of(options)
    head_size = settings.head_dim or settings.n_embd // settings.n_head
    print(f"{settings.dataset} in {args.minutes:g} minutes on {machine()}\n", flush=True)
    rows = []
    for layers, width in args.sizes or [size(text) for text in SIZES]:
        shape = {"n_layer": layers, "n_embd": width, "n_head": max(1, width // head_size)}
        row = trial([*options, *as_options(shape)], args.minutes)
        rows.append({"size": f"{layers}x{width}", **row, "shape": shape})
        if not args.sizes and row["epochs"] < 0.5:
            break  # larger ones would see even less of the text
    if args.sweep:
        sweep(rows, options, args)
    print_rows([{key: value for key, value in row.items() if key != "shape"} for row in rows])
    if args.sweep:
        best = min((row for row in rows if row["expected loss"] is not None), key=lambda row: row["expected loss"])
        print(f"\nThe lowest loss is expected of {best['size']}:\n{proposal(best, options, args.minutes)}")
    else:
        print("\n--sweep predicts their losses.")
    if args.json:
        print(json.dumps({"dataset": settings.dataset, "minutes": args.minutes, "machine": machine(), "rows": rows}))


def trial(options: list[str], minutes: float) -> dict:
    """Parameters, memory and speed of a size, in a run of some seconds, and how far it would get in `minutes`."""
    settings, _ = settings_of(options)
    limits = {
        "max_minutes": min(TRIAL_SECONDS / 60, minutes / 10),
        "max_iters": 10**6,
        "eval_interval": 10**6,
        "eval_iters": 1,
    }
    records = run_train([*options, *as_options(limits | {"log_interval": 1})], "train")
    seconds = statistics.median(record["time_ms"] for record in records[len(records) // 2 :]) / 1000
    steps = int(60 * minutes / seconds)
    return {
        "parameters": model_of(settings).get_num_params(non_embedding=False),
        "memory MB": max((record["memory_mb"] or 0 for record in records), default=0),
        "ms a step": seconds * 1000,
        "steps": steps,
        "epochs": steps * records[0]["epochs"],  # its first step's, times the steps
    }


def sweep(rows: list[dict], options: list[str], args: argparse.Namespace) -> None:
    """Adds to the rows the losses of short runs and the loss expected after args.minutes; None where not run. Without
    --sizes, sizes are tried from the smallest on, until one is clearly worse than the best."""
    best = math.inf
    for row in rows:
        row |= {f"loss at 1/{round(1 / share)}": None for share in SHARES} | {"expected loss": None}
    for row in rows:
        for share in SHARES:
            steps = max(1, round(row["steps"] * share))
            limits = {"max_iters": steps, "eval_interval": 10**6}
            loss = run_train([*options, *as_options(row["shape"] | limits)], "eval")[-1]["val_loss"]
            row[f"loss at 1/{round(1 / share)}"] = loss
            print(f"{row['size']}, {steps:,} steps: loss {loss:.4f}", file=sys.stderr, flush=True)
        row["expected loss"] = extrapolate([row[f"loss at 1/{round(1 / share)}"] for share in SHARES])
        if not args.sizes and row["expected loss"] > 1.05 * best:
            break
        best = min(best, row["expected loss"])


def extrapolate(losses: list[float], doublings: int = 3) -> float:
    """The loss after so many more doublings of the time, from those after t, 2t and 4t. Where it no longer falls, the
    last one."""
    before, last = losses[0] - losses[1], losses[1] - losses[2]
    if last <= 0 or before <= 0:
        return losses[2]
    factor = min(1.0, last / before)
    return max(0.0, losses[2] - last * sum(factor**k for k in range(1, doublings + 1)))


def proposal(row: dict, options: list[str], minutes: float) -> str:
    dropout = next(rate for epochs, rate in DROPOUT if row["epochs"] <= epochs)
    limits = {"max_minutes": f"{minutes:g}", "max_iters": 10**6, "eval_interval": max(1, row["steps"] // 20)}
    extra = as_options(row["shape"] | {"dropout": dropout} | limits | {"always_save_checkpoint": False})
    return shlex.join(["python", "train.py", *options, *extra])


if __name__ == "__main__":
    exit_on_error(main)
