"""What protects the user's text: reading, saving, rescue, line ends and signals."""

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path


@contextmanager
def handling(handler: Callable) -> Iterator[None]:
    """Meanwhile the signals that end a program go to the handler."""
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]  # Windows
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old or signal.SIG_DFL)


def line_end(source: str) -> tuple[str, str]:
    """-> (the commoner line end, which becomes that of all lines; a note on the other if there is such)."""
    counts = {"LF": source.count("\n") - source.count("\r\n"), "CRLF": source.count("\r\n")}
    few, many = sorted(counts, key=counts.get) if counts["LF"] != counts["CRLF"] else ("CRLF", "LF")
    note = f"{counts[few]} {few} among {counts[many]} {many} line ends: all are {many} now" if counts[few] else ""
    return {"LF": "\n", "CRLF": "\r\n"}[many], note


def save(path: Path, found: bytes | None, content: bytes, status: int) -> None:
    """Writes the text into the file or, after an editor that was broken off or where another program has written the
    file meanwhile, into a new one beside it. found: what was in the file, None = there was none."""
    try:
        is_changed = (path.read_bytes() if path.exists() else None) != found
        if status or is_changed:
            target = rescue(path, content)
        else:
            write_source(path, content)
    except OSError as error:
        print_text(content)
        raise ValueError(f"cannot write {path}: {error}; the text is printed instead") from error
    if status:
        print(f"note: {path.name} is left as it is, the text is in {target}", file=sys.stderr)
    elif is_changed:
        raise ValueError(
            f"another program has changed {path} meanwhile: it is left alone, your text is in {target}; compare the two"
        )


def print_text(content: bytes) -> None:
    sys.stdout.flush()
    sys.stdout.buffer.write(content + b"\n" * (not content.endswith(b"\n") and bool(content)))
    sys.stdout.buffer.flush()


def read_source(path: Path) -> bytes | None:
    """The file's bytes, which are UTF-8; None = there is no such file."""
    try:
        content = path.read_bytes()
        content.decode("utf-8")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ValueError(f"--file={path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(
            f"--file={path} is not UTF-8 text ({error}): convert it before, as by "
            f"`iconv -f GBK -t UTF-8 {path} > new.txt`, with the encoding that it has"
        ) from error
    return content


def write_source(path: Path, content: bytes) -> None:
    """Replaces the file in one step, so that a full disk leaves the old one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    file = open(temporary, "xb")  # a file of that name is someone else's
    try:
        with file:
            file.write(content)
        if path.exists():
            shutil.copymode(path, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def rescue(path: Path, content: bytes) -> Path:
    """As write_unsaved, where that can't be in the system's folder for temporary files."""
    try:
        return write_unsaved(path, content)
    except OSError:
        return write_unsaved(Path(tempfile.gettempdir()) / path.name, content)


def write_unsaved(path: Path, content: bytes) -> Path:
    """Writes PATH.unsaved, or the first of PATH.unsaved.1, .2, ... that there is not yet -> its path."""
    for number in count():
        target = path.with_name(f"{path.name}.unsaved" + f".{number}" * bool(number))
        try:
            open(target, "xb").close()  # now the name is taken
        except FileExistsError:
            continue
        try:
            if path.exists():
                shutil.copymode(path, target)
            write_source(target, content)
            return target
        except OSError:
            target.unlink()
            raise


def check_file(path: Path) -> None:
    folder, is_there = path.resolve().parent, path.exists()
    if is_there and not path.is_file():
        what = "is a folder" if path.is_dir() else "is no plain file"
        raise ValueError(f"--file={path} {what}, expected a file's path")
    if not folder.is_dir():
        raise ValueError(f"--file={path} is in a folder that does not exist, expected a file's path")
    # root may write whatever the mode says: a file that nobody is to write is meant to stay as it is
    if is_there and not (os.access(path, os.W_OK) and path.stat().st_mode & 0o222):
        raise ValueError(f"--file={path} is read-only: make it writable (chmod u+w), or edit a copy")
    if not os.access(folder, os.W_OK):
        raise ValueError(f"--file={path} is in a folder that you may not write to: edit a copy elsewhere")
    read_source(path)
