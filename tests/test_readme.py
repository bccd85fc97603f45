"""Every command that README.md shows works, with small limits; README.zh-CN.md shows the same ones."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LIMITS = {
    "train.py": "--max_iters=3 --eval_interval=2 --eval_iters=1 --batch_size=2 --block_size=96 --n_layer=1 --n_head=2 "
                "--n_embd=8 --gradient_accumulation_steps=2 --device=cpu",
    "plan.py": "--minutes=0.01 --sizes 1x8 --eval_iters=1 --batch_size=2 --block_size=16 --device=cpu",
    "sample.py": "--num_samples=1 --max_new_tokens=5 --device=cpu",
    "eval.py": "--stride=8",
}  # fmt: skip
# not run here: they need the network, a second machine, or all of the time there is (CI runs quickstart.py)
ELSEWHERE = ("python3 quickstart.py", "torchrun --nnodes=2", "python sample.py --init_from=gpt2")
ELSEWHERE += ("python serve.py",)  # runs until it is told to stop: see test_serve.py


def commands(name: str) -> list[str]:
    """The lines of a README's sh blocks, without comments."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / name).read_text(encoding="utf-8"), re.DOTALL)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


def clone(folder: Path) -> None:
    """What a fresh clone holds, with small texts where the downloads would go."""
    ignore = shutil.ignore_patterns("*.bin", "meta.json", "input.txt", "*.part", "__pycache__")
    packages = [path.parent.name for path in ROOT.glob("*/__init__.py") if path.parent.name != "tests"]
    for name in ("config", *packages):
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    for path in ROOT.glob("*.py"):
        shutil.copy(path, folder)
    shakespeare = "ROMEO:\nBut soft! What light through yonder window breaks? To be, or not\n" * 30
    lines = (f"黛玉见了宝玉便说道：“今日来得不巧了，且续写第{i}句。”谁说的？对下句。\n" for i in range(200))
    novel = "".join(lines)
    (folder / "data/shakespeare_char/input.txt").write_text(shakespeare, encoding="utf-8")
    (folder / "data/hongloumeng/input.txt").write_text(novel, encoding="utf-8")
    (folder / "novel.txt").write_text(novel, encoding="gb18030")
    (folder / "books").mkdir()
    for number in range(30):
        (folder / "books" / f"{number}.txt").write_text(f"第{number}回\n{novel}", encoding="gb18030")
    asked = [a + b for a in "黛玉见了宝来说便" for b in "黛玉见了宝来说便"]
    rows = [json.dumps({"prompt": text, "response": text[-1]}) + "\n" for text in asked]
    (folder / "chats.jsonl").write_text("".join(rows), encoding="utf-8")
    (folder / "my_project").mkdir()
    for number in range(20):
        source = f"def f{number}(x):\n    return x + {number}\n" * 9
        (folder / "my_project" / f"m{number}.py").write_text(source, "utf-8")


def test_the_readmes_commands_run(tmp_path):
    clone(tmp_path)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"}
    ran = 0
    for line in commands("README.md"):
        if line.startswith(ELSEWHERE):
            continue
        words = shlex.split(line)
        script = next(word for word in words if word.endswith(".py"))
        if words[0] == "torchrun":
            words[:1] = ["python", "-m", "torch.distributed.run"]
        assert words[0] == "python", line
        words = [re.sub(r"--nproc_per_node=\d+", "--nproc_per_node=2", word) for word in words[1:]]
        if "novel.txt" in words and "--encoding=gb18030" not in words:
            (tmp_path / "novel.txt").write_text((tmp_path / "novel.txt").read_text("gb18030"), encoding="utf-8")
        more = [] if "--task=" in line else LIMITS.get(script, "").split()
        if "--chat" in line or "--messages" in line:
            more.remove("--num_samples=1")  # which they refuse
        if "resume" in line:
            more[0] = "--max_iters=5"
        process = subprocess.run(
            [sys.executable, *words, *more],
            cwd=tmp_path, env=environment, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8",
        )  # fmt: skip
        assert process.returncode == 0, f"{line}\n{process.stdout}\n{process.stderr}"
        ran += 1
    assert ran >= 14
    assert (tmp_path / "out-hongloumeng-char" / "loss.png").exists()


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md"])
def test_files_that_a_readme_names_exist(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert not re.search(r"^[A-Z]{4,}$", text, re.MULTILINE), "a placeholder"
    for path in re.findall(r"`((?:[\w-]+/)*[\w-]+\.(?:py|md|txt))`", text):
        if path not in ("input.txt", "novel.txt"):
            assert (ROOT / path).exists() or list(ROOT.glob(f"data/*/{path}")), path


def test_both_readmes_show_the_same_commands():
    assert commands("README.md") == commands("README.zh-CN.md")
