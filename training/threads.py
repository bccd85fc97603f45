"""How many threads a run on a CPU uses: as many as its step is fastest with.

More threads are not always faster. A step of a small model is a thousand operations of some microseconds, and after
each one all threads wait for the slowest: beside other programs, or on a virtual machine whose cores are shared, the
waiting costs many times what the threads save.
"""

import os
import statistics
import time
from contextlib import nullcontext

import torch

from training.run import Run

ROUNDS = 3  # passes timed per number of threads
HOPELESS = 3  # times one thread's time: a number of threads that takes more is not tried again
MOST_FLOPS = 5e11  # of a pass; more would take too long to try, and waiting matters little then: all threads
LONG = 1.0  # seconds of a pass with one thread from which one pass with all threads has to do
FASTER = 0.9  # share of the time with all threads that fewer must need less than


def choose_threads(run: Run) -> None:
    """Sets the number of threads and notes it in run.progress: sums in another order differ in their last bits, so a
    resumed run keeps its number. With threads='auto', OMP_NUM_THREADS decides, which torchrun sets, else a trial."""
    if run.device.type != "cpu":
        return
    most, chosen, saved = torch.get_num_threads(), run.config.threads, run.progress.get("threads")
    if chosen == "auto":
        is_set = "OMP_NUM_THREADS" in os.environ or run.ranks.world_size > 1 or run.config.eval_only
        if is_set or most == 1 or (run.resumed and saved is None):
            chosen = most
        elif run.resumed and saved <= most:
            chosen = saved
        else:
            chosen = try_threads(run, most)
    if run.resumed and saved not in (None, chosen):
        run.ranks.say(f"threads {saved} -> {chosen}: the last bits will differ")
    torch.set_num_threads(chosen)
    run.progress["threads"] = chosen


def try_threads(run: Run, most: int) -> int:
    """Which of 1, 2, 4, … and `most` threads a forward and backward pass is fastest with."""
    config = run.config
    if run.model.flops_per_token(config.block_size) * config.batch_size * config.block_size > MOST_FLOPS:
        return most
    idx = torch.arange(config.batch_size * config.block_size) % run.model.config.vocab_size
    idx = idx.view(config.batch_size, config.block_size)
    autocast = torch.autocast("cpu", run.dtype) if run.dtype != torch.float32 else nullcontext()
    run.model.train()

    def seconds(n: int, rows: int = config.batch_size) -> float:
        torch.set_num_threads(n)
        start = time.perf_counter()
        with autocast:
            loss = run.model(idx[:rows], idx[:rows], return_logits=False)[1]
        loss.backward()
        run.optimizer.zero_grad(set_to_none=True)
        return time.perf_counter() - start

    seconds(1, rows=1)  # loads the kernels
    times, n = {1: [seconds(1)]}, 1
    is_long = times[1][0] > LONG
    while n < most:
        n = most if is_long else min(most, 2 * n)
        times[n] = [seconds(n)]  # starts the threads
    hopeful = [n for n, found in times.items() if found[0] < HOPELESS * times[1][0]]
    for _ in range(0 if is_long else ROUNDS):
        for n in hopeful:
            times[n].append(seconds(n))
    medians = {n: statistics.median(found[1:] or found) for n, found in times.items()}
    best = min(medians, key=medians.get)
    chosen = best if medians[best] < FASTER * medians[most] else most
    shown = ", ".join(f"{n}: {1000 * median:.0f} ms" for n, median in medians.items())
    run.ranks.say(f"{chosen} thread{'s' * (chosen > 1)} (time of a pass with {shown}; --threads=N decides)")
    return chosen
