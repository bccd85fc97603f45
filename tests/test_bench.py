"""bench.py: what the benchmarks say besides times."""

import importlib
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_train import write_dataset

import bench
import train
from benchmarks import gpu, inference, report, runs
from benchmarks.gpu import STEPS, words_of
from configurator import configure
from system.distributed import Ranks
from training.check import validate

ROOT = Path(__file__).resolve().parents[1]
CONFIG = str(ROOT / "config/speed_shakespeare_char.py")
SMALL = ["--n_layer=1", "--n_head=2", "--n_embd=16", "--block_size=16", "--batch_size=4", "--device=cpu"]


@pytest.fixture(scope="module")
def letters(tmp_path_factory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("dataset"), "the cat sat on a mat. the dog ran to it. " * 20)


def rows_of(capsys, *argv: str) -> list[dict]:
    bench.main([*argv, "--json"])
    return json.loads(next(line for line in capsys.readouterr().out.splitlines() if line.startswith("{")))["rows"]


NAMES = {"folder": "out-gpu", "shakespeare": None, "hongloumeng": "--input=novel.txt", "peer": "--peer=nanoGPT"}
GPU_COMMANDS = [words_of(command, NAMES, False, False) for _, commands in STEPS.values() for command in commands]


@pytest.mark.parametrize("words", [words for words in GPU_COMMANDS if "/" not in words[0] and words[0] != "-m"])
def test_every_option_in_the_gpu_list_exists(words):
    """One option more is all that is refused, and that before any work."""
    main = importlib.import_module(Path(words[0]).stem).main
    with pytest.raises(ValueError, match="nonsense") as refused:
        main([*words[1:], "--nonsense=1"])
    assert not re.search(r"--(?!nonsense)\w+=", str(refused.value).split("nonsense")[0]), refused.value


def test_the_plan_for_a_gpu_has_steps_of_at_most_ten_minutes_and_runs_none(monkeypatch, capsys):
    monkeypatch.setattr(gpu, "run_step", None)
    assert bench.main(["gpu", "--plan"]) == 0
    rows = dict(re.findall(r"^\| (.+) \| (\d+) \|$", capsys.readouterr().out, re.MULTILINE))
    assert list(rows) == [*STEPS, "in all"]
    assert all(0 < int(minutes) <= 10 for name, minutes in rows.items() if name != "in all")


@pytest.fixture
def ran(monkeypatch) -> tuple[list[list[str]], dict[str, int]]:
    """The commands of bench.py gpu, here not run, and the exit status of each script, 0 if not named."""
    commands, statuses = [], {}

    class Process:
        def __init__(self, words, cwd):
            commands.append(words[1:])
            self.status = statuses.get(words[1], 0)

        def wait(self):
            return self.status

    monkeypatch.setattr(gpu.subprocess, "Popen", Process)
    return commands, statuses


@pytest.mark.parametrize("found, status", [(130, 130), (-15, 143)])  # a script that has saved; one that SIGTERM ended
def test_a_signal_ends_the_gpu_list(ran, found, status):
    commands, statuses = ran
    statuses["bench.py"] = found
    assert bench.main(["gpu", "--only", "Python", "generation"]) == status and len(commands) == 1


def test_the_gpu_list_goes_on_after_a_step_that_failed_and_each_step_starts_by_itself(ran, tmp_path, capsys):
    commands, statuses = ran
    statuses["eval.py"] = 2
    names = ["data: hongloumeng", "data: pycode", "Python", "124M", "红楼梦, deep", "generation"]
    (tmp_path / "pycode").mkdir()
    (tmp_path / "pycode" / "train.bin").touch()
    options = [f"--folder={tmp_path}", f"--texts={tmp_path}", f"--peer={tmp_path}", "--json"]
    with pytest.raises(ValueError, match="^failed: 红楼梦, deep \\("):
        bench.main(["gpu", "--only", *names, *options])
    out = capsys.readouterr().out
    assert re.findall("^## (.*)", out, re.MULTILINE) == names
    assert [shlex.split(line) for line in re.findall(r"^\$ python (.*)", out, re.MULTILINE)] == commands
    assert [words[0].rpartition("/")[2] for words in commands] == [
        "prepare.py", "bench.py", "bench.py", "train.py", "eval.py", "bench.py"]  # fmt: skip
    assert f"--input={tmp_path / 'hongloumeng.txt'}" in commands[0] and f"--peer={tmp_path}" in commands[2]
    assert all(("--json" in words) == (words[0] == "bench.py") for words in commands)
    assert f"--dataset={tmp_path}/hongloumeng" in commands[3]
    with pytest.raises(ValueError, match="nosuch"):
        bench.main(["gpu", "--only", "nosuch"])


def test_a_dry_run_goes_through_every_step_for_a_gpu():
    """In processes of their own, on what this machine has."""
    command = [sys.executable, str(ROOT / "bench.py"), "gpu", "--dry_run"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, encoding="utf-8", env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    parts = re.split("^## (.*)\n", done.stdout, flags=re.MULTILINE)
    assert parts[1::2] == list(STEPS)
    for name, output in zip(parts[1::2], parts[2::2], strict=True):
        assert output.count("\n$ python ") == len(STEPS[name][1])
        assert re.search(rf"^{re.escape(name)}: [\d.]+ minutes, expected {STEPS[name][0]}$", output, re.MULTILINE)


def test_options_of_time_to_loss_go_to_the_plain_recipe_too(letters, monkeypatch, capsys):
    """Whose own dropout of 0 must not undo --dropout=0.2. It has float32 on a CPU, even if the machine has a GPU."""
    commands = []
    devices = {"auto": torch.device("cuda"), "cpu": torch.device("cpu")}
    monkeypatch.setattr("benchmarks.recipes.pick_device", devices.get)

    def run_train(command, kind):
        commands.append(configure(train.TrainConfig, command)[0])
        return [{"tokens": 1, "seconds": 1.0, "eval_seconds": 0.5, "val_loss": 1.0}]

    monkeypatch.setattr("benchmarks.recipes.run_train", run_train)
    options = [CONFIG, *SMALL, f"--dataset={letters}", "--dropout=0.2", "--max_iters=9"]
    bench.main(["time_to_loss", *options, "--target=1", "--baseline", "--plain=--max_iters=7 --wandb_run_name='a b'"])
    plain, ours = commands
    assert (plain.dtype, ours.dtype) == ("float32", "auto") and plain.wandb_run_name == "a b"
    assert plain.dropout == ours.dropout == 0.2 and (plain.max_iters, ours.max_iters) == (7, 9)
    assert (plain.optimizer, plain.pos, ours.optimizer) == ("adamw", "learned", "muon")


def test_a_run_that_fails_does_not_take_the_others_with_it(letters, monkeypatch, capsys):
    def run_train(command, kind):
        config = configure(train.TrainConfig, command)[0]
        if config.optimizer in failing:
            raise ValueError("train.py: ended by SIGKILL")
        loss = 1.0 if config.optimizer == "muon" else 1.25
        return [{"iter": 9, "tokens": 1, "seconds": 1.0, "eval_seconds": 0.5, "val_loss": loss}]

    monkeypatch.setattr("benchmarks.recipes.run_train", run_train)
    monkeypatch.setattr("benchmarks.recipes.with_whole_split", list)
    options = [CONFIG, *SMALL, f"--dataset={letters}"]
    for failing, changed, config, worse in (
        (["adamw"], "as it is", "speed_shakespeare_char", 0.0),
        (["muon"], "optimizer: adamw", "plain recipe", None),
    ):
        rows = rows_of(capsys, "ablation", *options, "--seeds", "1", "2")
        assert ("optimizer: adamw" in {row["with"] for row in rows}) == (failing == ["muon"])
        assert (rows[0]["with"], rows[0]["worse by"]) == (changed, worse)
        rows = rows_of(capsys, "time_to_loss", *options, "--target=2", "--baseline")
        assert [row["run"] for row in rows] == [config]
    failing = ["adamw", "muon"]
    with pytest.raises(ValueError, match="nothing was measured"):
        bench.main(["time_to_loss", *options, "--target=2", "--baseline"])
    assert "note: plain recipe with seed 1337 is left out: train.py: ended by SIGKILL" in capsys.readouterr().err


def test_tokenizers_are_compared_at_the_same_cost(tmp_path, capsys):
    text = tmp_path / "novel.txt"
    text.write_text("".join(f"第{i}回 宝玉道：“林妹妹{i * i}。”\n" for i in range(3000)), encoding="utf-8")
    bench.main(
        [
            "tokenizers",
            f"--input={text}",
            "--only",
            "byte",
            "char",
            "--tflop=0.001",
            "--json",
            "--device=cpu",
            "--n_layer=1",
            "--n_head=2",
            "--n_embd=32",
            "--block_size=32",
            "--batch_size=16",
        ]
    )
    out = capsys.readouterr().out
    rows = {row["tokenizer"]: row for row in json.loads(next(x for x in out.splitlines() if x[0:1] == "{"))["rows"]}
    for name, ids in (("byte", 256), ("char", len(set(text.read_text(encoding="utf-8"))))):
        row = rows[name]
        flops = 6 * (12 * 32**2 + 32 * ids) + 12 * 32 * 32  # a token: matrices and head, attention
        assert row["ids"] == ids and row["parameters in embeddings"] == 32 * ids
        assert abs(row["steps"] * 16 * 32 * flops / 1e9 - 1) < 0.5 / (row["steps"] - 1)  # to the nearest step
        assert row["tokens"] * row["bytes/token"] == pytest.approx(text.stat().st_size)
        assert 0 < row["bits per byte"] < 8 and f"\n{name}: " in out


def test_time_to_loss_stops_the_clock_at_the_target_and_runs_the_plain_recipe_beside(letters, capsys):
    options = [CONFIG, *SMALL, f"--dataset={letters}", "--max_iters=4", "--eval_interval=2"]
    plain, speed = rows_of(
        capsys, "time_to_loss", *options, "--target=100", "--baseline", "--plain=--batch_size=2 --max_iters=2"
    )
    assert (plain["run"], speed["run"]) == ("plain recipe", "speed_shakespeare_char")
    assert (plain["in all: tokens"], speed["in all: tokens"]) == (2 * 2 * 16, 4 * 4 * 16)
    for row in (plain, speed):
        assert row["to 100: tokens"] == 0  # the first evaluation is before the first step
        assert 0 < row["in all: training s"] < row["in all: with evaluation s"]
    (row,) = rows_of(capsys, "time_to_loss", *options, "--target=0")
    assert row["to 0: training s"] == "not reached" and row["best"] <= row["last val loss"]


def test_ablation_changes_one_setting_at_a_time_back_to_the_plain_recipes(letters, monkeypatch, capsys):
    runs = []

    def run_train(command, kind):
        runs.append(configure(train.TrainConfig, command)[0])
        return [{"val_loss": float(len(runs)), "iter": 9}]

    monkeypatch.setattr("benchmarks.recipes.run_train", run_train)
    also = "--qk_norm=True --mlp=relu2"
    options = [CONFIG, *SMALL, f"--dataset={letters}", "--minutes=0.5", "--seeds", "1", "2", f"--also={also}"]
    rows = rows_of(capsys, "ablation", *options)
    changes = {
        "as it is": {},
        "optimizer: adamw": {"optimizer": "adamw", "learning_rate": 1e-3, "min_lr": 1e-4, "warmup_iters": 100},
        "pos: learned": {"pos": "learned"},
        "tie_weights: True": {"tie_weights": True},
        "init: normal": {"init": "normal"},
        "schedule: cosine": {"schedule": "cosine"},
        also: {"qk_norm": True, "mlp": "relu2"},
    }
    assert [row["with"] for row in rows] == list(changes) and runs[0].max_minutes == 0.5 and len(runs) == 2 * 7
    for number, (run, change) in enumerate(zip(runs, 2 * list(changes.values()), strict=True)):
        validate(run, Ranks())
        assert vars(run) == vars(runs[0]) | change | {"seed": 1 + number // 7}
    for first, row in enumerate(rows, 1):  # losses count the runs: seed 1 of all, then seed 2
        assert (row["lowest"], row["validation loss"], row["highest"]) == (first, first + 3.5, first + 7)
        assert row["worse by"] == first - 1 and row["steps"] == 9


def test_train_and_profile_and_loss_measure_something(capsys):
    rows = rows_of(capsys, "train", CONFIG, *SMALL, "--vocab_size=65", "--steps=8", "--baseline", "--sweep=n_layer=1,2")
    assert [row["n_layer"] for row in rows] == ["1", "2"]
    for row in rows:
        assert row["tokens/s"] == pytest.approx(4 * 16 * 1000 / row["ms/iter"])
        blocks = int(row["n_layer"]) * (12 * 16**2 + 2 * 16)  # matrices, and the norms' gains
        assert row["parameters"] == blocks + 16 + 2 * 65 * 16  # the last norm, embedding and head
        assert row["share"] == pytest.approx(row["ms/iter"] / row["plain ms/iter"])
    parts = rows_of(capsys, "profile", CONFIG, *SMALL, "--vocab_size=65")
    assert [row["part"] for row in parts] == ["forward", "backward", "clip", "optimizer"]
    assert sum(row["%"] for row in parts) == pytest.approx(100)
    rows = rows_of(capsys, "loss", "--vocab_size=50", "--rows=64", "--n_embd=16")
    assert rows[-1]["loss"] == "LinearCrossEntropy" and all(row["ms"] > 0 for row in rows)


@pytest.mark.parametrize("name", ["train", "profile"])
def test_a_model_is_measured_only_where_its_vocabulary_is_known(name, tmp_path):
    with pytest.raises(ValueError, match="no dataset .*--vocab_size=N"):
        bench.main([name, CONFIG, *SMALL, f"--dataset={tmp_path / 'none'}"])


@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX")
@pytest.mark.parametrize("code, reason", [
    ("print('error: one'); print('two'); sys.exit(2)", "one"),
    ("print('note: one', flush=True); os.kill(os.getpid(), 9)", "ended by SIGKILL, as the system does for lack of"),
    ("print('one'); sys.stderr.buffer.write('内存'.encode('gbk')); sys.exit(3)", "\ufffd"),
    ("sys.exit(3)", "exit status 3"),
])  # fmt: skip
def test_a_command_that_fails_is_reported_with_the_reason(code, reason):
    with pytest.raises(ValueError, match=f"^x.py: {reason}"):
        runs.run_python("x.py", ["-c", f"import os, sys; {code}"])


def test_measured_runs_are_logged_nowhere_else(tmp_path, monkeypatch):
    (tmp_path / "log.py").write_text("wandb_log = swanlab_log = tensorboard_log = True", encoding="utf-8")
    commands = []
    monkeypatch.setattr(runs, "run_python", lambda name, words: commands.append(words))
    assert runs.run_train([str(tmp_path / "log.py")]) == []
    config, _ = configure(train.TrainConfig, commands[0][1:])
    assert (config.wandb_log, config.swanlab_log, config.tensorboard_log) == (False, False, False)


def test_a_dataset_with_other_ids_or_too_few_is_refused(letters, tmp_path):
    out_dir, other = f"--out_dir={tmp_path / 'out'}", write_dataset(tmp_path / "other", "xyz, zyx. " * 40)
    assert train.main([CONFIG, *SMALL, f"--dataset={letters}", out_dir, "--max_iters=1", "--eval_iters=1"]) == 0
    with pytest.raises(ValueError, match="other .* does not match the checkpoint"):
        bench.main(["lines", out_dir, f"--dataset={other}", "--device=cpu"])
    with pytest.raises(ValueError, match="other .* does not match the checkpoint"):
        bench.main(["lines", out_dir, f"--dataset={letters}", "--ngram=0.2", f"--ngram_data={letters},{other}"])
    with pytest.raises(ValueError, match="has 164 tokens, --given=4 and --new=160 need 165"):
        bench.main(["repetition", out_dir, f"--scorer={tmp_path / 'out'}", "--given=4"])


@pytest.mark.parametrize("words, message", [
    (["ablatoin"], "the nearest is 'ablation'"),
    (["generate", "--tokens=1"], "found 1, expected at least 2"),
    (["generate", "--repeats=0"], "found 0, expected at least 1"),
    (["generate", "--peer=llama.cpp", "--batch=4"], "leave out --device, --batch and --formats"),
    (["complete", "--text={short}"], "nothing to type behind --context=500"),
    (["prepare", "--input", "{short}"], "has 9 characters, expected at least 250,000"),
    (["profile", CONFIG, "--lora_rank=4"], "leave out --lora_rank and --distill_from"),
])  # fmt: skip
def test_what_cannot_be_measured_is_refused(words, message, tmp_path):
    (tmp_path / "short.txt").write_text("some text", encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        bench.main([word.format(short=tmp_path / "short.txt") for word in words])


def test_generation_is_measured_in_the_formats_that_a_device_has(monkeypatch):
    assert inference.formats_on(torch.device("cpu"), None) == ["float32", "bfloat16", "int8"]
    for native in (torch.bfloat16, torch.float16):
        monkeypatch.setattr(inference, "pick_dtype", lambda name, device, native=native: native)
        name = str(native).removeprefix("torch.")
        assert inference.formats_on(torch.device("cuda"), None) == ["float32", name, f"{name} compiled"]
    with pytest.raises(ValueError, match="--formats int8: expected some of float32, float16"):
        inference.formats_on(torch.device("cuda"), ["int8"])


def test_a_clock_waits_for_the_gpu_and_threads_for_a_containers_cores(monkeypatch):
    waited, chosen = [], []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: waited.append("cuda"))
    monkeypatch.setattr(torch.mps, "synchronize", lambda: waited.append("mps"))
    for name in ("cpu", "mps", "cuda"):
        report.synchronize(torch.device(name))
    assert waited == ["mps", "cuda"]
    monkeypatch.setattr("system.cpu.cpu_quota", lambda: 2.0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    report.parser("name", "description")
    assert chosen == [2]
