"""model.py against transformers, torch's own cross-entropy and FLOP counter, naive loops and hand counts."""

import itertools
import math
import weakref
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import model as model_file
from checkpoints.build import model_args_of
from inference.cache import KVCache
from model import GPT, Dropout, GPTConfig, LinearCrossEntropy

TINY = dict(block_size=16, vocab_size=61, n_layer=2, n_head=4, n_embd=32)
LLAMA = dict(pos="rope", norm="rmsnorm", mlp="swiglu", bias=False, n_kv_head=2, tie_weights=False)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@torch.no_grad()
def randomise(module):
    """Every parameter away from its initial value: biases from 0, gains from 1, so that each one matters."""
    g = seeded(1)
    for p in module.parameters():
        p.copy_(torch.randn(p.shape, generator=g) * 0.2 + (1.0 if p.dim() == 1 else 0.0))
    return module.eval()


def build(**shape):
    return randomise(GPT(GPTConfig(**TINY | shape)))


def ids(B=2, T=16, vocab=61, seed=2):
    return torch.randint(0, vocab, (B, T), generator=seeded(seed))


def gradients(model, idx, targets, **kwargs):
    """The loss, and every parameter's gradient by name."""
    model.zero_grad()
    loss = model(idx, targets, **kwargs)[1]
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}


# ---- parity with transformers ----


def gpt2_table():
    """our name -> (Hugging Face's names to concatenate, transposed?); its Conv1D keeps (in, out)."""
    parts = ("ln_1", "ln_2", "attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    modules = [f"h.{i}.{part}" for i in (0, 1) for part in parts] + ["ln_f"]
    names = [f"transformer.{m}.{kind}" for m in modules for kind in ("weight", "bias")]
    names += ["transformer.wte.weight", "transformer.wpe.weight", "lm_head.weight"]
    return {name: ([name], "c_" in name and "weight" in name) for name in names}


def llama_table(qk_norm=False):
    table = {
        "transformer.wte.weight": ["model.embed_tokens.weight"],
        "transformer.ln_f.weight": ["model.norm.weight"],
        "lm_head.weight": ["lm_head.weight"],
    }
    for i in (0, 1):
        block = {
            "ln_1": ["input_layernorm"],
            "ln_2": ["post_attention_layernorm"],
            "attn.c_attn": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
            "attn.c_proj": ["self_attn.o_proj"],
            "mlp.c_gate": ["mlp.gate_proj"],
            "mlp.c_fc": ["mlp.up_proj"],
            "mlp.c_proj": ["mlp.down_proj"],
        }
        if qk_norm:
            block |= {"attn.q_norm": ["self_attn.q_norm"], "attn.k_norm": ["self_attn.k_norm"]}
        for ours, theirs in block.items():
            table[f"transformer.h.{i}.{ours}.weight"] = [f"model.layers.{i}.{name}.weight" for name in theirs]
    return {name: (sources, False) for name, sources in table.items()}


def hugging_face(kind, **kwargs):
    transformers = pytest.importorskip("transformers")
    shape = dict(vocab_size=61, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
    shape |= dict(max_position_embeddings=16, bos_token_id=None, eos_token_id=None)
    config = getattr(transformers, f"{kind}Config")(attn_implementation="eager", **shape, **kwargs)
    head = "GPT2LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM"
    return getattr(transformers, head)(config)


GQA = dict(num_key_value_heads=2, rms_norm_eps=1e-3)
SMALL = GQA | dict(intermediate_size=40, tie_word_embeddings=True)
OUR_GQA = LLAMA | dict(norm_eps=1e-3)
OUR_SMALL = OUR_GQA | dict(tie_weights=True, mlp_hidden=40)
SIZES, LONG = dict(rope_theta=50.0, head_dim=6), dict(rope_theta=1e6, head_dim=16)
PARITY = {  # name: kind, Hugging Face's config, ours, weights
    "gpt2": ("GPT2", dict(activation_function="gelu_new"), dict(mlp="gelu_tanh"), gpt2_table()),
    "gpt2, exact gelu": ("GPT2", dict(activation_function="gelu"), dict(mlp="gelu"), gpt2_table()),
    "llama": ("Llama", GQA | dict(intermediate_size=128, tie_word_embeddings=False), OUR_GQA, llama_table()),
    "llama, tied, rope_theta, head_dim": ("Llama", SMALL | SIZES, OUR_SMALL | SIZES, llama_table()),
    "qwen3": ("Qwen3", SMALL | LONG, OUR_SMALL | LONG | dict(qk_norm=True), llama_table(qk_norm=True)),
}


@pytest.mark.parametrize("name", PARITY)
def test_logits_loss_and_all_gradients_equal_transformers(name):
    kind, config, shape, table = PARITY[name]
    theirs, ours = randomise(hugging_face(kind, **config)), GPT(GPTConfig(**TINY | shape)).eval()
    source = dict(theirs.named_parameters(remove_duplicate=False))
    dest = dict(ours.named_parameters(remove_duplicate=False))
    assert set(table) == set(dest)
    assert sorted(itertools.chain(*(names for names, _ in table.values()))) == sorted(source)

    def gather(our_name, of):
        names, transposed = table[our_name]
        joined = torch.cat([of(source[n]) for n in names])
        return joined.t() if transposed else joined

    with torch.no_grad():
        for our_name, p in dest.items():
            weight = gather(our_name, lambda q: q)
            assert weight.shape == p.shape, our_name
            p.copy_(weight)
    idx = ids()
    logits = ours(idx, idx)[0]
    out = theirs(idx, labels=idx)  # shifts the labels itself
    assert out.logits.std() > 0.1
    assert (logits - out.logits).abs().max() < 1e-4
    loss, _ = gradients(ours, idx[:, :-1], idx[:, 1:])
    torch.testing.assert_close(loss, out.loss.detach(), atol=1e-5, rtol=1e-5)
    out.loss.backward()
    for our_name, p in dest.items():
        expected = gather(our_name, lambda q: q.grad)
        torch.testing.assert_close(p.grad, expected, atol=1e-5, rtol=1e-3, msg=our_name)


def test_smear_adds_a_share_of_the_embedding_before():
    """The oracle: a model without it, which gets changed embeddings."""
    model, idx = build(smear=True), ids()
    plain, share = build(), model.transformer.smear
    plain.load_state_dict(model.state_dict(), strict=False)

    def embed(idx, cache):
        x = plain.transformer.wte(idx)
        return x + share * torch.cat((torch.zeros_like(x[:, :1]), x[:, :-1]), dim=1)

    plain.embed = embed
    assert torch.equal(model(idx, idx)[0], plain(idx, idx)[0])


# ---- every combination ----


def covering_set():
    """32 shapes that hold every pair of values of any two switches (an orthogonal array)."""
    for mlp, a, b, c in itertools.product(("gelu", "gelu_tanh", "swiglu", "relu2"), (0, 1), (0, 1), (0, 1)):
        yield dict(
            mlp=mlp,
            pos=("learned", "rope")[a],
            norm=("layernorm", "rmsnorm")[b],
            bias=bool(c),
            tie_weights=bool(a ^ b),
            qk_norm=bool(b ^ c),
            n_kv_head=(None, 2)[a ^ c],
            softcap=(0.0, 15.0)[a ^ b ^ c],
            init=("normal", "kaiming")[a & b],
            smear=bool(a) ^ (mlp in ("gelu_tanh", "swiglu")),
        )


@pytest.mark.parametrize("shape", list(covering_set()), ids=lambda s: "-".join(map(str, s.values())))
def test_every_shape_trains_all_its_parameters_and_generates(shape):
    model = GPT(GPTConfig(**TINY | shape), seeded())
    idx = ids(4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(4):
        loss, grads = gradients(model, idx[:, :-1], idx[:, 1:])
        assert all(g.abs().sum() > 0 for g in grads.values())
        optimizer.step()
        losses.append(loss.item())
    assert abs(losses[0] - math.log(61)) < (1.0 if shape["init"] == "normal" else 2.0)
    assert losses[-1] < losses[0] - 0.2
    out = model.generate(idx[:, :3], 5, temperature=0.8, top_k=10, generator=seeded())
    assert out.shape == (4, 8) and out.dtype == torch.int64
    assert torch.equal(out[:, :3], idx[:, :3]) and 0 <= out.min() and out.max() < 61
    assert model.training  # generate gives the mode back


@pytest.mark.parametrize("shape", [dict(), LLAMA | dict(qk_norm=True)], ids=["gpt2", "llama"])
def test_logits_do_not_depend_on_later_tokens(shape):
    model, idx = build(**shape), ids()
    before = model(idx, idx)[0]
    for t in (1, 7, 15):
        changed = idx.clone()
        changed[:, t] = (idx[:, t] + 1) % 61
        after = model(changed, idx)[0]
        torch.testing.assert_close(after[:, :t], before[:, :t], atol=1e-6, rtol=0)
        assert (after[:, t:] - before[:, t:]).abs().amax(dim=2).min() > 1e-4  # on every earlier one they do


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_rope_turns_by_exact_angles_in_any_format(dtype):
    """Complex numbers in float64 are the oracle. With angles in bfloat16 it is off by up to 0.012."""
    model = build(**LLAMA | dict(block_size=2000)).to(dtype)
    x = torch.randn(1, 2000, 4, 8, generator=seeded()).to(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype != torch.float16):
        found = model_file.apply_rope(x, (model.rope_cos[:, None], model.rope_sin[:, None]))
    angles = torch.arange(2000)[:, None].double() * 10000.0 ** -(torch.arange(4).double() / 4)
    turned = torch.complex(*x.double().chunk(2, dim=-1)) * torch.polar(torch.ones(()).double(), angles)[:, None]
    torch.testing.assert_close(found.double(), torch.cat((turned.real, turned.imag), -1), atol=1e-3, rtol=0)
    for moved in (model.to("meta").to_empty(device="cpu"), model.half()):
        assert moved.rope_cos.dtype == moved.rope_sin.dtype == torch.float32
        assert torch.equal(moved.rope_cos, build(**LLAMA | dict(block_size=2000)).rope_cos)
        assert moved.rope_cos.device.type == "cpu" and "rope_cos" not in moved.state_dict()


def test_dropout_acts_in_training_only_and_in_all_four_places():
    model, idx = build(dropout=0.2), ids()
    assert torch.equal(model(idx, idx)[1], build()(idx, idx)[1])
    model.train()
    x, block = torch.randn(8, 16, 32, generator=seeded()), model.transformer.h[0]
    for module in (block.attn, block.mlp):
        assert 0.15 < (module(x) == 0).float().mean() < 0.25
    block.attn.resid_dropout.p = 0.0
    assert not torch.equal(block.attn(x), block.attn(x))  # of the attention weights
    for b in model.transformer.h:
        b.attn.attn_dropout.p = b.attn.resid_dropout.p = b.mlp.dropout.p = 0.0
    assert not torch.equal(model(idx)[0], model(idx)[0])  # of the embeddings


def test_relu2_is_the_square_of_relu():
    mlp, x = build(mlp="relu2").transformer.h[0].mlp, torch.randn(5, 32, generator=seeded())
    torch.testing.assert_close(mlp(x), mlp.c_proj(mlp.c_fc(x).clamp(min=0) ** 2))


@pytest.mark.parametrize("T", [17, 128, 300])  # more than 128 queries are computed in parts
@pytest.mark.parametrize("nkv", [1, 2, 4])
def test_dense_attention_equals_sdpa_with_gradients(nkv, T):
    g = seeded()
    shapes = [(3, heads, T, 8) for heads in (4, nkv, nkv)]
    leaves = [torch.randn(s, dtype=torch.float64, generator=g).requires_grad_() for s in shapes]
    weight = torch.randn(3, 4, T, 8, dtype=torch.float64, generator=g)
    q, k, v = leaves
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    found = model_file.dense_attention(q, k, v, Dropout(0.0))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        torch.autograd.grad((found * weight).sum(), leaves), torch.autograd.grad((expected * weight).sum(), leaves)
    )


@pytest.mark.parametrize("p", [0.001, 0.1, 0.5, 0.999])
def test_dropout_drops_the_nearest_256th_and_keeps_the_mean(p):
    x, dropout = torch.full((1003, 997), 3.0, requires_grad=True), Dropout(p)
    torch.manual_seed(0)
    y = dropout(x)
    share = min(255, max(1, round(256 * p))) / 256
    n, dropped = y.numel(), int((y == 0).sum())
    assert abs(dropped - n * share) < 5 * math.sqrt(n * share * (1 - share))
    torch.testing.assert_close(y[y != 0], torch.full((n - dropped,), 3 / (1 - share)))
    y.sum().backward()
    assert torch.equal(x.grad, y / 3)
    neighbours = ((y[:, 1:] == 0) & (y[:, :-1] == 0)).float().mean()
    assert abs(neighbours - share**2) < 0.01  # each decision is one of its own
    torch.manual_seed(0)
    assert torch.equal(dropout(x), y) and not torch.equal(dropout(x), y)
    assert dropout.eval()(x) is x


@pytest.mark.parametrize("T, dropout", [(20, 0.0), (200, 0.0), (300, 0.0), (20, 0.2), (300, 0.2)])
@pytest.mark.parametrize("more", [{}, dict(pos="rope", qk_norm=True, n_kv_head=1)])
def test_training_in_bfloat16_has_the_gradients_of_float32(T, dropout, more):
    """Short and long, by whichever way attention goes; the draws of dropout are the same in both."""
    model = build(block_size=512, dropout=dropout, **more).train()
    idx = torch.randint(0, 61, (2, T), generator=seeded())
    found = []
    for enabled in (False, True):
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = model(idx, idx, return_logits=False)[1]
        found.append((loss, torch.autograd.grad(loss, list(model.parameters()))))
    assert abs(found[0][0] - found[1][0]) < 0.02 * found[0][0]
    flat = [torch.cat([g.flatten() for g in gradients]) for _, gradients in found]
    assert F.cosine_similarity(*flat, dim=0) > 0.995


@pytest.mark.filterwarnings("error")  # mixed types in RMSNorm warn and are slow
@pytest.mark.parametrize("shape", [dict(), LLAMA | dict(qk_norm=True)], ids=["gpt2", "llama"])
def test_a_residual_stream_in_bfloat16_learns_as_one_in_float32_does(monkeypatch, shape):
    """A GPU's way, on a CPU: bfloat16 between the blocks, in training under its autocast only; weights stay float32."""
    idx, seen, losses = ids(8), [], []
    for devices in ((), ("cpu",)):
        monkeypatch.setattr(model_file, "NARROW_STREAM", devices)
        model = GPT(GPTConfig(**TINY | shape), seeded()).train()
        model.transformer.h[1].register_forward_pre_hook(lambda block, args: seen.append(args[0].dtype))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for _ in range(40):
            with torch.autocast("cpu", torch.bfloat16):
                loss = model(idx[:, :-1], idx[:, 1:], return_logits=False)[1]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert {p.dtype for p in model.parameters()} == {p.grad.dtype for p in model.parameters()} == {torch.float32}
        assert set(seen) == {torch.bfloat16 if devices else torch.float32}
        seen.clear()
    assert losses[40:] == pytest.approx(losses[:40], rel=0.03) and losses[-1] < losses[0] - 1
    model(idx)
    with torch.autocast("cpu", torch.float16):
        model(idx, idx)
        model.eval()(idx)
    assert set(seen) == {torch.float32}


# ---- losses ----


@pytest.mark.parametrize("ignored", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("softcap", [0.0, 3.0])
@pytest.mark.parametrize("rows", [600, 256, 1])
def test_linear_cross_entropy_equals_float64_cross_entropy(monkeypatch, rows, softcap, ignored):
    monkeypatch.setattr(model_file, "logits_at_once", lambda device: 1)  # 256 rows at a time
    g = seeded()
    x = torch.randn(rows, 24, generator=g, requires_grad=True)
    weight = torch.randn(61, 24, generator=g, requires_grad=True)
    targets = torch.randint(0, 61, (rows,), generator=g)
    targets[torch.rand(rows, generator=g) < ignored] = -1
    loss = LinearCrossEntropy.apply(x, weight, targets, softcap, torch.float32, True)
    (loss / 7).backward()
    x64, w64 = (t.detach().double().requires_grad_() for t in (x, weight))
    logits = x64 @ w64.t()
    logits = softcap * torch.tanh(logits / softcap) if softcap else logits
    expected = F.cross_entropy(logits, targets, ignore_index=-1, reduction="sum")
    grad_x, grad_w = torch.autograd.grad(expected, (x64, w64))
    torch.testing.assert_close(loss.double(), expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(x.grad.double(), grad_x / 7, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(weight.grad.double(), grad_w / 7, atol=1e-5, rtol=1e-4)
    frozen = x.detach().requires_grad_()
    (LinearCrossEntropy.apply(frozen, weight.detach(), targets, softcap, torch.float32, True) / 7).backward()
    assert torch.equal(frozen.grad, x.grad)  # with a head that is not trained


def test_gradients_of_a_compiled_model_are_those_of_the_plain_one():
    """The compiler fuses the loss itself: torch 2.11 made zeros of LinearCrossEntropy's gradients."""
    model, idx = build().train(), ids()
    _, expected = gradients(model, idx, idx, return_logits=False)
    model.zero_grad()
    torch.compile(model, backend="aot_eager", dynamic=False)(idx, idx, return_logits=False)[1].backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], atol=1e-6, rtol=1e-4, msg=name)
    torch._dynamo.reset()


def test_linear_cross_entropy_never_holds_more_logits_than_a_chunk(monkeypatch):
    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **kwargs or {})
            self.numel = max(self.numel, out.numel() if isinstance(out, torch.Tensor) else 0)
            return out

    monkeypatch.setattr(model_file, "logits_at_once", lambda device: 300 * 500)
    x, weight = torch.randn(1000, 8), torch.randn(500, 8, requires_grad=True)
    with Largest() as largest:
        LinearCrossEntropy.apply(x, weight, torch.zeros(1000).long(), 3.0, torch.float32, True).backward()
    assert largest.numel == 300 * 500


class LiveMemory(TorchDispatchMode):
    """peak: the most bytes that tensors made in it held at any time. rows: of the largest tensor `width` wide."""

    def __init__(self, width: int):
        super().__init__()
        self.now = self.peak = self.rows = 0
        self.width, self.known = width, weakref.WeakSet()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **kwargs or {})
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor) and (storage := tensor.untyped_storage()) not in self.known:
                self.known.add(storage)
                self.count(storage.nbytes())
                weakref.finalize(storage, self.count, -storage.nbytes())
                if tensor.dim() and tensor.size(-1) == self.width:
                    self.rows = max(self.rows, tensor.numel() // self.width)
        return out

    def count(self, n: int) -> None:
        self.now += n
        self.peak = max(self.peak, self.now)


@pytest.mark.parametrize("recompute", [False, True])
def test_the_loss_of_a_gpu_holds_a_few_logits_unless_a_compiler_fuses_it(monkeypatch, recompute):
    """A GPT-2 of one layer at 32 x 1024 on the meta device, which goes a GPU's way. All its logits are 6.6 GB."""
    knows = {"is_autocast_enabled": lambda device: False}  # torch itself does not know that device
    with torch.device("meta"):
        model, idx = GPT(GPTConfig(n_layer=1)), torch.zeros(32, 1024, dtype=torch.int64)
    model.checkpoint_activations = recompute
    memory = []
    for is_compiling in (False, True):
        knows["compiler"] = SimpleNamespace(is_compiling=is_compiling.__bool__)
        monkeypatch.setattr(model_file, "torch", SimpleNamespace(**vars(torch) | knows))
        memory.append(LiveMemory(width=50304))
        with memory[-1]:
            model(idx, idx, return_logits=False)[1].backward()
    assert memory[0].rows == 2**26 // 50304 and memory[1].rows == 32 * 1024
    assert memory[0].peak < memory[1].peak - 2 * 4 * 32 * 1024 * 50304
    x, weight = (torch.empty(n, 768, device="meta", requires_grad=True) for n in (32 * 1024, 50304))
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        with LiveMemory(width=50304) as alone:
            LinearCrossEntropy.apply(x, weight, idx.flatten(), 15.0, dtype, True).backward()
        assert alone.peak < 1.8e9


@pytest.mark.parametrize("logit", [17.0, -17.0])
def test_gradients_of_the_loss_in_float16_neither_vanish_nor_overflow(monkeypatch, logit):
    """The target is almost certain: probabilities of 4e-8. Almost impossible: a sum over rows of 80,000. As in float32,
    and within a tenth of the exact ones, or as near as float32 is: where a softmax adds in 8 lanes (AVX2), an eighth of
    such probabilities is lost beside the 1 in one of them."""
    monkeypatch.setattr(model_file, "logits_at_once", lambda device: 2**24)
    x, weight, targets = torch.full((4096, 2), 20.0), torch.zeros(500, 2), torch.full((4096,), 7)
    weight[7] = logit / 40
    leaves = x.requires_grad_(), weight.requires_grad_()
    with torch.autocast("cpu", torch.float16):
        loss = LinearCrossEntropy.apply(*leaves, targets, 0.0, torch.float16, True)
    float32 = F.cross_entropy(x @ weight.t(), targets, reduction="sum")
    exact = F.cross_entropy(x.double() @ weight.double().t(), targets, reduction="sum")
    for found, near, true in zip(
        *(torch.autograd.grad(value, leaves) for value in (loss, float32, exact)), strict=True
    ):
        torch.testing.assert_close(found, near, rtol=0.01, atol=0)
        assert ((found - true).abs() <= torch.maximum(0.1 * true.abs(), (near - true).abs() + 0.01 * true.abs())).all()


@pytest.mark.parametrize("softcap", [0.0, 5.0])
@pytest.mark.parametrize("vocab_size", [1024, 1025, 1039, 1040])
def test_the_loss_of_a_padded_vocabulary_is_that_of_the_ids_there_are(vocab_size, softcap):
    generator = torch.Generator().manual_seed(0)
    x, weight = (3 * torch.randn(n, 8, generator=generator, requires_grad=True) for n in (300, vocab_size))
    targets = torch.randint(vocab_size, (300,), generator=generator)
    leaves = x, weight
    loss = LinearCrossEntropy.apply(*leaves, targets, softcap, torch.float32, True)
    logits = x.double() @ weight.double().t()
    logits = softcap * torch.tanh(logits / softcap) if softcap else logits
    wide = F.cross_entropy(logits, targets, reduction="sum")
    torch.testing.assert_close(loss.double(), wide, rtol=1e-5, atol=0)
    torch.testing.assert_close(
        torch.autograd.grad(loss, leaves), torch.autograd.grad(wide, leaves), rtol=1e-3, atol=1e-4
    )
    with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
        LinearCrossEntropy.apply(*leaves, torch.full_like(targets, vocab_size), softcap, torch.float32, True)


@pytest.mark.parametrize("softcap", [0.0, 5.0])
@pytest.mark.parametrize("tie_weights", [False, True])
def test_loss_without_logits_equals_loss_with_logits(monkeypatch, tie_weights, softcap):
    monkeypatch.setattr(model_file, "logits_at_once", lambda device: 1)
    model = build(tie_weights=tie_weights, softcap=softcap)
    idx, targets = ids(20), ids(20, seed=3)
    for hidden in (slice(0, 0), slice(3, 9), slice(None)):
        targets[:, hidden] = -1
        loss, grads = gradients(model, idx, targets)
        chunked, chunked_grads = gradients(model, idx, targets, return_logits=False)
        logits = model(idx, targets)[0].flatten(0, 1)  # capped already
        mean = F.cross_entropy(logits, targets.flatten(), ignore_index=-1).nan_to_num()  # nan if all are -1
        torch.testing.assert_close((loss, chunked), (mean.detach(),) * 2, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(chunked_grads, grads, atol=1e-6, rtol=1e-4)
    assert loss == 0 and not any(g.any() for g in grads.values())  # nothing to predict: no loss, not nan
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype):
            loss, grads = gradients(model, idx, ids(20, seed=3))
            chunked, chunked_grads = gradients(model, idx, ids(20, seed=3), return_logits=False)
        assert abs(chunked - loss) < 1e-2
        for name, grad in grads.items():
            assert (chunked_grads[name] - grad).norm() < 0.03 * grad.norm(), name
    for bad in (-100, 61):
        for return_logits in (True, False):
            with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
                model(idx, torch.full_like(idx, bad), return_logits=return_logits)


@pytest.mark.filterwarnings("error")  # mixed types in RMSNorm warn and are slow
@pytest.mark.parametrize("shape", [dict(), LLAMA | dict(qk_norm=True)], ids=["gpt2", "llama"])
def test_bfloat16_stays_near_float32(shape):
    model, idx = build(**shape), ids()
    full = model(idx, idx)[0]
    with torch.autocast("cpu", torch.bfloat16):
        near = model(idx, idx)[0]
        assert model.generate(idx, 4, temperature=0.0).shape == (2, 20)
    assert 0 < (near - full).norm() < 0.03 * full.norm()
    model.bfloat16()
    assert (model(idx, idx)[0] - full).norm() < 0.03 * full.norm()
    assert model.generate(idx, 4, temperature=0.0).shape == (2, 20)


def test_compiles_to_one_graph_with_and_without_logits():
    model, idx = build(**LLAMA | dict(qk_norm=True, softcap=5.0)), ids()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for return_logits in (True, False):
        loss = compiled(idx, idx, return_logits=return_logits)[1]
        torch.testing.assert_close(loss, model(idx, idx)[1])


# ---- counts ----


def test_gpt2_124m_has_its_published_size_and_hand_counted_flops():
    with torch.device("meta"):
        model = GPT(GPTConfig(vocab_size=50257))
    assert model.get_num_params(non_embedding=False) == 124_439_808
    assert model.get_num_params() == 123_653_376
    block = 768 * 3 * 768 + 768 * 768 + 2 * 4 * 768 * 768
    assert model.flops_per_token() == 6 * (12 * block + 768 * 50257) + 12 * 12 * 768 * 1024
    assert model.flops_per_token(512) == model.flops_per_token() - 12 * 12 * 768 * 512


def test_llama_shape_has_hand_counted_parameters():
    shape = LLAMA | dict(vocab_size=32000, n_layer=4, n_head=16, n_embd=256, n_kv_head=8)
    with torch.device("meta"):
        model = GPT(GPTConfig(**shape))  # swiglu's own width: 8/3 256 = 682.7, rounded up to 768
    block = 256 * (256 + 2 * 128) + 256 * 256 + 3 * 256 * 768 + 2 * 256
    assert model.get_num_params(non_embedding=False) == 4 * block + 256 + 2 * 32000 * 256 == 19_532_032
    assert model.get_num_params() == 19_532_032 - 32000 * 256


@pytest.mark.parametrize("frozen", [(), ("c_attn", "c_fc")])
@pytest.mark.parametrize("shape", [dict(), LLAMA | dict(head_dim=6, qk_norm=True)], ids=["gpt2", "llama"])
def test_flops_per_token_equal_those_torch_counts(shape, frozen):
    model, idx = build(**shape), ids()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not any(part in name for part in frozen))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(idx, idx)[1].backward()
    assert counter.get_total_flops() == model.flops_per_token() * idx.numel()
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as plain:
            model(idx, idx)
        with FlopCounterMode(display=False) as chunked:
            model(idx, idx, return_logits=False)
    assert chunked.get_total_flops() == plain.get_total_flops()  # an evaluation computes no gradients


@pytest.mark.parametrize("n_kv_head", [4, 2])
@pytest.mark.parametrize("pos", ["learned", "rope"])
def test_flash_attention_is_usable_on_cpu(pos, n_kv_head):
    model, idx = build(pos=pos, n_kv_head=n_kv_head), ids()
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # raises where only another backend would do
        gradients(model, idx, idx)
        model.generate(idx, 3)


# ---- weights and configurations ----


def test_initial_weights_have_their_documented_std_and_repeat_by_seed():
    for init in ("normal", "kaiming"):
        shape = dict(vocab_size=997, n_embd=128, init=init, tie_weights=False)
        model, again = (GPT(GPTConfig(**TINY | shape), seeded()) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
        for name, p in model.named_parameters():
            if p.dim() == 1:
                assert torch.equal(p, torch.full_like(p, float("ln_" in name and "weight" in name))), name
                continue
            expected = 0.02 if init == "normal" or "wte" in name or "wpe" in name else p.size(1) ** -0.5
            expected /= 2.0 if name.endswith("c_proj.weight") else 1.0  # sqrt(2 n_layer)
            assert abs(p.std() / expected - 1) < 0.05 and abs(p.mean()) < 0.06 * expected, name
    assert not torch.equal(model.lm_head.weight, GPT(model.config, seeded(1)).lm_head.weight)
    tied = GPT(GPTConfig(**TINY | dict(vocab_size=997, init="kaiming")), seeded())
    assert abs(tied.lm_head.weight.std() / 0.02 - 1) < 0.05  # an embedding's


def test_parameter_names_and_their_order_are_nanogpts():
    model = build()
    block = ["ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj"]
    expected = ["transformer.wte.weight", "transformer.wpe.weight"]
    for module in [f"h.{i}.{part}" for i in (0, 1) for part in block] + ["ln_f"]:
        expected += [f"transformer.{module}.weight", f"transformer.{module}.bias"]
    assert [name for name, _ in model.named_parameters()] == expected  # optimizers number them so
    assert list(model.state_dict()) == expected + ["lm_head.weight"]
    assert model.lm_head.weight is model.transformer.wte.weight
    names = list(build(**LLAMA | dict(norm="layernorm")).state_dict())
    assert not any("rope" in name or "bias" in name for name in names)


@pytest.mark.parametrize("shape", [dict(), LLAMA], ids=["gpt2", "llama"])
def test_cropped_model_gives_the_same_logits_of_short_inputs(shape):
    config = GPTConfig(**TINY | shape)
    model = randomise(GPT(config))
    before = model(ids(T=8), ids(T=8))[0]
    model.crop_block_size(8)
    assert torch.equal(model(ids(T=8), ids(T=8))[0], before)
    assert model.config.block_size == 8 and config.block_size == 16
    GPT(model.config).load_state_dict(model.state_dict(), strict=True)
    assert model.generate(ids(T=8), 9).shape == (2, 17)
    for wrong in (9, 0):
        with pytest.raises(ValueError, match=f"block_size={wrong} .*8"):
            model.crop_block_size(wrong)


@pytest.mark.parametrize(
    "shape, words",
    [
        (dict(n_embd=30), "n_embd=30.*n_head=4"),
        (dict(n_kv_head=3), "n_head=4.*n_kv_head=3"),
        (dict(n_kv_head=8), "n_head=4.*n_kv_head=8"),
        (dict(n_kv_head=0), "n_kv_head=0.*at least 1"),
        (dict(n_embd=20, pos="rope"), "head_dim=5"),
        (dict(head_dim=7, pos="rope"), "head_dim=7"),
        (dict(vocab_size=0), "vocab_size=0.*at least 1"),
        (dict(dropout=1.0), "dropout=1.0"),
        (dict(softcap=-1.0), "softcap=-1.0"),
        (dict(rope_theta=0.0), "rope_theta=0.0 must be above 0"),
        (dict(rope_scaling={"rope_type": "ntk"}), "'ntk'.*numbers above 0: .*'llama3'"),
        (dict(rope_scaling={"rope_type": "linear", "factor": 0.0}), "'factor': 0.0.*above 0"),
        (dict(rope_scaling={"rope_type": "linear", "factor": 2.0, "low": 1}), "'low': 1.*above 0"),
        (dict(rope_scaling={"rope_type": "llama3", "factor": 2.0}), "'factor': 2.0.*low_freq_factor high_freq_factor"),
        (dict(norm_eps=-1e-5), "norm_eps=-1e-05 must be above 0"),
        (dict(pos="alibi"), "pos='alibi'.*learned or rope"),
        (dict(mlp="relu"), "mlp='relu'.*gelu_tanh"),
    ],
)
def test_shapes_that_cannot_be_built_are_refused_with_their_numbers(shape, words):
    with pytest.raises(ValueError, match=words):
        GPT(GPTConfig(**TINY | shape))


def test_too_long_input_is_refused_with_both_lengths():
    model, cache = build(), KVCache(GPTConfig(**TINY), 2)
    with pytest.raises(ValueError, match="17.*16"):
        model(ids(T=17))
    model(ids(T=10), cache=cache)
    with pytest.raises(ValueError, match="17.*16"):
        model(ids(T=7), cache=cache)
    assert cache.length == 10


def test_model_args_are_nanogpts_seven_keys_for_gpt2_and_round_trip():
    seven = {"n_layer", "n_head", "n_embd", "block_size", "bias", "vocab_size", "dropout"}
    assert set(model_args_of(GPTConfig())) == set(model_args_of(GPTConfig(**TINY, bias=False, dropout=0.1))) == seven
    spelled_out = dict(n_kv_head=4, head_dim=8, mlp_hidden=128)  # what they are without a word
    assert set(model_args_of(GPTConfig(**TINY, **spelled_out))) == seven
    assert set(model_args_of(GPTConfig(**LLAMA))) == seven | set(LLAMA)
    for shape in covering_set():
        config = GPTConfig(**TINY | shape)
        assert replace(GPTConfig(**model_args_of(config)), init=config.init) == config  # init is not kept
