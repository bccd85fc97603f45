"""One process or many: the process group, DDP and FSDP2, sums over all ranks.

torchrun sets RANK, LOCAL_RANK and WORLD_SIZE; without them there is one process and nothing is sent. Small control
messages use gloo on the CPU, so that they never wait for the GPU.

DDP keeps the whole model and optimizer state in every process, FSDP2 (`fully_shard`) 1/world_size of both: a
parameter is then a DTensor, of which this process has some rows. `gather` and `place` convert between the two, so
that a checkpoint does not depend on how it was trained.
"""

import errno
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

from configurator import ReportedByRankZero, silence_stdout
from model import GPT

JOIN_MINUTES = 30  # how long ranks wait for each other at the start


class Ranks:
    """This process's place among all: rank, local_rank (on this machine), world_size, is_main (rank 0)."""

    def __init__(self) -> None:
        self.rank = int(os.environ.get("RANK", 0))
        self.local_rank = int(os.environ.get("LOCAL_RANK", 0))
        self.world_size = int(os.environ.get("WORLD_SIZE", 1))
        self.is_main = self.rank == 0
        self.under_torchrun = "RANK" in os.environ
        # after failures, by torchrun (where hosts may count differently) or by Slurm
        self.restarts = sum(int(os.environ.get(f"{who}_RESTART_COUNT", 0)) for who in ("TORCHELASTIC", "SLURM"))
        self.sharded = False  # FSDP2

    def start(self, backend: str, device: torch.device) -> None:
        """Joins the process group. backend: 'nccl', 'gloo', …, or 'auto' for nccl on CUDA and gloo elsewhere
        (Windows has no nccl)."""
        if not self.under_torchrun:
            return
        if backend == "auto":
            backend = "nccl" if device.type == "cuda" and dist.is_nccl_available() else "gloo"
        if backend == "nccl" and device.type != "cuda":
            raise ValueError(f"backend=nccl needs CUDA, but device is {device.type}: use --backend=gloo")
        options = {"rank": self.rank, "world_size": self.world_size}
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            options["store"] = fresh_store(self.rank, self.world_size)
        if device.type == "cuda":
            backend, options["device_id"] = f"cpu:gloo,cuda:{backend}", device
        dist.init_process_group(backend, **options)

    def stop(self) -> None:
        """Leaves the process group, after success only. While other ranks are in a collective that this one will never
        join, NCCL would wait for them: a process that fails just ends, and they notice."""
        if dist.is_initialized():
            dist.destroy_process_group()

    def wrap(self, model: torch.nn.Module, device: torch.device) -> torch.nn.Module:
        """The model whose backward pass averages gradients over all ranks."""
        if self.world_size == 1 or self.sharded:
            return model
        names = inspect.signature(DistributedDataParallel).parameters
        sync_buffers = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"  # before 2.13
        return DistributedDataParallel(
            model,
            device_ids=[device.index] if device.type == "cuda" else None,
            gradient_as_bucket_view=True,  # gradients live in the buckets, which saves a copy
            **{sync_buffers: False},  # the buffers (RoPE tables) never change
        )

    def say(self, *message: str, **options) -> None:
        """print(), at once and on rank 0 alone. Where nobody reads it any more, as after Ctrl-C in `| tee` or in a
        closed terminal, the run goes on in silence, and saves."""
        if self.is_main:
            try:
                print(*message, flush=True, **options)
            except OSError as error:
                if error.errno not in (errno.EPIPE, errno.EIO):
                    raise
                silence_stdout()

    def share(self, value: Any) -> Any:
        """Rank 0's value, a plain Python object, on all ranks."""
        if not dist.is_initialized():
            return value
        values = [value]
        dist.broadcast_object_list(values, device=torch.device("cpu"))
        return values[0]

    def on_main(self, function: Callable[[], Any]) -> Any:
        """on_all for rank 0 alone: returns function() there, None elsewhere."""
        return self.on_all(function if self.is_main else lambda: None)

    def on_all(self, function: Callable[[], Any]) -> Any:
        """Returns function(). A ValueError on any rank is raised on all, so that none waits for one that has ended."""
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
        failed = [rank for rank, message in enumerate(messages) if message is not None]
        if not failed:
            return result
        message = messages[failed[0]]
        raise (failure or ValueError(f"rank {failed[0]}: {message}")) if self.is_main else ReportedByRankZero(message)

    def shard(self, model: GPT, device: torch.device, dtype: torch.dtype) -> GPT:
        """A copy of the model in float32 shards on `device`, one FSDP group for each block and one for the rest.

        Rank 0's `model` has the weights, which are sent one whole tensor at a time; others may be on the meta device.
        If rank 0's is too, the shards stay uninitialized. Groups are gathered in `dtype`, gradients summed in float32.
        """
        from torch.distributed.device_mesh import init_device_mesh  # here: importing FSDP takes a second
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
        from torch.distributed.tensor import distribute_tensor

        self.sharded = True
        weights = dict(model.named_parameters())
        with torch.device("meta"):
            sharded = GPT(model.config)
        mesh, param_dtype = init_device_mesh(device.type, (self.world_size,)), None if dtype == torch.float32 else dtype
        # no casting of inputs: activations have their type already, and RoPE's tables must keep theirs
        policy = MixedPrecisionPolicy(param_dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
        # the root's group (embeddings, last norm, head) comes last. It stays gathered from forward to backward, so that
        # the loss may use the head's weight without calling the head
        for module in (*sharded.transformer.h, sharded):
            fully_shard(module, mesh=mesh, mp_policy=policy)
        sharded.to_empty(device=device)
        if self.sum([not any(p.is_meta for p in weights.values())])[0]:
            for name, shard in sharded.named_parameters():
                whole = weights[name].detach() if self.is_main else torch.empty(shard.shape)
                whole = distribute_tensor(whole.to(device), mesh, shard.placements)  # sent by rank 0
                shard.to_local().detach().copy_(whole.to_local())
        return sharded

    def reduce_gradients(self, model: torch.nn.Module, wanted: bool) -> None:
        """Whether the next forward and backward passes also reduce gradients; otherwise they accumulate here, whole."""
        if self.sharded:
            model.set_requires_gradient_sync(wanted)
        elif isinstance(model, DistributedDataParallel):
            model.require_backward_grad_sync = wanted

    def sum(self, values: list[float]) -> list[float]:
        """Element-wise sums over all ranks, in float64; the same list everywhere."""
        return self.reduce(values, dist.ReduceOp.SUM)

    def max(self, value: float) -> float:
        """The largest value of all ranks."""
        return self.reduce([value], dist.ReduceOp.MAX)[0]

    def reduce(self, values: list[float], operation: dist.ReduceOp) -> list[float]:
        if self.world_size == 1:
            return values
        result = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(result, operation)
        return result.tolist()


def is_loss_of_peer(error: RuntimeError) -> bool:
    """Whether a message to another rank failed, usually because that rank has ended. gloo has no type for it."""
    return isinstance(error, dist.DistError) or "/gloo/" in str(error)


def fresh_store(rank: int, world_size: int) -> dist.Store:
    """torchrun's store under a prefix that no earlier attempt of this job has used, the same on all ranks.

    After a failure torchrun restarts all processes with the same store, which still has the dead ones' addresses, and
    each host counts restarts on its own (issues 135712 and 167288 of PyTorch). So rank 0 draws a prefix and sends it to
    each rank that asks, under that rank's own token, until all have confirmed it.
    """
    timeout = timedelta(minutes=JOIN_MINUTES)
    has_libuv = os.environ.get("USE_LIBUV", "0" if os.name == "nt" else "1") == "1"  # as torch's own rendezvous decides
    address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(*address, timeout=timeout, use_libuv=has_libuv)
    token = secrets.token_hex(8)
    if rank > 0:
        store.set(f"train/ask/{rank}", token)
        prefix = store.get(f"train/answer/{token}").decode()  # waits until it exists
        store.set(f"train/confirm/{prefix}/{rank}", "")
        return dist.PrefixStore(prefix, store)
    missing, deadline = set(range(1, world_size)), time.monotonic() + timeout.total_seconds()
    while missing:
        for other in list(missing):
            if store.check([f"train/ask/{other}"]):
                store.set(f"train/answer/{store.get(f'train/ask/{other}').decode()}", token)
            if store.check([f"train/confirm/{token}/{other}"]):
                missing.remove(other)
        if time.monotonic() > deadline:
            raise RuntimeError(
                f"ranks {sorted(missing)} did not join within {JOIN_MINUTES} minutes: check that every node was started"
            )
        time.sleep(0.01)
    return dist.PrefixStore(token, store)


def is_shard(value: Any) -> bool:
    """Whether it is a DTensor, without importing that class, which takes half a second."""
    return hasattr(value, "full_tensor")


def full(tensor: torch.Tensor) -> torch.Tensor:
    """A sharded tensor gathered whole (every rank must call it); another tensor as it is."""
    return tensor.full_tensor() if is_shard(tensor) else tensor


def gather(value: Any, keep: bool, done: dict | None = None) -> Any:
    """Nested dicts and lists with all tensors whole and on the CPU; every rank must call it.

    Ranks that do not `keep` the result (all but one) get None for tensors. A tensor that occurs twice, as tied
    weights do, is gathered once and stays one.
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
    """A whole tensor that all ranks have, sharded as `like` is; any other value as it is."""
    if not (is_shard(like) and isinstance(value, torch.Tensor) and value.shape == like.shape) or is_shard(value):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)
