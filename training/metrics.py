"""Where a run's numbers go: out_dir/metrics.jsonl always, Weights & Biases, SwanLab and TensorBoard when asked for.

metrics.jsonl holds one JSON object per line, of kind "train" (step `iter`, counted from 0) or "eval" (after `iter`
steps). A resume continues it where the checkpoint stood, without gaps or repeated lines. A "train" record has:

    loss, lr, grad_norm, loss_scale   of this step; grad_norm before clipping
    clipped, skipped                  steps so far with a clipped gradient, and steps skipped as float16 overflowed
    tokens, epochs, seconds           so far, over all resumes
    time_ms, data_wait_ms             of a step, and its part spent waiting for data; means since the previous record
    tokens_per_second, mfu            over the same steps
    memory_mb                         peak of tensors on CUDA, elsewhere the process's resident memory
"""

import importlib
import json
import math
from contextlib import suppress
from pathlib import Path

from system.files import replace, sync, sync_file

LOGGERS = {"wandb": "wandb", "swanlab": "swanlab", "tensorboard": "torch.utils.tensorboard"}  # package: module


def start_loggers(config: dict) -> dict:
    """For Metrics: what was asked for, by name. Raises ValueError for a package that is missing or does not start, as
    without a login."""
    loggers = {name: import_logger(name) for name in LOGGERS if config[f"{name}_log"]}
    for name, module in loggers.items():
        try:
            loggers[name] = start_logger(name, module, config)
        except Exception as error:  # of the package's own kinds
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            offline = " or set WANDB_MODE=offline" * (name == "wandb")
            remedy = f"log in (`{name} login`){offline}, or use --{name}_log=False"
            raise ValueError(f"{name}_log=True, but {name} does not start: {reason}; {remedy}") from error
    return loggers


def start_logger(name: str, module, config: dict):
    if name == "wandb":
        return module.init(project=config["wandb_project"], name=config["wandb_run_name"], config=config)
    if name == "swanlab":
        project, run_name = (config[f"swanlab_{key}"] or config[f"wandb_{key}"] for key in ("project", "run_name"))
        module.init(project=project, experiment_name=run_name, config=config)
    return module


class Metrics:
    """On rank 0 only. loggers: from start_loggers. Raises ValueError if the file cannot be written."""

    def __init__(self, out_dir: Path, loggers: dict, iter_num: int, last_eval_iter: int):
        self.path = out_dir / "metrics.jsonl"
        kept = [r for r in read_metrics(self.path) if happened(r, iter_num, last_eval_iter)] if iter_num else []
        self.wandb, self.swanlab, self.tensorboard = (loggers.get(name) for name in LOGGERS)
        temporary = self.path.with_name("metrics.jsonl.tmp")
        try:
            if self.tensorboard is not None:
                forget = {"purge_step": iter_num + 1} if iter_num else {}  # what a stopped run did after its checkpoint
                self.tensorboard = self.tensorboard.SummaryWriter(str(out_dir / "tensorboard"), **forget)
            temporary.write_text("".join(json.dumps(r) + "\n" for r in kept), encoding="utf-8")
            sync_file(temporary)
            replace(temporary, self.path)
            self.file = open(self.path, "a", encoding="utf-8")
        except OSError as error:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise ValueError(f"cannot write {self.path}: {error}") from error

    def write(self, record: dict) -> None:
        """record: kind, iter and numbers. Omits None, and inf and nan, which JSON lacks."""
        record = {k: v for k, v in record.items() if not (v is None or isinstance(v, float) and not math.isfinite(v))}
        try:
            self.file.write(json.dumps(record) + "\n")
            self.file.flush()
        except OSError as error:
            raise ValueError(f"cannot write {self.path}: {error}") from error
        named = {f"{record['kind']}/{k}": v for k, v in record.items() if k not in ("kind", "iter")}
        if self.wandb is not None:
            self.wandb.log({"iter": record["iter"], **named})
        if self.swanlab is not None:
            self.swanlab.log(named, step=record["iter"])
        if self.tensorboard is not None:
            for name, value in named.items():
                self.tensorboard.add_scalar(name, value, record["iter"])

    def sync(self) -> None:
        """Flushes to the disk: called before each checkpoint, so that a power cut leaves no gap before it."""
        sync(self.file)

    def close(self) -> None:
        with suppress(OSError):  # a full disk, which write() has reported
            self.file.close()
        if self.tensorboard is not None:
            self.tensorboard.close()
        if self.wandb is not None:
            self.wandb.finish()
        if self.swanlab is not None:
            self.swanlab.finish()


def happened(record: dict, iter_num: int, last_eval_iter: int) -> bool:
    """Whether a record precedes the resumed state: iter_num steps done, the last evaluation at last_eval_iter."""
    return record["iter"] < iter_num if record["kind"] == "train" else record["iter"] <= last_eval_iter


def read_metrics(path: Path) -> list[dict]:
    """The records of a metrics.jsonl; [] if there is none. Drops a last line cut short by a kill."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    records = []
    for number, line in enumerate(lines, 1):
        try:
            records.append(json.loads(line))
        except ValueError:
            if number < len(lines):
                raise ValueError(f"{path}, line {number}: not JSON: move the file away to continue") from None
    return records


def import_logger(name: str):
    """One of LOGGERS as a module. Raises ValueError if it is not installed."""
    try:
        return importlib.import_module(LOGGERS[name])
    except ImportError:
        instead = f"pip install {name}, or use --{name}_log=False"
        raise ValueError(f"{name}_log=True needs the package {name}: {instead}") from None
