"""Weights in eight bits: a quarter of the memory to read for every token, which is where its time goes on a CPU.

    from inference.quantize import quantize
    quantize(model)     # in place, for inference; model.stream and model.generate as before

A weight matrix (N, K) becomes int8 with one scale for each of its N rows. Activations stay as they are, except on
processors that multiply int8 by int8 (x86 with VNNI): there they are rounded too, token by token, in the large layers
that a trial finds fit for it. Imports torch only.
"""

import warnings

import torch
import torch.nn as nn
from torch.nn import functional as F

# Where rounding activations to int8 adds more noise than this share of their size, they stay as they are: a few large
# channels leave the others too few steps (Dettmers et al. 2022, arXiv:2208.07339). Of Gaussian numbers it is 0.01.
MAX_NOISE = 0.05
LARGE = 2**20  # weights from which rounding the activations takes less time than it saves (2 cores, one row)
FEW_ROWS = 32  # up to this many rows the kernel for int8 weights beats multiplying by floats made of them
HAS_BFLOAT16 = getattr(torch.cpu, "_is_avx512_bf16_supported", bool)()  # as its own product of numbers
# FBGEMM's product, (x (M, K) float32, scale, zero point, packed weight (N, K)) -> (M, N) float32, which rounds x to
# scale times an integer. None in a PyTorch without it: 2.13 deprecates tensors with a scale, as its packing takes.
ROUNDED_LINEAR = getattr(torch.ops.quantized, "linear_with_input_q_dq_qweight_dq_output_fp32", None)


class Int8Linear(nn.Module):
    """nn.Linear for inference: y = x (weight * scale)^T + bias with weight (N, K) int8, scale and bias (N,).

    Where x is rounded too, weight and scale are one packed object, which stays on the CPU.
    """

    def __init__(self, linear: nn.Linear, round_inputs: bool):
        super().__init__()
        self.round_inputs = round_inputs
        weight = linear.weight.detach().float()
        scale = weight.abs().amax(dim=1) / 127 + 1e-30
        scale = scale.bfloat16() if not round_inputs else scale  # as the kernel takes it
        weight = (weight / scale[:, None]).round().clamp_(-127, 127).to(torch.int8)
        self.bias = None if linear.bias is None else linear.bias.detach().float()
        if round_inputs:
            self.packed = pack_for_fbgemm(weight, scale)
        else:
            self.weight, self.scale = weight, scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bias = self.bias
        rows = x.view(-1, x.size(-1))  # (M, K)
        if self.round_inputs:
            # a scale for each row, so that no row depends on another; integers add up exactly in any order. A row of
            # zeros is divided by zero, to some integers, and multiplied by it again
            rows = rows.float()
            size = rows.abs().amax(dim=1, keepdim=True)
            y = ROUNDED_LINEAR(rows.div(size), 1 / 127, 128, self.packed)
            y = y.mul_(size) if bias is None else torch.addcmul(bias, y, size)
        else:
            weight, scale = self.weight, self.scale
            if x.device.type == "cpu" and rows.size(0) <= FEW_ROWS and rows.size(1) % 32 == 0:  # else it crashes
                y = torch._weight_int8pack_mm(rows.bfloat16(), weight, scale)
            else:
                dtype = torch.bfloat16 if HAS_BFLOAT16 and x.device.type == "cpu" else rows.dtype
                y = F.linear(rows.to(dtype), weight.to(dtype)) * scale
            if bias is not None:
                y = bias + y
        y = y if y.dtype == x.dtype else y.to(x.dtype)
        return y.view(*x.shape[:-1], -1)


def pack_for_fbgemm(weight: torch.Tensor, scale: torch.Tensor):
    """weight (N, K) int8 with scale (N,), in the order in which FBGEMM reads it for one row as for many."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is deprecated
        zeros = torch.zeros(len(scale), dtype=torch.int64)
        return torch.ops.quantized.linear_prepack(
            torch._make_per_channel_quantized_tensor(weight, scale.double(), zeros, axis=0), None
        )


@torch.no_grad()
def quantize(model: nn.Module, round_inputs: bool = True) -> None:
    """Replaces the Linear layers of a GPT in place. Embeddings and norms stay; a tied head becomes a copy.
    round_inputs=False rounds weights only: FBGEMM's packed ones are no tensors, so torch.compile can't take them."""
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    device = next(model.parameters()).device
    has_fbgemm = ROUNDED_LINEAR is not None and torch.backends.quantized.engine in ("x86", "fbgemm")
    multiplies = round_inputs and device.type == "cpu" and has_fbgemm and torch.cpu._is_vnni_supported()
    noise = input_noise(model, linears) if multiplies else {}
    fit = {name for name in noise if noise[name] <= MAX_NOISE and linears[name].weight.numel() >= LARGE}
    for name, linear in linears.items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, Int8Linear(linear, name in fit))


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
