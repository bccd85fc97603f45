"""Shared by all benchmarks: the command line, the median of repeated timings, and the table."""

import argparse
import inspect
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from data.options import Parser
from system.cpu import limit_threads

BY_TRAIN = "threads as train.py sets them"  # in the name of the machine, where train.py runs are measured


def parser(name: str, description: str) -> argparse.ArgumentParser:
    """Also limits this process's threads to what a container may use, before anything is measured."""
    limit_threads()
    layout, text = argparse.RawDescriptionHelpFormatter, inspect.cleandoc(description)
    made = Parser(prog=f"bench.py {name}", description=text, allow_abbrev=False, formatter_class=layout)
    made.add_argument("--json", action="store_true", help="also print the figures as one line of JSON")
    return made


def at_least(lowest: int) -> Callable[[str], int]:
    """The type of an option of argparse."""

    def integer(text: str) -> int:
        if int(text) < lowest:
            raise argparse.ArgumentTypeError(f"found {text}, expected at least {lowest}")
        return int(text)

    return integer


def median_seconds(function: Callable[[], object], repeats: int, warmup: int = 1) -> float:
    """Median wall-clock time of `repeats` calls, after `warmup` calls that do not count."""
    times = []
    for _ in range(warmup + repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times[warmup:])


def synchronize(device: torch.device) -> None:
    """Waits until a GPU has done what it was told to: without this, a clock would measure the telling."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


@contextmanager
def note_errors(what: str) -> Iterator[None]:
    """Makes a ValueError inside a note on standard error, so that what other runs have found is not lost."""
    try:
        yield
    except ValueError as error:
        print(f"note: {what} is left out: {error}", file=sys.stderr, flush=True)


def print_table(name: str, rows: list[dict], as_json: bool, threads: str | None = None) -> None:
    """Prints rows, all with the same keys, as a Markdown table below the name of the machine."""
    if not rows:
        raise ValueError("nothing was measured: see the notes above")
    print(f"{name} on {machine(threads)}\n")
    print_rows(rows)
    if as_json:
        print(json.dumps({"benchmark": name, "machine": machine(threads), "rows": rows}, ensure_ascii=False))


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


def machine(threads: str | None = None) -> str:
    """The GPU, if any, the CPU, the threads (default: PyTorch's number of them here), and PyTorch's version."""
    cpu = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            cpu = next((line.split(":")[1].strip() for line in file if line.startswith("model name")), cpu)
    gpu = f"{torch.cuda.get_device_name()}, " if torch.cuda.is_available() else ""
    return f"{gpu}{cpu}, {threads or f'{torch.get_num_threads()} threads'}, torch {torch.__version__}"
