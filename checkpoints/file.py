"""One checkpoint file: written whole or not at all, read with its checksums."""

import os
import warnings
import zipfile
from contextlib import suppress
from pathlib import Path

import torch

from checkpoints.publish import beside, not_written, publish


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
