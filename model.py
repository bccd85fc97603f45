"""The GPT: GPT-2 and its modern variants in one file, by configuration. Imports torch only.

    from model import GPT, GPTConfig
    model = GPT(GPTConfig(block_size=256, vocab_size=65, n_layer=6, n_head=6, n_embd=384))
    logits, loss = model(idx, targets)          # idx, targets: (B, T) int64
    ids = model.generate(idx, max_new_tokens=100, temperature=0.8, top_k=200)

Shapes in comments: B batch, T positions, C n_embd, nh n_head, nkv n_kv_head, hs head_dim, V vocab_size.
Parameter names are nanoGPT's, so GPT-2-shaped checkpoints move in both directions.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import torch
import torch.nn as nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

# logits that LinearCrossEntropy holds at a time; measured on a 2-core CPU: 512 rows of 4,435 take a third of
# the plain path's time (a constant of the module: torch.compile can't read one from an autograd.Function)
CHUNK = 2**21
# up to this T * head_dim a CPU trains attention in float32 even under bfloat16 autocast: there the bfloat16 flash
# kernel's backward is the slower one (2 cores, T=64, head_dim 32: 4.4 ms against 0.7)
SHORT_ATTENTION = 256 * 64

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
        rows = max(128, CHUNK // w.size(0))
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
            logits = xc @ w.t()  # (rows, V)
            if softcap:
                logits = softcap * torch.tanh(logits.float() / softcap)
            log_probs = F.log_softmax(logits, dim=1, dtype=torch.float32)
            total -= (log_probs.gather(1, target) * valid).sum()
            if need_grad:
                grad = log_probs.exp_()  # softmax - one-hot, in the same memory
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


class KVCache:
    """Keys and values of the positions seen so far; preallocated for block_size positions.

    k, v: (n_layer, B, nkv, block_size, hs). `length` positions are filled. The caller makes one per batch
    and passes it to GPT.forward, which appends to it.
    """

    def __init__(self, config: GPTConfig, batch_size: int, device=None, dtype=None):
        shape = (config.n_layer, batch_size, config.kv_heads, config.block_size, config.head_size)
        self.k = torch.empty(shape, device=device, dtype=dtype)
        self.v = torch.empty(shape, device=device, dtype=dtype)
        self.length = 0

    def append(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Stores k, v (B, nkv, T, hs) behind `length`; returns all keys and values up to the new end."""
        end = self.length + k.size(2)
        self.k[layer, :, :, self.length : end] = k
        self.v[layer, :, :, self.length : end] = v
        return self.k[layer, :, :, :end], self.v[layer, :, :, :end]


class CausalSelfAttention(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.n_head, self.n_kv_head, self.head_dim = config.n_head, config.kv_heads, config.head_size
        # queries, keys and values from one matrix: (nh + 2 nkv) heads of width hs, in that order
        self.c_attn = nn.Linear(
            config.n_embd, (self.n_head + 2 * self.n_kv_head) * self.head_dim, bias=config.bias
        )
        self.c_proj = nn.Linear(self.n_head * self.head_dim, config.n_embd, bias=config.bias)
        if config.qk_norm:
            self.q_norm = nn.RMSNorm(self.head_dim, eps=config.norm_eps)
            self.k_norm = nn.RMSNorm(self.head_dim, eps=config.norm_eps)
        self.qk_norm = config.qk_norm
        self.dropout = config.dropout
        self.resid_dropout = nn.Dropout(config.dropout)

    def forward(self, x, rope=None, cache: KVCache | None = None, layer: int = 0):
        B, T, _ = x.size()
        nh, nkv, hs = self.n_head, self.n_kv_head, self.head_dim
        q, k, v = self.c_attn(x).split((nh * hs, nkv * hs, nkv * hs), dim=2)
        q = q.view(B, T, nh, hs).transpose(1, 2)  # (B, nh, T, hs)
        k = k.view(B, T, nkv, hs).transpose(1, 2)  # (B, nkv, T, hs)
        v = v.view(B, T, nkv, hs).transpose(1, 2)  # (B, nkv, T, hs)
        if self.qk_norm:
            wide = self.q_norm.weight.dtype  # under autocast: mixed types are a slow path with a warning
            q, k = self.q_norm(q.to(wide)).to(v.dtype), self.k_norm(k.to(wide)).to(v.dtype)
        if rope is not None:
            q, k = apply_rope(q, rope), apply_rope(k, rope)
        mask = None
        if cache is not None:
            k, v = (t.to(q.dtype) for t in cache.append(layer, k, v))
            if T > 1 and cache.length > 0:  # several new positions behind old ones: not a square causal mask
                mask = torch.ones(T, k.size(2), dtype=torch.bool, device=x.device).tril(cache.length)
        if self.training and x.device.type == "cpu" and T * hs <= SHORT_ATTENTION:
            q, k, v = q.float(), k.float(), v.float()
        with torch.autocast(x.device.type, enabled=False):  # the dtypes are settled
            y = F.scaled_dot_product_attention(
                q,
                k,
                v,
                attn_mask=mask,
                dropout_p=self.dropout if self.training else 0.0,
                is_causal=mask is None and T > 1,
                enable_gqa=nkv != nh,
            )  # (B, nh, T, hs)
        y = y.transpose(1, 2).reshape(B, T, nh * hs)
        return self.resid_dropout(self.c_proj(y))


class MLP(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.kind = config.mlp
        self.c_fc = nn.Linear(config.n_embd, config.mlp_width, bias=config.bias)
        if config.mlp == "swiglu":
            self.c_gate = nn.Linear(config.n_embd, config.mlp_width, bias=config.bias)
        self.c_proj = nn.Linear(config.mlp_width, config.n_embd, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x):
        h = self.c_fc(x)
        if self.kind == "swiglu":  # Shazeer 2020 (arXiv:2002.05202)
            h = F.silu(self.c_gate(x)) * h
        elif self.kind == "relu2":  # So et al. 2021 (arXiv:2109.08668)
            h = F.relu(h).square()
        else:
            h = F.gelu(h, approximate="tanh" if self.kind == "gelu_tanh" else "none")
        return self.dropout(self.c_proj(h))


class Block(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.ln_1 = norm_layer(config, config.n_embd)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = norm_layer(config, config.n_embd)
        self.mlp = MLP(config)

    def forward(self, x, rope=None, cache: KVCache | None = None, layer: int = 0):
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
        self.transformer["drop"] = nn.Dropout(config.dropout)
        self.transformer["h"] = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.transformer["ln_f"] = norm_layer(config, config.n_embd)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        if config.tie_weights:
            self.lm_head.weight = self.transformer.wte.weight
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

    def forward(
        self,
        idx: torch.Tensor,
        targets: torch.Tensor | None = None,
        cache: KVCache | None = None,
        return_logits: bool = True,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """idx (B, T) int64 -> (logits, loss).

        With targets (B, T): logits (B, T, V) and the mean cross-entropy in nats over targets that are not -1
        (0 if there is none). Without: logits of the last position only, (B, 1, V), and None. With a cache the
        T positions follow the cache.length that are in it, and are added to it. return_logits=False lets the
        loss be computed without ever holding all logits; the first result is then None.
        Raises ValueError if the positions exceed block_size.
        """
        T, start = idx.size(1), cache.length if cache is not None else 0
        if start + T > self.config.block_size:
            raise ValueError(f"{start + T} positions do not fit into block_size={self.config.block_size}")
        x = self.transformer.wte(idx)  # (B, T, C)
        rope = None
        if self.config.pos == "learned":
            x = x + self.transformer.wpe.weight[start : start + T]
        else:
            rope = self.rope_cos[start : start + T], self.rope_sin[start : start + T]
        x = self.transformer.drop(x)
        for layer, block in enumerate(self.transformer.h):
            if self.checkpoint_activations and self.training:
                x = checkpoint(block, x, rope, use_reentrant=False)
            else:
                x = block(x, rope, cache, layer)
        if cache is not None:
            cache.length += T
        if targets is None:
            return self._logits(self.transformer.ln_f(x[:, -1:])), None
        x, flat = self.transformer.ln_f(x), targets.reshape(-1)
        count = (flat != -1).sum().clamp(min=1)
        device = x.device.type
        if device == "cpu" and not return_logits:
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

    @torch.no_grad()
    def stream(
        self,
        idx: torch.Tensor,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        generator: torch.Generator | None = None,
        vocab_size: int | None = None,
    ) -> Iterator[torch.Tensor]:
        """Continues idx (B, T), T >= 1, and yields the next ids (B,) as soon as they are drawn.

        temperature 0 is greedy. vocab_size: draw only ids below it (the model's own may be padded). The model
        sees at most the last block_size ids; when the cache is full its last half is encoded again, so a long
        text costs one such pass for every block_size / 2 tokens. Raises ValueError if T is 0.
        """
        assert not self.training, "call model.eval() first: dropout would change the text"
        if idx.size(1) == 0:
            raise ValueError("the prompt is empty: start from at least one token, e.g. the end-of-text id")
        block_size = self.config.block_size
        cache = KVCache(self.config, idx.size(0), device=idx.device, dtype=self.lm_head.weight.dtype)
        history = new = idx[:, -block_size:]
        for _ in range(max_new_tokens):
            if cache.length + new.size(1) > block_size:
                new = history[:, -max(1, block_size // 2) :]
                cache.length = 0
            logits = self(new, cache=cache)[0][:, -1, :vocab_size].float()  # (B, V)
            new = sample_next(logits, temperature, top_k, top_p, generator)  # (B, 1)
            history = torch.cat((history, new), dim=1)[:, -block_size:]
            yield new[:, 0]

    def generate(self, idx: torch.Tensor, max_new_tokens: int, *args, **kwargs) -> torch.Tensor:
        """idx (B, T) and max_new_tokens ids behind it, (B, T + max_new_tokens). Arguments as `stream`."""
        was_training = self.training
        self.eval()
        try:
            new = [ids[:, None] for ids in self.stream(idx, max_new_tokens, *args, **kwargs)]
        finally:
            self.train(was_training)
        return torch.cat((idx, *new), dim=1)


def sample_next(
    logits: torch.Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Draws one id a row from logits (B, V) float32; returns (B, 1) int64.

    temperature 0 takes the largest logit. top_k keeps the k largest logits and any that equal the k-th (None
    or 0: all); top_p then keeps the smallest set of ids whose probability reaches p (Holtzman et al. 2019,
    arXiv:1904.09751), at least one. Raises ValueError if temperature or top_k is negative.
    """
    if temperature < 0 or (top_k or 0) < 0:
        raise ValueError(f"temperature={temperature} and top_k={top_k} must not be negative")
    if temperature == 0:
        return logits.argmax(dim=-1, keepdim=True)
    logits = logits / temperature
    if top_k and top_k < logits.size(-1):
        kth = logits.topk(top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < kth, -math.inf)
    probs = F.softmax(logits, dim=-1)
    if top_p is not None and top_p < 1:
        ordered, order = probs.sort(dim=-1, descending=True)
        beyond = ordered.cumsum(dim=-1) - ordered >= top_p  # the ids before this one already reach p
        beyond[:, 0] = False
        probs = probs.scatter(1, order, ordered.masked_fill(beyond, 0.0))
    return torch.multinomial(probs, 1, generator=generator)
