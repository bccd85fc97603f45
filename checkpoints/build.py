"""The model in a checkpoint, and its model_args."""

from dataclasses import fields, replace

import torch
from torch.overrides import TorchFunctionMode

from model import GPT, GPTConfig

# left in parameter names by torch.compile, DDP, FSDP and activation checkpointing, also of single blocks
WRAPPERS = {"_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}


def config_of(state: dict, **changes) -> GPTConfig:
    """The shape of the model in a checkpoint. ValueError for model_args that this version does not know."""
    unknown = state["model_args"].keys() - {field.name for field in fields(GPTConfig)}
    if unknown:
        raise ValueError(f"the checkpoint's model_args has {sorted(unknown)}, which this version does not support")
    return GPTConfig(**{**state["model_args"], **changes})


def build_model(state: dict, device: torch.device | str = "cpu", take: bool = False, **changes) -> GPT:
    """The model in a checkpoint, with its weights. `changes` replace model_args (dropout, for example).

    The weights are copied to `device` one at a time; "meta" gets none. take: on the CPU the model keeps the
    checkpoint's own tensors instead, so that there is only one copy, and `state` must not be used again. To be trained,
    such a model needs a `state` loaded with mapped=False: else it occupies the mapped file, which Windows does not
    let a later save replace. Raises ValueError naming the first tensor whose shape contradicts model_args.
    """
    model = shapes_only(config_of(state, **changes))
    weights, expected = clean_weights(state["model"]), model.state_dict()
    if model.config.tie_weights:
        fill_in(weights, "lm_head.weight", "transformer.wte.weight")
    for name, tensor in expected.items():
        found = tuple(weights[name].shape) if name in weights else "nothing"
        if found != tuple(tensor.shape):
            raise ValueError(f"checkpoint weight {name}: found {found}, model_args require {tuple(tensor.shape)}")
    extra = sorted(weights.keys() - expected.keys())
    if extra:
        raise ValueError(f"the checkpoint has weights that do not belong to its model_args: {extra[:4]}")
    device = torch.device(device)
    if take and device.type == "cpu":
        model.load_state_dict({name: tensor.float() for name, tensor in weights.items()}, assign=True)
        model.make_derived()
    elif device.type != "meta":
        # as GPT.allocate does, but without to_empty(), which imports sympy to make a tensor like one on the meta device
        places = {name: torch.empty(p.shape, device=device) for name, p in model.named_parameters()}
        model.load_state_dict(places, strict=False, assign=True)
        model.make_derived()
        model.load_state_dict(weights)
    return model


def model_args_of(config: GPTConfig) -> dict:
    """model_args for a checkpoint: nanoGPT's seven keys, and of ours those that differ from their defaults, so that
    nanoGPT can read the checkpoint of any model it could have built."""
    spelled_out = {  # what None stands for
        "n_kv_head": config.n_head,
        "head_dim": config.n_embd // config.n_head,
        "mlp_hidden": replace(config, mlp_hidden=None).mlp_width,
    }
    args = {}
    for i, field in enumerate(fields(config)):
        value = getattr(config, field.name)
        is_default = value in (field.default, spelled_out.get(field.name, field.default))
        if i < 7 or (not is_default and field.name != "init"):  # init is history once there are weights
            args[field.name] = value
    return args


def shapes_only(config: GPTConfig) -> GPT:
    """A model whose parameters are on the meta device: names and shapes, no memory, no random numbers."""
    with ShapesOnly():
        return GPT(config)


class ShapesOnly(TorchFunctionMode):
    """Puts what torch.empty makes on the meta device, and initializes nothing. Within torch.device("meta"), arange
    and normal_ are Python code that imports torch._dynamo, which takes as long as torch itself."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if getattr(function, "__module__", None) == "torch.nn.init":
            return None
        if function is torch.empty:
            kwargs = {**(kwargs or {}), "device": "meta"}
        return function(*args, **(kwargs or {}))


def add_rows(state: dict, known: int, vocab_size: int) -> dict:
    """The checkpoint with a vocabulary of at least vocab_size, whose ids from `known` on are new: their rows in the
    embedding and the head are the mean of those before. Its own vocabulary may be padded: rows beyond `known` were
    never an input, and are replaced too."""
    weights, size = clean_weights(state["model"]), max(vocab_size, state["model_args"]["vocab_size"])
    tied, made = {}, dict(weights)
    for name in ("transformer.wte.weight", "lm_head.weight"):
        if name in weights:
            old = weights[name]
            if old.data_ptr() not in tied:
                mean = old[:known].float().mean(0, keepdim=True).to(old.dtype)
                tied[old.data_ptr()] = torch.cat([old[:known], mean.expand(size - known, -1)])
            made[name] = tied[old.data_ptr()]
    return {**state, "model": made, "model_args": {**state["model_args"], "vocab_size": size}}


def clean_weights(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights by the plain model's names: no wrappers, and no causal masks, which nanoGPT saves on old PyTorch."""
    cleaned = {}
    for name, tensor in weights.items():
        name = ".".join(part for part in name.split(".") if part not in WRAPPERS)
        if not (name.endswith(".attn.bias") and tensor.dim() == 4):
            cleaned[name] = tensor
    return cleaned


def fill_in(weights: dict[str, torch.Tensor], *names: str) -> None:
    """Gives names of one tied tensor the value of the other, where a file has only that."""
    found = [name for name in names if name in weights]
    if found:
        weights |= {name: weights[found[0]] for name in names if name not in weights}
