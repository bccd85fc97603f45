"""Weights laid out as a CPU's matrix products read them: the same numbers, and inference up to twice as fast.

    from inference.pack import pack
    pack(model)     # in place, for inference, once the model has its number format; otherwise as before

nn.Linear finds its weights in rows; oneDNN reads them in blocks, in an order that it picks for the processor. On the
AMD processor that this was measured on (RESULTS.md), nn.Linear took twice as long in float32, where PyTorch asks MKL,
and in bfloat16 3 times (one row of input) to 1.1 times (thousands). Imports torch only.
"""

import torch
import torch.nn as nn

# weights from which calling oneDNN takes less time than it saves (one row, 2 cores)
LARGE = {torch.float32: 2**17, torch.bfloat16: 2**14}
# oneDNN, as torch.compile's frozen graphs call it; its names begin with "_", so a PyTorch without them is possible
LAY_OUT = getattr(torch.ops.mkldnn, "_reorder_linear_weight", None)
MULTIPLY = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
# of model.py's MLPs, by oneDNN's names
ACTIVATIONS = {"gelu": ("gelu", "none"), "gelu_tanh": ("gelu", "tanh"), "swiglu": ("swish", "")}


class PackedLinear(nn.Module):
    """nn.Linear for inference: y = x weight^T + bias, x (..., K) of the weight's type. It stays on the CPU.

    activation and variant, of ACTIVATIONS: what follows it in the same pass.
    """

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.packed = LAY_OUT(linear.weight.detach())
        self.bias = None if linear.bias is None else linear.bias.detach()
        self.activation, self.variant = "none", ""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.view(-1, x.size(-1))  # oneDNN's own way through three dimensions takes longer
        return MULTIPLY.default(rows, self.packed, self.bias, self.activation, [], self.variant).view(*x.shape[:-1], -1)


@torch.no_grad()
def pack(model: nn.Module) -> None:
    """Replaces the large Linear layers of a GPT in float32 or bfloat16 on a CPU; does nothing where that can't be.
    A tied head becomes a copy. Neither torch.compile nor autocast nor .to() can take the model afterwards, it can't be
    copied, pickled or saved, and what counts parameters no longer sees these."""
    for name in [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]:
        linear = model.get_submodule(name)  # not a list of them, which would keep all plain weights to the end
        if can_pack(linear.weight) and linear.weight.numel() >= LARGE[linear.weight.dtype]:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, PackedLinear(linear))
    for mlp in (block.mlp for block in model.transformer.h):
        linear = mlp.c_gate if mlp.kind == "swiglu" else mlp.c_fc
        if isinstance(linear, PackedLinear) and mlp.kind in ACTIVATIONS:
            linear.activation, linear.variant = ACTIVATIONS[mlp.kind]
            mlp.activate = unchanged


def unchanged(x: torch.Tensor) -> torch.Tensor:
    return x


def can_pack(weight: torch.Tensor) -> bool:
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available() or LAY_OUT is None or MULTIPLY is None:
        return False
    if weight.dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return weight.dtype == torch.float32
