"""Hugging Face's format for GPT-2 and for Llama, Mistral, Qwen2 and Qwen3: config.json and the weights, both ways.

`kind` is config.json's model_type. Mistral and Qwen2 are only read; as our models they are written as a Llama.
"""

import math
from pathlib import Path

import torch

from checkpoints.build import fill_in, shapes_only
from data.vocabulary import read_json
from model import GPT, ROPE_SCALING, GPTConfig

ARCHITECTURES = {"gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM", "qwen3": "Qwen3ForCausalLM"}
KINDS = ("gpt2", "llama", "mistral", "qwen2", "qwen3")
# config.json's key: (ours, GPT2Config's or LlamaConfig's default if it is missing or null)
GPT2_FIELDS = {
    "vocab_size": ("vocab_size", 50257), "n_positions": ("block_size", 1024), "n_embd": ("n_embd", 768),
    "n_layer": ("n_layer", 12), "n_head": ("n_head", 12), "n_inner": ("mlp_hidden", 0),
    "layer_norm_epsilon": ("norm_eps", 1e-5), "tie_word_embeddings": ("tie_weights", True),
    "bias": ("bias", True),  # only in our files: whether any bias there is not zero
}  # fmt: skip
LLAMA_FIELDS = {
    "vocab_size": ("vocab_size", 32000), "max_position_embeddings": ("block_size", 2048),
    "hidden_size": ("n_embd", 4096), "num_hidden_layers": ("n_layer", 32), "num_attention_heads": ("n_head", 32),
    "num_key_value_heads": ("n_kv_head", 0), "head_dim": ("head_dim", 0), "intermediate_size": ("mlp_hidden", 11008),
    "rms_norm_eps": ("norm_eps", 1e-6), "rope_theta": ("rope_theta", 10000.0),
    "tie_word_embeddings": ("tie_weights", False),
}  # fmt: skip
RESOLVED = {"n_kv_head": "kv_heads", "head_dim": "head_size", "mlp_hidden": "mlp_width"}  # ours may be None
ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu", "relu2": "relu2"}
# the values that can be read, transformers' default first
GPT2_CHOICES = {
    "activation_function": tuple(ACTIVATIONS), "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
}  # fmt: skip
LLAMA_CHOICES = {
    "hidden_act": ("silu",), "partial_rotary_factor": (1.0,), "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,), "attention_bias": (False, True), "mlp_bias": (False, True),
}  # fmt: skip
UNSUPPORTED_ROPE = {
    "dynamic": ", whose angles change with the length of the text, also those of keys in a cache",
    "longrope": ", which has other angles for short texts than for long ones",
}
UNSUPPORTED = {
    "gemma": ": its norms and embeddings are scaled in a way of their own",
    "gemma2": ": it caps attention scores (attn_logit_softcapping) and has sliding windows",
    "gemma3_text": ": it has sliding windows, with an RoPE of their own",
}

# GPT-2's Conv1D matrices are (in, out), Linear's are (out, in)
TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
BUFFERS = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")  # saved by old versions of transformers
# our module: Llama's, whose weights are stacked in ours
LLAMA_MODULES = {
    "transformer.wte": "model.embed_tokens", "transformer.ln_f": "model.norm", "lm_head": "lm_head",
    "ln_1": "input_layernorm", "ln_2": "post_attention_layernorm",
    "attn.c_attn": "self_attn.q_proj self_attn.k_proj self_attn.v_proj", "attn.c_proj": "self_attn.o_proj",
    "attn.q_norm": "self_attn.q_norm", "attn.k_norm": "self_attn.k_norm",
    "mlp.c_fc": "mlp.up_proj", "mlp.c_gate": "mlp.gate_proj", "mlp.c_proj": "mlp.down_proj",
}  # fmt: skip


def read_config(path: Path) -> tuple[str, GPTConfig]:
    """config.json -> (kind, the shape of our model). Raises ValueError for a model that ours cannot compute."""
    whole = read_json(path)
    found = {key: value for key, value in whole.items() if value is not None}
    kind = found.get("model_type")
    if kind not in KINDS:
        architectures = ", ".join(found.get("architectures", []))
        reason = UNSUPPORTED.get(kind, "")
        raise ValueError(f"{path}: model_type is {kind!r} ({architectures}){reason}; supported are {', '.join(KINDS)}")
    rope = found.get("rope_parameters") or found.get("rope_scaling") or {}  # the newer and the older spelling
    found |= {key: rope[key] for key in ("rope_theta", "partial_rotary_factor") if key in rope}
    fields, choices = (GPT2_FIELDS, GPT2_CHOICES) if kind == "gpt2" else (LLAMA_FIELDS, LLAMA_CHOICES)
    for key, values in choices.items():
        if found.setdefault(key, values[0]) not in values:
            raise ValueError(f"{path}: {key} is {found[key]!r}, supported is {' or '.join(map(repr, values))}")
    shape = {}
    for key, (ours, default) in fields.items():
        value = found.get(key, default)
        if not isinstance(value, (int, float) if isinstance(default, float) else type(default)):
            raise ValueError(f"{path}: {key} is {value!r}, expected a value like {default!r}")
        shape[ours] = None if ours in RESOLVED and value == default == 0 else type(default)(value)
    if kind == "gpt2":
        shape["mlp"] = ACTIVATIONS[found["activation_function"]]
    else:
        shape |= {"pos": "rope", "norm": "rmsnorm", "mlp": "swiglu", "qk_norm": kind == "qwen3"}
        shape["rope_scaling"] = read_scaling(rope, found | {"max_position_embeddings": shape["block_size"]}, path)
        check_windows(whole, kind, shape, path)
        # Qwen2 has biases in queries, keys and values
        shape["bias"] = bool(found["attention_bias"] or found["mlp_bias"] or kind == "qwen2")
    try:
        config = GPTConfig(**shape)
        config.validate()
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return kind, config


def read_scaling(rope: dict, config: dict, path: Path) -> dict | None:
    """GPTConfig.rope_scaling, with transformers' defaults for what is left out. Raises ValueError for a kind that the
    model cannot compute."""
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return None
    if kind not in ROPE_SCALING:
        reason = UNSUPPORTED_ROPE.get(kind, "")
        raise ValueError(f"{path}: rope_type is {kind!r}{reason}; supported are default, {', '.join(ROPE_SCALING)}")
    original = config.get("original_max_position_embeddings") or rope.get("original_max_position_embeddings")
    filled = {key: value for key, value in rope.items() if value is not None} | {
        "rope_type": kind, "original_max_position_embeddings": original or config["max_position_embeddings"],
    }  # fmt: skip
    if kind == "yarn":
        filled.setdefault("factor", config["max_position_embeddings"] / filled["original_max_position_embeddings"])
        filled = {"beta_fast": 32, "beta_slow": 1, **filled}
        if not filled.get("truncate", True):
            raise ValueError(f"{path}: YaRN with truncate=false, supported is true")
        filled.setdefault("attention_factor", yarn_attention_factor(filled))
    return {key: filled[key] for key in ("rope_type", *ROPE_SCALING[kind].split()) if key in filled}


def yarn_attention_factor(rope: dict) -> float:
    """By which YaRN lengthens queries and keys: that of its paper, or as DeepSeek's models say."""
    scale = 0.1 * math.log(max(rope["factor"], 1))
    mscale, all_dim = rope.get("mscale"), rope.get("mscale_all_dim")
    return (mscale * scale + 1) / (all_dim * scale + 1) if mscale and all_dim else scale + 1


def check_windows(config: dict, kind: str, shape: dict, path: Path) -> None:
    """Raises ValueError for a model with sliding windows, if they are shorter than its context."""
    window = config.get("sliding_window", 4096)  # transformers' default for a missing one; null is none
    if kind == "mistral":
        is_active = True
    else:
        kinds, first = config.get("layer_types"), config.get("max_window_layers", 28)
        is_active = "sliding_attention" in kinds if kinds else shape["n_layer"] > first
        is_active = is_active and kind in ("qwen2", "qwen3") and bool(config.get("use_sliding_window"))
    if is_active and window and window < shape["block_size"]:
        raise ValueError(
            f"{path}: sliding_window={window} is less than max_position_embeddings={shape['block_size']}, but here "
            f"every token attends to all before it; for texts of up to {window} tokens, set the latter to {window} too"
        )


def architecture(config: GPTConfig) -> str:
    """The kind that computes what our model does. Raises ValueError listing the obstacles, if there is none."""
    ours_only = {"softcap": (0.0,), "smear": (False,)}
    rope = ours_only | {"pos": ("rope",), "norm": ("rmsnorm",), "mlp": ("swiglu",)}
    head_dim = config.n_embd // config.n_head
    allowed = {
        "gpt2": ours_only | {
            "pos": ("learned",), "norm": ("layernorm",), "mlp": tuple(ACTIVATIONS.values()),
            "n_kv_head": (None, config.n_head), "qk_norm": (False,), "head_dim": (None, head_dim),
        },
        "llama": rope | {"qk_norm": (False,)},
        "qwen3": rope | {"qk_norm": (True,), "bias": (False,)},
    }  # fmt: skip
    obstacles = {
        kind: [f"{key}={getattr(config, key)!r}" for key, values in table.items() if getattr(config, key) not in values]
        for kind, table in allowed.items()
    }
    for kind, found in obstacles.items():
        if not found:
            return kind
    reasons = "; ".join(f"{kind}: {', '.join(found)}" for kind, found in obstacles.items())
    raise ValueError(f"no architecture of transformers can represent this model; obstacles are {reasons}")


def hf_config(config: GPTConfig, kind: str, ids: dict, dtype: str) -> dict:
    """The content of config.json. ids: bos_token_id and the like; dtype: of the weights in the file."""
    fields = GPT2_FIELDS if kind == "gpt2" else LLAMA_FIELDS
    content = {"architectures": [ARCHITECTURES[kind]], "model_type": kind}
    content |= {key: getattr(config, RESOLVED.get(ours, ours)) for key, (ours, _) in fields.items()}
    content |= ids | {"torch_dtype": dtype, "use_cache": True}
    if kind == "gpt2":
        activation = next(theirs for theirs, ours in ACTIVATIONS.items() if ours == config.mlp)
        dropout = dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), config.dropout)
        return content | {"activation_function": activation, "n_ctx": config.block_size} | dropout  # n_ctx: llama.cpp
    content |= {"hidden_act": "silu", "attention_bias": config.bias, "attention_dropout": config.dropout}
    scaling = config.rope_scaling or {"rope_type": "default"}
    content["rope_parameters"] = scaling | {"rope_theta": config.rope_theta}  # as of transformers 5
    if config.rope_scaling:
        content["rope_scaling"] = config.rope_scaling  # before it
    return content | ({"mlp_bias": config.bias} if kind == "llama" else {})


def generation_config(config: GPTConfig, tokenizer, ids: dict) -> dict:
    """The content of generation_config.json: where to stop, and not to write ids that only pad the vocabulary."""
    padding = list(range(tokenizer.vocab_size, config.vocab_size)) if tokenizer else []
    return ids | ({"suppress_tokens": padding} if padding else {})


def weight_names(name: str, kind: str) -> tuple[str, ...]:
    """Their names for our parameter `name`, in the order in which its rows hold them."""
    if kind == "gpt2":
        return (name,)
    module, _, tensor = name.rpartition(".")
    prefix = ""
    if module.startswith("transformer.h."):
        layer, _, module = module.removeprefix("transformer.h.").partition(".")
        prefix = f"model.layers.{layer}."
    return tuple(f"{prefix}{theirs}.{tensor}" for theirs in LLAMA_MODULES[module].split())


def part_shapes(name: str, weight: torch.Tensor, config: GPTConfig, kind: str) -> list[tuple[int, ...]]:
    """The shapes of the tensors called weight_names(name)."""
    if is_transposed(name, kind):
        return [tuple(reversed(weight.shape))]
    if kind == "gpt2" or ".c_attn." not in name:
        return [tuple(weight.shape)]
    return [(heads * config.head_size, *weight.shape[1:]) for heads in (config.n_head, *[config.kv_heads] * 2)]


def is_transposed(name: str, kind: str) -> bool:
    return kind == "gpt2" and name.endswith(TRANSPOSED)


def hf_tensors(model: GPT, kind: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Our weights by their names. Tied ones appear once; biases that GPT-2 has and ours may lack are zeros."""
    config, tensors = model.config, {}
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_weights:
            continue
        weight, shapes = weight.to(dtype), part_shapes(name, weight, config, kind)
        parts = [weight.t()] if is_transposed(name, kind) else weight.split([shape[0] for shape in shapes])
        names = weight_names(name, kind)
        tensors |= {theirs: part.contiguous() for theirs, part in zip(names, parts, strict=True)}
        if kind == "gpt2" and not config.bias and not name.endswith(("wte.weight", "wpe.weight", "lm_head.weight")):
            tensors[name.removesuffix("weight") + "bias"] = torch.zeros(weight.size(0), dtype=dtype)
    return tensors


def our_tensors(tensors: dict[str, torch.Tensor], config: GPTConfig, kind: str) -> dict[str, torch.Tensor]:
    """The inverse of hf_tensors. Biases that a Llama leaves out (Qwen2 has only some) are zeros.

    Raises ValueError for a missing or unknown name or a wrong shape.
    """
    tensors = dict(tensors)
    if config.tie_weights:
        (wte,) = weight_names("transformer.wte.weight", kind)
        fill_in(tensors, wte, "lm_head.weight")
        tensors["lm_head.weight"] = tensors.get(wte)
    weights = {}
    for name, ours in shapes_only(config).state_dict().items():
        parts = []
        for theirs, shape in zip(weight_names(name, kind), part_shapes(name, ours, config, kind), strict=True):
            part = tensors.pop(theirs, None)
            if part is None and kind != "gpt2" and theirs.endswith(".bias"):
                part = torch.zeros(shape)
            found = "nothing" if part is None else tuple(part.shape)
            if found != shape:
                raise ValueError(f"weight {theirs}: found {found}, config.json requires {shape}")
            parts.append(part)
        weight = parts[0] if len(parts) == 1 else torch.cat(parts)
        weights[name] = weight.t() if is_transposed(name, kind) else weight
    known = BUFFERS if config.bias else (*BUFFERS, ".bias")
    unknown = sorted(name for name in tensors if not name.endswith(known))
    if unknown:
        raise ValueError(f"weights that do not belong to the model in config.json: {', '.join(unknown[:4])}")
    return weights
