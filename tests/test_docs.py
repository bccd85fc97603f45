"""README.md and docs/: every command works, with small limits; both languages show the same ones; links and figures
are right.

    PYTHONPATH=. python tests/test_docs.py docs/en/data.md    # runs the commands of one page, and prints each
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from urllib.request import urlopen

import pytest

from docs import figures

ROOT = Path(__file__).resolve().parents[1]
TRAINING = ("--max_iters=3 --eval_interval=2 --eval_iters=1 --batch_size=2 --block_size=160 --n_layer=1 --n_head=2 "
            "--n_kv_head=None --n_embd=8 --mlp_hidden=None --gradient_accumulation_steps=2 --device=cpu")  # fmt: skip
STORIES = "stories.txt --tokenizer=bpe --vocab_size=400 --val_fraction=0.2"
LIMITS = {
    "train.py": TRAINING,
    "plan.py": "--minutes=0.1 --sizes 1x8 --eval_iters=1 --batch_size=2 --block_size=16 --device=cpu",
    "sample.py": "--num_samples=1 --max_new_tokens=5 --device=cpu",
    "eval.py": "--stride=8",
    "data/classics/prepare.py": "--input books --encoding=auto --vocab_size=400",
    "data/pycode/prepare.py": "--input my_project --vocab_size=400",
    "data/cppcode/prepare.py": "--input my_headers",
    "data/tinystories/prepare.py": f"--input {STORIES}",
    "data/openwebtext/prepare.py": f"--input {STORIES} --separator <|endoftext|>",
    "data/wikitext/prepare.py": f"--input {STORIES} --separator <|endoftext|>",
    "data/shakespeare/prepare.py": "--tokenizer=bpe --vocab_size=400",
}
# not run here: they need the network, a second machine, a terminal, or all the time there is (CI runs quickstart.py)
ELSEWHERE = ("python3 quickstart.py", "torchrun --nnodes=2", "git clone", "cd ", "source ", "pip ")
ELSEWHERE += (
    "python sample.py --init_from=gpt2",
    "python eval.py --init_from=gpt2",
    "torchrun --standalone --nproc_per_node=4 eval.py --init_from=gpt2",
    "hf download",
    "python data/openwebtext/prepare.py --input data/fineweb",
    "torchrun --standalone --nproc_per_node=8 train.py config/speed_gpt2.py --dataset=fineweb",
    "python train.py config/finetune_shakespeare.py",
    "python train.py config/eval_gpt2",
    "python -m venv",
    "python3 -m venv",
)
FIRST = "walkthrough.md"  # all other pages may use what it makes


def pages(language: str) -> list[str]:
    """The names of a language's pages."""
    folder = ROOT / "docs" / language
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.md"))


def commands(path: Path) -> list[str]:
    """The lines of a page's sh blocks, without comments, and the cells of its tables that hold nothing but commands."""
    found = []
    for block, row in re.findall(
        r"```sh\n(.*?)```|^(\|[^\n]*)", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    ):
        found += [line.split("  #")[0].strip() for line in block.splitlines()]
        for cell in row.split("|"):
            lines = [re.fullmatch(r"\s*`((?:python|torchrun) [^`]+)`\s*", line) for line in cell.split("<br>")]
            found += [line[1] for line in lines] if all(lines) else []
    return [line for line in found if line and not line.startswith("#")]


def clone(folder: Path) -> None:
    """What a fresh clone holds, with small texts where the downloads would go, and texts that the pages name."""
    ignore = shutil.ignore_patterns("*.bin", "meta.json", "input.txt", "*.part", "__pycache__")
    packages = [path.parent.name for path in ROOT.glob("*/__init__.py") if path.parent.name != "tests"]
    for name in ("config", "docs", *packages):
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    for path in ROOT.glob("*.py"):
        shutil.copy(path, folder)
    shakespeare = "ROMEO:\nBut soft! What light through yonder window breaks? To be, or not\n" * 300
    lines = (f"黛玉见了宝玉便说道：“今日来得不巧了，且续写第{i}句。”谁说的？对下句。\n" for i in range(200))
    novel = "".join(lines)
    for name in ("shakespeare_char", "shakespeare"):
        (folder / "data" / name / "input.txt").write_text(shakespeare, encoding="utf-8")
    (folder / "data/hongloumeng/input.txt").write_text(novel, encoding="utf-8")
    (folder / "novel.txt").write_text(novel, encoding="gb18030")
    (folder / "books").mkdir()
    for number in range(30):
        (folder / "books" / f"{number}.txt").write_text(f"第{number}回\n{novel}", encoding="gb18030")
    stories = [f"Once upon a time there was a dog named Rex {i}. He liked to play. The end.\n" for i in range(600)]
    (folder / "key.txt").write_text("a-key-of-tests\n", encoding="utf-8")
    (folder / "stories.txt").write_text("<|endoftext|>\n".join(stories), encoding="utf-8")
    asked = [a + b for a in "黛玉见了宝来说便" for b in "黛玉见了宝来说便"]
    rows = [json.dumps({"prompt": text, "response": text[-1]}) + "\n" for text in asked]
    (folder / "chats.jsonl").write_text("".join(rows), encoding="utf-8")
    for name, source in (
        ("my_project/m{}.py", "def f{}(x):\n    return x + 1\n"),
        ("my_headers/m{}.h", "int f{}();\n"),
    ):
        for number in range(20):
            path = folder / name.format(number)
            path.parent.mkdir(exist_ok=True)
            path.write_text(source.format(number) * 30, "utf-8")
    tokenizer = train_tokenizer(novel)
    (folder / "tokenizer.json").write_text(tokenizer, encoding="utf-8")


def train_tokenizer(text: str) -> str:
    """A tokenizer.json of the kind that Qwen2 has, from the library."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"], show_progress=False
    )
    made.train_from_iterator([text], trainer)
    return made.to_str()


def run(lines: list[str], folder: Path, show=lambda line: None) -> int:
    """Runs commands in a clone, and returns how many; those of ELSEWHERE are left out."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"}
    ran = 0
    for line in lines:
        if line.startswith(ELSEWHERE):
            continue
        show(line)
        words = shlex.split(line)
        script = next(word for word in words if word.endswith(".py"))
        if words[0] == "torchrun":
            words[:1] = ["python", "-m", "torch.distributed.run"]
        assert words[0] == "python", line
        words = [re.sub(r"--nproc_per_node=\d+", "--nproc_per_node=2", word) for word in words[1:]]
        if "novel.txt" in words:
            encoding = "gb18030" if "--encoding=" in line else "utf-8"
            novel = (folder / "data/hongloumeng/input.txt").read_text("utf-8")
            (folder / "novel.txt").write_text(novel, encoding=encoding)
        if script == "serve.py":
            serve(words, folder, environment)
            ran += 1
            continue
        process = subprocess.run(
            [sys.executable, *words, *limits(line, script)],
            cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8",
        )  # fmt: skip
        assert process.returncode == 0, f"{line}\n{process.stdout}\n{process.stderr}"
        ran += 1
    return ran


def serve(words: list[str], folder: Path, environment: dict) -> None:
    """Runs a server until it answers."""
    command = [sys.executable, *words, "--port=0", "--device=cpu"]
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8"
    )
    try:
        said = ""
        while not (address := re.search(r" at http://\S+:(\d+) ", said)):
            line = process.stdout.readline()
            assert line, said
            said += line
        with urlopen(f"http://127.0.0.1:{address[1]}/health", timeout=600) as reply:
            assert json.load(reply) == {"status": "ok"}
    finally:
        process.kill()
        process.communicate()


def limits(line: str, script: str) -> list[str]:
    """What is added to a command so that it takes a second and needs no network."""
    if "--task=" in line or script.endswith("prepare.py") and "--input" in line:
        return []
    more = LIMITS.get(script, "").split()
    if "--chat" in line or "--messages" in line:
        more.remove("--num_samples=1")  # which they refuse
    if "--init_from" in line and script == "train.py":  # the shape is that of the checkpoint
        shape = ("--n_", "--mlp_hidden")
        more = more if "resume" in line or "config/train_" in line else [w for w in more if not w.startswith(shape)]
        more[0] = "--max_iters=5"
    return more


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    """A clone in which the walk-through's commands have run, and how many those were."""
    folder = tmp_path_factory.mktemp("walked")
    clone(folder)
    return folder, run(commands(ROOT / "docs/en" / FIRST), folder)


def test_the_readmes_commands_run(tmp_path):
    clone(tmp_path)
    assert run(commands(ROOT / "README.md"), tmp_path) >= 14


def test_the_walkthroughs_commands_run(walked):
    folder, ran = walked
    assert ran >= 14
    assert (folder / "out-hongloumeng-char/loss.png").exists() and (folder / "hf-hongloumeng/config.json").exists()


@pytest.mark.parametrize("name", [name for name in pages("en") if name != FIRST])
def test_a_pages_commands_run_after_the_walkthrough(name, walked, tmp_path):
    lines = commands(ROOT / "docs/en" / name)
    if any(not line.startswith(ELSEWHERE) for line in lines):
        shutil.copytree(walked[0], tmp_path / "clone")
        run(lines, tmp_path / "clone")


def test_both_languages_have_the_same_pages_and_commands():
    assert pages("en") == pages("zh")
    assert commands(ROOT / "README.md") == commands(ROOT / "README.zh-CN.md")
    for name in pages("en"):
        assert commands(ROOT / "docs/en" / name) == commands(ROOT / "docs/zh" / name), name


def test_figures_are_those_of_one_place():
    known = figures.known_figures()
    for path, language in figures.pages().items():
        text = path.read_text(encoding="utf-8")
        assert figures.fill_page(text, language, known) == text, f"{path}: run python docs/figures.py"


def test_every_figure_is_on_a_page():
    marks = re.findall(r"<!--([\w. -]+)-->", "".join(path.read_text(encoding="utf-8") for path in figures.pages()))
    known = figures.known_figures()["runs"]
    kept = {f"{run}.{name}" for run, found in known.items() for name in found.get("figures", {})}
    kept |= {f"{kind} {run}" for run, found in known.items() for kind in ("sample", "times") if kind in found}
    assert kept == {*marks}


def test_a_check_of_the_figures_fails_where_a_page_differs_and_writes_nothing(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text("loss <!--run.loss-->1.9<!--/-->", encoding="utf-8")
    monkeypatch.setattr(figures, "ROOT", tmp_path)
    monkeypatch.setattr(figures, "pages", lambda: {page: "en"})
    monkeypatch.setattr(figures, "known_figures", lambda: {"runs": {"run": {"figures": {"loss": "1.8"}}}})
    assert figures.main(["--check"]) == 1 and "1.9" in page.read_text(encoding="utf-8")
    assert figures.main([]) == 0 and "1.8" in page.read_text(encoding="utf-8")
    assert figures.main(["--check"]) == 0


def test_no_line_begins_with_a_figure():
    for path in figures.pages():  # a comment there would end the paragraph, and what follows would be plain HTML
        assert not re.search(r"^\s*<!--\w+\.", path.read_text(encoding="utf-8"), re.MULTILINE), path


TEXTS = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]


def anchors(path: Path) -> set[str]:
    """The names of a page's headings, as GitHub makes them."""
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_and_files_that_a_page_names_exist(path):
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"^[A-Z]{4,}$", text, re.MULTILINE), "a placeholder"
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        assert file.exists(), f"{target} does not exist"
        assert not anchor or anchor in anchors(file), f"{target} is no heading there"
    for name in set(re.findall(r"`((?:[\w-]+/)*[\w-]+\.(?:py|md))`", text)):
        assert "sonnets" in name or any(any(ROOT.glob(folder + name)) for folder in ("", "*/", "data/*/")), name


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_index_names_every_page(language):
    folder = ROOT / "docs" / language
    linked = re.findall(r"\]\(([^)#\s]+)", (folder / "README.md").read_text(encoding="utf-8"))
    assert {name for name in pages(language) if name != "README.md"} <= {*linked}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        clone(Path(made))
        asked = [ROOT / name for name in sys.argv[1:]]
        first = ROOT / "docs/en" / FIRST
        for page in [first, *asked] if first not in asked and first.exists() else asked:
            run(commands(page), Path(made), show=lambda line: print(line, flush=True))
