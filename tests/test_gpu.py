"""On a CUDA device: the losses of a CPU, mixed precision within bounds, resume, memory. Skipped without one."""

import math
import re
from pathlib import Path

import pytest
import torch
from test_train import SMALL, assert_equal_states, write_dataset
from torch.nn import functional as F

import train
from inference.generate import stream
from inference.sampling import Sampling
from inference.static import CompiledStep, RecordedStep
from model import GPT, GPTConfig
from training.metrics import read_metrics
from training.optim import make_optimizer

pytestmark = pytest.mark.gpu
SHAPES = {
    "gpt2": [],
    "llama": ["--pos=rope", "--norm=rmsnorm", "--mlp=swiglu", "--n_kv_head=1", "--tie_weights=False"],
    "speed": ["--pos=rope", "--qk_norm", "--init=kaiming", "--optimizer=muon", "--muon_learning_rate=0.005"],
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("dataset"), "the cat sat on a mat. the dog ran to it. " * 200)


@pytest.fixture
def exact_matmul(monkeypatch):
    """Float32 stays float32: no TF32."""
    monkeypatch.setattr(torch, "set_float32_matmul_precision", lambda _: None)
    torch.backends.cuda.matmul.allow_tf32 = False


def run(dataset: Path, out_dir: Path, *options: str) -> list[float]:
    """Trains here; the losses of all steps. The options below stand for a small model of real widths."""
    base = [*SMALL, "--n_embd=128", "--n_head=2", "--block_size=64", "--compile=False", "--device=cuda"]
    assert train.main([*base, f"--dataset={dataset}", f"--out_dir={out_dir}", *options]) == 0
    return [record["loss"] for record in read_metrics(out_dir / "metrics.jsonl") if record["kind"] == "train"]


@pytest.mark.parametrize("shape", SHAPES)
def test_50_steps_in_float32_have_the_losses_of_a_cpu(dataset, tmp_path, exact_matmul, shape):
    options = ("--max_iters=50", "--learning_rate=1e-3", "--eval_interval=50", *SHAPES[shape])
    cpu = run(dataset, tmp_path / "cpu", *options, "--device=cpu")
    assert run(dataset, tmp_path / "cuda", *options) == pytest.approx(cpu, rel=1e-3 if shape == "speed" else 1e-4)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "options",
    [
        ["--dtype=bfloat16"],
        ["--dtype=float16"],
        ["--compile=True"],
        ["--dtype=bfloat16", "--compile=True"],
        ["--checkpoint_activations"],
    ],
)
def test_other_number_formats_and_ways_follow_float32(dataset, tmp_path, options, shape):
    common = ("--max_iters=50", "--learning_rate=1e-3", "--eval_interval=50", *SHAPES[shape])
    plain = run(dataset, tmp_path / "plain", *common)
    other = run(dataset, tmp_path / "other", *common, *options)
    half = any("float16" in option for option in options)  # bfloat16 too
    assert other == pytest.approx(plain, rel=0.03 if half else 2e-3)


def test_float16_survives_an_overflow_and_resumes_exactly(dataset, tmp_path):
    """With a scale of 2**40 they must overflow: the step is skipped, the scale halved, and the run goes on."""
    options = ("--dtype=float16", "--softcap=0", "--init=kaiming", "--learning_rate=1e-2", "--eval_interval=4")
    run(dataset, tmp_path / "whole", "--max_iters=8", *options)
    run(dataset, tmp_path / "parts", "--max_iters=4", *options)
    run(dataset, tmp_path / "parts", "--max_iters=8", "--init_from=resume", *options)
    a, b = (torch.load(tmp_path / name / "last.pt", weights_only=True) for name in ("whole", "parts"))
    for name, value in a["model"].items():
        torch.testing.assert_close(b["model"][name], value, atol=1e-4, rtol=0, msg=name)
    state = torch.load(tmp_path / "parts" / "last.pt", weights_only=True)
    state["scaler"]["scale"] = 2.0**40
    torch.save(state, tmp_path / "parts" / "last.pt")
    run(dataset, tmp_path / "parts", "--max_iters=12", "--init_from=resume", *options)
    records = [r for r in read_metrics(tmp_path / "parts" / "metrics.jsonl") if r["kind"] == "train"]
    assert records[8]["skipped"] >= 1 and records[8]["loss_scale"] == 2.0**39
    assert all(math.isfinite(record["loss"]) for record in records)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_resumed_run_equals_an_undisturbed_one(dataset, tmp_path, shape):
    options = ("--dtype=bfloat16", "--dropout=0.1", "--eval_interval=4", *SHAPES[shape])
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        run(dataset, tmp_path / "whole", "--max_iters=8", *options)
        run(dataset, tmp_path / "parts", "--max_iters=4", *options)
        run(dataset, tmp_path / "parts", "--max_iters=8", "--init_from=resume", *options)
    finally:
        torch.use_deterministic_algorithms(False)
    a, b = (torch.load(tmp_path / name / "last.pt", weights_only=True) for name in ("whole", "parts"))
    assert_equal_states(a, b)


def test_a_checkpoint_goes_from_cuda_to_a_cpu_and_back(dataset, tmp_path):
    run(dataset, tmp_path, "--max_iters=2")
    run(dataset, tmp_path, "--max_iters=4", "--init_from=resume", "--device=cpu")
    losses = run(dataset, tmp_path, "--max_iters=6", "--init_from=resume")
    assert len(losses) == 6 and losses[-1] < losses[0]


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"pos": "rope"},
        {"n_kv_head": 2},
        {"pos": "rope", "n_kv_head": 1, "qk_norm": True},
    ],
)
def test_attention_runs_on_the_flash_kernel(more):
    """With every other backend forbidden it works, and gives what the plain one gives."""
    model = GPT(GPTConfig(128, 256, 2, 4, 256, bias=False, **more)).cuda()
    idx = torch.randint(256, (2, 128), device="cuda")
    losses, gradients = [], []
    for backend in (torch.nn.attention.SDPBackend.FLASH_ATTENTION, torch.nn.attention.SDPBackend.MATH):
        with torch.nn.attention.sdpa_kernel(backend), torch.autocast("cuda", torch.bfloat16):
            losses.append(model(idx, idx)[1])
        gradients.append(torch.autograd.grad(losses[-1], model.transformer.h[0].attn.c_attn.weight)[0])
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-3, atol=0)
    assert (gradients[0] - gradients[1]).norm() < 0.02 * gradients[1].norm()


def test_fused_adamw_and_muon_are_their_cpu_versions(exact_matmul):
    steps = {}
    for device in ("cpu", "cuda"):
        model = GPT(GPTConfig(16, 64, 2, 2, 32), torch.Generator().manual_seed(0)).to(device)
        optimizer = make_optimizer(model, 1e-2, 0.1, (0.9, 0.95), muon_learning_rate=0.02)
        idx = torch.arange(16, device=device)[None]
        for _ in range(3):
            F.cross_entropy(model(idx, idx)[0].flatten(0, 1), idx.flatten()).backward()
            optimizer.step()
            optimizer.zero_grad()
        steps[device] = {name: p.detach().cpu() for name, p in model.named_parameters()}
    for name, value in steps["cpu"].items():
        torch.testing.assert_close(steps["cuda"][name], value, atol=2e-3, rtol=0, msg=name)


def test_nccl_with_one_process(dataset, tmp_path, monkeypatch):
    alone = run(dataset, tmp_path / "alone", "--max_iters=3")
    for key, value in {
        "RANK": 0,
        "LOCAL_RANK": 0,
        "WORLD_SIZE": 1,
        "LOCAL_WORLD_SIZE": 1,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": 29517,
    }.items():
        monkeypatch.setenv(key, str(value))
    assert run(dataset, tmp_path / "nccl", "--max_iters=3", "--backend=nccl") == pytest.approx(alone, rel=1e-5)


def test_too_little_memory_is_one_line_with_what_fits(dataset, tmp_path, capsys):
    torch.cuda.set_per_process_memory_fraction(2**30 / torch.cuda.get_device_properties(0).total_memory)
    try:
        options = [
            "--n_embd=128",
            "--n_head=2",
            "--block_size=64",
            "--compile=False",
            "--device=cuda",
            "--max_iters=2",
            "--batch_size=65536",
            "--eval_iters=1",
            "--eval_interval=100",
        ]
        assert train.main([*SMALL, f"--dataset={dataset}", f"--out_dir={tmp_path}", *options]) == 2
        assert re.search(r"too little memory for 65536 sequences .*--batch_size=\d+ ", capsys.readouterr().err)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


@pytest.mark.parametrize("make", [CompiledStep, RecordedStep])
def test_steps_of_fixed_shapes_write_what_the_plain_one_writes(make, capfd):
    model = GPT(GPTConfig(512, 256, 2, 2, 64, pos="rope"), torch.Generator().manual_seed(0)).cuda().eval()
    idx = torch.randint(256, (2, 10), device="cuda")
    step = make(model, 2, **{"mode": "reduce-overhead"} if make is CompiledStep else {})
    for sampling in (Sampling(temperature=0), Sampling(top_k=50, top_p=0.9, repetition_penalty=1.2)):
        draws = [[torch.Generator().manual_seed(row) for row in range(2)] for _ in range(2)]
        plain = [ids for ids, _ in stream(model, idx, 300, sampling, draws[0])]  # from 256 slots to 512
        steps = [ids for ids, _ in stream(model, idx, 300, sampling, draws[1], static=step)]
        same = (torch.stack(steps) == torch.stack(plain)).cumprod(0)  # a tie parts them for good
        assert same.float().mean() > 0.5 and same[:20].all()
    assert "note: no CUDA graph" not in capfd.readouterr().err  # all was recorded


def test_the_residual_stream_is_narrow_and_learns(dataset, tmp_path):
    """Its losses are near those with a stream in float32; test_model.py measures both ways on a CPU."""
    common = ("--max_iters=50", "--learning_rate=1e-3", "--eval_interval=50", "--dtype=bfloat16")
    narrow = run(dataset, tmp_path / "narrow", *common)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("model.NARROW_STREAM", ())
        wide = run(dataset, tmp_path / "wide", *common)
    assert narrow != wide and narrow == pytest.approx(wide, rel=0.02)
