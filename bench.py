"""Benchmarks of speed, memory and training recipes. The rows of a table come from one run on one machine.

    python bench.py NAME [options]        # python bench.py NAME --help: what it measures, and its options

Every benchmark prints a Markdown table; --json adds the figures as one line of JSON. Run one at a time, on an otherwise
idle machine.
"""

import difflib
import importlib

from configurator import exit_on_error

BENCHMARKS = {  # name: file in benchmarks/, function
    "ablation": ("recipes", "ablation"),
    "complete": ("suggestions", "keystroke_latency"),
    "eval": ("inference", "evaluation_speed"),
    "generate": ("inference", "generation_speed"),
    "gguf": ("llama_cpp", "agreement"),
    "gpu": ("gpu", "gpu_tables"),
    "lines": ("suggestions", "line_accuracy"),
    "loss": ("steps", "loss_cost"),
    "prepare": ("preparing", "preparation_speed"),
    "profile": ("steps", "step_profile"),
    "repetition": ("repetition", "repetition_penalties"),
    "save": ("steps", "save_stall"),
    "serve": ("serving", "serving_speed"),
    "time_to_loss": ("recipes", "time_to_loss"),
    "tokenizers": ("recipes", "compare_tokenizers"),
    "train": ("steps", "step_time"),
}


def main(argv: list[str]) -> int | None:
    names = ", ".join(BENCHMARKS)
    if argv[:1] in ([], ["-h"], ["--help"]):
        print(f"{__doc__}\nNAME: {names}")
        return 0
    if argv[0] not in BENCHMARKS:
        nearest = difflib.get_close_matches(argv[0], BENCHMARKS, n=1, cutoff=0)[0]
        nearest = "train" if argv[0].startswith("-") else nearest  # nanoGPT's bench.py has that one only
        raise ValueError(f"no benchmark {argv[0]!r}, the nearest is {nearest!r}: choose from {names}")
    file, function = BENCHMARKS[argv[0]]
    return getattr(importlib.import_module(f"benchmarks.{file}"), function)(argv[1:])  # --help need not wait for torch


if __name__ == "__main__":
    exit_on_error(main)
