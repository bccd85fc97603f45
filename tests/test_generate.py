"""Generation against loops without a cache, single runs, plain Python and transformers' filters."""

import copy
import itertools
import json
import math
import weakref

import pytest
import torch

import bench
from benchmarks import inference
from inference.bind import bind
from inference.cache import KVCache
from inference.generate import Decoder, generate, stream
from inference.load import make_ready
from inference.pack import can_pack, pack
from inference.quantize import LEVELS, Int8Linear, quantize
from inference.sampling import Sampling, sample_next, uniforms
from model import GPT, GPTConfig

TINY = dict(block_size=16, vocab_size=61, n_layer=2, n_head=4, n_embd=32)
SHAPES = [
    dict(pos=pos, n_kv_head=n_kv_head, qk_norm=qk_norm, smear=n_kv_head == 1)
    for pos, n_kv_head, qk_norm in itertools.product(("learned", "rope"), (4, 2, 1), (False, True))
]
GREEDY = Sampling(temperature=0)


@pytest.fixture(autouse=True)
def memory_starts_as_nan(monkeypatch):
    allocate = KVCache.__init__

    def init(cache, *args, ragged=False, **kwargs):
        allocate(cache, *args, ragged=ragged, **kwargs)
        if not ragged:
            for tensor in cache.kv:
                tensor.fill_(math.nan)

    monkeypatch.setattr(KVCache, "__init__", init)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@torch.no_grad()
def build(**shape):
    """Every parameter away from its initial value, so that each one matters."""
    model, g = GPT(GPTConfig(**TINY | shape)), seeded(1)
    for p in model.parameters():
        p.copy_(torch.randn(p.shape, generator=g) * 0.2 + (1.0 if p.dim() == 1 else 0.0))
    return model.eval()


def ids(B=2, T=16, seed=2):
    return torch.randint(0, TINY["vocab_size"], (B, T), generator=seeded(seed))


def rows(*lengths):
    return [ids(1, T, seed=T)[0] for T in lengths]


def run(model, prompts, n, sampling=GREEDY, generator=None, **kwargs):
    """(B, n) new ids."""
    return torch.stack([new for new, _ in stream(model, prompts, n, sampling, generator, **kwargs)], dim=1)


def draw_in_plain_python(logits, u, temperature):
    """The id at which the cumulative probability reaches 1 - u of the total, in double precision."""
    weights = [math.exp((x - max(logits)) / temperature) for x in logits]
    reached = itertools.accumulate(weights)
    return next(i for i, total in enumerate(reached) if total >= (1 - u) * sum(weights))


@torch.no_grad()
def naive_generate(model, idx, n, temperature=0.0, generator=None):
    """No cache: each step runs the whole context, which restarts from its last half when it is full."""
    block, out, draws = model.config.block_size, idx, uniforms(generator, len(idx), idx.device)
    context = idx[:, -block:]
    for _ in range(n):
        if context.size(1) > block:
            context = context[:, -max(1, block // 2) :]
        logits = model(context)[0][:, -1].tolist()
        if temperature:
            us = next(draws).tolist()
            new = [draw_in_plain_python(row, u, temperature) for row, u in zip(logits, us, strict=True)]
        else:
            new = [row.index(max(row)) for row in logits]
        new = torch.tensor(new)[:, None]
        context, out = torch.cat((context, new), 1), torch.cat((out, new), 1)
    return out


# ---- the cache ----


@pytest.mark.parametrize("chunks", [(16,), (1,) * 16, (5, 4, 7), (9, 1, 1, 5)], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "-".join(map(str, shape.values())))
@torch.no_grad()
def test_cached_logits_equal_uncached(shape, chunks):
    model, idx = build(**shape), ids()
    full = model(idx, idx)[0]
    cache = KVCache(model.config, 2)
    for chunk, expected in zip(idx.split(chunks, dim=1), full.split(chunks, dim=1), strict=True):
        torch.testing.assert_close(model(chunk, chunk, cache)[0], expected, atol=1e-4, rtol=0)
    assert cache.length == 16
    last, loss = model(idx)
    assert loss is None
    torch.testing.assert_close(last, full[:, -1:], atol=1e-5, rtol=0)


OTHERS = [dict(mlp="swiglu", norm="rmsnorm", bias=False, head_dim=10, pos="rope"), dict(mlp="relu2", softcap=3.0),
          dict(mlp="gelu_tanh", tie_weights=False, norm="rmsnorm", qk_norm=True, n_kv_head=2)]  # fmt: skip


@pytest.mark.parametrize("is_bound", [False, True], ids=["modules", "bound"])
@pytest.mark.parametrize("B", [1, 3])
@pytest.mark.parametrize("shape", SHAPES + OTHERS, ids=lambda shape: "-".join(map(str, shape.values())))
@torch.no_grad()
def test_steps_equal_the_uncached_model(shape, B, is_bound):
    model, idx = build(**shape), ids(B)
    full = model(idx, idx)[0]
    if is_bound:
        bind(model)
        assert torch.equal(model(idx, idx)[0], full)
    cache = KVCache(model.config, B)
    model(idx[:, :5], cache=cache)
    for t in range(5, 16):
        torch.testing.assert_close(model(idx[:, t : t + 1], cache=cache)[0][:, 0], full[:, t], atol=1e-4, rtol=0)
    assert cache.length == 16
    cache.length = 9  # and again from there
    torch.testing.assert_close(model(idx[:, 9:10], cache=cache)[0][:, 0], full[:, 9], atol=1e-4, rtol=0)


def test_a_bound_model_keeps_its_parameters_and_moves_as_one():
    model, idx = build(pos="rope", qk_norm=True), ids()
    names = [name for name, _ in model.named_parameters()]
    expected = copy.deepcopy(model).double()(idx)[0]
    bind(model)
    assert [name for name, _ in model.named_parameters()] == names
    assert torch.equal(model.double()(idx)[0], expected)


@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[-1], OTHERS[0]], ids=["gpt2", "rope", "llama"])
@torch.no_grad()
def test_steps_of_bfloat16_weights_are_as_near_to_float32_as_the_uncached_model(shape):
    model, idx = build(**shape), ids()
    exact, half = model(idx, idx)[0], copy.deepcopy(model).bfloat16()
    cache = KVCache(half.config, 2, dtype=torch.bfloat16)
    steps = torch.cat([half(idx[:, t : t + 1], cache=cache)[0] for t in range(16)], dim=1)
    error = (half(idx, idx)[0] - exact).square().mean().sqrt()
    assert (steps - exact).square().mean().sqrt() < 1.5 * error


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[-1], *OTHERS], ids=["gpt2", "rope", "llama", "relu2", "tanh"])
@torch.no_grad()
def test_packed_weights_are_as_near_to_float64_as_plain_ones(shape, dtype, monkeypatch):
    monkeypatch.setattr("inference.pack.PACKED_SIZES", {torch.float32: 0, torch.bfloat16: 0})
    model, idx = build(**shape), ids(3)
    exact = copy.deepcopy(model).double()(idx, idx)[0]
    plain = model.to(dtype)
    if not can_pack(plain.lm_head.weight):
        pytest.skip(f"no packed product of {dtype} on this machine")
    packed = copy.deepcopy(plain)
    pack(packed)
    assert not any(isinstance(module, torch.nn.Linear) for module in packed.modules())
    cache = KVCache(model.config, 3, dtype=dtype)
    steps = torch.cat([packed(idx[:, t : t + 1], cache=cache)[0] for t in range(16)], dim=1)
    error = (plain(idx, idx)[0] - exact).square().mean().sqrt()
    logits, loss = packed(idx, idx)
    assert packed(idx, idx, return_logits=False)[1] == loss
    for found in (logits, steps):
        assert (found - exact).square().mean().sqrt() < 1.5 * error


def test_each_plain_weight_is_freed_before_the_next_is_packed(monkeypatch):
    model, alive = build(tie_weights=False), []
    weights = [weakref.ref(module.weight) for module in model.modules() if isinstance(module, torch.nn.Linear)]

    def count(weight):
        alive.append(sum(weight() is not None for weight in weights))
        return weight

    monkeypatch.setattr("inference.pack.PACKED_SIZES", {torch.float32: 0, torch.bfloat16: 0})
    monkeypatch.setattr("inference.pack.can_pack", lambda weight: True)
    monkeypatch.setattr("inference.pack.LAY_OUT", count)
    pack(model)
    assert alive == list(range(len(weights), 0, -1))


def test_weights_stay_plain_where_packing_does_not_pay_or_is_not_possible(monkeypatch):
    def counts(model):
        pack(model)
        return sum(isinstance(module, torch.nn.Linear) for module in model.modules())

    everything = counts(build())  # all layers are small
    assert everything == 2 * 4 + 1
    monkeypatch.setattr("inference.pack.PACKED_SIZES", {torch.float32: 0, torch.bfloat16: 0})
    assert counts(build().half()) == counts(build().to("meta")) == everything
    monkeypatch.setattr("inference.pack.MULTIPLY", None)
    assert counts(build()) == everything


@pytest.mark.parametrize("large", [0, 2**20])  # the activations are rounded too, on x86, or not
@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[-1], OTHERS[0]], ids=["gpt2", "rope", "llama"])
@torch.no_grad()
def test_int8_weights_give_the_logits_of_their_rounded_values_alone_and_in_a_batch(shape, large, monkeypatch):
    monkeypatch.setattr("inference.quantize.ROUNDED_SIZE", large)
    model, idx = build(**shape), ids(3)
    rounded, int8 = copy.deepcopy(model), copy.deepcopy(model)
    if rounded.config.tie_weights:  # the table of tokens stays as it is
        rounded.lm_head.weight = torch.nn.Parameter(rounded.lm_head.weight.clone())
    quantize(int8)
    for linear in rounded.modules():
        if isinstance(linear, torch.nn.Linear):
            step = linear.weight.abs().amax(dim=1, keepdim=True) / 127
            linear.weight.copy_((linear.weight / step).round() * step)
    expected, noise = rounded(idx, idx)[0], 0.04  # of rounding the activations, to 8 bits or to bfloat16
    noise *= 1 if large else 127 / LEVELS  # half as many steps, twice the noise
    whole = int8(idx, idx)[0]
    cache = KVCache(model.config, 3)
    steps = torch.cat([int8(idx[:, t : t + 1], cache=cache)[0] for t in range(16)], dim=1)
    for logits in (whole, steps):
        assert (logits - expected).square().mean().sqrt() < noise * expected.std()
    assert torch.equal(run(int8, idx, 12)[1], run(int8, idx[1:2], 12)[0])
    linear, x = int8.transformer.h[0].mlp.c_fc, torch.randn(5, 32, generator=seeded())
    x[2], x[3] = 0, 1000 * x[3]
    alone = torch.cat([linear(row[None]) for row in x])
    torch.testing.assert_close(linear(x), alone, atol=1e-6, rtol=1e-6)
    assert torch.equal(alone[2], torch.zeros(len(alone[2])) if linear.bias is None else linear.bias)


def test_sums_of_rounded_products_do_not_overflow(monkeypatch):
    monkeypatch.setattr("inference.quantize.ROUNDED_SIZE", 0)
    model = build(tie_weights=False, bias=False)
    for p in model.transformer.h[0].mlp.c_fc.parameters():
        torch.nn.init.ones_(p)
    quantize(model)
    linear = model.transformer.h[0].mlp.c_fc
    for x in (torch.ones(2, 32), -torch.ones(2, 32)):  # every activation and every weight as large as they get
        torch.testing.assert_close(linear(x), 32 * x[:, :1].expand(2, 128), atol=0, rtol=1e-2)


def test_activations_with_one_large_channel_are_not_rounded():
    """Its size leaves the others too few steps: of 1/127 of it, where they are 1/1000 of it."""
    model = build(n_layer=1, n_embd=1024)
    block = model.transformer.h[0]
    block.ln_1.weight.data[0] = 1000
    quantize(model)
    if not block.mlp.c_fc.round_inputs:
        pytest.skip("no activations are rounded on this machine")
    assert not block.attn.c_attn.round_inputs


@pytest.mark.parametrize("shape", SHAPES + OTHERS, ids=lambda shape: "-".join(map(str, shape.values())))
@torch.no_grad()
def test_steps_of_rows_with_one_prompt_equal_the_uncached_model(shape):
    model, idx = build(**shape), ids(5)
    idx[:, :6] = idx[0, :6]
    full = model(idx, idx)[0]
    decoder = Decoder(model, idx[:, :6])
    decoder.cache.whole.fill_(7)
    torch.testing.assert_close(decoder.start(), full[:, 5], atol=1e-4, rtol=0)
    assert decoder.cache.shared == 6
    for t in range(6, 16):
        torch.testing.assert_close(decoder.advance(idx[:, t]), full[:, t], atol=1e-4, rtol=0)
    assert (decoder.cache.whole[:, 1:, :, :6] == 7).all()  # kept once


@torch.no_grad()
def test_a_shortened_cache_forgets_what_was_behind():
    model, idx = build(pos="rope"), ids(1)
    cache = KVCache(model.config, 1)
    model(idx, cache=cache)
    cache.length = 5
    other = ids(1, 6, seed=9)
    logits = model(other, cache=cache)[0]
    torch.testing.assert_close(logits, model(torch.cat((idx[:, :5], other), 1))[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("pos", ["learned", "rope"])
@torch.no_grad()
def test_rows_of_different_lengths_append_several_positions_at_once(pos):
    model, prompts, more = build(pos=pos, n_kv_head=2), rows(3, 7), ids(2, 4, seed=5)
    cache = KVCache(model.config, 2, ragged=True)
    model(torch.nn.utils.rnn.pad_sequence(prompts, batch_first=True), cache=cache)
    cache.length, cache.reach = torch.tensor([3, 7]), 11
    logits = model(more, cache=cache)[0]
    for row, (prompt, tail) in enumerate(zip(prompts, more, strict=True)):
        expected = model(torch.cat((prompt, tail))[None])[0][0]
        torch.testing.assert_close(logits[row], expected, atol=1e-5, rtol=0)
    assert cache.length.tolist() == [7, 11]


# ---- streams ----


@pytest.mark.parametrize("block_size", [1, 7, 16])
@pytest.mark.parametrize("prompt", [1, 16, 21])
@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[-1]], ids=["gpt2", "rope"])
def test_generation_past_block_size_equals_naive_loop(shape, prompt, block_size):
    model, idx = build(**shape | dict(block_size=block_size)), ids(T=prompt)
    greedy, drawn = naive_generate(model, idx, 70), naive_generate(model, idx, 70, 0.7, seeded())
    for way in (generate, GPT.generate):
        assert torch.equal(way(model, idx, 70, temperature=0.0), greedy)
        assert torch.equal(way(model, idx, 70, temperature=0.7, generator=seeded()), drawn)
    few = generate(model, idx, 70, temperature=0.7, top_k=9, generator=seeded())
    assert torch.equal(GPT.generate(model, idx, 70, temperature=0.7, top_k=9, generator=seeded()), few)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "-".join(map(str, shape.values())))
def test_each_row_of_a_ragged_batch_equals_its_single_run(shape):
    model, prompts = build(**shape | dict(block_size=8)), rows(3, 8, 1, 11)  # each is full at a time of its own, twice
    together = run(model, prompts, 18)
    sampled = run(model, prompts, 18, Sampling(0.9, top_k=20), [seeded(s) for s in range(4)])
    for row, prompt in enumerate(prompts):
        assert torch.equal(together[row], naive_generate(model, prompt[None], 18)[0, len(prompt) :])
        assert torch.equal(sampled[row], run(model, [prompt], 18, Sampling(0.9, top_k=20), [seeded(row)])[0])


@pytest.mark.parametrize("prompt", [1, 9, 16, 21])
@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[-1]], ids=["gpt2", "rope"])
def test_rows_with_one_prompt_equal_the_naive_loop_past_block_size(shape, prompt):
    model, idx = build(**shape), ids(1, prompt).repeat(6, 1)
    drawn = generate(model, idx, 30, temperature=0.9, generator=seeded())
    assert torch.equal(drawn, naive_generate(model, idx, 30, 0.9, seeded()))
    assert len(set(map(tuple, drawn.tolist()))) == 6


def test_a_seed_means_the_same_ids_in_any_batch():
    model, prompt = build(pos="rope"), rows(5)[0]
    filters = Sampling(1.2, top_k=30, top_p=0.9, min_p=0.02, repetition_penalty=1.3)
    eight = run(model, [prompt] * 8, 70, filters, [seeded(s) for s in range(8)])
    assert len(set(map(tuple, eight.tolist()))) == 8
    for row in range(8):
        assert torch.equal(run(model, prompt[None], 70, filters, [seeded(row)])[0], eight[row])
    assert torch.equal(run(model, prompt[None], 9, filters, seeded(3))[0], eight[3, :9])  # nor on the number of tokens


def test_int8_weights_come_with_a_note_where_they_only_save_memory(capsys):
    for device, noted in (("cpu", False), ("meta", True)):
        model = make_ready(build(), torch.device(device), "float32", "int8")
        assert isinstance(model.lm_head, Int8Linear)
        assert ("note: int8 weights save memory on meta, but cost time" in capsys.readouterr().err) == noted
        make_ready(build(), torch.device(device), "float32")
        assert not capsys.readouterr().err


def test_log_probabilities_are_the_models_own_whatever_the_filters():
    model, prompts = build(), rows(4, 8)
    sampling = Sampling(0.5, top_k=3, repetition_penalty=2.0, vocab_size=50, logprobs=True)
    pairs = list(stream(model, prompts, 6, sampling, [seeded(1), seeded(2)]))
    for row, prompt in enumerate(prompts):
        text = torch.cat((prompt, torch.stack([new[row] for new, _ in pairs])))
        logits = model(text[None], text[None])[0][0, len(prompt) - 1 : -1, :50]
        expected = logits.log_softmax(-1).gather(1, text[len(prompt) :, None])[:, 0]
        torch.testing.assert_close(torch.stack([s[row] for _, s in pairs]), expected, atol=1e-5, rtol=0)
    assert next(stream(model, prompts, 1, GREEDY))[1] is None


def test_ids_that_pad_the_vocabulary_are_never_drawn():
    model, idx = build(), ids(4, 3) % 7
    with torch.no_grad():
        model.lm_head.weight[7:] += 3.0 * torch.sign(model.transformer.ln_f.weight)
    for more in (dict(), dict(repetition_penalty=1.5), dict(top_p=0.99), dict(top_k=50), dict(min_p=1e-9)):
        assert generate(model, idx, 40, 5.0, generator=seeded(), vocab_size=7, **more)[:, 3:].max() < 7
    assert generate(model, idx, 40, 0.0, vocab_size=7)[:, 3:].max() < 7


def test_constraints_bind_until_they_are_lifted():
    model, prompts, asked = build(), rows(3, 6), []

    def constrain(drawn):
        asked.append(drawn)
        return torch.arange(61) == torch.tensor([[6], [50]]) + len(asked) if len(asked) < 4 else None

    new = run(model, prompts, 9, Sampling(3.0), seeded(), constrain=constrain)
    assert new[:, :3].tolist() == [[7, 8, 9], [51, 52, 53]]
    assert asked[0] is None and [ids.tolist() for ids in asked[1:]] == new[:, :3].T.tolist() and len(asked) == 4


def test_repetition_penalty_counts_the_prompt_and_what_was_drawn():
    """61 greedy steps under an overwhelming penalty name every id once: first those that the prompt lacks."""
    model, prompt = build(pos="rope"), torch.tensor([[3, 4, 5]])
    sampling = Sampling(0, repetition_penalty=1e9)
    with torch.no_grad():
        model.lm_head.weight.abs_()
        model.transformer.ln_f.weight.abs_()
        model.transformer.ln_f.bias.fill_(50.0)  # all logits positive
    new = run(model, prompt, 58, sampling)[0].tolist()
    assert sorted(new) == sorted(set(range(61)) - {3, 4, 5})


def test_of_equal_logits_both_ways_take_the_first():
    model, idx = build(tie_weights=False), ids(T=3)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    for way in (generate, GPT.generate):
        assert way(model, idx, 4, temperature=0, top_k=20)[:, 3:].eq(0).all()


@pytest.mark.parametrize(
    "bad", [dict(temperature=-1), dict(temperature=1e-8), dict(temperature=math.nan), dict(top_k=-1)]
)
def test_the_plain_way_refuses_numbers_out_of_range_too(bad):
    with pytest.raises(ValueError, match=f"{next(iter(bad))}={next(iter(bad.values()))}"):
        build().generate(ids(), 1, **bad)


@pytest.mark.parametrize("way", [generate, GPT.generate], ids=["cached", "plain"])
def test_edge_cases(way):
    model, idx = build(), ids(T=3)
    assert torch.equal(way(model, idx, 0), idx)
    with pytest.raises(ValueError, match="prompt is empty"):
        way(model, idx[:, :0], 1)
    with pytest.raises(ValueError, match="prompt is empty"):
        next(stream(model, [idx[0], idx[0, :0]], 1))
    with pytest.raises(IndexError):
        way(model.train(), idx + 61, 1)
    assert model.training  # also after an error
    state = torch.random.get_rng_state()
    way(model, idx, 3, generator=seeded())
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(1)
    first = way(model, idx, 9)
    torch.manual_seed(1)
    assert torch.equal(way(model, idx, 9), first)  # nanoGPT's way


# ---- one draw ----


def hugging_faces(logits, seen, temperature, top_k, top_p, min_p, repetition_penalty):
    """Probabilities (1, V) after transformers' filters in the order of its generate."""
    import transformers as hf

    filters = [hf.RepetitionPenaltyLogitsProcessor(repetition_penalty), hf.TemperatureLogitsWarper(temperature)]
    filters += [hf.TopKLogitsWarper(top_k)] if top_k else []
    filters += [hf.TopPLogitsWarper(top_p)] if top_p is not None else []
    filters += [hf.MinPLogitsWarper(min_p)] if min_p is not None else []
    return hf.LogitsProcessorList(filters)(seen.nonzero()[:, 1][None], logits).softmax(-1)[0]


GRID = list(itertools.product((1.0, 0.6), (None, 1, 8, 99), (None, 0.01, 0.7, 0.95), (None, 0.05, 0.5), (1.0, 1.7)))


@pytest.mark.parametrize("filters", GRID, ids=str)
def test_draws_follow_transformers_probabilities(filters):
    n, logits = 2000, 2 * torch.randn(1, 20, generator=seeded(4))
    seen = torch.rand(1, 20, generator=seeded(5)) < 0.4
    expected = hugging_faces(logits, seen, *filters)
    uniform = (torch.arange(n) + 0.5) / n  # evenly spread: an id's share of the draws is its probability, to 1 / n
    drawn = sample_next(logits.expand(n, -1), Sampling(*filters), uniform, seen.expand(n, -1))
    share = torch.bincount(drawn, minlength=20) / n
    torch.testing.assert_close(share, expected, atol=1.01 / n, rtol=0)
    assert not share[expected == 0].any()


def test_uniform_numbers_at_the_ends_of_their_range_draw_possible_ids():
    logits = torch.tensor([[-math.inf, 1.0, 2.0, -math.inf]]).repeat(2, 1)
    ends = torch.tensor([0.0, 1 - 2**-24])
    assert sample_next(logits, Sampling(), ends).tolist() == [2, 1]
    assert sample_next(logits, Sampling(top_p=1.0), ends).tolist() == [1, 2]


def test_greedy_rows_and_a_top_p_of_zero_take_the_likeliest():
    logits = torch.tensor([[0.0, 9.0, 1.0], [3.0, 2.0, 2.5]])
    for sampling in (GREEDY, Sampling(top_k=1), Sampling(top_p=0.0), Sampling(min_p=1.0)):
        assert sample_next(logits, sampling, torch.tensor([0.999, 0.001])).tolist() == [1, 0]


@pytest.mark.parametrize("bad", ["temperature=-1", "top_k=-1", "top_p=1.5", "min_p=-0.1", "repetition_penalty=0"])
def test_numbers_out_of_range_are_refused_by_name(bad):
    name, value = bad.split("=")
    with pytest.raises(ValueError, match=bad):
        generate(build(), ids(), 1, **{name: float(value)})


def test_a_generators_draws_do_not_depend_on_the_batch():
    three = uniforms([seeded(s) for s in (5, 6, 7)], 3, torch.device("cpu"))
    one = uniforms([seeded(6)], 1, torch.device("cpu"))
    drawn = [(next(three), next(one)) for _ in range(200)]
    assert all(many[1] == single[0] for many, single in drawn)
    assert len({float(single[0]) for _, single in drawn}) > 195


# ---- the benchmark ----


def test_the_benchmarks_tools_write_the_same_text():
    model, prompts = build(mlp="gelu_tanh", block_size=64), ids(2, 9)
    ours, theirs = (inference.make_writer(tool, "float32", model, [9, 20]) for tool in ("ours", "transformers"))
    assert ours(prompts, 12) == theirs(prompts, 12)


def test_the_benchmark_of_generation_compares_all_formats(monkeypatch, capsys):
    monkeypatch.setattr(inference, "SHAPES", {"tiny": dict(vocab_size=61, n_layer=1, n_head=2, n_embd=32)})
    clock = (n * n for n in itertools.count(1))  # differences that differ
    monkeypatch.setattr(inference, "median_seconds", lambda function, _: function() and next(clock) or next(clock))
    bench.main(["generate", "--prompt=5", "--tokens=8", "--batch=2", "--repeats=1", "--json"])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert [(row["tool"], row["weights"].strip(" *")) for row in found] == [
        ("ours", "float32"), ("ours", "bfloat16"), ("ours", "int8"), ("uncached", "float32"), ("uncached", "bfloat16"),
        ("transformers", "float32"), ("transformers", "bfloat16"),
    ]  # fmt: skip
    assert sum("*" in row["weights"] for row in found) == 1
    for row in found:
        is_ours, batches = row["tool"] == "ours", row["tool"] != "uncached"
        assert row["tokens/s"] > 0 and bool(row["times transformers"]) == is_ours == bool(row["times uncached"])
        assert bool(row["batch 2 tokens/s"]) == batches == bool(row["first token ms"])
