"""This rank's micro-batches in order, each loaded by a thread during the computation on the previous one."""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from data.dataset import batch
from training.run import Run


class Batches:
    """Each rank takes its slice of every global batch, so the order of the data is the same for any number of
    processes, and a resume needs only the step. waited: seconds next() has waited for data."""

    def __init__(self, run: Run):
        self.run, self.number, self.waited = run, run.iter_num * run.micro_steps, 0.0
        self.thread = ThreadPoolExecutor(1)
        self.coming = self.thread.submit(self.load, self.number)

    def peek(self) -> tuple[torch.Tensor, torch.Tensor, int]:
        """What next() will return: x, y, both int64 (batch_size, block_size), and the number of targets in y."""
        return self.coming.result()

    def next(self) -> tuple[torch.Tensor, torch.Tensor, int]:
        start = time.perf_counter()
        ready = self.peek()
        self.waited += time.perf_counter() - start
        self.number += 1
        self.coming = self.thread.submit(self.load, self.number)
        return ready

    def load(self, number: int) -> tuple[torch.Tensor, torch.Tensor, int]:
        run, config, ranks = self.run, self.run.config, self.run.ranks
        first = run.shift + (number * ranks.world_size + ranks.rank) * config.batch_size
        index = np.arange(first, first + config.batch_size)
        x, y = batch(run.dataset, "train", config.seed, index, config.block_size, config.sampling)
        return to_device(x, run.device), to_device(y, run.device), int((y >= 0).sum())

    def close(self) -> None:
        self.thread.shutdown(cancel_futures=True)


def to_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
