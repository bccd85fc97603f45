"""Several models as one, and one model that learns from several, against plain formulas in float64."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from test_eval import build, run, save, write_dataset
from test_train import SMALL, assert_equal_states, run_script
from test_train import dataset as dataset  # a fixture
from test_train import run as train_run
from torch.nn import functional as F

import eval as evaluate
import sample
import train
from checkpoints.load import load_checkpoint
from data.tokenizer import ByteTokenizer, CharTokenizer
from inference.ensemble import Ensemble
from inference.generate import stream
from inference.sampling import Sampling
from training import distill

LLAMA = dict(pos="rope", norm="rmsnorm", mlp="swiglu", n_kv_head=2, tie_weights=False, bias=False, block_size=12)


def mean_probabilities(models, idx: torch.Tensor) -> torch.Tensor:
    """(T, V) in float64, by the definition."""
    with torch.no_grad():
        return sum(model(idx, idx)[0][0].double().softmax(-1) for model in models) / len(models)


@pytest.fixture
def pair(tmp_path):
    """Two runs of different shapes over bytes, and the models in them."""
    models = [build(seed=1), build(seed=2, **LLAMA)]
    write_dataset(tmp_path / "data", ByteTokenizer(eot=255), ["宝玉笑道：“来了。”\n" * 3])
    for i, model in enumerate(models):
        save(tmp_path / f"out-{i}", model, ByteTokenizer(eot=255), config={"dataset": str(tmp_path / "data")})
    return tmp_path, models


def test_the_loss_of_two_models_is_that_of_their_mean_probabilities(pair, capsys):
    folder, models = pair
    found = run(capsys, f"--out_dir={folder / 'out-0'},{folder / 'out-1'}", "--stride=1")
    ids, nats = np.fromfile(folder / "data" / "val.bin", "<u2").astype(np.int64), []
    for i in range(1, len(ids)):
        context = torch.from_numpy(ids[max(0, i - 8) : i])[None]  # 8: the shorter of the two contexts
        nats.append(-math.log(mean_probabilities(models, context)[-1, ids[i]]))
    assert found["loss"] == pytest.approx(sum(nats) / len(nats), rel=1e-6)
    assert found["parameters"] == sum(model.get_num_params(non_embedding=False) for model in models)
    alone = [run(capsys, f"--out_dir={folder / f'out-{i}'}", "--stride=1", "--block_size=8")["loss"] for i in (0, 1)]
    assert found["loss"] <= sum(alone) / 2  # by Jensen's inequality


def test_several_models_write_what_their_mean_probabilities_say(pair):
    _, models = pair
    prompt, ids = torch.tensor([[65, 66, 67]]), []
    context = prompt
    for _ in range(5):  # to the end of the shorter context
        ids.append(int(mean_probabilities(models, context)[-1].argmax()))
        context = torch.cat([context, torch.tensor([[ids[-1]]])], dim=1)
    greedy = stream(Ensemble(models), prompt, 5, Sampling(temperature=0))
    assert [int(new) for new, _ in greedy] == ids


def test_log_probabilities_of_samples_are_the_ensembles(pair, capsys):
    folder, models = pair
    names = f"--out_dir={folder / 'out-0'},{folder / 'out-1'}"
    options = ["--start=abc", "--num_samples=2", "--max_new_tokens=4", "--logprobs", "--dtype=float32", "--device=cpu"]
    sample.main([names, *options])
    for line in capsys.readouterr().out.splitlines():
        ids = list(b"abc")
        for token in json.loads(line)["tokens"]:
            expected = mean_probabilities(models, torch.tensor([ids]))[-1, token["id"]].log()
            assert token["logprob"] == pytest.approx(expected.item(), abs=1e-4)
            ids.append(token["id"])


def test_models_with_other_ids_do_not_work_together(pair):
    folder, models = pair
    save(folder / "chars", build(vocab_size=3), CharTokenizer("abc"))
    save(folder / "other", build(), CharTokenizer("".join(map(chr, range(0x4E00, 0x4F00)))))
    with pytest.raises(ValueError, match=r"chars has 3 ids, .*out-0 256: models that work together need one tokenizer"):
        sample.main([f"--out_dir={folder / 'out-0'},{folder / 'chars'}", "--device=cpu"])
    with pytest.raises(ValueError, match="other has other ids than"):
        evaluate.main([f"--out_dir={folder / 'out-0'},{folder / 'other'}", "--device=cpu"])
    with pytest.raises(ValueError, match="names nothing before or after a comma"):
        sample.main([f"--out_dir={folder / 'out-0'},", "--device=cpu"])
    with pytest.raises(ValueError, match="--compile is for one model, not for the 2 in"):
        sample.main([f"--out_dir={folder / 'out-0'},{folder / 'out-1'}", "--start=a", "--device=cpu", "--compile"])


# ---- distillation ----


@pytest.fixture(scope="module")
def teachers(dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("teachers")
    for seed in (1, 2):
        train_run(dataset, folder / f"out-{seed}", "--max_iters=20", f"--seed={seed}", "--learning_rate=1e-2")
    return f"{folder / 'out-1'},{folder / 'out-2'}"


def test_the_objective_is_hintons_formula(dataset, teachers, tmp_path, monkeypatch):
    """Recorded in a real run, against the formula in float64 on the teachers' own probabilities."""
    seen, made = [], distill.make_objective

    def recording(run, model, loaded):
        objective = made(run, model, loaded)

        def record(x, y):
            y = y.clone()
            y[:, ::3] = -1  # ignored targets take part in neither term
            loss, states = objective(x, y), [load_checkpoint(path + "/ckpt.pt") for path in teachers.split(",")]
            models = [distill.build_model(state, dropout=0.0).eval().double() for state in states]
            with torch.no_grad():
                p = sum((model(x, x)[0] / 2).softmax(-1) for model in models) / len(models)
                logits = run.model(x, x)[0].double()
                soft = -(p * (logits / 2).log_softmax(-1)).sum(-1)[y != -1].mean()
                hard = F.cross_entropy(logits.flatten(0, 1), y.flatten(), ignore_index=-1)
            seen.append((loss.item(), (0.3 * hard + 0.7 * 4 * soft).item()))
            return loss

        return record

    monkeypatch.setattr(train, "make_objective", recording)
    options = ("--distill_weight=0.7", "--distill_temperature=2", "--max_iters=3", "--dtype=float32")
    train_run(dataset, tmp_path / "out", f"--distill_from={teachers}", *options)
    assert len(seen) == 6  # two micro-batches a step
    for found, expected in seen:
        assert found == pytest.approx(expected, rel=1e-5)


def test_a_distilled_run_resumes_bitwise(dataset, teachers, tmp_path):
    options = (f"--distill_from={teachers}", "--dtype=float32", "--dropout=0.1")
    whole = train_run(dataset, tmp_path / "whole", "--max_iters=6", *options)
    train_run(dataset, tmp_path / "parts", "--max_iters=3", *options)
    assert_equal_states(whole, train_run(dataset, tmp_path / "parts", "--max_iters=6", "--init_from=resume"))
    plain = train_run(dataset, tmp_path / "plain", "--max_iters=6", "--dtype=float32", "--dropout=0.1")
    assert not torch.equal(plain["model"]["lm_head.weight"], whole["model"]["lm_head.weight"])


def test_a_distilled_run_is_evaluated_without_its_teachers(dataset, teachers, tmp_path, monkeypatch):
    options = (f"--distill_from={teachers}", "--dtype=float32", "--max_iters=2")
    train_run(dataset, tmp_path / "out", *options)
    monkeypatch.setattr("training.distill.open_models", lambda *_: pytest.fail("they are loaded"))
    train_run(dataset, tmp_path / "out", "--init_from=resume", "--eval_only=True")


def test_two_processes_distill_as_one(dataset, teachers, tmp_path):
    options = (f"--distill_from={teachers}", "--dtype=float32", "--max_iters=4", "--gradient_accumulation_steps=2")
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    process = run_script(dataset, tmp_path / "two", *options, launcher=launcher)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    two = torch.load(tmp_path / "two" / "last.pt", weights_only=True)
    for name, tensor in train_run(dataset, tmp_path / "one", *options)["model"].items():
        torch.testing.assert_close(two["model"][name], tensor, rtol=1e-4, atol=1e-6)


def test_the_folder_of_one_teacher_may_have_a_comma(dataset, teachers, tmp_path):
    first = teachers.split(",")[0]
    shutil.copytree(first, tmp_path / "a,b")
    options = ("--max_iters=1", "--dtype=float32")
    found = train_run(dataset, tmp_path / "x", f"--distill_from={tmp_path / 'a,b'}", *options)
    assert_equal_states(found, train_run(dataset, tmp_path / "y", f"--distill_from={first}", *options))


def test_teachers_are_refused_where_nothing_tells_what_ids_stand_for(dataset, teachers, tmp_path):
    (tmp_path / "bins").mkdir()
    for split in ("train", "val"):
        shutil.copy(dataset / f"{split}.bin", tmp_path / "bins")
    with pytest.raises(ValueError, match="no tokenizer, and dataset '.*bins' has none for its 300 ids"):
        train_run(tmp_path / "bins", tmp_path / "out", f"--distill_from={teachers}", "--vocab_size=300")


def test_teachers_that_do_not_fit_are_refused_before_anything_is_touched(dataset, teachers, tmp_path):
    train_run(dataset, tmp_path / "out", "--max_iters=1")
    before = (tmp_path / "out" / "metrics.jsonl").read_bytes()
    save(tmp_path / "other", build(), ByteTokenizer(eot=255))
    for options, message in [
        ([f"--distill_from={tmp_path / 'other'}"], "other has 256 ids, the run"),
        ([f"--distill_from={teachers}", "--block_size=64"], "reads 16 at most: use --block_size=16"),
        ([f"--distill_from={tmp_path / 'absent'}"], "absent"),
        ([f"--distill_from={teachers}", "--distill_weight=2"], "distill_weight=2.0 must be from 0 to 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            train.main([*SMALL, f"--dataset={dataset}", f"--out_dir={tmp_path / 'out'}", "--device=cpu", *options])
    assert (tmp_path / "out" / "metrics.jsonl").read_bytes() == before
