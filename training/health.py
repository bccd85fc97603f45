"""Counts of clipped and skipped steps, and the first bad one, kept on the device so that the loop need not wait."""

import math

import torch

from training.run import Run

NEVER = 2**62  # a step no run reaches


class Health:
    """counts: steps so far with a clipped gradient, and steps skipped by float16's scaler; int64 (2,)."""

    def __init__(self, run: Run):
        self.run, progress = run, run.progress
        self.first_bad = torch.tensor(NEVER, device=run.device)  # first step with a loss or gradient that is not finite
        self.counts = torch.tensor([progress["clipped"], progress["skipped"]], device=run.device)

    def note(self, loss: torch.Tensor, grad_norm: torch.Tensor) -> None:
        """Of the step in progress. float16's gradients may overflow: the scaler then skips it and lowers its scale."""
        is_bad = ~torch.isfinite(loss if self.run.scaler.is_enabled() else loss + grad_norm)
        self.first_bad = torch.where(is_bad, self.first_bad.clamp(max=self.run.iter_num), self.first_bad)
        is_skipped = ~torch.isfinite(grad_norm)
        self.counts += torch.stack([(grad_norm > (self.run.config.grad_clip or math.inf)) & ~is_skipped, is_skipped])

    def check(self) -> None:
        """Waits for the device. Raises FloatingPointError, on all ranks, if a loss or a gradient was not finite."""
        first_bad = -int(self.run.ranks.max(-self.first_bad.item()))
        if first_bad != NEVER:
            problem = f"the loss or gradient of iter {first_bad} is not a finite number"
            raise FloatingPointError(f"{problem}; {self.run.advice_on_nan()}")
