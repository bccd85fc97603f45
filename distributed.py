"""One process or many: the process group, wrapping the model, sums over all ranks.

torchrun sets RANK, LOCAL_RANK and WORLD_SIZE; without them there is one process and nothing is sent. Small
control messages go over gloo on the CPU, so that agreeing on them never waits for the GPU.
"""

import os
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel


class Ranks:
    """This process's place among all: rank, local_rank (on this machine), world_size, is_main (rank 0)."""

    def __init__(self) -> None:
        self.rank = int(os.environ.get("RANK", 0))
        self.local_rank = int(os.environ.get("LOCAL_RANK", 0))
        self.world_size = int(os.environ.get("WORLD_SIZE", 1))
        self.is_main = self.rank == 0
        self.under_torchrun = "RANK" in os.environ

    def start(self, backend: str, device: torch.device) -> None:
        """Joins the process group. backend: 'auto', 'nccl', 'gloo', …; auto is nccl on CUDA and gloo elsewhere."""
        if not self.under_torchrun:
            return
        if backend == "auto":
            backend = "nccl" if device.type == "cuda" else "gloo"
        if backend == "nccl" and device.type != "cuda":
            raise ValueError(f"backend=nccl needs CUDA, but device is {device.type}: use --backend=gloo")
        dist.init_process_group(
            f"cpu:gloo,cuda:{backend}" if device.type == "cuda" else backend,
            device_id=device if device.type == "cuda" else None,
        )

    def stop(self) -> None:
        if dist.is_initialized():
            dist.destroy_process_group()

    def wrap(self, model: torch.nn.Module, device: torch.device) -> torch.nn.Module:
        """The model whose backward averages gradients over ranks."""
        if self.world_size == 1:
            return model
        return DistributedDataParallel(
            model,
            device_ids=[device.index] if device.type == "cuda" else None,
            gradient_as_bucket_view=True,  # gradients live in the buckets: one copy less of them
            broadcast_buffers=False,  # the buffers (RoPE tables) never change
        )

    def share(self, value: Any) -> Any:
        """Rank 0's value, a plain Python object, on all ranks."""
        if not dist.is_initialized():
            return value
        values = [value]
        dist.broadcast_object_list(values, device=torch.device("cpu"))
        return values[0]

    def on_main(self, function: Callable[[], Any]) -> Any:
        """Calls function() on rank 0 alone, and returns what it returns there, None elsewhere. A ValueError that it
        raises is raised on all ranks, so that none waits for another that has ended."""
        result, failure = None, None
        if self.is_main:
            try:
                result = function()
            except ValueError as error:
                failure = error
        message = self.share(None if failure is None else str(failure))
        if message is not None:
            raise failure or ValueError(message)
        return result

    def sum(self, values: list[float]) -> list[float]:
        """Element-wise sums over all ranks, in float64; the same list everywhere."""
        if self.world_size == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total)
        return total.tolist()

    def max(self, value: float) -> float:
        """The largest value of all ranks."""
        if self.world_size == 1:
            return value
        largest = torch.tensor([value], dtype=torch.float64)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return largest.item()
