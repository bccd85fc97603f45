"""A trained model for other programs: a Hugging Face folder, or one GGUF file for llama.cpp and Ollama.

    python export.py --out_dir=out-hongloumeng-char --hf_dir=hf-hongloumeng
    python export.py --out_dir=out-tinystories --hf_dir=hf-tinystories --dtype=bfloat16
    python export.py --out_dir=out-hongloumeng-char --gguf=hongloumeng.gguf --gguf_type=q8_0

    from transformers import AutoModelForCausalLM, AutoTokenizer
    model = AutoModelForCausalLM.from_pretrained("hf-hongloumeng")

GPT-2's shape becomes GPT2LMHeadModel; RoPE with RMSNorm and SwiGLU becomes LlamaForCausalLM, or with QK-norm
Qwen3ForCausalLM. Other shapes have no counterpart and are refused. To read a folder back: --init_from=FOLDER.
A GGUF needs the package gguf; its token ids are the same, or the tokenizer is refused (checkpoints/gguf_tokenizer.py).
"""

import json
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from configurator import configure, exit_on_error, read_early


@dataclass
class ExportConfig:
    init_from: str = "resume"  # 'resume' = the checkpoint in out_dir, or a checkpoint, a folder, 'gpt2*'
    out_dir: str = "out"  # folder of the run
    hf_dir: str = ""  # folder to write; it must not exist, or be empty
    dtype: Literal["float32", "bfloat16", "float16", "fp32", "bf16", "fp16"] = "float32"  # of the folder's weights
    gguf: str = ""  # or the file to write for llama.cpp; an old one is replaced
    gguf_type: Literal["f16", "q8_0", "q4_0", "bf16", "f32"] = "f16"  # of its weights: 16, 8, 4, 16 or 32 bits each


if __name__ == "__main__":
    read_early(ExportConfig, sys.argv[1:])  # --help and mistakes are answered before the slow imports

import torch
from safetensors.torch import save_file

from checkpoints.build import build_model, config_of
from checkpoints.gguf import gguf_architecture, import_gguf, write_gguf
from checkpoints.huggingface import ARCHITECTURES, architecture, generation_config, hf_config, hf_tensors
from data.bpe import CODE_PATTERN, TRAIN_PATTERN
from data.model_tokenizer import SPECIAL_IDS, VOCABULARY_FILES
from data.tokenizer import EOT
from data.vocabulary import to_symbols
from inference.load import find_tokenizer, open_trained
from model import GPT
from system.device import pick_dtype
from system.files import sync_file


def main(argv: list[str]) -> None:
    config, _ = configure(ExportConfig, argv)
    if bool(config.hf_dir) == bool(config.gguf):
        found = "both are given" if config.gguf else "neither is given"
        raise ValueError(f"name the folder to write, --hf_dir=FOLDER, or the file, --gguf=FILE: {found}")
    (export_gguf if config.gguf else export_folder)(config)


def export_gguf(config: ExportConfig) -> None:
    path = Path(config.gguf)
    if path.is_dir():
        raise ValueError(f"gguf={path} is a folder: name a file in it, --gguf={path / 'model.gguf'}")
    import_gguf()  # or its message, before the weights are read
    _, state = open_trained(config.init_from, config.out_dir)
    gguf_architecture(config_of(state))
    tokenizer, template = find_tokenizer(state), chat_template_of(state)
    model = build_model(state, take=True)
    try:
        kind, n_bytes = write_gguf(path, model, tokenizer, config.gguf_type, path.stem, template)
    except OSError as error:
        raise ValueError(f"cannot write gguf={path}: {error}") from error
    print(f"wrote {path}: {kind}, {n_bytes / 1e6:,.1f} MB with {config.gguf_type} weights, {named(tokenizer)}")
    if model.config.mlp == "gelu":
        note = "llama.cpp computes GELU by its tanh formula: where measured, the loss changed by 0.000005 nats a token"
        print(f"note: {note}", file=sys.stderr)


def chat_template_of(state: dict) -> str | None:
    """Of a model trained on conversations here, or of the folder that it comes from."""
    if template := ((state.get("meta") or {}).get("chat") or {}).get("template"):
        return template
    files = state.get("folder", {}).get("files", {})
    if template := files.get("chat_template.jinja"):
        return template.encode("latin-1").decode()
    settings = files.get("tokenizer_config.json")
    template = json.loads(settings.encode("latin-1")).get("chat_template") if settings else None
    return template if isinstance(template, str) else None


def export_folder(config: ExportConfig) -> None:
    folder = Path(config.hf_dir)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"hf_dir={folder} exists and is not an empty folder: remove it, or name another")
    _, state = open_trained(config.init_from, config.out_dir)
    files = state.get("folder", {}).get("files", {})
    kind = architecture(config_of(state))
    has_added = (state.get("tokenizer") or {}).get("kind") == "extended"
    files = {} if has_added else files  # they lack the tokens added here
    has_own = not files.keys().isdisjoint(VOCABULARY_FILES)
    # the files of a tokenizer that cannot be run here are passed on all the same
    tokenizer = None if has_own and not state.get("tokenizer") else find_tokenizer(state)
    ids = special_ids_of(state, tokenizer)
    model = build_model(state, take=True)
    dtype = pick_dtype(config.dtype, torch.device("cpu"))
    dtype_name = str(dtype).removeprefix("torch.")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as parent:
            temporary = Path(parent, folder.name)
            temporary.mkdir()
            tensors = hf_tensors(model, kind, dtype)
            save_file(tensors, temporary / "model.safetensors", metadata={"format": "pt"})
            write_json(temporary / "config.json", hf_config(model.config, kind, ids, dtype_name))
            write_json(temporary / "generation_config.json", generation_config(model.config, tokenizer, ids))
            if not has_own:
                write_tokenizer(temporary, tokenizer, model.config.block_size, chat_template_of(state))
            for name, content in files.items():
                (temporary / name).write_bytes(content.encode("latin-1"))
            card = model_card(folder.resolve().name, kind, state, model, tokenizer)
            (temporary / "README.md").write_text(card, encoding="utf-8", newline="\n")
            move_folder(temporary, folder)
    except OSError as error:
        raise ValueError(f"cannot write hf_dir={folder}: {error}") from error
    n_bytes = sum(t.numel() * t.element_size() for t in tensors.values())
    print(
        f"wrote {folder}: {ARCHITECTURES[kind]}, {n_bytes / 1e6:,.1f} MB of {dtype_name} weights, "
        f"{named(tokenizer)}{' in the files that came with it' if has_own else ''}"
    )
    warn_llama_cpp(model, None if has_own else tokenizer)


def named(tokenizer) -> str:
    return f"{tokenizer.kind} tokenizer with {tokenizer.vocab_size:,} ids" if tokenizer else "a tokenizer"


def special_ids_of(state: dict, tokenizer) -> dict:
    """SPECIAL_IDS as they came with a folder; else the tokenizer's, whose end of text also begins a text."""
    came = {key: state.get("folder", {}).get(key) for key in SPECIAL_IDS}
    has_added = tokenizer is not None and tokenizer.kind == "extended"
    if tokenizer is None or any(value is not None for value in came.values()):
        ids = {key: value for key, value in came.items() if value is not None or key != "pad_token_id"}
        return ids | ({"eos_token_id": list(tokenizer.ends)} if has_added else {})
    ids, base = dict.fromkeys(SPECIAL_IDS, tokenizer.eot), tokenizer.base if has_added else tokenizer
    if base.kind == "json":
        ids |= {"bos_token_id": base.bos}
    if tokenizer.ends and list(tokenizer.ends) != [tokenizer.eot]:
        ids |= {"eos_token_id": list(tokenizer.ends)}
    return ids


def move_folder(temporary: Path, folder: Path) -> None:
    """Moves a finished folder to its place, which is empty or does not exist."""
    for path in temporary.iterdir():
        sync_file(path)
        path.chmod(0o644)  # safetensors makes its file private
    if folder.exists():
        folder.rmdir()  # Windows cannot replace a folder
    os.rename(temporary, folder)


def write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")


def write_tokenizer(folder: Path, tokenizer, block_size: int, template: str | None) -> None:
    """tokenizer.json, tokenizer_config.json, special_tokens_map.json. template: of a chat."""
    (folder / "tokenizer.json").write_text(tokenizer_json(tokenizer), encoding="utf-8", newline="\n")
    end = next((token for token, id in tokenizer.special_tokens.items() if id == tokenizer.eot), None)
    special = {} if end is None else dict.fromkeys(("bos_token", "eos_token", "pad_token"), end)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": block_size}
    settings |= {"clean_up_tokenization_spaces": False, "add_prefix_space": False}
    base = tokenizer.base if tokenizer.kind == "extended" else tokenizer
    if base.kind == "json":
        ids = {"bos_token": base.bos, "eos_token": base.eot, "pad_token": base.eot}
        special = {name: base.tokens[id] for name, id in ids.items() if id is not None}
        del settings["add_prefix_space"]  # tokenizer.json says it
    if template:
        settings["chat_template"] = template
    write_json(folder / "special_tokens_map.json", special)
    write_json(folder / "tokenizer_config.json", special | settings)


def tokenizer_json(tokenizer) -> str:
    """The text of a tokenizer.json that gives the ids of `tokenizer`.

    One difference: Hugging Face's library takes a special token's spelling in a text for that token, here it is plain
    text. Raises ValueError for a trimmed tokenizer.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    if tokenizer.kind in ("bpe", "json"):
        return tokenizer.to_json()["tokenizer"]
    if tokenizer.kind == "extended":
        return with_added(tokenizer_json(tokenizer.base), tokenizer)
    if tokenizer.kind == "char":  # a word is a character
        vocab = {char: i for i, char in enumerate(tokenizer.chars)}
        made = Tokenizer(models.WordLevel(vocab | ({} if tokenizer.eot is None else {EOT: tokenizer.eot})))
        made.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        made.decoder = decoders.Fuse()
    elif tokenizer.kind == "byte":  # GPT-2's symbols for bytes, without merges; 0xFF is in no UTF-8 text
        vocab = {EOT if b == tokenizer.eot else to_symbols(bytes([b])): b for b in range(256)}
        made = Tokenizer(models.BPE(vocab, []))
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        made.decoder = decoders.ByteLevel()
    elif tokenizer.kind == "tiktoken":
        tokens = [to_symbols(tokenizer.token_bytes(i)) for i in range(tokenizer.vocab_size)]
        vocab = {token: i for i, token in enumerate(tokens) if token}
        merges = [tuple(tokens[part] for part in tokenizer.unmerge(i)) for i in vocab.values() if len(tokens[i]) > 1]
        made = Tokenizer(models.BPE(vocab | tokenizer.special_tokens, merges))
        is_gpt2 = tokenizer.name == "gpt2"  # ByteLevel's own pattern, by which llama.cpp and others recognize GPT-2
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=is_gpt2)
        if not is_gpt2:
            split = pre_tokenizers.Split(Regex(tokenizer.pattern), "isolated")
            made.pre_tokenizer = pre_tokenizers.Sequence([split, made.pre_tokenizer])
        made.decoder = decoders.ByteLevel()
    else:
        raise ValueError(
            f"a tokenizer of kind {tokenizer.kind!r} cannot be exported: it splits removed tokens after merging, "
            "which no tokenizer.json can express"
        )
    for token in sorted(tokenizer.special_tokens, key=tokenizer.special_tokens.get):
        made.add_special_tokens([AddedToken(token, special=True, normalized=False)])
    return made.to_str(pretty=False)


def with_added(text: str, tokenizer) -> str:
    """The text of a tokenizer.json with the special tokens that an ExtendedTokenizer adds. ValueError if Hugging Face's
    library numbers them otherwise."""
    from tokenizers import AddedToken, Tokenizer

    made = Tokenizer.from_str(text)
    made.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in tokenizer.added])
    for name in tokenizer.added:
        if made.token_to_id(name) != tokenizer.special_tokens[name]:
            found = f"{made.token_to_id(name)}, but is {tokenizer.special_tokens[name]} here"
            raise ValueError(f"the tokenizer cannot be exported: {name} would get the id {found}")
    return made.to_str(pretty=False)


def warn_llama_cpp(model: GPT, tokenizer) -> None:
    """Notes on stderr what llama.cpp cannot do with the folder: it knows tokenizers one by one, and GPT-2 with GELU."""
    notes = []
    if model.config.mlp == "relu2":
        notes.append("llama.cpp computes GPT-2 with GELU, but this model has relu2: do not convert it")
    if tokenizer and tokenizer.kind == "extended":
        tokenizer = tokenizer.base
    kind = tokenizer.kind if tokenizer else None
    words = tokenizer_json(tokenizer) if kind == "bpe" else ""
    if kind in ("byte", "char") or json.dumps(TRAIN_PATTERN)[1:-1] in words:
        notes.append("llama.cpp's converter knows published tokenizers only: write a GGUF with --gguf=FILE instead")
    if json.dumps(CODE_PATTERN)[1:-1] in words:
        notes.append("llama.cpp lacks this tokenizer's words: for a GGUF, train on data prepared with --tokenizer=bpe")
    for note in notes:
        print(f"note: {note}", file=sys.stderr)


def model_card(name: str, kind: str, state: dict, model: GPT, tokenizer) -> str:
    """README.md: what is known about the model. The licence is left for its owner to choose."""
    run, meta, config = state.get("run", {}), state.get("meta") or {}, state.get("config") or {}
    loss = state.get("best_val_loss")
    facts = {
        "architecture": ARCHITECTURES[kind],
        "parameters": f"{model.get_num_params(non_embedding=False):,}",
        "context": f"{model.config.block_size:,} tokens",
        "tokenizer": f"{tokenizer.kind}, {tokenizer.vocab_size:,} ids" if tokenizer else None,
        "data": (meta.get("source") or {}).get("from") or config.get("dataset"),
        "tokens in the data": f"{meta['splits']['train']['tokens']:,}" if meta.get("splits") else None,
        "steps": f"{state['iter_num']:,}" if "iter_num" in state else None,
        "best validation loss": f"{loss:.4f} nats a token" if loss and loss < 1e9 else None,
        "training time": f"{run['seconds'] / 60:.1f} minutes" if run.get("seconds") else None,
    }
    table = "\n".join(f"| {key} | {value or 'not recorded'} |" for key, value in facts.items())
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
{json.dumps(config, indent=1, ensure_ascii=False)}
```
"""


if __name__ == "__main__":
    exit_on_error(main)
