"""How long training waits for a checkpoint."""

import statistics
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.report import parser, report
from checkpoints import checkpoint
from model import GPT, GPTConfig
from system.device import pick_device
from training.optim import make_optimizer


def save(argv: list[str]) -> None:
    made = parser(
        "save",
        """How long training waits for a checkpoint: a GPT with AdamW, by default of GPT-2's size.

The stall is the time that the loop waits, also given as a share of what a plain save takes; a step is timed alone and
while a file is being written. The first save in the background also allocates the memory for its copy.""",
    )
    for name, default in (("n_layer", 12), ("n_embd", 768), ("vocab_size", 50304), ("block_size", 64)):
        made.add_argument(f"--{name}", type=int, default=default)
    made.add_argument("--saves", type=int, default=3, help="of each kind (default 3); medians are shown")
    made.add_argument("--device", default="auto")
    made.add_argument("--folder", default=".", help="on the disk to write to (default: the current folder)")
    args = made.parse_args(argv)
    device = pick_device(args.device)
    heads = max(1, args.n_embd // 64)
    model = GPT(GPTConfig(args.block_size, args.vocab_size, args.n_layer, heads, args.n_embd)).to(device)
    optimizer = make_optimizer(model, 1e-4, 0.1, (0.9, 0.95))
    idx = torch.randint(args.vocab_size, (1, args.block_size), device=device)
    found = {}
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        path = Path(folder, "last.pt")
        for background in (False, True):
            saver = checkpoint.Saver(device, keep=2, background=background)
            alone = [timed_step(model, optimizer, idx, saver)[0] for _ in range(5)][2:]
            for number in range(args.saves + background):
                kind = "plain" if not background else "in the background" if number else "the first in the background"
                found.setdefault(kind, []).append((timed_save(model, optimizer, idx, saver, path), alone))
        size = path.stat().st_size
    plain = statistics.median(seconds for (seconds, *_), _ in found["plain"])
    rows = []
    for kind, saves in found.items():
        stall = statistics.median(stall for (_, stall, _), _ in saves)
        during = [seconds for (*_, steps), _ in saves for seconds in steps]
        rows.append({
            "save": kind, "parameters": model.get_num_params(non_embedding=False), "file (MB)": round(size / 1e6),
            "seconds to the disk": statistics.median(seconds for (seconds, *_), _ in saves),
            "stall (ms)": stall * 1000, "stall (%)": 100 * stall / plain,
            "step (ms)": 1000 * statistics.median(saves[0][1]),
            "step while saving (ms)": 1000 * statistics.median(during) if during else "",
        })  # fmt: skip
    report("save", rows, args.json)


def timed_save(
    model: GPT, optimizer: torch.optim.Optimizer, idx: torch.Tensor, saver: checkpoint.Saver, path: Path
) -> tuple[float, float, list[float]]:
    """Seconds until the file is on the disk, seconds that the loop waited, and those of each step meanwhile."""
    start, steps = time.perf_counter(), []
    saver.save({"model": model.state_dict(), "model_args": {}, "optimizer": optimizer.state_dict()}, path)
    stall = time.perf_counter() - start
    while saver.thread and saver.thread.is_alive():
        seconds, waited = timed_step(model, optimizer, idx, saver)
        stall += waited
        steps.append(seconds - waited)
    saver.wait()
    return time.perf_counter() - start, stall, steps


def timed_step(
    model: GPT, optimizer: torch.optim.Optimizer, idx: torch.Tensor, saver: checkpoint.Saver
) -> tuple[float, float]:
    """Seconds of a step of training on idx (B, T), and those of them that it waited for the saver."""
    start = time.perf_counter()
    model(idx, idx, return_logits=False)[1].backward()
    waiting = time.perf_counter()
    saver.before_update()
    waited = time.perf_counter() - waiting
    optimizer.step()
    optimizer.zero_grad()
    if idx.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start, waited
