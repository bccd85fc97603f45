"""Draw the loss curves of one or several runs.

    python plot.py out-a [out-b ...] [--x=tokens] [--output=loss.png]

Reads metrics.jsonl in each folder, writes <first folder>/loss.png or --output, and prints where.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from configurator import configure, exit_on_error
from training.metrics import read_metrics

FONTS = (  # the first is matplotlib's own; the others, where a system has one, are for Chinese in the names of folders
    "DejaVu Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Micro Hei", "Microsoft YaHei", "SimHei",
    "Hiragino Sans GB", "Arial Unicode MS",
)  # fmt: skip


@dataclass
class PlotConfig:
    # picture
    x: Literal["iter", "tokens", "seconds"] = "iter"  # horizontal axis
    output: str = ""  # picture to write (.png, .svg, .pdf); empty: <first folder>/loss.png


def draw(runs: dict[str, list[dict]], x: str) -> Any:
    """A Figure: loss against `x`, one colour per run, training as a light line, validation as a line with points. runs:
    the records of each folder's metrics.jsonl. Raises ValueError for a run with nothing to draw."""
    from matplotlib import font_manager, rcParams  # here: --help and mistakes need not wait for it
    from matplotlib.figure import Figure

    installed = font_manager.get_font_names()
    rcParams["font.family"] = [name for name in FONTS if name in installed]  # each character from the first that has it
    figure = Figure(figsize=(9, 5.5), dpi=120, layout="constrained")
    axes = figure.add_subplot(xlabel="iteration" if x == "iter" else x, ylabel="loss (nats per token)")
    light, marked = {"alpha": 0.4, "linewidth": 1}, {"marker": "o", "markersize": 3.5, "linewidth": 1.5}
    for number, (folder, records) in enumerate(runs.items()):
        if not any(x in record and record.keys() & {"loss", "val_loss"} for record in records):
            raise ValueError(f"{folder}: no metrics.jsonl, or no loss with {x!r} in it; expected an out_dir")
        for split, y, style in (("train", "loss", light), ("val", "val_loss", marked)):
            points = [(record[x], record[y]) for record in records if x in record and y in record]
            axes.plot(*zip(*points, strict=True), color=f"C{number}", label=f"{folder} {split}", **style)
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def main(argv: list[str]) -> None:
    config, _ = configure(PlotConfig, [word for word in argv if word.startswith("-")])
    folders = [word for word in argv if not word.startswith("-")]
    if not folders:
        raise ValueError("no run to plot: use python plot.py OUT_DIR [OUT_DIR ...]")
    runs = {folder: read_metrics(Path(folder, "metrics.jsonl")) for folder in folders}
    figure, output = draw(runs, config.x), Path(config.output or Path(folders[0], "loss.png"))
    if not output.parent.is_dir():
        raise ValueError(f"--output={output}: no folder {output.parent}, create it first")
    output = output if output.suffix else output.with_suffix(".png")  # as matplotlib completes it
    figure.savefig(output)
    print(output)


if __name__ == "__main__":
    exit_on_error(main)
