"""Calls between a model's layers without nn.Module's machinery, which takes a third of a small model's time per token.

    bind(model)     # in place, for inference, after its weights have their final format

Every lookup of a submodule or parameter goes through nn.Module.__getattr__, and every call looks for hooks: about 40 us
a layer, where a layer of 384 channels computes for 200. bind() puts each block's children into the instance's own
dictionary, where Python looks first, as plain functions. So there is one forward pass, model.py's, for one row too.
Parameters, state_dict and .to() find the modules as before; hooks inside blocks are no longer called.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn as nn
from torch.nn import functional as F


def bind(model: nn.Module) -> None:
    """Binds the layers inside a GPT's blocks; the blocks themselves, embeddings and head stay modules."""
    for module in model.transformer.h.modules():
        for name, child in module.named_children():
            module.__dict__[name] = as_function(child)


def as_function(module: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """module.forward, with its parameters at hand where the layer is one of PyTorch's."""
    if type(module) is nn.Linear:
        return partial(F.linear, weight=module.weight, bias=module.bias)
    if type(module) is nn.LayerNorm:
        shape, weight, bias, eps = module.normalized_shape, module.weight, module.bias, module.eps
        return partial(torch.layer_norm, normalized_shape=shape, weight=weight, bias=bias, eps=eps)
    if type(module) is nn.RMSNorm:
        shape, weight, eps = module.normalized_shape, module.weight, module.eps
        return partial(torch.rms_norm, normalized_shape=shape, weight=weight, eps=eps)
    return module.forward
