"""Where a run's metrics and checkpoints go."""

from dataclasses import asdict
from functools import partial

import torch

from checkpoints.build import model_args_of
from checkpoints.folder import set_aside
from checkpoints.load import FORMAT
from checkpoints.saver import Saver
from checkpoints.sharded import save_sharded
from system.distributed import gather
from training.health import Health
from training.lora import merged_weights
from training.metrics import Metrics, start_loggers
from training.run import Run


class Outputs:
    """Only rank 0 has a metrics file and a saver; other ranks, and eval_only runs, write nothing. A new run sets aside
    an earlier one in out_dir. Raises ValueError on all ranks if out_dir cannot be written to."""

    def __init__(self, run: Run, health: Health):
        self.run, self.health, self.metrics, self.saver = run, health, None, None
        if run.config.eval_only:
            return
        # before an earlier run is moved; and a barrier: all ranks have read their start, which may be in out_dir
        loggers = run.ranks.on_main(partial(start_loggers, asdict(run.config)))
        previous = None if run.resumed else run.ranks.on_main(partial(set_aside, run.out_dir))
        if previous:
            advice = f"delete it, or continue it with --out_dir={previous} --init_from=resume"
            run.ranks.say(f"note: the run that was in {run.out_dir} is now in {previous}: {advice}")
        progress = run.iter_num, run.progress["last_eval_iter"]
        self.metrics = run.ranks.on_main(lambda: Metrics(run.out_dir, loggers, *progress))
        if self.metrics:
            keep, background = run.config.keep_checkpoints, run.config.async_save
            self.saver = Saver(run.device, keep, background, self.metrics.sync)

    @property
    def failed(self) -> bool:
        """Whether a write has failed, so that settle() will raise."""
        return bool(self.saver and self.saver.error)

    def log(self, record: dict) -> None:
        if self.metrics:
            try:
                self.metrics.write(record)
            except ValueError as error:  # raised by settle(): other ranks must learn of it before this one stops
                self.saver.error = error

    def save(self, *names: str) -> None:
        """Starts saving the state to resume from, in out_dir under these names; every rank must call it. Raises
        FloatingPointError, and saves nothing, if a loss or gradient was not finite."""
        run = self.run
        self.health.check()
        clipped, skipped = self.health.counts.tolist()
        run.progress |= {"seconds": run.clock(), "samples": run.shift + run.iter_num * run.samples}
        run.progress |= {"clipped": clipped, "skipped": skipped}
        in_shards = run.config.checkpoint_format == "sharded"
        state = {
            "model": run.model.state_dict(keep_vars=run.fsdp or in_shards),
            "optimizer": run.optimizer.state_dict(),
            "model_args": model_args_of(run.model.config),
            "iter_num": run.iter_num,
            "best_val_loss": run.best_val_loss,
            "config": asdict(run.config),
            "scaler": run.scaler.state_dict(),
            "rng": {"seed": run.config.seed, "iter_num": run.iter_num},  # all that random numbers depend on
            "tokenizer": run.tokenizer_json,
            **({"folder": run.start["folder"]} if "folder" in run.start else {}),
            "meta": {k: v for k, v in (run.dataset.meta or {}).items() if k != "tokenizer"},
            "run": {**run.progress, "torch": str(torch.__version__), "world_size": run.ranks.world_size},
            "format": FORMAT,
        }
        if run.config.lora_rank:
            state["model"], state["lora"] = merged_weights(run.model)
        if "last.pt" in names:
            run.saved_iter = run.iter_num
        paths = [run.out_dir / name for name in names]
        if in_shards:
            save_sharded(state, paths, self.saver, run.ranks)
            return
        if run.fsdp:
            state = gather(state, keep=run.ranks.is_main)
        if self.saver:
            self.saver.save(state, *paths, is_copy=run.fsdp)

    def before_update(self) -> None:
        """Waits until the state being saved has been copied, so that the tensors may change."""
        if self.saver:
            self.saver.before_update()

    def settle(self) -> None:
        """Waits until everything is on the disk. Raises ValueError on all ranks if a write failed."""
        self.run.ranks.on_main(lambda: self.saver.wait())

    def close(self) -> None:
        if self.saver:
            self.saver.join()
            self.metrics.close()
