"""configurator.py: command line and config files -> typed values, and what users read when they are wrong."""

import io
import os
import runpy
import subprocess
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import configurator
from configurator import configure


@dataclass
class Config:
    """Settings # with a hash that is no comment."""

    # data and files
    out_dir: str = "out"  # where checkpoints go
    start: str = "\n"  # prompt

    # model, of
    # GPT-2's shape
    n_layer: int = 12  # number of blocks, -1 is not one
    mlp: Literal["gelu", "swiglu"] = "gelu"  # feed-forward
    top_k: int | None = 200  # None samples from all

    # schedule
    learning_rate: float = 6e-4
    max_iters: int = 600000
    lr_decay_iters: int = 600000
    compile: Literal["auto", True, False] = "auto"
    log: bool | Literal["full"] = False
    width: Literal[64, 128] = 64
    eval_only: bool = False
    tag: str | None = None

    def steps(self):
        # a comment in a method describes no field
        return self.max_iters


def error_of(argv):
    with pytest.raises(ValueError) as caught:
        configure(Config, argv)
    return str(caught.value)


@pytest.fixture
def write(tmp_path):
    def write(text, name="x.py"):
        data = text if isinstance(text, bytes) else text.encode("utf-8")
        (tmp_path / name).write_bytes(data)
        return str(tmp_path / name)

    return write


# the command line


def test_no_arguments_give_the_dataclass_defaults_and_nothing_explicit():
    assert configure(Config, []) == (Config(), set())


@given(n_layer=st.integers(), learning_rate=st.floats(allow_nan=False), out_dir=st.text(), log=st.booleans())
def test_value_that_python_prints_arrives_as_the_same_value(**values):
    config, explicit = configure(Config, [f"--{key}={value}" for key, value in values.items()])
    assert {key: getattr(config, key) for key in explicit} == values


@pytest.mark.parametrize(
    "option, expected",
    [
        ("--top_k=-1", -1),
        ("--top_k=None", None),
        ("--top_k=none", None),
        ("--max_iters=1_000", 1000),
        ("--max_iters=2e3", 2000),
        ("--learning_rate=1", 1.0),
        ("--learning_rate=1e-3", 0.001),
        ("--out_dir=123", "123"),
        ("--out_dir=a=b", "a=b"),
        ('--start="x"', '"x"'),
        ("--start=", ""),
        ("--out_dir=None", "None"),
        ("--tag=None", None),
        ("--tag=5", "5"),
        ("--mlp=swiglu", "swiglu"),
        ("--eval_only", True),
        ("--eval_only=true", True),
        ("--eval_only=0", False),
        ("--compile", True),
        ("--compile=false", False),
        ("--compile=auto", "auto"),
        ("--log", True),
        ("--log=full", "full"),
        ("--width=128", 128),
    ],
)
def test_text_becomes_the_type_of_its_field(option, expected):
    key = option[2:].split("=")[0]
    value = getattr(configure(Config, [option])[0], key)
    assert value == expected and type(value) is type(expected)


@pytest.mark.parametrize(
    "argv, parts",
    [
        (["--max_iter=5"], ["--max_iter=5", "unknown key 'max_iter'", "nearest is 'max_iters'"]),
        (["--max-iters=5"], ["'max-iters'", "nearest is 'max_iters'"]),
        (["--foo=1", "--n_layers=2"], ["'foo'", "'n_layers'", "'n_layer'"]),
        (["--no_such_flag"], ["'no_such_flag'"]),
        (["--max_iters=abc"], ["--max_iters=abc", "must be int", "600000"]),
        (["--max_iters=1.5"], ["must be int"]),
        (["--max_iters=inf"], ["must be int"]),
        (["--max_iters=True"], ["must be int"]),
        (["--learning_rate=fast"], ["must be float"]),
        (["--learning_rate=" + "9" * 400], ["must be float"]),
        (["--eval_only=2"], ["must be bool"]),
        (["--eval_only="], ["must be bool"]),
        (["--mlp=relu"], ["must be one of gelu, swiglu", "default 'gelu'"]),
        (["--compile=maybe"], ["must be one of auto, True, False"]),
        (["--log=maybe"], ["must be bool or full"]),
        (["--width=65"], ["must be one of 64, 128"]),
        (["--compile", "True"], ["type --compile=True"]),
        (["--top_k=1.5"], ["must be int or None"]),
        (["--max_iters", "5"], ["--max_iters 5", "type --max_iters=5"]),
        (["--top_k", "-1"], ["type --top_k=-1"]),
        (["--eval_only", "False"], ["type --eval_only=False"]),
        (["--max_iters"], ["--max_iters=VALUE", "int"]),
        (["--max_iters", "--eval_only"], ["--max_iters=VALUE", "int"]),
        (["-max_iters=5"], ["type --max_iters=5"]),
        (["max_iters=5"], ["type --max_iters=5"]),
    ],
)
def test_wrong_command_line_is_one_message_that_names_key_value_and_remedy(argv, parts):
    message = error_of(argv)
    assert all(part in message for part in parts), message
    assert "\n" not in message


# config files


def test_file_gives_what_python_itself_computes_from_it(write):
    path = write(
        "import math\nfrom math import pi as angle\n_half = 3\ndef scale(x):\n    return x * _half\n"
        "max_iters = scale(2)\nlr_decay_iters = max_iters\nlearning_rate = angle * 1e-4\n"
        "n_layer *= 2\nout_dir = 'out-' + str(math.floor(2.5))\ntop_k = None\n"
    )
    config, explicit = configure(Config, [path])
    oracle = runpy.run_path(path, init_globals={"n_layer": Config.n_layer})
    assert explicit == {"max_iters", "lr_decay_iters", "learning_rate", "n_layer", "out_dir", "top_k"}
    assert {key: getattr(config, key) for key in explicit} == {key: oracle[key] for key in explicit}


def test_later_items_win_and_a_file_sees_what_came_before_it(write):
    first = write("max_iters = 10\nn_layer = 2\n", "a.py")
    second = write("lr_decay_iters = max_iters\n", "b.py")
    config, explicit = configure(Config, [first, "--max_iters=20", second, "--n_layer=3"])
    assert (config.max_iters, config.lr_decay_iters, config.n_layer) == (20, 20, 3)
    assert explicit == {"max_iters", "lr_decay_iters", "n_layer"}
    config, _ = configure(Config, ["--n_layer=3", first])
    assert config.n_layer == 2


def test_assignment_equal_to_the_default_is_explicit(write):
    assert configure(Config, [write("n_layer = 12\n")])[1] == {"n_layer"}
    assert configure(Config, ["--n_layer=12"])[1] == {"n_layer"}


def test_assignment_in_a_function_or_through_globals_counts(write):
    path = write("def deep():\n    global n_layer\n    n_layer = 3\n\ndeep()\nglobals().update(tag='x')\n")
    config, explicit = configure(Config, [path])
    assert (config.n_layer, config.tag, explicit) == (3, "x", {"n_layer", "tag"})


def test_file_may_import_all_names_of_another_config(write, monkeypatch, tmp_path):
    write("n_layer = 3\nmax_iters = 7\n", "base_config_of_this_test.py")
    monkeypatch.syspath_prepend(tmp_path)
    config, explicit = configure(Config, [write("from base_config_of_this_test import *\nmax_iters = 8\n")])
    assert (config.n_layer, config.max_iters, explicit) == (3, 8, {"n_layer", "max_iters"})


def test_file_with_byte_order_mark_crlf_and_chinese_is_read(write):
    config, _ = configure(Config, [write("\ufeffout_dir = '红楼梦'\r\nn_layer = 1\r\n")])
    assert (config.out_dir, config.n_layer) == ("红楼梦", 1)


def test_numpy_scalars_become_plain_python_values(write):
    text = "n_layer = np.int64(3)\nlearning_rate = np.float32(0.5)\nout_dir = np.str_('x')\nmax_iters = 1e3\n"
    config, _ = configure(Config, [write("import numpy as np\n" + text)])
    values = config.n_layer, config.learning_rate, config.out_dir, config.max_iters
    assert values == (np.int64(3), np.float32(0.5), np.str_("x"), 1000)
    assert list(map(type, values)) == [int, float, str, int]


@pytest.mark.parametrize(
    "text, line, parts",
    [
        ("max_iter = 5\n", 1, ["'max_iter'", "'max_iters'"]),
        ("n_layer = 1\nhelper = 5\nfoo = 2\n", 2, ["'helper'", "starts with _", "x.py:3: foo = 2", "'foo'"]),
        ("\n\nn_layer = 'many'\n", 3, ["n_layer = 'many'", "must be int", "default 12"]),
        ("n_layer = '12'\n", 1, ["must be int"]),
        ("n_layer = True\n", 1, ["must be int"]),
        ("learning_rate = None\n", 1, ["must be float"]),
        ("learning_rate = True\n", 1, ["must be float"]),
        ("eval_only = 'true'\n", 1, ["must be bool"]),
        ("learning_rate = 10**400\n", 1, ["must be float"]),
        ("mlp = 'relu'\n", 1, ["must be one of gelu, swiglu"]),
        ("width = '64'\n", 1, ["must be one of 64, 128"]),
        ("def out_dir():\n    pass\n", 1, ["must be str"]),
        ("n_layer = 1\nx = = 2\n", 2, ["SyntaxError"]),
        ("n_layer = 1\n\ndef f():\n    return 1 / 0\n\nf()\n", 4, ["ZeroDivisionError"]),
        ("lr_decay_iters = max_iter\n", 1, ["NameError", "max_iter"]),
        ("n_layer = 1\nimport no_such_module_at_all\n", 2, ["no_such_module_at_all"]),
        ("n_layer = 1\nout_dir = '红'\n".encode("gb18030"), 2, ["utf-8"]),
    ],
)
def test_wrong_file_is_one_message_with_file_and_line(write, text, line, parts):
    message = error_of([write(text)])
    assert f"x.py:{line}: " in message and all(part in message for part in parts), message
    assert "\n" not in message


def test_problems_are_all_reported_in_the_order_in_which_they_stand(write):
    path = write("foo = 1\nn_layer = 'x'\nbar = 2\nout_dir = 3\n")
    message = error_of(["--first=1", path, "--max_iters=x"])
    places = [
        message.index(f"{part}: ")
        for part in (
            "--first=1",
            "x.py:1: foo = 1",
            "x.py:2: n_layer = 'x'",
            "x.py:3: bar = 2",
            "x.py:4: out_dir = 3",
            "--max_iters=x",
        )
    ]
    assert places == sorted(places) and message.count("; ") == len(places) - 1


def test_flag_before_a_file_is_a_flag(write):
    path = write("n_layer = 3\n")
    config, _ = configure(Config, ["--eval_only", path])
    assert config.eval_only is True and config.n_layer == 3
    assert "unknown key 'evalonly', the nearest is 'eval_only'" in error_of(["--evalonly", path])


def test_missing_file_names_the_nearest_ones_in_config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config").mkdir()
    for name in ("gpt2.py", "hongloumeng.py"):
        (tmp_path / "config" / name).touch()
    for typed in ("config/gtp2.py", "gpt2"):
        message = error_of([typed])
        assert f"{typed}: no such config file" in message and "config/gpt2.py" in message
        assert "hongloumeng" not in message
    assert "no such config file" in error_of(["config"]) and "no such config file" in error_of([""])


# --help and exit codes


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_shows_every_key_with_default_type_and_comment_by_group(flag, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit) as exited:
        configure(Config, ["--n_layer=1", flag])
    lines = capsys.readouterr().out.splitlines()
    assert exited.value.code == 0 and lines[0] == sys.modules[__name__].__doc__.strip()
    outline = [line.split("=")[0].strip() for line in lines[1:]]
    keys = [f"--{field.name}" for field in fields(Config)]
    assert outline == [
        "",
        "data and files",
        *keys[:2],
        "",
        "model, of GPT-2's shape",
        *keys[2:5],
        "",
        "schedule",
        *keys[5:],
    ]
    by_key = {line.split("=")[0].strip(): line.split(maxsplit=1) for line in lines if line.startswith("  --")}
    assert by_key["--n_layer"] == ["--n_layer=12", "int; number of blocks, -1 is not one"]
    assert by_key["--mlp"] == ["--mlp=gelu", "one of gelu, swiglu; feed-forward"]
    assert by_key["--start"] == [r"--start='\n'", "str; prompt"]
    assert by_key["--tag"] == ["--tag=None", "str or None"]


def run_main(tmp_path, body, wait=0, **env):
    script = tmp_path / "script.py"
    script.write_text(
        f"import os\n\nimport configurator\nfrom configurator import ReportedByRankZero, exit_on_error\n\n"
        f"configurator.WAIT_FOR_RANK_ZERO = {wait}\n\ndef main(argv):\n    {body}\n\n"
        "exit_on_error(main)\n",
        encoding="utf-8",
    )
    repo = str(Path(configurator.__file__).parent)
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "TRACEBACK")}
    return subprocess.run(
        [sys.executable, str(script), "--a=1"],
        capture_output=True,
        text=True,
        timeout=600,
        env=environment | {"PYTHONPATH": repo} | env,
    )


@pytest.mark.parametrize(
    "body, env, status, stderr",
    [
        ("return None", {}, 0, ""),
        ("return 143", {}, 143, ""),
        ("configurator.answer_early(lambda argv: 0); return 7", {}, 7, ""),  # whatever it returns, the command runs
        ("return 7 * (argv == ['--a=1'])", {}, 7, ""),
        ("raise ValueError('one\\n  two')", {}, 2, "error: one two\n"),
        ("raise ValueError", {}, 2, "error: ValueError\n"),
        ("raise ValueError('one')", {"RANK": "0"}, 2, "error: one\n"),
        ("raise ValueError('one')", {"RANK": "1"}, 2, "error (rank 1): one\n"),
        ("raise ReportedByRankZero('one')", {"RANK": "1"}, 2, ""),
        ("raise ReportedByRankZero('one')", {"RANK": "0"}, 2, "error: one\n"),
        (
            "raise OSError(28, 'No space left on device')",
            {},
            2,
            "error: cannot write standard output or a file: No space left on device\n",
        ),
        (
            "os.dup2(os.open('/dev/full', os.O_WRONLY), 1); print('x')",
            {},
            2,
            "error: cannot write standard output or a file: No space left on device\n",
        ),
        (
            "open('no/such.txt')",
            {},
            2,
            "error: cannot read or write no/such.txt: No such file or directory\n",
        ),
        (
            "import errno; raise OSError(errno.EROFS, 'Read-only file system', '/mnt/a.bin')",
            {},
            2,
            "error: cannot read or write /mnt/a.bin: Read-only file system\n",
        ),
        (
            "import errno; raise OSError(errno.EDQUOT, 'Disk quota exceeded', 'out/last.pt')",
            {},
            2,
            "error: cannot write out/last.pt: Disk quota exceeded\n",
        ),
        (
            "raise MemoryError",
            {},
            2,
            "error: too little memory (no reason given): use a smaller model, batch or block_size\n",
        ),
        (
            "raise PermissionError(13, 'Permission denied', 'x.txt')",
            {},
            2,
            "error: cannot read or write x.txt: Permission denied\n",
        ),
        ("raise KeyboardInterrupt", {}, 130, ""),
        ("raise BrokenPipeError", {}, 141, ""),
    ],
)
def test_exit_status_and_stderr_of_a_command(tmp_path, body, env, status, stderr):
    result = run_main(tmp_path, body, **env)
    assert (result.returncode, result.stdout, result.stderr) == (status, "", stderr)


@pytest.mark.parametrize("is_terminal, encoding", [(False, "utf-8"), (True, "gbk")])
def test_pipes_are_utf8_and_terminals_what_they_say(monkeypatch, is_terminal, encoding):
    class Stream(io.TextIOWrapper):
        def isatty(self):
            return is_terminal

    typed, shown = io.BytesIO("宝玉".encode(encoding) + b"\xff"), io.BytesIO()
    monkeypatch.setattr(sys, "stdin", Stream(typed, encoding="gbk"))
    monkeypatch.setattr(sys, "stdout", Stream(shown, encoding="gbk"))
    configurator.run_command(lambda argv: print(sys.stdin.read(), end="\U0001f642"))
    assert shown.getvalue() == "宝玉\ufffd\U0001f642".encode(encoding, "replace")


def test_memory_that_is_full_is_known_by_the_errors_of_the_libraries():
    for allocate in (lambda: torch.empty(2**50), lambda: np.empty(2**50)):
        with pytest.raises((RuntimeError, MemoryError)) as caught:
            allocate()
        assert configurator.is_out_of_memory(caught.value)
    assert configurator.is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    assert not configurator.is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_a_rank_leaves_before_python_shuts_down(tmp_path):
    """What a thread of the process group may do at that time (here: abort) does not matter any more."""
    body = "import atexit, os; atexit.register(os.abort); print('done'); return 3"
    result = run_main(tmp_path, body, RANK="1")
    assert (result.returncode, result.stdout, result.stderr) == (3, "done\n", "")


def test_traceback_is_shown_when_asked_for_and_for_errors_that_are_no_user_errors(tmp_path):
    asked = run_main(tmp_path, "raise ValueError('one')", TRACEBACK="1")
    assert asked.returncode == 2 and "in main" in asked.stderr and asked.stderr.endswith("\nerror: one\n")
    bug = run_main(tmp_path, "raise KeyError('bug')")
    assert bug.returncode == 1 and "KeyError" in bug.stderr
