"""The model in a checkpoint."""

from dataclasses import fields

import torch

from model import GPT, GPTConfig

PREFIXES = ("_orig_mod.", "module.")  # left on parameter names by torch.compile and DDP


def clean_weights(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights by the plain model's names: wrappers' prefixes off, and without the causal masks that nanoGPT on
    old PyTorch kept as buffers."""
    cleaned = {}
    for name, tensor in weights.items():
        while name.startswith(PREFIXES):
            name = name.split(".", 1)[1]
        if not (name.endswith(".attn.bias") and tensor.dim() == 4):
            cleaned[name] = tensor
    return cleaned


def build_model(state: dict, device: torch.device | str = "cpu", take: bool = False, **changes) -> GPT:
    """The model in a checkpoint, with its weights. `changes` replace model_args (dropout, say).

    The weights are copied to `device` one by one; to "meta" none are. take: on the CPU they become the model's own
    instead, so that there is only one set of them; `state` must not be mapped from the file then, nor used again.
    Raises ValueError if model_args and weights do not fit together, naming the first tensor that differs."""
    known = {field.name for field in fields(GPTConfig)}
    unknown = state["model_args"].keys() - known
    if unknown:
        raise ValueError(f"the checkpoint's model_args has {sorted(unknown)}, which this version does not know")
    config = GPTConfig(**{**state["model_args"], **changes})
    with torch.device("meta"):  # shapes only: no memory, no random numbers
        model = GPT(config)
    weights = clean_weights(state["model"])
    for name, tensor in model.state_dict().items():
        found = tuple(weights[name].shape) if name in weights else "nothing"
        if found != tuple(tensor.shape):
            raise ValueError(f"checkpoint weight {name}: found {found}, model_args need {tuple(tensor.shape)}")
    extra = weights.keys() - model.state_dict().keys()
    if extra:
        raise ValueError(f"the checkpoint has weights that model_args know nothing of: {sorted(extra)[:4]}")
    if torch.device(device).type == "meta":
        return model
    take = take and torch.device(device).type == "cpu"
    if take:
        model.load_state_dict({name: tensor.float() for name, tensor in weights.items()}, assign=True)
        model.tie()
        model.make_rope()
        return model
    model.allocate(device).load_state_dict(weights)
    return model
