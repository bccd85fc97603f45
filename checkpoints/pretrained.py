"""Weights to start from: a checkpoint, OpenAI's GPT-2 from the hub, or a folder in Hugging Face's format.

    python sample.py --init_from=gpt2-xl --start="What is the answer?"      # or gpt2, gpt2-medium, gpt2-large
    python train.py --init_from=gpt2 --dataset=shakespeare --block_size=512 --learning_rate=3e-5
    python sample.py --init_from=path/to/folder       # with config.json and model.safetensors (or its shards)

A folder may hold a GPT2LMHeadModel, or a LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM or Qwen3ForCausalLM
that is dense, with RoPE plain or scaled (linear, llama3, yarn), and no sliding windows within its context.
export.py writes such folders.

The hub's files are downloaded once into its cache. Its library reads HF_ENDPOINT (a mirror), HF_HOME (where the cache
is), HF_HUB_OFFLINE=1 (the cache only) and HTTPS_PROXY from the environment. With MODELSCOPE_ENDPOINT they come from
ModelScope, into the cache of its library: see data/download.py.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from checkpoints.build import clean_weights, model_args_of
from checkpoints.folder import find_checkpoint
from checkpoints.huggingface import our_tensors, read_config
from checkpoints.load import load_checkpoint
from checkpoints.publish import saved_checkpoints
from data.download import download_from_hub
from data.model_tokenizer import TOKENIZER_FILES, VOCABULARY_FILES, special_ids
from data.tokenizer import Tokenizer, read_model_tokenizer
from data.vocabulary import read_json

NAMES = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")  # of openai-community on the hub
FILES = ("config.json", "model.safetensors")


def load_pretrained(init_from: str, verify: bool = False) -> dict:
    """What --init_from names: a folder in Hugging Face's format, one of NAMES, or a checkpoint or its folder.

    Returns the dict of load_checkpoint; for the first two it has only "model", "model_args", "folder" (see read_rest)
    and, if the folder has a tokenizer that can be run, "tokenizer". A folder named gpt2 takes precedence over the hub's
    gpt2. Raises ValueError if there is nothing of that name, or it cannot be read.
    """
    path = Path(init_from)
    if (path / "config.json").is_file() and not saved_checkpoints(path):
        return read_folder(path)
    if init_from in NAMES:
        files = download_from_hub(f"openai-community/{init_from}", FILES, "use --init_from=FOLDER")
        return read_folder(files[0].parent)
    if not path.exists():
        raise ValueError(f"no model {init_from!r}: neither a file, nor a folder, nor one of {', '.join(NAMES)}")
    return load_checkpoint(find_checkpoint(path), verify)


def read_folder(folder: Path) -> dict:
    """A folder in Hugging Face's format -> {"model", "model_args", "folder", "tokenizer"?}, with all names and shapes
    checked."""
    kind, config = read_config(folder / "config.json")
    prefix = "transformer." if kind == "gpt2" else "model."  # missing if the model was saved without its head
    tensors = {
        name if name.startswith((prefix, "lm_head.")) else prefix + name: tensor
        for name, tensor in clean_weights(read_safetensors(folder)).items()
    }
    if any(name.endswith(".bias") and tensor.any() for name, tensor in tensors.items() if tensor.dim() == 1):
        config = replace(config, bias=True)  # not just the zeros that export.py writes for a model without biases
    try:
        state = {"model": our_tensors(tensors, config, kind), "model_args": model_args_of(config)}
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
    tokenizer = read_tokenizer(folder, config.vocab_size)
    state |= {"tokenizer": tokenizer.to_json()} if tokenizer else {}
    return state | {"folder": read_rest(folder)}


def read_rest(folder: Path) -> dict:
    """What a folder's model keeps on its way through here: {"files": its tokenizer's by name, as Latin-1 text, so that
    every byte survives, "bos_token_id": an id, a list of them or None, "eos_token_id", "pad_token_id"}."""
    files = {name: (folder / name).read_bytes().decode("latin-1") for name in find_files(folder, TOKENIZER_FILES)}
    return {"files": files, **special_ids(folder)}


def find_files(folder: Path, names: Sequence[str]) -> list[str]:
    return [name for name in names if (folder / name).is_file()]


def read_safetensors(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of model.safetensors or of the shards in its index, mapped into memory rather than read."""
    files, index = [FILES[1]], folder / f"{FILES[1]}.index.json"
    if index.is_file() and not (folder / FILES[1]).exists():
        weight_map = read_json(index).get("weight_map")
        if not weight_map or not isinstance(weight_map, dict):
            raise ValueError(f"{index} has no weight_map naming the shards: download it again")
        files = sorted(set(map(str, weight_map.values())))
    tensors = {}
    for path in (folder / file for file in files):
        if not path.is_file():
            raise ValueError(f"{path} is missing: download it too (only safetensors are supported)")
        try:
            with safe_open(path, framework="pt") as file:
                tensors |= {name: file.get_tensor(name) for name in file.keys()}
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"{path} ({path.stat().st_size:,} bytes) is truncated, damaged or a Git LFS pointer ({error}): "
                "download it again"
            ) from error
    return tensors


def read_tokenizer(folder: Path, vocab_size: int) -> Tokenizer | None:
    """The tokenizer of the folder, or None, with a note on stderr if there are files of one that cannot be run."""
    if not find_files(folder, VOCABULARY_FILES):
        return None
    try:
        tokenizer = read_model_tokenizer(folder)
        if tokenizer.vocab_size > vocab_size:
            raise ValueError(f"{folder}: the tokenizer has {tokenizer.vocab_size} ids, but the model has {vocab_size}")
        return tokenizer
    except ValueError as error:
        print(f"note: the weights come without a tokenizer: {error}", file=sys.stderr)
        return None
