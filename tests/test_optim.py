"""Optimizers against torch's own, the schedule against its definition."""

import math
from types import SimpleNamespace

import pytest
import torch

import train
from model import GPT, GPTConfig
from training import muon
from training.muon import orthogonalize
from training.optim import learning_rate_at, learning_rate_share, load_optimizer, make_optimizer, set_rates

CONFIG = GPTConfig(block_size=8, vocab_size=16, n_layer=2, n_head=4, n_embd=16, n_kv_head=2, mlp="swiglu")


def model_with_gradients(seed: int = 0) -> GPT:
    generator = torch.Generator().manual_seed(seed)
    model = GPT(CONFIG, generator)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=generator)
    return model


def test_adamw_equals_torchs_and_decays_matrices_only():
    ours, theirs = model_with_gradients(), model_with_gradients()
    optimizer = make_optimizer(ours, 0.1, 0.3, (0.8, 0.9))
    for p in theirs.parameters():
        oracle = torch.optim.AdamW([p], lr=0.1, weight_decay=0.3 if p.dim() > 1 else 0.0, betas=(0.8, 0.9))
        oracle.step()
        oracle.step()
    optimizer.step()
    optimizer.step()
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, msg=name)


def test_muon_equals_torchs_on_every_matrix_of_the_blocks_with_q_k_and_v_apart():
    ours, theirs = model_with_gradients(), model_with_gradients()
    optimizer = make_optimizer(ours, 0.1, 0.3, (0.8, 0.9), muon_learning_rate=0.02)
    queries, keys = CONFIG.n_embd, CONFIG.kv_heads * CONFIG.head_size
    for name, p in theirs.named_parameters():
        if ".h." in name and p.dim() == 2:
            parts = p.split([queries, keys, keys]) if "c_attn" in name else [p]
            grads = p.grad.split([queries, keys, keys]) if "c_attn" in name else [p.grad]
            copies = [torch.nn.Parameter(part.detach().clone()) for part in parts]
            for copy, grad in zip(copies, grads, strict=True):
                copy.grad = grad.clone()
            oracle = torch.optim.Muon(copies, lr=0.02, weight_decay=0.3, momentum=0.95, nesterov=True)
            update = lambda p=p, copies=copies: p.data.copy_(torch.cat([c.data for c in copies]))  # noqa: E731
        else:
            decay = 0.3 if p.dim() > 1 else 0.0
            oracle, update = torch.optim.AdamW([p], lr=0.1, weight_decay=decay, betas=(0.8, 0.9)), None
        oracle.step()
        oracle.step()
        if update:
            update()
    optimizer.step()
    optimizer.step()
    for (name, a), b in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        torch.testing.assert_close(a, b[1], atol=1e-3, rtol=0, msg=name)  # both iterate in bfloat16


def test_muons_momentum_rises_as_torchs_would_if_it_were_told_so():
    ours = model_with_gradients()
    theirs = [torch.nn.Parameter(block.mlp.c_fc.weight.detach().clone()) for block in ours.transformer.h]
    optimizer = make_optimizer(ours, 0.1, 0.0, (0.8, 0.9), muon_learning_rate=0.02)
    oracle = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.0, nesterov=True)
    generator = torch.Generator().manual_seed(1)
    for iter_num, momentum in ((0, 0.85), (150, 0.9), (300, 0.95), (9999, 0.95)):
        for copy, block in zip(theirs, ours.transformer.h, strict=True):
            copy.grad = torch.randn(copy.shape, generator=generator)
            block.mlp.c_fc.weight.grad = copy.grad.clone()
        set_rates(optimizer, 0.5, iter_num)
        oracle.param_groups[0].update(lr=0.01, momentum=momentum)
        optimizer.step()
        oracle.step()
    for copy, block in zip(theirs, ours.transformer.h, strict=True):
        torch.testing.assert_close(block.mlp.c_fc.weight, copy, atol=1e-3, rtol=0)


@pytest.mark.parametrize("shape", [(3, 32, 32), (2, 64, 16), (1, 16, 64)])
def test_orthogonalize_flattens_the_singular_values_and_keeps_their_directions(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    result = orthogonalize(matrices)
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    values = torch.linalg.svdvals(result)
    assert values.max() < 1.3 and values.median() > 0.6
    assert torch.nn.functional.cosine_similarity(result.flatten(), (u @ vh).flatten(), dim=0) > 0.95


@pytest.mark.parametrize("shape", [(3, 16, 64), (2, 128, 32), (2, 24, 48), (2, 32, 32)])
@pytest.mark.parametrize("smallest", [1e-1, 1e-3, 1e-6, 0.0])
def test_orthogonalize_is_the_iteration_however_small_the_singular_values(shape, smallest):
    generator = torch.Generator().manual_seed(0)
    u, values, vh = torch.linalg.svd(torch.randn(shape, generator=generator, dtype=torch.float64), full_matrices=False)
    values = smallest + (1 - smallest) * torch.linspace(1, 0, values.size(1), dtype=torch.float64) ** 3
    expected = values / values.norm()  # the same on singular values alone, in float64
    for _ in range(5):
        expected = 3.4445 * expected - 4.7750 * expected**3 + 2.0315 * expected**5
    result = orthogonalize((u * values @ vh).float())
    torch.testing.assert_close(result.double(), u * expected @ vh, atol=1e-3, rtol=0)


@pytest.mark.parametrize("shape", [(4, 128, 512), (4, 512, 128), (2, 256, 683), (8, 64, 192)])
def test_orthogonalize_in_bfloat16_stays_close_to_the_iteration(shape):
    """Singular values 1/i are hard on it: five steps from one Gram matrix are off by several times the result."""
    generator = torch.Generator().manual_seed(0)
    u, _, vh = torch.linalg.svd(torch.randn(shape, generator=generator, dtype=torch.float64), full_matrices=False)
    values = 1 / torch.arange(1, u.size(2) + 1, dtype=torch.float64)
    expected = values / values.norm()
    for _ in range(5):
        expected = 3.4445 * expected - 4.7750 * expected**3 + 2.0315 * expected**5
    expected = u * expected @ vh
    result = orthogonalize((u * values @ vh).bfloat16())
    assert result.dtype == torch.bfloat16 and (result.double() - expected).norm() < 0.05 * expected.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_orthogonalize_is_one_static_graph_that_computes_the_same(dtype):
    torch._dynamo.reset()
    compiled = torch.compile(orthogonalize, dynamic=False, fullgraph=True, backend="aot_eager")
    for shape in ((3, 32, 32), (2, 64, 16), (1, 16, 64)):
        matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
        assert torch.equal(compiled(matrices), orthogonalize(matrices)) and compiled(matrices).dtype == dtype
    torch._dynamo.reset()


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_with_the_model_muon_is_compiled_too_but_not_on_a_cpu(monkeypatch, device):
    model = model_with_gradients()
    optimizer = make_optimizer(model, 0.1, 0.0, (0.8, 0.9), muon_learning_rate=0.02)
    config, ranks = SimpleNamespace(optimizer="muon"), SimpleNamespace(say=lambda _: None)
    device = torch.device(device)
    run = SimpleNamespace(config=config, ranks=ranks, device=device, model=model, optimizer=optimizer, fsdp=False)
    monkeypatch.setattr(torch, "compile", lambda function, **options: (function, options))
    assert train.compiled(run) == (model, {"dynamic": False})
    expected = (orthogonalize, {"dynamic": False}) if device.type == "cuda" else orthogonalize
    assert optimizer.orthogonalize == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_processes_send_each_other_the_number_format_they_compute_in(monkeypatch, dtype):
    """One of two that share the work, and is sent what it has itself."""
    sent, models = [], []

    def all_gather(parts, part):
        sent.append(part.dtype)
        parts.copy_(torch.cat([part, part]))

    monkeypatch.setattr(muon, "pick_dtype", lambda *_: dtype)
    for n_ranks in (1, 2):
        monkeypatch.setattr(muon.dist, "is_initialized", lambda n_ranks=n_ranks: n_ranks > 1)
        monkeypatch.setattr(muon.dist, "get_world_size", lambda n_ranks=n_ranks: n_ranks)
        monkeypatch.setattr(muon.dist, "get_rank", lambda: 0)
        is_new = hasattr(muon.dist, "all_gather_single")
        monkeypatch.setattr(muon.dist, "all_gather_single" if is_new else "all_gather_into_tensor", all_gather)
        models.append(model_with_gradients())
        for block in models[-1].transformer.h:  # all alike, so that what is sent is what the other would compute
            block.load_state_dict(models[-1].transformer.h[0].state_dict())
            for p, first in zip(block.parameters(), models[-1].transformer.h[0].parameters(), strict=True):
                p.grad = first.grad.clone()
            block.attn.c_proj.weight.grad = block.attn.c_attn.weight.grad[:16].clone()  # of the queries' shape
        make_optimizer(models[-1], 0.1, 0.3, (0.8, 0.9), muon_learning_rate=0.02).step()
    assert set(sent) == {dtype}
    for one, two in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-6)


def test_loading_a_state_keeps_moments_and_takes_new_settings():
    model = model_with_gradients()
    old = make_optimizer(model, 0.1, 0.3, (0.8, 0.9))
    old.step()
    state = old.state_dict()
    new = make_optimizer(model, 0.5, 0.0, (0.9, 0.95))
    load_optimizer(new, state)
    assert [group["lr"] for group in new.param_groups] == [0.5, 0.5] and new.param_groups[0]["betas"] == (0.9, 0.95)
    for p in model.parameters():
        assert torch.equal(new.state[p]["exp_avg"], old.state[p]["exp_avg"]) and new.state[p]["step"] == 1


def test_all_shapes_of_a_step_can_be_tried_without_changing_anything():
    model = model_with_gradients()
    optimizer, shapes = make_optimizer(model, 0.1, 0.3, (0.8, 0.9), muon_learning_rate=0.02), []
    optimizer.orthogonalize = lambda x: shapes.append(x.shape) or orthogonalize(x)
    before = {name: p.clone() for name, p in model.named_parameters()}
    optimizer.try_shapes()
    tried = set(shapes)
    assert tried and not optimizer.state and all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    shapes.clear()
    optimizer.step()
    assert set(shapes) == tried


def test_a_state_of_other_groups_is_refused():
    model = model_with_gradients()
    muon = make_optimizer(model, 0.1, 0.3, (0.8, 0.9), muon_learning_rate=0.02)
    with pytest.raises(ValueError, match="groups of"):
        load_optimizer(make_optimizer(model, 0.1, 0.3, (0.8, 0.9)), muon.state_dict())


def test_the_learning_rate_follows_its_definition_and_its_edges():
    def rate(iter_num, horizon=100, warmup=10, **more):
        return learning_rate_at(iter_num, horizon, 0.1, warmup, **more)

    assert 0 < rate(0) < rate(9) < 1.0 and rate(10) == 1.0
    assert rate(55) == pytest.approx(0.1 + 0.9 * 0.5) and rate(100) == rate(1000) == 0.1
    assert rate(20, time_used=1.0) == 0.1 and rate(20, schedule="constant", time_used=1.0) == 1.0
    assert rate(55, schedule="linear") == pytest.approx(0.1 + 0.9 * 0.5) and rate(100, schedule="linear") == 0.1
    wsd = [rate(iter_num, schedule="wsd", cooldown=0.2) for iter_num in (10, 82, 91, 100, 200)]
    assert wsd == pytest.approx([1.0, 1.0, 0.1 + 0.9 * 0.5, 0.1, 0.1])
    assert rate(20, time_used=0.9, schedule="wsd", cooldown=0.2) == pytest.approx(0.1 + 0.9 * 0.5)
    assert rate(0, horizon=0, warmup=0) == 1.0 and rate(5, horizon=3, warmup=5) == 1.0 and rate(6, 3, 5) == 0.1


@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd", "constant"])
def test_the_settings_of_the_schedule_are_obeyed(schedule):
    settings = {"learning_rate": 2.0, "min_lr": 0.2, "warmup_iters": 10, "lr_decay_iters": 110, "cooldown": 0.2}
    config = train.TrainConfig(schedule=schedule, **settings)
    for i in (0, 4, 9, 10, 60, 95, 110, 400):
        left = max(0.0, 1 - (i - 10) / 100)
        height = {"cosine": 0.5 - 0.5 * math.cos(math.pi * left), "linear": left, "wsd": min(1.0, left / 0.2)}
        expected = (i + 1) / 11 if i < 10 else 0.1 + 0.9 * height.get(schedule, 1.0)
        assert learning_rate_share(config, i, 1000, 0.0) == pytest.approx(expected), i
    fixed = train.TrainConfig(schedule=schedule, decay_lr=False, **settings)
    assert {learning_rate_share(fixed, i, 1000, 0.0) for i in (0, 5, 50, 500)} == {1.0}


def test_without_further_settings_a_run_warms_up_for_a_tenth_and_its_rate_never_rises_again():
    def shares(config, steps, limit, seconds_per_step=0.0):
        return [learning_rate_share(config, i, limit, i * seconds_per_step) for i in range(steps)]

    for limit, seconds in ((1000, 0.0), (600_000, 0.06)):  # by the steps, or by the clock: 1000 of them in a minute
        config = train.TrainConfig(max_minutes=1 if seconds else None)
        found = shares(config, 1001, limit, seconds)
        assert max(found) == pytest.approx(1.0, abs=0.03) and abs(found.index(max(found)) - 100) <= 1
        assert found[:100] == sorted(found[:100]) and found[-1] == pytest.approx(0.1)
    assert max(shares(train.TrainConfig(learning_rate=3e-5), 1001, 1000)) == 1.0  # though min_lr is 6e-5
    slow_start = learning_rate_share(train.TrainConfig(max_minutes=1), 1, 600_000, 30.0)
    assert slow_start == pytest.approx(2 / 21)  # a step that compiles does not end the warmup
