"""Publishing: what was written under a temporary name gets its own, so that a kill at any moment loses nothing.

A checkpoint here is a file or, in the sharded format, a folder.
"""

import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from itertools import count, takewhile
from pathlib import Path

from system.files import replace, sync_file, sync_folder


def publish(temporary: Path, paths: Sequence[Path], keep: int | None = None) -> None:
    """Renames `temporary` to the first path; the others become hard links to it, or copies where there are none.

    keep: how many versions of the last path to keep; older ones are path-1, path-2, … If a path cannot be written,
    raises OSError and removes the temporary files.
    """
    temporaries = [temporary, *(beside(path, "tmp") for path in paths[1:])]
    try:
        for other in temporaries[1:]:
            link_or_copy(temporary, other)
        for source, path in zip(temporaries, paths, strict=True):
            if keep is not None and path is paths[-1]:
                rotate(path, keep)
            replace_path(source, path)
    except OSError:
        for source in temporaries:
            with suppress(OSError):
                discard(source)
        raise
    with suppress(OSError):  # some network file systems cannot
        sync_folder(paths[0].parent)


def rotate(path: Path, keep: int) -> None:
    """Renames path-1 to path-2 and so on and makes path-1 of `path`, which stays until it is replaced; removes
    versions from number `keep` on."""
    for extra in takewhile(Path.exists, (version(path, number) for number in count(keep))):
        discard(extra)
    newest = version(path, 1)
    if keep < 2 or not path.exists() or (newest.exists() and newest.samefile(path)):  # the last after a kill
        return
    existing = sum(1 for _ in takewhile(Path.exists, (version(path, number) for number in range(1, keep - 1))))
    for number in range(existing, 0, -1):
        replace_path(version(path, number), version(path, number + 1))
    temporary = beside(newest, "tmp")
    try:
        discard(temporary)
        os.link(path, temporary)
        replace_path(temporary, newest)
    except OSError:  # folders and some file systems have no hard links: for a moment there is no last.pt
        replace_path(path, newest)


def replace_path(source: Path, target: Path) -> None:
    """os.replace for folders too. A kill may leave the old folder as target.old, which lock_folder restores."""
    if not target.is_dir() and not (source.is_dir() and target.exists()):
        replace(source, target)
        return
    old = beside(target, "old")
    discard(old)
    replace(target, old)
    replace(source, target)
    discard(old)


def link_or_copy(source: Path, target: Path) -> None:
    """Makes `target` a hard link to `source`, or a synced copy; a folder is copied file by file."""
    discard(target)
    if source.is_dir():
        shutil.copytree(source, target, copy_function=lambda old, new: link_or_copy(Path(old), Path(new)))
        return
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
        sync_file(target)


def discard(path: Path) -> None:
    """Removes a file or folder, if it exists."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def beside(path: Path, suffix: str) -> Path:
    return path.with_name(f"{path.name}.{suffix}")


def version(path: Path, number: int) -> Path:
    return path.with_name(f"{path.stem}-{number}{path.suffix}")


def saved_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, in order of preference for sampling."""
    numbers = (file.stem.removeprefix("last-") for file in folder.glob("last-*.pt"))
    older = [version(folder / "last.pt", n) for n in sorted(int(n) for n in numbers if n.isdecimal())]
    return [file for file in (folder / "ckpt.pt", folder / "last.pt", *older) if file.exists()]


def write_failure(path: Path, error: BaseException) -> ValueError:
    """The error to raise for a checkpoint that could not be written."""
    while not isinstance(error, OSError) and (error.__cause__ or error.__context__):
        error = error.__cause__ or error.__context__  # torch hides the disk's error behind one of its own
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
    with suppress(OSError):
        reason += f" ({shutil.disk_usage(path.parent).free / 1e6:,.0f} MB free there)"
    kept, remedy = saved_checkpoints(path.parent), "nothing has been saved so far"
    if kept:
        remedy = f"{kept[0].name} is intact: fix this, then resume with --init_from=resume"
    return ValueError(f"cannot write checkpoint {path}: {reason}; {remedy}")
