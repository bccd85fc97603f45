"""What a command imports before it can answer or take its first step. Nobody waits for a module that is not needed."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from test_train import write_dataset

ROOT = Path(__file__).resolve().parents[1]
SLOW = {"torch", "transformers", "matplotlib", "prompt_toolkit"}  # from half a second to some
COMPILER = {"torch._dynamo", "sympy"}  # takes as long as torch itself
COMMANDS = [
    "train.py",
    "sample.py",
    "eval.py",
    "complete.py",
    "serve.py",
    "export.py",
    "plot.py",
    "bench.py",
    "quickstart.py",
]
COMMANDS += sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("data/*/prepare.py"))


def run(*words: str, folder: Path = ROOT) -> tuple[int, str, str, set[str]]:
    """Exit status, standard output, error messages, and the modules imported by `python WORDS`."""
    environment = {key: value for key, value in os.environ.items() if key != "RANK"}
    command = [sys.executable, "-X", "importtime", *words]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, encoding="utf-8")
    lines = done.stderr.splitlines()
    modules = {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}
    errors = [line for line in lines if not line.startswith("import time:")]
    return done.returncode, done.stdout, "\n".join(errors), modules


@pytest.mark.parametrize("command", COMMANDS)
def test_help_does_not_wait_for_torch(command):
    status, out, _, modules = run(command, "--help")
    assert status == 0 and len(out.splitlines()) > 3
    assert "argparse" in modules or "dataclasses" in modules or command == "quickstart.py"  # modules are seen at all
    assert not modules & SLOW


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in ("bench.py", "quickstart.py")])
def test_a_misspelled_option_does_not_wait_for_torch(command):
    status, _, error, modules = run(command, "--learnin_rate=1")
    assert status == 2 and re.fullmatch(r"error: .*", error)
    assert "learnin_rate" in error or "required" in error
    assert not modules & SLOW


def test_mistakes_in_a_config_file_do_not_wait_for_torch(tmp_path):
    (tmp_path / "config.py").write_text("learnin_rate = 1\n", encoding="utf-8")
    status, _, error, modules = run("train.py", str(tmp_path / "config.py"), "--max_iters=x")
    assert status == 2 and "learnin_rate" in error and "max_iters" in error and "\n" not in error
    assert not modules & SLOW


def test_a_config_file_runs_once(tmp_path):
    (tmp_path / "config.py").write_text("print('here')\nn_layer = 1\nvocab_size = 8\n", encoding="utf-8")
    status, out, error, _ = run("train.py", str(tmp_path / "config.py"), "--print_params", "--device=cpu")
    assert status == 0, error
    assert out.count("here") == 1 and "transformer.h.0" in out and "transformer.h.1" not in out


def test_plain_runs_do_without_the_compiler(tmp_path):
    data = write_dataset(tmp_path / "data", "the cat sat on a mat. the dog ran to it. " * 20)
    shape = ["--n_layer=1", "--n_head=2", "--n_embd=16", "--block_size=16", "--batch_size=4"]
    shape += ["--gradient_accumulation_steps=1", "--eval_iters=1", "--device=cpu", f"--dataset={data}"]
    for optimizer in ("adamw", "muon"):
        for more in (["--max_iters=1"], ["--max_iters=2", "--init_from=resume"]):
            words = [*shape, f"--optimizer={optimizer}", f"--out_dir={tmp_path / optimizer}", *more]
            status, out, error, modules = run("train.py", *words)
            assert status == 0 and "done:" in out, error
            assert "torch" in modules and not modules & COMPILER
    for words in (["sample.py", "--start=the ", "--max_new_tokens=4"], ["eval.py"], ["complete.py", "--prompt=the "]):
        status, _, error, modules = run(*words, f"--out_dir={tmp_path / 'muon'}", "--device=cpu")
        assert status == 0, error
        assert "torch" in modules and not modules & COMPILER


SCRIPT = """
import gc, sys
from dataclasses import dataclass
from configurator import configure, exit_on_error, read_early

@dataclass
class Settings:
    n: int = 1

if __name__ == "__main__":
    read_early(Settings, sys.argv[1:])
print("importing", gc.isenabled())
imported = [[]]
imported.append(imported)

def main(argv):
    config, explicit = configure(Settings, argv)
    print("main", config.n, explicit, gc.isenabled(), any(thing is imported for thing in gc.get_objects()))
    again, _ = configure(Settings, argv)
    assert again is not config and again == config

exit_on_error(main)
"""


def test_the_collector_rests_during_imports_and_leaves_them_alone_afterwards(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(tmp_path / "script.py"), "--n=2"],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, encoding="utf-8",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == "importing False\nmain 2 {'n'} True False\n"
