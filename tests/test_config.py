"""config/*.py: every one is valid, has the shape it promises, and trains on what its own prepare command makes."""

import importlib.util
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch

import quickstart
import train
from configurator import configure
from data.dataset import DatasetWriter
from data.tokenizer import BPETokenizer, CharTokenizer
from model import GPT, GPTConfig
from system.distributed import Ranks
from training.check import MODEL_KEYS, validate

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted((ROOT / "config").glob("*.py"))
# the data of chat*.py are conversations: tests/test_chat.py
TRAINED = [path for path in CONFIGS if not path.stem.startswith(("eval_", "chat"))]
SMALL = (
    "--batch_size=2 --gradient_accumulation_steps=1 --block_size=16 --n_layer=1 --n_head=2 --n_embd=16 "
    "--max_iters=20 --eval_iters=1 --log_interval=1 --device=cpu --compile=False"
).split()


def load(path):
    return configure(train.TrainConfig, [str(path)])[0]


def header(path):
    return path.read_text(encoding="utf-8").split("\n\n")[0]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_is_valid_and_says_how_to_run_it(path):
    config, explicit = configure(train.TrainConfig, [str(path)])
    validate(config, Ranks())
    assert f"train.py config/{path.name}" in header(path)
    assert path not in TRAINED or {"out_dir", "dataset"} <= explicit


# ---- the dataset -------------------------------------------------------------------------------------------


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """An empty data/ in place of the project's, some texts, and a tokenizer.json for all that would be downloaded."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("data.dataset.DATA", tmp_path / "data")
    lines = "def f(x):\n    return x + 1  # 宝玉\n"
    for i in range(12):
        (tmp_path / f"{i}.txt").write_text(f"# {i}\n" + lines * 20, encoding="utf-8")
    text = BPETokenizer.train([lines], 280).to_json()["tokenizer"]
    (tmp_path / "tokenizer.json").write_text(text, encoding="utf-8")
    return tmp_path


def prepare(path, clone):
    """Runs the first prepare command of a config's header, as it stands there, but for the texts it reads."""
    name, options = re.search(r"python data/(\w+)/prepare\.py([^\n&]*)", header(path)).groups()
    spec = importlib.util.spec_from_file_location("prepare", ROOT / "data" / name / "prepare.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.HERE = clone / "data" / name  # beside it goes what it makes
    published = ["--tokenizer_file=tokenizer.json"] if name in ("shakespeare", "openwebtext", "tinystories") else []
    script.main([*shlex.split(options), *published, "--input", *map(str, sorted(clone.glob("*.txt")))])


@pytest.mark.parametrize("path", TRAINED, ids=lambda path: path.stem)
def test_a_config_trains_on_the_dataset_that_its_prepare_command_makes(path, clone, capsys):
    prepare(path, clone)
    made = [file.parent.name for file in (clone / "data").glob("*/meta.json")]
    assert made == [load(path).dataset]
    small = [*SMALL, "--out_dir=out", "--init_from=scratch"]  # GPT-2's weights would be downloaded
    if load(path).n_kv_head:
        small.append("--n_kv_head=1")
    assert train.main([str(path), *small]) == 0
    assert "iter 19: loss" in capsys.readouterr().out


def test_quickstart_prepares_what_its_config_says():
    command = f"python data/pycode/prepare.py --out_dir {quickstart.DATASET} {' '.join(quickstart.PREPARE)}\n"
    assert command in header(ROOT / "config/quickstart.py")


# ---- the shape ---------------------------------------------------------------------------------------------


# vocabulary, layers, heads, width, context, and what is not as in GPT-2. Those of train_gpt2 and train_shakespeare are
# GPT-2's, of train_shakespeare_char nanoGPT's, of deep, cppcode and llama what users asked for.
SHAPES = {
    "train_gpt2": (50_257, 12, 12, 768, 1024, ""),
    "speed_gpt2": (50_257, 12, 12, 768, 1024, "rope qk_norm untied"),
    "train_shakespeare": (50_257, 12, 12, 768, 256, ""),
    "train_shakespeare_char": (65, 6, 6, 384, 256, ""),
    "speed_shakespeare_char": (65, 4, 4, 128, 64, "rope untied"),
    "sprint_shakespeare_char": (65, 2, 4, 64, 64, "rope untied smear narrow"),
    "train_hongloumeng_char": (4_435, 2, 4, 128, 256, ""),
    "speed_hongloumeng_char": (4_435, 4, 4, 256, 256, "rope smear"),
    "train_book_char": (4_435, 3, 4, 128, 256, "rope smear"),
    "train_hongloumeng_deep": (4_435, 24, 8, 512, 256, "rope qk_norm"),
    "train_hongloumeng_bpe": (4_096, 2, 4, 192, 256, "rope qk_norm"),
    "train_hongloumeng_qwen2": (9_301, 2, 4, 192, 256, "rope qk_norm"),
    "train_classics_bpe": (8_192, 6, 6, 384, 256, "rope qk_norm"),
    "train_pycode": (32_768, 9, 8, 512, 512, "rope qk_norm"),
    "speed_pycode": (50_000, 12, 12, 768, 1024, "rope qk_norm"),
    "quickstart": (4_096, 2, 4, 128, 256, "rope qk_norm smear"),
    "train_cppcode_bytes": (256, 12, 12, 768, 512, "rope qk_norm"),
    "train_tinystories_llama": (32_000, 4, 16, 256, 512, "llama"),
}


def n_parameters(model):
    return sum(p.numel() for p in model.parameters())


def build(path, **changed):
    """The model of a config, without memory."""
    config = load(path)
    with torch.device("meta"):
        return GPT(GPTConfig(**{**{key: getattr(config, key) for key in MODEL_KEYS}, **changed}))


def count_by_hand(vocab_size, layers, heads, width, context, features):
    """GPT-2 without biases: embeddings; a layer of attention (4 squares), MLP (8 squares, 4 if narrow) and two norms; a
    norm."""
    features = features.split()
    if "llama" in features:  # 8 of 16 key heads, an MLP of three matrices 768 wide, a head of its own
        layer = width * width * 2 + 2 * width * width // 2 + 3 * width * 768 + 2 * width
        return 2 * vocab_size * width + layers * layer + width
    layer = (8 if "narrow" in features else 12) * width**2 + 2 * width + ("qk_norm" in features) * 2 * (width // heads)
    tables = vocab_size * (1 + ("untied" in features)) + context * ("rope" not in features) + ("smear" in features)
    return tables * width + layers * layer + width


@pytest.mark.parametrize("path", [path for path in TRAINED if "finetune" not in path.stem], ids=lambda path: path.stem)
def test_a_config_has_the_shape_it_promises(path):
    config, (vocab_size, *shape, features) = load(path), SHAPES[path.stem]
    assert [config.n_layer, config.n_head, config.n_embd, config.block_size] == shape
    n = n_parameters(build(path, vocab_size=vocab_size))
    assert n == count_by_hand(vocab_size, *shape, features)
    for promised in re.findall(r"(\d+)(?:M| million) parameters(?! in)", header(path)):
        assert round(n / 1e6) == int(promised)


def test_the_sizes_are_those_of_gpt2_nanogpt_and_the_users_llama():
    assert n_parameters(build(ROOT / "config/train_gpt2.py", vocab_size=50_257, bias=True)) == 124_439_808
    assert n_parameters(build(ROOT / "config/train_tinystories_llama.py", vocab_size=32_000)) == 19_532_032
    small = build(ROOT / "config/train_shakespeare_char.py", vocab_size=65)
    assert f"{small.get_num_params() / 1e6:.2f}M" == "10.65M"  # as nanoGPT counts: without positions


@pytest.mark.parametrize("layers, width, steps", [(12, 768, 10_000), (4, 256, 265_000)])
def test_the_budget_of_the_cppcode_config_and_not_max_iters_decides_the_steps(layers, width, steps):
    config = load(ROOT / "config/train_cppcode_bytes.py")
    n = count_by_hand(256, layers, layers, width, 512, "rope qk_norm")
    decided = config.compute * 1e12 / n / (16 * 8 * 512)
    assert decided == pytest.approx(steps, rel=0.01) and decided < config.max_iters


@pytest.mark.parametrize(
    "name, vocab_size, low, high",
    [
        ("train_tinystories_llama", 32_000, 19_532_032, 19_532_032),
        ("train_hongloumeng_char", 4_435, 0.9e6, 1.1e6),
    ],
)
def test_print_params_lists_every_parameter_and_ends(name, vocab_size, low, high, capsys):
    options = ["--print_params", "--device=cpu", f"--vocab_size={vocab_size}"]
    assert train.main([f"{ROOT}/config/{name}.py", *options]) == 0
    rows = [re.fullmatch(r"(\S+) +(\d+(?: x \d+)*)? +([\d,]+)", line) for line in capsys.readouterr().out.splitlines()]
    counts = [int(row[3].replace(",", "")) for row in rows]
    assert low <= counts[-1] == sum(counts[:-1]) <= high
    assert rows[-1][1] == "total" and rows[0][1] == "transformer.wte.weight"
    for row, n in zip(rows[:-1], counts, strict=False):
        assert n == np.prod([int(side) for side in row[2].split(" x ")])


def test_print_params_takes_the_vocabulary_of_the_dataset(tmp_path, capsys):
    with DatasetWriter(tmp_path, CharTokenizer("abc"), {}) as writer:
        for split in ("train", "val"):
            writer.write(split, np.zeros(9, int), n_bytes=9)
    shape = ["--n_layer=1", "--n_head=1", "--n_embd=8", "--block_size=4"]
    train.main(["--print_params", "--device=cpu", *shape, f"--dataset={tmp_path}"])
    assert re.search(r"transformer.wte.weight +3 x 8 +24\n", capsys.readouterr().out)
