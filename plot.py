"""Draw the loss curves of one or several runs.

    python plot.py out-a [out-b ...] [--x=tokens] [--output=loss.png]

Reads metrics.jsonl in each folder, writes <first folder>/loss.png or --output, and prints where.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from matplotlib.figure import Figure

from configurator import configure, exit_on_error


@dataclass
class PlotConfig:
    # picture
    x: Literal["iter", "tokens", "seconds"] = "iter"  # horizontal axis
    output: str = ""  # picture to write (.png, .svg, .pdf); empty: <first folder>/loss.png


def read_metrics(folder: str) -> dict[str, list[dict]]:
    """{"train": records, "eval": records} of folder/metrics.jsonl, each by rising iter.

    A run that was resumed may have logged some iterations twice: the later record counts. A line that is no
    record (cut short when the run was killed) is left out with a warning. ValueError if nothing is left.
    """
    path = Path(folder, "metrics.jsonl")
    if not path.is_file():
        raise ValueError(f"{path}: no such file; expected the out_dir of a training run")
    records: dict[str, list[dict]] = {"train": [], "eval": []}
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        try:
            record = json.loads(line)
            kind, iter_num = record["kind"], record["iter"]
        except (ValueError, KeyError, TypeError):
            print(f"warning: {path}:{number}: not a metrics record, left out", file=sys.stderr)
            continue
        kept = records.get(kind, [])
        while kept and kept[-1]["iter"] >= iter_num:
            kept.pop()
        kept.append(record)
    if not records["train"] and not records["eval"]:
        raise ValueError(f"{path}: no records; train at least until the first one is logged")
    return records


def draw(runs: dict[str, dict[str, list[dict]]], x: str) -> Figure:
    """Loss against `x`, one colour per run: training as a light line, validation as a line with points."""
    figure = Figure(figsize=(9, 5.5), dpi=120, layout="constrained")
    axes = figure.add_subplot(xlabel="iteration" if x == "iter" else x, ylabel="loss (nats per token)")
    styles = {
        "train": ("loss", {"alpha": 0.4, "linewidth": 1}),
        "eval": ("val_loss", {"marker": "o", "markersize": 3.5, "linewidth": 1.5}),
    }
    for number, (name, records) in enumerate(runs.items()):
        for kind, (y, style) in styles.items():
            if any(x not in record or y not in record for record in records[kind]):
                raise ValueError(f"{name}: a {kind} record in metrics.jsonl has no {x!r} or no {y!r}")
            points = [(record[x], record[y]) for record in records[kind]]
            if points:
                label = f"{name} {'train' if kind == 'train' else 'val'}"
                axes.plot(*zip(*points, strict=True), color=f"C{number}", label=label, **style)
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def main(argv: list[str]) -> None:
    config, _ = configure(PlotConfig, [word for word in argv if word.startswith("-")])
    folders = [word for word in argv if not word.startswith("-")]
    if not folders:
        raise ValueError("no run to plot; type python plot.py OUT_DIR [OUT_DIR ...]")
    runs = {folder: read_metrics(folder) for folder in folders}
    output = Path(config.output or Path(folders[0], "loss.png"))
    if not output.parent.is_dir():
        raise ValueError(f"--output={output}: there is no folder {output.parent}")
    draw(runs, config.x).savefig(output)
    print(output)


if __name__ == "__main__":
    exit_on_error(main)
