"""Checkpoints: atomic, safe to load, interchangeable with nanoGPT's."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import checkpoint
from model import GPT, GPTConfig

CONFIG = GPTConfig(block_size=8, vocab_size=11, n_layer=2, n_head=2, n_embd=8, bias=False)


def state_of(model: GPT, **more) -> dict:
    return {"model": model.state_dict(), "model_args": model.config.to_args(), "iter_num": 3, **more}


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("tie", [True, False])
def test_a_saved_model_is_rebuilt_with_the_same_logits(tmp_path, prefix, tie):
    model = GPT(GPTConfig(**{**vars(CONFIG), "tie_weights": tie, "pos": "rope"})).eval()
    state = state_of(model)
    state["model"] = {prefix + name: tensor for name, tensor in state["model"].items()}
    checkpoint.save(tmp_path / "ckpt.pt", state)
    rebuilt = checkpoint.build_model(checkpoint.load(tmp_path / "ckpt.pt")).eval()
    idx = torch.randint(11, (2, 8))
    assert torch.equal(rebuilt(idx, idx)[0], model(idx, idx)[0])
    assert (rebuilt.lm_head.weight is rebuilt.transformer.wte.weight) == tie


def test_a_checkpoint_as_nanogpt_writes_it_is_read(tmp_path):
    """Its seven model_args, a 0-dim best_val_loss, and on old PyTorch the masks as buffers, all in the old format."""
    model = GPT(CONFIG)
    weights = dict(model.state_dict())
    for layer in range(2):
        weights[f"transformer.h.{layer}.attn.bias"] = torch.ones(1, 1, 8, 8).tril()
    args = dict(n_layer=2, n_head=2, n_embd=8, block_size=8, bias=False, vocab_size=11, dropout=0.0)
    state = {"model": weights, "model_args": args, "iter_num": 5, "best_val_loss": torch.tensor(1.5), "config": {}}
    for new in (True, False):
        torch.save(state, tmp_path / "ckpt.pt", _use_new_zipfile_serialization=new)
        rebuilt = checkpoint.build_model(checkpoint.load(tmp_path / "ckpt.pt"))
        for name, tensor in model.state_dict().items():
            assert torch.equal(rebuilt.state_dict()[name], tensor)


def test_model_args_of_a_gpt2_shape_are_nanogpts_seven_and_no_more():
    names = ["block_size", "vocab_size", "n_layer", "n_head", "n_embd", "dropout", "bias"]
    assert list(CONFIG.to_args()) == names
    spelled_out = GPTConfig(**{**vars(CONFIG), "n_kv_head": 2, "head_dim": 4, "mlp_hidden": 32})
    assert list(spelled_out.to_args()) == names


class Payload:
    def __reduce__(self):
        return os.mkdir, ("pwned",)


def test_damaged_foreign_and_malicious_files_are_refused_in_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    good = tmp_path / "good.pt"
    checkpoint.save(good, state_of(GPT(CONFIG)))
    data = good.read_bytes()
    (tmp_path / "short.pt").write_bytes(data[: len(data) // 2])
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "text.pt").write_text("hello", encoding="utf-8")
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps(Payload()))
    torch.save({"model": Payload(), "model_args": {}}, tmp_path / "code.pt")
    torch.save({"weights": 1}, tmp_path / "other.pt")
    torch.save({**state_of(GPT(CONFIG)), "format": 99}, tmp_path / "newer.pt")
    for name in ("short", "empty", "text", "pickle", "code", "other", "newer"):
        with pytest.raises(ValueError, match=f"{name}.pt") as caught:
            checkpoint.load(tmp_path / f"{name}.pt")
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "pwned").exists()


def test_weights_that_contradict_model_args_are_refused_with_both_shapes():
    state = state_of(GPT(CONFIG))
    for change, message in (({"n_embd": 10}, r"\(11, 8\).*\(11, 10\)"), ({"n_layer": 3}, "h.2.*nothing"),
                            ({"n_layer": 1}, "h.1"), ({"depth": 4}, "depth")):
        with pytest.raises(ValueError, match=message):
            checkpoint.build_model({**state, "model_args": {**state["model_args"], **change}})


KILLED_WHILE_SAVING = """
import os, signal, sys, torch, checkpoint
from pathlib import Path
real = os.{call}
def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)
os.{call} = die
checkpoint.save(Path(sys.argv[1]), {{"model": torch.zeros(1000), "model_args": {{}}}})
"""


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL")
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_kill_while_saving_leaves_the_old_checkpoint(tmp_path, call):
    path = tmp_path / "last.pt"
    checkpoint.save(path, {"model": torch.ones(3), "model_args": {}})
    before = path.read_bytes()
    script = KILLED_WHILE_SAVING.format(call=call)
    process = subprocess.run([sys.executable, "-c", script, str(path)], cwd=Path(checkpoint.__file__).parent)
    assert process.returncode == -9
    assert path.read_bytes() == before


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_one_clear_error_and_the_old_checkpoint_stays(tmp_path, monkeypatch):
    path = tmp_path / "last.pt"
    checkpoint.save(path, {"model": torch.ones(3), "model_args": {}})
    before = path.read_bytes()
    opened = []
    monkeypatch.setattr("builtins.open", lambda *args: opened.append(args) or os.fdopen(os.open("/dev/full", os.O_WRONLY), "wb"))
    with pytest.raises(ValueError, match="cannot write checkpoint .*last.pt.*untouched"):
        checkpoint.save(path, {"model": torch.zeros(10_000), "model_args": {}})
    monkeypatch.undo()
    assert opened and path.read_bytes() == before and os.listdir(tmp_path) == ["last.pt"]


def test_resuming_takes_the_file_with_more_steps_and_sampling_the_best(tmp_path):
    for ckpt, last, expected in ((5, 7, "last.pt"), (7, 5, "ckpt.pt"), (6, 6, "last.pt")):
        for name, iter_num in (("ckpt.pt", ckpt), ("last.pt", last)):
            checkpoint.save(tmp_path / name, {"model": {}, "model_args": {}, "iter_num": iter_num})
        assert checkpoint.find(tmp_path, resume=True).name == expected
        assert checkpoint.find(tmp_path).name == "ckpt.pt"


def test_a_linked_copy_survives_the_next_save_of_its_source(tmp_path):
    a, b = tmp_path / "ckpt.pt", tmp_path / "last.pt"
    checkpoint.save(a, {"model": {"w": torch.ones(3)}, "model_args": {}})
    checkpoint.save(b, {}, copy_of=a)
    checkpoint.save(a, {"model": {"w": torch.zeros(3)}, "model_args": {}})
    assert torch.equal(checkpoint.load(b)["model"]["w"], torch.ones(3))
