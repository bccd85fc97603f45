"""What can be learned from a dataset on this machine in a given time: sizes, speed, epochs, and the loss to expect.

    python plan.py config/speed_hongloumeng_char.py --minutes=10            # each size for some seconds
    python plan.py config/speed_hongloumeng_char.py --minutes=10 --sweep    # and in short runs, as long as the plan
    python plan.py config/train_pycode.py --minutes=60 --sizes 4x256 6x384 --dataset=mycode --batch_size=16

Everything is measured by train.py, in one process, with the config's settings; only the shape changes, from
LAYERSxWIDTH in --sizes: the head size is the config's where it divides the width, key/value heads and the MLP's width
keep their shares. The steps are those for which the evaluations leave time: twenty, or as many as fit into a tenth of
it. The table ends before a size that fails, as for lack of memory. Any other --key=value goes to train.py, except
lr_decay_iters, max_epochs, max_tokens and compute: each run decays to its own end, which is that of the time.
max_iters, max_minutes and eval_interval are set here too, and the warmup is at most a tenth of the steps.

--sweep trains each size for 1/16, 1/8 and 1/4 of the steps, with the schedule, warmup included, shortened in proportion
and the dropout that the proposal has: 7/16 of --minutes for each size, plus evaluations. Two curves go through the
three training losses: a power law E + A t^-b of the time t, and a hyperbola E + A / (t + t0), since a run of few steps
learns as if it had started late. The gap to the validation loss, which grows with every epoch, goes on growing by as
much at each doubling as at the last. So there are two predictions: the expected loss is their mean, and the range lies
between them. Where the loss rises towards the end, the text has been read too often, and the proposal stops earlier; it
keeps the best checkpoint of its evaluations. Where the second doubling still gained more than the first, or
the third run had few steps, these were too short to tell where that ends, and a fourth one takes 1/2 of the steps.
"""

import argparse
import json
import math
import re
import shlex
import statistics
import sys
from types import SimpleNamespace

from configurator import answer_early, exit_on_error
from data.options import Parser

# settings that end a run, or its schedule, elsewhere than --minutes does
OTHER_ENDS = ("lr_decay_iters", "max_epochs", "max_tokens", "compute")
SIZES = ("2x128", "3x128", "4x128", "4x256", "6x384", "8x512", "12x768")
SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2)  # of the steps, for the short runs: each twice the one before
LEAST = 64  # steps of the last short run: with fewer, predictions were up to 0.65 nats too high
RISE = 0.01  # nats: a smaller one at the end is within the noise of short runs
UNLISTED = ("shape", "stop", "too short", "train losses")  # of a row, which the table does not show
TRIAL_SECONDS = 10  # for a size's speed, or a tenth of the time if that is less
TRIAL_BATCHES = 4  # of each split: an evaluation of so many tells how long a whole one takes
EVALUATIONS = 20  # of the proposal, or fewer (but one) that take at most
EVALUATING = 0.1  # of the time
DROPOUT = ((4, 0.0), (12, 0.1), (math.inf, 0.2))  # (epochs up to which, dropout): a rule of thumb, of RESULTS.md's runs


def plan_options() -> argparse.ArgumentParser:
    layout = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog="plan.py", description=__doc__, allow_abbrev=False, formatter_class=layout)
    add = parser.add_argument
    add("config", help="a config file of train.py, with the recipe and the dataset")
    add("--minutes", type=float, required=True, help="time for the training")
    text = f"(default: these, until a size would read less than half the text: {' '.join(SIZES)})"
    add("--sizes", nargs="+", type=size, default=[], metavar="LxC", help=text)
    add("--sweep", action="store_true", help="train the most promising sizes in short runs, and predict their losses")
    add("--json", action="store_true", help="also print the figures as one line of JSON")
    return parser


def size(text: str) -> tuple[int, int]:
    """(layers, width)."""
    if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size: expected LAYERSxWIDTH, such as 4x256")
    layers, width = text.split("x")
    return int(layers), int(width)


if __name__ == "__main__":
    answer_early(lambda words: plan_options().parse_known_args(words))  # --help and mistakes, before the slow imports

import torch

from benchmarks.report import BY_TRAIN, machine, note_errors, print_rows
from benchmarks.runs import as_options, model_of, run_train, settings_of
from data.dataset import Dataset, open_dataset
from data.windows import eval_windows


def main(argv: list[str]) -> None:
    args, options = plan_options().parse_known_args(argv)
    if not 0 < args.minutes < math.inf:
        raise ValueError(f"--minutes={args.minutes}: expected a positive, finite number of minutes")
    options = [args.config, *(option for option in options if not any(is_given(key, [option]) for key in OTHER_ENDS))]
    settings, _ = settings_of(options)
    options += [f"--{key}=None" for key in OTHER_ENDS if getattr(settings, key) is not None]  # the config's
    warmup = 2000 if settings.warmup_iters is None else settings.warmup_iters  # train.py's default is as many at most
    print(f"{settings.dataset} in {args.minutes:g} minutes on {machine(BY_TRAIN)}\n", flush=True)
    rows = []
    for layers, width in args.sizes or [size(text) for text in SIZES]:
        name, shape = f"{layers}x{width}", shape_of(layers, width, settings)
        try:
            row = trial([*options, *as_options(shape)], SimpleNamespace(**vars(settings) | shape), args.minutes)
        except ValueError as error:
            if not rows:
                raise
            print(f"note: stopping before {name}: {error}", file=sys.stderr, flush=True)
            break
        print(f"{name}: {row['steps']:,} steps, {row['epochs']:.1f} epochs", file=sys.stderr, flush=True)
        row["dropout"] = settings.dropout if is_given("dropout", options) else dropout_for(row["epochs"])
        rows.append({"size": name, **row, "shape": shape})
        if not args.sizes and row["epochs"] < 0.5:
            break  # larger ones would see even less of the text
    if args.sweep:
        sweep(rows, options, args, warmup)
    print_rows([{key: value for key, value in row.items() if key not in UNLISTED} for row in rows])
    if args.sweep:
        swept = [row for row in rows if row["expected loss"] is not None]
        if not swept:
            raise ValueError("no size got through its short runs: see the notes above")
        best = min(swept, key=lambda row: row["expected loss"])
        print(f"\n{recommendation(best)}\n{proposal(best, options, args.minutes, warmup)}")
    else:
        print("\n--sweep predicts their losses.")
    if args.json:
        found = {"dataset": settings.dataset, "minutes": args.minutes, "machine": machine(BY_TRAIN), "rows": rows}
        print(json.dumps(found))


def shape_of(layers: int, width: int, settings) -> dict:
    """Settings of train.py for a size, in the config's proportions."""

    def divisor(number: int, most: int, step: int = 1) -> int:
        return next((n for n in range(most, 1, -1) if number % (step * n) == 0), 1)

    heads = max(1, width * settings.n_head // settings.n_embd)
    if not settings.head_dim:
        heads = divisor(width, heads, step=2)  # RoPE needs an even head size
    shape = {"n_layer": layers, "n_embd": width, "n_head": heads}
    if settings.n_kv_head:
        shape["n_kv_head"] = divisor(heads, heads * settings.n_kv_head // settings.n_head)
    if settings.mlp_hidden:
        shape["mlp_hidden"] = round(settings.mlp_hidden * width / settings.n_embd)
    return shape


def trial(options: list[str], settings: SimpleNamespace, minutes: float) -> dict:
    """Parameters, memory and speed of a size, in a run of some seconds, and how far it would get in `minutes`."""
    few = min(settings.eval_iters, TRIAL_BATCHES)
    fixed = {"log_interval": 1, "eval_interval": 10**6, "eval_iters": few}
    by_time = {"max_minutes": min(TRIAL_SECONDS / 60, minutes / 10), "max_iters": 10**6}
    for limits in (by_time, {"max_minutes": None, "max_iters": 4}):  # the second where the time is too short for steps
        records = run_train([*options, *as_options(fixed | limits)])
        steps_made = [record for record in records if record["kind"] == "train"]
        if len(steps_made) > 2:
            break
    seconds = statistics.median(record["time_ms"] for record in steps_made[len(steps_made) // 2 :]) / 1000
    dataset = open_dataset(settings.dataset, settings.vocab_size)
    whole, part = (windows_read(dataset, settings, n) for n in (settings.eval_iters, few))
    evaluation = records[-1]["eval_seconds"] * whole / part
    evaluations = max(1, min(EVALUATIONS, int(EVALUATING * 60 * minutes / evaluation)))
    steps = int((60 * minutes - evaluations * evaluation) / seconds)
    if steps < 1:
        raise ValueError(
            f"--minutes={minutes:g} leaves no time for a step of {seconds:.2g} s beside an evaluation of "
            f"{evaluation:.2g} s: use more minutes, or a smaller --eval_iters, --batch_size or model"
        )
    memory = [record["memory_mb"] for record in steps_made if "memory_mb" in record]  # unknown on Windows
    with torch.device("meta"):
        parameters = model_of(settings).get_num_params(non_embedding=False)
    return {
        "parameters": parameters,
        "memory MB": max(memory) * 2**20 / 1e6 if memory else None,
        "ms a step": seconds * 1000,
        "evaluations": evaluations,
        "s each": evaluation,
        "steps": steps,
        "epochs": steps * steps_made[0]["epochs"],  # its first step's, times the steps
    }


def windows_read(dataset: Dataset, settings: SimpleNamespace, batches: int) -> int:
    """How many windows an evaluation by so many batches of each split reads."""
    limit = batches * settings.batch_size
    return sum(len(eval_windows(dataset, split, settings.block_size, limit)) for split in ("train", "val"))


def is_given(key: str, options: list[str]) -> bool:
    """Whether the command line, not just the config, sets this key."""
    return any(option.startswith(f"--{key}=") for option in options)


def dropout_for(epochs: float) -> float:
    return next(rate for most, rate in DROPOUT if epochs <= most)


def sweep(rows: list[dict], options: list[str], args: argparse.Namespace, warmup: int) -> None:
    """Adds to the rows the losses of short runs, and those expected after args.minutes; None where not run, or where a
    run failed. Without --sizes, sizes are tried from the smallest on, until one is clearly worse than the best."""
    best = math.inf
    for row in rows:
        row |= dict.fromkeys([*map(loss_name, SHARES), "expected loss", "from", "to"])
    for row in rows:
        with note_errors(row["size"]):
            short_runs(row, options, warmup)
            if not args.sizes and row["expected loss"] > 1.05 * best:
                break
            best = min(best, row["expected loss"])


def short_runs(row: dict, options: list[str], warmup: int) -> None:
    """Adds to the row the losses of its short runs, and what they let expect."""
    fixed, train, val = [*options, *as_options(row["shape"] | {"dropout": row["dropout"]})], [], []
    for share in SHARES:
        if len(train) == 3 and not row["too short"]:
            break
        limits = {"max_iters": max(1, round(row["steps"] * share)), "eval_interval": 10**6, "max_minutes": None}
        limits["warmup_iters"] = round(min(warmup, row["steps"] // 10) * share)
        record = run_train([*fixed, *as_options(limits)], "eval")[-1]
        train.append(record["train_loss"])
        val.append(record["val_loss"])
        row[loss_name(share)] = val[-1]
        row["too short"] = limits["max_iters"] < LEAST or len(train) < 3 or gains(train)[0] <= gains(train)[1]
        print(f"{row['size']}, {limits['max_iters']:,} steps: loss {val[-1]:.4f}", file=sys.stderr, flush=True)
    row |= {"train losses": train} | expectation(train, val)


def loss_name(share: float) -> str:
    return f"loss at 1/{round(1 / share)}"


def gains(losses: list[float]) -> tuple[float, float]:
    """What the last two doublings of the time gained."""
    return losses[-3] - losses[-2], losses[-2] - losses[-1]


def expectation(train: list[float], val: list[float]) -> dict:
    """The lowest loss measured or expected, its range, and "stop": the share of the steps after which."""
    left = len(SHARES) + 1 - len(train)  # doublings to the end
    ranges = [(loss, loss) for loss in val[:-1]]
    ranges += [expected_range(train[-3:], val[-3:], doublings) for doublings in range(1 + left)]
    means = [(low + high) / 2 for low, high in ranges]
    end = len(means) - 1
    at = end if means[end] <= min(means) + RISE else means.index(min(means))
    low, high = ranges[at]
    return {"expected loss": means[at], "from": low, "to": high, "stop": 2.0 ** (at - end)}


def expected_range(train: list[float], val: list[float], doublings: int) -> tuple[float, float]:
    """The lowest and the highest validation loss expected after so many more doublings of the time, from the losses
    after t, 2t and 4t: training's on either curve, and the gap between the two."""
    before, last = val[1] - train[1], val[2] - train[2]
    gap = last + doublings * max(0.0, last - before)
    low, high = sorted(max(0.0, curve(train, doublings) + gap) for curve in (power_law, hyperbola))
    return low, high


def shrinking(losses: list[float]) -> tuple[float, float]:
    """(what the first doubling gained, by which factor the second gained less); the factor is 0 where the loss no
    longer falls, and at most 1: runs that still get faster do not tell where that ends."""
    first, second = gains(losses)
    if second <= 0:
        return 0.0, 0.0
    return (second, 1.0) if first <= second else (first, second / first)


def power_law(losses: list[float], doublings: int) -> float:
    """The loss after so many more doublings, from those after t, 2t and 4t, on E + A t^-b, where every doubling gains
    the same factor less than the one before."""
    first, factor = shrinking(losses)
    return losses[2] - sum(first * factor ** (2 + k) for k in range(doublings))


def hyperbola(losses: list[float], doublings: int) -> float:
    """The same on E + A / (t + t0), with t = 1, 2 and 4."""
    first, factor = shrinking(losses)
    t0 = (4 * factor - 2) / (2 - factor)  # of first (1 + t0) = A / (2 + t0) and factor first (4 + t0) = 2 A / (2 + t0)
    return losses[2] - first * (1 + t0) * (2 + t0) * (1 / (4 + t0) - 1 / (4 * 2**doublings + t0))


def recommendation(row: dict) -> str:
    steps, epochs = round(row["steps"] * row["stop"]), row["epochs"] * row["stop"]
    evaluations = max(1, round(row["evaluations"] * row["stop"]))
    memory = f", {row['memory MB']:,.0f} MB of memory" if row["memory MB"] else ""
    stop = "when the time is over"
    if row["stop"] < 1:
        stop = f"after 1/{round(1 / row['stop'])} of the time, as the loss is expected to rise again by the end"
    return (
        f"{row['size']} is expected to reach the lowest loss: {row['expected loss']:.3f} ({row['from']:.3f} to "
        f"{row['to']:.3f}) after {steps:,} steps, which are {epochs:.1f} epochs,\n"
        f"with {row['parameters']:,} parameters{memory}, and dropout {row['dropout']}. "
        f"Stop {stop};\nthe checkpoint kept is the best of {evaluations} evaluation{'s' * (evaluations > 1)}."
        + "\nThe short runs end where the loss still falls steeply: it may be outside this range, so plan more minutes."
        * row["too short"]
    )


def proposal(row: dict, options: list[str], minutes: float, warmup: int) -> str:
    steps = round(row["steps"] * row["stop"])
    limits = {"max_minutes": f"{minutes * row['stop']:g}", "max_iters": 10**6, "warmup_iters": min(warmup, steps // 10)}
    limits |= {"eval_interval": max(1, row["steps"] // row["evaluations"]), "always_save_checkpoint": False}
    return shlex.join(
        ["python", "train.py", *options, *as_options(row["shape"] | {"dropout": row["dropout"]} | limits)]
    )


if __name__ == "__main__":
    exit_on_error(main)
