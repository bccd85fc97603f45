"""The GPT: GPT-2 and its modern variants in one file, by configuration. Imports torch only.

    from model import GPT, GPTConfig
    model = GPT(GPTConfig(block_size=256, vocab_size=65, n_layer=6, n_head=6, n_embd=384))
    logits, loss = model(idx, targets)          # idx, targets: (B, T) int64
    ids = model.generate(idx, max_new_tokens=100, temperature=0.8, top_k=200)

Read it in this order: GPTConfig, CausalSelfAttention, MLP, Block, GPT; what only makes training on a CPU faster stands
at the end. inference/ generates from a cache of keys and values, many times faster than GPT.generate.

Shapes in comments: B batch, T positions, C n_embd, nh n_head, nkv n_kv_head, hs head_dim, V vocab_size.
Parameter names are nanoGPT's, so GPT-2-shaped checkpoints move in both directions.
"""

import math
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn as nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

CHOICES = {
    "pos": ("learned", "rope"),
    "norm": ("layernorm", "rmsnorm"),
    "mlp": ("gelu", "gelu_tanh", "swiglu", "relu2"),
    "init": ("normal", "kaiming"),
}
ROPE_SCALING = {  # rope_type: its numbers, by Hugging Face's names
    "linear": "factor",
    "llama3": "factor original_max_position_embeddings low_freq_factor high_freq_factor",
    "yarn": "factor original_max_position_embeddings beta_fast beta_slow attention_factor",
}
# devices where training under bfloat16's autocast keeps the residual stream in bfloat16 too: less memory to read
NARROW_STREAM = ("cuda", "cpu")


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
    rope_scaling: dict | None = None  # RoPE for a longer context: rope_type and all of its numbers in ROPE_SCALING
    norm: str = "layernorm"  # or 'rmsnorm'
    norm_eps: float = 1e-5
    mlp: str = "gelu"  # 'gelu' (exact), 'gelu_tanh' (Hugging Face's GPT-2), 'swiglu', 'relu2'
    mlp_hidden: int | None = None  # None = 4 n_embd; for swiglu 8/3 n_embd rounded up to 128
    tie_weights: bool = True  # head and token embedding are one matrix
    qk_norm: bool = False  # RMSNorm of each query and key head (as Qwen3), before RoPE
    softcap: float = 0.0  # logits -> softcap * tanh(logits / softcap); 0 = off
    smear: bool = False  # add to each embedding a learned share, per channel, of the previous token's
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
        for name in "block_size vocab_size n_layer n_head n_embd n_kv_head head_dim mlp_hidden".split():
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("rope_theta", "norm_eps"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)} must be above 0")
        if self.head_dim is None and self.n_embd % self.n_head:
            raise ValueError(f"n_embd={self.n_embd} is not a multiple of n_head={self.n_head}: change one, or head_dim")
        if self.n_head % self.kv_heads:
            raise ValueError(f"n_head={self.n_head} is not a multiple of n_kv_head={self.kv_heads}")
        if self.pos == "rope" and self.head_size % 2:
            raise ValueError(f"RoPE rotates pairs, but head_dim={self.head_size} is odd (n_embd / n_head)")
        if (scaling := self.rope_scaling) is not None:
            names = ROPE_SCALING.get(scaling.get("rope_type"), "rope_type").split()
            positive = [key for key, value in scaling.items() if isinstance(value, int | float) and value > 0]
            if {*names} != {*positive} or len(scaling) != len(names) + 1:
                raise ValueError(f"rope_scaling={scaling} needs a rope_type and its numbers above 0: {ROPE_SCALING}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} must be at least 0 and below 1")
        if not 0 <= self.softcap < math.inf:
            raise ValueError(f"softcap={self.softcap} must be positive and finite, or 0 for off")


def norm_layer(config: GPTConfig) -> nn.Module:
    if config.norm == "rmsnorm":
        return RMSNorm(config.n_embd, eps=config.norm_eps)
    return nn.LayerNorm(config.n_embd, eps=config.norm_eps, bias=config.bias)


def rope_table(config: GPTConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin of RoPE's angles, each (block_size, head_dim) float32; sin is negated in its first half.

    Su et al. 2021 (arXiv:2104.09864) in the "rotate halves" layout that Hugging Face uses: dimension i is
    paired with i + head_dim/2.
    """
    half = torch.arange(0, config.head_size, 2, dtype=torch.float32) / config.head_size
    frequencies, scaling = config.rope_theta**-half, config.rope_scaling or {}
    if scaling:
        frequencies = scale_frequencies(frequencies, scaling, config.rope_theta)
    angles = torch.outer(torch.arange(config.block_size, dtype=torch.float32), frequencies)
    cos, sin = (part * scaling.get("attention_factor", 1.0) for part in (angles.cos(), angles.sin()))
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def scale_frequencies(frequencies: torch.Tensor, scaling: dict, theta: float) -> torch.Tensor:
    """RoPE's frequencies (hs/2,) divided by a factor; by Llama 3 and YaRN (arXiv:2309.00071) the high ones less."""
    kept, half = 0.0, len(frequencies)  # the share of each that is not divided
    turns = scaling.get("original_max_position_embeddings", 0) / (2 * math.pi)  # in that context, at frequency 1
    if scaling["rope_type"] == "llama3":
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        kept = ((turns * frequencies - low) / (high - low)).clamp(0, 1)
    elif scaling["rope_type"] == "yarn":
        low, high = (half * math.log(turns / scaling[name], theta) for name in ("beta_fast", "beta_slow"))
        low, high = max(math.floor(low), 0), min(math.ceil(high), 2 * half - 1)
        kept = 1 - ((torch.arange(half) - low) / (high - low or 0.001)).clamp(0, 1)
    return kept * frequencies + (1 - kept) * frequencies / scaling["factor"]


def apply_rope(x: torch.Tensor, rope: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Rotates x (heads, B, T, hs) by its positions' angles, in the wider type. rope: cos, sin, (T or B, T, hs)."""
    return x * rope[0] + x.roll(x.size(-1) // 2, dims=-1) * rope[1]


class RMSNorm(nn.RMSNorm):
    """In its weight's type also under autocast, where mixed types are a slow path with a warning."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.to(self.weight.dtype))


class CausalSelfAttention(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.n_head, self.n_kv_head, self.head_dim = config.n_head, config.kv_heads, config.head_size
        # queries, keys and values from one matrix: (nh + 2 nkv) heads of width hs, in that order
        self.c_attn = nn.Linear(config.n_embd, (self.n_head + 2 * self.n_kv_head) * self.head_dim, bias=config.bias)
        self.c_proj = nn.Linear(self.n_head * self.head_dim, config.n_embd, bias=config.bias)
        self.qk_norm, self.dropout = config.qk_norm, config.dropout
        if config.qk_norm:
            self.q_norm = RMSNorm(self.head_dim, eps=config.norm_eps)
            self.k_norm = RMSNorm(self.head_dim, eps=config.norm_eps)
        self.attn_dropout, self.resid_dropout = Dropout(config.dropout), Dropout(config.dropout)

    def forward(self, x, rope=None, cache=None, layer: int = 0):
        """x (B, T, C) -> (B, T, C). A cache stores keys and values, and attends to those it has (see GPT.hidden)."""
        B, T, _ = x.shape
        nh, nkv, hs = self.n_head, self.n_kv_head, self.head_dim
        qkv = self.c_attn(x).view(B, T, nh + 2 * nkv, hs).permute(2, 0, 1, 3)  # (heads, B, T, hs)
        if cache is None and x.device.type == "cpu":
            qkv = qkv.contiguous()  # copied once: what follows reads it in order, and RoPE takes a third of the time
        qk, v = qkv.split_with_sizes((nh + nkv, nkv))
        if self.qk_norm:
            qk = torch.cat((self.q_norm(qk[:nh]), self.k_norm(qk[nh:])))
        if rope is not None:
            qk = apply_rope(qk, rope)
        q, k = qk.to(v.dtype).split_with_sizes((nh, nkv))  # norms and RoPE may have computed in float32
        q, k, v = q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1)  # (B, nh, T, hs), (B, nkv, T, hs) twice
        y = self.attend(q, k, v) if cache is None else cache.attend(layer, q, k, v)
        y = self.c_proj(y.transpose(1, 2).reshape(B, T, nh * hs))
        return self.resid_dropout(y) if self.training else y

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Causal attention: q (B, nh, T, hs) over k, v (B, nkv, T, hs) -> as q."""
        dropout = self.dropout if self.training else 0.0
        if self.training and q.device.type == "cpu" and dense_is_faster(q, dropout):
            return dense_attention(q, k, v, self.attn_dropout)
        gqa = self.n_kv_head != self.n_head
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True, enable_gqa=gqa)


def relu2(x: torch.Tensor) -> torch.Tensor:
    return F.relu(x).square()  # So et al. 2021 (arXiv:2109.08668)


class MLP(nn.Module):
    activations = {"gelu": F.gelu, "gelu_tanh": partial(F.gelu, approximate="tanh"), "swiglu": F.silu, "relu2": relu2}

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.kind, self.activate = config.mlp, self.activations[config.mlp]
        self.c_fc = nn.Linear(config.n_embd, config.mlp_width, bias=config.bias)
        if config.mlp == "swiglu":  # Shazeer 2020 (arXiv:2002.05202)
            self.c_gate = nn.Linear(config.n_embd, config.mlp_width, bias=config.bias)
        self.c_proj = nn.Linear(config.mlp_width, config.n_embd, bias=config.bias)
        self.dropout = Dropout(config.dropout)

    def forward(self, x):
        h = self.activate(self.c_gate(x)) * self.c_fc(x) if self.kind == "swiglu" else self.activate(self.c_fc(x))
        h = self.c_proj(h)
        return self.dropout(h) if self.training else h


class Block(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.ln_1 = norm_layer(config)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = norm_layer(config)
        self.mlp = MLP(config)

    def forward(self, x, rope=None, cache=None, layer: int = 0):
        x = x + self.attn(self.ln_1(x), rope, cache, layer)
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
        self.transformer["ln_f"] = norm_layer(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        # whether training keeps each block's input alone and computes the rest again in backward, a third more work
        self.checkpoint_activations = False
        self.make_derived()
        self.init_weights(generator)

    def make_derived(self) -> None:
        """Makes what follows from config and weights, and so is not stored in a checkpoint: the tie, RoPE's tables."""
        if self.config.tie_weights and isinstance(self.lm_head, nn.Linear):  # not packed, not int8
            self.lm_head.weight = self.transformer.wte.weight
        if self.config.pos == "rope":
            for name, table in zip(("rope_cos", "rope_sin"), rope_table(self.config), strict=True):
                self.register_buffer(name, table.to(self.transformer.wte.weight.device), persistent=False)

    def _apply(self, fn, recurse: bool = True) -> "GPT":
        """What .to(), .half() and the like call. RoPE's tables stay float32, since bfloat16 is off by 0.01."""
        super()._apply(fn, recurse)
        self.make_derived()
        return self

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Fresh weights: embeddings N(0, 0.02), linear layers by `init`, biases 0, norms 1. Projections that write into
        the residual stream are scaled by 1/sqrt(2 n_layer), since 2 n_layer of them add up there (Radford et al. 2019,
        section 2.3)."""
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
        """Parameters, each tensor once. `non_embedding` leaves out the position table and, where the head is a matrix
        of its own, the token table: a tied table does the head's work, so it counts (as in nanoGPT)."""
        total = sum(p.numel() for p in self.parameters())
        if non_embedding:
            if self.config.pos == "learned":
                total -= self.transformer.wpe.weight.numel()
            if not self.config.tie_weights:
                total -= self.transformer.wte.weight.numel()
        return total

    def flops_per_token(self, block_size: int | None = None) -> int:
        """Training FLOPs (forward + backward) a token at context length block_size (default: the config's): 6 per
        weight that is multiplied, 4 if it is frozen (linear layers and the head; a table look-up is none) plus
        attention's 12 n_layer nh hs T, as in PaLM (arXiv:2204.02311, appendix B): the causal half that a flash kernel
        skips is counted, so that the MFU compares with published ones."""
        config, T = self.config, block_size or self.config.block_size
        weights = [module.weight for module in self.modules() if isinstance(module, nn.Linear)]
        linear = sum((6 if weight.requires_grad else 4) * weight.numel() for weight in weights)
        return linear + 12 * config.n_layer * config.n_head * config.head_size * T

    def crop_block_size(self, block_size: int) -> None:
        """Shortens the context in place, to fine-tune or sample with less memory."""
        if not 1 <= block_size <= self.config.block_size:
            raise ValueError(f"block_size={block_size} must be from 1 to the model's {self.config.block_size}")
        self.config = replace(self.config, block_size=block_size)
        if self.config.pos == "learned":
            wpe = self.transformer.wpe
            wpe.weight = nn.Parameter(wpe.weight[:block_size].detach().clone())
            wpe.num_embeddings = block_size
        self.make_derived()

    def embed(self, idx: torch.Tensor, cache=None) -> torch.Tensor:
        """idx (B, T) -> token embeddings (B, T, C), with a share of the previous token's where config.smear is on."""
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

    def hidden(self, idx: torch.Tensor, cache=None) -> torch.Tensor:
        """idx (B, T) int64 -> the last block's output (B, T, C): to be normed by ln_f, then read by the head. cache: an
        inference.cache.KVCache, which idx follows and is added to. Raises ValueError beyond block_size positions."""
        positions = slice(idx.size(1)) if cache is None else cache.positions(idx.size(1))
        if isinstance(positions, slice) and positions.stop > self.config.block_size:
            raise ValueError(f"{positions.stop} positions do not fit into block_size={self.config.block_size}")
        if cache is not None:
            cache.reserve(positions)
        x, rope = self.embed(idx, cache), None  # (B, T, C)
        if self.config.pos == "learned":
            x = x + self.transformer.wpe.weight[positions]
        else:
            rope = self.rope_cos[positions], self.rope_sin[positions]
        device = x.device.type
        if self.training and torch.is_autocast_enabled(device):
            if torch.get_autocast_dtype(device) == torch.bfloat16:  # float16 would overflow
                x = x.bfloat16() if device in NARROW_STREAM else x
                rope = [table.bfloat16() for table in rope] if rope and device == "cpu" else rope
        if self.training:
            x = self.transformer.drop(x)
        for layer, block in enumerate(self.transformer.h):
            if self.checkpoint_activations and self.training:
                x = checkpoint(block, x, rope, use_reentrant=False)
            else:
                x = block(x, rope, cache, layer)
        if cache is not None:
            cache.advance(idx.size(1))
        return x

    def forward(
        self, idx: torch.Tensor, targets: torch.Tensor | None = None, cache=None, return_logits=True, last=None
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """idx (B, T) int64 -> (logits, loss).

        With targets (B, T): logits (B, T, V) and the mean cross-entropy in nats over targets that are not -1 (0 if
        there is none). Without: logits of the last position only, (B, 1, V), and None; `last` (B,) int64 says which
        that is in rows with padding behind it. return_logits=False lets the loss be computed without ever holding all
        logits; the first result is then None. cache, and errors: see hidden.
        """
        x = self.hidden(idx, cache)
        if targets is None:
            x = x[:, -1:] if last is None else x[torch.arange(x.size(0), device=x.device), last][:, None]
            return self.logits(self.transformer.ln_f(x)), None
        x, flat, device = self.transformer.ln_f(x), targets.reshape(-1), x.device.type
        count = (flat != -1).sum().clamp(min=1)
        is_fused = torch.compiler.is_compiling()  # by the compiler, with the head
        if not return_logits and not is_fused and isinstance(self.lm_head, nn.Linear):  # not packed, not int8
            dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
            rows, grad = x.reshape(-1, x.size(-1)), torch.is_grad_enabled()
            loss = LinearCrossEntropy.apply(rows, self.lm_head.weight, flat, self.config.softcap, dtype, grad)
            return None, loss / count
        logits = self.logits(x)
        loss = F.cross_entropy(logits.view(-1, logits.size(-1)).float(), flat, ignore_index=-1, reduction="sum")
        return (logits if return_logits else None), loss / count

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """Applies the head and softcap to normed hidden states: x (..., C) -> (..., V)."""
        logits = self.lm_head(x)
        if self.config.softcap:
            logits = self.config.softcap * torch.tanh(logits / self.config.softcap)
        return logits

    @torch.no_grad()
    def generate(
        self, idx: torch.Tensor, max_new_tokens: int, temperature=1.0, top_k: int | None = None, generator=None
    ) -> torch.Tensor:
        """idx (B, T) and max_new_tokens sampled ids behind it, (B, T + max_new_tokens); temperature 0 is greedy. The
        plain way: the whole context again for every token. inference.generate.generate draws the same ids from the same
        torch.Generator, much faster. As there, a full context is cut to its second half. Raises ValueError for an empty
        prompt, and numbers out of range."""
        if idx.size(1) == 0:
            raise ValueError("the prompt is empty: start from at least one token, e.g. the end-of-text id")
        if not (temperature == 0 or 1e-5 <= temperature < math.inf) or (top_k or 0) < 0:
            raise ValueError(f"temperature={temperature} must be 0 or from 1e-5 on, top_k={top_k} not negative")
        was_training, context = self.training, idx[:, -self.config.block_size :]
        self.eval()
        try:
            for step in range(max_new_tokens):
                logits = self(context)[0][:, -1].float()  # (B, V)
                if temperature == 0:
                    new = logits.argmax(-1, keepdim=True)  # (B, 1)
                else:
                    few, order = logits.topk(top_k) if top_k and top_k < logits.size(-1) else (logits, None)
                    if step % 64 == 0:
                        draws = torch.rand(len(idx), 64, generator=generator, device=getattr(generator, "device", None))
                    cumulative = (few / temperature).softmax(-1).cumsum(-1)
                    draw = 1 - draws[:, step % 64, None].to(idx.device)
                    new = torch.searchsorted(cumulative, draw * cumulative[:, -1:])  # (B, 1)
                    new = new if order is None else order.gather(1, new)
                idx = torch.cat((idx, new), dim=1)
                is_full = context.size(1) == self.config.block_size
                context = idx[:, -max(1, context.size(1) // 2) :] if is_full else torch.cat((context, new), dim=1)
        finally:
            self.train(was_training)
        return idx


# ---- the same in less memory, or faster on a CPU --------------------------------------------------------------------


class Dropout(nn.Dropout):
    """nn.Dropout, on a CPU at a sixth of its cost (most of which is drawing numbers): each decision takes 8 random
    bits there, so p is rounded to one of 1/256 to 255/256. Its draws follow torch.manual_seed."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or self.p == 0 or x.device.type != "cpu":
            return super().forward(x)
        cut = min(255, max(1, round(256 * self.p)))
        bits = torch.empty(math.ceil(x.numel() / 8), dtype=torch.int64).random_(-(2**63), None)  # None: to the end
        drawn = bits.view(torch.uint8)[: x.numel()].view(x.shape).to(x.dtype)  # 0 to 255, exact in 16 bits too
        return x * drawn.sub_(cut - 1).clamp_(0, 1).mul_(256 / (256 - cut))  # a comparison takes four times as long


def dense_is_faster(q: torch.Tensor, dropout: float) -> bool:
    """PyTorch's flash kernel for CPUs has no dropout, is slow in bfloat16, above all backward (densely a third of its
    time at 256 positions), and in float32 wins up to 128 positions (RESULTS.md)."""
    return dropout > 0 or {torch.bfloat16: 0, torch.float32: 128}.get(q.dtype, 256) < q.size(2) <= 256  # holds scores


def dense_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, dropout: Dropout) -> torch.Tensor:
    """Causal attention of q (B, nh, T, hs) over k, v (B, nkv, T, hs) by plain matrix products: (B, nh, T, hs)."""
    B, nh, T, hs = q.shape  # (heads, B, T, hs) in memory
    q, k, v = (t.transpose(0, 1)[:, None].expand(-1, nh // t.size(1), -1, -1, -1).reshape(-1, T, hs) for t in (q, k, v))
    later, parts = torch.full((T, T), -math.inf, dtype=q.dtype, device=q.device).triu(1), []
    with torch.autocast(q.device.type, enabled=False):  # which would compute the softmax in float32
        for end in range(128, T + 128, 128):  # 128 queries at a time, as none needs the keys after them
            scores = torch.baddbmm(later[end - 128 : end, :end], q[:, end - 128 : end], k[:, :end].mT, alpha=hs**-0.5)
            parts.append(dropout(scores.softmax(-1)) @ v[:, :end])
    return torch.cat(parts, dim=1).view(nh, B, T, hs).transpose(0, 1)


def logits_at_once(device: torch.device) -> int:
    """How many to compute and drop at a time: what fits a CPU's cache, or 256 MiB in float32 elsewhere."""
    return 2**22 if device.type == "cpu" else 2**26


class LinearCrossEntropy(torch.autograd.Function):
    """Summed cross-entropy of softcapped logits x @ weight.T, a few rows at a time.

    The logits of a batch are its largest tensor by far. Here each chunk of them is used (on a CPU while still in its
    cache) for the loss and, if need_grad, at once for both gradients, and then dropped; backward only scales. x (N, C),
    weight (V, C), targets (N,) with -1 ignored; products in `dtype`, the loss and weight's gradient add up in float32.
    """

    @staticmethod
    def forward(ctx, x, weight, targets, softcap: float, dtype: torch.dtype, need_grad: bool):
        w = weight.to(dtype)
        w = F.pad(w, (0, 0, 0, -len(w) % 16)) if len(w) > 1024 and len(w) % 16 else w  # unaligned logits are slow
        rows = max(256, logits_at_once(x.device) // w.size(0))  # fewer multiply much more slowly
        total = torch.zeros((), dtype=torch.float32, device=x.device)
        if need_grad:  # the caller's, since ctx.needs_input_grad is True under no_grad as well
            grad_x = torch.empty_like(x)
            grad_w = torch.zeros_like(w, dtype=torch.float32) if ctx.needs_input_grad[1] else None  # None: frozen
        for start in range(0, x.size(0), rows):
            chunk = slice(start, start + rows)
            xc, target = x[chunk].to(dtype), targets[chunk, None]  # (rows, C), (rows, 1)
            valid = target != -1
            target = target.masked_fill(~valid, 0)  # only -1: another id out of range is an error in gather
            logits = (xc @ w.t()).float()  # (rows, V)
            if softcap:
                logits = softcap * torch.tanh(logits / softcap)
            logits[:, len(weight) :] = -1e9  # the padding has no probability, and no gradient
            grad = logits.softmax(1)  # from here on, in the same memory: softmax, then softmax - one-hot
            # log(sum(exp)) is any id's logit - log(probability); the likeliest's never underflows
            behind = logits.amax(1, keepdim=True) - logits[:, : len(weight)].gather(1, target)
            total += ((behind - grad.amax(1, keepdim=True).log()) * valid).sum()
            if need_grad:
                grad.scatter_add_(1, target, -torch.ones_like(grad[:, :1]))
                if softcap:
                    grad *= 1 - (logits / softcap).square()
                if dtype == torch.float16:  # loses small numbers before GradScaler's factor reaches them: scaled here,
                    # but so that no sum over rows can overflow, nor one over ids with weights up to 32
                    factor = (2**15 / (grad.norm(1, dim=0).amax() * xc.abs().amax())).clamp(max=2**10)
                    grad *= factor
                grad = grad.to(dtype)
                part = (grad @ w) * valid
                grad_x[chunk] = part.float() / factor if dtype == torch.float16 else part
                if grad_w is not None:
                    part = grad.t() @ (xc * valid)
                    grad_w += part.float() / factor if dtype == torch.float16 else part
        if need_grad:
            ctx.save_for_backward(grad_x, grad_w if grad_w is None else grad_w[: len(weight)].to(weight.dtype))
        return total

    @staticmethod
    def backward(ctx, grad_loss):
        grad_x, grad_w = ctx.saved_tensors
        return grad_x * grad_loss, grad_w if grad_w is None else grad_w * grad_loss, None, None, None, None
