"""Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon), by one process or shared by many."""

import math
from collections.abc import Callable

import torch
import torch.distributed as dist

from system.device import pick_dtype
from system.distributed import is_shard
from training.adamw import AdamW

MOMENTUM, MOMENTUM_START, MOMENTUM_WARMUP = 0.95, 0.85, 300  # as in its author's speed runs
A, B, C = 3.4445, -4.7750, 2.0315  # its coefficients: a step is x -> A x + (B g + C g g) x, where g = x x^T


class MuonAdamW(AdamW):
    """AdamW, except that groups with muon=True are updated by Muon: a matrix moves along its Nesterov momentum,
    orthogonalized, so that all its directions move alike. A parameter with `parts` counts as separate matrices of that
    many rows. Every process has the momentum of the rows it has, with DDP of all, so a checkpoint fits any number of
    processes. orthogonalize: the function below, which may be compiled."""

    def __init__(self, groups: list[dict], **adamw):
        super().__init__(groups, **adamw)
        self._step_supports_amp_scaling = False  # GradScaler must skip steps itself, although AdamW is fused
        self.orthogonalize = orthogonalize

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
        parameters = group["params"]
        for p in parameters:
            state = self.state[p]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(p)
                state["step"] = torch.zeros(())  # load_state_dict of AdamW requires one
            state["step"] += 1
        gradients = [local(p.grad) for p in parameters]
        momenta = [local(self.state[p]["momentum_buffer"]) for p in parameters]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        directions = torch._foreach_lerp(gradients, momenta, group["momentum"])
        weights = [local(p) for p in parameters]
        torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        self.mover(parameters)(parameters, weights, directions, group["lr"])

    @torch.no_grad()
    def try_shapes(self) -> None:
        """Calls orthogonalize with all shapes of a step, so that it is compiled for them, and changes nothing."""
        for parameters in (group["params"] for group in self.param_groups if group["muon"]):
            copies = [local(p).clone() for p in parameters]
            self.mover(parameters)(parameters, copies, [torch.ones_like(copy) for copy in copies], 0.0)

    def mover(self, parameters: list) -> Callable:
        return self.move_shards if any(map(is_shard, parameters)) else self.move

    def move(self, parameters: list, weights: list, directions: list, lr: float) -> None:
        """Moves whole weights. Each process orthogonalizes its share of the matrices of a shape, and all exchange the
        results."""
        by_shape: dict[torch.Size, list[tuple[torch.Tensor, torch.Tensor]]] = {}
        for p, weight, direction in zip(parameters, weights, directions, strict=True):
            parts = rows_of_parts(p)
            for pair in zip(weight.split(parts), direction.split(parts), strict=True):
                by_shape.setdefault(pair[0].shape, []).append(pair)
        for shape, pairs in by_shape.items():
            stacked = torch.stack([direction for _, direction in pairs])
            result = share_out(self.orthogonalize, stacked.to(iteration_dtype(stacked.device)))
            # contiguous, as the weights: else CUDA updates them one by one
            updates = result.to(stacked.dtype, memory_format=torch.contiguous_format).unbind()
            torch._foreach_sub_([weight for weight, _ in pairs], updates, alpha=lr * scale_of(*shape))

    def move_shards(self, parameters: list, weights: list, directions: list, lr: float) -> None:
        """Moves FSDP2's shards of weights, some rows of each. A process is sent its share of the matrices of a shape,
        whole, orthogonalizes them, and returns to each process the rows that are its own."""
        by_kind: dict[tuple, list[int]] = {}
        for i, p in enumerate(parameters):
            by_kind.setdefault((p.shape, tuple(rows_of_parts(p))), []).append(i)
        for ((n_rows, columns), parts), numbers in by_kind.items():

            def whole(matrices: torch.Tensor, parts=parts) -> torch.Tensor:
                return torch.cat([self.orthogonalize(part) for part in matrices.split(parts, dim=1)], dim=1)

            stacked = torch.stack([directions[i] for i in numbers])
            updates = on_owners(whole, stacked.to(iteration_dtype(stacked.device)), n_rows).to(stacked.dtype)
            scales = [torch.full((rows, 1), scale_of(rows, columns), device=stacked.device) for rows in parts]
            first = dist.get_rank() * math.ceil(n_rows / dist.get_world_size())
            updates *= torch.cat(scales)[first:][: updates.size(1)]
            torch._foreach_sub_([weights[i] for i in numbers], updates.unbind(), alpha=lr)


def local(tensor: torch.Tensor) -> torch.Tensor:
    """The rows of a sharded tensor that this process has; another tensor as it is."""
    return tensor.to_local() if is_shard(tensor) else tensor


def rows_of_parts(parameter: torch.Tensor) -> list[int]:
    """The rows of each matrix in a parameter: queries, keys and values count as three."""
    return getattr(parameter, "parts", [parameter.size(0)])


def scale_of(rows: int, columns: int) -> float:
    return max(1, rows / columns) ** 0.5


def iteration_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where that is native: on a CPU without it, it took four times float32's time."""
    return torch.bfloat16 if pick_dtype("auto", device) == torch.bfloat16 else torch.float32


def orthogonalize(matrices: torch.Tensor) -> torch.Tensor:
    """Approximately the nearest semi-orthogonal matrices to `matrices` (n, rows, columns): singular values end between
    0.7 and 1.2. Five steps of a quintic Newton-Schulz iteration with Muon's coefficients."""
    tall, is_bfloat16 = matrices.size(1) > matrices.size(2), matrices.dtype == torch.bfloat16
    x = matrices.mT if tall else matrices  # wide: the smaller product
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)  # singular values at most 1
    rows, columns = x.shape[1:]
    if columns >= 2 * rows and not (is_bfloat16 and (rows < 128 or columns < 2.5 * rows)):  # else no gain
        for steps in (3, 2) if is_bfloat16 else (5,):
            x = iterate_gram(x, steps)
    else:
        for _ in range(5):
            x = torch.baddbmm(x, polynomial(x @ x.mT), x, beta=A)
    return x.mT if tall else x


def polynomial(gram: torch.Tensor) -> torch.Tensor:
    return torch.baddbmm(gram, gram, gram, beta=B, alpha=C)


def iterate_gram(x: torch.Tensor, steps: int) -> torch.Tensor:
    """The same iteration of wide x, with 5/9 of the arithmetic where it has 4 times as many columns as rows (in two
    parts 2/3): each step multiplies x by a polynomial of g, and so g by its square, which takes small matrices alone.
    A rounding error of g grows by A^2, twelvefold, a step. So in bfloat16 g is made anew from x after three of five:
    the result is off by 2 to 4 % (plain bfloat16: 1 to 3 %; where most singular values are tiny, both more), which
    would else be many times itself."""
    gram, factors = x @ x.mT, None
    for step in range(steps):
        factor = polynomial(gram)
        factor.diagonal(dim1=1, dim2=2).add_(A)
        factors = factor if factors is None else factor @ factors
        if step < steps - 1:
            gram = factor @ gram @ factor
    return factors @ x


def share_out(function: Callable, stacked: torch.Tensor) -> torch.Tensor:
    """function(stacked), each process computing a part of it; `stacked` (n, ...) is the same in all processes."""
    n_ranks = dist.get_world_size() if dist.is_initialized() else 1
    if n_ranks == 1:
        return function(stacked)
    share = math.ceil(len(stacked) / n_ranks)
    mine = stacked[dist.get_rank() * share :][:share]
    part = torch.zeros(share, *stacked.shape[1:], dtype=stacked.dtype, device=stacked.device)
    if len(mine):
        part[: len(mine)] = function(mine)
    parts = torch.empty(n_ranks * share, *stacked.shape[1:], dtype=stacked.dtype, device=stacked.device)
    # its name from PyTorch 2.13 on, where the earlier one warns
    gather = dist.all_gather_single if hasattr(dist, "all_gather_single") else dist.all_gather_into_tensor
    gather(parts, part)
    return parts[: len(stacked)]


def on_owners(function: Callable, mine: torch.Tensor, n_rows: int) -> torch.Tensor:
    """function of n matrices (n, n_rows, columns), each computed by one process, from and to FSDP2's shards: process r
    has the r-th of the equal heights into which n_rows is cut, the last ones less. mine: (n, up to height, columns)."""
    n_ranks, (n, n_mine, columns) = dist.get_world_size(), mine.shape
    share, height = math.ceil(n / n_ranks), math.ceil(n_rows / n_ranks)
    padded = mine.new_zeros(n_ranks * share, height, columns)
    padded[:n, :n_mine] = mine
    # (process, matrix, row, column): to each its share of the matrices, from each its rows of my share
    received = exchange(padded.view(n_ranks, share, height, columns))
    matrices = received.transpose(0, 1).reshape(share, n_ranks * height, columns)
    owned = matrices[: max(0, n - dist.get_rank() * share), :n_rows]
    if len(owned):
        owned.copy_(function(owned))
    returned = exchange(matrices.view(share, n_ranks, height, columns).transpose(0, 1).contiguous())
    return returned.view(n_ranks * share, height, columns)[:n, :n_mine]


def exchange(parts: torch.Tensor) -> torch.Tensor:
    """parts[r] goes to process r; returns what came, by sender."""
    received = torch.empty_like(parts)
    dist.all_to_all_single(received, parts)
    return received
