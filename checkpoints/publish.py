"""The names of checkpoints in a folder: a finished file or folder takes its own, older ones move on."""

import os
import shutil
from contextlib import suppress
from pathlib import Path


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


def saved(folder: Path) -> list[Path]:
    """The checkpoints in a folder, in the order of preference for sampling."""
    numbers = (file.stem.removeprefix("last-") for file in folder.glob("last-*.pt"))
    previous = [older(folder / "last.pt", n) for n in sorted(int(n) for n in numbers if n.isdecimal())]
    return [file for file in (folder / "ckpt.pt", folder / "last.pt", *previous) if file.exists()]


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
