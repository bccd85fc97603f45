"""bench.py: what the benchmarks say besides times."""

import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from test_train import write_dataset

import bench

ROOT = Path(__file__).resolve().parents[1]
CONFIG = str(ROOT / "config/speed_shakespeare_char.py")
SMALL = ["--n_layer=1", "--n_head=2", "--n_embd=16", "--block_size=16", "--batch_size=4", "--device=cpu"]


@pytest.fixture(scope="module")
def letters(tmp_path_factory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("dataset"), "the cat sat on a mat. the dog ran to it. " * 20)


def rows_of(capsys, *argv: str) -> list[dict]:
    bench.main([*argv, "--json"])
    return json.loads(next(line for line in capsys.readouterr().out.splitlines() if line.startswith("{")))["rows"]


def gpu_commands() -> list[str]:
    """What scripts/gpu.sh runs, without `python`."""
    text = (ROOT / "scripts/gpu.sh").read_text(encoding="utf-8").replace("\\\n", "")
    return re.findall(r"^ +python (.+?)(?: &&)?$", text.replace('"--peer=$PEER"', "--peer=nanoGPT"), re.MULTILINE)


@pytest.mark.parametrize("line", gpu_commands())
def test_the_gpu_list_has_commands_whose_options_there_are(line):
    """One option more is all that is refused, and that before any work."""
    script, *words = shlex.split(line.replace("${PEER:+--peer=nanoGPT}", "--peer=nanoGPT"))
    main = importlib.import_module(Path(script).stem).main
    with pytest.raises(ValueError, match="nonsense") as refused:
        main([*words, "--nonsense=1"])
    assert not re.search(r"--(?!nonsense)\w+=", str(refused.value).split("nonsense")[0]), refused.value


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
def test_ctrl_c_ends_the_gpu_list(tmp_path):
    stub = tmp_path / "python"
    stub.write_text("#!/bin/bash\necho ran\nexit 130\n", encoding="utf-8")  # as a script that has saved
    stub.chmod(0o755)
    command = ["bash", ROOT / "scripts/gpu.sh", "Python", "generation"]
    done = subprocess.run(command, env={**os.environ, "PYTHON": str(stub)}, capture_output=True, encoding="utf-8")
    assert done.returncode == 130 and done.stdout.count("ran") == 1


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
def test_the_gpu_list_goes_on_after_a_table_that_failed(tmp_path):
    stub = tmp_path / "python"
    stub.write_text('#!/bin/bash\necho "ran $*"\n[[ $1 != eval.py ]]\n', encoding="utf-8")
    stub.chmod(0o755)
    names = ["Python", "124M", "红楼梦, deep", "generation"]
    command = ["bash", ROOT / "scripts/gpu.sh", *names]
    environment = {**os.environ, "PYTHON": str(stub), "PEER": str(tmp_path), "JSON": "1"}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, encoding="utf-8")
    assert done.returncode == 2 and done.stderr == "error: failed: 红楼梦, deep (see the errors above)\n"
    assert sorted(re.findall("^## (.*)", done.stdout, re.MULTILINE)) == sorted(names)
    printed, ran = (re.findall(f"^{prefix} (.*)", done.stdout, re.MULTILINE) for prefix in (r"\$ python", "ran"))
    assert len(printed) == len(ran) == 5 and f"--peer={tmp_path}" in ran[0]
    for line, words in zip(printed, ran, strict=True):  # as it was printed, with --json for a benchmark
        assert words == " ".join(shlex.split(line)) + " --json" * line.startswith("bench.py")
    done = subprocess.run([*command, "nosuch"], env=environment, capture_output=True, encoding="utf-8")
    assert done.returncode == 2 and "error: no table 'nosuch'" in done.stderr and "C++ by bytes" in done.stderr


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


def test_ablation_has_a_row_for_each_setting_that_the_plain_recipe_has_not(letters, capsys):
    rows = rows_of(
        capsys,
        "ablation",
        CONFIG,
        *SMALL,
        f"--dataset={letters}",
        "--minutes=0.02",
        "--seeds",
        "1",
        "--also=--qk_norm=True --mlp=relu2",
    )
    assert [row["with"] for row in rows] == [
        "as it is",
        "optimizer: adamw",
        "pos: learned",
        "tie_weights: True",
        "init: normal",
        "schedule: cosine",
        "--qk_norm=True --mlp=relu2",
    ]
    assert rows[0]["worse by"] == 0 and all(row["steps"] > 2 for row in rows)
    assert len({row["validation loss"] for row in rows}) > 4  # they are other runs


def test_train_and_profile_and_loss_measure_something(capsys):
    rows = rows_of(capsys, "train", CONFIG, *SMALL, "--vocab_size=65", "--steps=8", "--baseline", "--sweep=n_layer=1,2")
    assert [row["n_layer"] for row in rows] == ["1", "2"]
    for row in rows:
        assert row["tokens/s"] == pytest.approx(4 * 16 * 1000 / row["ms/iter"])
        assert row["share"] == pytest.approx(row["ms/iter"] / row["plain ms/iter"])
    parts = rows_of(capsys, "profile", CONFIG, *SMALL, "--vocab_size=65")
    assert [row["part"] for row in parts] == ["forward", "backward", "clip", "optimizer"]
    assert sum(row["%"] for row in parts) == pytest.approx(100)
    rows = rows_of(capsys, "loss", "--vocab_size=50", "--rows=64", "--n_embd=16")
    assert rows[-1]["loss"] == "LinearCrossEntropy" and all(row["ms"] > 0 for row in rows)
