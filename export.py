"""A trained model as a Hugging Face folder, which transformers, lm-evaluation-harness and llama.cpp's converter open.

    python export.py --out_dir=out-hongloumeng-char --hf_dir=hf-hongloumeng
    python export.py --out_dir=out-tinystories --hf_dir=hf-tinystories --dtype=bfloat16

    from transformers import AutoModelForCausalLM, AutoTokenizer
    model = AutoModelForCausalLM.from_pretrained("hf-hongloumeng")

GPT-2's shape becomes GPT2LMHeadModel; RoPE with RMSNorm and SwiGLU becomes LlamaForCausalLM, or with QK-norm
Qwen3ForCausalLM. Other shapes have no counterpart there and are refused. Back again: --init_from=FOLDER.
"""

import json
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file

from checkpoints import checkpoint
from checkpoints.huggingface import ARCHITECTURES, architecture, generation_config, hf_config, hf_tensors
from configurator import configure, exit_on_error
from data.tokenizer import EOT, TRAIN_PATTERN
from data.vocabulary import to_symbols
from inference.load import find_tokenizer, open_trained
from model import GPT, GPTConfig
from system.device import pick_dtype


@dataclass
class ExportConfig:
    init_from: str = "resume"  # 'resume' = the checkpoint in out_dir, or a checkpoint, a folder, 'gpt2*'
    out_dir: str = "out"  # folder of the run
    hf_dir: str = ""  # folder to write; it must not exist, or be empty
    dtype: Literal["float32", "bfloat16", "float16", "fp32", "bf16", "fp16"] = "float32"  # of the weights in the file


def main(argv: list[str]) -> None:
    config, _ = configure(ExportConfig, argv)
    folder = Path(config.hf_dir)
    if not config.hf_dir:
        raise ValueError("hf_dir is empty: name the folder to write, --hf_dir=FOLDER")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"hf_dir={folder} exists and is not an empty folder: remove it, or name another")
    _, state = open_trained(config.init_from, config.out_dir)
    shape = GPTConfig(**state["model_args"])
    kind, tokenizer = architecture(shape), find_tokenizer(state)
    model = checkpoint.build_model(state, take=True)  # its weights are those of the mapped file
    dtype = pick_dtype(config.dtype, torch.device("cpu"))
    dtype_name = str(dtype).removeprefix("torch.")
    temporary = make_temporary(folder)
    try:
        tensors = hf_tensors(model, kind, dtype)
        save_file(tensors, temporary / "model.safetensors", metadata={"format": "pt"})
        write_json(temporary / "config.json", hf_config(shape, kind, tokenizer.eot, dtype_name))
        write_json(temporary / "generation_config.json", generation_config(shape, tokenizer))
        write_tokenizer(temporary, tokenizer, shape.block_size)
        card = model_card(folder.resolve().name, kind, state, model, tokenizer)
        (temporary / "README.md").write_text(card, encoding="utf-8", newline="\n")
        move_in(temporary, folder)
    except OSError as error:
        raise ValueError(f"cannot write hf_dir={folder}: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    n_bytes = sum(t.numel() * t.element_size() for t in tensors.values())
    print(
        f"wrote {folder}: {ARCHITECTURES[kind]}, {n_bytes / 1e6:,.1f} MB of {dtype_name} weights, "
        f"{tokenizer.kind} tokenizer with {tokenizer.vocab_size:,} ids"
    )
    warn_llama_cpp(shape, tokenizer)


# ---- tokenizer ---------------------------------------------------------------------------------------------


def write_tokenizer(folder: Path, tokenizer, block_size: int) -> None:
    """tokenizer.json, tokenizer_config.json, special_tokens_map.json."""
    (folder / "tokenizer.json").write_text(tokenizer_json(tokenizer), encoding="utf-8", newline="\n")
    end = next((token for token, id in tokenizer.special_tokens.items() if id == tokenizer.eot), None)
    special = {} if end is None else dict.fromkeys(("bos_token", "eos_token", "pad_token"), end)
    write_json(folder / "special_tokens_map.json", special)
    write_json(folder / "tokenizer_config.json", special | {
        "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": block_size,
        "clean_up_tokenization_spaces": False, "add_prefix_space": False,
    })  # fmt: skip


def tokenizer_json(tokenizer) -> str:
    """The text of a tokenizer.json that gives the ids of `tokenizer`.

    One difference is Hugging Face's habit: there a special token that is typed in a text is the special token,
    here it is text. ValueError for a trimmed tokenizer.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    if tokenizer.kind == "bpe":
        return tokenizer.to_json()["tokenizer"]
    if tokenizer.kind == "char":  # a word is a character
        vocab = {char: i for i, char in enumerate(tokenizer.chars)}
        made = Tokenizer(models.WordLevel(vocab | ({} if tokenizer.eot is None else {EOT: tokenizer.eot})))
        made.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        made.decoder = decoders.Fuse()
    elif tokenizer.kind == "byte":  # GPT-2's symbols of the bytes, without a merge; 0xFF is in no UTF-8 text
        vocab = {EOT if b == tokenizer.eot else to_symbols(bytes([b])): b for b in range(256)}
        made = Tokenizer(models.BPE(vocab, []))
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        made.decoder = decoders.ByteLevel()
    elif tokenizer.kind == "tiktoken":
        tokens = [to_symbols(tokenizer.token_bytes(i)) for i in range(tokenizer.vocab_size)]
        vocab = {token: i for i, token in enumerate(tokens) if token}
        merges = [tuple(tokens[part] for part in tokenizer.unmerge(i)) for i in vocab.values() if len(tokens[i]) > 1]
        made = Tokenizer(models.BPE(vocab | tokenizer.special_tokens, merges))
        is_gpt2 = tokenizer.name == "gpt2"  # ByteLevel's own pattern is GPT-2's: llama.cpp and others look for that
        split = [] if is_gpt2 else [pre_tokenizers.Split(Regex(tokenizer.pattern), "isolated")]
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=is_gpt2)
        made.pre_tokenizer = pre_tokenizers.Sequence([*split, byte_level]) if split else byte_level
        made.decoder = decoders.ByteLevel()
    else:
        raise ValueError(
            f"a tokenizer of kind {tokenizer.kind!r} has no counterpart in Hugging Face's format: what "
            "trimming left out is taken apart after merging, and no tokenizer.json can say that"
        )
    for token in sorted(tokenizer.special_tokens, key=tokenizer.special_tokens.get):
        made.add_special_tokens([AddedToken(token, special=True, normalized=False)])
    return made.to_str(pretty=False)


# ---- the folder --------------------------------------------------------------------------------------------


def warn_llama_cpp(config: GPTConfig, tokenizer) -> None:
    """Notes on stderr if llama.cpp will not do with the folder: its converter knows vocabularies one by one, and its
    GPT-2 has GELU."""
    if config.mlp == "relu2":
        print(
            "note: llama.cpp computes GPT-2 with GELU whatever config.json says, this model has relu2: do not "
            "convert it",
            file=sys.stderr,
        )
    if tokenizer.kind in ("char", "byte") or (tokenizer.kind == "bpe" and TRAIN_PATTERN in tokenizer_json(tokenizer)):
        print(
            f"note: llama.cpp's converter knows the tokenizers of GPT-2, Qwen2, Llama and others, not this one "
            f"({tokenizer.kind}, made here): for a GGUF, train on a dataset prepared with one of those",
            file=sys.stderr,
        )


def make_temporary(folder: Path) -> Path:
    """A folder beside `folder`, to be moved there when it is complete."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise ValueError(f"cannot write hf_dir={folder}: {error}") from error


def move_in(temporary: Path, folder: Path) -> None:
    for path in temporary.iterdir():
        with open(path, "rb+") as file:
            os.fsync(file.fileno())
        path.chmod(0o644)  # mkdtemp and safetensors make them private
    temporary.chmod(0o755)
    if folder.exists():
        folder.rmdir()  # it is empty; Windows renames onto nothing only
    os.rename(temporary, folder)


def write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")


def model_card(name: str, kind: str, state: dict, model: GPT, tokenizer) -> str:
    """README.md: what is known of the model; the licence is left for its owner to choose."""
    run, meta, config = state.get("run", {}), state.get("meta") or {}, state.get("config") or {}
    source = (meta.get("source") or {}).get("from") or config.get("dataset") or "not recorded"
    loss = state.get("best_val_loss")
    facts = {
        "architecture": ARCHITECTURES[kind],
        "parameters": f"{model.get_num_params(non_embedding=False):,}",
        "context": f"{model.config.block_size:,} tokens",
        "tokenizer": f"{tokenizer.kind}, {tokenizer.vocab_size:,} ids",
        "data": source,
        "tokens in the data": f"{meta['splits']['train']['tokens']:,}" if meta.get("splits") else "not recorded",
        "steps": f"{state['iter_num']:,}" if "iter_num" in state else "not recorded",
        "best validation loss": f"{loss:.4f} nats a token" if loss and loss < 1e9 else "not recorded",
        "training time": f"{run['seconds'] / 60:.1f} minutes" if run.get("seconds") else "not recorded",
    }
    table = "\n".join(f"| {key} | {value} |" for key, value in facts.items())
    settings = json.dumps(config, indent=1, ensure_ascii=False)
    return f"""---
library_name: transformers
pipeline_tag: text-generation
# license: choose one, and name it here
---

# {name}

| | |
| --- | --- |
{table}

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}")
model = AutoModelForCausalLM.from_pretrained("{name}")
ids = tokenizer("...", return_tensors="pt")
print(tokenizer.decode(model.generate(**ids, max_new_tokens=100, do_sample=True)[0]))
```

The settings that trained it:

```json
{settings}
```
"""


if __name__ == "__main__":
    exit_on_error(main)
