"""Speed and memory of everything here, each comparison in one run on one machine.

    python bench.py NAME [options]        # python bench.py NAME --help: what it measures, and its options

Every benchmark prints a table, and with --json the same figures as one line of JSON. Run one only on a machine that
does nothing else.
"""

import importlib

from configurator import exit_on_error

BENCHMARKS = {  # name: file in benchmarks/ and function
    "ablation": "recipes.ablation",
    "complete": "suggestions.complete",
    "eval": "scoring.evaluation",
    "generate": "generation.generate",
    "gpu": "gpu.gpu",
    "lines": "suggestions.lines",
    "loss": "vocabulary_loss.loss",
    "prepare": "preparing.prepare",
    "profile": "steps.profile",
    "save": "saving.save",
    "time_to_loss": "recipes.time_to_loss",
    "tokenizers": "tokenizer_choice.tokenizers",
    "train": "steps.train",
}


def main(argv: list[str]) -> None:
    if argv[:1] in ([], ["-h"], ["--help"]):
        print(f"{__doc__}\nNAME: {', '.join(sorted(BENCHMARKS))}")
    elif argv[0] not in BENCHMARKS:
        raise ValueError(f"no benchmark {argv[0]!r}: choose from {', '.join(sorted(BENCHMARKS))}")
    else:
        module, function = BENCHMARKS[argv[0]].split(".")
        getattr(importlib.import_module(f"benchmarks.{module}"), function)(argv[1:])


if __name__ == "__main__":
    exit_on_error(main)
