"""The losses reported during training: means over fixed windows of each split. eval.py computes exact ones."""

import numpy as np
import torch

from data.windows import eval_batch, eval_windows
from training.batches import ready_to_send, to_device, without_padding
from training.run import Run

CPU_TOKENS = 4096  # at once in an evaluation: with fewer, small models wait for Python
UNTRAINED_BATCHES = 10  # to see that a new model starts near ln(vocab_size), it need not read all eval_iters


@torch.no_grad()
def estimate_loss(model: torch.nn.Module, run: Run, autocast) -> dict[str, float]:
    """Mean loss of "train" and "val", over the same windows for every call and any number of processes; of a new model,
    over fewer."""
    config, dataset, ranks, device, losses = run.config, run.dataset, run.ranks, run.device, {}
    is_untrained = run.iter_num == 0 and run.limit > 0 and config.init_from == "scratch" and not config.eval_only
    n_batches = min(config.eval_iters, UNTRAINED_BATCHES) if is_untrained else config.eval_iters
    # another size would make torch.compile's graphs dynamic, and FSDP's gather needs a batch of every rank
    is_fixed = run.fsdp or device.type != "cpu" or run.compiles
    rows = config.batch_size if is_fixed else max(config.batch_size, CPU_TOKENS // config.block_size)
    model.eval()
    for split in ("train", "val"):
        windows = eval_windows(dataset, split, config.block_size, n_batches * config.batch_size)
        total, count = torch.zeros((), device=device), 0
        for first in range(0, len(windows), ranks.world_size * rows):
            mine = windows[first + ranks.rank * rows :][:rows]
            padding = np.full(rows - len(mine) if is_fixed else int(not len(mine)), windows[0])
            x, y = eval_batch(dataset, split, np.append(mine, padding), config.block_size, config.sampling)
            y[len(mine) :] = -1
            x, y = without_padding(x, y) if run.trims else (x, y)
            valid = int((y >= 0).sum())
            x, y = (to_device(ready_to_send(part, device), device) for part in (x, y))
            with autocast:
                _, loss = model(x, y, return_logits=False)
            total += loss * valid
            count += valid
        total, count = ranks.sum([total.item(), count])
        if not count:
            raise ValueError(f"{dataset.folder}: {split} has no token to learn in the {len(windows)} windows evaluated")
        losses[split] = total / count
    model.train()
    return losses
