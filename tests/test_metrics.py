"""metrics.jsonl: goes on after a resume without gaps or repeats, survives a cut line, says what it cannot write."""

import json
import sys
import types

import pytest

from training.metrics import Metrics, read_metrics, start_loggers

CONFIG = {"wandb_log": False, "swanlab_log": False, "tensorboard_log": False}


def write(out_dir, records, iter_num=0, last_eval_iter=-1):
    metrics = Metrics(out_dir, {}, iter_num, last_eval_iter)
    for record in records:
        metrics.write(record)
    metrics.close()


def test_a_resume_drops_what_came_after_the_saved_state(tmp_path):
    train = [{"kind": "train", "iter": i, "loss": float(i)} for i in range(6)]
    evals = [{"kind": "eval", "iter": i, "val_loss": float(i)} for i in (0, 3, 6)]
    write(tmp_path, [evals[0], *train[:3], evals[1], *train[3:], evals[2]])
    write(tmp_path, train[4:5], iter_num=4, last_eval_iter=3)
    assert read_metrics(tmp_path / "metrics.jsonl") == [evals[0], *train[:3], evals[1], *train[3:5]]


def test_a_new_run_starts_a_new_file(tmp_path):
    write(tmp_path, [{"kind": "train", "iter": 0, "loss": 1.0}])
    write(tmp_path, [])
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_a_line_that_a_kill_cut_short_is_dropped_and_a_broken_one_before_it_is_refused(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind": "train", "iter": 0}\n{"kind": "tr', encoding="utf-8")
    assert read_metrics(path) == [{"kind": "train", "iter": 0}]
    path.write_text('{"kind": "tr\n{"kind": "train", "iter": 0}\n', encoding="utf-8")
    with pytest.raises(ValueError, match="line 1"):
        read_metrics(path)


def test_what_json_cannot_say_is_left_out(tmp_path):
    write(tmp_path, [{"kind": "train", "iter": 0, "grad_norm": float("inf"), "mfu": None, "loss": 1.5}])
    line = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8")
    assert json.loads(line, parse_constant=pytest.fail) == {"kind": "train", "iter": 0, "loss": 1.5}


def logged(tmp_path, monkeypatch, package: str, iter_num: int = 0, **config) -> tuple[dict, list[tuple]]:
    """The settings, and the calls that a stand-in for a package gets of a run with two records."""
    calls, module = [], types.ModuleType(package)

    def note(name):
        return lambda *args, **options: calls.append((name, args, options)) or module  # wandb.init's is a run

    for name in ("init", "log", "finish"):
        setattr(module, name, note(name))
    writer = types.SimpleNamespace(add_scalar=note("add_scalar"), close=note("close"))
    module.SummaryWriter = lambda *args, **options: calls.append(("SummaryWriter", args, options)) or writer
    monkeypatch.setitem(sys.modules, {"tensorboard": "torch.utils.tensorboard"}.get(package, package), module)
    names = {"wandb_project": "owt", "wandb_run_name": "char", "swanlab_project": "红楼梦", "swanlab_run_name": None}
    config = CONFIG | names | {f"{package}_log": True, "n_layer": 2}
    metrics = Metrics(tmp_path, start_loggers(config), iter_num, -1)
    metrics.write({"kind": "train", "iter": 3, "loss": 1.5, "mfu": None})
    metrics.write({"kind": "eval", "iter": 3, "val_loss": 2.5})
    metrics.close()
    return config, calls


def test_swanlab_gets_the_settings_and_every_record_at_its_step(tmp_path, monkeypatch):
    config, calls = logged(tmp_path, monkeypatch, "swanlab")
    assert calls == [
        ("init", (), {"project": "红楼梦", "experiment_name": "char", "config": config}),
        ("log", ({"train/loss": 1.5},), {"step": 3}),
        ("log", ({"eval/val_loss": 2.5},), {"step": 3}),
        ("finish", (), {}),
    ]


def test_wandb_gets_the_settings_and_every_record(tmp_path, monkeypatch):
    config, calls = logged(tmp_path, monkeypatch, "wandb")
    assert calls == [
        ("init", (), {"project": "owt", "name": "char", "config": config}),
        ("log", ({"iter": 3, "train/loss": 1.5},), {}),
        ("log", ({"iter": 3, "eval/val_loss": 2.5},), {}),
        ("finish", (), {}),
    ]


def test_tensorboard_gets_every_number_at_its_step(tmp_path, monkeypatch):
    _, calls = logged(tmp_path, monkeypatch, "tensorboard")
    assert calls == [
        ("SummaryWriter", (str(tmp_path / "tensorboard"),), {}),
        ("add_scalar", ("train/loss", 1.5, 3), {}),
        ("add_scalar", ("eval/val_loss", 2.5, 3), {}),
        ("close", (), {}),
    ]


def test_tensorboard_forgets_what_followed_the_checkpoint_of_a_resume(tmp_path, monkeypatch):
    _, calls = logged(tmp_path, monkeypatch, "tensorboard", iter_num=3)  # the evaluation at 3 is not repeated
    assert calls[0] == ("SummaryWriter", (str(tmp_path / "tensorboard"),), {"purge_step": 4})


@pytest.mark.parametrize("package", ["wandb", "swanlab", "tensorboard"])
def test_an_absent_package_is_one_clear_line(monkeypatch, package):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setitem(sys.modules, "swanlab", None)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    config = {**CONFIG, f"{package}_log": True}
    with pytest.raises(ValueError, match=f"pip install {package}.*--{package}_log=False"):
        start_loggers(config)
