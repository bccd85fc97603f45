"""Weights laid out as a CPU's matrix products read them: the same numbers, and inference up to twice as fast.

nn.Linear stores its weights in rows; oneDNN reads them in blocks, in an order it picks for the processor. On the AMD
processor of RESULTS.md, nn.Linear took twice as long in float32, where PyTorch calls MKL, and 3 times (one row of
input) to 1.1 times (thousands) in bfloat16.
"""

import torch
import torch.nn as nn

# number of weights from which oneDNN saves more than its call costs (one row, 2 cores)
PACKED_SIZES = {torch.float32: 2**17, torch.bfloat16: 2**14}
# oneDNN as torch.compile's frozen graphs call it; private names, which a PyTorch version may lack
LAY_OUT = getattr(torch.ops.mkldnn, "_reorder_linear_weight", None)
MULTIPLY = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
FUSED_ACTIVATIONS = {"gelu": ("gelu", "none"), "gelu_tanh": ("gelu", "tanh"), "swiglu": ("swish", "")}  # oneDNN's names


class PackedLinear(nn.Module):
    """nn.Linear for inference on the CPU: y = x weight^T + bias, x (..., K) of the weight's type, followed by an
    activation of FUSED_ACTIVATIONS, if any, in the same pass."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.packed = LAY_OUT(linear.weight.detach())
        self.bias = None if linear.bias is None else linear.bias.detach()
        self.activation, self.variant = "none", ""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return MULTIPLY.default(x, self.packed, self.bias, self.activation, [], self.variant)


@torch.no_grad()
def pack(model: nn.Module) -> None:
    """Replaces the large Linear layers of a GPT in float32 or bfloat16 on a CPU, where oneDNN supports it; the model
    must have its final dtype. A tied head becomes a copy. The model can no longer be compiled, autocast, moved, copied,
    pickled or saved, and its count of parameters lacks the packed ones."""
    for name in [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]:
        linear = model.get_submodule(name)  # by name: a list of layers would keep all plain weights until the end
        if can_pack(linear.weight) and linear.weight.numel() >= PACKED_SIZES[linear.weight.dtype]:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, PackedLinear(linear))
    for mlp in (block.mlp for block in model.transformer.h):
        linear = mlp.c_gate if mlp.kind == "swiglu" else mlp.c_fc
        if isinstance(linear, PackedLinear) and mlp.kind in FUSED_ACTIVATIONS:
            linear.activation, linear.variant = FUSED_ACTIVATIONS[mlp.kind]
            mlp.activate = nn.Identity().forward


def can_pack(weight: torch.Tensor) -> bool:
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available() or LAY_OUT is None or MULTIPLY is None:
        return False
    if weight.dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return weight.dtype == torch.float32
