"""One process or many: the process group, DDP and FSDP2, sums over all ranks.

torchrun sets RANK, LOCAL_RANK and WORLD_SIZE; without them there is one process and nothing is sent. Small
control messages go over gloo on the CPU, so that agreeing on them never waits for the GPU.

DDP keeps the whole model and the optimizer's state in every process, FSDP2 (`fully_shard`) 1/world_size of both:
a parameter is then a DTensor, of which this process has its rows. `gather` and `place` go from one to the other,
so that a checkpoint never tells how it was trained.
"""

import inspect
import os
import secrets
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from configurator import MainSaysIt
from model import GPT


class Ranks:
    """This process's place among all: rank, local_rank (on this machine), world_size, is_main (rank 0)."""

    def __init__(self) -> None:
        self.rank = int(os.environ.get("RANK", 0))
        self.local_rank = int(os.environ.get("LOCAL_RANK", 0))
        self.world_size = int(os.environ.get("WORLD_SIZE", 1))
        self.is_main = self.rank == 0
        self.under_torchrun = "RANK" in os.environ
        # after failures, by torchrun (whose hosts may count otherwise) or by Slurm
        self.restarts = sum(int(os.environ.get(f"{who}_RESTART_COUNT", 0)) for who in ("TORCHELASTIC", "SLURM"))
        self.sharded = False  # FSDP2

    def start(self, backend: str, device: torch.device) -> None:
        """Joins the process group. backend: 'auto', 'nccl', 'gloo', …; auto is nccl on CUDA and gloo elsewhere."""
        if not self.under_torchrun:
            return
        if backend == "auto":
            backend = "nccl" if device.type == "cuda" else "gloo"
        if backend == "nccl" and device.type != "cuda":
            raise ValueError(f"backend=nccl needs CUDA, but device is {device.type}: use --backend=gloo")
        elastic = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        dist.init_process_group(
            f"cpu:gloo,cuda:{backend}" if device.type == "cuda" else backend,
            store=fresh_store(self.rank, self.world_size) if elastic else None,
            rank=self.rank,
            world_size=self.world_size,
            device_id=device if device.type == "cuda" else None,
        )

    def stop(self) -> None:
        if dist.is_initialized():
            dist.destroy_process_group()

    def wrap(self, model: torch.nn.Module, device: torch.device) -> torch.nn.Module:
        """The model whose backward averages gradients over ranks."""
        if self.world_size == 1 or self.sharded:
            return model
        names = inspect.signature(DistributedDataParallel).parameters
        sync_buffers = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"  # before 2.13
        return DistributedDataParallel(
            model,
            device_ids=[device.index] if device.type == "cuda" else None,
            gradient_as_bucket_view=True,  # gradients live in the buckets: one copy less of them
            **{sync_buffers: False},  # the buffers (RoPE tables) never change
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
            raise failure or MainSaysIt(message)
        return result

    def on_all(self, function: Callable[[], Any]) -> Any:
        """Calls function() on every rank and returns what it returns there. A ValueError on any is raised on all."""
        result, failure = None, None
        try:
            result = function()
        except ValueError as error:
            failure = error
        if not dist.is_initialized():
            if failure:
                raise failure
            return result
        messages = [None] * self.world_size
        dist.all_gather_object(messages, failure and str(failure))
        rank, message = next(((rank, m) for rank, m in enumerate(messages) if m is not None), (0, None))
        if message is not None:
            raise (failure or ValueError(f"rank {rank}: {message}")) if self.is_main else MainSaysIt(message)
        return result

    def shard(self, model: GPT, device: torch.device, dtype: torch.dtype) -> GPT:
        """The model in shards on `device`, one group for each block and one for the rest, in float32.

        `model` is only read: on rank 0 it has the weights, elsewhere it may be on the meta device; if it is
        there too, the shards are left empty. One tensor at a time travels whole. Blocks and all else are
        gathered in `dtype` when they are needed; sums of gradients stay in float32.
        """
        from torch.distributed.device_mesh import init_device_mesh  # here: importing FSDP takes a second
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
        from torch.distributed.tensor import distribute_tensor

        self.sharded = True
        weights = dict(model.named_parameters())
        with torch.device("meta"):
            sharded = GPT(model.config)
        mesh = init_device_mesh(device.type, (self.world_size,))
        policy = MixedPrecisionPolicy(
            param_dtype=None if dtype == torch.float32 else dtype,
            reduce_dtype=torch.float32,
            cast_forward_inputs=False,  # activations have it already, and RoPE's tables must not get it
        )
        for block in sharded.transformer.h:
            fully_shard(block, mesh=mesh, mp_policy=policy)
        # the root's group (embeddings, last norm, head) stays gathered from forward to backward, so the loss may
        # use the head's weight without calling the head
        fully_shard(sharded, mesh=mesh, mp_policy=policy)
        sharded.allocate(device)
        if self.sum([not any(p.is_meta for p in weights.values())])[0]:
            for name, shard in sharded.named_parameters():
                whole = weights[name].detach() if self.is_main else torch.empty(shard.shape)
                whole = distribute_tensor(whole.to(device), mesh, shard.placements)  # sent by rank 0
                shard.to_local().detach().copy_(whole.to_local())
        return sharded

    def reduce_gradients(self, model: torch.nn.Module, wanted: bool) -> None:
        """Whether the next forward and backward also send gradients; otherwise they add up here, whole."""
        if self.sharded:
            model.set_requires_gradient_sync(wanted)
        elif isinstance(model, DistributedDataParallel):
            model.require_backward_grad_sync = wanted

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


def is_loss_of_peer(error: RuntimeError) -> bool:
    """Whether a message to another rank failed, mostly because that one has ended. gloo has no type for it."""
    return isinstance(error, dist.DistError) or "/gloo/" in str(error)


def fresh_store(rank: int, world_size: int) -> dist.Store:
    """torchrun's store under a prefix that no earlier attempt of this job has used, the same on all ranks.

    After a failure torchrun starts all processes again with the same store, where the addresses of the dead ones
    still are, and counts restarts on each host by itself (issues 135712 and 167288 of PyTorch). So rank 0 makes up a
    prefix, and tells it to any rank that asks with a word of its own, until all have confirmed it.
    """
    patience = timedelta(minutes=30)
    store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), timeout=patience)
    word = secrets.token_hex(8)
    if rank > 0:
        store.set(f"train/ask/{rank}", word)
        prefix = store.get(f"train/answer/{word}").decode()  # waits until it is there
        store.set(f"train/confirm/{prefix}/{rank}", "")
        return dist.PrefixStore(prefix, store)
    missing, deadline = set(range(1, world_size)), time.monotonic() + patience.total_seconds()
    while missing:
        for other in list(missing):
            if store.check([f"train/ask/{other}"]):
                store.set(f"train/answer/{store.get(f'train/ask/{other}').decode()}", word)
            if store.check([f"train/confirm/{word}/{other}"]):
                missing.remove(other)
        if time.monotonic() > deadline:
            raise RuntimeError(f"processes {sorted(missing)} have not come")
        time.sleep(0.01)
    return dist.PrefixStore(word, store)


def is_shard(value: Any) -> bool:
    """Whether it is a DTensor; asked without importing that class, which takes half a second."""
    return hasattr(value, "full_tensor")


def full(tensor: torch.Tensor) -> torch.Tensor:
    """The whole of a sharded tensor (every rank must call it); another tensor as it is."""
    return tensor.full_tensor() if is_shard(tensor) else tensor


def gather(value: Any, keep: bool, done: dict[int, torch.Tensor | None] | None = None) -> Any:
    """A copy of `value`, nested dicts and lists, with all tensors whole and on the CPU; every rank must call it.

    Ranks that do not `keep` the result (all but one) get None for tensors. One that occurs twice, as tied weights
    do, is gathered once and stays one.
    """
    done = {} if done is None else done
    if isinstance(value, dict):
        return {key: gather(item, keep, done) for key, item in value.items()}
    if isinstance(value, list):
        return [gather(item, keep, done) for item in value]
    if not isinstance(value, torch.Tensor):
        return value
    if id(value) not in done:
        whole = full(value.detach())
        done[id(value)] = (whole.cpu() if is_shard(value) else whole.cpu().clone()) if keep else None
    return done[id(value)]


def place(value: Any, like: torch.Tensor) -> Any:
    """A whole tensor that all ranks have, cut into shards as `like` is; anything else as it is."""
    if not (is_shard(like) and isinstance(value, torch.Tensor) and value.shape == like.shape) or is_shard(value):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)
