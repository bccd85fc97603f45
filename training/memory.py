"""Advice for when the device runs out of memory."""

import math
from contextlib import suppress

import torch


def advise(config, model: torch.nn.Module | None, optimizer: torch.optim.Optimizer, device, autocast) -> str:
    """One line: the largest of batch_size / 2, / 4, ... for which two micro-batches fit beside the optimizer's state,
    found by running `model` (None: not tried), and what else can be lowered."""
    fits = config.batch_size if model else 0
    while fits > 1:
        fits //= 2
        optimizer.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.empty_cache()
        model.train()
        with suppress(torch.OutOfMemoryError):
            without = [p for p in model.parameters() if p.requires_grad and not optimizer.state]  # moments
            reserve = [torch.empty_like(p) for p in without for _ in range(2)]
            for _ in range(2):
                idx = torch.zeros(fits, config.block_size, dtype=torch.int64, device=device)
                with autocast:
                    loss = model(idx, idx, return_logits=False)[1]
                loss.backward()
            del reserve
            break
        reserve = loss = None
    else:
        fits = 0
    steps = config.gradient_accumulation_steps * math.ceil(config.batch_size / max(1, fits))
    advice = f"--batch_size={fits} --gradient_accumulation_steps={steps} fits; or " if fits else ""
    advice += "lower batch_size or block_size, or use --checkpoint_activations"
    return f"{device}: too little memory for {config.batch_size} sequences of {config.block_size} tokens: {advice}"
