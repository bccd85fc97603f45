"""Kills a training run at random moments, also in the middle of saves, and shows that nothing is lost.

    python tests/torture.py --kills=50                  # one process; some minutes
    python tests/torture.py --kills=50 --processes=2    # two, over gloo
    python tests/torture.py --kills=50 --processes=2 --options="--parallel=fsdp --checkpoint_format=sharded"

A tiny model is trained undisturbed, then again and again with kills (SIGKILL) until there were enough of them. After
each kill every checkpoint must be whole, and no more than the steps since the last finished save may be lost; the run
is then resumed. Where one ends, its weights, optimizer, best loss and metrics.jsonl must equal the undisturbed run's
bitwise. All processes are forked from this one, which has imported PyTorch, so that a restart takes no seconds.
"""

import os
import random
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ["OMP_NUM_THREADS"] = "1"

import torch  # noqa: E402
import torch._dynamo  # noqa: E402, F401  an optimizer imports it; once here, not in every process

import train  # noqa: E402
from checkpoints.folder import find_newest  # noqa: E402
from checkpoints.load import load_checkpoint  # noqa: E402
from checkpoints.publish import saved_checkpoints  # noqa: E402
from configurator import configure, exit_on_error  # noqa: E402
from data.dataset import DatasetWriter  # noqa: E402
from data.tokenizer import CharTokenizer  # noqa: E402
from training.metrics import read_metrics  # noqa: E402


@dataclass
class TortureConfig:
    # Torture
    kills: int = 50  # kills in all
    processes: int = 1  # of each run
    seed: int = 0  # of the moments
    max_iters: int = 120  # steps of a run
    options: str = ""  # more of train.py's, with spaces between


SAVE_INTERVAL = 4  # steps
OPTIONS = [
    "--n_layer=1", "--n_head=2", "--n_embd=16", "--block_size=16", "--batch_size=2", "--gradient_accumulation_steps=2",
    "--device=cpu", "--dtype=float32", "--dropout=0.1", "--learning_rate=1e-2", "--warmup_iters=5", "--grad_clip=0.5",
    "--eval_interval=20", "--eval_iters=2", f"--save_interval={SAVE_INTERVAL}", "--always_save_checkpoint=False",
]  # fmt: skip
CLOCKS = {"seconds", "eval_seconds", "time_ms", "data_wait_ms", "tokens_per_second", "mfu", "memory_mb"}


def main(argv: list[str]) -> None:
    config, _ = configure(TortureConfig, argv)
    if not hasattr(os, "fork"):
        raise ValueError("the torture test forks its processes, which this system cannot: use Linux or macOS")
    torch.set_num_threads(1)
    chance = random.Random(config.seed)
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # where fsync is free: kills lose no page cache
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        options = [*OPTIONS, f"--max_iters={config.max_iters}", f"--dataset={write_dataset(Path(folder, 'data'))}"]
        options += config.options.split()
        whole, start = Path(folder, "undisturbed"), time.perf_counter()
        run(whole, options, config.processes, Kill())
        seconds, kills, runs, lost = time.perf_counter() - start, [], 0, 0
        print(f"undisturbed: {config.max_iters} steps in {seconds:.1f} s, {config.processes} process(es)", flush=True)
        while len(kills) < config.kills:
            runs += 1
            out_dir, saved = Path(folder, f"killed-{runs}"), 0
            while True:
                kill = Kill(chance, 0.8 * seconds) if len(kills) < config.kills else Kill()
                keep = f"--keep_checkpoints={chance.randint(1, 3)}"
                if run(out_dir, [*options, keep], config.processes, kill):
                    break
                kills.append(kill.kind)
                saved, steps = check_folder(out_dir, saved), reached(out_dir)
                lost = max(lost, steps - saved)
                assert steps - saved <= 2 * SAVE_INTERVAL, f"{steps} steps were done, {saved} saved"
                print(f"kill {len(kills)} {kill.kind}: {steps} steps done, {saved} saved", flush=True)
            compare(whole, out_dir)
            print(f"run {runs} equals the undisturbed one", flush=True)
        kinds = ", ".join(f"{kills.count(kind)} {kind}" for kind in sorted(set(kills)))
        print(
            f"{len(kills)} kills ({kinds}) in {runs} runs with {config.processes} process(es): weights, optimizer, "
            f"metrics and best loss equal bitwise; at most {lost} steps lost to a kill, saves were due every "
            f"{SAVE_INTERVAL}"
        )


def write_dataset(folder: Path) -> Path:
    text = "".join(random.Random(0).choices(["the ", "cat ", "sat ", "on ", "a ", "mat. "], k=800))
    tokenizer = CharTokenizer("".join(sorted(set(text))))
    with DatasetWriter(folder, tokenizer, {"name": "torture"}) as writer:
        for split, part in (("train", text[:2000]), ("val", text[2000:])):
            writer.write(split, tokenizer.encode(part), len(part))
    return folder


class Kill:
    """When the run dies: at a moment, before or after the n-th operation on a file, or while the n-th checkpoint is
    being written. Without `chance` it lives."""

    def __init__(self, chance: random.Random | None = None, seconds: float = 0.0):
        self.kind, self.at, self.stagger, self.first = "", None, 0.0, 0
        if chance is None:
            return
        self.kind = chance.choice(("at a moment", "around a file operation", "during a write"))
        self.stagger, self.first = chance.random() * 0.05, chance.randrange(1000)  # which process, and when the others
        self.n = chance.randint(1, 60 if "file" in self.kind else 15)
        self.after, self.delay = chance.random() < 0.5, chance.random() * 0.01
        if self.kind == "at a moment":
            self.at = chance.random() * seconds

    def install(self) -> None:
        """In the process that saves: makes it kill itself."""
        if self.kind == "around a file operation":
            for name in ("fsync", "replace", "link", "unlink"):
                setattr(os, name, self.fatal(getattr(os, name)))
        elif self.kind == "during a write":
            torch.save = self.fatal(torch.save)

    def fatal(self, function: Callable) -> Callable:
        def call(*args, **kwargs):
            self.n -= 1
            if self.n == 0 and self.kind == "during a write":
                threading.Timer(self.delay, die).start()
            elif self.n == 0 and not self.after:
                die()
            result = function(*args, **kwargs)
            if self.n == 0 and self.kind != "during a write":
                die()
            return result

        return call


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def run(out_dir: Path, options: list[str], processes: int, kill: Kill) -> bool:
    """Starts or resumes a run; whether it came to its end. Anything but that and the kill is an AssertionError."""
    begin = "resume" if out_dir.exists() and saved_checkpoints(out_dir) else "scratch"
    argv = [*options, f"--out_dir={out_dir}", f"--init_from={begin}"]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = out_dir.with_suffix(".log")
    pids = [fork(argv, rank, processes, port, log, kill) for rank in range(processes)]
    start, statuses = time.perf_counter(), {}
    while len(statuses) < processes:
        for pid in [p for p in pids if p not in statuses]:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                statuses[pid] = os.waitstatus_to_exitcode(status)
        killed = -signal.SIGKILL in statuses.values()
        if (kill.at is not None and time.perf_counter() - start > kill.at) or killed:
            kill.at = None
            order = sorted(set(pids) - set(statuses), key=lambda pid: (pids.index(pid) + kill.first) % processes)
            for pid in order:
                time.sleep(kill.stagger * killed)  # the survivors may notice, or not
                os.kill(pid, signal.SIGKILL)
                killed = True
        time.sleep(0.001)
    codes = [statuses[pid] for pid in pids]
    allowed = codes == [0] * processes or (kill.kind and -signal.SIGKILL in codes)
    assert allowed, f"exit codes {codes} ({kill.kind or 'no kill'})\n{log.read_text(encoding='utf-8')[-3000:]}"
    return codes == [0] * processes


def fork(argv: list[str], rank: int, processes: int, port: int, log: Path, kill: Kill) -> int:
    """A process that trains; returns its id."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1), os.dup2(output, 2)
        if processes > 1:
            os.environ.update(
                RANK=str(rank),
                LOCAL_RANK=str(rank),
                WORLD_SIZE=str(processes),
                LOCAL_WORLD_SIZE=str(processes),
                MASTER_ADDR="127.0.0.1",
                MASTER_PORT=str(port),
            )
        if rank == 0:
            kill.install()
        status = train.main(argv)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(status)


def check_folder(out_dir: Path, saved: int) -> int:
    """Steps of the newest checkpoint, 0 if there is none; AssertionError if one is damaged or steps were lost that
    had been saved."""
    files = saved_checkpoints(out_dir) if out_dir.exists() else []
    for file in files:
        load_checkpoint(file, verify=True)
    steps = load_checkpoint(find_newest(out_dir))["iter_num"] if files else 0
    assert steps >= saved, f"{saved} steps had been saved, {steps} are left"
    return steps


def reached(out_dir: Path) -> int:
    steps = [record["iter"] + 1 for record in read_metrics(out_dir / "metrics.jsonl") if record["kind"] == "train"]
    return max(steps, default=0)


def compare(whole: Path, parts: Path) -> None:
    """AssertionError unless two finished runs agree bitwise in all but their clocks."""
    for name in ("last.pt", "ckpt.pt"):
        a, b = (flat(load_checkpoint(folder / name)) for folder in (whole, parts))
        assert a.keys() == b.keys(), f"{name}: {a.keys() ^ b.keys()}"
        different = [key for key in a if not same(a[key], b[key])]
        assert not different, f"{name}: {different}"
    a, b = (
        [{key: value for key, value in record.items() if key not in CLOCKS} for record in read_metrics(path)]
        for path in (whole / "metrics.jsonl", parts / "metrics.jsonl")
    )
    assert a == b, [pair for pair in zip(a, b) if pair[0] != pair[1]][:2]  # noqa: B905


def flat(value, name: str = "") -> dict:
    """A checkpoint's leaves by their paths, without its clock and what the two runs were given."""
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    else:
        return {name: value}
    leaves = {}
    for key, item in items:
        path = f"{name}/{key}"
        if path not in ("/config", "/run/seconds", "/run/id", "/index_crc32"):
            leaves |= flat(item, path)
    return leaves


def same(a, b) -> bool:
    return torch.equal(a, b) and a.dtype == b.dtype if isinstance(a, torch.Tensor) else a == b


if __name__ == "__main__":
    exit_on_error(main)
