"""The GPT: GPT-2 and its modern variants in one file, by configuration. Imports torch only.

    from model import GPT, GPTConfig
    model = GPT(GPTConfig(block_size=256, vocab_size=65, n_layer=6, n_head=6, n_embd=384))
    logits, loss = model(idx, targets)          # idx, targets: (B, T) int64
    ids = model.generate(idx, max_new_tokens=100, temperature=0.8, top_k=200)

Shapes in comments: B batch, T positions, C n_embd, nh n_head, nkv n_kv_head, hs head_dim, V vocab_size.
Parameter names are nanoGPT's, so GPT-2-shaped checkpoints move in both directions.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from copy import copy
from dataclasses import dataclass, fields, replace
from functools import partial

import torch
import torch.nn as nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

# logits that LinearCrossEntropy holds at a time, but at least 256 rows of them: fewer would multiply at a fraction
# of the speed (a constant of the module: torch.compile can't read one from an autograd.Function)
CHUNK = 2**22
# from so many rows on a CPU reads the prompt that they share once for all: for fewer it takes longer (see attend)
SHARING_ROWS = 4
# up to so many positions a CPU trains attention in bfloat16 with all scores in memory (see dense_attention)
DENSE_ATTENTION = 256

CHOICES = {
    "pos": ("learned", "rope"),
    "norm": ("layernorm", "rmsnorm"),
    "mlp": ("gelu", "gelu_tanh", "swiglu", "relu2"),
    "init": ("normal", "kaiming"),
}


@dataclass
class GPTConfig:
    """Shape of a GPT. The first seven fields, their defaults and meanings are nanoGPT's."""

    block_size: int = 1024  # longest context, tokens
    vocab_size: int = 50304  # GPT-2's 50,257 padded to a multiple of 64
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    dropout: float = 0.0
    bias: bool = True  # in linear layers and LayerNorms (RMSNorm and the head never have one)
    n_kv_head: int | None = None  # key/value heads: None = n_head, fewer = GQA, 1 = MQA
    head_dim: int | None = None  # None = n_embd / n_head
    pos: str = "learned"  # 'learned' positions or 'rope'
    rope_theta: float = 10000.0  # RoPE's base wavelength
    norm: str = "layernorm"  # or 'rmsnorm'
    norm_eps: float = 1e-5
    mlp: str = "gelu"  # 'gelu' (exact), 'gelu_tanh' (Hugging Face's GPT-2), 'swiglu', 'relu2'
    mlp_hidden: int | None = None  # None = 4 n_embd; for swiglu 8/3 n_embd rounded up to 128
    tie_weights: bool = True  # head and token embedding are one matrix
    qk_norm: bool = False  # RMSNorm of each query and key head (as Qwen3), before RoPE
    softcap: float = 0.0  # logits -> softcap * tanh(logits / softcap); 0 = off
    smear: bool = False  # add to each token's embedding a learned share of the one before it, channel by channel
    init: str = "normal"  # 'normal' (GPT-2: std 0.02) or 'kaiming' (std 1/sqrt(fan_in))

    @property
    def kv_heads(self) -> int:
        return self.n_head if self.n_kv_head is None else self.n_kv_head

    @property
    def head_size(self) -> int:
        return self.n_embd // self.n_head if self.head_dim is None else self.head_dim

    @property
    def mlp_width(self) -> int:
        if self.mlp_hidden is not None:
            return self.mlp_hidden
        return 4 * self.n_embd if self.mlp != "swiglu" else 128 * math.ceil(8 * self.n_embd / 3 / 128)

    def validate(self) -> None:
        """Raises ValueError for a shape that cannot be built, with both numbers."""
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown, use {' or '.join(choices)}")
        sizes = "block_size vocab_size n_layer n_head n_embd n_kv_head head_dim mlp_hidden"
        for name in sizes.split():
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        for name in ("rope_theta", "norm_eps"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)} must be above 0")
        if self.head_dim is None and self.n_embd % self.n_head:
            raise ValueError(
                f"n_embd={self.n_embd} is not a multiple of n_head={self.n_head}: change one, or set head_dim"
            )
        if self.n_head % self.kv_heads:
            raise ValueError(f"n_head={self.n_head} is not a multiple of n_kv_head={self.kv_heads}")
        if self.pos == "rope" and self.head_size % 2:
            raise ValueError(f"RoPE rotates pairs, but head_dim={self.head_size} is odd (n_embd / n_head)")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} must be at least 0 and below 1")
        if self.softcap < 0:
            raise ValueError(f"softcap={self.softcap} must be positive, or 0 for off")

    def to_args(self) -> dict:
        """model_args for a checkpoint: nanoGPT's seven keys, and of the others those that differ from their
        defaults, so that nanoGPT can read the checkpoint of a model that it could have built."""
        spelled_out = {  # values that None stands for
            "n_kv_head": self.n_head,
            "head_dim": self.n_embd // self.n_head,
            "mlp_hidden": replace(self, mlp_hidden=None).mlp_width,
        }
        args = {}
        for i, field in enumerate(fields(self)):
            value = getattr(self, field.name)
            same = value in (field.default, spelled_out.get(field.name, field.default))
            if i < 7 or (not same and field.name != "init"):  # init is history once there are weights
                args[field.name] = value
        return args


def norm_layer(config: GPTConfig, width: int) -> nn.Module:
    if config.norm == "rmsnorm":
        return nn.RMSNorm(width, eps=config.norm_eps)
    return nn.LayerNorm(width, eps=config.norm_eps, bias=config.bias)


def rope_table(config: GPTConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin of RoPE's angles, each (block_size, head_dim) float32.

    Su et al. 2021 (arXiv:2104.09864) in the "rotate halves" layout that Hugging Face uses: dimension i is
    paired with i + head_dim/2.
    """
    half = torch.arange(0, config.head_size, 2, dtype=torch.float32) / config.head_size
    angles = torch.outer(torch.arange(config.block_size, dtype=torch.float32), config.rope_theta**-half)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def apply_rope(x: torch.Tensor, rope: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Rotates x (B, heads, T, hs) by the angles of its T positions, in float32 whatever x's dtype."""
    cos, sin = rope
    a, b = x.float().chunk(2, dim=-1)
    return (x * cos + torch.cat((-b, a), dim=-1) * sin).to(x.dtype)


class Dropout(nn.Dropout):
    """nn.Dropout, on a CPU at a sixth of its cost (most of which is drawing numbers): each decision takes 8 random
    bits there, so that p is one of 1/256 to 255/256, the nearest. Its draws follow torch.manual_seed."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or self.p == 0 or x.device.type != "cpu":
            return super().forward(x)
        cut = min(255, max(1, round(256 * self.p)))
        bits = torch.empty(math.ceil(x.numel() / 8), dtype=torch.int64).random_(-(2**63), None)  # None: to the end
        kept = bits.view(torch.uint8)[: x.numel()].view(x.shape) >= cut
        return x * kept.to(x.dtype).mul_(256 / (256 - cut))


def dense_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, dropout: Dropout) -> torch.Tensor:
    """Causal attention of q (B, nh, T, hs) over k, v (B, nkv, T, hs) by plain matrix products: (B, nh, T, hs).

    PyTorch's flash kernel for CPUs is slow in bfloat16, above all backward: 16 x 4 heads x 256 positions x 64 took
    28 ms, in float32 26, and this way 10 (2 cores with AVX512-BF16, torch 2.13). With dropout there is no such kernel.
    """
    B, nh, T, hs = q.shape
    k, v = (t.repeat_interleave(nh // t.size(1), dim=1).reshape(B * nh, T, hs) for t in (k, v))
    later = torch.full((T, T), -math.inf, dtype=q.dtype, device=q.device).triu(1)
    scores = torch.baddbmm(later, q.reshape(B * nh, T, hs), k.mT, alpha=hs**-0.5)
    return (dropout(scores.softmax(-1)) @ v).view(B, nh, T, hs)


class LinearCrossEntropy(torch.autograd.Function):
    """Summed cross-entropy of softcapped logits x @ weight.T, a few rows at a time.

    The logits of a batch are its largest tensor by far ((B T) x V float32). Here each chunk of them is used
    while it is still in the processor's cache, for the loss and (if need_grad) at once for both gradients,
    and then dropped; backward only scales. x (N, C), weight (V, C), targets (N,) with -1 ignored; matrices
    multiply in `dtype`, the loss and weight's gradient add up in float32.
    """

    @staticmethod
    def forward(ctx, x, weight, targets, softcap: float, dtype: torch.dtype, need_grad: bool):
        w = weight.to(dtype)
        # half precision's small numbers would be lost here, before GradScaler's factor reaches them
        grad_dtype = torch.float32 if dtype == torch.float16 else dtype
        rows = max(256, CHUNK // w.size(0))
        total = torch.zeros((), dtype=torch.float32, device=x.device)
        if need_grad:  # the caller's, since ctx.needs_input_grad is True under no_grad as well
            grad_x = torch.empty_like(x)
            grad_w = torch.zeros_like(weight, dtype=torch.float32)
        for start in range(0, x.size(0), rows):
            chunk = slice(start, start + rows)
            xc = x[chunk].to(dtype)
            target = targets[chunk, None]  # (rows, 1)
            valid = target != -1
            target = target.masked_fill(~valid, 0)  # only -1: another id out of range is an error in gather
            logits = (xc @ w.t()).float()  # (rows, V)
            if softcap:
                logits = softcap * torch.tanh(logits / softcap)
            grad = logits.softmax(1)  # from here on, in the same memory: softmax, then softmax - one-hot
            # log(sum(exp)) is any id's logit - log(probability); the likeliest's never underflows
            behind = logits.amax(1, keepdim=True) - logits.gather(1, target)
            total += ((behind - grad.amax(1, keepdim=True).log()) * valid).sum()
            if need_grad:
                grad.scatter_add_(1, target, -torch.ones_like(grad[:, :1]))
                if softcap:
                    grad *= 1 - (logits / softcap).square()
                grad = grad.to(grad_dtype)
                grad_x[chunk] = (grad @ w.to(grad_dtype)) * valid
                grad_w += grad.t() @ (xc.to(grad_dtype) * valid)
        if need_grad:
            ctx.save_for_backward(grad_x, grad_w.to(weight.dtype))
        return total

    @staticmethod
    def backward(ctx, grad_loss):
        grad_x, grad_w = ctx.saved_tensors
        return grad_x * grad_loss, grad_w * grad_loss, None, None, None, None


@dataclass
class Sampling:
    """How the next id is drawn from the logits. The filters apply in the order of these fields."""

    temperature: float = 1.0  # logits are divided by it; 0 = always the likeliest id
    top_k: int | None = None  # keep the k likeliest ids; None or 0 = all
    top_p: float | None = None  # keep the fewest that reach this probability (arXiv:1904.09751), at least one
    min_p: float | None = None  # keep those of at least this share of the likeliest's probability (arXiv:2407.01082)
    repetition_penalty: float = 1.0  # before all: logits of ids in the text so far are / it if > 0, else * it
    # (Keskar et al. 2019, arXiv:1909.05858, with Hugging Face's sign)
    vocab_size: int | None = None  # draw ids below it only: the model's own may be padded
    logprobs: bool = False  # GPT.stream is to yield log-probabilities

    def validate(self) -> None:
        """Raises ValueError for a number out of range."""
        if not math.isfinite(self.temperature):
            raise ValueError(f"temperature={self.temperature} must be a finite number")
        for name, low, high in (
            ("temperature", 0, math.inf), ("top_k", 0, math.inf), ("top_p", 0, 1), ("min_p", 0, 1)
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                limits = "must not be negative" if high == math.inf else "must be from 0 to 1"
                raise ValueError(f"{name}={value} {limits}")
        if 0 < self.temperature < 1e-5:  # logits divided by it would leave float32's range
            raise ValueError(f"temperature={self.temperature} must be 0, for the likeliest id, or at least 1e-5")
        if not self.repetition_penalty > 0:
            raise ValueError(f"repetition_penalty={self.repetition_penalty} must be above 0 (1 = none)")


class KVCache:
    """Keys and values of the positions seen so far; allocated for block_size positions (a CPU's memory is taken as they
    are filled, so a short text costs little of it).

    k, v: (n_layer, B, nkv, block_size, hs). A row's position p is in slot p, so `length` positions of every row are
    filled: an int, or a (B,) int64 tensor where rows differ; a smaller one forgets the positions from there on.
    GPT.forward appends to it. With a tensor, shapes don't depend on the length, as CUDA graphs need: all of the
    first `reach` slots take part in attention, and a mask hides those that a row has not filled: such a cache must be
    `ragged`. The first `shared` positions are those of row 0 for every row, and in no other row's slots; Step reads
    them so, GPT.forward does not. ids (B, block_size + 1), only for config.smear: the id of position p in slot p + 1,
    and -1 before the first.
    """

    def __init__(self, config: GPTConfig, batch_size: int, device=None, dtype=None, ragged: bool = False):
        shape = (config.n_layer, batch_size, config.kv_heads, config.block_size, config.head_size)
        if dtype == torch.bfloat16 and torch.device(device or "cpu").type == "cpu":
            dtype = torch.float32  # one query's attention takes a fifth of the time there (2 cores, 450 positions)
        allocate = torch.zeros if ragged else torch.empty  # a hidden slot weighs 0, but 0 * nan is nan
        self.k = allocate(shape, device=device, dtype=dtype)
        self.v = allocate(shape, device=device, dtype=dtype)
        self.ids = None
        if config.smear:
            self.ids = torch.full((batch_size, config.block_size + 1), -1, device=device)
        self.length: int | torch.Tensor = 0
        self.reach = config.block_size
        self.shared = 0

    def rows(self, rows: slice) -> "KVCache":
        """An empty cache of these rows, in the same memory."""
        part = copy(self)
        part.k, part.v, part.length, part.shared = self.k[:, rows], self.v[:, rows], 0, 0
        part.ids = None if self.ids is None else self.ids[rows]
        return part

    def append(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Stores k, v (B, nkv, T, hs) behind `length`; returns the keys and values that attention looks at."""
        keys, values, B, T = self.k[layer], self.v[layer], k.size(0), k.size(2)
        if isinstance(self.length, int):
            keys.narrow(2, self.length, T).copy_(k)
            values.narrow(2, self.length, T).copy_(v)
            if self.length == 0:
                return k, v
            return keys.narrow(2, 0, self.length + T), values.narrow(2, 0, self.length + T)
        row = torch.arange(B, device=k.device)[:, None]  # (B, 1)
        slot = self.positions(T)  # (B, T)
        keys[row, :, slot] = k.transpose(1, 2).to(keys.dtype)
        values[row, :, slot] = v.transpose(1, 2).to(values.dtype)
        return keys.narrow(2, 0, self.reach), values.narrow(2, 0, self.reach)

    def previous(self, idx: torch.Tensor) -> torch.Tensor:
        """Stores idx (B, T) behind `length`; returns the id before each of them, (B, T), -1 before the first."""
        if isinstance(self.length, int):
            self.ids.narrow(1, self.length + 1, idx.size(1)).copy_(idx)
            return self.ids.narrow(1, self.length, idx.size(1))
        row, slot = torch.arange(idx.size(0), device=idx.device)[:, None], self.positions(idx.size(1))
        self.ids[row, slot + 1] = idx
        return self.ids[row, slot]

    def positions(self, T: int) -> slice | torch.Tensor:
        """Of the next T ids: a slice, or (B, T) where rows differ."""
        if isinstance(self.length, int):
            return slice(self.length, self.length + T)
        return self.length[:, None] + torch.arange(T, device=self.length.device)

    def mask(self, T: int) -> torch.Tensor | None:
        """Which keys the next T queries see, (T, S) or (B, 1, T, S); None: all before them and themselves."""
        if isinstance(self.length, int):
            if T == 1 or self.length == 0:
                return None
            return torch.ones(T, self.length + T, dtype=torch.bool, device=self.k.device).tril(self.length)
        return (torch.arange(self.reach, device=self.k.device) <= self.positions(T)[:, :, None])[:, None]


class CausalSelfAttention(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.n_head, self.n_kv_head, self.head_dim = config.n_head, config.kv_heads, config.head_size
        # queries, keys and values from one matrix: (nh + 2 nkv) heads of width hs, in that order
        self.c_attn = nn.Linear(config.n_embd, (self.n_head + 2 * self.n_kv_head) * self.head_dim, bias=config.bias)
        self.c_proj = nn.Linear(self.n_head * self.head_dim, config.n_embd, bias=config.bias)
        if config.qk_norm:
            self.q_norm = nn.RMSNorm(self.head_dim, eps=config.norm_eps)
            self.k_norm = nn.RMSNorm(self.head_dim, eps=config.norm_eps)
        self.qk_norm = config.qk_norm
        self.attn_dropout, self.resid_dropout = Dropout(config.dropout), Dropout(config.dropout)

    def forward(self, x, rope=None, mask=None, cache: KVCache | None = None, layer: int = 0):
        B, T, _ = x.size()
        nh, nkv, hs = self.n_head, self.n_kv_head, self.head_dim
        q, k, v = self.c_attn(x).split((nh * hs, nkv * hs, nkv * hs), dim=2)
        q = q.view(B, T, nh, hs).transpose(1, 2)  # (B, nh, T, hs)
        k = k.view(B, T, nkv, hs).transpose(1, 2)  # (B, nkv, T, hs)
        v = v.view(B, T, nkv, hs).transpose(1, 2)  # (B, nkv, T, hs)
        dtype = v.dtype
        if self.qk_norm:  # in its weight's type also under autocast: mixed types are a slow path with a warning
            q, k = (norm(t.to(norm.weight.dtype)) for norm, t in ((self.q_norm, q), (self.k_norm, k)))
        if rope is not None:
            q, k = apply_rope(q, rope), apply_rope(k, rope)
        q, k = q.to(dtype), k.to(dtype)
        if cache is not None:
            k, v = cache.append(layer, k, v)  # whose type may be another
            q = q.to(k.dtype)
        dropout = self.attn_dropout.p if self.training else 0.0
        dense = (
            self.training
            and cache is None
            and x.device.type == "cpu"
            and (dropout > 0 or (dtype == torch.bfloat16 and T <= DENSE_ATTENTION))
        )
        settled = torch.is_autocast_enabled(x.device.type)  # the dtypes are, and entering a context takes time
        with torch.autocast(x.device.type, enabled=False) if settled else nullcontext():
            if dense:
                y = dense_attention(q, k, v, self.attn_dropout)
            else:
                if T == 1:  # heads that share their keys are queries of one head: nothing to repeat
                    q = q.reshape(B, nkv, nh // nkv, hs)
                y = F.scaled_dot_product_attention(
                    q,
                    k,
                    v,
                    attn_mask=mask,
                    dropout_p=dropout,
                    is_causal=mask is None and T > 1,
                    enable_gqa=nkv != nh and T > 1,
                ).view(B, nh, T, hs)
        if cache is not None:
            y = y.to(dtype)
        y = self.c_proj(y.transpose(1, 2).reshape(B, T, nh * hs))
        return self.resid_dropout(y) if self.training else y


def relu2(x: torch.Tensor) -> torch.Tensor:
    return F.relu(x).square()  # So et al. 2021 (arXiv:2109.08668)


class MLP(nn.Module):
    activations = {"gelu": F.gelu, "gelu_tanh": partial(F.gelu, approximate="tanh"), "swiglu": F.silu, "relu2": relu2}

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.kind, self.activate = config.mlp, self.activations[config.mlp]
        self.c_fc = nn.Linear(config.n_embd, config.mlp_width, bias=config.bias)
        if config.mlp == "swiglu":
            self.c_gate = nn.Linear(config.n_embd, config.mlp_width, bias=config.bias)
        self.c_proj = nn.Linear(config.mlp_width, config.n_embd, bias=config.bias)
        self.dropout = Dropout(config.dropout)

    def forward(self, x):
        if self.kind == "swiglu":  # Shazeer 2020 (arXiv:2002.05202)
            h = self.activate(self.c_gate(x)) * self.c_fc(x)
        else:
            h = self.activate(self.c_fc(x))
        h = self.c_proj(h)
        return self.dropout(h) if self.training else h


class Block(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.ln_1 = norm_layer(config, config.n_embd)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = norm_layer(config, config.n_embd)
        self.mlp = MLP(config)

    def forward(self, x, rope=None, mask=None, cache: KVCache | None = None, layer: int = 0):
        x = x + self.attn(self.ln_1(x), rope, mask, cache, layer)
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    """A decoder-only transformer. Raises ValueError for a config that cannot be built."""

    def __init__(self, config: GPTConfig, generator: torch.Generator | None = None):
        super().__init__()
        config.validate()
        self.config = config
        # in nanoGPT's order: the optimizer state of its checkpoints knows parameters by number only
        self.transformer = nn.ModuleDict({"wte": nn.Embedding(config.vocab_size, config.n_embd)})
        if config.pos == "learned":
            self.transformer["wpe"] = nn.Embedding(config.block_size, config.n_embd)
        if config.smear:
            self.transformer.register_parameter("smear", nn.Parameter(torch.empty(config.n_embd)))
        self.transformer["drop"] = Dropout(config.dropout)
        self.transformer["h"] = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.transformer["ln_f"] = norm_layer(config, config.n_embd)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        if config.tie_weights:
            self.lm_head.weight = self.transformer.wte.weight
        self.compiled: dict[int, tuple[KVCache, Callable]] = {}  # by batch size, see compile_decoding
        self.make_rope()
        self.init_weights(generator)
        # training keeps only what enters each block and computes the rest again in backward: a third more work
        # for a fraction of the memory
        self.checkpoint_activations = False

    def make_rope(self) -> None:
        if self.config.pos == "rope":  # derived from the config, so not part of a checkpoint
            cos, sin = rope_table(self.config)
            device = self.lm_head.weight.device
            self.register_buffer("rope_cos", cos.to(device), persistent=False)
            self.register_buffer("rope_sin", sin.to(device), persistent=False)

    def tie(self) -> None:
        """Makes the head's weight the embedding's, also after these were replaced."""
        if self.config.tie_weights:
            self.lm_head.weight = self.transformer.wte.weight

    def allocate(self, device: torch.device | str) -> "GPT":
        """Gives a model on the meta device memory on `device`, of which only RoPE's tables are initialized."""
        self.to_empty(device=device)
        self.tie()
        self.make_rope()
        return self

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Fresh weights. Embeddings N(0, 0.02); linear layers by `init`; biases 0; norms 1.

        Projections that write into the residual stream are scaled by 1/sqrt(2 n_layer), since 2 n_layer of
        them add up there (Radford et al. 2019, section 2.3).
        """
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                if module is self.lm_head and self.config.tie_weights:
                    continue
                std = 0.02 if self.config.init == "normal" else module.in_features**-0.5
                if name.endswith("c_proj"):
                    std /= math.sqrt(2 * self.config.n_layer)
                nn.init.normal_(module.weight, std=std, generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02, generator=generator)
            elif isinstance(module, nn.LayerNorm | nn.RMSNorm):
                module.reset_parameters()
        if self.config.smear:
            nn.init.zeros_(self.transformer.smear)

    def get_num_params(self, non_embedding: bool = True) -> int:
        """Parameters, each tensor once.

        `non_embedding` leaves out the position table and, where the head is a matrix of its own, the token
        table: a tied table does the head's work, so it counts (as in nanoGPT).
        """
        total = sum(p.numel() for p in self.parameters())
        if non_embedding:
            if self.config.pos == "learned":
                total -= self.transformer.wpe.weight.numel()
            if not self.config.tie_weights:
                total -= self.transformer.wte.weight.numel()
        return total

    def flops_per_token(self, block_size: int | None = None) -> int:
        """Training FLOPs (forward + backward) a token at context length block_size (default: the config's).

        6 per weight that is multiplied (all linear layers with the head; a table look-up is none) plus
        attention's 12 n_layer nh hs T, the convention of PaLM (arXiv:2204.02311, appendix B): the causal half
        that a flash kernel skips is counted, so that the MFU compares with published ones.
        """
        T = self.config.block_size if block_size is None else block_size
        matmul = sum(m.weight.numel() for m in self.modules() if isinstance(m, nn.Linear))
        return 6 * matmul + 12 * self.config.n_layer * self.config.n_head * self.config.head_size * T

    def crop_block_size(self, block_size: int) -> None:
        """Shortens the context in place, to fine-tune or sample with less memory."""
        if not 1 <= block_size <= self.config.block_size:
            raise ValueError(f"block_size={self.config.block_size} can be cropped, not set to {block_size}")
        self.config = replace(self.config, block_size=block_size)
        if self.config.pos == "learned":
            wpe = self.transformer.wpe
            wpe.weight = nn.Parameter(wpe.weight[:block_size].detach().clone())
            wpe.num_embeddings = block_size
        self.make_rope()

    def embed(self, idx: torch.Tensor, cache: KVCache | None = None) -> torch.Tensor:
        """idx (B, T) -> what tells tokens apart in the first block's input, (B, T, C); a cache learns the ids."""
        weight = self.transformer.wte.weight
        x = F.embedding(idx, weight)
        if not self.config.smear:
            return x
        if cache is None:
            before = F.pad(x[:, :-1], (0, 0, 1, 0))
        else:
            ids = cache.previous(idx)
            before = F.embedding(ids.clamp(min=0), weight) * (ids >= 0)[:, :, None]
        return x + self.transformer.smear * before

    def hidden(self, idx: torch.Tensor, cache: KVCache | None = None) -> torch.Tensor:
        """idx (B, T) int64 -> what the last block leaves, (B, T, C): to be normed by ln_f, then read by the head.

        With a cache the T positions follow the cache.length that are in it, and are added to it.
        Raises ValueError if the positions exceed block_size.
        """
        T, start = idx.size(1), cache.length if cache is not None else 0
        if isinstance(start, int) and start + T > self.config.block_size:
            raise ValueError(f"{start + T} positions do not fit into block_size={self.config.block_size}")
        positions, mask = (cache.positions(T), cache.mask(T)) if cache is not None else (slice(T), None)
        x = self.embed(idx, cache)  # (B, T, C)
        rope = None
        if self.config.pos == "learned":
            x = x + self.transformer.wpe.weight[positions]
        else:
            rope = self.rope_cos[positions], self.rope_sin[positions]
            if isinstance(positions, torch.Tensor):
                rope = rope[0][:, None], rope[1][:, None]  # (B, 1, T, hs): for all heads
        if self.training:
            x = self.transformer.drop(x)
        for layer, block in enumerate(self.transformer.h):
            if self.checkpoint_activations and self.training:
                x = checkpoint(block, x, rope, use_reentrant=False)
            else:
                x = block(x, rope, mask, cache, layer)
        if cache is not None:
            cache.length += T
        return x

    def forward(
        self,
        idx: torch.Tensor,
        targets: torch.Tensor | None = None,
        cache: KVCache | None = None,
        return_logits: bool = True,
        last: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """idx (B, T) int64 -> (logits, loss).

        With targets (B, T): logits (B, T, V) and the mean cross-entropy in nats over targets that are not -1
        (0 if there is none). Without: logits of the last position only, (B, 1, V), and None; `last` (B,) says
        which that is in rows with padding behind it. With a cache the T positions follow the cache.length that
        are in it, and are added to it. return_logits=False lets the loss be computed without ever holding all
        logits; the first result is then None. Raises ValueError if the positions exceed block_size.
        """
        x = self.hidden(idx, cache)
        if targets is None:
            x = x[:, -1:] if last is None else x[torch.arange(x.size(0), device=x.device), last][:, None]
            return self._logits(self.transformer.ln_f(x)), None
        x, flat = self.transformer.ln_f(x), targets.reshape(-1)
        count = (flat != -1).sum().clamp(min=1)
        device = x.device.type
        if device == "cpu" and not return_logits and isinstance(self.lm_head, nn.Linear):  # not packed, not int8
            dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
            rows = x.reshape(-1, x.size(-1))
            weight, grad = self.lm_head.weight, torch.is_grad_enabled()
            loss = LinearCrossEntropy.apply(rows, weight, flat, self.config.softcap, dtype, grad)
            return None, loss / count
        logits = self._logits(x)
        rows = logits.view(-1, logits.size(-1)).float()
        loss = F.cross_entropy(rows, flat, ignore_index=-1, reduction="sum")
        return (logits if return_logits else None), loss / count

    def _logits(self, x: torch.Tensor) -> torch.Tensor:
        logits = self.lm_head(x)
        if self.config.softcap:
            logits = self.config.softcap * torch.tanh(logits / self.config.softcap)
        return logits

    def compile_decoding(self, batch_size: int, **options) -> None:
        """From now on `stream` computes the tokens of batches of this size by torch.compile, with static shapes.

        The cache is allocated here, once: CUDA graphs find it where it was when they were recorded. So one stream at
        a time can use it. Options go to torch.compile, e.g. mode="reduce-overhead" for CUDA graphs. Prompts are
        encoded without: their shapes differ.
        """
        weight = self.transformer.wte.weight
        cache = KVCache(self.config, batch_size, weight.device, weight.dtype, ragged=True)
        cache.length = torch.zeros(batch_size, dtype=torch.int64, device=weight.device)
        for tensor in (cache.k, cache.v, cache.length) + (() if cache.ids is None else (cache.ids,)):
            torch._dynamo.mark_static_address(tensor)  # an input that the graph writes to
        step = torch.compile(lambda idx: self(idx, cache=cache)[0], fullgraph=True, dynamic=False, **options)
        self.compiled[batch_size] = cache, step

    @torch.no_grad()
    def stream(
        self,
        prompts: torch.Tensor | Sequence[torch.Tensor],
        max_new_tokens: int,
        sampling: Sampling | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        constrain: Callable[[torch.Tensor | None], torch.Tensor | None] | None = None,
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        """Continues prompts, (B, T) or B rows of any lengths, and yields (ids (B,), their log-probabilities (B,)).

        A pair is yielded as soon as it is drawn; the next is computed when it is asked for. All stays on the device:
        who reads the ids only now and then does not make a GPU wait. A row's ids don't depend on the other rows if
        it has a generator of its own (`generator`: a list of B; a single one, or None, torch's global one, serves
        all rows). Log-probabilities are the model's own, before temperature and filters; None unless
        sampling.logprobs. `constrain` is called with the ids just drawn, at first with None, and says which may
        follow: (B, V) bool, or None for any from now on.

        The model sees at most the last block_size ids; when a row's cache is full its last half is encoded again,
        so a long text costs one such pass for every block_size / 2 tokens. Raises ValueError if a row is empty.
        """
        assert not self.training, "call model.eval() first: dropout would change the text"
        sampling = sampling or Sampling()
        sampling.validate()
        if any(len(row) == 0 for row in prompts):
            raise ValueError("the prompt is empty: start from at least one token, e.g. the end-of-text id")
        decoder, new = Decoder(self, prompts), None
        B, V, device = len(prompts), sampling.vocab_size or self.config.vocab_size, prompts[0].device
        draws = uniforms(generator, B, device) if sampling.temperature > 0 else None
        seen = None
        if sampling.repetition_penalty != 1:
            seen = torch.zeros(B, self.config.vocab_size, dtype=torch.bool, device=device)
            for row, ids in zip(seen, prompts, strict=True):
                row[ids] = True
        for _ in range(max_new_tokens):
            logits = (decoder.start() if new is None else decoder.advance(new))[:, :V].float()
            allowed = constrain(new) if constrain else None
            constrain = constrain if allowed is not None else None
            possible = logits if allowed is None else logits.masked_fill(~allowed, -math.inf)
            uniform = next(draws) if draws else None
            new = sample_next(possible, sampling, uniform, None if seen is None else seen[:, :V])  # (B,)
            if seen is not None:
                seen.scatter_(1, new[:, None], True)
            scores = None
            if sampling.logprobs:
                scores = logits.log_softmax(-1).gather(1, new[:, None])[:, 0]
            yield new, scores

    def generate(
        self,
        idx: torch.Tensor,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        **filters,
    ) -> torch.Tensor:
        """idx (B, T) and max_new_tokens ids behind it, (B, T + max_new_tokens). `filters`: as in Sampling."""
        sampling, was_training = Sampling(temperature, top_k, **filters), self.training
        self.eval()
        try:
            new = [ids[:, None] for ids, _ in self.stream(idx, max_new_tokens, sampling, generator)]
        finally:
            self.train(was_training)
        return torch.cat((idx, *new), dim=1)


class Step:
    """GPT.forward for one id in each row, (B, 1) -> logits (B, 1, V), written out.

    It computes the same by fewer operations and without calling modules: for one row of a small model on a CPU these
    calls would take half of the time. Other devices, and rows of different lengths, are left to GPT.forward.
    """

    def __init__(self, model: GPT, cache: KVCache):
        self.model, self.cache = model, cache
        h, config = model.transformer.h, model.config
        self.layers = [
            (*map(as_function, (block.ln_1, block.attn.c_attn, block.attn.c_proj, block.ln_2)), block.mlp.forward)
            for block in h
        ]
        self.heads = config.n_head, config.kv_heads, config.head_size
        if config.pos == "rope":  # (-b, a) sin is (b, a) with the sign in the table
            a, b = model.rope_sin.chunk(2, dim=-1)
            self.cos, self.sin = model.rope_cos, torch.cat((-a, b), dim=-1)
        if config.qk_norm:  # of each layer (nh + nkv, hs)
            counts = self.heads[:2]
            norms = [(block.attn.q_norm.weight, block.attn.k_norm.weight) for block in h]
            self.qk_weights = [torch.cat([w.expand(n, -1) for n, w in zip(counts, ws, strict=True)]) for ws in norms]

    def __call__(self, idx: torch.Tensor) -> torch.Tensor:
        model, cache, (nh, nkv, hs) = self.model, self.cache, self.heads
        B, t, config = idx.size(0), cache.length, model.config
        if not isinstance(t, int) or idx.device.type != "cpu":
            return model(idx, cache=cache)[0]
        x = model.embed(idx, cache)[:, 0]  # (B, C)
        if config.pos == "learned":
            x = x + model.transformer.wpe.weight[t]
        else:
            cos, sin = self.cos[t], self.sin[t]
        k_slots, v_slots = cache.k[:, :, :, t].unbind(), cache.v[:, :, :, t].unbind()  # of each layer (B, nkv, hs)
        S, T = cache.shared, t + 1 - cache.shared
        keys, values = cache.k.narrow(3, S, T).unbind(), cache.v.narrow(3, S, T).unbind()  # (B, nkv, T, hs)
        if S:
            shared_keys, shared_values = cache.k[:, 0, :, :S].unbind(), cache.v[:, 0, :, :S].unbind()  # (nkv, S, hs)
        for layer, (ln_1, c_attn, c_proj, ln_2, mlp) in enumerate(self.layers):
            qkv = c_attn(ln_1(x)).view(B, nh + 2 * nkv, hs)
            qk, v = qkv[:, : nh + nkv], qkv[:, nh + nkv :]
            if config.qk_norm:
                qk = F.rms_norm(qk, (hs,), None, config.norm_eps) * self.qk_weights[layer]
            if config.pos == "rope":
                qk = torch.addcmul(qk * cos, qk.roll(hs // 2, dims=-1), sin)
            k_slots[layer].copy_(qk[:, nh:])
            v_slots[layer].copy_(v)
            q = qk[:, :nh].view(B, nkv, nh // nkv, hs).to(cache.k.dtype)  # heads that share keys: one's queries
            if S:
                y = attend(q, keys[layer], values[layer], shared_keys[layer], shared_values[layer])
            else:
                y = F.scaled_dot_product_attention(q, keys[layer], values[layer])  # (B, nkv, nh / nkv, hs)
            x = x + c_proj(y.view(B, nh * hs).to(x.dtype))
            x = x + mlp(ln_2(x))
        cache.length += 1
        return model._logits(model.transformer.ln_f(x))[:, None]


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, shared_k: torch.Tensor, shared_v: torch.Tensor
) -> torch.Tensor:
    """Attention of one position in each row, q (B, nkv, nh / nkv, hs), over shared_k, shared_v (nkv, S, hs) and then
    over the row's own k, v (B, nkv, T, hs): as q. What rows share is read once for all, by a product of matrices."""
    B, nkv, n, hs = q.shape
    S, T = shared_k.size(1), k.size(2)
    q = q * hs**-0.5
    shared = q.transpose(0, 1).reshape(nkv, B * n, hs).bmm(shared_k.mT)  # (nkv, B n, S)
    own = k.flatten(0, 1).bmm(q.view(B * nkv, n, hs).mT)  # (B nkv, T, n): q k^T would take a third more time
    p = torch.cat((shared.view(nkv, B, n, S).transpose(0, 1), own.view(B, nkv, T, n).mT), dim=-1).softmax(-1)
    shared = p[..., :S].transpose(0, 1).reshape(nkv, B * n, S).bmm(shared_v)  # (nkv, B n, hs)
    own = p[..., S:].reshape(B * nkv, n, T).bmm(v.flatten(0, 1))  # (B nkv, n, hs)
    return own.view(q.shape) + shared.view(nkv, B, n, hs).transpose(0, 1)


def as_function(module: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """module.forward with its parameters at hand: looking them up takes as long as a small operation."""
    if type(module) is nn.Linear:
        return partial(F.linear, weight=module.weight, bias=module.bias)
    if type(module) is nn.LayerNorm:
        shape, weight, bias, eps = module.normalized_shape, module.weight, module.bias, module.eps
        return lambda x: torch.layer_norm(x, shape, weight, bias, eps)
    return module.forward


class Decoder:
    """What the model says about the next id of B rows, step after step: the cache's side of GPT.stream.

    The padding of ragged prompts is behind their ends, where causal attention does not see it and new positions
    overwrite it: every row has the positions and the keys that it would have alone.
    """

    def __init__(self, model: GPT, prompts: torch.Tensor | Sequence[torch.Tensor]):
        B, weight = len(prompts), model.transformer.wte.weight
        self.model, self.prompts, self.block_size = model, prompts, model.config.block_size
        self.lengths = [0] * B  # of the rows in the cache: what cache.length says, without asking a GPU
        self.recent = deque(maxlen=max(1, self.block_size // 2))  # the last ids (B,) that followed the prompts
        self.is_compiled = B in model.compiled
        if self.is_compiled:
            self.cache, self.step = model.compiled[B]
        else:
            ragged = len({min(len(row), self.block_size) for row in prompts}) > 1
            self.cache = KVCache(model.config, B, weight.device, weight.dtype, ragged=ragged)
            self.step = Step(model, self.cache)

    def start(self) -> torch.Tensor:
        """Encodes the prompts; logits (B, V) of the position after each."""
        return self.encode([row[-self.block_size :] for row in self.prompts], slice(None))

    def advance(self, ids: torch.Tensor) -> torch.Tensor:
        """Logits (B, V) of the position after ids (B,), which follow what the rows have so far."""
        self.recent.append(ids)
        full = [row for row, length in enumerate(self.lengths) if length == self.block_size]
        if len(full) < len(self.lengths):
            for row in full:
                self.cache.length[row] = 0  # what it computes now is lost: it is encoded again below
            self.lengths = [length % self.block_size + 1 for length in self.lengths]
            if self.is_compiled:
                torch.compiler.cudagraph_mark_step_begin()
            else:
                self.cache.reach = max(self.lengths)
            logits = self.step(ids[:, None])[:, -1]
        if full:
            recent, half = torch.stack(tuple(self.recent), dim=1), self.recent.maxlen
            contexts = [torch.cat((self.prompts[row], recent[row]))[-half:] for row in full]
            if len(full) == len(self.lengths):
                return self.encode(contexts, slice(None))
            logits = logits.clone()
            for row, context in zip(full, contexts, strict=True):
                logits[row] = self.encode([context], slice(row, row + 1))[0]
        return logits

    def encode(self, contexts: list[torch.Tensor], rows: slice) -> torch.Tensor:
        """Fills `rows` of the cache from position 0 on; logits (len(contexts), V) behind each context's end."""
        counts, part = [len(context) for context in contexts], self.cache.rows(rows)
        self.lengths[rows] = counts
        if isinstance(self.cache.length, torch.Tensor):
            self.cache.length[rows] = torch.tensor(counts, device=self.cache.k.device)
        else:
            is_ragged = len(set(counts)) > 1
            self.cache.length = torch.tensor(counts, device=self.cache.k.device) if is_ragged else counts[0]
        self.cache.shared = 0
        if len(contexts) > 1 and all(torch.equal(context, contexts[0]) for context in contexts):  # encoded once for all
            logits = self.model(contexts[0][None], cache=part.rows(slice(1)))[0]
            if part.ids is not None:
                part.ids[1:] = part.ids[:1]
            can_share = isinstance(self.cache.length, int) and part.k.device.type == "cpu"
            if can_share and len(contexts) >= SHARING_ROWS:
                self.cache.shared = counts[0]
            else:
                for cached in (part.k, part.v):
                    cached[:, 1:, :, : counts[0]] = cached[:, :1, :, : counts[0]]
            return logits[:, -1].expand(len(contexts), -1)
        idx = nn.utils.rnn.pad_sequence(contexts, batch_first=True)
        last = torch.tensor(counts, device=idx.device) - 1 if len(set(counts)) > 1 else None
        return self.model(idx, cache=part, last=last)[0][:, -1]


def uniforms(
    generator: torch.Generator | Sequence[torch.Generator] | None, batch_size: int, device: torch.device
) -> Iterator[torch.Tensor]:
    """Endless draws from [0, 1), (batch_size,) at a time. A generator's draws depend on nothing else: on a CPU's
    they are the same for every device."""
    while True:
        if isinstance(generator, Sequence):
            draws = torch.stack([torch.rand(64, generator=g, device=g.device) for g in generator])
        else:
            draws = torch.rand(batch_size, 64, generator=generator, device=generator.device if generator else "cpu")
        yield from draws.to(device).unbind(1)


def sample_next(
    logits: torch.Tensor,
    sampling: Sampling,
    uniform: torch.Tensor | None = None,
    seen: torch.Tensor | None = None,
) -> torch.Tensor:
    """Picks one id a row from logits (B, V) float32; returns (B,) int64.

    uniform (B,) in [0, 1) makes the choice: the id at which the cumulative probability reaches 1 - uniform of its
    total, in the order of ids or, with top_k or top_p, of falling probability. Not needed where temperature is 0.
    seen (B, V) bool: the ids that repetition_penalty applies to.
    """
    if seen is not None:
        penalty = sampling.repetition_penalty
        logits = torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    order, k = None, min(sampling.top_k or logits.size(-1), logits.size(-1))
    if k < logits.size(-1) or sampling.top_p is not None:
        logits, order = logits.topk(k, dim=-1)  # (B, k), falling
    probs = F.softmax(logits / sampling.temperature, dim=-1)
    if sampling.top_p is not None:
        before = probs.cumsum(dim=-1) - probs  # of the likelier ids
        before[:, 0] = -1.0  # the likeliest stays
        probs = probs.masked_fill(before >= sampling.top_p, 0.0)
    if sampling.min_p is not None:
        probs = probs.masked_fill(probs < sampling.min_p * probs.amax(dim=-1, keepdim=True), 0.0)
    cumulative = probs.cumsum(dim=-1)
    # the first that reaches a positive share of the total has a positive probability itself
    ids = torch.searchsorted(cumulative, (1 - uniform[:, None]) * cumulative[:, -1:])
    return (ids if order is None else order.gather(1, ids))[:, 0]
