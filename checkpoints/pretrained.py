"""Weights in Hugging Face's format, to start from: OpenAI's GPT-2 from the hub, GPT-2 and Llama-family folders.

    python sample.py --init_from=gpt2-xl --start="What is the answer?"      # or gpt2, gpt2-medium, gpt2-large
    python train.py --init_from=gpt2 --dataset=shakespeare --block_size=512 --learning_rate=3e-5
    python sample.py --init_from=path/to/folder       # with config.json and model.safetensors (or its shards)

Read are GPT2LMHeadModel, and LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM as far as
they are dense, without RoPE scaling and without sliding windows. export.py writes the same tables backwards.

The hub's files are downloaded once and then come from its cache. The variables of its library count:
HF_ENDPOINT (a mirror), HF_HOME (where the cache is), HF_HUB_OFFLINE=1 (the cache only), HTTPS_PROXY.
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from checkpoints import checkpoint
from checkpoints.huggingface import BUFFERS, is_transposed, part_shapes, read_config, read_json, weight_names
from data.tokenizer import EOT, BPETokenizer, ByteTokenizer, CharTokenizer
from model import GPT

NAMES = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")  # of openai-community on the hub
FILES = ("config.json", "model.safetensors")


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


# ---- the files of a folder ---------------------------------------------------------------------------------


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
