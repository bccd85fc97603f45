"""What the loop needs to change weights: parameter groups, AdamW, Muon, the learning rate of a step.

optimizer = make_optimizer(model, learning_rate=6e-4, weight_decay=0.1, betas=(0.9, 0.95))
set_rates(optimizer, learning_rate_at(iter_num, horizon, 1.0, ...), iter_num)
"""

import math

import torch
import torch.distributed as dist

from system.device import pick_dtype
from system.distributed import place

MOMENTUM, MOMENTUM_START, MOMENTUM_WARMUP = 0.95, 0.85, 300  # of Muon, as in its author's speed runs


def make_optimizer(
    model: torch.nn.Module,
    learning_rate: float,
    weight_decay: float,
    betas: tuple[float, float],
    muon_learning_rate: float | None = None,
) -> torch.optim.Optimizer:
    """AdamW in nanoGPT's two groups, in its order, so that optimizer states are interchangeable: matrices
    (decayed), then biases and norm gains (not). Fused where PyTorch has a fused kernel (CUDA, CPU).

    With muon_learning_rate the matrices inside the blocks form a group before these two, updated by Muon.
    Every group carries its `max_lr`, the height of its schedule; see set_rates.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    in_muon = {name for name, p in named if muon_learning_rate is not None and p.dim() == 2 and ".h." in name}
    adam = {"lr": learning_rate, "max_lr": learning_rate, "muon": False}
    groups = [
        {"params": [p for n, p in named if p.dim() >= 2 and n not in in_muon], "weight_decay": weight_decay, **adam},
        {"params": [p for _, p in named if p.dim() < 2], "weight_decay": 0.0, **adam},
    ]
    fused = named[0][1].device.type in ("cuda", "cpu")
    if not in_muon:
        return torch.optim.AdamW(groups, betas=betas, fused=fused)
    for module in model.modules():
        if hasattr(module, "c_attn"):
            module.c_attn.weight.parts = [h * module.head_dim for h in (module.n_head, *[module.n_kv_head] * 2)]
    muon = {
        "lr": muon_learning_rate,
        "max_lr": muon_learning_rate,
        "muon": True,
        "weight_decay": weight_decay,
        "momentum": MOMENTUM,
    }
    groups.insert(0, {"params": [p for n, p in named if n in in_muon], **muon})
    return MuonAdamW(groups, betas=betas, fused=fused)


def set_rates(optimizer: torch.optim.Optimizer, share: float, iter_num: int) -> None:
    """Settings of step iter_num: `share` of every group's highest learning rate, and Muon's momentum, which rises to
    MOMENTUM over the first MOMENTUM_WARMUP steps: at first a long average is one of gradients that are out of date."""
    for group in optimizer.param_groups:
        group["lr"] = share * group["max_lr"]
        if group["muon"]:
            group["momentum"] = MOMENTUM - (MOMENTUM - MOMENTUM_START) * max(0.0, 1 - iter_num / MOMENTUM_WARMUP)


class MuonAdamW(torch.optim.AdamW):
    """AdamW whose groups with muon=True take Muon's step instead (Jordan et al. 2024,
    kellerjordan.github.io/posts/muon): the Nesterov momentum of a matrix, orthogonalised, so that all its directions
    move alike.

    With several processes, whose gradients are the same by then (DDP), each orthogonalises its share of the matrices
    of a shape, and they exchange the results. The momentum is everywhere: a checkpoint fits any number of processes.
    """

    def __init__(self, groups: list[dict], **adamw):
        super().__init__(groups, **adamw)
        self._step_supports_amp_scaling = False  # GradScaler shall skip a step itself, fused AdamW or not

    @torch.no_grad()
    def step(self, closure=None):
        assert closure is None
        groups = self.param_groups
        for group in groups:
            if group["muon"]:
                self.muon_step(group)
        try:
            self.param_groups = [group for group in groups if not group["muon"]]
            return super().step()
        finally:
            self.param_groups = groups

    def muon_step(self, group: dict) -> None:
        by_shape: dict[torch.Size, list[tuple[torch.Tensor, torch.Tensor]]] = {}
        for p in group["params"]:
            state = self.state[p]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(p)
                state["step"] = torch.zeros(())  # AdamW wants one in every state that it loads
            state["step"] += 1
            state["momentum_buffer"].lerp_(p.grad, 1 - group["momentum"])
            update = p.grad.lerp(state["momentum_buffer"], group["momentum"])
            parts = getattr(p, "parts", p.size(0))  # queries, keys and values are matrices of their own
            for weight, part in zip(p.split(parts), update.split(parts), strict=True):
                by_shape.setdefault(part.shape, []).append((weight, part))
        for (rows, columns), pairs in by_shape.items():
            scale = group["lr"] * max(1, rows / columns) ** 0.5
            updates = share_out(orthogonalize, torch.stack([part for _, part in pairs]))
            for (weight, _), update in zip(pairs, updates, strict=True):
                weight.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=scale)


def share_out(function, stacked: torch.Tensor) -> torch.Tensor:
    """function(stacked), of which each process computes a part; `stacked` (n, ...) is the same in all of them."""
    n_ranks = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    if n_ranks == 1:
        return function(stacked)
    share = math.ceil(len(stacked) / n_ranks)
    mine = stacked[dist.get_rank() * share :][:share]
    part = torch.zeros(share, *stacked.shape[1:], dtype=stacked.dtype, device=stacked.device)
    if len(mine):
        part[: len(mine)] = function(mine)
    parts = torch.empty(n_ranks * share, *stacked.shape[1:], dtype=stacked.dtype, device=stacked.device)
    dist.all_gather_into_tensor(parts, part)
    return parts[: len(stacked)]


def orthogonalize(matrices: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """The nearest semi-orthogonal matrices to `matrices` (n, rows, columns), roughly: singular values end between
    0.7 and 1.2. A quintic Newton-Schulz iteration, whose coefficients are Muon's, in bfloat16 where that is native (on
    a CPU without it, bfloat16 took four times float32's time)."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrices.size(1) > matrices.size(2)
    native = pick_dtype("auto", matrices.device) == torch.bfloat16
    x = (matrices.mT if tall else matrices).to(torch.bfloat16 if native else torch.float32)  # the smaller product
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)  # singular values at most 1
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict) -> None:
    """Loads the moments and step counts of `state`; learning rate, decay, betas and the choice of kernel stay
    as `optimizer` was made, since a resumed run may change them. On the CPU the moments become the optimizer's own,
    so `state` must not be mapped from a file then; sharded parameters take their shards. Raises ValueError if the
    groups differ."""
    saved = state["param_groups"]
    found, expected = ([len(g["params"]) for g in groups] for groups in (saved, optimizer.param_groups))
    if found != expected:
        raise ValueError(
            f"the checkpoint's optimizer has groups of {found} tensors, this model needs {expected}: "
            "fine-tune from its weights instead (--init_from=PATH)"
        )
    own = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    groups = [{**mine, "params": theirs["params"]} for mine, theirs in zip(own, saved, strict=True)]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    moments = {  # step counts stay on the CPU where AdamW is not fused: not in a mapped file, which may be replaced
        number: {
            key: v.clone() if torch.is_tensor(v) and not v.dim() else place(v, parameters[number])
            for key, v in slot.items()
        }
        for number, slot in state["state"].items()
    }
    optimizer.load_state_dict({"state": moments, "param_groups": groups})


def learning_rate_at(
    iter_num: int,
    horizon: int,
    learning_rate: float,
    min_lr: float,
    warmup_iters: int,
    schedule: str = "cosine",
    time_used: float = 0.0,
    cooldown: float = 0.5,
) -> float:
    """Learning rate of step iter_num (counted from 0).

    Linear warmup over warmup_iters steps whose first is above 0. Then, down to min_lr at step `horizon`, or when
    time_used (the share of a wall-clock limit, 0 to 1) gets there first: half a 'cosine'; 'linear'; or 'wsd'
    (warmup, stable, decay), which stays at the height until the last `cooldown` of that way and falls linearly.
    'constant' stays.
    """
    if iter_num < warmup_iters:
        return learning_rate * (iter_num + 1) / (warmup_iters + 1)
    if schedule == "constant":
        return learning_rate
    left = 1 - min(1.0, max((iter_num - warmup_iters) / max(1, horizon - warmup_iters), time_used))
    if schedule == "cosine":
        height = 0.5 - 0.5 * math.cos(math.pi * left)
    else:
        height = min(1.0, left / cooldown) if schedule == "wsd" else left
    return min_lr + height * (learning_rate - min_lr)


def learning_rate_share(config, iter_num: int, limit: int, elapsed: float) -> float:
    """Share of every group's highest learning rate at step iter_num of a run that ends at step `limit`, or after
    config.max_minutes, of which `elapsed` seconds have passed. config: train.py's TrainConfig."""
    if not config.decay_lr:
        return 1.0
    horizon = limit if config.lr_decay_iters is None else config.lr_decay_iters
    warmup_iters = min(2000, horizon // 10) if config.warmup_iters is None else config.warmup_iters
    time_used = elapsed / (60 * config.max_minutes) if config.max_minutes else 0.0
    lowest = config.min_lr / config.learning_rate
    return learning_rate_at(iter_num, horizon, 1.0, lowest, warmup_iters, config.schedule, time_used, config.cooldown)
