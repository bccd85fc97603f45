"""The tree, read by ast: imports go down only and in no circle, functions are short, a name means one thing."""

import ast
import sys
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# what imports go down through, lazy ones included; a module may import its own level and those above it in this list
LEVELS = (
    ("model", "configurator", "system.cpu", "system.device", "system.dtypes", "system.files", "system.quota"),
    ("data", "system"),
    ("checkpoints", "inference"),
    ("training", "evaluation", "completion"),
    ("serving", "benchmarks"),
)
COMMANDS = ("train", "sample", "eval", "complete", "serve", "export", "plan", "plot", "bench", "quickstart")
LONGEST = 50  # lines of a function
LONGER = {("train.py", "train"): 200}  # the visible loop


def module_name(path: Path) -> str:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__")


FOLDERS = sorted(path.parent.name for path in ROOT.glob("*/__init__.py"))
IGNORED = ("tests", "config", "venv")  # and folders that begin with a dot
TOPS = [path for path in ROOT.iterdir() if path.name not in IGNORED and not path.name.startswith(".")]
PATHS = [path for top in TOPS for path in ([top] if top.suffix == ".py" else top.rglob("*.py"))]
FILES = {module_name(path): path for path in PATHS}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}


def imported(tree: ast.Module) -> set[str]:
    """All that a module imports, at any depth, by full name: `from a import b` is a.b where that is a module."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__", "run_path")):
            names.add(f"by name: {ast.unparse(node)}")
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            parts = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {part for part in parts if part in FILES} or {node.module}
    return names


GRAPH = {name: imported(tree) & FILES.keys() for name, tree in TREES.items()}


def level(name: str) -> int:
    """Its place in LEVELS; commands, with those of the datasets, come last."""
    if name in COMMANDS or name.endswith((".prepare", ".make")) or name.startswith("docs."):
        return len(LEVELS)
    folder = name.partition(".")[0]
    for i, members in enumerate(LEVELS):
        if name in members or folder in members and folder in FOLDERS and name.count(".") < 2:
            return i
    raise AssertionError(f"{name} is in no folder of LEVELS, and no command")


def test_every_module_has_a_level():
    assert {name for name in FILES if "." not in name} == {*COMMANDS, *FOLDERS, "model", "configurator"}
    for name in FILES:
        level(name)


def test_only_bench_and_the_loggers_import_by_name():
    found = {name for name, tree in TREES.items() if any(other.startswith("by name") for other in imported(tree))}
    assert found <= {"bench", "training.metrics"}


def test_no_module_imports_itself_by_a_detour():
    done, path = set(), []

    def visit(name):
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name not in done:
            path.append(name)
            for other in sorted(GRAPH[name]):
                visit(other)
            path.pop()
            done.add(name)

    for name in GRAPH:
        visit(name)


def test_imports_go_down_only_and_nothing_imports_a_command():
    up = [f"{a} imports {b}" for a, others in GRAPH.items() for b in others if level(b) > level(a)]
    up += [f"{a} imports the command {b}" for a, others in GRAPH.items() for b in others if level(b) == len(LEVELS)]
    assert not up


def test_model_imports_torch_alone():
    outside = {name.partition(".")[0] for name in imported(TREES["model"])} - set(sys.stdlib_module_names)
    assert outside == {"torch"}


def test_no_function_is_long():
    long = []
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines, file = node.end_lineno - node.lineno + 1, FILES[name].relative_to(ROOT).as_posix()
                if lines > LONGER.get((file, node.name), LONGEST):
                    long.append(f"{file}: {node.name} has {lines} lines")
    assert not long


def test_a_name_is_defined_once():
    """Functions, classes and constants at the top of a module; every command has its main, and its own validate."""
    places = defaultdict(list)
    for name, tree in TREES.items():
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                names = {node.name} - ({"main", "validate"} if level(name) == len(LEVELS) else set())
            elif isinstance(node, ast.Assign):
                names = {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
            else:
                continue
            for defined in names - {"HERE", "ROOT"}:  # where a file is
                places[defined].append(name)
    assert not {name: modules for name, modules in places.items() if len(set(modules)) > 1}


@pytest.mark.parametrize("file, most", [("model.py", 520), ("train.py", 450)])
def test_the_two_central_files_can_be_read_in_one_sitting(file, most):
    assert len((ROOT / file).read_text(encoding="utf-8").splitlines()) <= most


def test_contributing_has_a_line_for_every_file():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = set()
    folder = ""
    for line in text.partition("## The tree")[2].partition("```")[2].partition("```")[0].splitlines():
        word = line.split()[0] if line.split() else ""
        if word.endswith("/"):
            folder = word
        elif word:
            named.add((folder if line.startswith(" ") else "") + word)
    expected = {path.relative_to(ROOT).as_posix() for path in FILES.values() if path.name != "__init__.py"}
    assert named == {file for file in expected if not file.endswith("/prepare.py")}
