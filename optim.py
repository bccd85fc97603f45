"""What the loop needs to change weights: parameter groups, AdamW, the learning rate of a step.

    optimizer = make_optimizer(model, learning_rate=6e-4, weight_decay=0.1, betas=(0.9, 0.95))
    for group in optimizer.param_groups:
        group["lr"] = learning_rate_at(iter_num, horizon, ...)
"""

import math

import torch


def make_optimizer(
    model: torch.nn.Module, learning_rate: float, weight_decay: float, betas: tuple[float, float]
) -> torch.optim.AdamW:
    """AdamW in nanoGPT's two groups, in its order, so that optimizer states are interchangeable: matrices
    (decayed), then biases and norm gains (not). Fused where PyTorch has a fused kernel (CUDA, CPU)."""
    params = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in params if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in params if p.dim() < 2], "weight_decay": 0.0},
    ]
    fused = params[0].device.type in ("cuda", "cpu")
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=fused)


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict) -> None:
    """Loads the moments and step counts of `state`; learning rate, decay, betas and the choice of kernel stay
    as `optimizer` was made, since a resumed run may change them. Raises ValueError if the groups differ."""
    saved = state["param_groups"]
    found, expected = ([len(g["params"]) for g in groups] for groups in (saved, optimizer.param_groups))
    if found != expected:
        raise ValueError(
            f"the checkpoint's optimizer has groups of {found} tensors, this model needs {expected}: "
            "fine-tune from its weights instead (--init_from=PATH)"
        )
    own = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    groups = [{**mine, "params": theirs["params"]} for mine, theirs in zip(own, saved, strict=True)]
    optimizer.load_state_dict({"state": state["state"], "param_groups": groups})


def learning_rate_at(
    iter_num: int,
    horizon: int,
    learning_rate: float,
    min_lr: float,
    warmup_iters: int,
    schedule: str = "cosine",
    time_used: float = 0.0,
) -> float:
    """Learning rate of step iter_num (counted from 0).

    Linear warmup over warmup_iters steps whose first is above 0, then a half cosine down to min_lr at step
    `horizon`, or when time_used (the share of a wall-clock limit, 0 to 1) gets there first; 'constant' stays.
    """
    if iter_num < warmup_iters:
        return learning_rate * (iter_num + 1) / (warmup_iters + 1)
    if schedule == "constant":
        return learning_rate
    done = max((iter_num - warmup_iters) / max(1, horizon - warmup_iters), time_used)
    return min_lr + 0.5 * (1 + math.cos(math.pi * min(1.0, done))) * (learning_rate - min_lr)
