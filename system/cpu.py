"""What training on a CPU needs of the machine: memory that stays, threads within a quota, its peak speed."""

import ctypes
import os
import sys
import time
from contextlib import suppress
from functools import lru_cache

import torch

from system.quota import cpu_quota


def keep_memory() -> None:
    """Makes glibc keep freed memory for the next training step on a CPU. By default large tensors go back to the system
    and return as fresh pages, which cost as much as computing on them: the loss over 50,304 ids took twice as long."""
    if sys.platform != "linux":
        return
    with suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD of malloc.h; older glibc takes at most 32 MiB for the first
        if mallopt(-3, 2**31 - 1) or mallopt(-3, 2**25):
            mallopt(-1, 2**31 - 1)


def limit_threads() -> None:
    """Limits the threads to what a container may run at once: PyTorch starts one per core of the machine, and threads
    that wait for their share of time hold up the others. OMP_NUM_THREADS decides where it is set."""
    quota = cpu_quota()
    if quota and quota < torch.get_num_threads() and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, int(quota)))
        if os.environ.get("RANK", "0") == "0":
            note = f"note: this container has {quota:g} of {os.cpu_count()} cores, so threads={torch.get_num_threads()}"
            print(note, file=sys.stderr)


def measured_flops(dtype: torch.dtype) -> float:
    """FLOP/s of a product of square matrices, the best of several sizes up to 2048: what this CPU reaches with its
    threads. Larger sizes are left out once one takes 0.1 s, as in a format that is emulated. Measured once per process
    and number of threads, in a quarter of a second."""
    return flops_of_product(dtype, torch.get_num_threads())


@lru_cache
def flops_of_product(dtype: torch.dtype, threads: int) -> float:
    """measured_flops, for the number of threads that is set."""
    best = 0.0
    for n in (64, 256, 512, 1024, 2048):  # the first loads the kernels
        a, b = torch.ones(n, n, dtype=dtype), torch.ones(n, n, dtype=dtype)
        seconds, first = [], time.perf_counter()
        # one alone may meet another program at work
        while len(seconds) < 2 or n >= 1024 and time.perf_counter() - first < 0.05:
            start = time.perf_counter()
            a @ b
            seconds.append(time.perf_counter() - start)
        best = max(best, 2 * n**3 / min(seconds))
        if min(seconds) > 0.1:
            break
    return best
