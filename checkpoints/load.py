"""Loading a checkpoint in either format. It never runs code from the file (weights_only=True)."""

from pathlib import Path

from checkpoints.file import read_archive
from checkpoints.sharded import load_sharded
from configurator import is_out_of_memory

FORMAT = 1


class Damaged(ValueError):
    """Not a readable checkpoint, though an older one may be."""


def load_checkpoint(path: str | Path, verify: bool = False, mapped: bool = True, meta: bool = False) -> dict:
    """Reads a checkpoint of this project or of nanoGPT, with tensors on the CPU.

    verify: also compare the tensors with their checksums, which reads the file once more.
    mapped: map a file into memory, which makes reading one key cheap; False gives tensors memory of their own.
    meta: leave the tensors of a sharded checkpoint on the meta device, for load_shards.

    Raises ValueError if the file cannot be read, is of a newer format or not a GPT's; Damaged, which is one too, if it
    is truncated, altered, or holds more than tensors and plain values.
    """
    path = Path(path)
    try:
        state = load_sharded(path, verify, meta) if path.is_dir() else read_archive(path, verify, mapped)
    except OSError as error:  # also of a mounted drive that is away for a moment: no damage
        raise ValueError(f"checkpoint {path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # torch raises many kinds for a damaged file
        if is_out_of_memory(error):
            raise
        message = str(error).rpartition("WeightsUnpickler error: ")[2].strip()  # what precedes it is advice to run code
        reason = message.splitlines()[0] if message else type(error).__name__
        raise Damaged(
            f"checkpoint {path} ({path.stat().st_size:,} bytes) cannot be read: it is damaged, or holds more than "
            f"tensors and plain values ({reason.split('. Please use')[0][:150]})"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(state.get(key), dict) for key in ("model", "model_args")):
        found = f"keys {sorted(map(str, state))[:8]}" if isinstance(state, dict) else type(state).__name__
        raise ValueError(f"{path} is not a GPT checkpoint: found {found}, expected model, model_args, …")
    if not all(isinstance(state.get(key, {}), dict) for key in ("config", "run")):
        raise ValueError(f"{path} is not a GPT checkpoint: its config and run must be dicts")
    if state.get("format", FORMAT) > FORMAT:
        raise ValueError(f"{path} has format {state['format']}, this version reads up to {FORMAT}: update it")
    return state
