"""Reading and saving the user's text safely, whatever signals, full disks and other programs do."""

import os
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from data.encodings import not_utf8
from system.files import replace, sync


class TextFile:
    """A file being edited or, with path None, a new text that is printed at the end. text: its content when opened,
    with LF line ends and without a byte-order mark. Raises ValueError if it cannot be edited (see read_source)."""

    def __init__(self, path: Path | None):
        self.path = path and path.resolve()
        self.content = read_source(path) if path else None
        source = (self.content or b"").decode("utf-8")
        self.mark = "\ufeff" if source.startswith("\ufeff") else ""  # Windows puts it before the text
        self.text = source.removeprefix(self.mark).replace("\r\n", "\n")
        self.newline, self.note = common_line_end(source)
        self.terminals = [stream for stream in (sys.stdout, sys.stderr) if stream.isatty()]

    def save_text(self, text: str, status: int) -> None:
        """Prints the text, or writes it to the file. If the editor failed (status) or another program has changed the
        file, the text goes to a new file beside it. Raises ValueError if it is not where the user expects it."""
        closed = [stream for stream in self.terminals if not stream.isatty()]
        for stream in closed:  # writing to it would fail, at the latest at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        content = to_bytes(self.mark + text.replace("\n", self.newline))
        path = self.path
        if path is None and sys.stdout in closed and content:
            rescue(Path.cwd() / "text", content)
        elif path is None:
            print_text(content)
        if path is None or text == self.text:
            return
        try:
            is_changed = (path.read_bytes() if path.exists() else None) != self.content
            if status or is_changed:
                unsaved = rescue(path, content)
            else:
                write_source(path, content)
        except OSError as error:
            print_text(content)
            raise ValueError(f"cannot write {path}: {error}; your text was printed instead") from error
        if status:
            print(f"note: {path.name} was not written, your text is in {unsaved}", file=sys.stderr)
        elif is_changed:
            raise ValueError(f"another program has changed {path}, so it was left alone: your text is in {unsaved}")
        elif self.note:
            print(f"note: {path.name} had {self.note}", file=sys.stderr)


def common_line_end(source: str) -> tuple[str, str]:
    """The more common line end, which all lines get when the text is saved, and a note if there are others."""
    crlf = source.count("\r\n")
    lf = source.count("\n") - crlf
    if crlf > lf:
        return "\r\n", f"{lf} LF among {crlf} CRLF line ends: all are CRLF now" if lf else ""
    return "\n", f"{crlf} CRLF among {lf} LF line ends: all are LF now" if crlf else ""


def read_source(path: Path) -> bytes | None:
    """The content of a file to edit, None if it does not exist yet. Raises ValueError if it cannot be read or written,
    or is not UTF-8."""
    exists, folder = path.exists(), path.resolve().parent
    if exists and not path.is_file():
        what = "a folder" if path.is_dir() else "not a regular file"
        raise ValueError(f"--file={path} is {what}: expected the path of a text file")
    if not folder.is_dir():
        raise ValueError(f"--file={path} is in a folder that does not exist: create it, or correct the path")
    # root can write anything, but a file without write permission is meant to stay as it is
    if exists and not (os.access(path, os.W_OK) and path.stat().st_mode & 0o222):
        raise ValueError(f"--file={path} is read-only: make it writable (chmod u+w), or edit a copy")
    if not os.access(folder, os.W_OK):
        raise ValueError(f"--file={path} is in a folder you may not write to: edit a copy elsewhere")
    try:
        content = path.read_bytes() if exists else None
        (content or b"").decode("utf-8")
    except OSError as error:
        raise ValueError(f"--file={path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(not_utf8(f"--file={path}", error)) from error
    return content


def to_bytes(text: str) -> bytes:
    """In UTF-8; bytes that were none as they were typed. Halves of a character that Windows sent one by one are joined,
    and a half alone becomes U+FFFD."""
    joined = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
    return re.sub("[\ud800-\udc7f\udd00-\udfff]", "\ufffd", joined).encode("utf-8", "surrogateescape")


def write_source(path: Path, content: bytes) -> None:
    """Replaces the file in one step, so that a full disk or a power failure leaves the old content. Nobody who may not
    read the file can read the new one at any time."""
    temporary, exists = path.with_name(f".{path.name}.{os.getpid()}.tmp"), path.exists()
    mode = path.stat().st_mode & 0o777 if exists else 0o666
    file = open(temporary, "xb", opener=lambda *args: os.open(*args, mode))  # one of that name is someone else's
    try:
        with file:
            file.write(content)
            file.flush()
            sync(file)
        if exists:  # the bits that the umask took away
            shutil.copymode(path, temporary)
        replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def rescue(path: Path, content: bytes) -> Path:
    """write_unsaved, in the system's temporary folder if it fails beside `path`."""
    try:
        return write_unsaved(path, content)
    except OSError:
        return write_unsaved(Path(tempfile.gettempdir()) / path.name, content)


def write_unsaved(path: Path, content: bytes) -> Path:
    """Writes PATH.unsaved or, where that exists, the first free name of PATH.unsaved.1, .2, ...; returns its path."""
    for number in count():
        target = path.with_name(f"{path.name}.unsaved" + f".{number}" * bool(number))
        try:
            open(target, "xb").close()  # reserves the name
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


def print_text(content: bytes) -> None:
    sys.stdout.flush()
    sys.stdout.buffer.write(content + b"\n" * (not content.endswith(b"\n") and bool(content)))
    sys.stdout.buffer.flush()


@contextmanager
def signals_to(handler: Callable) -> Iterator[None]:
    """Within the block, the signals that end a program call the handler instead."""
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]  # Windows
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old or signal.SIG_DFL)
