"""Weights in eight bits: a quarter of the memory to read for every token, which is where its time goes on a CPU.

    from quantize import quantize
    quantize(model)     # in place, for inference; model.stream and model.generate as before

A weight matrix (N, K) becomes int8 with one scale for each of its N rows. Activations stay as they are, except on
processors that multiply int8 by int8 (x86 with VNNI): there they are rounded too, token by token, in the layers that
a trial finds fit for it. Imports torch only.
"""

import torch
import torch.nn as nn
from torch.nn import functional as F

# Where rounding activations to int8 adds more noise than this share of their size, they stay as they are: a few large
# channels leave the others too few steps (Dettmers et al. 2022, arXiv:2208.07339). Of Gaussian numbers it is 0.01.
MAX_NOISE = 0.05
FEW_ROWS = 32  # up to this many rows the kernel for int8 weights beats multiplying by floats made of them


class Int8Linear(nn.Module):
    """nn.Linear for inference: y = x (weight * scale)^T + bias with weight (N, K) int8, scale and bias (N,)."""

    def __init__(self, linear: nn.Linear, round_inputs: bool):
        super().__init__()
        self.round_inputs = round_inputs
        weight = linear.weight.detach().float()
        scale = weight.abs().amax(dim=1) / 127 + 1e-30
        self.register_buffer("weight", (weight / scale[:, None]).round().to(torch.int8))
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().float())
        self.register_buffer("ones", torch.ones_like(scale, dtype=torch.bfloat16), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, x.size(-1))  # (M, K)
        if self.round_inputs:
            rows = rows.float()
            # a scale for each row, so that no row depends on another; integers add up exactly in any order
            step = rows.abs().amax(dim=1, keepdim=True) / 127 + 1e-30
            y = torch._int_mm((rows / step).round_().to(torch.int8), self.weight.t()) * step
        elif x.device.type == "cpu" and len(rows) <= FEW_ROWS and x.size(-1) % 32 == 0:  # else the kernel crashes
            y = torch._weight_int8pack_mm(rows.bfloat16(), self.weight, self.ones)
        else:
            y = F.linear(rows, self.weight.to(rows.dtype))
        y = y * self.scale if self.bias is None else torch.addcmul(self.bias, y, self.scale)
        return y.to(x.dtype).view(*x.shape[:-1], -1)


@torch.no_grad()
def quantize(model: nn.Module) -> None:
    """Replaces the Linear layers of a GPT in place. Embeddings and norms stay; a tied head becomes a copy."""
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    device = next(model.parameters()).device
    multiplies = device.type == "cpu" and torch.backends.mkldnn.is_available() and torch.cpu._is_vnni_supported()
    noise = input_noise(model, linears) if multiplies else {}
    for name, linear in linears.items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, Int8Linear(linear, noise.get(name, 1.0) <= MAX_NOISE))


def input_noise(model: nn.Module, linears: dict[str, nn.Module]) -> dict[str, float]:
    """What rounding its input to int8 adds in each layer, root mean square over the input's, in a trial on random ids.

    Rounding to steps of s adds noise of s / sqrt(12); s is a row's largest number / 127.
    """
    found = {}

    def watch(name):
        def hook(module, args):
            x = args[0].float()
            step = x.abs().amax(dim=-1) / 127
            found[name] = (step.square() / 12 / (x.square().mean(dim=-1) + 1e-30)).mean().sqrt().item()
        return hook

    handles = [linear.register_forward_pre_hook(watch(name)) for name, linear in linears.items()]
    shape = (1, min(64, model.config.block_size))
    ids = torch.randint(model.config.vocab_size, shape, generator=torch.Generator().manual_seed(0))
    try:
        model(ids, targets=ids)  # with targets: the head sees all positions
    finally:
        for handle in handles:
            handle.remove()
    return found
