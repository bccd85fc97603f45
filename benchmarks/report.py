"""The options, the table and the timing that all benchmarks share."""

import argparse
import json
import os
import platform
import statistics
import time

import torch

from data.source import Parser


def parser(name: str, description: str) -> argparse.ArgumentParser:
    made = Parser(
        prog=f"bench.py {name}",
        description=description,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--json", action="store_true", help="also print the figures as one line of JSON")
    return made


def report(name: str, rows: list[dict], as_json: bool) -> None:
    """Prints rows that share their keys as a Markdown table, under what machine made them."""
    print(f"{name} on {machine()}\n")
    print("| " + " | ".join(rows[0]) + " |\n|" + " --- |" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(shown(value) for value in row.values()) + " |")
    if as_json:
        print(json.dumps({"benchmark": name, "machine": machine(), "rows": rows}, ensure_ascii=False))


def shown(value) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def machine() -> str:
    """The processor, its threads in use, the GPU if there is one, and PyTorch's version."""
    cpu = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            cpu = next((line.split(":")[1].strip() for line in file if line.startswith("model name")), cpu)
    gpu = f"{torch.cuda.get_device_name()}, " if torch.cuda.is_available() else ""
    return f"{gpu}{cpu}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def median_seconds(function, repeats: int) -> float:
    function()  # to warm up
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)
