"""LoRA: every matrix W of the blocks stays as it is and gets two small factors that are trained (arXiv:2106.09685).

    y = x W^T + alpha / rank * x A^T B^T      with A (rank, in) random and B (out, rank) zero, so it begins as the model

Of the embedding and the head, only rows of ids that the dataset adds are trained, such as those of markers of turns;
norms and biases are not, and nothing decays. In a checkpoint, "model" holds the product: sampling, evaluation and
export need not know of this. "lora" holds what a resume needs to go on exactly: the matrices as they were, A and B.
"""

import math

import torch
import torch.nn as nn
from torch.nn import functional as F

from model import GPT


class LoRALinear(nn.Linear):
    """A linear layer, whose parameters it takes over under their names, with the factors lora_a and lora_b."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float, generator: torch.Generator):
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.scale = base.in_features, base.out_features, alpha / rank
        self.weight, self.bias = base.weight, base.bias
        a = torch.randn(rank, base.in_features, generator=generator) / math.sqrt(base.in_features)
        self.lora_a = nn.Parameter(a.to(base.weight.device))
        self.lora_b = nn.Parameter(torch.zeros(base.out_features, rank, device=base.weight.device))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + F.linear(F.linear(x, self.lora_a), self.scale * self.lora_b)

    def merged(self) -> torch.Tensor:
        return self.weight + self.scale * (self.lora_b @ self.lora_a)


def add_lora(model: GPT, rank: int, alpha: float, seed: int, first_new_id: int | None, saved: dict | None) -> None:
    """Freezes the model but for factors, and embeddings from first_new_id on (None: no rows). saved: a checkpoint's
    "lora", from which all of that is restored."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for block in model.transformer.h:
        for parent in (block.attn, block.mlp):
            for name, layer in list(parent.named_children()):
                if isinstance(layer, nn.Linear):
                    setattr(parent, name, LoRALinear(layer, rank, alpha, generator))
    if saved:
        first_new_id = saved["first_new_id"]
        model.load_state_dict(saved["weights"], strict=False)
    model.first_new_id = first_new_id
    if first_new_id is not None:
        for weight in {model.transformer.wte.weight, model.lm_head.weight}:
            weight.requires_grad_(True)
            weight.register_hook(lambda grad: grad.index_fill(0, torch.arange(first_new_id, device=grad.device), 0))


def merged_weights(model: GPT) -> tuple[dict[str, torch.Tensor], dict]:
    """(the weights of the plain model, "lora" for the checkpoint) of a model with add_lora."""
    weights, kept = model.state_dict(), {}
    for prefix, layer in model.named_modules():
        if isinstance(layer, LoRALinear):
            kept |= {f"{prefix}.{name}": weights[f"{prefix}.{name}"] for name in ("weight", "lora_a", "lora_b")}
            weights[f"{prefix}.weight"] = layer.merged().detach()
            del weights[f"{prefix}.lora_a"], weights[f"{prefix}.lora_b"]
    return dict(weights), {"first_new_id": model.first_new_id, "weights": kept}
