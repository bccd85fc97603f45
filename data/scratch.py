"""The folders that a prepare.py works in: a hidden one in the dataset's, which keeps what a killed run has finished, or
for a dry run a temporary one. A lock keeps others out."""

import hashlib
import json
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from data.dataset import os_errors
from system.files import lock_file

LOCK = ".prepare.lock"  # held while a folder is written to


def folder_beside(out_dir: Path) -> tempfile.TemporaryDirectory:
    """A temporary folder next to out_dir, where there is room; the system's is often in memory. Removes those of dry
    runs that were killed."""

    def leave(number: int, _: Any) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGHUP"):  # whose defaults would leave the folder behind
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), leave)
    parent = next((parent for parent in out_dir.absolute().parents if os.path.isdir(parent)), None)
    for stale in parent.glob(".dry-run-*") if parent else ():
        if is_abandoned(stale):
            shutil.rmtree(stale, ignore_errors=True)
    try:
        return tempfile.TemporaryDirectory(prefix=".dry-run-", dir=parent)
    except OSError:  # not writable
        return tempfile.TemporaryDirectory()


@contextmanager
def work_folder(folder: Path, settings: list) -> Iterator[Path]:
    """The folder in `folder` for parts made with these settings; finished ones stay there until all are.

    ValueError if another process works there.
    """
    key = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]
    work, is_new = folder / f".prepare-{key}", not folder.exists()
    with os_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        with locked(folder):
            with os_errors(folder):
                work.mkdir(exist_ok=True)
            try:
                yield work
            finally:
                if not any(work.glob("*.rows")):
                    shutil.rmtree(work, ignore_errors=True)
    finally:
        if is_new:
            with suppress(OSError):  # not empty
                folder.rmdir()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other prepares, whatever their settings, out of `folder`, at most until this process ends. ValueError
    if one is there already."""
    path = folder / LOCK
    with os_errors(folder):
        file = open(path, "wb")
    try:
        with file:
            if not take_lock(file, path):
                raise ValueError(f"another prepare.py is writing to {folder}: wait until it finishes, or stop it")
            try:
                yield
            finally:
                if os.name != "nt":  # removed while locked: later it may be another process's file
                    with suppress(OSError):
                        path.unlink()
    finally:
        if os.name == "nt":  # removes no file that a process has open
            with suppress(OSError):
                path.unlink()


def is_abandoned(folder: Path) -> bool:
    """Whether a process that was killed had locked this folder."""
    path = folder / LOCK
    try:
        with open(path, "r+b") as file:
            lock_file(file)
            return True
    except OSError:  # no lock, or a living process has it, or this file system has none
        return False


def take_lock(file: Any, path: Path) -> bool:
    """Locks `file`, opened from `path`, until it is closed. False if another process holds the lock."""
    try:
        lock_file(file)
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))  # not if its owner just removed it and ended
    except (BlockingIOError, PermissionError, FileNotFoundError):
        return False
    except OSError:
        return True  # a file system without locks
