"""How long training waits for a checkpoint: a GPT with AdamW, by default of GPT-2's size.

The stall is how long the training loop waits, also as a percentage of a plain save. A step is timed alone and while a
file is being written. The first save in the background also allocates memory for its copy.
"""

import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from checkpoints.checkpoint import Saver

from benchmarks.report import parser, print_table
from model import GPT, GPTConfig
from system.device import pick_device
from training.optim import make_optimizer


def save_stall(argv: list[str]) -> None:
    made = parser("save", __doc__)
    for name, default in (("n_layer", 12), ("n_embd", 768), ("vocab_size", 50304), ("block_size", 64)):
        made.add_argument(f"--{name}", type=int, default=default, help=f"of the model (default: {default})")
    made.add_argument("--saves", type=int, default=3, help="saves of each kind, whose median counts (default: 3)")
    made.add_argument("--device", default="auto", help="(default: auto)")
    made.add_argument("--folder", default=".", help="a folder on the disk to test (default: the current one)")
    args = made.parse_args(argv)
    device = pick_device(args.device)
    shape = GPTConfig(args.block_size, args.vocab_size, args.n_layer, max(1, args.n_embd // 64), args.n_embd)
    loop, rows = Loop(GPT(shape).to(device), device), []
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        path = Path(folder, "last.pt")
        for kind, n in (("plain", args.saves), ("the first in the background", 1), ("in the background", args.saves)):
            if kind != "in the background":  # else as the first one's
                loop.saver = Saver(device, keep=2, background=kind != "plain")
                alone = median([loop.step()[0] for _ in range(5)][2:])
            seconds, stalls, steps = zip(*[loop.save(path) for _ in range(n)], strict=True)
            stall, during = median(stalls), sum(steps, [])
            row = {"save": kind, "parameters": loop.model.get_num_params(non_embedding=False)}
            row |= {"file (MB)": round(path.stat().st_size / 1e6), "seconds to the disk": median(seconds)}
            plain = rows[0]["seconds to the disk"] if rows else median(seconds)
            row |= {"stall (ms)": 1000 * stall, "stall (%)": 100 * stall / plain, "step (ms)": 1000 * alone}
            rows.append(row | {"step while saving (ms)": 1000 * median(during) if during else ""})
    print_table("save", rows, args.json)


class Loop:
    """A training loop, reduced to what a save can delay."""

    def __init__(self, model: GPT, device: torch.device):
        self.model, self.optimizer = model, make_optimizer(model, 1e-4, 0.1, (0.9, 0.95))
        self.idx = torch.randint(model.config.vocab_size, (1, model.config.block_size), device=device)
        self.saver: Saver | None = None

    def step(self) -> tuple[float, float]:
        """Seconds of a step, and how many of them it waited for the saver."""
        start = time.perf_counter()
        self.model(self.idx, self.idx, return_logits=False)[1].backward()
        waiting = time.perf_counter()
        self.saver.before_update()
        waited = time.perf_counter() - waiting
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.idx.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - start, waited

    def save(self, path: Path) -> tuple[float, float, list[float]]:
        """Seconds until the file is on the disk, seconds the loop waited, and the remaining seconds of each step."""
        start, steps = time.perf_counter(), []
        state = {"model": self.model.state_dict(), "model_args": {}, "optimizer": self.optimizer.state_dict()}
        self.saver.save(state, path)
        stall = time.perf_counter() - start
        while self.saver.thread and self.saver.thread.is_alive():
            seconds, waited = self.step()
            stall += waited
            steps.append(seconds - waited)
        self.saver.wait()
        return time.perf_counter() - start, stall, steps
