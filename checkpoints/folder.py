"""The folder of a run: its lock, its id, which of its checkpoints to take, and runs before it."""

import errno
import math
import os
import socket
import sys
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import IO

from checkpoints.load import Damaged, load
from checkpoints.publish import remove, replace, saved


def lock(folder: Path) -> IO[str]:
    """Makes `folder` and takes the lock on it; closing the returned file, or the end of the process however it
    comes, gives it back. The file itself stays. Raises ValueError if another run has the lock, or the folder
    cannot be written. Removes what a killed save left."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / "lock", "a+", encoding="utf-8")
    except OSError as error:
        raise ValueError(f"out_dir={folder} cannot be made or written to: {error}") from error
    try:
        lock_file(file)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
            file.seek(0)
            holder = file.read(200).strip() or "another process"
            file.close()
            raise ValueError(
                f"out_dir={folder} is in use by {holder}: wait for that run to end, stop it, or choose another out_dir"
            ) from None
        print(
            f"note: {folder} is on a file system without locks ({error}): take care that no second run writes there",
            file=sys.stderr,
        )
    with suppress(OSError):
        file.truncate(0)
        # past the file's buffer, which a full disk would fill for close() to fail
        os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        for stale in folder.glob("*.pt.tmp"):
            remove(stale)
        for old in folder.glob("*.pt.old"):
            remove(old) if old.with_suffix("").exists() else os.replace(old, old.with_suffix(""))
    return file


def lock_file(file: IO[str]) -> None:
    """Locks an open file for this process, or raises OSError at once. On NFS Linux sends flock on to the server,
    which frees it when the client is known to be gone; with the mount option local_lock, or on a Lustre that is
    mounted with localflock, runs on different machines don't see each other's locks."""
    if os.name == "nt":
        import msvcrt

        file.seek(2**30)  # far behind the text, which others could not read otherwise
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def set_aside(folder: Path) -> Path | None:
    """Moves an earlier run's checkpoints and curves in `folder` to a new folder/previous-N, so that a fresh run
    neither replaces them nor is mixed with them. Returns that folder, or None if there was no checkpoint. last.pt goes
    last: a kill on the way leaves a run that resumes. Raises ValueError if files cannot be moved."""
    files = saved(folder)
    if not files:
        return None
    files = sorted(files, key=lambda file: (file.name == "last.pt", file.name == "ckpt.pt"))
    files[-1:-1] = folder / "metrics.jsonl", folder / "tensorboard"
    try:
        for number in count(1):
            previous = folder / f"previous-{number}"
            with suppress(FileExistsError):
                previous.mkdir()
                break
        for file in files:
            if file.exists():
                os.replace(file, previous / file.name)
    except OSError as error:
        raise ValueError(
            f"the earlier run in {folder} cannot be moved to {previous}: {error}; move or delete it, or "
            "choose another out_dir"
        ) from error
    return previous


def find(path: str | Path) -> Path:
    """The checkpoint meant by `path`, a file or a folder, to sample from or to fine-tune: in a folder ckpt.pt (the
    best so far) is preferred, then the newest last.pt."""
    path = Path(path)
    is_sharded = (path / "state.pt").is_file()
    files = [path] if path.is_file() or is_sharded else saved(path)
    if not files:
        earlier = [folder for folder in path.glob("previous-*") if saved(folder)]
        newest = max(earlier, key=lambda folder: folder.stat().st_mtime, default=None)
        hint = f"an earlier run is in {newest}: name that" if newest else f"train with --out_dir={path} first"
        raise ValueError(
            f"no checkpoint: {path} is neither a file nor a folder with a ckpt.pt or last.pt; {hint}, or another"
        )
    return files[0]


def find_newest(folder: Path) -> Path:
    """The checkpoint in a folder to resume from: the one with the most steps (last.pt if equal) that is whole.
    Damaged ones that come before it are renamed, and one line of stderr each tells about them. No clock decides.
    Raises ValueError if none is whole."""
    find(folder)
    ages, damaged = {}, {}
    for file in saved(folder):
        try:
            ages[file] = age(load(file, meta=True), file)
        except Damaged as error:
            damaged[file] = error
    chosen = None
    for file in sorted(ages, key=ages.get, reverse=True):
        try:
            load(file, verify=True, meta=True)
            chosen = file
            break
        except Damaged as error:
            damaged[file] = error
    if chosen is None:
        raise ValueError("; ".join(map(str, damaged.values())) + "; no whole checkpoint is left to resume from")
    for file, error in damaged.items():
        aside = file.with_name(f"{file.name}.damaged")
        print(
            f"warning: {error}; going on from {chosen.name} ({ages[chosen][0]} steps), and {file.name} is now "
            f"{aside.name}",
            file=sys.stderr,
        )
        with suppress(OSError):  # a folder that cannot be written can still be evaluated
            replace(file, aside)
    return chosen


def age(state: dict, file: Path) -> tuple[int, bool]:
    """Sorts checkpoints of one folder: steps, and last.pt before an equal ckpt.pt."""
    return state.get("iter_num", 0), file.name == "last.pt"


def write_run_id(folder: Path, run_id: str) -> None:
    """Notes which run was started last in a folder, so that it knows its own checkpoints when it is restarted. Raises
    ValueError if that can't be written."""
    try:
        (folder / "run").write_text(run_id + "\n", encoding="utf-8")
    except OSError as error:
        raise ValueError(f"cannot write {folder / 'run'}: {error.strerror}") from error


def best_of(folder: Path, run_id: str) -> float:
    """The best validation loss that a run's ckpt.pt knows of, or inf: a run's last evaluation comes after its last.pt,
    so that only ckpt.pt has it."""
    with suppress(ValueError):
        state = load(folder / "ckpt.pt", meta=True)
        if state.get("run", {}).get("id") == run_id:
            return float(state["best_val_loss"])
    return math.inf


def has_own(folder: Path) -> bool:
    """Whether the run that was started last in a folder has saved a checkpoint there."""
    note = folder / "run"
    if not note.exists():  # nanoGPT's, whose checkpoints have no id either
        return False
    run_id = note.read_text(encoding="utf-8").strip()
    for file in saved(folder):
        with suppress(ValueError):
            if load(file, meta=True).get("run", {}).get("id") == run_id:
                return True
    return False
