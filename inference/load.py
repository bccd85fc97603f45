"""The door to a trained model: what --init_from and --out_dir name, its tokenizer, and a GPT ready to compute.

    source, state = open_trained(init_from="resume", out_dir="out")
    tokenizer = find_tokenizer(state)
    model = make_ready(build_model(state, dropout=0.0), device, dtype="auto", quantize="int8")

sample.py, eval.py, complete.py and export.py all start here.
"""

from pathlib import Path

import torch

from checkpoints.folder import find_checkpoint
from checkpoints.load import load_checkpoint
from checkpoints.pretrained import load_pretrained
from data.dataset import open_dataset
from data.tokenizer import TiktokenTokenizer, tokenizer_from_json
from inference.bind import bind
from inference.pack import pack
from inference.quantize import quantize as round_weights
from model import GPT
from system.device import pick_dtype


def open_trained(init_from: str, out_dir: str) -> tuple[str | Path, dict]:
    """Where the model comes from, and its checkpoint: 'resume' is the one in out_dir; anything else is a checkpoint,
    a folder or a name of load_pretrained. Raises ValueError if there is none."""
    if init_from == "resume":
        source = find_checkpoint(out_dir)
        return source, load_checkpoint(source)
    return init_from, load_pretrained(init_from)


def find_tokenizer(state: dict):
    """The checkpoint's own tokenizer; for one that nanoGPT wrote, that of its dataset's meta.pkl, else GPT-2's.
    Raises ValueError if there is none."""
    if state.get("tokenizer"):
        return tokenizer_from_json(state["tokenizer"])
    name, vocab_size = state.get("config", {}).get("dataset"), state["model_args"]["vocab_size"]
    if vocab_size in (50257, 50304):
        return TiktokenTokenizer("gpt2")
    tokenizer = open_dataset(name, vocab_size).tokenizer if name else None
    if tokenizer is None or tokenizer.vocab_size > vocab_size:
        raise ValueError(f"the checkpoint has no tokenizer, and dataset {name!r} has none for its {vocab_size} ids")
    return tokenizer


def make_ready(
    model: GPT, device: torch.device, dtype: str = "auto", quantize: str = "none", plain: bool = False
) -> GPT:
    """The model for inference: on `device`, in eval mode, its weights in the asked format.

    dtype: a name or 'auto' (see pick_weights_dtype). quantize: 'none', 'int8', or 'auto' (see pick_int8). On a CPU
    weights that stay in float32 or bfloat16 are packed, and layers are bound. plain=True keeps to what torch.compile
    and autocast can take: no packed layers, and int8 ones that do not round their inputs.
    """
    is_int8 = pick_int8(quantize, dtype, device)
    model = model.to(device, pick_weights_dtype(dtype, is_int8, device)).eval()
    if is_int8:
        round_weights(model, round_inputs=not plain)
    elif not plain:
        pack(model)
    if not plain:
        bind(model)
    return model


def pick_weights_dtype(dtype: str, is_int8: bool, device: torch.device) -> torch.dtype:
    """auto: bfloat16 where the processor multiplies it natively, else float32, since reading the weights takes most of
    the time. Beside int8 layers float32: little is left in it."""
    if dtype == "auto" and is_int8 and device.type != "cuda":
        return torch.float32
    picked = pick_dtype(dtype, device)
    return torch.float32 if dtype == "auto" and picked == torch.float16 else picked


def pick_int8(quantize: str, dtype: str, device: torch.device) -> bool:
    """Whether weights become int8. auto: where that was measured to be fast, unless a dtype is asked for."""
    if quantize != "auto":
        return quantize == "int8"
    return dtype == "auto" and device.type == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX512"
