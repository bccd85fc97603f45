"""Runs of the project's scripts: their settings, random data, the model they train, what they report."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from data.dataset import id_dtype, open_dataset
from data.matching import model_vocab_size
from model import GPT, GPTConfig
from training.check import MODEL_KEYS
from training.metrics import read_metrics

ROOT = Path(__file__).resolve().parents[1]
READ_SETTINGS = """import json, sys
sys.path.insert(0, sys.argv.pop(1))
from configurator import configure, exit_on_error
from train import TrainConfig
def main(argv):
    config, explicit = configure(TrainConfig, argv)
    print("\\n" + json.dumps([vars(config), sorted(explicit)]))
exit_on_error(main)"""


def settings_of(options: list[str]) -> tuple[SimpleNamespace, set[str]]:
    """All settings of train.py with these options, and the names of those set explicitly. A child process reads them:
    no benchmark imports a command. Raises ValueError for what configure() refuses."""
    output = run_python("train.py", ["-c", READ_SETTINGS, str(ROOT), *options])
    settings, explicit = json.loads(output.splitlines()[-1])
    return SimpleNamespace(**settings), set(explicit)


def run_train(options: list[str], kind: str | None = None, out_dir: Path | None = None) -> list[dict]:
    """The records (see training/metrics.py), of one kind or all, of a run in out_dir (default: a temporary folder).
    They go nowhere else: a measurement may take many runs."""
    with nullcontext(out_dir) if out_dir else tempfile.TemporaryDirectory() as folder:
        loggers = dict.fromkeys(("wandb_log", "swanlab_log", "tensorboard_log"), False)
        run_script("train.py", *options, out_dir=folder, **loggers)
        records = read_metrics(Path(folder, "metrics.jsonl"))
    return [record for record in records if kind in (None, record["kind"])]


def run_script(name: str, *words: str, **settings) -> str:
    """The standard output of a script of the project."""
    return run_python(name, [str(ROOT / name), *words, *as_options(settings)])


def run_python(name: str, words: list[str], folder: Path | None = None, **environment: str) -> str:
    """The standard output of `python WORDS...`. If it fails, raises ValueError with `name` and the reason."""
    environment, words = os.environ | environment, [sys.executable, *words]
    # a library may write in the encoding of the system
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, encoding="utf-8", errors="replace")
    if done.returncode:
        raise ValueError(f"{name}: {reason_of(done)}")
    return done.stdout


def reason_of(done: subprocess.CompletedProcess) -> str:
    """Why a process failed: its last error message, else the signal that ended it, else its last words."""
    lines = [line for line in [*done.stdout.splitlines(), *done.stderr.splitlines()] if line.strip()]
    messages = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if messages:
        return messages[-1]
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        return f"ended by {name}" + ", as the system does for lack of memory" * (name == "SIGKILL")
    return lines[-1] if lines else f"exit status {done.returncode}"


def as_options(settings: dict) -> list[str]:
    return [f"--{key}={value}" for key, value in settings.items()]


def random_dataset(folder: Path, vocab_size: int, n_tokens: int) -> None:
    """Writes val.bin, at most 2^23 random ids, and train.bin, which repeats them up to n_tokens."""
    ids = np.random.default_rng(0).integers(0, vocab_size, min(n_tokens, 2**23)).astype(id_dtype(vocab_size))
    ids.tofile(folder / "val.bin")
    with open(folder / "train.bin", "wb") as file:
        for first in range(0, n_tokens, len(ids)):
            ids[: n_tokens - first].tofile(file)


def model_of(settings: SimpleNamespace) -> GPT:
    """A new model with the shape that train.py would give it."""
    shape = {key: getattr(settings, key) for key in MODEL_KEYS}
    return GPT(GPTConfig(**shape | {"vocab_size": vocab_size_of(settings)}))


def vocab_size_of(settings: SimpleNamespace) -> int:
    """The model's vocabulary size. Raises ValueError if neither the settings nor a dataset tell it."""
    if settings.vocab_size:
        return settings.vocab_size
    try:
        return model_vocab_size(open_dataset(settings.dataset).vocab_size)
    except ValueError as error:
        raise ValueError(f"{error}; or name the size of the vocabulary with --vocab_size=N") from error
