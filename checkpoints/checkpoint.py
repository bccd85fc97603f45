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

import errno
import math
import os
import shutil
import socket
import sys
import threading
import warnings
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import fields
from itertools import count
from pathlib import Path
from typing import IO

import torch

from model import GPT, GPTConfig

FORMAT = 1
PREFIXES = ("_orig_mod.", "module.")  # left on parameter names by torch.compile and DDP


class Damaged(ValueError):
    """A file that is no readable checkpoint, while an older one may be."""


# ---- writing ---------------------------------------------------------------------------------------------


def save(path: Path | list[Path], state: dict, keep: int | None = None) -> None:
    """Writes `state` to a temporary file, fsyncs it, then moves it to `path`, so that a kill or a full disk at any
    moment leaves the old checkpoint whole. Of several paths each gets the one file, in their order, by hard links
    where there are such. keep: how many of the last path there may be, with those that it replaced (path-1, …).

    Raises ValueError if a file cannot be written."""
    paths = [path] if isinstance(path, Path) else path
    temporary = beside(paths[0], "tmp")

    def put() -> None:
        write(temporary, state)
        publish(temporary, paths, keep)

    try:
        put()
    except (OSError, RuntimeError) as error:
        raise ValueError(not_written(paths[0], error)) from error


def not_written(path: Path, error: BaseException) -> str:
    """What went wrong, for the user. torch hides an error of the disk in one about its own file's positions."""
    while not isinstance(error, OSError) and (error.__cause__ or error.__context__):
        error = error.__cause__ or error.__context__
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
    with suppress(OSError):
        reason += f" ({shutil.disk_usage(path.parent).free / 1e6:,.0f} MB are free there)"
    kept = saved(path.parent)
    return f"cannot write checkpoint {path}: {reason}; " + (
        f"{kept[0].name} is untouched: go on from it (--init_from=resume) when that is mended"
        if kept
        else "nothing has been saved so far"
    )


def write(path: Path, state: dict) -> None:
    """A file with `state` that is on the disk, or none."""
    try:
        with open(path, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        with suppress(OSError):
            path.unlink(missing_ok=True)
        raise


def publish(temporary: Path, paths: list[Path], keep: int | None) -> None:
    """Gives what was written to `temporary` its names; see save()."""
    temporaries = [temporary, *(beside(path, "tmp") for path in paths[1:])]
    try:
        for other in temporaries[1:]:
            link(temporary, other)
        for source, path in zip(temporaries, paths, strict=True):
            if keep is not None and path is paths[-1]:
                rotate(path, keep)
            replace(source, path)
    except OSError:
        for source in temporaries:
            with suppress(OSError):
                remove(source)
        raise
    if hasattr(os, "O_DIRECTORY"):  # make the renames themselves survive a power cut (not possible on Windows)
        with suppress(OSError):  # some network file systems cannot
            folder = os.open(paths[0].parent, os.O_RDONLY | os.O_DIRECTORY)
            os.fsync(folder)
            os.close(folder)


def beside(path: Path, suffix: str) -> Path:
    return path.with_name(f"{path.name}.{suffix}")


def replace(source: Path, target: Path) -> None:
    """os.replace, for folders too: then a kill may leave the old one as target.old, from where lock() fetches it."""
    if not target.is_dir() and not (source.is_dir() and target.exists()):
        os.replace(source, target)
        return
    old = beside(target, "old")
    remove(old)
    os.replace(target, old)
    os.replace(source, target)
    remove(old)


def remove(path: Path) -> None:
    """Removes a file or folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def older(path: Path, number: int) -> Path:
    return path.with_name(f"{path.stem}-{number}{path.suffix}")


def rotate(path: Path, keep: int) -> None:
    """path-1 becomes path-2 and so on; path becomes path-1 too, and stays until it is replaced. Those from number
    `keep` on are removed."""
    number, newest = keep, older(path, 1)
    while (extra := older(path, number)).exists():
        remove(extra)
        number += 1
    if keep < 2 or not path.exists() or (newest.exists() and newest.samefile(path)):  # a kill came right after this
        return
    for number in range(keep - 1, 1, -1):
        if older(path, number - 1).exists():
            replace(older(path, number - 1), older(path, number))
    temporary = beside(newest, "tmp")
    try:
        remove(temporary)
        os.link(path, temporary)
        os.replace(temporary, newest)
    except OSError:  # no hard links on this file system, nor of folders: for a moment there is no last.pt
        replace(path, newest)


def link(source: Path, target: Path) -> None:
    """A hard link, or where there are none a copy on the disk."""
    remove(target)
    if source.is_dir():
        shutil.copytree(source, target, copy_function=lambda old, new: link(Path(old), Path(new)))
        return
    try:
        os.link(source, target)
    except OSError:
        with open(source, "rb") as old, open(target, "wb") as new:
            shutil.copyfileobj(old, new)
            new.flush()
            os.fsync(new.fileno())


class Saver:
    """Saves in the background, one checkpoint at a time. Only rank 0 makes one.

        saver.save(state, out_dir / "last.pt")   # returns at once, unless the save before is still going on
        saver.before_update()                    # from here on the tensors of `state` may change

    In between the loop may read them, so it can go through the next step's forward and backward pass while a
    thread copies them to host memory (kept for the next save; pinned and by a stream of its own on CUDA). What
    goes wrong is left in `error`, for the loop to stop at its next step; wait() raises it.

    keep: as in save(), for saves as last.pt. background=False writes at once and needs no memory for a copy. before:
    is called before a checkpoint is written.
    """

    def __init__(
        self, device: torch.device, keep: int, background: bool = True, before: Callable[[], None] = lambda: None
    ):
        self.device, self.keep, self.background, self.before = device, keep, background, before
        self.error: ValueError | None = None
        self.thread: threading.Thread | None = None
        self.copied = threading.Event()
        self.copied.set()
        self.buffers: dict[tuple, torch.Tensor] = {}
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def save(self, state: dict, *paths: Path, is_copy: bool = False) -> None:
        self.join()
        if self.error:
            return
        if not self.background:
            self.write(state, paths)
        elif is_copy:  # nobody changes the tensors of `state`
            self.start(state, paths)
        elif self.device.type in ("cpu", "cuda"):
            ready = torch.cuda.current_stream(self.device).record_event() if self.stream else None
            self.copied.clear()
            self.start(state, paths, ready)
        else:  # other devices' queues take work from one thread only
            self.start(self.copy(state), paths)

    def start(self, *args) -> None:
        self.thread = threading.Thread(target=self.write, args=args, name="save")
        self.thread.start()

    def write(self, state: dict, paths: tuple[Path, ...], ready: "torch.cuda.Event | None" = None) -> None:
        try:
            if not self.copied.is_set():
                try:
                    state = self.copy(state, ready)
                finally:
                    self.copied.set()
            self.before()
            save(list(paths), state, self.keep_of(paths))
        except ValueError as error:
            self.error = error
        except Exception as error:  # no memory for the copy, mostly
            self.error = ValueError(f"cannot save {paths[0]}: {error} (--async_save=False needs less memory)")
            self.error.__cause__ = error

    def keep_of(self, paths: Sequence[Path]) -> int | None:
        """save()'s keep, for a save by these names."""
        return self.keep if paths[-1].name == "last.pt" else None

    def copy(self, state: dict, ready: "torch.cuda.Event | None" = None) -> dict:
        """`state` with copies of its tensors in host memory; what shares its memory goes on doing so."""
        kept: dict[tuple, torch.Tensor] = {}

        def copied(value):
            if isinstance(value, torch.Tensor):
                key = (value.data_ptr(), value.dtype, value.shape, value.stride())
                if key not in kept:
                    buffer = self.buffers.get(key)
                    if buffer is None:
                        buffer = torch.empty_like(value, device="cpu", pin_memory=value.is_cuda)
                    kept[key] = buffer.copy_(value, non_blocking=value.is_cuda)
                return kept[key]
            if isinstance(value, dict):
                return {key: copied(item) for key, item in value.items()}
            return [copied(item) for item in value] if isinstance(value, list) else value

        if self.stream is None:
            state = copied(state)
        else:
            with torch.cuda.stream(self.stream):
                self.stream.wait_event(ready)
                state = copied(state)
            self.stream.synchronize()
        self.buffers = kept
        return state

    def before_update(self) -> None:
        self.copied.wait()

    def join(self) -> None:
        """Waits for the save that is going on, if any."""
        if self.thread is not None:
            self.thread.join()
            self.thread = None

    def wait(self) -> None:
        """Waits until all is on the disk. Raises ValueError if something could not be written."""
        self.join()
        if self.error:
            raise self.error


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


# ---- reading ---------------------------------------------------------------------------------------------


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
            from checkpoints.sharded import load as load_sharded  # it imports this file

            state = load_sharded(path, verify, meta)
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


def read(path: Path, verify: bool, mapped: bool = True) -> dict:
    """What torch.save wrote to a file; see load()."""
    is_zip = zipped(path)  # not the case before torch 1.6: no checksums, and it cannot be mapped
    if is_zip:
        compare_checksums(path, verify)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd pickles; what matters is said by load()
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped and is_zip)


def zipped(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(2) == b"PK"


def compare_checksums(path: Path, tensors: bool) -> None:
    """Raises an exception unless the file matches the CRC-32 that torch.save, since 1.6 a writer of zip archives,
    stored with every tensor and with the pickle that holds the rest. torch.load compares none of them."""
    from tqdm import tqdm

    with zipfile.ZipFile(path) as archive:
        members = [info for info in archive.infolist() if tensors or "/data/" not in info.filename]
        total = sum(info.file_size for info in members)
        quiet = None if total > 2**31 else True  # None: quiet unless stderr is a terminal
        with tqdm(total=total, desc=f"checking {path.name}", unit="B", unit_scale=True, disable=quiet) as bar:
            for info in members:
                with archive.open(info) as member:
                    while chunk := member.read(2**22):  # raises BadZipFile at the end of a member that differs
                        bar.update(len(chunk))


def saved(folder: Path) -> list[Path]:
    """The checkpoints in a folder, in the order of preference for sampling."""
    numbers = (file.stem.removeprefix("last-") for file in folder.glob("last-*.pt"))
    previous = [older(folder / "last.pt", n) for n in sorted(int(n) for n in numbers if n.isdecimal())]
    return [file for file in (folder / "ckpt.pt", folder / "last.pt", *previous) if file.exists()]


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


def build_model(state: dict, device: torch.device | str = "cpu", take: bool = False, **changes) -> GPT:
    """The model in a checkpoint, with its weights. `changes` replace model_args (dropout, say).

    The weights are copied to `device` one by one; to "meta" none are. take: on the CPU they become the model's own
    instead, so that there is only one set of them; `state` must not be mapped from the file then, nor used again.
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
    if torch.device(device).type == "meta":
        return model
    take = take and torch.device(device).type == "cpu"
    if take:
        model.load_state_dict({name: tensor.float() for name, tensor in weights.items()}, assign=True)
        model.make_derived()
        return model
    model.allocate(device).load_state_dict(weights)
    return model
