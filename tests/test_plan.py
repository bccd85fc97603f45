"""plan.py: its predictions against the law they assume, and its proposals against train.py."""

import json
import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_bench import CONFIG, SMALL, letters

import plan
import train
from configurator import configure

__all__ = ["letters"]  # a fixture


@given(st.floats(0.5, 4), st.floats(0.1, 10), st.floats(0.05, 2), st.integers(1, 6))
def test_three_losses_on_a_power_law_give_those_to_come(end, size, power, doublings):
    losses = [end + size * 2.0 ** (-power * k) for k in range(3 + doublings)]
    assert plan.extrapolate(losses[:3], doublings) == pytest.approx(losses[-1], rel=1e-6)


@pytest.mark.parametrize("losses", [[2.0, 1.8, 1.9], [2.0, 2.1, 2.0], [2.0, 2.0, 2.0]])
def test_a_loss_that_no_longer_falls_is_not_expected_to(losses):
    assert plan.extrapolate(losses) == losses[-1]


def test_a_sweep_measures_every_size_and_proposes_a_command_that_train_takes(letters, capsys):
    options = [f"--dataset={letters}", *SMALL, "--eval_iters=2"]
    plan.main([CONFIG, "--minutes=0.05", "--sizes", "1x16", "2x32", "--sweep", "--json", *options])
    out = capsys.readouterr().out
    rows = json.loads(out.splitlines()[-1])["rows"]
    assert [row["size"] for row in rows] == ["1x16", "2x32"]
    for row in rows:
        assert row["parameters"] > 0 and row["steps"] > 0 and row["epochs"] > 0
        assert 0 <= row["expected loss"] <= row["loss at 1/8"] < 4
    best = min(rows, key=lambda row: row["expected loss"])
    command = shlex.split(next(line for line in out.splitlines() if line.startswith("python train.py")))
    config, _ = configure(train.TrainConfig, command[2:])
    assert f"{config.n_layer}x{config.n_embd}" == best["size"] and config.max_minutes == 0.05
    assert config.dataset == str(letters) and not config.always_save_checkpoint


def test_a_sweep_ends_at_a_size_that_is_clearly_worse_and_a_loss_of_0_can_be_the_lowest(capsys, monkeypatch):
    losses = {"1": [9.0, 6.0, 3.0], "2": [3.0, 2.9, 2.8]}  # 0.0 and 2.5 are expected

    def run(options, kind):
        layers = next(option for option in options if option.startswith("--n_layer=")).partition("=")[2]
        return [{"val_loss": losses[layers].pop(0)}]

    found = {"parameters": 1, "steps": 320, "epochs": 1.0}
    monkeypatch.setattr(plan, "SIZES", ("1x16", "2x16", "3x16"))
    monkeypatch.setattr(plan, "trial", lambda options, minutes: dict(found))
    monkeypatch.setattr(plan, "run_train", run)
    plan.main([CONFIG, "--minutes=1", "--sweep", "--json"])
    out = capsys.readouterr().out
    rows = json.loads(out.splitlines()[-1])["rows"]
    assert [row["expected loss"] for row in rows] == [0.0, pytest.approx(2.5), None]
    assert "The lowest loss is expected of 1x16" in out


def test_a_proposal_survives_the_shell():
    row = {"epochs": 1.0, "steps": 100, "shape": {"n_layer": 2}}
    options = [CONFIG, "--dataset=my novel", "--wandb_run_name=it's"]
    command = shlex.split(plan.proposal(row, options, 2))
    assert command[:5] == ["python", "train.py", *options] and "--max_minutes=2" in command


@pytest.mark.parametrize(
    "options, message",
    [
        ([CONFIG, "--minutes=0"], "--minutes=0.0 must be above 0"),
        ([CONFIG, "--minutes=1", "--sizes", "big"], "'big' is no size: expected LAYERSxWIDTH"),
        ([CONFIG, "--minutes=1", "--n_layers=3"], "n_layers"),
    ],
)
def test_what_cannot_be_planned_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        plan.main(options)
