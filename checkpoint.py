"""Checkpoints: saved atomically, loaded safely, validated.

A checkpoint is one dict of tensors and plain Python values: nanoGPT's six keys (model, optimizer, model_args,
iter_num, best_val_loss, config) and ours (scaler, rng, tokenizer, meta, run, format). Loading never runs code
from the file (weights_only=True) and maps it into memory, so that a look at one key stays cheap.
"""

import os
import shutil
import warnings
from contextlib import suppress
from dataclasses import fields
from pathlib import Path

import torch

from model import GPT, GPTConfig

FORMAT = 1
PREFIXES = ("_orig_mod.", "module.")  # left on parameter names by torch.compile and DDP


def save(path: Path, state: dict, copy_of: Path | None = None) -> None:
    """Writes `state` to `path`: to a temporary file, fsynced, then moved over the old one, so that a kill or a
    full disk at any moment leaves the old checkpoint whole. copy_of: a file that was just saved with the same
    state, to be linked instead of written again. Raises ValueError if the file cannot be written."""
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.unlink(missing_ok=True)  # left by a kill
    try:
        if copy_of is not None:
            try:
                os.link(copy_of, temporary)
            except OSError:  # no hard links on this file system
                save_copy(copy_of, temporary)
        else:
            with open(temporary, "wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        temporary.unlink(missing_ok=True)
        raise ValueError(f"cannot write checkpoint {path}: {error}; the previous one is untouched") from error
    if hasattr(os, "O_DIRECTORY"):  # make the rename itself survive a power cut (not possible on Windows)
        with suppress(OSError):  # some network file systems cannot
            folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
            os.fsync(folder)
            os.close(folder)


def save_copy(source: Path, target: Path) -> None:
    with open(source, "rb") as old, open(target, "wb") as new:
        shutil.copyfileobj(old, new)
        new.flush()
        os.fsync(new.fileno())


def load(path: str | Path) -> dict:
    """Reads a checkpoint of ours or of nanoGPT, tensors on the CPU.

    Raises ValueError in one line if the file is absent, truncated, holds more than tensors and plain values, is
    of a newer format, or lacks what a checkpoint needs.
    """
    path = Path(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd pickles; what matters is said below
            # the format before torch 1.6 cannot be mapped into memory
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped(path))
    except Exception as error:  # torch raises many kinds for a damaged file
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        reason = next((line for line in lines if line.startswith("WeightsUnpickler error")), lines[0])
        raise ValueError(
            f"checkpoint {path} ({path.stat().st_size:,} bytes) cannot be read: it is damaged, or holds more than "
            f"tensors and plain values ({reason.split('. Please use')[0][:150]})"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(state.get(key), dict) for key in ("model", "model_args")):
        keys = f"keys {sorted(map(str, state))[:8]}" if isinstance(state, dict) else type(state).__name__
        raise ValueError(f"{path} is no GPT checkpoint: found {keys}, expected model, model_args, …")
    if state.get("format", FORMAT) > FORMAT:
        raise ValueError(f"{path} has format {state['format']}, this version reads up to {FORMAT}: update it")
    return state


def zipped(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(2) == b"PK"


def find(path: str | Path, resume: bool = False) -> Path:
    """The checkpoint file meant by `path`, a file or a folder.

    In a folder ckpt.pt (the best so far) is preferred, then last.pt. To resume: of one run the one with more
    steps (last.pt if equal), of two runs that shared the folder the one written later.
    """
    path = Path(path)
    if path.is_file():
        return path
    files = [f for f in (path / "ckpt.pt", path / "last.pt") if f.exists()]
    if not files:
        raise ValueError(f"no checkpoint: {path} is neither a file nor a folder with a ckpt.pt or last.pt; "
                         f"train with --out_dir={path} first, or name another")
    if not resume or len(files) == 1:
        return files[0]
    states = [load(file) for file in files]
    ids = [state.get("run", {}).get("id") for state in states]
    ages = [state.get("iter_num", 0) for state in states]
    if ids[0] != ids[1]:
        ages = [file.stat().st_mtime_ns for file in files]
    return files[0] if ages[0] > ages[1] else files[1]


def clean_weights(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights by the plain model's names: wrappers' prefixes off, and without the causal masks that nanoGPT on
    old PyTorch kept as buffers."""
    cleaned = {}
    for name, tensor in weights.items():
        while name.startswith(PREFIXES):
            name = name.split(".", 1)[1]
        if not (name.endswith(".attn.bias") and tensor.dim() == 4):
            cleaned[name] = tensor
    return cleaned


def build_model(state: dict, **changes) -> GPT:
    """The model in a checkpoint, on the CPU with its weights. `changes` replace model_args (dropout, say).
    Raises ValueError if model_args and weights do not fit together, naming the first tensor that differs."""
    known = {field.name for field in fields(GPTConfig)}
    unknown = state["model_args"].keys() - known
    if unknown:
        raise ValueError(f"the checkpoint's model_args has {sorted(unknown)}, which this version does not know")
    config = GPTConfig(**{**state["model_args"], **changes})
    with torch.device("meta"):  # shapes only: no memory, no random numbers
        model = GPT(config)
    weights = clean_weights(state["model"])
    for name, tensor in model.state_dict().items():
        found = tuple(weights[name].shape) if name in weights else "nothing"
        if found != tuple(tensor.shape):
            raise ValueError(f"checkpoint weight {name}: found {found}, model_args need {tuple(tensor.shape)}")
    extra = weights.keys() - model.state_dict().keys()
    if extra:
        raise ValueError(f"the checkpoint has weights that model_args know nothing of: {sorted(extra)[:4]}")
    return materialize(model, weights)


def materialize(model: GPT, weights: dict[str, torch.Tensor]) -> GPT:
    """Puts copies of `weights` in place of a meta model's empty parameters; tied tensors stay one."""
    model.to_empty(device="cpu")
    if model.config.tie_weights:
        model.lm_head.weight = model.transformer.wte.weight
    model.load_state_dict(weights)
    model.make_rope()
    return model
