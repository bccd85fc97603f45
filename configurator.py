"""A dataclass of settings, config files and --key=value arguments -> one typed config.

    config, explicit = configure(TrainConfig, sys.argv[1:])

    python train.py config/x.py --max_iters=100 --compile      later wins; a bare --flag means True
    python train.py --help                                     every key with default, type and meaning

A config file is Python that assigns to keys (`batch_size = 64`). It sees the current value of every key, so that
`lr_decay_iters = max_iters` works. It may also import, define functions and classes, and use names that start with an
underscore; any other name must be a key.

The dataclass documents itself: the comment on a field's line describes the field, and a comment on lines of its own is
the heading of a group. Field types are int, float, bool, str, None, Literal[...] and unions of these.
"""

import ast
import dataclasses
import difflib
import errno
import gc
import inspect
import io
import os
import reprlib
import shutil
import signal
import sys
import textwrap
import time
import tokenize
import traceback
from collections.abc import Callable
from contextlib import suppress
from itertools import groupby
from numbers import Integral, Real
from pathlib import Path
from types import ModuleType, NoneType, UnionType
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

WAIT_FOR_RANK_ZERO = 20  # seconds, for torchrun to end the other ranks
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
FILE_ERRORS = (*NO_ROOM, errno.EACCES, errno.EROFS, errno.ENOENT, errno.EISDIR, errno.ENOTDIR)  # what a user can mend
BOOL_WORDS = {"true": True, "1": True, "false": False, "0": False}
EARLY: dict[tuple, tuple[Any, set[str]]] = {}  # what read_early() has read, until configure() is asked for it


def configure(cls: type, argv: list[str]) -> tuple[Any, set[str]]:
    """Returns an instance of the dataclass `cls` and the names of the fields set explicitly, by argv or a file in it.

    The items of argv are applied in order: `path/to/file.py`, `--key=value` or, for a bool, `--key`. A value equal to
    the default is explicit too. `--help` or `-h` prints the keys and raises SystemExit(0). Every field of `cls` needs
    a default. Raises ValueError for everything a user can get wrong, with all unknown keys and wrong values at once.
    """
    if (cls, *argv) in EARLY:
        return EARLY.pop((cls, *argv))
    if "--help" in argv or "-h" in argv:
        print(help_text(cls))
        raise SystemExit(0)
    kinds = get_type_hints(cls)
    defaults = {field.name: field.default for field in dataclasses.fields(cls)}
    values, explicit, problems = dict(defaults), set(), []
    for item, following in zip(argv, [*argv, ""][1:], strict=True):
        is_text = item.startswith("-")
        for where, key, value in [read_option(item, following, kinds)] if is_text else run_file(item, values):
            if key not in defaults:
                nearest = difflib.get_close_matches(key, defaults, n=1, cutoff=0)[0]
                hint = "" if is_text else " (a helper variable's name starts with _)"
                problems.append(f"{where}: unknown key {key!r}, the nearest is {nearest!r}{hint}")
                continue
            try:
                values[key] = convert(value, kinds[key], is_text)
                explicit.add(key)
            except (ValueError, OverflowError):
                problems.append(f"{where}: {key} must be {kind_name(kinds[key])} (default {defaults[key]!r})")
    if problems:
        raise ValueError("; ".join(problems))
    return cls(**values), explicit


def read_early(cls: type, argv: list[str], validate: Callable[[Any], None] = lambda config: None) -> None:
    """Reads the settings of a command before its slow imports, so that --help and mistakes are answered at once. The
    next configure(cls, argv) returns them: a config file runs once. validate raises ValueError for settings that do not
    go together."""

    def read(_) -> None:
        config, explicit = configure(cls, argv)
        validate(config)
        EARLY[(cls, *argv)] = config, explicit

    answer_early(read)


def read_option(item: str, following: str, kinds: dict[str, Any]) -> tuple[str, str, str]:
    """One `--key=value` or `--flag` -> (where, key, text). following: the next item of the command line."""
    key, equals, value = item.lstrip("-").partition("=")
    where = f"command line: {item}"
    if not item.startswith("--"):
        raise ValueError(f"{where}: options start with two dashes: type -{item}")
    if equals:
        return where, key, value
    kind = kinds.get(key)
    is_flag = any(part is bool or part is True for part in (kind, *get_args(kind)))
    is_value = following.lower() in BOOL_WORDS if is_flag else following and not following.startswith("--")
    if is_value and not following.endswith(".py"):
        raise ValueError(f"{where} {following}: key and value must be one word: type {item}={following}")
    if key in kinds and not is_flag:
        raise ValueError(f"{where}: the value is missing: type {item}=VALUE, with {kind_name(kind)}")
    return where, key, "True"


class Namespace(dict):
    """The globals of a config file; `lines` has the line on which each name was last assigned."""

    def __init__(self, values: dict[str, Any]):
        super().__init__(values)
        self.lines: dict[str, int] = {}

    def __setitem__(self, name: str, value: Any) -> None:
        super().__setitem__(name, value)
        self.lines[name] = sys._getframe(1).f_lineno


def run_file(path: str, values: dict[str, Any]) -> list[tuple[str, str, Any]]:
    """Executes a config file with `values` in scope -> (where, key, value) of everything it assigned."""
    if not Path(path).is_file():
        raise ValueError(missing_file(path))
    scope = Namespace(values | {"__name__": "__config__", "__file__": path})
    try:
        tree = ast.parse(Path(path).read_bytes(), path)
        exec(compile(tree, path, "exec"), scope)
    except Exception as err:
        lines = [frame.lineno for frame in traceback.extract_tb(err.__traceback__) if frame.filename == path]
        line = lines[-1] if lines else getattr(err, "lineno", None) or 1
        raise ValueError(f"{path}:{line}: {type(err).__name__}: {err}") from err
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    imported = {(alias.asname or alias.name).split(".")[0] for node in imports for alias in node.names}
    assigned = []
    for name, value in scope.items():
        # `global name` in a function and globals().update() bypass __setitem__ and are recognized by the value
        is_set = name in scope.lines or value is not values.get(name)
        is_helper = name in imported or callable(value) or isinstance(value, ModuleType)
        if is_set and not name.startswith("_") and (name in values or not is_helper):
            assigned.append((scope.lines.get(name, 1), name, value))
    assigned.sort(key=lambda row: row[0])
    return [(f"{path}:{line}: {name} = {reprlib.repr(value)}", name, value) for line, name, value in assigned]


def convert(value: Any, kind: Any, is_text: bool) -> Any:
    """`value` as a plain Python value of type `kind`; ValueError if it is none. is_text: typed as --key=value."""
    if get_origin(kind) in (Union, UnionType):
        # None first, which only its own name matches; str last, which any text matches
        for member in sorted(get_args(kind), key=lambda member: (member is str, member is not NoneType)):
            with suppress(ValueError, OverflowError):
                return convert(value, member, is_text)
    elif get_origin(kind) is Literal:
        for choice in get_args(kind):
            with suppress(ValueError, OverflowError):
                if convert(value, type(choice), is_text) == choice:
                    return choice
    elif kind is NoneType:
        if value is None or is_text and value in ("None", "none"):
            return None
    elif kind is bool:
        if (is_text or isinstance(value, int)) and str(value).lower() in BOOL_WORDS:
            return BOOL_WORDS[str(value).lower()]
    elif kind is str and isinstance(value, str):
        return str(value)
    elif kind in (int, float) and is_text:
        try:
            return convert(int(value), kind, False)
        except ValueError:
            return convert(float(value), kind, False)
    # the abstract types accept numpy scalars, which must not get into a checkpoint
    elif kind is int and not isinstance(value, bool):
        if isinstance(value, Integral) or isinstance(value, Real) and float(value).is_integer():
            return int(value)
    elif kind is float and isinstance(value, Real) and not isinstance(value, bool):
        return float(value)
    raise ValueError


def kind_name(kind: Any) -> str:
    """int -> 'int', Literal['a', 'b'] -> 'one of a, b', int | None -> 'int or None'."""
    if get_origin(kind) is Literal:
        return "one of " * (len(get_args(kind)) > 1) + ", ".join(map(str, get_args(kind)))
    return " or ".join(map(kind_name, get_args(kind))) or ("None" if kind is NoneType else kind.__name__)


def missing_file(path: str) -> str:
    if "=" in path:
        return f"command line: {path}: options start with two dashes: type --{path}"
    known = {file.stem: file.as_posix() for file in sorted(Path("config").glob("*.py"))}
    close = [known[stem] for stem in difflib.get_close_matches(Path(path).stem, known, cutoff=0.5)]
    hint = f"did you mean {' or '.join(close)}?" if close else "options are written --key=value"
    return f"command line: {path or repr(path)}: no such config file; {hint}"


def help_text(cls: type) -> str:
    """The first two paragraphs of the docstring of cls's module, then all keys by group."""
    kinds = get_type_hints(cls)
    described = {field.name: ("", "") for field in dataclasses.fields(cls)} | describe(cls)
    lines = ["\n\n".join((sys.modules[cls.__module__].__doc__ or "").strip().split("\n\n")[:2])]
    width = max(80, shutil.get_terminal_size((110, 24)).columns - 1)
    for heading, group in groupby(dataclasses.fields(cls), key=lambda field: described[field.name][0]):
        lines += ["", heading]
        for field in group:
            is_plain = isinstance(field.default, str) and field.default.isprintable()
            left = f"  --{field.name}={field.default if is_plain else repr(field.default)}"
            text = f"{kind_name(kinds[field.name])}; {described.get(field.name, ('', ''))[1]}".rstrip("; ")
            lines.append(textwrap.fill(f"{left:<36}  {text}", width, subsequent_indent=" " * 38))
    return "\n".join(lines)


def describe(cls: type) -> dict[str, tuple[str, str]]:
    """{field: (heading of its group, description)}, from the comments in the source of `cls`."""
    source = textwrap.dedent(inspect.getsource(cls))
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = [(*t.start, t.string.lstrip("# ")) for t in tokens if t.type == tokenize.COMMENT]
    body = ast.parse(source).body[0].body
    indent, lines = body[0].col_offset, [0, *(node.lineno for node in body), sys.maxsize]
    described, heading = {}, ""
    for node, start, stop in zip([None, *body], lines[:-1], lines[1:], strict=True):
        found = [(column, text) for line, column, text in comments if start <= line < stop]
        if isinstance(node, ast.AnnAssign):
            described[node.target.id] = heading, " ".join(text for column, text in found if column > indent)
        heading = " ".join(text for column, text in found if column == indent) or heading
    return described


class ReportedByRankZero(ValueError):
    """An error that rank 0 prints, raised on another rank."""


def exit_on_error(main: Callable[[list[str]], int | None]) -> NoReturn:
    """Runs main(sys.argv[1:]) and exits with what it returns (None is 0).

    A ValueError, a full disk, a file that cannot be opened or too little memory is one line on stderr and exit status
    2, Ctrl-C a silent 130. TRACEBACK=1 in the environment shows the traceback too.
    """
    gc.freeze()  # what is imported stays to the end: the collector need not scan it again and again
    gc.enable()
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:  # since answer_early()
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        status = run_command(main)
    except Exception:
        if "RANK" not in os.environ:
            raise
        traceback.print_exc()  # now: Python's shutdown may wait for ranks that wait for this one
        status = 1
    leave(status)


def answer_early(parse: Callable[[list[str]], object]) -> None:
    """Runs parse(sys.argv[1:]), which answers --help, and exits as exit_on_error() does if it raises an error. Until
    exit_on_error() there are only imports, during which the garbage collector rests, a tenth of torch's time, and
    Ctrl-C ends the process at once: torch's libraries answer a KeyboardInterrupt with a traceback or an abort."""

    def run(argv: list[str]) -> None:
        parse(argv)

    status = run_command(run)
    if status is not None:
        leave(status)
    gc.disable()
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:  # not of a process that ignores it
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def leave(status: int | None) -> NoReturn:
    gc.freeze()  # else Python searches all memory for cycles before the system takes it back: a third of a second
    try:
        sys.stdout.flush()
    except OSError:  # a full disk, already reported
        silence_stdout()
    if "RANK" in os.environ:
        # DDP keeps gloo's threads after destroy_process_group, and a thread that frees its last tensor while Python
        # shuts down aborts the process (issue 190489 of PyTorch; 1 of 96 exits on a busy machine). All is saved: exit.
        sys.stderr.flush()
        os._exit(status or 0)
    sys.exit(status)


def run_command(main: Callable[[list[str]], int | None]) -> int | None:
    """Runs main(sys.argv[1:]) and reports the errors that a user can cause; returns the exit status."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by who started this
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
    for stream in (sys.stdin, sys.stdout, sys.stderr):  # a terminal says what it reads; a pipe may lack Chinese
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding=None if stream.isatty() else "utf-8", errors="replace")
    try:
        status = main(sys.argv[1:])
        sys.stdout.flush()  # here a full disk can still be reported
        return status
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader went away, as in `sample.py | head`
        silence_stdout()
        return 141
    except ValueError as error:
        report_error(error)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        reason = str(error).splitlines()[0] if str(error) else "no reason given"
        report_error(ValueError(f"too little memory ({reason}): use a smaller model, batch or block_size"))
    except OSError as error:
        if error.errno not in FILE_ERRORS:
            raise
        what = "write" if error.errno in NO_ROOM else "read or write"
        report_error(ValueError(f"cannot {what} {error.filename or 'standard output or a file'}: {error.strerror}"))
    return 2


def is_out_of_memory(error: BaseException) -> bool:
    """CUDA's and numpy's errors are known by their types (by name: this file does without torch), MPS's and a CPU's by
    their words, which are the system's."""
    words = "can't allocate memory", "Cannot allocate memory", "not enough memory", "MPS backend out of memory"
    is_known = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return is_known or any(word in str(error) for word in words)


def report_error(error: ValueError) -> None:
    """Prints an error in one line, once for all ranks: rank 0 at once, another only if it still runs after the time in
    which torchrun would have ended it because rank 0 failed too."""
    rank = os.environ.get("RANK", "0")
    if rank != "0":
        with suppress(KeyboardInterrupt):
            time.sleep(WAIT_FOR_RANK_ZERO)
        if isinstance(error, ReportedByRankZero):
            return
    if os.environ.get("TRACEBACK") == "1":
        traceback.print_exc()
    message = " ".join(line.strip() for line in str(error).splitlines()) or type(error).__name__
    print(f"error: {message}" if rank == "0" else f"error (rank {rank}): {message}", file=sys.stderr)


def silence_stdout() -> None:
    """Keeps Python from complaining at exit that standard output cannot be written."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
