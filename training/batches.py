"""This rank's micro-batches in order, each loaded by a thread during the computation on the previous one."""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from data.windows import batch
from system.device import make_current
from training.run import Run


class Batches:
    """Each rank takes its slice of every global batch, so the order of the data is the same for any number of
    processes, and a resume needs only the step. waited: seconds next() has waited for data."""

    def __init__(self, run: Run):
        self.run, self.number, self.waited = run, run.iter_num * run.micro_steps, 0.0
        self.dealt = -1, None, None  # step, x, y, used by the thread alone
        self.thread = ThreadPoolExecutor(1, initializer=make_current, initargs=(run.device,))
        self.coming = self.thread.submit(self.load, self.number)

    def peek(self) -> tuple[torch.Tensor, torch.Tensor, int]:
        """What next() will return: x, y, both int64 (batch_size, block_size), or narrower for conversations, and the
        number of targets in y."""
        x, y, n = self.coming.result()
        return to_device(x, self.run.device), to_device(y, self.run.device), n

    def next(self) -> tuple[torch.Tensor, torch.Tensor, int]:
        start = time.perf_counter()
        self.coming.result()
        self.waited += time.perf_counter() - start
        ready = self.peek()
        self.number += 1
        self.coming = self.thread.submit(self.load, self.number)
        return ready

    def load(self, number: int) -> tuple[torch.Tensor, torch.Tensor, int]:
        run, n = self.run, self.run.config.batch_size
        first = (number * run.ranks.world_size + run.ranks.rank) * n
        x, y = self.conversations(first) if run.trims else self.windows(run.shift + first, n)
        return ready_to_send(x, run.device), ready_to_send(y, run.device), int((y >= 0).sum())

    def windows(self, first: int, n: int) -> tuple[np.ndarray, np.ndarray]:
        config, index = self.run.config, np.arange(first, first + n)
        return batch(self.run.dataset, "train", config.seed, index, config.block_size, config.sampling)

    def conversations(self, first: int) -> tuple[np.ndarray, np.ndarray]:
        """Those of a step are dealt out by length, over its micro-batches and ranks, so that there is little padding;
        the step sees the same ones as without."""
        run, n = self.run, self.run.config.batch_size
        step, at = divmod(first, run.samples)
        if self.dealt[0] != step:
            x, y = self.windows(run.shift + step * run.samples, run.samples)
            length = np.where(y >= 0, np.arange(1, y.shape[1] + 1), 0).max(1)
            order = np.argsort(length, kind="stable")
            self.dealt = step, x[order], y[order]
        _, x, y = self.dealt
        return without_padding(x[at : at + n], y[at : at + n])

    def close(self) -> None:
        self.thread.shutdown(cancel_futures=True)


def without_padding(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Conversations (B, T) up to the last target of the longest: what follows is padding, and costs as much."""
    width = 1 + int(np.flatnonzero((y >= 0).any(0)).max(initial=0))
    return x[:, :width], y[:, :width]


def ready_to_send(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """The array as a tensor in host memory that `device` can copy by itself: contiguous, on CUDA pinned."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.pin_memory() if device.type == "cuda" else tensor


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Called by the main thread: MPS takes work from one thread only."""
    return tensor.to(device, non_blocking=device.type == "cuda")
