"""Time and memory of a training step: whole, beside other loops, by part, of the loss alone, and during a save."""

import multiprocessing
import pickle
import re
import statistics
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import torch
from torch.nn import functional as F

from benchmarks.report import BY_TRAIN, median_seconds, note_errors, parser, print_table, synchronize
from benchmarks.runs import as_options, model_of, random_dataset, run_python, run_train, settings_of, vocab_size_of
from checkpoints.saver import Saver
from data.dataset import id_dtype
from model import GPT, GPTConfig, LinearCrossEntropy
from system.cpu import keep_memory
from system.device import pick_compile, pick_device, pick_dtype, prepare
from training.optim import make_optimizer

WARMUP = 5  # steps of a run that do not count
STEPS_ONLY = {"log_interval": 1, "eval_interval": 10**6, "eval_iters": 1}
NANOGPT = """import atexit, runpy, sys, torch
if torch.cuda.is_available():
    atexit.register(lambda: print("peak", torch.cuda.max_memory_allocated() / 1e6))
sys.argv[0] = "train.py"
runpy.run_path("train.py", run_name="__main__")"""


def step_time(argv: list[str]) -> None:
    """Speed and memory of train.py with a config, on random tokens: the median over its steps after the first five.

    Any other --key=value goes to train.py. --sweep makes a run for each value of one key. --baseline compares each run
    with a plain loop: the same model and batch in eager float32, with all logits at once and PyTorch's default AdamW.
    """
    made = parser("train", step_time.__doc__)
    made.add_argument("config", help="a config file")
    made.add_argument("--sweep", default="", help="KEY=VALUE,VALUE,... or dataset_mb=10,10000")
    made.add_argument("--steps", type=int, default=25, help="steps of each run (default: 25)")
    made.add_argument("--baseline", action="store_true", help="compare with a plain float32 loop")
    made.add_argument("--peer", type=Path, help="a checkout of nanoGPT, to compare with its train.py too")
    args, options = made.parse_known_args(argv)
    if args.steps <= WARMUP:
        raise ValueError(f"--steps={args.steps}: expected at least {WARMUP + 1}, since the first {WARMUP} do not count")
    key, _, values = args.sweep.partition("=")
    rows = []
    for value in values.split(","):
        swept = {key: value} if key else {}
        with note_errors(f"{key}={value}") if key else nullcontext():  # one run alone may fail as it does
            rows.append({"run": Path(args.config).stem, **swept, **measure_run(args, options, **swept)})
    print_table("train", rows, args.json, BY_TRAIN)


def measure_run(args: Namespace, options: list[str], dataset_mb: str = "10", **swept: str) -> dict:
    options = [args.config, *options, *as_options(swept)]
    settings, _ = settings_of(options)
    if args.peer and not (args.peer / "train.py").is_file():
        raise ValueError(f"--peer={args.peer} has no train.py: expected a checkout of nanoGPT")
    vocab_size = vocab_size_of(settings)
    with tempfile.TemporaryDirectory() as folder:
        random_dataset(Path(folder), vocab_size, int(float(dataset_mb) * 1e6) // id_dtype(vocab_size).itemsize)
        run = {"dataset": folder, "vocab_size": vocab_size, "max_iters": args.steps, "max_minutes": None, **STEPS_ONLY}
        records = run_train([*options, *as_options(run)], "train")[WARMUP:]
        peer = nanogpt_step(args.peer, settings, folder, args.steps) if args.peer else None
    ms, waiting = (statistics.median(record[key] for record in records) for key in ("time_ms", "data_wait_ms"))
    tokens = settings.gradient_accumulation_steps * settings.batch_size * settings.block_size
    with torch.device("meta"):
        model = model_of(settings)
    flops = model.flops_per_token() * tokens
    last, megabytes = records[-1], max(record.get("memory_mb", 0) for record in records) * 2**20 / 1e6
    row = {"parameters": model.get_num_params(non_embedding=False), "ms/iter": ms, "tokens/s": 1000 * tokens / ms}
    row["TFLOP/s"] = flops / ms / 1e9
    row["MFU %"] = 100 * last["mfu"] * last["time_ms"] / ms if "mfu" in last else "unknown"
    row |= {"waiting for data ms": waiting, "peak MB": megabytes or "unknown"}
    if args.baseline:
        plain = plain_step(settings, args.steps)
        row |= {"plain ms/iter": plain, "share": ms / plain}
    if peer:
        row |= {"nanoGPT ms/iter": peer[0], "share of it": ms / peer[0], "nanoGPT peak MB": peer[1]}
    return row


def plain_step(settings: SimpleNamespace, steps: int) -> float:
    """Median milliseconds per step of the plain loop that step_time describes."""
    device = pick_device(settings.device)
    use_threads(settings)
    model = model_of(settings).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    x, y = torch.randint(model.config.vocab_size, (2, settings.batch_size, settings.block_size), device=device)

    def step() -> None:
        for _ in range(settings.gradient_accumulation_steps):
            _, loss = model(x, y)
            (loss / settings.gradient_accumulation_steps).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()

    return 1000 * median_seconds(step, steps - WARMUP, WARMUP)


def use_threads(settings: SimpleNamespace) -> None:
    """For a step in this process. train.py would choose a number by a trial; here auto is PyTorch's own."""
    if settings.threads != "auto":
        torch.set_num_threads(settings.threads)


def nanogpt_step(checkout: Path, settings: SimpleNamespace, dataset: str, steps: int) -> tuple[float, float | str]:
    """Median milliseconds per step of nanoGPT's train.py with the same shape, batch and ids, compiled where ours is;
    on a GPU also the peak memory of its tensors in MB (10^6 bytes), else ""."""
    device = pick_device(settings.device)
    Path(dataset, "meta.pkl").write_bytes(pickle.dumps({"vocab_size": vocab_size_of(settings)}))
    same = ("batch_size", "block_size", "gradient_accumulation_steps", "n_layer", "n_head", "n_embd", "dropout", "bias")
    options = {key: getattr(settings, key) for key in same} | STEPS_ONLY | {"wandb_log": False}
    options |= {"dataset": dataset, "out_dir": dataset, "device": device.type, "max_iters": steps}
    options["compile"] = pick_compile(settings.compile, device)
    output = run_python(f"{checkout}/train.py", ["-c", NANOGPT, *as_options(options)], folder=checkout)
    times = [float(ms) for ms in re.findall(r"^iter \d+: .*time ([\d.]+)ms", output, re.MULTILINE)]
    if len(times) <= WARMUP:
        raise ValueError(f"{checkout}/train.py printed the times of {len(times)} steps, expected {steps}")
    peak = re.search(r"^peak ([\d.]+)", output, re.MULTILINE)
    return statistics.median(times[WARMUP:]), float(peak.group(1)) if peak else ""


def step_profile(argv: list[str]) -> None:
    """Where the time of a training step goes, for a config: by part of the step, and by operation (own time). It is
    train.py's step on random tokens, without loading, logging and communication, with as many threads as --threads says
    (default: PyTorch's own number). Any other --key=value goes to train.py."""
    made = parser("profile", step_profile.__doc__)
    made.add_argument("config", help="a config file")
    made.add_argument("--steps", type=int, default=5, help="steps that are timed (default: 5)")
    made.add_argument("--rows", type=int, default=20, help="operations to show (default: 20)")
    args, options = made.parse_known_args(argv)
    settings, _ = settings_of([args.config, *options])
    if settings.lora_rank or settings.distill_from:
        raise ValueError("profile has plain steps only: leave out --lora_rank and --distill_from")
    device = pick_device(settings.device)
    use_threads(settings)
    parts = step_parts(settings, device)
    seconds = dict.fromkeys(parts, 0.0)
    for number in range(3 + args.steps):
        for name, run in parts.items():
            start = time.perf_counter()
            run()
            synchronize(device)
            seconds[name] += (time.perf_counter() - start) * (number >= 3)  # the first ones warm up
    total = sum(seconds.values())
    rows = [{"part": name, "ms a step": 1000 * s / args.steps, "%": 100 * s / total} for name, s in seconds.items()]
    print_table(f"profile of {Path(args.config).stem}", rows, args.json)
    key = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    with torch.profiler.profile() as profiler:  # separately from the timing, which it would slow down
        for run in [*parts.values()] * args.steps:
            run()
    print("\n" + profiler.key_averages().table(sort_by=key, row_limit=args.rows, max_name_column_width=50))


def step_parts(settings: SimpleNamespace, device: torch.device) -> dict[str, Callable[[], object]]:
    """The parts of train.py's step on random tokens, in order."""
    model, dtype = model_of(settings).to(device), pick_dtype(settings.dtype, device)
    muon = settings.muon_learning_rate if settings.optimizer == "muon" else None
    optimizer = make_optimizer(model, 1e-4, settings.weight_decay, (settings.beta1, settings.beta2), muon)
    prepare(device)
    model.checkpoint_activations = settings.checkpoint_activations
    compute = model
    if pick_compile(settings.compile, device):  # as train.py does
        compute = torch.compile(model, dynamic=False)
        if muon and device.type == "cuda":
            optimizer.orthogonalize = torch.compile(optimizer.orthogonalize, dynamic=False)
    x, y = torch.randint(model.config.vocab_size, (2, settings.batch_size, settings.block_size), device=device)
    loss = None

    def forward() -> None:
        nonlocal loss
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            loss = compute(x, y, return_logits=False)[1]

    return {
        "forward": forward,
        "backward": lambda: loss.backward(),
        "clip": lambda: torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0),
        "optimizer": optimizer.step,
    }


def loss_cost(argv: list[str]) -> None:
    """The loss over a vocabulary with its gradients: from all logits at once, by PyTorch's linear_cross_entropy (if it
    exists) and by model.py's LinearCrossEntropy. Time, and the rise of peak memory in a fresh process."""
    made = parser("loss", loss_cost.__doc__)
    made.add_argument("--vocab_size", type=int, nargs="+", default=[4435, 50304], help="sizes (default: 4435 50304)")
    made.add_argument("--rows", type=int, default=2048, help="tokens per batch (default: 2048)")
    made.add_argument("--n_embd", type=int, default=384, help="width of the model (default: 384)")
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


def measure_loss(kind: str, n: int, width: int, vocab_size: int, dtype: torch.dtype) -> tuple[float, float | None]:
    """Median milliseconds, and MB (10^6 bytes), None if unknown."""
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
    ms = 1000 * median_seconds(loss_and_gradients, repeats=5, warmup=2)
    return ms, before and peak_memory() - before


def peak_memory() -> float | None:
    """The peak resident memory of this process, in MB (10^6 bytes); None if unknown, as on Windows."""
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def save_stall(argv: list[str]) -> None:
    """How long training waits for a checkpoint: a GPT with AdamW, by default of GPT-2's size.

    The stall is how long the training loop waits, also as a percentage of a plain save. A step is timed alone and
    during a save. The first save in the background also allocates memory for its copy.
    """
    made = parser("save", save_stall.__doc__)
    for name, default in (("n_layer", 12), ("n_embd", 768), ("vocab_size", 50304), ("block_size", 64)):
        made.add_argument(f"--{name}", type=int, default=default, help=f"of the model (default: {default})")
    made.add_argument("--saves", type=int, default=3, help="saves of each kind, whose median counts (default: 3)")
    made.add_argument("--device", default="auto", help="as in train.py (default: auto)")
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
                alone = statistics.median([loop.step()[0] for _ in range(5)][2:])
            seconds, stalls, steps = zip(*[loop.save(path) for _ in range(n)], strict=True)
            stall, during = statistics.median(stalls), sum(steps, [])
            row = {"save": kind, "parameters": loop.model.get_num_params(non_embedding=False)}
            row |= {"file (MB)": round(path.stat().st_size / 1e6), "seconds to the disk": statistics.median(seconds)}
            plain = rows[0]["seconds to the disk"] if rows else statistics.median(seconds)
            row |= {"stall (ms)": 1000 * stall, "stall (%)": 100 * stall / plain, "step (ms)": 1000 * alone}
            rows.append(row | {"step while saving (ms)": 1000 * statistics.median(during) if during else ""})
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
        synchronize(self.idx.device)
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
