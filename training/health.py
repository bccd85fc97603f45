"""Counts of clipped and skipped steps, and the first bad one, kept on the device so that the loop need not wait."""

import math

import torch

from system.distributed import Ranks

NEVER = 2**62  # a step no run reaches


class Health:
    """counts: steps so far with a clipped gradient, and steps skipped by float16's scaler; int64 (2,)."""

    def __init__(self, device: torch.device, clipped: int, skipped: int):
        self.first_bad = torch.tensor(NEVER, device=device)  # first step with a loss or gradient that is not finite
        self.counts = torch.tensor([clipped, skipped], device=device)

    def note(self, iter_num: int, loss: torch.Tensor, grad_norm: torch.Tensor, grad_clip: float, scaling: bool) -> None:
        """scaling: float16 gradients may overflow, in which case the scaler skips the step and lowers the scale."""
        is_bad = ~torch.isfinite(loss if scaling else loss + grad_norm)
        self.first_bad = torch.where(is_bad, self.first_bad.clamp(max=iter_num), self.first_bad)
        is_skipped = ~torch.isfinite(grad_norm)
        self.counts += torch.stack([(grad_norm > (grad_clip or math.inf)) & ~is_skipped, is_skipped])

    def check(self, ranks: Ranks, advice: str) -> None:
        """Waits for the device. Raises FloatingPointError, on all ranks, if a loss or a gradient was not finite."""
        first_bad = -int(ranks.max(-self.first_bad.item()))
        if first_bad != NEVER:
            raise FloatingPointError(f"the loss or gradient of iter {first_bad} is not a finite number; {advice}")
