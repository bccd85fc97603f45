"""Weights in eight bits: a quarter of the memory to read for every token, which is what takes the time on a CPU.

A weight matrix (N, K) becomes int8 with one scale per row. Activations stay floats, except on x86, which multiplies
integers faster: there they are rounded too, token by token, in large layers where a trial finds it safe.
"""

import warnings

import torch
import torch.nn as nn
from torch.nn import functional as F

# Activations are not rounded where that adds more noise than this fraction of their size: a few large channels leave
# too few steps for the others (Dettmers et al. 2022, arXiv:2208.07339). Gaussian numbers give 0.01, in 7 bits 0.02.
MAX_NOISE = 0.05
ROUNDED_SIZE = 2**20  # weights from which rounding the activations pays (2 cores, one row)
FEW_ROWS = 32  # up to this many rows the int8 kernel beats converting the weights to floats
# Largest magnitude of a rounded activation. Without VNNI pairs of products are added in 16 bits, where only 7-bit
# activations fit: 2 * 127 * 127 < 2**15 < 2 * 255 * 127
LEVELS = 127 if getattr(torch.cpu, "_is_vnni_supported", bool)() else 63
HAS_BFLOAT16 = getattr(torch.cpu, "_is_avx512_bf16_supported", bool)()  # natively
# FBGEMM's product, (x (M, K) float32, scale, zero point, packed weight (N, K)) -> (M, N) float32, which rounds x to
# multiples of scale. None in a PyTorch without it: 2.13 deprecates the quantized tensors that its packing takes.
ROUNDED_LINEAR = getattr(torch.ops.quantized, "linear_with_input_q_dq_qweight_dq_output_fp32", None)


class Int8Linear(nn.Module):
    """nn.Linear for inference: y = x (weight * scale)^T + bias, with weight (N, K) int8, scale and bias (N,). With
    round_inputs, weight and scale are one packed object, which stays on the CPU."""

    def __init__(self, linear: nn.Linear, round_inputs: bool):
        super().__init__()
        self.round_inputs = round_inputs
        weight = linear.weight.detach().float()
        scale = weight.abs().amax(dim=1) / 127 + 1e-30
        scale = scale.bfloat16() if not round_inputs else scale  # as the kernel requires
        weight = (weight / scale[:, None]).round().clamp_(-127, 127).to(torch.int8)
        self.bias = None if linear.bias is None else linear.bias.detach().float()
        if round_inputs:
            self.packed = prepack(weight, scale, self.bias)
        else:
            self.weight, self.scale = weight, scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.multiply_integers(x.float()) if self.round_inputs else self.multiply_floats(x)
        return y if y.dtype == x.dtype else y.to(x.dtype)

    def multiply_integers(self, x: torch.Tensor) -> torch.Tensor:
        """With one scale per row of x, so that rows are independent; sums of integers are exact in any order."""
        if x.numel() == x.size(-1):  # one row's scale, given as a number, saves three operations of some 5 us each
            low, high = x.aminmax()
            scale = max(-low.item(), high.item(), 1e-30) / LEVELS
            return ROUNDED_LINEAR(x, scale, LEVELS + 1, self.packed)
        scale = x.abs().amax(dim=-1, keepdim=True).div_(LEVELS)  # 0 / 0 gives some integers, which are multiplied by 0
        y = ROUNDED_LINEAR(x.div(scale), 1.0, LEVELS + 1, self.packed)
        return y.mul_(scale) if self.bias is None else torch.lerp(self.bias, y, scale)  # bias is in y, not to be scaled

    def multiply_floats(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.view(-1, x.size(-1))  # (M, K)
        on_cpu = x.device.type == "cpu"
        if on_cpu and rows.size(0) <= FEW_ROWS and rows.size(1) % 32 == 0:  # otherwise it crashes
            y = torch._weight_int8pack_mm(rows.bfloat16(), self.weight, self.scale)
        else:
            dtype = torch.bfloat16 if HAS_BFLOAT16 and on_cpu else rows.dtype
            y = F.linear(rows.to(dtype), self.weight.to(dtype)) * self.scale
        return (y if self.bias is None else self.bias + y).view(*x.shape[:-1], -1)


def prepack(weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None):
    """weight (N, K) int8 with scale and bias (N,), in FBGEMM's layout, the same for any number of rows."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its deprecation
        zeros = torch.zeros(len(scale), dtype=torch.int64)
        weight = torch._make_per_channel_quantized_tensor(weight, scale.double(), zeros, axis=0)
        return torch.ops.quantized.linear_prepack(weight, bias)


@torch.no_grad()
def quantize(model: nn.Module, round_inputs: bool = True) -> None:
    """Replaces the Linear layers of a GPT in place. Embeddings and norms stay; a tied head becomes a copy.
    The int8 layers stay on their device and are in no state_dict. round_inputs=False rounds only weights, for
    torch.compile, which does not accept FBGEMM's packed objects."""
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    device = next(model.parameters()).device
    has_fbgemm = ROUNDED_LINEAR is not None and torch.backends.quantized.engine in ("x86", "fbgemm")
    multiplies = round_inputs and device.type == "cpu" and has_fbgemm
    noise = input_noise(model, linears) if multiplies else {}
    fit = {name for name in noise if noise[name] <= MAX_NOISE and linears[name].weight.numel() >= ROUNDED_SIZE}
    for name, linear in linears.items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, Int8Linear(linear, name in fit))


def input_noise(model: nn.Module, linears: dict[str, nn.Module]) -> dict[str, float]:
    """For each layer, the noise added by rounding its input to int8, relative to the input (root mean squares), on
    random ids. Rounding to steps of s adds noise of s / sqrt(12); s is a row's largest magnitude / LEVELS."""
    found, names = {}, {linear: name for name, linear in linears.items()}

    def measure(linear, args):
        x = args[0].float()
        step = x.abs().amax(dim=-1) / LEVELS
        found[names[linear]] = (step.square() / 12 / (x.square().mean(dim=-1) + 1e-30)).mean().sqrt().item()

    handles = [linear.register_forward_pre_hook(measure) for linear in names]
    T, generator = min(64, model.config.block_size), torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.vocab_size, (1, T), generator=generator)
    try:
        model(ids, targets=ids)  # targets make the head see all positions
    finally:
        for handle in handles:
            handle.remove()
    return found
