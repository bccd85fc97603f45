"""One checkpoint file: written completely or not at all, and read with its checksums."""

import warnings
import zipfile
from contextlib import suppress
from pathlib import Path

import torch

from checkpoints.publish import beside, publish, write_failure
from data.progress import byte_bar
from system.files import sync


def save_checkpoint(path: Path | list[Path], state: dict, keep: int | None = None) -> None:
    """Writes `state` to a temporary file and publishes it as `path`, or as each of several paths.

    A kill or a full disk at any moment leaves the old checkpoints intact. keep: as in publish. Raises ValueError if
    the file cannot be written.
    """
    paths = [path] if isinstance(path, Path) else path
    temporary = beside(paths[0], "tmp")
    try:
        write_archive(temporary, state)
        publish(temporary, paths, keep)
    except (OSError, RuntimeError) as error:
        raise write_failure(paths[0], error) from error


def write_archive(path: Path, state: dict) -> None:
    """torch.save to a file that is on the disk afterwards, or removed if that fails."""
    try:
        with open(path, "wb") as file:
            torch.save(state, file)
            file.flush()
            sync(file)
    except BaseException:
        with suppress(OSError):
            path.unlink(missing_ok=True)
        raise


def read_archive(path: Path, verify: bool, mapped: bool = True) -> dict:
    """torch.load of tensors and plain values; see load_checkpoint. Raises many kinds of exceptions."""
    with open(path, "rb") as file:
        is_zip = file.read(2) == b"PK"  # files from before torch 1.6 have no checksums and cannot be mapped
    if is_zip:
        verify_archive(path, verify)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about unusual pickles; load_checkpoint reports what matters
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped and is_zip)


def verify_archive(path: Path, tensors: bool) -> None:
    """Compares a file with its CRC-32 checksums, which torch.load ignores: those of the pickle and, if `tensors`, of
    every tensor. Raises an exception where they differ."""
    with zipfile.ZipFile(path) as archive:
        members = [info for info in archive.infolist() if tensors or "/data/" not in info.filename]
        with progress_bar(path, sum(info.file_size for info in members)) as bar:
            for info in members:
                with archive.open(info) as member:
                    while chunk := member.read(2**22):  # BadZipFile at the end of a member that differs
                        bar.update(len(chunk))


def progress_bar(path: Path, total: int):
    """For checking `total` bytes; shown for more than 2 GiB, if stderr is a terminal."""
    return byte_bar(f"checking {path.name}", total, disable=None if total > 2**31 else True)
