"""Checkpoints: saved in the background and atomically, verified, loaded safely.

A checkpoint is one dict of tensors and plain Python values: nanoGPT's six keys (model, optimizer, model_args,
iter_num, best_val_loss, config) and ours (scaler, rng, tokenizer, meta, run, format). Loading never runs code
from the file (weights_only=True), and maps it into memory, so that a look at one key stays cheap. In an out_dir:

    ckpt.pt                    the best or newest evaluated state, for sample.py
    last.pt                    the newest complete state
    last-1.pt, last-2.pt, …    the ones before it, for when last.pt is damaged (keep_checkpoints counts last.pt too)
    lock                       held by the run that writes there
    run                        the id of the run that was started last
    previous-1/, …             checkpoints and metrics of earlier runs, which a fresh run found there

With --checkpoint_format=sharded each of them is a folder instead of a file (sharded.py), used in the same way.
"""

from pathlib import Path

from checkpoints import sharded
from checkpoints.file import read

FORMAT = 1


class Damaged(ValueError):
    """A file that is no readable checkpoint, while an older one may be."""


def load(path: str | Path, verify: bool = False, mapped: bool = True, meta: bool = False) -> dict:
    """Reads a checkpoint of ours or of nanoGPT, tensors on the CPU.

    verify: compare all of the file with its checksums, which reads it once more; without it only what is not a
    tensor is compared. mapped=False: tensors get memory of their own instead of that of the mapped file. meta: the
    tensors of a sharded checkpoint stay on the meta device, for sharded.load_into.

    Raises ValueError in one line if the file is absent, of a newer format, or lacks what a checkpoint needs;
    Damaged (one too) if it is truncated, altered, or holds more than tensors and plain values.
    """
    path = Path(path)
    try:
        if path.is_dir():
            state = sharded.load(path, verify, meta)
        else:
            state = read(path, verify, mapped)
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise ValueError(f"checkpoint {path} cannot be read: {error.strerror}") from error
    except Exception as error:  # torch raises many kinds for a damaged file
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        reason = next((line for line in lines if line.startswith("WeightsUnpickler error")), lines[0])
        raise Damaged(
            f"checkpoint {path} ({path.stat().st_size:,} bytes) cannot be read: it is damaged, or holds more than "
            f"tensors and plain values ({reason.split('. Please use')[0][:150]})"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(state.get(key), dict) for key in ("model", "model_args")):
        keys = f"keys {sorted(map(str, state))[:8]}" if isinstance(state, dict) else type(state).__name__
        raise ValueError(f"{path} is no GPT checkpoint: found {keys}, expected model, model_args, …")
    if not all(isinstance(state.get(key, {}), dict) for key in ("config", "run")):
        raise ValueError(f"{path} is no GPT checkpoint: its config and run must be dicts")
    if state.get("format", FORMAT) > FORMAT:
        raise ValueError(f"{path} has format {state['format']}, this version reads up to {FORMAT}: update it")
    return state
