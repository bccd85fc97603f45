"""data/*/prepare.py, run as a user would: known numbers, faithful text, stable splits, harmless kills."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from data.dataset import open_dataset

DATA = Path(__file__).resolve().parents[1] / "data"
HARD_TEXT = "\ufeff第一回\u3000甄士隐\r\n\u3000\u3000列位看官\r\n𠀀𪚥 emoji 👩‍👩‍👧 \x00\x85\u2028\rend\n" * 5


def prepare(name, *argv):
    """Run the main of a script in this process."""
    spec = importlib.util.spec_from_file_location("prepare", DATA / name / "prepare.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.main([str(item) for item in argv])


def script(name, *argv, driver=()):
    command = [sys.executable, *driver, str(DATA / name / "prepare.py"), *map(str, argv)]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=100)


def text_of(dataset, split):
    return dataset.tokenizer.decode(dataset.array(split))


def counts(folder):
    meta = open_dataset(folder).meta
    return meta["vocab_size"], meta["splits"]["train"]["tokens"], meta["splits"]["val"]["tokens"]


# ---- text by characters ------------------------------------------------------------------------------------


def test_tinyshakespeare_has_nanogpts_numbers(tmp_path, shared_data):
    prepare("shakespeare_char", "--input", shared_data("tinyshakespeare.txt"), "--out_dir", tmp_path)
    assert counts(tmp_path) == (65, 1_003_854, 111_540)


def test_hongloumeng_has_the_known_numbers(tmp_path, shared_data):
    path = shared_data("hongloumeng.txt")
    prepare("hongloumeng", "--input", path, "--out_dir", tmp_path)
    assert counts(tmp_path) == (4_435, 791_045, 87_894)
    dataset = open_dataset(tmp_path)
    with open(path, encoding="utf-8") as file:  # Python's own universal newlines, as nanoGPT reads
        assert text_of(dataset, "train") + text_of(dataset, "val") == file.read()


@pytest.mark.parametrize("name, options", [
    ("shakespeare_char", []), ("hongloumeng", []), ("hongloumeng", ["--tokenizer=byte"]),
    ("hongloumeng", ["--tokenizer=bpe", "--vocab_size=300"]),
])
def test_several_files_come_back_in_order_and_unchanged(tmp_path, name, options):
    texts = [HARD_TEXT, "二\r\n" * 30]
    for i, text in enumerate(texts):
        (tmp_path / f"{i}.txt").write_bytes(text.encode())
    paths = [tmp_path / "0.txt", tmp_path / "1.txt"]
    prepare(name, "--input", *paths, f"--out_dir={tmp_path / 'out'}", *options)
    dataset = open_dataset(tmp_path / "out")
    eot = [] if dataset.tokenizer.eot is None else [dataset.tokenizer.eot]
    ids = [i for split in ("train", "val") for i in dataset.array(split).tolist() if i not in eot]
    assert dataset.tokenizer.decode(ids) == "".join(texts)
    assert dataset.bytes("train") + dataset.bytes("val") == len("".join(texts).encode())
    cut = int(len("".join(texts)) * 0.9)
    assert dataset.bytes("train") == len("".join(texts)[:cut].encode())


def test_encoding_and_normalize_are_recorded_and_done(tmp_path):
    (tmp_path / "old.txt").write_bytes(("红楼梦\r\n" * 20).encode("gb18030"))
    prepare("hongloumeng", f"--input={tmp_path / 'old.txt'}", f"--out_dir={tmp_path / 'out'}",
            "--encoding=gb18030", "--normalize", "--val_fraction=0.25")
    dataset = open_dataset(tmp_path / "out")
    assert (text_of(dataset, "train"), text_of(dataset, "val")) == ("红楼梦\n" * 15, "红楼梦\n" * 5)
    source = dataset.meta["source"]
    assert (source["from"], source["bytes"], source["encoding"], source["normalize"]) == (
        "old.txt", 160, "gb18030", True)


def test_the_same_text_gives_the_same_files(tmp_path):
    (tmp_path / "a.txt").write_bytes(HARD_TEXT.encode() * 20)
    for out in ("one", "two"):
        prepare("hongloumeng", "--input", tmp_path / "a.txt", "--out_dir", tmp_path / out, "--tokenizer=bpe",
                "--vocab_size=280")
    for name in ("train.bin", "val.bin", "meta.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_the_report_has_the_numbers_and_the_next_command(tmp_path, capsys):
    (tmp_path / "a.txt").write_bytes(("红楼梦a" * 1000).encode())
    prepare("hongloumeng", "--input", tmp_path / "a.txt", "--out_dir", tmp_path / "out")
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["train", "3,600", "9,000", "3,600", "2.50"] in lines
    assert ["val", "400", "1,000", "400", "2.50"] in lines
    assert ["all", "4,000", "10,000", "4,000", "2.50"] in lines
    assert ["vocab", "4", "(char),"] == lines[-3][:3]
    assert lines[-1][1:3] == ["python", "train.py"] and f"--dataset={tmp_path / 'out'}" in lines[-1]


def test_a_dry_run_reports_and_writes_nothing(tmp_path, capsys):
    (tmp_path / "a.txt").write_bytes(b"abc" * 100)
    prepare("shakespeare_char", "--input", tmp_path / "a.txt", "--out_dir", tmp_path / "out", "--dry_run")
    assert "270" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["shakespeare_char", "hongloumeng", "pycode"])
def test_errors_are_one_line_and_status_2(tmp_path, name):
    (tmp_path / "old.py").write_bytes("红楼梦".encode("gb18030"))
    result = script(name, "--input", tmp_path / "old.py", "--out_dir", tmp_path / "out")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.count("\n") == 1
    assert str(tmp_path / "old.py") in result.stderr and "offset 0 " in result.stderr
    assert not (tmp_path / "out").exists()


# ---- pycode ------------------------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path):
    """40 different files, an exact copy, and what is to be left out."""
    folder = tmp_path / "tree"
    for i in range(40):
        path = folder / f"package{i % 4}" / f"module{i}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# {i}\n" + f"x{i} = '汉字'\n" * (i + 1), encoding="utf-8", newline="\n")
    shutil.copy(folder / "package0" / "module0.py", folder / "copy.py")
    (folder / "empty.py").touch()
    (folder / "notes.txt").write_text("no Python", encoding="utf-8")
    for skipped in ("site-packages", "__pycache__", ".git"):
        (folder / skipped).mkdir()
        (folder / skipped / "no.py").write_text("no = 1", encoding="utf-8")
    return folder


def documents(folder):
    """{split: set of texts}, cut at the end-of-text ids; every document must end with one."""
    dataset = open_dataset(folder)
    found = {}
    for split in ("train", "val"):
        ids = dataset.array(split).tolist()
        assert ids[-1] == dataset.meta["eot"] == dataset.tokenizer.eot
        texts = [[]]
        for i in ids:
            texts[-1].append(i) if i != dataset.tokenizer.eot else texts.append([])
        texts = [dataset.tokenizer.decode(text) for text in texts[:-1]]
        assert len(texts) == len(set(texts)) == dataset.meta["splits"][split]["documents"]
        assert sum(len(text.encode()) for text in texts) == dataset.bytes(split)
        found[split] = set(texts)
    return found


@pytest.mark.parametrize("options", [["--tokenizer=byte"], ["--vocab_size=300"]])
def test_every_file_is_whole_in_one_split_and_ends_with_eot(tmp_path, tree, options):
    prepare("pycode", "--input", tree, "--out_dir", tmp_path / "out", *options)
    found = documents(tmp_path / "out")
    expected = {path.read_bytes().decode() for path in tree.glob("package*/*.py")}
    assert found["train"] | found["val"] == expected and not found["train"] & found["val"]
    assert found["train"] and found["val"]


def test_names_folders_and_other_files_do_not_move_a_file_between_splits(tmp_path, tree):
    options = ["--tokenizer=byte", "--val_fraction=0.3"]
    prepare("pycode", "--input", tree, "--out_dir", tmp_path / "out", *options)
    moved = tmp_path / "moved"
    for path in tree.glob("package*/*.py"):
        target = moved / path.name[::-1].replace(".", "_")
        target.mkdir(parents=True)
        shutil.copy(path, target / "m.py")
    prepare("pycode", "--input", moved, "--out_dir", tmp_path / "again", *options)
    for name in ("train.bin", "val.bin"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    (moved / "new.py").write_text("new = 1", encoding="utf-8")
    prepare("pycode", "--input", moved, "--out_dir", tmp_path / "more", *options)
    before, after = documents(tmp_path / "out"), documents(tmp_path / "more")
    assert before["train"] <= after["train"] and before["val"] <= after["val"]


def test_max_bytes_limits_the_source_and_chooses_the_same_each_time(tmp_path, tree):
    options = ["--tokenizer=byte", "--max_bytes=5000"]
    for out in ("one", "two"):
        prepare("pycode", "--input", tree, "--out_dir", tmp_path / out, *options)
    found = documents(tmp_path / "one")
    assert found == documents(tmp_path / "two")
    assert 4000 < sum(len(text.encode()) for text in found["train"] | found["val"]) <= 5000


def test_two_files_are_enough_and_one_is_not(tmp_path, tree):
    files = [tree / "package0" / "module0.py", tree / "package1" / "module1.py"]
    options = ["--tokenizer=byte", "--val_fraction=1e-9"]
    prepare("pycode", "--input", *files, "--out_dir", tmp_path / "out", *options)
    assert all(len(texts) == 1 for texts in documents(tmp_path / "out").values())
    with pytest.raises(ValueError, match="need at least 2"):
        prepare("pycode", "--input", files[0], "--out_dir", tmp_path / "out", "--tokenizer=byte")


def test_a_file_of_a_folder_that_does_not_decode_is_reported_and_skipped(tmp_path, tree, capsys):
    (tree / "latin.py").write_bytes(b"# caf\xe9\n")
    prepare("pycode", "--input", tree, "--out_dir", tmp_path / "out", "--tokenizer=byte")
    assert "latin.py is not utf-8: byte 0xe9 at offset 5" in capsys.readouterr().err
    assert sum(map(len, documents(tmp_path / "out").values())) == 40


def test_the_standard_library_needs_no_input(tmp_path):
    prepare("pycode", "--out_dir", tmp_path, "--tokenizer=byte", "--max_bytes=300_000")
    dataset = open_dataset(tmp_path)
    assert 200_000 < dataset.bytes("train") + dataset.bytes("val") <= 300_000
    assert "standard library" in dataset.meta["source"]["from"]
    library = Path(sysconfig.get_paths()["stdlib"])
    unwanted = {"test", "tests", "idle_test", "site-packages", "dist-packages"}
    files = [path for path in library.rglob("*.py") if not unwanted & set(path.relative_to(library).parts)]
    assert set.union(*documents(tmp_path).values()) <= {path.read_bytes().decode() for path in files}


# ---- kills -------------------------------------------------------------------------------------------------

# Runs a script and kills it with SIGKILL right before the n-th time that it opens, renames or removes
# anything under its out_dir.
KILLER = """
import os, runpy, signal, sys
n, folder = int(sys.argv[1]), sys.argv[2]
sys.argv[:] = sys.argv[3:]
def watch(event, args):
    global n
    if event in ("open", "os.rename", "os.remove") and str(args[0]).startswith(folder):
        n -= 1
        if n < 0:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(watch)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
@pytest.mark.parametrize("has_old", [True, False])
def test_a_prepare_that_is_killed_leaves_the_old_dataset_or_none(tmp_path, has_old):
    (tmp_path / "a.txt").write_text("abc" * 1000, encoding="utf-8")
    (tmp_path / "b.txt").write_text("xyz" * 1000, encoding="utf-8")
    old, new, out = tmp_path / "old", tmp_path / "new", tmp_path / "out"
    prepare("shakespeare_char", "--input", tmp_path / "a.txt", "--out_dir", old)
    prepare("shakespeare_char", "--input", tmp_path / "b.txt", "--out_dir", new)
    outcomes = []
    for n in range(100):
        shutil.rmtree(out, ignore_errors=True)
        if has_old:
            shutil.copytree(old, out)
        result = script("shakespeare_char", "--input", tmp_path / "b.txt", "--out_dir", out,
                        driver=["-c", KILLER, str(n), str(out)])
        outcomes.append(state(out, old, new))
        if result.returncode == 0:
            break
        assert result.returncode == -signal.SIGKILL, result.stderr
        # and the next prepare is not disturbed by what is left
        if n % 4 == 0:
            prepare("shakespeare_char", "--input", tmp_path / "b.txt", "--out_dir", out)
            assert sorted(os.listdir(out)) == ["meta.json", "train.bin", "val.bin"]
    first = "old" if has_old else "none"
    order = sorted(set(outcomes), key=outcomes.index)
    assert order == ([first, "none", "new"] if has_old else [first, "new"])
    assert outcomes.count(first) > 4 and outcomes[-1] == "new"


def state(out, old, new):
    """Which dataset a reader finds in out; anything but an exact copy of one or a clear error fails."""
    try:
        open_dataset(out)
    except ValueError as error:
        assert "no train.bin" in str(error) or "no dataset" in str(error)
        return "none"
    content = [(out / name).read_bytes() for name in ("train.bin", "val.bin", "meta.json")]
    for name, folder in (("old", old), ("new", new)):
        if content == [(folder / file).read_bytes() for file in ("train.bin", "val.bin", "meta.json")]:
            return name
    raise AssertionError(json.loads(content[2]))
