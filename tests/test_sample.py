"""sample.py: text from a checkpoint alone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import checkpoint
import sample
from data.tokenizer import ByteTokenizer, CharTokenizer
from model import GPT, GPTConfig

ROOT = Path(__file__).resolve().parents[1]
LETTERS = "\n 便宝玉见说贾黛😀"


@pytest.fixture
def out_dir(tmp_path) -> Path:
    save(tmp_path, CharTokenizer(LETTERS), vocab_size=64)  # a padded vocabulary: most ids stand for nothing
    return tmp_path


def save(folder: Path, tokenizer, vocab_size: int) -> None:
    config = GPTConfig(block_size=16, vocab_size=vocab_size, n_layer=1, n_head=2, n_embd=8)
    model = GPT(config, torch.Generator().manual_seed(1))
    state = {"model": model.state_dict(), "model_args": config.to_args(), "tokenizer": tokenizer.to_json()}
    checkpoint.save(folder / "ckpt.pt", state)


def write(out_dir: Path, capsys, *options: str) -> list[str]:
    sample.main([f"--out_dir={out_dir}", "--device=cpu", "--max_new_tokens=40", *options])
    return capsys.readouterr().out.split("\n---------------\n")[:-1]


def test_samples_are_separated_as_nanogpts_begin_with_the_prompt_and_use_known_ids_only(out_dir, capsys):
    texts = write(out_dir, capsys, "--start=黛玉见", "--num_samples=3", "--temperature=5")
    assert len(texts) == 3 and len(set(texts)) == 3
    for text in texts:
        assert text.startswith("黛玉见") and len(text) == 3 + 40 and set(text) <= set(LETTERS)


def test_a_seed_repeats_the_text_and_sample_i_does_not_depend_on_their_number(out_dir, capsys):
    three = write(out_dir, capsys, "--start=宝", "--num_samples=3", "--seed=5")
    assert write(out_dir, capsys, "--start=宝", "--num_samples=2", "--seed=5") == three[:2]
    assert write(out_dir, capsys, "--start=宝", "--num_samples=1", "--seed=6")[0] == three[1] != three[0]


def test_greedy_equals_the_argmax_loop(out_dir, capsys):
    text = write(out_dir, capsys, "--start=宝玉", "--num_samples=1", "--temperature=0", "--max_new_tokens=10")[0]
    tokenizer = CharTokenizer(LETTERS)
    model = checkpoint.build_model(checkpoint.load(out_dir / "ckpt.pt")).eval()
    ids = [int(i) for i in tokenizer.encode("宝玉")]
    for _ in range(10):
        ids.append(int(model(torch.tensor([ids]))[0][0, -1, : len(LETTERS)].argmax()))
    assert text == tokenizer.decode(ids)


def test_bytes_stream_without_half_characters(tmp_path, capsys):
    """A model that can only write one four-byte character: every piece that is written is whole."""
    save(tmp_path, ByteTokenizer(), vocab_size=256)
    pieces = []
    plain = sample.write
    smile = "😀".encode()

    def forced(model, idx, cache=None, **_):
        last = int(idx[0, -1])
        logits = torch.full((1, 1, 256), -100.0)
        logits[0, 0, smile[(smile.index(last) + 1) % 4] if last in smile else smile[0]] = 100
        cache.length += idx.size(1)
        return logits, None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GPT, "forward", forced)
        patch.setattr(sample, "write", lambda text: (pieces.append(text), plain(text)))
        texts = write(tmp_path, capsys, "--start=a", "--num_samples=1", "--max_new_tokens=10")
    assert texts == ["a😀😀"]  # ten bytes: the last two are half a character, and held back
    assert all("\ufffd" not in piece for piece in pieces)


def test_a_prompt_from_a_file_keeps_its_newline(out_dir, tmp_path, capsys):
    (tmp_path / "prompt.txt").write_text("宝玉\n", encoding="utf-8", newline="")
    text = write(out_dir, capsys, f"--start=FILE:{tmp_path / 'prompt.txt'}", "--num_samples=1")[0]
    assert text.startswith("宝玉\n")


@pytest.mark.parametrize(
    "options, message",
    [
        (["--start=黛玉Q与"], r"'Q' U\+0051"),
        (["--start="], "empty"),
        (["--start=FILE:nowhere.txt"], "nowhere.txt"),
        (["--temperature=-1"], "temperature=-1"),
        (["--top_p=1.5"], "top_p=1.5"),
        (["--max_new_tokens=-3"], "max_new_tokens=-3"),
    ],
)
def test_bad_requests_are_refused_in_one_line(out_dir, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        sample.main([f"--out_dir={out_dir}", "--device=cpu", *options])
    assert "\n" not in str(caught.value)


def test_the_script_writes_utf8_whatever_the_consoles_encoding(out_dir):
    command = [sys.executable, str(ROOT / "sample.py"), f"--out_dir={out_dir}", "--start=宝玉", "--num_samples=1"]
    process = subprocess.run(command, capture_output=True, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert process.returncode == 0, process.stderr
    assert process.stdout.decode("utf-8").startswith("宝玉")
    refused = subprocess.run([*command[:-2], "--start=Q"], capture_output=True, text=True, encoding="utf-8")
    assert refused.returncode == 2 and refused.stderr.startswith("error: ") and "Traceback" not in refused.stderr
