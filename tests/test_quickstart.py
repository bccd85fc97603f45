"""quickstart.py: installs once, reuses what is there, and reports the true numbers. CI runs it whole."""

import lzma
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import quickstart
import train
from data.dataset import open_dataset

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A fresh clone's place, and the commands that are called there instead of being run."""
    commands = []

    def call(command, **_):
        words = [str(word) for word in command[1:]]
        commands.append(" ".join(words))
        if "venv" in words:
            quickstart.VENV_PYTHON.parent.mkdir(parents=True)
            quickstart.VENV_PYTHON.touch()
        for name, made in (("prepare.py", "data/quickstart/meta.json"), ("plot.py", "out-quickstart/loss.png")):
            if any(word.endswith(name) for word in words):
                (tmp_path / made).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / made).touch()
        return subprocess.Popen([sys.executable, "-c", ""])

    monkeypatch.setattr(quickstart, "VENV_PYTHON", tmp_path / quickstart.VENV_PYTHON.relative_to(ROOT))
    monkeypatch.setattr(quickstart, "ROOT", tmp_path)
    monkeypatch.setattr(quickstart, "subprocess", SimpleNamespace(**{**vars(subprocess), "Popen": call, "run": call}))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "requirements.txt").write_text("torch", encoding="utf-8")
    (tmp_path / "requirements-test.txt").write_text("pytest", encoding="utf-8")
    return tmp_path, commands


def scripts(commands: list[str]) -> list[str]:
    return [re.sub(r" .*", "", command.removeprefix("-m ")) for command in commands]


def test_everything_is_done_once_and_then_used_again(folder):
    tmp_path, commands = folder
    assert quickstart.main([]) == 0
    everything = ["venv", "pip", "pip", "data/pycode/prepare.py", "train.py", "plot.py", "quickstart.py"]
    assert scripts(commands) == everything
    commands.clear()
    assert quickstart.main([]) == 0
    assert scripts(commands) == ["quickstart.py"]
    commands.clear()
    (tmp_path / "requirements.txt").write_text("torch\nnumpy", encoding="utf-8")
    (tmp_path / "out-quickstart" / "loss.png").unlink()  # stopped while it trained
    (tmp_path / "out-quickstart" / "last.pt").touch()
    assert quickstart.main([]) == 0
    assert scripts(commands) == ["pip", "pip", "train.py", "plot.py", "quickstart.py"]
    assert commands[2].endswith("--init_from=resume")


def test_files_that_others_leave_there_are_no_reason_to_install_again(folder):
    tmp_path, commands = folder
    assert quickstart.main([]) == 0
    commands.clear()
    (tmp_path / "requirements-mine.txt").write_text("pandas", encoding="utf-8")
    assert quickstart.main([]) == 0 and scripts(commands) == ["quickstart.py"]


@pytest.mark.skipif(sys.platform == "win32", reason="a .venv there has a copy of Python")
def test_an_environment_whose_python_is_gone_is_made_anew(folder):
    tmp_path, commands = folder
    assert quickstart.main([]) == 0
    commands.clear()
    quickstart.VENV_PYTHON.unlink()
    quickstart.VENV_PYTHON.symlink_to(tmp_path / "python-that-was-removed")
    (tmp_path / ".venv" / "old").touch()
    assert quickstart.main([]) == 0
    assert scripts(commands) == ["venv", "pip", "pip", "quickstart.py"] and not (tmp_path / ".venv" / "old").exists()


def test_where_pip_fails_a_line_says_what_to_try(folder, monkeypatch, capsys):
    def fail(*command):
        raise subprocess.CalledProcessError(1, command)

    monkeypatch.setattr(quickstart, "run", fail)
    assert quickstart.main([]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: pip could not install") and "PIP_INDEX_URL" in error and error.count("\n") == 1


def test_a_failing_step_ends_it_with_that_steps_status(folder, monkeypatch):
    def fail(*command):
        raise subprocess.CalledProcessError(3, command)

    monkeypatch.setattr(quickstart, "run", fail)
    assert quickstart.main([]) == 3


@pytest.mark.parametrize("words", [["tests"], ["test", "-v"], ["--fast"]])
def test_unknown_arguments_are_refused(words, capsys):
    assert quickstart.main(words) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_an_old_python_is_told_so(monkeypatch, capsys):
    monkeypatch.setattr(quickstart.sys, "version_info", (3, 9, 1))
    assert quickstart.main([]) == 2 and "3.10" in capsys.readouterr().err


def test_the_report_shows_the_runs_losses_and_xz_on_the_validation_bytes(tmp_path, monkeypatch, capfd):
    for number in range(30):
        body = f"    def f(self, x):\n        return os.path.join(x, '{number}')\n"
        source = f"import os\n\n\nclass A{number}:\n{body}" * 9
        (tmp_path / f"m{number}.py").write_text(source, encoding="utf-8")
    command = [sys.executable, str(ROOT / "data/pycode/prepare.py"), "--input", str(tmp_path), "--vocab_size=300",
               "--out_dir", str(tmp_path / "data")]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    options = "--max_iters=2 --batch_size=2 --block_size=32 --n_layer=1 --n_head=2 --n_embd=8 --device=cpu"
    out_dir = tmp_path / "out"
    folders = [f"--dataset={tmp_path / 'data'}", f"--out_dir={out_dir}"]
    train.main([*options.split(), "--gradient_accumulation_steps=1", *folders])
    val_loss = re.findall(r"val loss ([\d.]+)", capfd.readouterr().out)[-1]
    monkeypatch.setattr(quickstart, "DATASET", str(tmp_path / "data"))
    monkeypatch.setattr(quickstart, "OUT_DIR", str(out_dir))
    assert quickstart.report() == 0
    report = capfd.readouterr().out
    dataset = open_dataset(tmp_path / "data")
    text = dataset.tokenizer.decode(dataset.array("val")).encode()
    xz = f"{8 * len(lzma.compress(text, preset=9)) / len(text):.3f}"
    assert f"validation loss  {val_loss}" in report and f"{len(text):,} bytes: {xz}" in report
    for prompt in quickstart.PROMPTS:
        assert f"\n{prompt}" in report
