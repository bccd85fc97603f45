"""A trained model ready for use: what --init_from and --out_dir name, its tokenizer, its weights in a fast format.

    source, state = open_trained(init_from="resume", out_dir="out")
    tokenizer = find_tokenizer(state)
    model = make_ready(build_model(state, dropout=0.0), device, dtype="auto", quantize="int8")

sample.py, eval.py, complete.py, serve.py and export.py start here.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from checkpoints.folder import find_checkpoint
from checkpoints.load import load_checkpoint
from checkpoints.pretrained import load_pretrained
from data.dataset import find_folder, open_dataset
from data.matching import has_ids_of, has_size_of_gpt2, same_ids
from data.model_tokenizer import VOCABULARY_FILES
from data.tokenizer import TiktokenTokenizer, tokenizer_from_json
from inference.bind import bind
from inference.ngram import NGram
from inference.pack import pack
from inference.quantize import quantize as round_weights
from model import GPT
from system.device import pick_dtype


def open_trained(init_from: str, out_dir: str) -> tuple[str | Path, dict]:
    """(source, checkpoint): the one in out_dir for 'resume', else a checkpoint, a folder or a name, as in
    load_pretrained. Raises ValueError if there is none."""
    if init_from == "resume":
        source = find_checkpoint(out_dir)
        return source, load_checkpoint(source)
    return init_from, load_pretrained(init_from)


def open_models(init_from: str, out_dir: str) -> tuple[list[str | Path], list[dict]]:
    """What open_trained gives for each of the names, separated by commas, in init_from or, if that is 'resume', in
    out_dir. Raises ValueError if the ids of one stand for other text than those of the first."""
    given = out_dir if init_from == "resume" else init_from
    names = [given] if Path(given).exists() else given.split(",")
    if "" in names:
        raise ValueError(f"{given!r} names nothing before or after a comma: expected names such as out-1,out-2")
    opened = [open_trained(*(("resume", name) if init_from == "resume" else (name, out_dir))) for name in names]
    sources, states = [source for source, _ in opened], [state for _, state in opened]
    if len(states) > 1:
        check_same_ids(states, names)
    return sources, states


def check_same_ids(states: Sequence[dict], names: Sequence[str]) -> None:
    """ValueError unless all checkpoints have the first one's ids."""
    first, size = find_tokenizer(states[0]), states[0]["model_args"]["vocab_size"]
    for state, name in zip(states[1:], names[1:], strict=True):
        found = state["model_args"]["vocab_size"]
        if found != size or not same_ids(find_tokenizer(state), first):
            problem = f"has {found} ids, {names[0]} {size}" if found != size else f"has other ids than {names[0]}"
            raise ValueError(f"{name} {problem}: models that work together need one tokenizer and one vocab_size")


def find_tokenizer(state: dict):
    """The checkpoint's own tokenizer; for nanoGPT's checkpoints, and folders without any, GPT-2's or that of the
    dataset's meta.pkl. Raises ValueError if there is none."""
    if state.get("tokenizer"):
        return tokenizer_from_json(state["tokenizer"])
    name, vocab_size = state.get("config", {}).get("dataset"), state["model_args"]["vocab_size"]
    if not set(VOCABULARY_FILES).isdisjoint(state.get("folder", {}).get("files", ())):
        raise ValueError("the folder's tokenizer cannot be run (see the note above), and no other has its ids")
    if has_size_of_gpt2(vocab_size):
        return TiktokenTokenizer("gpt2")
    tokenizer = open_dataset(name, vocab_size).tokenizer if name else None
    if tokenizer is None or tokenizer.vocab_size > vocab_size:
        raise ValueError(f"the checkpoint has no tokenizer, and dataset {name!r} has none for its {vocab_size} ids")
    return tokenizer


def before_added(state: dict) -> dict:
    """The checkpoint with its tokenizer as it was before special tokens were added, behind all other ids."""
    saved = state.get("tokenizer") or {}
    return {**state, "tokenizer": saved["base"]} if saved.get("kind") == "extended" else state


def open_matching_dataset(name: str | None, state: dict, instead: str = "--dataset or --input"):
    """The dataset, by default the one the model was trained on. Raises ValueError if its ids stand for other text than
    the checkpoint's; instead: what its message tells to use."""
    name = name or state.get("config", {}).get("dataset")
    if name is None:
        raise ValueError(f"the checkpoint does not name its dataset: use {instead}")
    size, folder = state["model_args"]["vocab_size"], find_folder(name)
    knows_size = (folder / "meta.json").exists() or (folder / "meta.pkl").exists()
    dataset = open_dataset(folder, None if knows_size else size)
    if not has_ids_of(dataset, state) and not has_ids_of(dataset, before_added(state)):
        found = f"dataset {dataset.name} ({dataset.vocab_size} ids) does not match the checkpoint ({size} ids)"
        raise ValueError(f"{found}: its ids stand for other text, as its tokenizer is another: use {instead}")
    return dataset


def open_ngram(share: float, names: str | None, state: dict) -> NGram | None:
    """An n-gram model of the training texts of these datasets, separated by commas, or of the one that the model was
    trained on; None for a share of 0. ValueError for a share out of range, other ids than the model's, or
    conversations."""
    if not 0 <= share <= 1:
        raise ValueError(f"ngram={share} must be from 0 (off) to 1 (counts alone): their share, for a book 0.2")
    if not share:
        if names:
            raise ValueError(f"--ngram_data={names} names what --ngram=SHARE counts: give a share too, for a book 0.2")
        return None
    listed = names.split(",") if names else [None]
    if "" in listed or len({*listed}) < len(listed):
        raise ValueError(f"--ngram_data={names} must name each dataset once, separated by commas")
    datasets = [open_matching_dataset(name, state, "--ngram_data=DATASET") for name in listed]
    if masked := [dataset.name for dataset in datasets if dataset.is_masked]:
        problem = f"dataset {masked[0]} has conversations"
        raise ValueError(f"--ngram counts plain texts, but {problem}: leave it out, or name others in --ngram_data")
    n_tokens = sum(dataset.tokens("train") for dataset in datasets)
    name = f"{', '.join(dataset.name for dataset in datasets)}: {n_tokens:,} tokens"
    return NGram([dataset.array("train") for dataset in datasets], state["model_args"]["vocab_size"], share, name)


def special_of(state: dict) -> str:
    """What special tokens typed in the model's texts were: "text", or, with "encode", their ids."""
    return state.get("meta", {}).get("source", {}).get("special", "text")


def first_id_of(state: dict) -> int | None:
    """The id that began every window the model was trained on, as --sampling=line has it; None if there is none."""
    return 0 if (state.get("config") or {}).get("sampling") == "line" else None


def make_ready(
    model: GPT, device: torch.device, dtype="auto", quantize="none", block_size: int | None = None, plain: bool = False
) -> GPT:
    """The model for inference: on `device`, in eval mode, its weights in this format, layers bound and, on a CPU, float
    weights packed. block_size: a shorter context, which needs less memory for keys and values; ValueError for a longer
    one. plain=True keeps it fit for torch.compile and autocast: no packed or bound layers, and int8 layers that do not
    round their inputs.

    quantize: 'none', 'int8', or 'auto': int8 where that was measured to be fast, unless a dtype is given. dtype: a name
    or 'auto': bfloat16 where the processor supports it natively, since reading the weights takes most of the time; else
    float32, as beside int8 layers, which leave little of it.
    """
    if block_size is not None:
        model.crop_block_size(block_size)
    is_int8 = quantize == "int8"
    if quantize == "auto":
        has_kernels = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
        is_int8 = dtype == "auto" and device.type == "cpu" and has_kernels
    picked = pick_dtype(dtype, device)
    if dtype == "auto" and (picked == torch.float16 or is_int8 and device.type != "cuda"):
        picked = torch.float32
    # cuDNN plans its attention anew for each number of keys, which takes tens of milliseconds and here grows by one
    torch.backends.cuda.enable_cudnn_sdp(False)
    model = model.to(device, picked).eval()
    if is_int8:
        if device.type != "cpu":  # Int8Linear turns all weights back into floats for every product
            note = f"int8 weights save memory on {device.type}, but cost time: leave them out for speed"
            print(f"note: {note}", file=sys.stderr)
        round_weights(model, round_inputs=not plain)
    elif not plain:
        pack(model)
    if not plain:
        bind(model)
    return model
