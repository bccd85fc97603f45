"""Where a run's numbers go: out_dir/metrics.jsonl always, Weights & Biases and TensorBoard when asked for.

metrics.jsonl holds one JSON object a line, kind "train" (step `iter`, counted from 0) or "eval" (after `iter`
steps). After a resume the file goes on where the checkpoint stood: no gap, no line twice. In a "train" record:

    loss, lr, grad_norm, loss_scale   of this step; grad_norm before clipping
    clipped, skipped                  steps so far whose gradient was clipped, and that were left out because
                                      float16 overflowed
    tokens, epochs, seconds           so far, over all resumes
    time_ms, data_wait_ms             a step, mean since the record before; of which the loop waited for its data
    tokens_per_second, mfu            in the same steps
    memory_mb                         the most that was in use on CUDA, elsewhere the process's resident memory
"""

import json
import math
import os
from contextlib import suppress
from pathlib import Path


class Metrics:
    """Writes records. Only rank 0 makes one. Raises ValueError if an optional package is absent, or the file
    cannot be written."""

    def __init__(self, out_dir: Path, config: dict, iter_num: int, last_eval_iter: int):
        self.path = out_dir / "metrics.jsonl"
        kept = [r for r in read_metrics(self.path) if happened(r, iter_num, last_eval_iter)] if iter_num else []
        self.wandb = start_wandb(config) if config["wandb_log"] else None
        self.tensorboard = start_tensorboard(out_dir) if config["tensorboard_log"] else None
        temporary = self.path.with_name("metrics.jsonl.tmp")
        try:
            with open(temporary, "w", encoding="utf-8") as self.file:
                self.file.write("".join(json.dumps(r) + "\n" for r in kept))
                self.file.flush()
                self.sync()
            temporary.replace(self.path)
            self.file = open(self.path, "a", encoding="utf-8")
        except OSError as error:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise ValueError(f"cannot write {self.path}: {error}") from error

    def write(self, record: dict) -> None:
        """record: kind, iter and numbers. None is left out, and so are inf and nan, which JSON cannot say."""
        record = {
            key: value
            for key, value in record.items()
            if value is not None and not (isinstance(value, float) and not math.isfinite(value))
        }
        try:
            self.file.write(json.dumps(record) + "\n")
            self.file.flush()
        except OSError as error:
            raise ValueError(f"cannot write {self.path}: {error}") from error
        named = {f"{record['kind']}/{k}": v for k, v in record.items() if k not in ("kind", "iter")}
        if self.wandb is not None:
            self.wandb.log({"iter": record["iter"], **named})
        if self.tensorboard is not None:
            for name, value in named.items():
                self.tensorboard.add_scalar(name, value, record["iter"])

    def sync(self) -> None:
        """Puts what was written on the disk: before a checkpoint, so that a power cut leaves no gap before it."""
        os.fsync(self.file.fileno())

    def close(self) -> None:
        with suppress(OSError):  # a full disk, which write() has told
            self.file.close()
        if self.tensorboard is not None:
            self.tensorboard.close()
        if self.wandb is not None:
            self.wandb.finish()


def happened(record: dict, iter_num: int, last_eval_iter: int) -> bool:
    """Whether a record is from before the state that is resumed: iter_num steps done, and evaluated last after
    last_eval_iter of them."""
    return record["iter"] < iter_num if record["kind"] == "train" else record["iter"] <= last_eval_iter


def read_metrics(path: Path) -> list[dict]:
    """The records of a metrics.jsonl; [] if there is none. A last line that a kill cut short is dropped."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    records = []
    for number, line in enumerate(lines, 1):
        try:
            records.append(json.loads(line))
        except ValueError:
            if number < len(lines):
                raise ValueError(f"{path}, line {number}: not JSON: move the file away to go on") from None
    return records


def start_wandb(config: dict):
    try:
        import wandb
    except ImportError:
        raise ValueError(
            "wandb_log=True needs the package wandb: pip install wandb, or use --wandb_log=False"
        ) from None
    return wandb.init(project=config["wandb_project"], name=config["wandb_run_name"], config=config)


def start_tensorboard(out_dir: Path):
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ValueError(
            "tensorboard_log=True needs the package tensorboard: pip install tensorboard, "
            "or use --tensorboard_log=False"
        ) from None
    return SummaryWriter(str(out_dir / "tensorboard"))
