"""Runs of the project's scripts."""

import json
import math
import subprocess
import sys
import tempfile
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path

from data.dataset import open_dataset
from model import GPTConfig
from train import TrainConfig


def run_script(name: str, *options: str) -> str:
    """What a script of ours prints to stdout; ValueError with the last line of all that it says if it fails."""
    command = [sys.executable, str(Path(__file__).parents[1] / name), *options]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    if done.returncode:
        said = (done.stdout + done.stderr).strip() or f"status {done.returncode}"
        raise ValueError(f"{name} stopped with: {said.splitlines()[-1]}")
    return done.stdout


def run_train(options: list[str], out_dir: Path | None = None) -> list[dict]:
    """The records that train.py writes when it runs with these options, in out_dir or a folder that is gone then."""
    with nullcontext(out_dir) if out_dir else tempfile.TemporaryDirectory() as folder:
        run_script("train.py", *options, f"--out_dir={folder}")
        return [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def vocabulary(config: TrainConfig) -> int:
    """The number of ids that the model of a run with this config would have; GPT-2's where its dataset is not here."""
    try:
        found = config.vocab_size or open_dataset(config.dataset).vocab_size
    except ValueError:
        found = 50257
    return found if config.vocab_size or found <= 10_000 else 64 * math.ceil(found / 64)


def shape_of(config: TrainConfig, vocab_size: int) -> GPTConfig:
    shape = {field.name: getattr(config, field.name) for field in fields(GPTConfig)}
    return GPTConfig(**shape | {"vocab_size": vocab_size})
