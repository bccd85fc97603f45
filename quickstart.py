"""From nothing but Python to a GPT that writes code, in a few minutes.

    python3 quickstart.py         makes .venv, prepares data, trains for two minutes and shows what the model writes
    python3 quickstart.py test    installs the test requirements and runs all tests

Needs Python 3.10 or newer. An existing environment, dataset or trained model is reused: delete .venv, data/quickstart
or out-quickstart to redo that step. pip's usual settings choose the package index.
"""

from __future__ import annotations  # so that an old Python gets as far as the message about its version

import hashlib
import lzma
import os
import shlex
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV_PYTHON = ROOT / ".venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
DATASET, OUT_DIR = "data/quickstart", "out-quickstart"
PREPARE = ("--vocab_size=4096", "--val_fraction=0.05")  # RESULTS.md has the other choices
SAMPLING = ("--temperature=0.7", "--top_p=0.9")
join = subprocess.list2cmdline if os.name == "nt" else shlex.join  # a command to paste
PROMPTS = ("def read_file(path", "class Parser:\n    def __init__(self", "    for key, value in")


def main(argv: list[str]) -> int:
    if sys.version_info < (3, 10):  # noqa: UP036  one clear line instead of a syntax error
        return fail(f"this is Python {sys.version.split()[0]}, but 3.10 or newer is needed: use a newer python3")
    if argv in (["--help"], ["-h"]):
        print(__doc__.strip())
        return 0
    if argv not in ([], ["test"], ["report"]):
        return fail(f"unknown arguments {' '.join(argv)}: use `quickstart.py` alone or `quickstart.py test`")
    os.chdir(ROOT)
    if argv == ["report"]:  # the last step, run inside the environment
        return report()
    try:
        install("requirements-test.txt" if argv == ["test"] else "requirements.txt")
        if argv == ["test"]:
            run("-m", "pytest", "-n", "2")
            return 0
        if not Path(DATASET, "meta.json").exists():
            run("data/pycode/prepare.py", "--out_dir", DATASET, *PREPARE)
        if not Path(OUT_DIR, "loss.png").exists():
            unfinished = Path(OUT_DIR, "last.pt").exists()
            run("train.py", "config/quickstart.py", *(["--init_from=resume"] if unfinished else []))
            run("plot.py", OUT_DIR)
        run("quickstart.py", "report")
    except subprocess.CalledProcessError as error:
        return error.returncode
    except KeyboardInterrupt:
        return 130
    return 0


def fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2


def run(*command: str) -> None:
    """Prints a command, so that it can be repeated by hand, and runs it with the environment's Python."""
    print(f"\n$ python {join(command)}", flush=True)
    process = subprocess.Popen([VENV_PYTHON, *command])
    while process.returncode is None:
        with suppress(KeyboardInterrupt):  # the command got the Ctrl-C too, and may still finish and save
            process.wait()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)


def install(requirements: str) -> None:
    """Makes .venv and installs `requirements` into it, unless already done with the same files."""
    both = (ROOT / name for name in ("requirements-test.txt", "requirements.txt"))
    text = "".join(path.read_text(encoding="utf-8") for path in both)
    stamp = ROOT / ".venv" / f"{requirements}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    if stamp.exists() and VENV_PYTHON.exists():
        return
    if not VENV_PYTHON.exists():
        print("making .venv", flush=True)
        if VENV_PYTHON.is_symlink():  # to a Python that is gone: venv would leave it as it is
            shutil.rmtree(".venv", ignore_errors=True)
        made = subprocess.run([sys.executable, "-m", "venv", ".venv"])
        if made.returncode:  # Debian and Ubuntu package venv separately
            shutil.rmtree(".venv", ignore_errors=True)
            fail("python3 -m venv failed: on Debian or Ubuntu install python3-venv first")
            made.check_returncode()
    if subprocess.run([VENV_PYTHON, "-m", "pip", "--version"], capture_output=True).returncode:
        run("-m", "ensurepip")  # its making was interrupted, or uv made it
    if sys.platform == "linux":
        print("\nPyTorch with CUDA is some 2.5 GB; section 1 of docs/en/walkthrough.md has a smaller one", flush=True)
    try:
        run("-m", "pip", "install", "--disable-pip-version-check", "-r", requirements)
    except subprocess.CalledProcessError:
        fail(
            "pip could not install the packages (its own words are above): if it cannot reach the index, set "
            "PIP_INDEX_URL to a mirror; else see docs/en/troubleshooting.md, Installing"
        )
        raise
    stamp.touch()


def report() -> int:
    """Prints losses, bits per byte compared with xz, speed, and three completions by the trained model."""
    from data.dataset import open_dataset
    from training.metrics import read_metrics

    records = read_metrics(Path(OUT_DIR, "metrics.jsonl"))
    last = [record for record in records if record["kind"] == "eval"][-1]
    speeds = sorted(record["tokens_per_second"] for record in records if record["kind"] == "train")
    dataset = open_dataset(DATASET)
    ids = dataset.array("val")
    text = b"".join(dataset.tokenizer.token_bytes(int(i)) for i in ids)
    xz = 8 * len(lzma.compress(text, preset=9)) / len(text)
    print(
        f"""
train loss       {last["train_loss"]:.4f}
validation loss  {last["val_loss"]:.4f}, the whole split
bits per byte    {last["bits_per_byte"]:.3f}, and xz -9 on the same {len(text):,} bytes: {xz:.3f}
speed            {speeds[len(speeds) // 2]:,.0f} tokens/s (median)
loss curve       {Path(OUT_DIR, "loss.png")}""",
        flush=True,
    )
    for prompt in PROMPTS:
        command = [f"--out_dir={OUT_DIR}", f"--start={prompt}", "--num_samples=1", "--max_new_tokens=80", *SAMPLING]
        print(f"\n$ python {join(['sample.py', *command])}", flush=True)
        status = subprocess.run([sys.executable, ROOT / "sample.py", *command]).returncode
        if status:
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
