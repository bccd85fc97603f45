"""What operating systems do differently with files: locks, and writes that survive a power failure."""

import errno
import os
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


def sync_file(path: Path) -> None:
    """Waits until a file's content is on the disk."""
    with open(path, "rb+") as file:  # Windows syncs only what it may write
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Waits until renames in a folder are on the disk. Windows cannot open a folder, and needs no help there."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
