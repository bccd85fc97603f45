"""What operating systems do differently with files: locks, renaming, and writes that survive a power failure."""

import errno
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import IO


def lock_file(file: IO) -> None:
    """Locks an open file until it is closed or the process ends, however it ends.

    Raises BlockingIOError if another process holds the lock, another OSError where the file system has no locks.
    On NFS, Linux forwards flock to the server, which releases the lock of a lost client. With the mount options
    local_lock (NFS) or localflock (Lustre), processes on different machines do not see each other's locks.
    """
    try:
        if os.name == "nt":
            import msvcrt

            file.seek(2**30)  # past the text: others could not read locked bytes
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
            raise BlockingIOError(error.errno, error.strerror) from error
        raise


def replace(source: Path, target: Path) -> None:
    """os.replace; on Windows again for two seconds while another program, such as a virus scanner, has one open."""
    for wait in (0.1, 0.4, 1.5) if os.name == "nt" else ():
        with suppress(PermissionError):
            return os.replace(source, target)
        time.sleep(wait)
    os.replace(source, target)


def sync(file: IO) -> None:
    """Waits until what was written to an open file is on the disk. On a Mac, fsync leaves it in the drive's cache."""
    if sys.platform == "darwin":
        import fcntl

        with suppress(OSError):  # some network file systems cannot
            fcntl.fcntl(file, fcntl.F_FULLFSYNC)
            return
    os.fsync(file.fileno())


def sync_file(path: Path) -> None:
    """Waits until a file's content is on the disk."""
    with open(path, "rb+") as file:  # Windows syncs only what it may write
        sync(file)


def sync_folder(folder: Path) -> None:
    """Waits until renames in a folder are on the disk. Windows cannot open a folder, and needs no help there."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
