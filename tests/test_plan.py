"""plan.py: its predictions against the law they assume, and its proposals against train.py."""

import json
import shlex
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_bench import CONFIG, SMALL
from test_bench import letters as letters  # a fixture

import plan
import train
from configurator import configure
from model import GPTConfig

FALLING = [3.0, 2.5, 2.2]


@given(st.floats(0.5, 4), st.floats(0.1, 10), st.floats(0.05, 2), st.integers(0, 6))
def test_three_losses_on_a_power_law_give_those_to_come(end, size, power, doublings):
    losses = [end + size * 2.0 ** (-power * k) for k in range(3 + doublings)]
    assert plan.power_law(losses[:3], doublings) == pytest.approx(losses[-1], rel=1e-6)


@given(st.floats(0.5, 4), st.floats(0.1, 10), st.floats(-0.8, 2), st.integers(0, 6))
def test_three_losses_on_a_hyperbola_give_those_to_come(end, size, start, doublings):
    losses = [end + size / (2.0**k + start) for k in range(3 + doublings)]
    assert plan.hyperbola(losses[:3], doublings) == pytest.approx(losses[-1], rel=1e-6)


@pytest.mark.parametrize("losses", [[2.0, 1.8, 1.9], [2.0, 2.1, 2.1], [2.0, 2.0, 2.0]])
@pytest.mark.parametrize("curve", [plan.power_law, plan.hyperbola])
def test_a_loss_that_no_longer_falls_is_not_expected_to(losses, curve):
    assert curve(losses, 3) == losses[-1]


@pytest.mark.parametrize("curve", [plan.power_law, plan.hyperbola])
def test_runs_that_get_faster_and_faster_are_not_expected_to_go_on_so(curve):
    """As if both doublings had gained what the second did."""
    found = curve([3.0, 2.9, 2.4], 2)
    assert found == pytest.approx(curve([3.4, 2.9, 2.4], 2)) and 1.4 <= found < 2.4


@given(st.lists(st.floats(0.1, 5), min_size=3, max_size=3), st.floats(-0.2, 0.5), st.integers(0, 3))
def test_a_gap_that_stays_moves_the_range_of_the_training_loss(train, gap, doublings):
    curves = sorted(curve(train, doublings) for curve in (plan.power_law, plan.hyperbola))
    found = plan.expected_range(train, [loss + gap for loss in train], doublings)
    assert found == pytest.approx([max(0.0, loss + gap) for loss in curves], abs=1e-6)


def test_a_gap_that_grows_is_expected_to_go_on_and_one_that_shrinks_to_stay():
    curves = sorted(curve(FALLING, 2) for curve in (plan.power_law, plan.hyperbola))
    for gaps, at_the_end in (([0.0, 0.1, 0.25], 0.55), ([0.0, 0.3, 0.2], 0.2)):
        val = [loss + gap for loss, gap in zip(FALLING, gaps, strict=True)]
        assert plan.expected_range(FALLING, val, 2) == pytest.approx([loss + at_the_end for loss in curves])


def test_a_sweep_measures_every_size_and_proposes_a_command_that_train_takes(letters, capsys):
    options = [f"--dataset={letters}", *SMALL, "--eval_iters=2"]
    plan.main([CONFIG, "--minutes=0.1", "--sizes", "1x16", "2x32", "--sweep", "--json", *options])
    out = capsys.readouterr().out
    rows = json.loads(out.splitlines()[-1])["rows"]
    assert [row["size"] for row in rows] == ["1x16", "2x32"]
    for row in rows:
        assert row["parameters"] > 0 and row["steps"] > 0 and row["epochs"] > 0
        assert 0 <= row["from"] <= row["expected loss"] <= row["to"] < 4
        assert row["expected loss"] <= row["loss at 1/4"] + plan.RISE  # whatever the machine's speed made of the runs
        assert row["memory MB"] > 0 and row["dropout"] == plan.dropout_for(row["epochs"])
    best = min(rows, key=lambda row: row["expected loss"])
    command = shlex.split(next(line for line in out.splitlines() if line.startswith("python train.py")))
    config, _ = configure(train.TrainConfig, command[2:])
    assert f"{config.n_layer}x{config.n_embd}" == best["size"]
    assert config.max_minutes == pytest.approx(0.1 * best["stop"])
    assert config.dataset == str(letters) and not config.always_save_checkpoint
    assert config.dropout == best["dropout"]
    assert f"after {round(best['steps'] * best['stop']):,} steps" in out


@pytest.fixture
def planned(capsys, monkeypatch):
    """planned(losses, *options): what plan.py prints, and the rows, where the short runs of 1x16, 2x16, ... report
    losses[layers - 1], pairs of training and validation, or fail (None); planned.runs: the options of each."""
    found = {"parameters": 1, "memory MB": 9.0, "steps": 320, "epochs": 20.0, "evaluations": 20}

    def planned(losses, *options, config=CONFIG):
        left, planned.runs = [list(pairs) for pairs in losses], []

        def run(options, kind):
            planned.runs.append(options)
            layers = next(option for option in options if option.startswith("--n_layer=")).partition("=")[2]
            losses = left[int(layers) - 1].pop(0)
            if losses is None:
                raise ValueError("train.py: the loss is not a finite number")
            return [dict(zip(("train_loss", "val_loss"), losses, strict=True))]

        monkeypatch.setattr(plan, "run_train", run)
        monkeypatch.setattr(plan, "SIZES", [f"{1 + i}x16" for i in range(len(losses))])
        monkeypatch.setattr(plan, "trial", lambda options, settings, minutes: dict(found))
        plan.main([config, "--minutes=1", "--sweep", "--json", *options])
        out = capsys.readouterr().out
        return out, json.loads(out.splitlines()[-1])["rows"]

    return planned


def test_a_sweep_ends_at_a_size_that_is_clearly_worse_and_a_loss_of_0_can_be_the_lowest(planned):
    losses = [[9.0, 5.9, 3.0], [3.0, 2.89, 2.8], [1.0, 0.9, 0.8]]
    out, rows = planned([[(loss, loss) for loss in size] for size in losses])
    assert rows[0]["stop"] == 1 and "Stop when the time is over" in out and "falls steeply" not in out
    assert [row["from"] for row in rows] == [0.0, pytest.approx(2.8 - 0.09 * (9 / 11 + 81 / 121)), None]
    assert rows[0]["expected loss"] < rows[1]["expected loss"] and rows[2]["expected loss"] is None
    assert "1x16 is expected to reach the lowest loss" in out


def test_a_fourth_run_follows_where_the_second_doubling_gained_more_or_the_third_run_was_short(planned, monkeypatch):
    """The prediction is then from the last three, over one doubling."""
    for last, is_steep in ((2.0, False), (1.6, True)):
        train = [3.0, 2.9, 2.4, last]
        out, [row] = planned([[(loss, loss + 0.1) for loss in train]])
        assert [run[-4] for run in planned.runs] == [f"--max_iters={steps}" for steps in (20, 40, 80, 160)]
        expected = sorted(curve(train[1:], 1) + 0.1 for curve in (plan.power_law, plan.hyperbola))
        assert [row["from"], row["to"]] == pytest.approx(expected) and row["stop"] == 1 and row["loss at 1/2"]
        assert ("The short runs end where the loss still falls steeply" in out) == is_steep
    _, [row] = planned([[(3.0, 3.0), (2.5, 2.5), (2.2, 2.2)]])
    assert len(planned.runs) == 3 and row["loss at 1/2"] is None
    falling = [(3.0, 3.0), (2.5, 2.5), (2.2, 2.2), (2.0, 2.0)]
    for least, is_short in ((81, False), (161, True)):  # the third run has 80 steps, the fourth 160
        monkeypatch.setattr(plan, "LEAST", least)
        out, _ = planned([falling])
        assert len(planned.runs) == 4 and ("falls steeply" in out) == is_short


def test_where_the_loss_is_expected_to_rise_again_the_proposal_stops_earlier(planned):
    """Training gains 0.2, 0.1 and then less; the gap grows by 0.08 at every doubling."""
    out, [row] = planned([[(2.0, 2.1), (1.8, 1.98), (1.7, 1.96)]])
    assert row["stop"] == 1 / 4 and row["expected loss"] == row["from"] == row["to"] == 1.96
    assert "after 80 steps, which are 5.0 epochs" in out and "Stop after 1/4 of the time" in out
    assert "the best of 5 evaluations" in out
    command = shlex.split(next(line for line in out.splitlines() if line.startswith("python train.py")))
    config, _ = configure(train.TrainConfig, command[2:])
    assert config.max_minutes == 0.25 and config.eval_interval == 16 and config.dropout == 0.2


@pytest.mark.parametrize("n", [3, 4])
def test_where_the_loss_rose_in_the_short_runs_the_proposal_stops_at_the_lowest(n):
    train, val = [2.0, 1.8, 1.7, 1.65][:n], [2.5, 2.4, 2.6, 2.9][:n]
    assert plan.expectation(train, val) == {"expected loss": 2.4, "from": 2.4, "to": 2.4, "stop": 1 / 8}


def test_short_runs_have_the_dropout_of_the_proposal(planned):
    falling = [[(3.0, 3.0), (2.5, 2.5), (2.2, 2.2)]]
    for options, dropout in ((), "0.2"), (("--dropout=0.35",), "0.35"):
        out, [row] = planned(falling, *options)
        assert [run[-4:] for run in planned.runs] == [
            [f"--max_iters={steps}", "--eval_interval=1000000", "--max_minutes=None", f"--warmup_iters={warmup}"]
            for steps, warmup in ((20, 1), (40, 2), (80, 5))  # of 320 steps, and of the config's 20
        ]
        command = next(line for line in out.splitlines() if line.startswith("python train.py"))
        for words in [*planned.runs, shlex.split(command)]:
            assert [word for word in words if word.startswith("--dropout=")][-1] == f"--dropout={dropout}"


def test_every_run_decays_to_its_own_end_whatever_the_config_says(planned, tmp_path):
    config = tmp_path / "ends.py"
    with open(CONFIG, encoding="utf-8") as file:
        ends = "lr_decay_iters = 7000\nmax_epochs = 3.0\nmax_tokens = 1e5\ncompute = 1.0\n"
        config.write_text(f"{file.read()}\n{ends}", "utf-8")
    out, _ = planned([[(3.0, 3.0), (2.5, 2.5), (2.2, 2.2)]], "--lr_decay_iters=8000", config=str(config))
    command = next(line for line in out.splitlines() if line.startswith("python train.py"))
    for words in [*planned.runs, shlex.split(command)[2:]]:
        ends = configure(train.TrainConfig, words)[0]
        assert [ends.lr_decay_iters, ends.max_epochs, ends.max_tokens, ends.compute] == [None] * 4
    assert command.count("lr_decay_iters") == command.count("max_epochs") == 1


def test_a_proposal_survives_the_shell():
    row = {"epochs": 1.0, "steps": 100, "evaluations": 20, "stop": 1.0, "dropout": 0.0, "shape": {"n_layer": 2}}
    options = [CONFIG, "--dataset=my novel", "--wandb_run_name=it's"]
    command = shlex.split(plan.proposal(row, options, 2, warmup=20))
    assert command[:5] == ["python", "train.py", *options] and "--max_minutes=2" in command


def test_a_proposal_warms_up_as_the_config_says_but_for_at_most_a_tenth_of_its_steps():
    row = {"epochs": 1.0, "steps": 400, "evaluations": 20, "stop": 0.5, "dropout": 0.0, "shape": {"n_layer": 2}}
    for warmup, expected in ((0, 0), (15, 15), (100, 20)):
        command = shlex.split(plan.proposal(row, [f"--warmup_iters={warmup}"], 2, warmup))
        config, _ = configure(train.TrainConfig, command[2:])
        assert config.warmup_iters == expected


HEADS_OF_48, HEADS_OF_96 = dict(n_embd=192, n_head=4), dict(n_embd=768, n_head=8)


@pytest.mark.parametrize("pos", ["learned", "rope"])
@pytest.mark.parametrize("shape", [
    HEADS_OF_48, HEADS_OF_96, dict(n_embd=64, n_head=4), dict(n_embd=512, n_head=8, n_kv_head=4),
    dict(n_embd=768, n_head=12, n_kv_head=3), dict(n_embd=256, n_head=4, head_dim=80, n_kv_head=2),
])  # fmt: skip
def test_every_size_can_be_built_whatever_the_configs_heads(shape, pos):
    config = GPTConfig(**shape | {"pos": pos})
    for layers, width in map(plan.size, [*plan.SIZES, "2x96", "2x100", "3x200"]):
        made = plan.shape_of(layers, width, config)
        replace(config, **made).validate()
        assert made["n_embd"] == width and made.keys() >= {"n_kv_head"} & shape.keys()
    same = plan.shape_of(3, config.n_embd, config)
    assert replace(config, **same) == replace(config, n_layer=3)


def test_the_mlps_width_grows_with_the_models():
    config = GPTConfig(n_embd=256, n_head=4, mlp_hidden=768)
    assert plan.shape_of(2, 128, config)["mlp_hidden"] == 384 and plan.shape_of(2, 768, config)["mlp_hidden"] == 2304


def test_the_table_ends_before_a_size_that_fails_and_memory_may_be_unknown(letters, monkeypatch, capsys):
    def run(options):
        if "--n_embd=64" in options:
            raise ValueError("train.py: cuda:0: too little memory")
        return [{"kind": "train", "time_ms": 5.0, "epochs": 0.1}, {"kind": "eval", "eval_seconds": 0.01}]

    monkeypatch.setattr(plan, "run_train", run)
    plan.main([CONFIG, "--minutes=1", "--sizes", "1x32", "2x64", "1x32", "--json", f"--dataset={letters}"])
    out, err = capsys.readouterr()
    rows = json.loads(out.splitlines()[-1])["rows"]
    assert [(row["size"], row["memory MB"]) for row in rows] == [("1x32", None)]
    assert "stopping before 2x64: train.py: cuda:0: too little memory" in err
    with pytest.raises(ValueError, match="too little memory"):
        plan.main([CONFIG, "--minutes=1", "--sizes", "2x64", "1x32", f"--dataset={letters}"])


# of letters, whose splits have 41 and 11 windows of 16; a batch has 4, and a trial reads at most 4 batches of each
@pytest.mark.parametrize("eval_iters, few, times", [(2, 2, 1), (8, 4, (32 + 11) / (16 + 11)), (99, 4, 52 / 27)])
def test_the_steps_leave_time_for_whole_evaluations(letters, monkeypatch, capsys, eval_iters, few, times):
    def run(options):
        assert configure(train.TrainConfig, options)[0].eval_iters == few
        return [{"kind": "train", "time_ms": 5.0, "epochs": 0.1}, {"kind": "eval", "eval_seconds": seconds}]

    monkeypatch.setattr(plan, "run_train", run)
    options = [CONFIG, *SMALL, f"--dataset={letters}", f"--eval_iters={eval_iters}", "--sizes", "1x32", "--json"]
    # 20, or as many as take a tenth of a minute, or one
    for seconds, most in ((0.1, 20), (0.5, 12), (50.0 / times, 1)):
        plan.main([*options, "--minutes=1"])
        (row,) = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
        n = most if most in (1, 20) else int(most / times)
        assert row["evaluations"] == n and row["steps"] == pytest.approx((60 - n * seconds * times) / 0.005, abs=1)
    seconds = 60.0
    with pytest.raises(ValueError, match="--minutes=1 leaves no time for a step of 0.005 s beside an evaluation"):
        plan.main([*options, "--minutes=1"])


def test_a_size_whose_short_run_fails_leaves_the_other_sizes_their_losses(planned):
    falling = [(3.0, 3.0), (2.5, 2.5), (2.2, 2.2)]
    out, rows = planned([[(2.0, 2.0), None], falling])
    assert rows[0]["loss at 1/16"] == 2.0 and rows[0]["expected loss"] is None
    assert rows[1]["expected loss"] < 2.2 and "2x16 is expected to reach the lowest loss" in out
    with pytest.raises(ValueError, match="no size got through its short runs"):
        planned([[None], [None]])


@pytest.mark.parametrize(
    "options, message",
    [
        ([CONFIG, "--minutes=0"], "--minutes=0.0: expected a positive, finite number"),
        ([CONFIG, "--minutes=inf"], "--minutes=inf: expected a positive, finite number"),
        ([CONFIG, "--minutes=1", "--sizes", "big"], "'big' is not a size: expected LAYERSxWIDTH"),
        ([CONFIG, "--minutes=1", "--n_layers=3"], "n_layers"),
    ],
)
def test_what_cannot_be_planned_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        plan.main(options)
