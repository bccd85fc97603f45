"""Parameter groups, what is loaded into an optimizer, and the learning rate schedule."""

import math

import torch

from model import GPT
from system.distributed import place
from training.adamw import AdamW
from training.muon import MOMENTUM, MOMENTUM_START, MOMENTUM_WARMUP, MuonAdamW


def make_optimizer(
    model: GPT, learning_rate: float, weight_decay: float, betas: tuple, muon_learning_rate: float | None = None
) -> torch.optim.Optimizer:
    """AdamW with nanoGPT's two groups in its order, so that optimizer states are interchangeable: matrices (decayed),
    then biases and norm gains (not). Fused on CUDA and the CPU, which have a fused kernel. With muon_learning_rate,
    the matrices inside the blocks form a group before these, updated by Muon. Each group's peak rate is its max_lr."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    in_muon = {name for name, p in named if muon_learning_rate is not None and p.dim() == 2 and ".h." in name}
    adam = {"lr": learning_rate, "max_lr": learning_rate, "muon": False}
    groups = [
        {"params": [p for n, p in named if p.dim() >= 2 and n not in in_muon], "weight_decay": weight_decay, **adam},
        {"params": [p for _, p in named if p.dim() < 2], "weight_decay": 0.0, **adam},
    ]
    fused = named[0][1].device.type in ("cuda", "cpu")
    if not in_muon:
        return AdamW(groups, betas=betas, fused=fused)
    for module in model.modules():
        if hasattr(module, "c_attn"):
            module.c_attn.weight.parts = [h * module.head_dim for h in (module.n_head, *[module.n_kv_head] * 2)]
    muon = {"lr": muon_learning_rate, "max_lr": muon_learning_rate, "muon": True, "weight_decay": weight_decay}
    groups.insert(0, {"params": [p for n, p in named if n in in_muon], **muon, "momentum": MOMENTUM})
    return MuonAdamW(groups, betas=betas, fused=fused)


def set_rates(optimizer: torch.optim.Optimizer, share: float, iter_num: int) -> None:
    """Sets each group's learning rate to `share` of its peak, and Muon's momentum, which rises to MOMENTUM over the
    first MOMENTUM_WARMUP steps because a long average would include early gradients that are out of date."""
    for group in optimizer.param_groups:
        group["lr"] = share * group["max_lr"]
        if group["muon"]:
            group["momentum"] = MOMENTUM - (MOMENTUM - MOMENTUM_START) * max(0.0, 1 - iter_num / MOMENTUM_WARMUP)


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict) -> None:
    """Loads the moments and step counts of `state`. Learning rate, decay, betas and kernel stay the optimizer's, since
    a resumed run may change them. On the CPU the optimizer keeps the tensors of `state`: they must not be mapped from a
    file. Sharded parameters take their shards. Raises ValueError if the groups differ."""
    saved = state["param_groups"]
    found, expected = ([len(g["params"]) for g in groups] for groups in (saved, optimizer.param_groups))
    if found != expected:
        problem = f"the checkpoint's optimizer has groups of {found} tensors, but this model needs {expected}"
        raise ValueError(f"{problem}: fine-tune from its weights instead (--init_from=PATH)")
    own = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    groups = [{**mine, "params": theirs["params"]} for mine, theirs in zip(own, saved, strict=True)]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    moments = {  # unfused AdamW keeps step counts on the CPU: copied, since a mapped file may be replaced
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
    lowest: float,
    warmup_iters: int,
    schedule: str = "cosine",
    time_used: float = 0.0,
    cooldown: float = 0.5,
) -> float:
    """Fraction of the peak rate at step iter_num, counted from 0: a linear warmup over warmup_iters steps that starts
    above 0, then a decay to `lowest` at step `horizon`, or when time_used (the fraction of a wall-clock limit) reaches
    1. The decay is half a 'cosine', 'linear', 'wsd' (warmup, stable, decay: linear over its last fraction `cooldown`)
    or 'constant'."""
    if iter_num < warmup_iters:
        return (iter_num + 1) / (warmup_iters + 1)
    if schedule == "constant":
        return 1.0
    left = 1 - min(1.0, max((iter_num - warmup_iters) / max(1, horizon - warmup_iters), time_used))
    if schedule == "cosine":
        height = 0.5 - 0.5 * math.cos(math.pi * left)
    else:
        height = min(1.0, left / cooldown) if schedule == "wsd" else left
    return lowest + height * (1 - lowest)


def learning_rate_share(config, iter_num: int, limit: int, elapsed: float) -> float:
    """Fraction of the peak learning rates at step iter_num, `elapsed` seconds into a run that ends at step `limit` or
    after max_minutes. config: train.py's TrainConfig."""
    if not config.decay_lr:
        return 1.0
    horizon = limit if config.lr_decay_iters is None else config.lr_decay_iters
    time_used = elapsed / (60 * config.max_minutes) if config.max_minutes else 0.0
    warmup_iters = config.warmup_iters
    if warmup_iters is None:
        steps = iter_num / time_used if time_used else horizon  # by the clock, and after a slow first step too few
        warmup_iters = int(min(2000, horizon // 10, max(20, steps // 10)))
    lowest = min(1.0, config.min_lr / config.learning_rate)
    return learning_rate_at(iter_num, horizon, lowest, warmup_iters, config.schedule, time_used, config.cooldown)
