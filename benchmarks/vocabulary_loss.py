"""The loss over a vocabulary and its gradients, computed from all logits at once, by PyTorch's linear_cross_entropy
(where it exists) and by model.py's LinearCrossEntropy: time, and peak memory of a process of its own beyond what it
held before.
"""

import multiprocessing
import sys

import torch
from torch.nn import functional as F

from benchmarks.report import median_seconds, parser, print_table
from model import LinearCrossEntropy
from system.device import keep_memory, pick_dtype


def loss_cost(argv: list[str]) -> None:
    made = parser("loss", __doc__)
    made.add_argument("--vocab_size", type=int, nargs="+", default=[4435, 50304], help="(default: 4435 50304)")
    made.add_argument("--rows", type=int, default=2048, help="tokens of a batch (default: 2048)")
    made.add_argument("--n_embd", type=int, default=384, help="(default: 384)")
    made.add_argument("--dtype", default="auto", help="of the products (default: auto)")
    args = made.parse_args(argv)
    dtype, context = pick_dtype(args.dtype, torch.device("cpu")), multiprocessing.get_context("spawn")
    kinds = ["all logits", *["linear_cross_entropy"] * hasattr(F, "linear_cross_entropy"), "LinearCrossEntropy"]
    rows = []
    for vocab_size in args.vocab_size:
        for kind in kinds:
            with context.Pool(1) as pool:
                ms, megabytes = pool.apply(measure_loss, (kind, args.rows, args.n_embd, vocab_size, dtype))
            rows.append({"vocabulary": vocab_size, "loss": kind, "ms": ms, "peak MB": megabytes})
    print_table(f"loss of {args.rows} tokens, {args.n_embd} wide, in {dtype}", rows, args.json)


def measure_loss(kind: str, n: int, width: int, vocab_size: int, dtype: torch.dtype) -> tuple[float, float]:
    """Median milliseconds, and 10^6 bytes."""
    keep_memory()
    x, weight = (torch.randn(size, width).mul_(0.02).requires_grad_() for size in (n, vocab_size))
    targets = torch.randint(vocab_size, (n,))

    def loss_and_gradients() -> None:
        x.grad = weight.grad = None
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32 and kind != "LinearCrossEntropy"):
            if kind == "LinearCrossEntropy":
                loss = LinearCrossEntropy.apply(x, weight, targets, 0.0, dtype, True)
            elif kind == "linear_cross_entropy":
                loss = F.linear_cross_entropy(x, weight, targets)
            else:
                loss = F.cross_entropy(F.linear(x, weight).float(), targets)
        loss.backward()

    before = peak_memory()
    return 1000 * median_seconds(loss_and_gradients, repeats=5, warmup=2), peak_memory() - before


def peak_memory() -> float:
    """The most memory this process has held, 10^6 bytes."""
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6
