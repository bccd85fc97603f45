"""An out_dir: its lock, its run's id, the checkpoint to take from it, and setting earlier runs aside."""

import math
import os
import socket
import sys
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import IO

from checkpoints.load import Damaged, load_checkpoint
from checkpoints.publish import beside, discard, replace_path, saved_checkpoints
from system.files import lock_file, replace


def lock_folder(folder: Path) -> IO[str]:
    """Creates and locks a folder and cleans up after a killed save. Closing the returned file, or the end of the
    process, releases the lock. Raises ValueError if another run holds it, or the folder cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / "lock", "a+", encoding="utf-8")
    except OSError as error:
        raise ValueError(f"out_dir={folder} cannot be created or written: {error}") from error
    try:
        lock_file(file)
    except BlockingIOError:
        with file:
            file.seek(0)
            holder = file.read(200).strip() or "another process"
        raise ValueError(f"out_dir={folder} is in use by {holder}: stop that run or choose another out_dir") from None
    except OSError as error:
        print(f"note: {folder} is on a file system without locks ({error}): start no second run there", file=sys.stderr)
    with suppress(OSError):
        file.truncate(0)
        # unbuffered: a full disk must not make close() fail
        os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        for stale in folder.glob("*.pt.tmp"):
            discard(stale)
        for old in folder.glob("*.pt.old"):
            discard(old) if old.with_suffix("").exists() else os.replace(old, old.with_suffix(""))
    return file


def find_checkpoint(path: str | Path) -> Path:
    """The checkpoint to sample or fine-tune from: `path` itself, or in a folder ckpt.pt, else the newest last.pt.
    Raises ValueError if there is none."""
    path = Path(path)
    is_checkpoint = path.is_file() or (path / "state.pt").is_file()
    files = [path] if is_checkpoint else saved_checkpoints(path)
    if not files:
        earlier = [folder for folder in path.glob("previous-*") if saved_checkpoints(folder)]
        newest = max(earlier, key=lambda folder: folder.stat().st_mtime, default=None)
        hint = f"an earlier run is in {newest}" if newest else f"train with --out_dir={path} first"
        raise ValueError(f"no checkpoint: {path} is not a file, nor a folder with a ckpt.pt or last.pt; {hint}")
    return files[0]


def find_newest(folder: Path) -> Path:
    """The undamaged checkpoint with the most steps in a folder (last.pt among equals), to resume from. Damaged ones
    found on the way are renamed, each with a warning on stderr. Raises ValueError if none is undamaged."""
    find_checkpoint(folder)
    steps, damaged = {}, {}

    def is_whole(file: Path, verify: bool) -> bool:
        try:
            steps[file] = load_checkpoint(file, verify, meta=True).get("iter_num", 0)
        except Damaged as error:
            damaged[file] = error
        return file not in damaged

    files = [file for file in saved_checkpoints(folder) if is_whole(file, verify=False)]
    files.sort(key=lambda file: (steps[file], file.name == "last.pt"), reverse=True)
    chosen = next((file for file in files if is_whole(file, verify=True)), None)
    if chosen is None:
        raise ValueError("; ".join(map(str, damaged.values())) + "; no undamaged checkpoint is left to resume from")
    for file, error in damaged.items():
        choice = f"resuming from {chosen.name} ({steps[chosen]} steps)"
        print(f"warning: {error}; kept as {file.name}.damaged; {choice}", file=sys.stderr)
        with suppress(OSError):  # a read-only folder can still be evaluated
            replace_path(file, beside(file, "damaged"))
    return chosen


def set_aside(folder: Path) -> Path | None:
    """Moves an earlier run's checkpoints and metrics out of a fresh run's way, to a new folder/previous-N. Returns
    that folder, or None if there was no checkpoint. Raises ValueError if a file cannot be moved."""
    files = saved_checkpoints(folder)
    if not files:
        return None
    files.sort(key=lambda file: (file.name == "last.pt", file.name == "ckpt.pt"))
    # what a run resumes from goes last: a kill on the way leaves it
    files[-1:-1] = folder / "metrics.jsonl", folder / "tensorboard"
    previous = next(path for n in count(1) if not (path := folder / f"previous-{n}").exists())
    try:
        previous.mkdir()
        for file in files:
            if file.exists():
                replace(file, previous / file.name)
    except OSError as error:
        raise ValueError(f"cannot move the earlier run to {previous}: {error}: choose another out_dir") from error
    return previous


def write_run_id(folder: Path, run_id: str) -> None:
    """Records which run was started last, so that it finds its own checkpoints after a restart. Raises ValueError if
    that cannot be written."""
    try:
        (folder / "run").write_text(run_id + "\n", encoding="utf-8")
    except OSError as error:
        raise ValueError(f"cannot write {folder / 'run'}: {error.strerror}") from error


def has_own_checkpoint(folder: Path) -> bool:
    """Whether the run started last in a folder has saved a checkpoint there."""
    note = folder / "run"
    if not note.exists():  # nanoGPT's run: its checkpoints have no id either
        return False
    run_id = note.read_text(encoding="utf-8").strip()
    return any(state_of_run(file, run_id) for file in saved_checkpoints(folder))


def best_val_loss_of(folder: Path, run_id: str, fingerprint: str) -> float:
    """The best validation loss in a run's own ckpt.pt, or inf, also where that was on another dataset. Only ckpt.pt
    knows a run's last evaluation, which comes after the last save of last.pt."""
    state = state_of_run(folder / "ckpt.pt", run_id)
    is_comparable = state is not None and state["run"].get("fingerprint", fingerprint) == fingerprint
    return float(state["best_val_loss"]) if is_comparable else math.inf


def state_of_run(file: Path, run_id: str) -> dict | None:
    """The checkpoint, or None if it cannot be read or another run saved it."""
    with suppress(ValueError):
        state = load_checkpoint(file, meta=True)
        if state.get("run", {}).get("id") == run_id:
            return state
    return None
