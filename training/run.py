"""The state of a run: what a checkpoint holds, and how far it has got."""

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from data.dataset import Dataset
from data.windows import windows_per_epoch
from model import GPT
from system.device import pick_compile
from system.distributed import Ranks


@dataclass
class Run:
    """Made by training/start.py and updated by train.py's loop. `config` is train.py's TrainConfig."""

    config: Any
    ranks: Ranks
    device: torch.device
    dtype: torch.dtype
    dataset: Dataset
    model: GPT  # this rank's, unwrapped; sharded with FSDP
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    resumed: bool
    progress: dict  # the checkpoint's "run": seconds, last_eval_iter, clipped, skipped, id, threads, …
    start: dict  # of the checkpoint it started from: "tokenizer", and "folder" (see checkpoints/pretrained.py)
    iter_num: int = 0  # steps done
    best_val_loss: float = 1e9
    saved_iter: int = -1  # steps at the last save; -1 = none yet

    def __post_init__(self) -> None:
        config, self.out_dir = self.config, Path(self.config.out_dir)
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.fsdp = config.parallel == "fsdp" and self.ranks.world_size > 1
        self.micro_steps = config.gradient_accumulation_steps // self.ranks.world_size  # per step, of this process
        self.samples = config.gradient_accumulation_steps * config.batch_size  # sequences per step, all processes
        self.tokens_per_iter = self.samples * config.block_size
        self.epoch_tokens = self.dataset.tokens("train")
        if self.dataset.is_masked:  # every conversation is padded to a window
            self.epoch_tokens = windows_per_epoch(self.dataset, "train", config.block_size) * config.block_size
        # if all ranks can; shapes then stay the same
        self.compiles = not self.ranks.max(not pick_compile(config.compile, self.device))
        self.trims = self.dataset.is_masked and not self.fsdp and not self.compiles
        self.n_params = self.model.get_num_params(non_embedding=False)
        own = self.dataset.tokenizer
        self.tokenizer_json = own.to_json() if own else self.start.get("tokenizer")  # may be large

    def begin(self) -> None:
        """Sets what depends on the restored state: the end of the run, its position in the data, its clock."""
        # samples seen beyond iter_num steps of this size; not 0 if earlier steps had another size
        self.shift = self.progress.get("samples", self.iter_num * self.samples) - self.iter_num * self.samples
        config, seen = self.config, self.shift * self.config.block_size
        epochs = config.max_epochs and config.max_epochs * self.epoch_tokens
        tokens = {"max_tokens": config.max_tokens, "max_epochs": epochs}
        tokens["compute"] = config.compute and config.compute * 1e12 / self.n_params
        steps = {key: (limit - seen) / self.tokens_per_iter for key, limit in tokens.items() if limit is not None}
        steps["max_iters"] = config.max_iters
        self.ends_by = min(steps, key=steps.get)  # the first of those known in steps
        self.limit = max(0, math.ceil(steps[self.ends_by]))
        if config.max_minutes is not None:
            self.ends_by += ", or sooner by max_minutes"
        self.time_before, self.start_time = self.progress["seconds"], time.perf_counter()

    def clock(self) -> float:
        """Seconds of training so far, over all resumes."""
        return self.time_before + time.perf_counter() - self.start_time

    def tokens_after(self, steps: int) -> int:
        return self.tokens_per_iter * steps + self.shift * self.config.block_size

    def eta(self, seconds_per_step: float, elapsed: float) -> str:
        """Time from the end of this step to the end of the run, as h:mm:ss."""
        seconds = (self.limit - self.iter_num - 1) * seconds_per_step
        if self.config.max_minutes is not None:
            seconds = min(seconds, 60 * self.config.max_minutes - elapsed)
        minutes, seconds = divmod(max(0, round(seconds)), 60)
        return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"

    def advice_on_nan(self) -> str:
        if self.saved_iter < 0:
            return "nothing has been saved so far: start again with a lower learning_rate"
        advice = "is kept: continue from it (--init_from=resume) with a lower learning_rate"
        return f"the last good checkpoint in {self.out_dir} {advice}"
