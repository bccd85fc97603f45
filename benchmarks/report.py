"""Shared by all benchmarks: the command line, the median of repeated timings, and the table."""

import argparse
import inspect
import json
import os
import platform
import statistics
import time
from collections.abc import Callable

import torch

from data.options import Parser


def parser(name: str, description: str) -> argparse.ArgumentParser:
    layout, text = argparse.RawDescriptionHelpFormatter, inspect.cleandoc(description)
    made = Parser(prog=f"bench.py {name}", description=text, allow_abbrev=False, formatter_class=layout)
    made.add_argument("--json", action="store_true", help="also print the figures as one line of JSON")
    return made


def median_seconds(function: Callable[[], object], repeats: int, warmup: int = 1) -> float:
    """Median wall-clock time of `repeats` calls, after `warmup` calls that do not count."""
    times = []
    for _ in range(warmup + repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times[warmup:])


def print_table(name: str, rows: list[dict], as_json: bool) -> None:
    """Prints rows, all with the same keys, as a Markdown table below the name of the machine."""
    print(f"{name} on {machine()}\n")
    print_rows(rows)
    if as_json:
        print(json.dumps({"benchmark": name, "machine": machine(), "rows": rows}, ensure_ascii=False))


def print_rows(rows: list[dict]) -> None:
    print("| " + " | ".join(rows[0]) + " |\n|" + " --- |" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(formatted(value) for value in row.values()) + " |")


def formatted(value) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def machine() -> str:
    """The GPU, if any, the CPU, PyTorch's number of threads, and its version."""
    cpu = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            cpu = next((line.split(":")[1].strip() for line in file if line.startswith("model name")), cpu)
    gpu = f"{torch.cuda.get_device_name()}, " if torch.cuda.is_available() else ""
    return f"{gpu}{cpu}, {torch.get_num_threads()} threads, torch {torch.__version__}"
