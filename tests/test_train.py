"""The loop: exact resume, limits, signals, several processes, ignored targets, refused settings."""

import itertools
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import train
import training.evaluate
from checkpoints.build import build_model
from configurator import configure
from data.dataset import DatasetWriter, open_dataset
from data.tokenizer import CharTokenizer
from data.windows import batch, eval_batch, eval_windows
from model import GPT
from system.distributed import Ranks
from training.adamw import AdamW
from training.check import validate
from training.metrics import read_metrics
from training.optim import make_optimizer
from training.outputs import Outputs
from training.signals import StopSignals

ROOT = Path(__file__).resolve().parents[1]
TIMES = {"seconds", "eval_seconds", "time_ms", "data_wait_ms", "tokens_per_second", "mfu", "memory_mb"}
SMALL = [
    "--n_layer=2", "--n_head=2", "--n_embd=16", "--block_size=16", "--batch_size=4", "--device=cpu",
    "--gradient_accumulation_steps=2", "--warmup_iters=2", "--learning_rate=1e-2", "--lr_decay_iters=8",
    "--eval_interval=2", "--eval_iters=2", "--log_interval=1", "--dtype=float32",
]  # fmt: skip


def write_dataset(folder: Path, text: str) -> Path:
    tokenizer, cut = CharTokenizer("".join(sorted(set(text)))), int(0.8 * len(text))
    with DatasetWriter(folder, tokenizer, {"name": "test"}) as writer:
        for split, part in (("train", text[:cut]), ("val", text[cut:])):
            writer.write(split, tokenizer.encode(part), len(part.encode()))
    return folder


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    words = np.random.default_rng(0).choice(["the ", "cat ", "sat ", "on ", "a ", "mat. ", "dog "], 800)
    return write_dataset(tmp_path_factory.mktemp("dataset"), "".join(words))


def test_a_new_model_is_evaluated_on_ten_batches_and_any_other_on_all_it_should(dataset, tmp_path, monkeypatch):
    calls, read = [], training.evaluate.eval_batch

    def note(dataset, split, windows, *more):
        calls.extend([split] * len(windows))
        return read(dataset, split, windows, *more)

    monkeypatch.setattr(training.evaluate, "eval_batch", note)
    options = [f"--dataset={dataset}", *SMALL, "--batch_size=1", "--eval_iters=12", "--eval_interval=5"]
    for more, val_windows in (
        (["--max_iters=1"], 10 + 12),  # step 0, and the end
        (["--init_from=resume", "--max_iters=2"], 12),
        ([f"--init_from={tmp_path}/last.pt", "--max_iters=1", f"--out_dir={tmp_path}/tuned"], 12 + 12),
        (["--eval_only"], 12),
        (["--max_iters=0", f"--out_dir={tmp_path}/none"], 12),  # the only evaluation there is
    ):
        calls.clear()
        assert train.main([*options, f"--out_dir={tmp_path}", *more]) == 0
        assert calls.count("val") == calls.count("train") == val_windows, more


def run(dataset: Path, out_dir: Path, *options: str) -> dict:
    """Trains in this process; returns the state that is saved last."""
    assert train.main([*SMALL, f"--dataset={dataset}", f"--out_dir={out_dir}", *options]) == 0
    return torch.load(out_dir / "last.pt", weights_only=True)


def run_script(dataset: Path, out_dir: Path, *options: str, launcher: tuple[str, ...] = ()) -> subprocess.Popen:
    command = [sys.executable, *launcher, str(ROOT / "train.py"), *SMALL]
    return subprocess.Popen(
        [*command, f"--dataset={dataset}", f"--out_dir={out_dir}", *options], stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def timeless(out_dir: Path) -> list[dict]:
    return [{k: v for k, v in r.items() if k not in TIMES} for r in read_metrics(out_dir / "metrics.jsonl")]


def assert_equal_states(a: dict, b: dict) -> None:
    """Bitwise: weights, optimizer, scaler, counters."""
    assert a["model"].keys() == b["model"].keys()
    for name in a["model"]:
        assert torch.equal(a["model"][name], b["model"][name]), name
    assert a["optimizer"]["param_groups"] == b["optimizer"]["param_groups"]
    for number, moments in a["optimizer"]["state"].items():
        for key, value in moments.items():
            assert torch.equal(value, b["optimizer"]["state"][number][key]), (number, key)
    for key in ("iter_num", "best_val_loss", "scaler", "rng", "tokenizer", "meta", "model_args"):
        assert a[key] == b[key], key


@pytest.mark.parametrize("batch_size, micro_batches", [(4, 2), (2, 4)])  # of the same eight sequences
def test_a_run_is_a_plain_loop_with_torchs_adamw(dataset, tmp_path, batch_size, micro_batches):
    start = run(dataset, tmp_path / "start", "--max_iters=0")
    found = run(
        dataset, tmp_path / "out", "--max_iters=6", "--lr_decay_iters=6", "--min_lr=1e-3", "--grad_clip=0.5",
        "--weight_decay=0.3", "--beta1=0.8", "--beta2=0.9", f"--batch_size={batch_size}",
        f"--gradient_accumulation_steps={micro_batches}",
    )  # fmt: skip
    model, text, norms = build_model(start).train(), open_dataset(dataset), []
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    others = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.3}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.8, 0.9))
    for i in range(6):  # 2 steps of warmup to 1e-2, then half a cosine
        rate = 1e-2 * (i + 1) / 3 if i < 2 else 1e-3 + 9e-3 * 0.5 * (1 + math.cos(math.pi * (i - 2) / 4))
        for group in optimizer.param_groups:
            group["lr"] = rate
        x, y = map(torch.from_numpy, batch(text, "train", 1337, 8 * i + np.arange(8), 16))
        optimizer.zero_grad()
        model(x, y)[1].backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5))
        optimizer.step()
    assert max(norms) > 0.5  # something was clipped
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(found["model"][name], weight, atol=1e-5, rtol=0, msg=name)


@pytest.mark.parametrize("stop", [3, 4])  # between two evaluations, and on one
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_k_steps_and_a_resume_equal_n_steps_bitwise(dataset, tmp_path, dtype, stop):
    options = (f"--dtype={dtype}", "--dropout=0.2")
    whole = run(dataset, tmp_path / "whole", "--max_iters=8", *options)
    run(dataset, tmp_path / "parts", f"--max_iters={stop}", *options)
    parts = run(dataset, tmp_path / "parts", "--max_iters=8", "--init_from=resume", *options)
    assert_equal_states(whole, parts)
    assert timeless(tmp_path / "whole") == timeless(tmp_path / "parts")
    best = [torch.load(tmp_path / name / "ckpt.pt", weights_only=True) for name in ("whole", "parts")]
    assert_equal_states(*best)


def test_a_run_needs_no_test_split_and_never_opens_one(dataset, tmp_path):
    """The same bits with a test.bin, garbage of that name, or none; not even a resume opens it."""
    text, opened, watching = open_dataset(dataset), [], True
    splits = ("train", "val", "test")
    with DatasetWriter(tmp_path / "data", text.tokenizer, {"name": "test"}, splits=splits) as writer:
        for split in splits:
            ids = np.array(text.array("val" if split == "test" else split))
            writer.write(split, ids, len(ids))
    (tmp_path / "garbage").write_bytes(b"garbage")
    sys.addaudithook(lambda event, args: watching and event == "open" and opened.append(str(args[0])))
    whole = run(tmp_path / "data", tmp_path / "whole", "--max_iters=4")
    os.replace(tmp_path / "garbage", tmp_path / "data" / "test.bin")
    run(tmp_path / "data", tmp_path / "parts", "--max_iters=2")
    (tmp_path / "data" / "test.bin").unlink()
    parts = run(tmp_path / "data", tmp_path / "parts", "--max_iters=4", "--init_from=resume")
    watching = False
    assert_equal_states(whole, parts)
    assert_equal_states(whole, {**run(dataset, tmp_path / "plain", "--max_iters=4"), "meta": whole["meta"]})
    assert any(path.endswith("train.bin") for path in opened)
    assert not any(path.endswith("test.bin") for path in opened)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_muon_resumes_bitwise_too(dataset, tmp_path, dtype):
    options = ("--optimizer=muon", f"--dtype={dtype}", "--n_kv_head=1")
    whole = run(dataset, tmp_path / "whole", "--max_iters=6", *options)
    run(dataset, tmp_path / "parts", "--max_iters=3", *options)
    assert_equal_states(whole, run(dataset, tmp_path / "parts", "--max_iters=6", "--init_from=resume", *options))


def test_resume_needs_no_options_but_the_folder(dataset, tmp_path):
    whole = run(dataset, tmp_path / "whole", "--max_iters=6")
    run(dataset, tmp_path / "parts", "--max_iters=3")
    assert train.main([f"--out_dir={tmp_path / 'parts'}", "--init_from=resume", "--max_iters=6", "--device=cpu"]) == 0
    assert_equal_states(whole, torch.load(tmp_path / "parts" / "last.pt", weights_only=True))


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot send these signals")
@pytest.mark.parametrize(
    "number, status",
    [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 143)],  # the last when a terminal is closed
)
def test_a_signal_saves_and_the_resumed_run_equals_an_undisturbed_one(dataset, tmp_path, number, status):
    if signal.getsignal(getattr(signal, number)) == signal.SIG_IGN:
        pytest.skip(f"{number} is ignored here, as under nohup")
    process = run_script(dataset, tmp_path / "parts", "--max_iters=100000", "--eval_interval=100000")
    for line in process.stdout:
        if line.startswith("iter 5:"):
            process.stdout.close()  # as by tee, which Ctrl-C ends too
            process.send_signal(getattr(signal, number))
            break
    errors = process.stderr.read()
    assert process.wait(timeout=600) == status and "saved first" in errors, errors
    done = torch.load(tmp_path / "parts" / "last.pt", weights_only=True)["iter_num"]
    assert done > 5
    options = (f"--max_iters={done + 3}", "--eval_interval=100000")
    whole = run(dataset, tmp_path / "whole", *options)
    assert_equal_states(whole, run(dataset, tmp_path / "parts", "--init_from=resume", *options))
    assert timeless(tmp_path / "whole") == timeless(tmp_path / "parts")


def test_a_second_ctrl_c_stops_at_once_unless_it_is_the_first_one_forwarded(monkeypatch):
    monkeypatch.setattr("training.signals.time.monotonic", iter([10.0, 10.5, 11.5]).__next__)
    stop = StopSignals()
    try:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)  # torchrun sends each one twice
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    finally:
        stop.restore()
    assert stop.signal == signal.SIGINT


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot send this signal")
def test_a_signal_ends_an_evaluation_that_saves_nothing(dataset, tmp_path):
    long = ("--eval_only", "--eval_iters=1000000", "--block_size=1", "--batch_size=1", "--compile=False")
    process = run_script(dataset, tmp_path, *long, "--n_layer=64")
    for line in process.stdout:
        if "parameters on cpu" in line:
            process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=600) == -signal.SIGTERM


def test_losses_fall_and_the_log_has_nanogpts_lines(dataset, tmp_path, capsys):
    run(dataset, tmp_path, "--max_iters=60", "--eval_interval=30", "--lr_decay_iters=60")
    lines = capsys.readouterr().out.splitlines()
    steps = [line for line in lines if line.startswith("step ")]
    losses = [float(line.split("val loss ")[1].split(",")[0]) for line in steps]
    assert [line.split(":")[0] for line in steps] == ["step 0", "step 30", "step 60"]
    assert losses[-1] < 0.6 * losses[0]
    assert sum(line.startswith("iter 7: loss ") and "ms, " in line for line in lines) == 1


@pytest.fixture
def graphs(monkeypatch) -> list[torch.fx.GraphModule]:
    """What torch.compile makes, here run as it is instead of as generated code."""
    found, plain = [], torch.compile

    def keep(graph, _inputs):
        found.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda function, **options: plain(function, backend=keep, **options))
    torch._dynamo.reset()
    yield found
    torch._dynamo.reset()


def sizes(graph: torch.fx.GraphModule) -> list:
    """All sizes of its inputs: numbers, or symbols if the graph is dynamic."""
    inputs = [node.meta["example_value"] for node in graph.graph.nodes if node.op == "placeholder"]
    return [size for value in inputs for size in (value.shape if torch.is_tensor(value) else [value])]


@pytest.mark.parametrize("eval_iters", [1, 200])  # full batches alone, and the whole split, whose last one is short
def test_one_static_graph_evaluates_and_one_trains(dataset, tmp_path, graphs, eval_iters):
    run(dataset, tmp_path, "--compile=True", "--max_iters=3", "--batch_size=7", f"--eval_iters={eval_iters}")
    assert len(graphs) == 2 and all(type(size) is int for graph in graphs for size in sizes(graph))


def test_compiling_takes_no_time_of_the_run(dataset, tmp_path, monkeypatch):
    now = [0.0]

    def slow(graph, _):
        now[0] += 1000
        return graph.forward

    def clock() -> float:
        now[0] += 0.01
        return now[0]

    plain = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model, **options: plain(model, backend=slow, **options))
    monkeypatch.setattr(train.time, "perf_counter", clock)
    run(dataset, tmp_path, "--compile=True", "--max_iters=3", "--max_minutes=1")
    assert now[0] > 2000 and all(r["seconds"] < 60 for r in read_metrics(tmp_path / "metrics.jsonl"))
    torch._dynamo.reset()


def test_padding_changes_no_evaluated_loss(dataset, tmp_path):
    """Batches of 7 windows, the last one short, against all windows at once by a plain mean."""
    state = run(dataset, tmp_path, "--max_iters=3", "--batch_size=7", "--eval_iters=200")
    model, opened = build_model(state).eval(), open_dataset(dataset)
    windows = eval_windows(opened, "val", 16)
    assert len(windows) % 7
    x, y = (torch.from_numpy(part) for part in eval_batch(opened, "val", windows, 16))
    logged = [r["val_loss"] for r in read_metrics(tmp_path / "metrics.jsonl") if r["kind"] == "eval"][-1]
    assert logged == pytest.approx(model(x, y)[1].item(), rel=1e-6)


def test_bits_per_byte_and_mfu_are_of_what_is_logged_beside_them(tmp_path):
    text = "黛玉见了宝玉便说：I see. " * 300
    state = run(write_dataset(tmp_path / "data", text), tmp_path / "out", "--max_iters=2", "--peak_tflops=2")
    records, unread = read_metrics(tmp_path / "out" / "metrics.jsonl"), text[int(0.8 * len(text)) :]
    for r in (r for r in records if r["kind"] == "eval"):
        assert r["bits_per_byte"] == pytest.approx(r["val_loss"] / math.log(2) * len(unread) / len(unread.encode()))
    flops = build_model(state).flops_per_token(16)
    for r in (r for r in records if r["kind"] == "train"):
        assert r["mfu"] == pytest.approx(flops * r["tokens_per_second"] / 2e12)


def test_ignored_targets_weigh_nothing_and_the_rest_equally(dataset, tmp_path, monkeypatch):
    """The gradients of a step with random targets set to -1, against those of the mean over the others in one batch."""
    batches = []

    def batch_with_holes(dataset, split, seed, index, block_size, sampling):
        x, y = plain_batch(dataset, split, seed, index, block_size, sampling)
        holes = np.random.default_rng(int(index[0])).random(y.shape) < (0.9 if index[0] % 8 else 0.2)
        batches.append((x, np.where(holes, -1, y)))
        return batches[-1]

    plain_batch = batch
    monkeypatch.setattr("training.batches.batch", batch_with_holes)
    seen = {}

    def remember(model, *_):
        seen["model"] = model
        seen["start"] = {k: v.clone() for k, v in model.state_dict().items()}
        return make(model, *_)

    make = make_optimizer
    monkeypatch.setattr("training.start.make_optimizer", remember)
    grads = {}
    norm = torch.nn.utils.get_total_norm

    def keep(tensors, *_):
        grads.setdefault("first", [t.clone() for t in tensors])
        return norm(tensors)

    monkeypatch.setattr(torch.nn.utils, "get_total_norm", keep)
    run(dataset, tmp_path, "--max_iters=1", "--eval_interval=5")
    model = seen["model"]
    model.load_state_dict(seen["start"])
    model.zero_grad()
    x, y = (torch.from_numpy(np.concatenate(part)) for part in zip(*batches[:2], strict=True))
    model(x, y)[1].backward()
    for expected, found in zip((p.grad for p in model.parameters()), grads["first"], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    logged = [r["loss"] for r in read_metrics(tmp_path / "metrics.jsonl") if r["kind"] == "train"]
    assert logged == pytest.approx([model(x, y)[1].item()], rel=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_state(dataset, tmp_path, dtype, monkeypatch, capsys):
    run(dataset, tmp_path, "--max_iters=4", f"--dtype={dtype}")
    before = (tmp_path / "last.pt").read_bytes()
    plain = GPT.forward

    def broken(model, *args, **kwargs):
        logits, loss = plain(model, *args, **kwargs)
        return logits, loss * math.nan if model.training else loss

    monkeypatch.setattr("model.GPT.forward", broken)
    options = ["--max_iters=30", "--init_from=resume", "--log_interval=7", f"--dtype={dtype}"]
    status = train.main([*SMALL, f"--dataset={dataset}", f"--out_dir={tmp_path}", *options])
    assert status == 1
    assert "of iter 4 is not a finite number; the last good checkpoint" in capsys.readouterr().err
    assert (tmp_path / "last.pt").read_bytes() == before
    assert train.main([*SMALL, f"--dataset={dataset}", f"--out_dir={tmp_path / 'new'}", f"--dtype={dtype}"]) == 1
    assert "of iter 0 is not a finite number; nothing has been saved" in capsys.readouterr().err


@pytest.mark.parametrize(
    "option, steps",
    [("--max_tokens=1000", 8), ("--max_epochs=0.1", None), ("--compute=1e-6", None), ("--max_iters=3", 3)],
)
def test_the_first_limit_reached_ends_the_run_and_is_named(dataset, tmp_path, capsys, option, steps):
    state = run(dataset, tmp_path, option, *(["--max_iters=40"] if "iters" not in option else []))
    tokens = 2 * 4 * 16
    if "epochs" in option:
        meta = json.loads((dataset / "meta.json").read_text("utf-8"))
        steps = math.ceil(0.1 * meta["splits"]["train"]["tokens"] / tokens)
    elif "compute" in option:
        n_params = sum(t.numel() for n, t in state["model"].items() if n != "lm_head.weight")
        steps = math.ceil(1e-6 * 1e12 / n_params / tokens)
    assert state["iter_num"] == steps
    assert f"; steps 0 to {steps} ({option[2:].partition('=')[0]})\n" in capsys.readouterr().out


def test_max_minutes_ends_the_run_with_the_learning_rate_run_out(dataset, tmp_path, monkeypatch, capsys):
    seconds = itertools.count()
    monkeypatch.setattr(train.time, "perf_counter", lambda: next(seconds) / 20)
    run(dataset, tmp_path, "--max_minutes=0.06", "--max_iters=1000000", "--lr_decay_iters=1000000")
    rates = [r["lr"] for r in read_metrics(tmp_path / "metrics.jsonl") if r["kind"] == "train"]
    assert rates[-1] < 0.2 * max(rates)
    assert "; steps 0 to 1,000,000 (max_iters, or sooner by max_minutes)\n" in capsys.readouterr().out


def test_the_clock_goes_on_where_a_resumed_run_stopped(dataset, tmp_path, monkeypatch):
    seconds = itertools.count()
    monkeypatch.setattr(train.time, "perf_counter", lambda: next(seconds) / 20)
    options = ("--max_minutes=0.5", "--eval_interval=1000")
    run(dataset, tmp_path, "--max_iters=30", *options)
    run(dataset, tmp_path, "--max_iters=1000000", "--init_from=resume", *options)
    records = read_metrics(tmp_path / "metrics.jsonl")
    times = [r["seconds"] for r in records]
    assert times == sorted(times) and 0 < [r for r in records if r["iter"] == 29][0]["seconds"] < 30
    last = [r["seconds"] for r in records if r["kind"] == "train"][-2:]
    assert last[-1] >= 30 > last[-2]  # of both parts together


def test_a_step_is_saved_before_it_is_changed(dataset, tmp_path, monkeypatch):
    """The tensors of a save that has begun are waited for before the next update."""
    order = []

    def note(owner, name):
        plain = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args, **more: order.append(name) or plain(*args, **more))

    note(Outputs, "save")
    note(Outputs, "before_update")
    note(AdamW, "step")
    run(dataset, tmp_path, "--max_iters=4", "--save_interval=1")
    assert order.count("save") > 3
    assert all(order[i + 1 : i + 3] == ["before_update", "step"] for i, name in enumerate(order[:-1]) if name == "save")


def test_dropout_differs_from_step_to_step_and_from_rank_to_rank(dataset, tmp_path, monkeypatch):
    seeds, plain = [], torch.manual_seed
    monkeypatch.setattr(torch, "manual_seed", lambda seed: seeds.append(seed) or plain(seed))
    monkeypatch.setattr("train.estimate_loss", lambda *_: {"train": 1.0, "val": 1.0})  # rank 1's alone has no windows
    for rank in (0, 1):
        monkeypatch.setattr(Ranks, "rank", property(lambda _, rank=rank: rank, lambda *_: None), raising=False)
        options = [f"--dataset={dataset}", f"--out_dir={tmp_path / str(rank)}", "--max_iters=4", "--dropout=0.1"]
        assert train.main([*SMALL, *options]) == 0
    assert len(seeds) == len(set(seeds)) == 8


def test_fine_tuning_takes_the_weights_only(dataset, tmp_path):
    trained = run(dataset, tmp_path / "a", "--max_iters=4")
    options = ("--max_iters=0", f"--init_from={tmp_path / 'a' / 'last.pt'}", "--block_size=8", "--dropout=0.1")
    tuned = run(dataset, tmp_path / "b", *options)
    assert tuned["iter_num"] == 0 and tuned["model_args"]["block_size"] == 8 and not tuned["optimizer"]["state"]
    for name, weight in tuned["model"].items():
        assert torch.equal(weight, trained["model"][name][:8] if "wpe" in name else trained["model"][name])


def test_gradients_that_are_not_finite_stop_the_run_before_anything_is_saved(dataset, tmp_path, monkeypatch, capsys):
    run(dataset, tmp_path, "--max_iters=4")
    before = {path: path.read_bytes() for path in tmp_path.glob("*.pt")}
    monkeypatch.setattr(torch.nn.utils, "get_total_norm", lambda _: torch.tensor(math.inf))
    options = ["--max_iters=6", "--init_from=resume", "--log_interval=100"]
    assert train.main([*SMALL, f"--dataset={dataset}", f"--out_dir={tmp_path}", *options]) == 1
    assert "of iter 4 is not a finite number" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.glob("*.pt")} == before


def test_a_new_run_in_a_used_folder_sets_the_one_before_aside(dataset, tmp_path, capsys):
    old = run(dataset, tmp_path, "--max_iters=6")
    records, previous = timeless(tmp_path), tmp_path / "previous-1"
    new = run(dataset, tmp_path, "--max_iters=2", "--seed=7")
    assert f"the run that was in {tmp_path} is now in {previous}" in capsys.readouterr().out
    assert_equal_states(torch.load(previous / "last.pt", weights_only=True), old)
    assert timeless(previous) == records and new["rng"] == {"seed": 7, "iter_num": 2}
    assert run(dataset, tmp_path, "--max_iters=3", "--init_from=resume")["rng"] == {"seed": 7, "iter_num": 3}
    assert run(dataset, previous, "--max_iters=7", "--init_from=resume")["rng"] == {"seed": 1337, "iter_num": 7}
    tuned = run(dataset, tmp_path, "--max_iters=0", f"--init_from={tmp_path}")  # the weights that are set aside
    assert all(
        torch.equal(tuned["model"][name], new)
        for name, new in torch.load(tmp_path / "previous-2" / "ckpt.pt", weights_only=True)["model"].items()
    )


@pytest.mark.parametrize("rate, is_better", [("1e-2", True), ("3", False)])
def test_a_resumed_run_keeps_the_best_checkpoint_that_only_the_last_evaluation_saw(dataset, tmp_path, rate, is_better):
    options = ("--always_save_checkpoint=False", "--eval_interval=4")
    run(dataset, tmp_path, "--max_iters=7", *options)  # the last evaluation, after 7 steps, is not in last.pt
    best = torch.load(tmp_path / "ckpt.pt", weights_only=True)
    assert best["iter_num"] == 7
    resumed = run(dataset, tmp_path, "--max_iters=8", "--init_from=resume", f"--learning_rate={rate}", *options)
    after = torch.load(tmp_path / "ckpt.pt", weights_only=True)
    last = [r["val_loss"] for r in read_metrics(tmp_path / "metrics.jsonl") if r["kind"] == "eval"][-1]
    assert after["iter_num"] == (8 if is_better else 7) and (last < best["best_val_loss"]) == is_better
    assert resumed["best_val_loss"] == after["best_val_loss"] == min(last, best["best_val_loss"])


def test_a_best_loss_on_other_data_does_not_keep_a_checkpoint_from_being_saved(dataset, tmp_path):
    ids, harder = open_dataset(dataset).tokenizer, tmp_path / "harder"
    with DatasetWriter(harder, ids, {"name": "test"}) as writer:
        for split in ("train", "val"):
            text = "".join(np.random.default_rng(1).choice(list("the cat"), 500))
            writer.write(split, ids.encode(text), len(text))
    options = ("--always_save_checkpoint=False", "--max_iters=20", "--eval_interval=4")
    run(dataset, tmp_path / "out", *options, "--dropout=0")
    best = run(dataset, tmp_path / "out", "--init_from=resume")["best_val_loss"]
    changed = ["--allow_changed=dataset", "--init_from=resume", "--max_iters=22", "--eval_interval=1"]
    state = run(harder, tmp_path / "out", *changed)
    saved = torch.load(tmp_path / "out" / "ckpt.pt", weights_only=True)
    assert saved["iter_num"] > 20 and saved["best_val_loss"] >= state["best_val_loss"] > best
    again = run(harder, tmp_path / "out", "--init_from=resume", "--max_iters=23", "--eval_interval=1")
    assert again["best_val_loss"] > best


def test_weights_alone_are_not_resumed(dataset, tmp_path):
    run(dataset, tmp_path, "--max_iters=2")
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    for file in tmp_path.glob("*.pt"):
        file.unlink()
    torch.save({key: state[key] for key in ("model", "model_args")}, tmp_path / "ckpt.pt")
    with pytest.raises(ValueError, match="ckpt.pt has no best_val_loss and no iter_num and no optimizer: .*fine-tuned"):
        run(dataset, tmp_path, "--init_from=resume")
    assert train.main([*SMALL, f"--dataset={dataset}", f"--init_from={tmp_path}", "--eval_only"]) == 0


def test_what_a_resume_may_not_change_is_refused_in_one_list(dataset, tmp_path, capsys):
    run(dataset, tmp_path / "out", "--max_iters=2")
    other = write_dataset(tmp_path / "other", "tac on mat. sgdeh" * 200)  # of the same letters
    before = {path: path.read_bytes() for path in (tmp_path / "out").glob("*.pt")}
    argv = [*SMALL, f"--dataset={other}", f"--out_dir={tmp_path / 'out'}", "--init_from=resume", "--batch_size=8",
            "--seed=5", "--n_embd=32", "--optimizer=muon", "--learning_rate=5e-3", "--mlp_hidden=64"]  # fmt: skip
    with pytest.raises(ValueError) as caught:
        train.main(argv)
    message = str(caught.value)
    for part in ("dataset ", "batch_size 4 -> 8", "seed 1337 -> 5", "n_embd 16 -> 32", "optimizer adamw -> muon"):
        assert part in message
    assert "--allow_changed=dataset,batch_size,seed;" in message and "\n" not in message
    assert "learning_rate" not in message and "mlp_hidden" not in message  # 64 is what None stood for
    assert {path: path.read_bytes() for path in (tmp_path / "out").glob("*.pt")} == before


def test_other_settings_change_on_resume_and_are_logged(dataset, tmp_path, capsys):
    run(dataset, tmp_path, "--max_iters=2")
    capsys.readouterr()
    run(dataset, tmp_path, "--max_iters=3", "--init_from=resume", "--learning_rate=5e-3", "--dropout=0.1")
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("changed on resume")]
    assert said == ["changed on resume: dropout 0.0 -> 0.1, learning_rate 0.01 -> 0.005, max_iters 2 -> 3"]
    moved = tmp_path / "moved"
    shutil.copytree(dataset, moved)  # the same tokens in another place
    run(moved, tmp_path, "--max_iters=4", "--init_from=resume")
    assert f"dataset {dataset} -> {moved}" in capsys.readouterr().out


def test_an_allowed_change_of_the_batch_goes_on_where_the_data_stood(dataset, tmp_path, monkeypatch):
    """2 steps of 8 sequences, then 3 of 12: all numbers are drawn once, in order, and the tokens add up."""
    drawn, plain_batch = [], batch

    def remember(dataset, split, seed, index, block_size, sampling):
        drawn.append(index)
        return plain_batch(dataset, split, seed, index, block_size, sampling)

    run(dataset, tmp_path, "--max_iters=2")
    monkeypatch.setattr("training.batches.batch", remember)
    options = ("--init_from=resume", "--batch_size=6", "--allow_changed=batch_size")
    state = run(dataset, tmp_path, f"--max_tokens={(2 * 8 + 3 * 12) * 16}", "--max_iters=100", *options)
    assert state["iter_num"] == 5 and state["run"]["samples"] == 2 * 8 + 3 * 12
    assert np.concatenate(drawn)[: 3 * 12].tolist() == list(range(16, 16 + 3 * 12))
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert [r["tokens"] for r in records if r["kind"] == "train"] == [16 * n for n in (8, 16, 28, 40, 52)]
    drawn.clear()
    run(dataset, tmp_path, "--max_iters=6", "--init_from=resume", "--batch_size=6")
    assert drawn[0].tolist() == list(range(52, 58))


def test_a_checkpoint_of_nanogpt_resumes(dataset, tmp_path):
    """Its six keys and none of ours; what it cannot say is not compared."""
    whole = run(dataset, tmp_path / "whole", "--max_iters=4")
    run(dataset, tmp_path / "parts", "--max_iters=2")
    state = torch.load(tmp_path / "parts" / "last.pt", weights_only=True)
    theirs = {key: state[key] for key in ("model", "optimizer", "model_args", "iter_num", "config")}
    for path in (tmp_path / "parts").glob("*.pt"):
        path.unlink()
    torch.save({**theirs, "best_val_loss": torch.tensor(9.0)}, tmp_path / "parts" / "ckpt.pt")
    parts = run(dataset, tmp_path / "parts", "--max_iters=4", "--init_from=resume")
    for name, weight in whole["model"].items():
        assert torch.equal(weight, parts["model"][name])


@pytest.mark.parametrize("log_interval", [1, 3])
def test_clipped_steps_keep_counting_across_a_resume(dataset, tmp_path, log_interval):
    options = ("--grad_clip=0.8", "--eval_interval=100")
    run(dataset, tmp_path / "whole", "--max_iters=10", *options)
    norms = [r["grad_norm"] for r in read_metrics(tmp_path / "whole" / "metrics.jsonl") if r["kind"] == "train"]
    expected = np.cumsum([norm > 0.8 for norm in norms]).tolist()
    assert 0 < expected[-1] < 10
    run(dataset, tmp_path / "parts", "--max_iters=5", f"--log_interval={log_interval}", *options)
    run(dataset, tmp_path / "parts", "--max_iters=10", "--init_from=resume", f"--log_interval={log_interval}", *options)
    records = [r for r in read_metrics(tmp_path / "parts" / "metrics.jsonl") if r["kind"] == "train"]
    assert [(r["iter"], r["clipped"]) for r in records] == list(enumerate(expected))[::log_interval]
    tokens = json.loads((dataset / "meta.json").read_text("utf-8"))["splits"]["train"]["tokens"]
    assert all(r["epochs"] == r["tokens"] / tokens and r["skipped"] == 0 for r in records)
    assert all(r["data_wait_ms"] >= 0 and r["memory_mb"] > 50 for r in records)


def test_a_step_that_float16_overflows_is_counted_as_skipped_and_changes_no_weight(dataset, tmp_path, monkeypatch):
    plain, calls = GPT.forward, itertools.count()

    def huge_once(model, *args, **kwargs):
        logits, loss = plain(model, *args, **kwargs)
        return logits, loss * 1e36 if model.training and next(calls) == 2 * 2 else loss  # in the third step

    before = run(dataset, tmp_path, "--max_iters=2", "--dtype=float16")["model"]
    monkeypatch.setattr("model.GPT.forward", huge_once)
    calls = itertools.count(4)
    state = run(dataset, tmp_path, "--max_iters=3", "--init_from=resume", "--dtype=float16")
    assert all(torch.equal(weight, before[name]) for name, weight in state["model"].items())
    run(dataset, tmp_path, "--max_iters=5", "--init_from=resume", "--dtype=float16")
    records = [r for r in read_metrics(tmp_path / "metrics.jsonl") if r["kind"] == "train"]
    assert [r["skipped"] for r in records] == [0, 0, 1, 1, 1]
    assert records[3]["loss_scale"] == records[1]["loss_scale"] / 2


def test_a_padded_vocabulary_resumes(dataset, tmp_path):
    options = ("--vocab_size=100", "--dropout=0.1", "--seed=1234567890123")
    run(dataset, tmp_path, "--max_iters=2", *options)
    assert run(dataset, tmp_path, "--max_iters=3", "--init_from=resume", *options)["model_args"]["vocab_size"] == 100


NANOGPT_STYLE = """
import time
out_dir = 'out-shakespeare'
eval_interval = 5
eval_iters = 40
wandb_log = False
wandb_run_name = 'ft-' + str(time.time())
dataset = 'shakespeare'
init_from = 'gpt2-xl'
always_save_checkpoint = False
batch_size = 1
gradient_accumulation_steps = 5 * 8
max_iters = 20
lr_decay_iters = max_iters
learning_rate = 3e-5
decay_lr = False
device = 'cpu'
compile = False
"""


def test_a_config_file_in_nanogpts_manner_is_read(tmp_path):
    (tmp_path / "finetune.py").write_text(NANOGPT_STYLE, encoding="utf-8")
    config, explicit = configure(train.TrainConfig, [str(tmp_path / "finetune.py"), "--dtype=bfloat16"])
    assert (config.init_from, config.gradient_accumulation_steps, config.lr_decay_iters) == ("gpt2-xl", 40, 20)
    assert config.wandb_run_name.startswith("ft-") and config.compile is False and "time" not in explicit


def test_a_logger_that_does_not_start_leaves_the_earlier_run_where_it_is(dataset, tmp_path, monkeypatch):
    def refuse(**_):
        raise RuntimeError("api_key not configured (no-tty)\nmore")

    run(dataset, tmp_path, "--max_iters=2")
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=refuse))
    with pytest.raises(ValueError, match=r"wandb does not start: api_key not configured \(no-tty\); log in"):
        run(dataset, tmp_path, "--max_iters=4", "--wandb_log=True")
    assert torch.load(tmp_path / "last.pt", weights_only=True)["iter_num"] == 2
    assert not (tmp_path / "previous-1").exists()


def test_what_cannot_work_is_refused_in_one_line(dataset, tmp_path, monkeypatch):
    run(dataset, tmp_path / "out", "--max_iters=2")
    other = write_dataset(tmp_path / "other", "0123456789" * 200)
    larger = write_dataset(tmp_path / "larger", "".join(map(chr, range(33, 120))) * 20)
    short = write_dataset(tmp_path / "short", "ab" * 20)
    truncated = tmp_path / "truncated"
    truncated.mkdir()
    (truncated / "ckpt.pt").write_bytes((tmp_path / "out" / "ckpt.pt").read_bytes()[:5000])
    odd = tmp_path / "odd"
    odd.mkdir()
    for split in ("train", "val"):
        (odd / f"{split}.bin").write_bytes(bytes(1001))
    high = tmp_path / "high"
    high.mkdir()
    for split in ("train", "val"):
        np.full(1000, 700, "<u2").tofile(high / f"{split}.bin")
    altered = write_dataset(tmp_path / "altered", "01234" * 200)
    for split in ("train", "val"):
        ids = np.fromfile(altered / f"{split}.bin", "<u2")
        ids[:] = 9999
        ids.tofile(altered / f"{split}.bin")
    resume = "--init_from=resume"
    cases = [
        ([f"--dataset={other}", f"--out_dir={tmp_path / 'out'}", resume], r"change dataset .*other tokens"),
        (
            [f"--dataset={other}", f"--out_dir={tmp_path / 'out'}", resume, "--allow_changed=dataset"],
            r"change dataset .*leave that out; this dataset's ids stand for other text",
        ),
        (
            [f"--dataset={larger}", f"--out_dir={tmp_path / 'out'}", resume, "--n_layer=3"],
            r"n_layer 2 -> 3, dataset .*other tokens: leave that out; this dataset's ids",
        ),
        ([f"--init_from={tmp_path / 'out'}", "--block_size=32"], r"block_size=32.*has 16 .*--block_size=16 or less"),
        (["--learning_rate=nan", "--min_lr=inf"], r"min_lr=inf must be finite.*learning_rate=nan must be positive"),
        ([f"--dataset={other}", f"--init_from={tmp_path / 'out'}"], r"vocabulary 10.*checkpoint"),
        ([f"--dataset={short}"], r"8 tokens.*block_size=16"),
        ([f"--out_dir={truncated}", resume], r"cannot be read"),
        ([f"--out_dir={tmp_path / 'none'}", resume], r"no checkpoint"),
        ([f"--dataset={odd}", "--vocab_size=600"], r"1,001 bytes"),
        ([f"--dataset={high}", "--vocab_size=600"], r"700.*600"),
        ([f"--dataset={tmp_path / 'none'}"], r"no dataset"),
        ([f"--dataset={altered}", "--max_iters=1"], r"holds id 9999"),
        (["--out_dir=" + str(dataset / "train.bin")], r"train.bin cannot be created"),
        (["--max_tokens=inf"], r"max_tokens=inf"),
        ([f"--out_dir={tmp_path / 'out'}", resume, "--n_layer=3"], r"n_layer 2 -> 3.*cannot change"),
        ([f"--init_from={tmp_path / 'out'}", "--n_layer=3"], r"n_layer=3.*has 2"),
        (["--allow_changed=n_layer"], r"allow_changed=n_layer is not possible: choose from dataset, batch_size"),
        (["--keep_checkpoints=0"], r"keep_checkpoints=0 must be at least 1"),
        (["--n_head=3"], r"n_embd=16.*n_head=3"),
        (["--learning_rat=1"], r"learning_rat.*learning_rate"),
        (["--batch_size=many"], r"batch_size.*int"),
        (["--log_interval=0", "--beta1=1"], r"log_interval=0.*beta1=1"),
        (["--threads=100000", "--n_head=0"], r"threads=100000 must be from 1 to"),
        (["--softcap=nan"], r"softcap=nan must be positive and finite"),
        (["--cooldown=0", "--muon_learning_rate=-1"], r"muon_learning_rate=-1.*cooldown=0"),
        (["--wandb_log=True", "--max_iters=1"], r"pip install wandb"),
    ]
    if not torch.cuda.is_available():
        cases.append((["--device=cuda"], r"GPU 0 is needed"))
    monkeypatch.setitem(sys.modules, "wandb", None)
    for options, message in cases:
        with pytest.raises(ValueError, match=message) as caught:
            train.main([*SMALL, f"--dataset={dataset}", f"--out_dir={tmp_path / 'new'}", *options])
        assert "\n" not in str(caught.value)


def test_accumulation_that_does_not_divide_by_the_processes_is_refused():
    ranks = Ranks()
    ranks.world_size = 3
    with pytest.raises(ValueError, match=r"gradient_accumulation_steps=2 .*use 3"):
        validate(train.TrainConfig(gradient_accumulation_steps=2), ranks)


def test_a_refused_run_exits_with_2_and_one_line(dataset, tmp_path):
    process = run_script(dataset, tmp_path, "--bach_size=3")
    out, errors = process.communicate(timeout=600)
    assert process.returncode == 2 and out == ""
    assert len(errors.splitlines()) == 1 and "batch_size" in errors and "Traceback" not in errors


@pytest.mark.parametrize(
    "room, advice",
    [
        (2, "--batch_size=2 --gradient_accumulation_steps=4 fits; or lower"),
        (0, "lower batch_size or"),
    ],
)
def test_too_little_memory_is_one_line_that_says_what_fits(dataset, tmp_path, monkeypatch, capsys, room, advice):
    forward = GPT.forward

    def limited(self, idx, *args, **kwargs):
        if self.training and idx.size(0) > room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 TiB")
        return forward(self, idx, *args, **kwargs)

    monkeypatch.setattr("model.GPT.forward", limited)
    assert train.main([*SMALL, f"--dataset={dataset}", f"--out_dir={tmp_path / 'out'}"]) == 2
    message = f"^error: cpu: too little memory for 4 sequences of 16 tokens: .*{advice}"
    assert re.search(message, capsys.readouterr().err)


def test_the_search_for_a_batch_that_fits_uses_the_uncompiled_model(dataset, tmp_path, monkeypatch, capsys):
    class Full(torch.nn.Module):
        """A compiled model for which no batch is small enough."""

        def __init__(self, model, **_):
            super().__init__()
            self.model = model

        def forward(self, *args, **kwargs):
            if self.training:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 TiB")
            return self.model(*args, **kwargs)

    monkeypatch.setattr(torch, "compile", Full)
    assert train.main([*SMALL, f"--dataset={dataset}", f"--out_dir={tmp_path / 'out'}", "--compile=True"]) == 2
    assert "--batch_size=2 --gradient_accumulation_steps=4 fits; or lower" in capsys.readouterr().err
