"""OpenAI's GPT-2 from the Hugging Face hub, or any GPT-2 in a Hugging Face folder, to start from.

    python sample.py --init_from=gpt2-xl --start="What is the answer?"      # or gpt2, gpt2-medium, gpt2-large
    python train.py --init_from=gpt2 --dataset=shakespeare --block_size=512 --learning_rate=3e-5
    python sample.py --init_from=path/to/folder       # with config.json and model.safetensors (or its shards)

The hub's files are downloaded once and then come from its cache. The variables of its library count:
HF_ENDPOINT (a mirror), HF_HOME (where the cache is), HF_HUB_OFFLINE=1 (the cache only), HTTPS_PROXY.
"""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

import checkpoint
from model import GPT, GPTConfig

NAMES = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")  # of openai-community on the hub
FILES = ("config.json", "model.safetensors")
DEFAULTS = {  # of transformers' GPT2Config, for what a config.json leaves out or sets to null
    "vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12, "n_inner": 0,
    "layer_norm_epsilon": 1e-5, "activation_function": "gelu_new", "tie_word_embeddings": True,
    "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "model_type": "",
}  # fmt: skip
ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu"}  # theirs: ours
READABLE = {  # the values that this model can have where GPT2Config allows others
    "model_type": ("gpt2",), "activation_function": tuple(ACTIVATIONS),
    "scale_attn_weights": (True,), "scale_attn_by_inverse_layer_idx": (False,),
}  # fmt: skip
# names are the same; so are shapes, except for these Conv1D: (in, out) there, Linear's (out, in) here
TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
BUFFERS = (".attn.bias", ".attn.masked_bias")  # causal masks that old versions of transformers saved


def load_pretrained(init_from: str, verify: bool = False) -> dict:
    """What --init_from names: a Hugging Face folder, one of NAMES, or a checkpoint or its folder.

    Returns the dict of checkpoint.load, with its `verify`; for the first two it has only "model" and "model_args".
    A folder in Hugging Face format that is called gpt2 comes before the hub's gpt2. Raises ValueError in one line
    if there is nothing of that name, or it is no GPT-2, or damaged.
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
        raise ValueError(f"cannot get {name} ({reason}): set HF_ENDPOINT to a mirror of the hub, or download "
                         f"{urls} into a folder and use --init_from=FOLDER") from error
    return Path(paths[0]).parent


def read_folder(folder: Path) -> dict:
    """A GPT-2 in Hugging Face format -> {"model", "model_args"}; every tensor's name and shape is checked."""
    config, tensors = read_config(folder / "config.json"), {}
    for name, tensor in read_tensors(folder).items():  # a model saved without its head has no "transformer."
        tensors[name if name.startswith(("transformer.", "lm_head.")) else f"transformer.{name}"] = tensor
    if config.tie_weights:
        tensors["lm_head.weight"] = tensors.get("transformer.wte.weight")
    with torch.device("meta"):  # names and shapes only
        expected = GPT(config).state_dict()
    weights = {}
    for name, ours in expected.items():
        tensor = tensors.pop(name, None)
        found = "nothing" if tensor is None else tuple(tensor.shape)
        shape = tuple(reversed(ours.shape) if name.endswith(TRANSPOSED) else ours.shape)
        if found != shape:
            raise ValueError(f"{folder}: weight {name}: found {found}, config.json asks for {shape}")
        weights[name] = tensor.t() if name.endswith(TRANSPOSED) else tensor
    extra = sorted(name for name in tensors if not name.endswith(BUFFERS))
    if extra:
        raise ValueError(f"{folder}: weights that config.json knows nothing of: {', '.join(extra[:4])}")
    return {"model": weights, "model_args": config.to_args()}


def read_config(path: Path) -> GPTConfig:
    found = DEFAULTS | {key: value for key, value in read_json(path).items() if value is not None}
    for key, values in READABLE.items():
        if found[key] not in values:
            choices = " or ".join(map(repr, values))
            raise ValueError(f"{path}: {key} is {found[key]!r}, only {choices} can be read")
    for key, default in DEFAULTS.items():
        if type(found[key]) is not type(default):
            raise ValueError(f"{path}: {key} is {found[key]!r}, expected a value like {default!r}")
    return GPTConfig(
        **{key: found[key] for key in ("vocab_size", "n_layer", "n_head", "n_embd")}, bias=True,
        block_size=found["n_positions"], mlp=ACTIVATIONS[found["activation_function"]],
        mlp_hidden=found["n_inner"] or None, norm_eps=found["layer_norm_epsilon"],
        tie_weights=found["tie_word_embeddings"],
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
            raise ValueError(f"{path} ({path.stat().st_size:,} bytes) is cut off, damaged or a Git LFS "
                             f"pointer ({error}): download it again") from error
    return tensors


def read_json(path: Path) -> dict:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, OSError) as error:
        raise ValueError(f"{path} is no readable JSON object: {error}") from error
