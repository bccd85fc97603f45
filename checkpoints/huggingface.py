"""Hugging Face's format: names and shapes of the weights, config.json; to ours and from ours."""

import json
from pathlib import Path

import torch

from model import GPT, GPTConfig

ARCHITECTURES = {"gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM", "qwen3": "Qwen3ForCausalLM"}
LLAMAS = ("llama", "mistral", "qwen2", "qwen3")  # model_type of what has Llama's names; qwen3 has QK-norm too
# transformers' defaults for what a config.json leaves out or sets to null
GPT2_DEFAULTS = {
    "vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12, "n_inner": 0,
    "layer_norm_epsilon": 1e-5, "activation_function": "gelu_new", "tie_word_embeddings": True,
    "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "bias": True,
}  # fmt: skip
LLAMA_DEFAULTS = {
    "vocab_size": 32000, "max_position_embeddings": 2048, "hidden_size": 4096, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 0, "head_dim": 0, "intermediate_size": 11008,
    "rms_norm_eps": 1e-6, "hidden_act": "silu", "tie_word_embeddings": False, "attention_bias": False,
    "mlp_bias": False, "rope_theta": 10000.0, "rope_type": "default", "partial_rotary_factor": 1.0,
    "use_sliding_window": False,
}  # fmt: skip
ACTIVATIONS = {  # theirs: ours
    "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu", "relu2": "relu2",
}  # fmt: skip
READABLE = {  # the values that this model can have where transformers allows others
    "activation_function": tuple(ACTIVATIONS), "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,), "hidden_act": ("silu",), "rope_type": ("default",),
    "partial_rotary_factor": (1.0,), "use_sliding_window": (False,),
}  # fmt: skip
# GPT-2's Conv1D matrices are (in, out), Linear's are (out, in)
TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
BUFFERS = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")  # saved by old versions of transformers

# our names: Llama's, whose parts lie one below the other in ours
LLAMA_OUTER = {
    "transformer.wte": ("model.embed_tokens",), "transformer.ln_f": ("model.norm",), "lm_head": ("lm_head",),
}  # fmt: skip
LLAMA_LAYER = {
    "ln_1": ("input_layernorm",), "ln_2": ("post_attention_layernorm",),
    "attn.c_attn": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "attn.c_proj": ("self_attn.o_proj",),
    "attn.q_norm": ("self_attn.q_norm",), "attn.k_norm": ("self_attn.k_norm",),
    "mlp.c_fc": ("mlp.up_proj",), "mlp.c_gate": ("mlp.gate_proj",), "mlp.c_proj": ("mlp.down_proj",),
}  # fmt: skip


def weight_names(name: str, kind: str) -> tuple[str, ...]:
    """Their names of our parameter `name`, of whose rows each has its share in this order; kind: 'gpt2', or one of
    LLAMAS."""
    if kind == "gpt2":
        return (name,)
    module, _, tensor = name.rpartition(".")
    if module in LLAMA_OUTER:
        return tuple(f"{theirs}.{tensor}" for theirs in LLAMA_OUTER[module])
    layer, _, module = module.removeprefix("transformer.h.").partition(".")
    return tuple(f"model.layers.{layer}.{theirs}.{tensor}" for theirs in LLAMA_LAYER[module])


def part_shapes(name: str, weight: torch.Tensor, config: GPTConfig, kind: str) -> list[tuple[int, ...]]:
    """The shapes that the tensors called weight_names(name) have there."""
    if is_transposed(name, kind):
        return [tuple(reversed(weight.shape))]
    if kind == "gpt2" or ".c_attn." not in name:
        return [tuple(weight.shape)]
    return [(heads * config.head_size, *weight.shape[1:]) for heads in (config.n_head, *[config.kv_heads] * 2)]


def is_transposed(name: str, kind: str) -> bool:
    return kind == "gpt2" and name.endswith(TRANSPOSED)


def read_config(path: Path) -> tuple[str, GPTConfig]:
    """config.json -> (model_type, the shape of our model)."""
    found = {key: value for key, value in read_json(path).items() if value is not None}
    kind = found.get("model_type")
    if kind not in ("gpt2", *LLAMAS):
        names = ", ".join(("gpt2", *LLAMAS))
        raise ValueError(
            f"{path}: model_type is {kind!r} ({', '.join(found.get('architectures', []))}); only {names} can be read"
        )
    rope = found.get("rope_parameters") or found.get("rope_scaling") or {}  # the newer and the older spelling
    if isinstance(rope, dict):
        found |= {key: rope[key] for key in ("rope_theta", "partial_rotary_factor") if key in rope}
        found["rope_type"] = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "mistral" and found.get("sliding_window"):
        found["use_sliding_window"] = True
    defaults = GPT2_DEFAULTS if kind == "gpt2" else LLAMA_DEFAULTS
    found = defaults | found
    for key, default in defaults.items():
        if key in READABLE and found[key] not in READABLE[key]:
            choices = " or ".join(map(repr, READABLE[key]))
            raise ValueError(f"{path}: {key} is {found[key]!r}, only {choices} can be read")
        if not isinstance(found[key], (int, float) if isinstance(default, float) else type(default)):
            raise ValueError(f"{path}: {key} is {found[key]!r}, expected a value like {default!r}")
    try:
        config = gpt2_shape(found) if kind == "gpt2" else llama_shape(found, kind)
        config.validate()
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return kind, config


def gpt2_shape(found: dict) -> GPTConfig:
    return GPTConfig(
        **{key: found[key] for key in ("vocab_size", "n_layer", "n_head", "n_embd", "bias")},
        block_size=found["n_positions"], mlp=ACTIVATIONS[found["activation_function"]],
        mlp_hidden=found["n_inner"] or None, norm_eps=found["layer_norm_epsilon"],
        tie_weights=found["tie_word_embeddings"],
    )  # fmt: skip


def llama_shape(found: dict, kind: str) -> GPTConfig:
    return GPTConfig(
        vocab_size=found["vocab_size"], n_layer=found["num_hidden_layers"], n_head=found["num_attention_heads"],
        n_embd=found["hidden_size"], block_size=found["max_position_embeddings"],
        bias=found["attention_bias"] or found["mlp_bias"] or kind == "qwen2",  # Qwen2: of queries, keys, values
        n_kv_head=found["num_key_value_heads"] or None, head_dim=found["head_dim"] or None,
        pos="rope", rope_theta=float(found["rope_theta"]), norm="rmsnorm", norm_eps=found["rms_norm_eps"],
        mlp="swiglu", mlp_hidden=found["intermediate_size"], tie_weights=found["tie_word_embeddings"],
        qk_norm=kind == "qwen3",
    )  # fmt: skip


def architecture(config: GPTConfig) -> str:
    """'gpt2', 'llama' or 'qwen3'. ValueError lists what stands in the way of each where none can be it."""
    plain = {"softcap": (0.0,), "smear": (False,)}
    allowed = {
        "gpt2": plain | {"pos": ("learned",), "norm": ("layernorm",), "mlp": tuple(ACTIVATIONS.values()),
                         "n_kv_head": (None, config.n_head), "qk_norm": (False,),
                         "head_dim": (None, config.n_embd // config.n_head)},
        "llama": plain | {"pos": ("rope",), "norm": ("rmsnorm",), "mlp": ("swiglu",), "qk_norm": (False,)},
        "qwen3": plain | {"pos": ("rope",), "norm": ("rmsnorm",), "mlp": ("swiglu",), "qk_norm": (True,),
                          "bias": (False,)},
    }  # fmt: skip
    obstacles = {
        kind: [f"{key}={getattr(config, key)!r}" for key, values in table.items() if getattr(config, key) not in values]
        for kind, table in allowed.items()
    }
    for kind, found in obstacles.items():
        if not found:
            return kind
    reasons = "; ".join(f"{kind}: {', '.join(found)}" for kind, found in obstacles.items())
    raise ValueError(f"no architecture of transformers computes what this model does; in the way of {reasons}")


def hf_config(config: GPTConfig, kind: str, eot: int | None, dtype: str) -> dict:
    """config.json."""
    common = {
        "architectures": [ARCHITECTURES[kind]], "model_type": kind, "vocab_size": config.vocab_size,
        "tie_word_embeddings": config.tie_weights, "bos_token_id": eot, "eos_token_id": eot,
        "torch_dtype": dtype, "use_cache": True,
    }  # fmt: skip
    if kind == "gpt2":
        theirs = {ours: name for name, ours in ACTIVATIONS.items() if name != "gelu_pytorch_tanh"}
        return common | {
            "n_positions": config.block_size, "n_ctx": config.block_size,  # the same twice: llama.cpp asks for n_ctx
            "n_embd": config.n_embd, "n_layer": config.n_layer, "n_head": config.n_head,
            "n_inner": config.mlp_width, "activation_function": theirs[config.mlp],
            "layer_norm_epsilon": config.norm_eps, "attn_pdrop": config.dropout, "embd_pdrop": config.dropout,
            "resid_pdrop": config.dropout, "bias": config.bias,  # ours: the biases in the file are not all zeros
        }  # fmt: skip
    return common | {
        "max_position_embeddings": config.block_size, "hidden_size": config.n_embd,
        "num_hidden_layers": config.n_layer, "num_attention_heads": config.n_head,
        "num_key_value_heads": config.kv_heads, "head_dim": config.head_size, "hidden_act": "silu",
        "intermediate_size": config.mlp_width, "rms_norm_eps": config.norm_eps, "attention_bias": config.bias,
        "attention_dropout": config.dropout, "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},  # as of transformers 5
    } | ({"mlp_bias": config.bias} if kind == "llama" else {})  # fmt: skip


def generation_config(config: GPTConfig, tokenizer) -> dict:
    """generation_config.json: where to stop, and no ids that only pad the vocabulary."""
    padding = list(range(tokenizer.vocab_size, config.vocab_size))
    ends = {"bos_token_id": tokenizer.eot, "eos_token_id": tokenizer.eot, "pad_token_id": tokenizer.eot}
    return ends | ({"suppress_tokens": padding} if padding else {})


def hf_tensors(model: GPT, kind: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Their names -> tensors. Tied weights once; zeros for the biases that GPT-2 has and ours may not have."""
    config, tensors = model.config, {}
    heads = [n * config.head_size for n in (config.n_head, config.kv_heads, config.kv_heads)]
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_weights:
            continue
        theirs, weight = weight_names(name, kind), weight.to(dtype)
        if len(theirs) > 1:
            parts = weight.split(heads)
        else:
            parts = [weight.t() if is_transposed(name, kind) else weight]
        tensors |= {t: part.contiguous() for t, part in zip(theirs, parts, strict=True)}
        if kind == "gpt2" and not config.bias and not name.endswith(("wte.weight", "wpe.weight", "lm_head.weight")):
            tensors[name.removesuffix("weight") + "bias"] = torch.zeros(weight.size(0), dtype=dtype)
    return tensors


def read_json(path: Path) -> dict:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, OSError) as error:
        raise ValueError(f"{path} is no readable JSON object: {error}") from error
