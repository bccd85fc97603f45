"""Weights in Hugging Face's format, to start from: OpenAI's GPT-2 from the hub, GPT-2 and Llama-family folders.

    python sample.py --init_from=gpt2-xl --start="What is the answer?"      # or gpt2, gpt2-medium, gpt2-large
    python train.py --init_from=gpt2 --dataset=shakespeare --block_size=512 --learning_rate=3e-5
    python sample.py --init_from=path/to/folder       # with config.json and model.safetensors (or its shards)

Read are GPT2LMHeadModel, and LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM as far as
they are dense, without RoPE scaling and without sliding windows. export.py writes the same tables backwards.

The hub's files are downloaded once and then come from its cache. The variables of its library count:
HF_ENDPOINT (a mirror), HF_HOME (where the cache is), HF_HUB_OFFLINE=1 (the cache only), HTTPS_PROXY.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from checkpoints import checkpoint
from data.tokenizer import EOT, BPETokenizer, ByteTokenizer, CharTokenizer
from model import GPT, GPTConfig

NAMES = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")  # of openai-community on the hub
FILES = ("config.json", "model.safetensors")
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


def load_pretrained(init_from: str, verify: bool = False) -> dict:
    """What --init_from names: a Hugging Face folder, one of NAMES, or a checkpoint or its folder.

    Returns the dict of checkpoint.load, with its `verify`; for the first two it has only "model", "model_args" and,
    where the folder has a readable tokenizer.json, "tokenizer". A folder in Hugging Face format that is called gpt2
    comes before the hub's gpt2. Raises ValueError in one line if there is nothing of that name, or it cannot be read.
    """
    path = Path(init_from)
    if (path / "config.json").is_file() and not any((path / f).exists() for f in ("ckpt.pt", "last.pt")):
        return read_folder(path)
    if init_from in NAMES:
        return read_folder(download(init_from))
    if not path.exists():
        raise ValueError(f"init_from={init_from} is no file, no folder, and none of {', '.join(NAMES)}")
    return checkpoint.load(checkpoint.find(path), verify)


def download(name: str) -> Path:
    """The folder in the hub's cache that has FILES of openai-community/name."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.utils import LocalEntryNotFoundError

    repo = f"openai-community/{name}"
    try:
        try:
            paths = [hf_hub_download(repo, file, local_files_only=True) for file in FILES]
        except LocalEntryNotFoundError:
            # one try of 10 s: hf_hub_download would repeat its own for minutes where the hub is blocked
            get_hf_file_metadata(hf_hub_url(repo, FILES[0]), timeout=10)
            paths = [hf_hub_download(repo, file) for file in FILES]
    except Exception as error:  # of the library, of requests or httpx, of the disk
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        urls = " and ".join(hf_hub_url(repo, file) for file in FILES)
        raise ValueError(
            f"cannot get {name} ({reason}): set HF_ENDPOINT to a mirror of the hub, or download "
            f"{urls} into a folder and use --init_from=FOLDER"
        ) from error
    return Path(paths[0]).parent


def read_folder(folder: Path) -> dict:
    """A GPT-2 or Llama in Hugging Face format -> {"model", "model_args", "tokenizer"?}.

    Every tensor's name and shape is checked. Biases that the file leaves out (Qwen2 has some only) are zeros.
    """
    kind, config = read_config(folder / "config.json")
    tensors, prefix = read_tensors(folder), "transformer." if kind == "gpt2" else "model."
    # a model that was saved without its head has no prefix
    tensors = {n if n.startswith((prefix, "lm_head.")) else prefix + n: t for n, t in tensors.items()}
    if any(name.endswith(".bias") and tensor.any() for name, tensor in tensors.items() if tensor.dim() == 1):
        config = replace(config, bias=True)  # export.py fills with zeros what ours does not have; here they count
    if config.tie_weights:
        tensors["lm_head.weight"] = tensors.get(weight_names("transformer.wte.weight", kind)[0])
    with torch.device("meta"):  # names and shapes only
        model = GPT(config)
    weights = {}
    for name, ours in model.state_dict().items():
        parts = []
        for theirs, shape in zip(weight_names(name, kind), part_shapes(name, ours, config, kind), strict=True):
            part = tensors.pop(theirs, None)
            if part is None and kind != "gpt2" and theirs.endswith(".bias"):
                part = torch.zeros(shape)
            found = "nothing" if part is None else tuple(part.shape)
            if found != shape:
                raise ValueError(f"{folder}: weight {theirs}: found {found}, config.json asks for {shape}")
            parts.append(part)
        weight = parts[0] if len(parts) == 1 else torch.cat(parts)
        weights[name] = weight.t() if is_transposed(name, kind) else weight
    zeros = () if config.bias else (".bias",)
    extra = sorted(name for name in tensors if not name.endswith((*BUFFERS, *zeros)))
    if extra:
        raise ValueError(f"{folder}: weights that config.json knows nothing of: {', '.join(extra[:4])}")
    state = {"model": weights, "model_args": config.to_args()}
    tokenizer = read_tokenizer(folder, config.vocab_size)
    return state | ({"tokenizer": tokenizer.to_json()} if tokenizer else {})


# ---- names and shapes: ours, theirs ------------------------------------------------------------------------


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


# ---- the files of a folder ---------------------------------------------------------------------------------


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


def read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of model.safetensors or of the shards in its index, mapped into memory rather than read."""
    files, index = [FILES[1]], folder / f"{FILES[1]}.index.json"
    if index.is_file() and not (folder / FILES[1]).exists():
        weight_map = read_json(index).get("weight_map")
        if not weight_map or not isinstance(weight_map, dict):
            raise ValueError(f"{index} has no weight_map that names the shards: download it again")
        files = sorted(set(map(str, weight_map.values())))
    tensors = {}
    for path in (folder / file for file in files):
        if not path.is_file():
            raise ValueError(f"{path} is missing: download it too (only safetensors are read)")
        try:
            with safe_open(path, framework="pt") as file:
                tensors |= {name: file.get_tensor(name) for name in file.keys()}
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"{path} ({path.stat().st_size:,} bytes) is cut off, damaged or a Git LFS "
                f"pointer ({error}): download it again"
            ) from error
    return tensors


def read_tokenizer(folder: Path, vocab_size: int):
    """The tokenizer in a folder's tokenizer.json; None, with a note on stderr, if it is none of our kinds."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    model = read_json(path).get("model", {})
    tokens = sorted(model.get("vocab", ()), key=model.get("vocab", {}).get) if model.get("type") != "Unigram" else []
    try:
        if model.get("type") == "WordLevel":  # as export.py writes characters
            return CharTokenizer("".join(t for t in tokens if t != EOT), eot=EOT in tokens)
        if model.get("type") == "BPE" and not model.get("merges") and len(tokens) == 256:
            return ByteTokenizer(eot=255 if tokens[255] == EOT else None)
        tokenizer = BPETokenizer.from_file(path)
        if tokenizer.vocab_size > vocab_size:
            raise ValueError(f"{tokenizer.vocab_size} ids, but the model has {vocab_size}")
        return tokenizer
    except ValueError as error:
        print(f"note: the weights come without a tokenizer: {error}", file=sys.stderr)
        return None


def read_json(path: Path) -> dict:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, OSError) as error:
        raise ValueError(f"{path} is no readable JSON object: {error}") from error
