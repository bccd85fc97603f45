"""config/*.py: every one is valid, has the promised size, and trains."""

import re
from pathlib import Path

import numpy as np
import pytest

import train
from configurator import configure
from data.dataset import DatasetWriter
from data.tokenizer import ByteTokenizer, CharTokenizer
from distributed import Ranks

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted((ROOT / "config").glob("*.py"))
TRAINED = [path for path in CONFIGS if not path.stem.startswith(("eval_", "finetune_"))]
SMALL = ("--batch_size=2 --gradient_accumulation_steps=1 --block_size=16 --n_layer=1 --n_head=2 --n_embd=16 "
         "--max_iters=3 --eval_iters=1 --log_interval=1 --device=cpu --compile=False").split()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bytes")
    ids = np.frombuffer(b"int main() {\n    return 0;\n}\n\xff" * 100, np.uint8)
    with DatasetWriter(folder, ByteTokenizer(eot=255), {}) as writer:
        writer.write("train", ids, n_bytes=2900)
        writer.write("val", ids, n_bytes=2900)
    return folder


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_is_valid_and_says_how_to_make_its_dataset(path):
    config, explicit = configure(train.TrainConfig, [str(path)])
    train.validate(config, Ranks())
    assert config.n_embd % config.n_head == 0
    text = path.read_text(encoding="utf-8")
    assert f"config/{path.name}" in text.split("\n\n")[0], "the first lines have the command"
    scripts = re.findall(r"data/\w+/prepare\.py", text)
    assert all((ROOT / script).exists() for script in scripts)
    if path in TRAINED and path.stem != "train_gpt2":
        assert scripts and {"out_dir", "dataset"} <= explicit


@pytest.mark.parametrize("path", TRAINED, ids=lambda path: path.stem)
def test_a_config_trains_when_it_is_made_small(path, dataset, tmp_path, capsys):
    small = [*SMALL, f"--dataset={dataset}", f"--out_dir={tmp_path / 'out'}"]
    if "n_kv_head" in path.read_text(encoding="utf-8"):
        small.append("--n_kv_head=1")
    assert train.main([str(path), *small]) == 0
    assert "iter 2: loss" in capsys.readouterr().out


@pytest.mark.parametrize("name, vocab_size, low, high", [
    ("train_tinystories_llama", None, 19_532_032, 19_532_032),
    ("train_cppcode_bytes", 256, 85e6, 85.5e6),
    ("train_hongloumeng_deep", 4_435, 77e6, 79e6),
    ("train_hongloumeng_char", 4_435, 0.9e6, 1.1e6),
])
def test_print_params_lists_every_parameter_and_ends(name, vocab_size, low, high, capsys):
    options = [] if vocab_size is None else [f"--vocab_size={vocab_size}"]
    assert train.main([f"{ROOT}/config/{name}.py", "--print_params", "--device=cpu", *options]) == 0
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
