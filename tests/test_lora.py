"""LoRA: its gradients against the formula's, merged against unmerged weights, exact resumes, what stays as it was."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from test_chat import SMALL, TOKENIZERS, run, some_rows, write_rows
from test_chat import base as base  # a fixture
from test_chat import dataset as dataset
from test_train import ROOT, assert_equal_states, timeless

import export
import sample
import train
from checkpoints.build import add_rows, build_model
from checkpoints.load import load_checkpoint
from data.dataset import open_dataset
from data.windows import batch
from model import GPT
from training.lora import add_lora, merged_weights

N_KNOWN = TOKENIZERS["char"].vocab_size
LORA = ("--lora_rank=3", "--lora_alpha=6")


@pytest.fixture
def adapted(base, dataset):
    """A model with factors that are not zero, the model with their product, and a batch."""
    opened = open_dataset(dataset)
    state = add_rows(load_checkpoint(base), N_KNOWN, opened.vocab_size)
    model = build_model(state).eval()
    add_lora(model, 3, 6.0, 0, N_KNOWN, None)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_b" in name:
            torch.nn.init.normal_(parameter, std=0.1, generator=generator)
    merged = build_model({**state, "model": merged_weights(model)[0]}).eval()
    return model, merged, [torch.from_numpy(ids) for ids in batch(opened, "train", 1, np.arange(4), 96)]


def named_grads(model: GPT) -> dict:
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def test_merged_weights_give_the_logits_of_the_factors(adapted, base):
    model, merged, (x, y) = adapted
    logits = model(x, y)[0]
    torch.testing.assert_close(merged(x, y)[0], logits, atol=1e-5, rtol=0)
    vocab_size = model.config.vocab_size
    before = build_model(add_rows(load_checkpoint(base), N_KNOWN, vocab_size)).eval()
    assert (before(x, y)[0] - logits).abs().max() > 1e-2


def test_gradients_are_those_of_the_formula(adapted):
    """From dW of the merged model: dA = scale B^T dW, and dB = scale dW A^T."""
    model, merged, (x, y) = adapted
    for either in (model, merged):
        either(x, y)[1].backward()
    found, plain, factors = named_grads(model), named_grads(merged), merged_weights(model)[1]["weights"]
    names = [name.removesuffix(".lora_a") for name in found if name.endswith("lora_a")]
    assert len(names) == 2 * 4
    for name in names:
        a, b, grad = factors[f"{name}.lora_a"], factors[f"{name}.lora_b"], plain[f"{name}.weight"]
        torch.testing.assert_close(found[f"{name}.lora_a"], 6 / 3 * b.t() @ grad, atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(found[f"{name}.lora_b"], 6 / 3 * grad @ a.t(), atol=1e-6, rtol=1e-4)
    rows = found.pop("transformer.wte.weight")
    assert (rows[:N_KNOWN] == 0).all()
    torch.testing.assert_close(rows[N_KNOWN:], plain["transformer.wte.weight"][N_KNOWN:], atol=1e-6, rtol=1e-4)
    assert all(grad is None for name, grad in found.items() if "lora" not in name)


def test_k_steps_and_a_resume_equal_n_steps_bitwise(dataset, base, tmp_path):
    options = [f"--init_from={base}", "--dropout=0.2", *LORA]
    whole = run(dataset, tmp_path / "whole", "--max_iters=8", *options)
    run(dataset, tmp_path / "parts", "--max_iters=3", *options)
    parts = run(dataset, tmp_path / "parts", "--init_from=resume", "--max_iters=8")
    assert_equal_states(whole, parts)
    assert timeless(tmp_path / "whole") == timeless(tmp_path / "parts")
    assert timeless(tmp_path / "whole")[-1]["val_loss"] < timeless(tmp_path / "whole")[0]["val_loss"]


def test_only_factors_and_new_rows_change(dataset, base, tmp_path):
    state, old = run(dataset, tmp_path, f"--init_from={base}", "--max_iters=4", *LORA), load_checkpoint(base)["model"]
    kept = state["lora"]["weights"]
    changed = {name for name, weight in old.items() if not torch.equal(state["model"][name][: len(weight)], weight)}
    assert changed == {name for name in kept if name.endswith(".weight")}  # the products
    assert all(torch.equal(kept[name], old[name]) for name in changed)
    rows = state["model"]["transformer.wte.weight"][N_KNOWN:]
    assert not torch.equal(rows[0], rows[1])
    moments = [slot["exp_avg"].numel() for slot in state["optimizer"]["state"].values()]
    n_factors = sum(weight.numel() for name, weight in kept.items() if "lora" in name)
    assert sum(moments) == n_factors + state["model"]["transformer.wte.weight"].numel()


def test_two_processes_give_the_weights_of_one(dataset, base, tmp_path):
    one = run(dataset, tmp_path / "one", f"--init_from={base}", "--max_iters=4", *LORA)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(ROOT / "train.py")]
    options = [*SMALL, f"--dataset={dataset}", f"--out_dir={tmp_path / 'two'}", f"--init_from={base}", "--max_iters=4"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *launcher, *options, *LORA], check=True, env=environment, capture_output=True)
    two = torch.load(tmp_path / "two" / "last.pt", weights_only=True)
    for name, weight in one["model"].items():
        torch.testing.assert_close(two["model"][name], weight, atol=1e-5, rtol=0)


def test_the_checkpoint_samples_exports_and_is_trained_on_as_any_other(dataset, base, tmp_path, capsys):
    options = ["--max_iters=20", "--lr_decay_iters=20", "--learning_rate=3e-2", *LORA]
    state = run(dataset, tmp_path / "out", f"--init_from={base}", *options)
    build_model(state)  # has no weights but a plain model's
    export.main([f"--out_dir={tmp_path / 'out'}", f"--hf_dir={tmp_path / 'hf'}"])
    questions, answers = write_rows(tmp_path / "q.jsonl", some_rows()), []
    asking = [f"--messages={questions}", "--temperature=0", "--max_new_tokens=9", "--device=cpu"]
    for source in (f"--out_dir={tmp_path / 'out'}", f"--init_from={tmp_path / 'hf'}"):
        capsys.readouterr()
        sample.main([source, *asking])
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1] != ""
    with pytest.raises(ValueError, match="not trained on conversations"):  # it has no markers
        sample.main([f"--init_from={base}", *asking])
    again = run(dataset, tmp_path / "again", f"--init_from={tmp_path / 'out'}", "--max_iters=1")
    assert "lora" not in again


@pytest.mark.parametrize(
    "options, named",
    [
        (["--init_from=scratch"], "lora_rank=3 cannot be combined with init_from=scratch"),
        (["--optimizer=muon", "--checkpoint_format=sharded"], "optimizer=muon, checkpoint_format=sharded"),
        (["--lora_alpha=0"], "lora_alpha=0.0 must be positive"),
    ],
)
def test_settings_that_cannot_work_are_refused(options, named, dataset, base, tmp_path):
    argv = [*SMALL, f"--dataset={dataset}", f"--out_dir={tmp_path}", f"--init_from={base}", "--max_iters=1", *LORA]
    with pytest.raises(ValueError, match=named):
        train.main([*argv, *options])


@pytest.mark.parametrize("before, after", [(LORA, "--lora_rank=4"), (LORA, "--lora_rank=0"), ((), "--lora_rank=3")])
def test_a_resume_cannot_change_the_rank(before, after, dataset, base, tmp_path):
    run(dataset, tmp_path, f"--init_from={base}", "--max_iters=1", *before)
    with pytest.raises(ValueError, match="resuming would change lora_rank"):
        run(dataset, tmp_path, "--init_from=resume", "--max_iters=2", after)
