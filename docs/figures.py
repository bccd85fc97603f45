"""Figures in the pages: read from docs/figures.json, the one place that has them.

    python docs/figures.py          # writes the figures into README*.md and docs/*/*.md
    python docs/figures.py --check  # only names the pages whose figures differ; then the exit status is 1

What it fills in, in a page's source (GitHub shows none of the comments):

    <!--RUN.FIGURE-->3.83<!--/-->       a figure of a run
    <!--sample RUN--> ... <!--/-->      its sample
    <!--times RUN--> ... <!--/-->       the run's time on the CPUs where it was measured, and estimates for GPUs

An estimate is the steps times the larger of two: a step's FLOPs / (share x peak), and LAUNCH seconds a micro-batch. The
peak is the vendor's for 16-bit products with 32-bit sums (system/device.py); the share of it that GPTs commonly reach
is higher on GeForce cards, whose sums are at half the rate of their products, and lower on a T4, which lacks bfloat16
and PyTorch's flash attention; LAUNCH is for models so small that a GPU waits for the next operation. None of it was
measured.
"""

import argparse
import json
import re
import sys
from functools import cache
from pathlib import Path
from unicodedata import east_asian_width

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.runs import model_of, settings_of
from configurator import exit_on_error
from system.device import PEAK_TFLOPS

# name on the pages: key of PEAK_TFLOPS, share of it
GPUS = {"RTX 3060": ("3060", 0.5), "T4": ("T4", 0.15), "RTX 4090": ("4090", 0.5), "H100": ("H100", 0.3)}
LAUNCH = 0.02
WIDTH = 100  # columns of a sample's lines
MARKED = re.compile(r"<!--(?P<what>[\w. -]+)-->(?P<old>.*?)<!--/-->", re.DOTALL)
LANGUAGES = {
    "en": {"machine": "machine", "time": "time", "measured": "{steps:,} steps of {step}: **{all}**, measured",
           "estimated": "{all}, estimated", "units": ("ms", "seconds", "minutes", "hours", "days")},
    "zh": {"machine": "机器", "time": "用时", "measured": "{steps:,} 步，每步 {step}，共 **{all}**（实测）",
           "estimated": "{all}（估算）", "units": ("毫秒", "秒", "分钟", "小时", "天")},
}  # fmt: skip


def pages() -> dict[Path, str]:
    """Every page, and its language."""
    found = {ROOT / "README.md": "en", ROOT / "README.zh-CN.md": "zh"}
    return found | {
        path: language for language in LANGUAGES for path in sorted((ROOT / "docs" / language).rglob("*.md"))
    }


def known_figures() -> dict:
    return json.loads((ROOT / "docs/figures.json").read_text(encoding="utf-8"))


def fill_page(text: str, language: str, figures: dict) -> str:
    """The page with the figures of `figures`. Raises ValueError for a figure that is not there."""

    def value(match: re.Match) -> str:
        what = match["what"]
        kind, _, name = what.rpartition(" ")
        run, _, figure = name.partition(".")
        try:
            measured = figures["runs"][run]
            if kind == "sample":
                new = sample(measured)
            elif kind == "times":
                new = times(measured["times"], figures["machines"], language)
            else:
                new = measured["figures"][figure]
        except KeyError as error:
            raise ValueError(f"<!--{what}--> is not in docs/figures.json: {error} is missing") from None
        return f"<!--{what}-->{new}<!--/-->"

    return MARKED.sub(value, text)


def sample(run: dict) -> str:
    """The sample, with its longest lines broken so that a page shows them whole."""
    lines = [part for line in run["sample"]["text"].strip().splitlines() for part in folded(line)]
    return "\n```text\n" + "\n".join(lines) + "\n```\n"


def folded(line: str) -> list[str]:
    """`line` in parts of at most WIDTH columns; a Chinese character has two."""
    parts, columns = [""], 0
    for character in line.rstrip():
        width = 1 + (east_asian_width(character) in "WF")
        if columns + width > WIDTH:
            parts, columns = [*parts, ""], 0
        parts[-1] += character
        columns += width
    return parts


def times(run: dict, machines: dict, language: str) -> str:
    """A table. Of `run`: `options` of train.py, `vocab_size`, `steps`, and `ms` of a step by name of the CPU."""
    words = LANGUAGES[language]
    steps = run["steps"]
    rows = [f"| {words['machine']} | {words['time']} |", "| --- | --- |"]
    for name, ms in run["ms"].items():
        step, whole = duration(ms / 1000, language), duration(steps * ms / 1000, language)
        rows.append(f"| {machines[name][language]} | {words['measured'].format(steps=steps, step=step, all=whole)} |")
    for name, seconds in estimates(tuple(run["options"]), run["vocab_size"], steps).items():
        rows.append(f"| {name} | {words['estimated'].format(all=duration(seconds, language))} |")
    return "\n" + "\n".join(rows) + "\n"


@cache
def estimates(options: tuple[str, ...], vocab_size: int, steps: int) -> dict[str, float]:
    """Seconds of training on each of GPUS."""
    settings, _ = settings_of([*options, f"--vocab_size={vocab_size}"])
    with torch.device("meta"):
        flops = model_of(settings).flops_per_token()
    micro_batches = settings.gradient_accumulation_steps
    tokens = settings.batch_size * settings.block_size * micro_batches
    floor = LAUNCH * micro_batches
    peaks = {name: share * PEAK_TFLOPS[key] * 1e12 for name, (key, share) in GPUS.items()}
    return {name: steps * max(tokens * flops / peak, floor) for name, peak in peaks.items()}


def duration(seconds: float, language: str) -> str:
    """In two digits and the unit that suits: 0.031 -> 31 ms, 5400 -> 1.5 hours."""
    sizes, limits = (0.001, 1, 60, 3600, 86400), (1, 120, 7200, 172800)
    i = sum(seconds >= limit for limit in limits)
    return f"{float(f'{seconds / sizes[i]:.2g}'):,g} {LANGUAGES[language]['units'][i]}"


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    args = parser.parse_args(argv)
    figures, differ = known_figures(), False
    for path, language in pages().items():
        old = path.read_text(encoding="utf-8")
        new = fill_page(old, language, figures)
        if new != old:
            differ = True
            print(f"{path.relative_to(ROOT).as_posix()}: {'differs' if args.check else 'written'}")
            if not args.check:
                path.write_text(new, encoding="utf-8", newline="\n")
    return int(differ and args.check)


if __name__ == "__main__":
    exit_on_error(main)
