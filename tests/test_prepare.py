"""data/*/prepare.py, run as a user would: known numbers, faithful text, stable splits, all corpora."""

import errno
import hashlib
import importlib.util
import io
import json
import lzma
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from folders import MAKERS
from tokenizers import processors

from benchmarks.preparing import real_text, run_and_watch
from configurator import configure
from data.dataset import open_dataset
from data.matching import has_ids_of
from data.tokenizer import EOT, BPETokenizer
from train import TrainConfig
from training.start import make_model

DATA = Path(__file__).resolve().parents[1] / "data"
RUN_PAGES = ("docs/en/runs/hongloumeng.md", "docs/zh/runs/hongloumeng.md")
HARD_TEXT = "\ufeff第一回\u3000甄士隐\r\n\u3000\u3000列位看官\r\n𠀀𪚥 emoji 👩‍👩‍👧 \x00\x85\u2028\rend\n" * 5


def prepare(name, *argv):
    """Run the main of a script in this process."""
    spec = importlib.util.spec_from_file_location("prepare", DATA / name / "prepare.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.main([str(item) for item in argv])


def script(name, *argv):
    command = [sys.executable, str(DATA / name / "prepare.py"), *map(str, argv)]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=600)


def text_of(dataset, split):
    return dataset.tokenizer.decode(dataset.array(split))


def counts(folder):
    meta = open_dataset(folder).meta
    return meta["vocab_size"], meta["splits"]["train"]["tokens"], meta["splits"]["val"]["tokens"]


# ---- the test split ----------------------------------------------------------------------------------------

BOOK = "The old man, 红楼 and the sea.\n" * 40


@pytest.mark.parametrize("name, tokenizer", [
    ("shakespeare_char", ["--tokenizer=char"]), ("hongloumeng", ["--tokenizer=bpe", "--vocab_size=280"]),
    ("text", ["--tokenizer=byte"]),
])  # fmt: skip
def test_a_test_fraction_of_0_is_as_good_as_none(tmp_path, name, tokenizer):
    (tmp_path / "books").mkdir()
    for i in range(20):
        (tmp_path / "books" / f"{i:02}.txt").write_bytes(f"Book {i}.\n".encode() * (i + 1))
    made = []
    for option in [], ["--test_fraction=0"]:
        out = tmp_path / f"out-{len(made)}"
        prepare(name, "--input", tmp_path / "books", "--val_fraction=0.3", *tokenizer, *option, "--out_dir", out)
        made.append({path.name: path.read_bytes() for path in out.iterdir()})
    assert made[0] == made[1] and made[0].keys() == {"train.bin", "val.bin", "meta.json"}


@pytest.mark.parametrize("name", ["shakespeare_char", "hongloumeng", "classics", "text", "pycode", "cppcode"])
@pytest.mark.parametrize("options", [["--tokenizer=byte"], ["--tokenizer=bpe", "--vocab_size=300", "--trim"]])
def test_a_test_split_changes_nothing_about_training_that_a_larger_validation_split_would_not(
    tmp_path, name, options, capsys
):
    """Neither the text nor the tokenizer, its training and what --trim keeps; and all text is in one of the splits."""
    suffix, folder = {"pycode": ".py", "cppcode": ".h"}.get(name, ".txt"), tmp_path / "in"
    folder.mkdir()
    for i in range(40 if name in ("text", "pycode", "cppcode") else 1):
        letters = " ".join(chr(0x4E00 + 7 * i + j % (90 + i)) for j in range(300))
        (folder / f"{i}{suffix}").write_text(f"{letters} number {i} of them.\n", encoding="utf-8")

    def splits_of(*shares):
        out = tmp_path / "-".join(shares)
        prepare(name, "--input", folder, *options, *shares, "--out_dir", out)
        dataset = open_dataset(out)
        return dataset, {split: text_of(dataset, split) for split in dataset.meta["splits"]}

    larger, without = splits_of("--val_fraction=0.5")
    tested, found = splits_of("--val_fraction=0.25", "--test_fraction=0.25")
    assert "train.bin, val.bin, test.bin and meta.json" in capsys.readouterr().out
    assert np.array_equal(tested.array("train"), larger.array("train"))
    assert tested.meta["tokenizer"] == larger.meta["tokenizer"]
    assert len(found["test"]) > 20 and len(found["val"]) > 20
    if len(os.listdir(folder)) == 1:
        assert found["val"] + found["test"] == without["val"] and without["val"].endswith(found["test"])
    else:
        texts = {split: set(re.findall(r".* number \d+ of them\.\n", text)) for split, text in found.items()}
        assert sum(map(len, texts.values())) == len(set.union(*texts.values())) == 40
        assert texts["val"] | texts["test"] == set(re.findall(r".* number \d+ of them\.\n", without["val"]))
    digest = hashlib.sha256((tested.folder / "test.bin").read_bytes()).hexdigest()
    assert tested.meta["splits"]["test"]["sha256"] == digest


def test_a_dry_run_reports_the_test_split_and_writes_nothing(tmp_path, capsys):
    (tmp_path / "book.txt").write_bytes(BOOK.encode())
    argv = ["--input", tmp_path / "book.txt", "--test_fraction=0.25", "--out_dir", tmp_path / "out", "--dry_run"]
    prepare("shakespeare_char", *argv)
    out = capsys.readouterr().out
    assert re.search(rf"test +1 +0 +{len(BOOK) // 4} ", out) and "test: longest document book.txt" in out
    assert os.listdir(tmp_path) == ["book.txt"]


# ---- memory ------------------------------------------------------------------------------------------------


linux = pytest.mark.skipif(sys.platform != "linux", reason="memory of processes is read from Linux's /proc")

WORKER = """
import sys
sys.path.insert(0, {root!r})
from pathlib import Path
from data import encode, fim, options, source, units
from data.tokenizer import CharTokenizer
out, chars, *files = map(Path, sys.argv[1:])
args = options.prepare_parser("", out).parse_args(["--input", *map(str, files)])
reading = options.reading_of(args)
encode.use_tokenizer(CharTokenizer(chars.read_text(encoding="utf-8")), 1)
for unit in units.make_units(args, source.find_parts(args, reading), reading):
    encode.encode_unit(encode.Layout(None, False, (), fim.Fim()), unit, out / "part")
    print(next(line.split()[1] for line in open("/proc/self/status", encoding="utf-8") if line.startswith("RssAnon")))
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """Python's library in 48 files of 2.5 MB. Few of its characters have several bytes; from such text, decoding
    leaves small pieces of memory of many sizes behind."""
    folder, text, size = tmp_path_factory.mktemp("library"), real_text(None), 2_500_000
    for i in range(48):
        at = i * size % (len(text) - size)
        (folder / f"{i:02}.txt").write_text(f"{i}\n{text[at : at + size]}", encoding="utf-8")
    return sorted(folder.iterdir())


@linux
def test_memory_does_not_grow_with_the_text(tmp_path, library):
    """Parent and workers: 80 MB of text more, 12 MB of memory more at most."""
    peaks = []
    for files in library[:16], library:
        command = [
            sys.executable,
            str(DATA / "text/prepare.py"),
            "--input",
            *map(str, files),
            "--tokenizer=char",
            "--workers=2",
            "--out_dir",
            str(tmp_path),
        ]
        peaks.append(run_and_watch(command)[1])
    assert 30 < peaks[0] < 1000 and peaks[1] - peaks[0] < 12, peaks


@linux
def test_a_worker_gives_back_the_memory_of_a_unit(tmp_path, library):
    """After 8 units of 15 MB it has at most 2 MB more than after the first."""
    chars = tmp_path / "chars"
    chars.write_text(
        "".join(sorted(set().union(*(file.read_text(encoding="utf-8") for file in library)))),
        encoding="utf-8",
        newline="",
    )
    (tmp_path / "worker.py").write_text(WORKER.format(root=str(DATA.parent)), encoding="utf-8")
    command = [sys.executable, str(tmp_path / "worker.py"), str(tmp_path), str(chars), *map(str, library)]
    kept = [int(line) / 1000 for line in subprocess.run(command, capture_output=True, check=True).stdout.split()]
    assert len(kept) >= 6 and kept[0] > 10 and max(kept) - kept[0] < 2, kept


# ---- text by characters ------------------------------------------------------------------------------------


def test_tinyshakespeare_has_nanogpts_numbers(tmp_path, shared_data):
    prepare("shakespeare_char", "--input", shared_data("tinyshakespeare.txt"), "--out_dir", tmp_path)
    assert counts(tmp_path) == (65, 1_003_854, 111_540)


def test_hongloumeng_has_the_known_numbers(tmp_path, shared_data, capsys):
    path = shared_data("hongloumeng.txt")
    prepare("hongloumeng", "--input", path, "--out_dir", tmp_path)
    [explained] = [line for line in capsys.readouterr().out.splitlines() if "CRLF" in line]
    assert counts(tmp_path) == (4_435, 791_045, 87_894)
    dataset = open_dataset(tmp_path)
    with open(path, encoding="utf-8") as file:  # Python's own universal newlines, as nanoGPT reads
        assert text_of(dataset, "train") + text_of(dataset, "val") == file.read()
    dropped = path.stat().st_size - dataset.bytes("train") - dataset.bytes("val")
    assert dropped and f": {dropped:,} bytes less than the file has" in explained
    for page in RUN_PAGES:
        assert f"{dropped:,}" in (DATA.parent / page).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "name, options",
    [
        ("shakespeare_char", []),
        ("hongloumeng", []),
        ("hongloumeng", ["--tokenizer=byte"]),
        ("hongloumeng", ["--tokenizer=bpe", "--vocab_size=300"]),
    ],
)
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
    before, behind = (len("".join(texts)[:i].encode()) for i in (cut, cut + 10 * ("--tokenizer=bpe" in options)))
    assert before <= dataset.bytes("train") <= behind  # bpe: up to where no word is cut in two


@pytest.mark.parametrize("name", ["shakespeare_char", "hongloumeng", "classics"])
def test_the_text_of_val_input_is_the_validation_split(tmp_path, name):
    for split in ("train", "val"):
        (tmp_path / split).write_text(f"{split} " * 50, encoding="utf-8")
    prepare(
        name,
        "--input",
        tmp_path / "train",
        "--val_input",
        tmp_path / "val",
        "--out_dir",
        tmp_path / "out",
        "--tokenizer=char",
    )
    dataset = open_dataset(tmp_path / "out")
    for split in ("train", "val"):
        assert text_of(dataset, split) == f"{split} " * 50


def test_encoding_and_normalize_are_recorded_and_done(tmp_path):
    (tmp_path / "old.txt").write_bytes(("红楼梦\r\n" * 20).encode("gb18030"))
    prepare(
        "hongloumeng",
        f"--input={tmp_path / 'old.txt'}",
        f"--out_dir={tmp_path / 'out'}",
        "--encoding=gb18030",
        "--normalize",
        "--val_fraction=0.25",
    )
    dataset = open_dataset(tmp_path / "out")
    assert (text_of(dataset, "train"), text_of(dataset, "val")) == ("红楼梦\n" * 15, "红楼梦\n" * 5)
    source = dataset.meta["source"]
    assert (source["from"], source["bytes"], source["encoding"], source["normalize"]) == (
        "old.txt",
        160,
        "gb18030",
        True,
    )


def test_the_same_text_gives_the_same_files(tmp_path):
    (tmp_path / "a.txt").write_bytes(HARD_TEXT.encode() * 20)
    for out in ("one", "two"):
        prepare(
            "hongloumeng",
            "--input",
            tmp_path / "a.txt",
            "--out_dir",
            tmp_path / out,
            "--tokenizer=bpe",
            "--vocab_size=280",
        )
    for name in ("train.bin", "val.bin", "meta.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_the_report_has_the_numbers_and_the_next_command(tmp_path, capsys):
    (tmp_path / "a.txt").write_bytes(("红楼梦a" * 1000).encode())
    prepare("hongloumeng", "--input", tmp_path / "a.txt", "--out_dir", tmp_path / "out")
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line]
    table = {line[0]: line[1:] for line in lines}
    assert table["train"][:6] == ["1", "0", "3,600", "9,000", "3,600", "2.50"]
    assert table["val"][:6] == ["1", "0", "400", "1,000", "400", "2.50"]
    assert table["all"][:6] == ["2", "0", "4,000", "10,000", "4,000", "2.50"]
    assert table["vocab"][:2] == ["4", "(char),"]
    assert lines[-1][1:3] == ["python", "train.py"] and f"--dataset={tmp_path / 'out'}" in lines[-1]


@pytest.mark.parametrize("parent", ["", "data"])
def test_the_next_command_names_the_folder_that_it_is_in(tmp_path, capsys, monkeypatch, parent):
    (tmp_path / "book.txt").write_text("红楼梦a" * 1000, encoding="utf-8")
    folder = tmp_path / parent / "mine"
    folder.mkdir(parents=True)
    monkeypatch.setattr("data.dataset.DATA", tmp_path / "data")
    monkeypatch.chdir(folder)
    prepare("hongloumeng", "--input", tmp_path / "book.txt", "--out_dir=.")
    assert capsys.readouterr().out.splitlines()[-1].endswith(f"--dataset={'mine' if parent else folder}")


def test_validation_text_that_is_all_there_is_leaves_nothing_to_train_on(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("红楼梦\n" * 1000, encoding="utf-8")
    with pytest.raises(ValueError, match="all documents for training are copies of others .* such as a.txt; name"):
        prepare("text", "--input", path, "--val_input", path, "--out_dir", tmp_path / "out", "--tokenizer=byte")


def test_a_dry_run_reports_and_writes_nothing(tmp_path, capsys):
    (tmp_path / "a.txt").write_bytes(b"abc" * 100)
    prepare("shakespeare_char", "--input", tmp_path / "a.txt", "--out_dir", tmp_path / "out", "--dry_run")
    assert "270" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "name, tokenizer, config",
    [
        ("text", "bpe", "train_classics_bpe"),
        ("text", "char", "train_book_char"),
        ("classics", "byte", "train_book_char"),
        ("hongloumeng", "char", "train_hongloumeng_char"),
        ("hongloumeng", "byte", "train_hongloumeng_char"),
        ("hongloumeng", "bpe", "train_hongloumeng_bpe"),
        ("hongloumeng", "tokenizer.json", "train_hongloumeng_bpe"),
        ("shakespeare", "char", "train_shakespeare_char"),
        ("shakespeare_char", "bpe", "train_shakespeare"),
        ("pycode", "byte", "train_cppcode_bytes"),
        ("cppcode", "bpe", "train_pycode"),
        ("tinystories", "bpe", "train_tinystories_llama"),
        ("tinystories", "char", "train_tinystories_llama"),
    ],
)
def test_the_config_it_recommends_is_for_the_tokenizer_and_fits_its_vocabulary(
    tmp_path, capsys, name, tokenizer, config
):
    (tmp_path / "in").mkdir()
    for i in range(8):
        for suffix in (".txt", ".py", ".c"):
            (tmp_path / "in" / f"{i}{suffix}").write_text(f"to be, or not to be {i}\n" * 500, encoding="utf-8")
    if tokenizer == "tokenizer.json":
        tokenizer = tmp_path / tokenizer
        tokenizer.write_text(
            BPETokenizer.train("to be, or not to be\n" * 9, 280).to_json()["tokenizer"], encoding="utf-8"
        )
    options = ["--vocab_size=270"] * (tokenizer == "bpe")
    out = tmp_path / "out"
    prepare(name, "--input", tmp_path / "in", f"--tokenizer={tokenizer}", "--out_dir", out, *options)
    check_next_command(capsys.readouterr().out, config)


def check_next_command(out, config):
    """The model of the command that is printed has the ids of the dataset."""
    command = shlex.split(out.splitlines()[-1])
    assert command[:4] == ["next", "python", "train.py", f"config/{config}.py"]
    settings, explicit = configure(TrainConfig, [str(DATA.parent / command[3]), *command[4:]])
    settings.device = "cpu"
    model = make_model(settings, explicit, None, dataset := open_dataset(settings.dataset, settings.vocab_size), "meta")
    assert model.config.vocab_size == dataset.tokenizer.vocab_size


@pytest.mark.parametrize("options", [[], ["--fim_rate=0.5"], ["--trim"]])
def test_the_model_has_the_ids_of_llama2s_tokenizer_with_markers_or_trimmed(tmp_path, capsys, options):
    file = tmp_path / "tokenizer.json"
    file.write_text(MAKERS["Metaspace BPE, Llama-2's"]().to_str(), encoding="utf-8")
    texts = "<|endoftext|>".join(f"Once upon a time, story {i}." for i in range(300))
    (tmp_path / "stories.txt").write_text(texts, encoding="utf-8")
    options = [*options, "--tokenizer=llama2", f"--tokenizer_file={file}", f"--out_dir={tmp_path / 'out'}"]
    prepare("tinystories", f"--input={tmp_path / 'stories.txt'}", *options)
    check_next_command(capsys.readouterr().out, "train_tinystories_llama")


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


def documents(folder, distinct=True):
    """{split: set of texts (or a list)}, cut at the end-of-text ids; every document must end with one."""
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
        found[split] = set(texts) if distinct else texts
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
    assert documents(tmp_path / "out") == documents(tmp_path / "again")
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


@pytest.mark.parametrize("max_bytes, n", [(10, 0), (30, 1)])
def test_max_bytes_that_leave_too_little_are_named(tmp_path, tree, max_bytes, n):
    with pytest.raises(ValueError, match=f"--max_bytes={max_bytes} leaves {n} of 40 files, need at least 2"):
        prepare("pycode", "--input", tree, "--out_dir", tmp_path / "out", f"--max_bytes={max_bytes}")


def test_a_file_that_may_not_be_read_is_named_where_sizes_are_limited(tmp_path, tree, monkeypatch):
    def refuse(part):
        raise PermissionError(errno.EACCES, "Permission denied", part.path)

    monkeypatch.setattr("data.formats.open_part", refuse)
    path = tree / "package0" / "module0.py"
    with pytest.raises(ValueError, match=f"cannot read {path}: Permission denied; make it readable"):
        prepare("pycode", "--input", path, "--out_dir", tmp_path / "out", "--max_bytes=5000")


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


def test_zips_of_repositories_and_other_folders_are_read(tmp_path, tree):
    archive = shutil.make_archive(tmp_path / "repository-main", "zip", tree.parent, tree.name)
    prepare("pycode", "--input", tree, "--out_dir", tmp_path / "out", "--tokenizer=byte")
    prepare("pycode", "--input", archive, "--out_dir", tmp_path / "zip", "--tokenizer=byte")
    assert documents(tmp_path / "out") == documents(tmp_path / "zip")


# ---- flags -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, vocab_size, place",
    [
        ("cppcode", 8192, "beside the script"),
        ("pycode", 32768, "beside the script"),
        ("hongloumeng", 8192, "see above"),
        ("wikitext", 8192, "see above"),
    ],
)
def test_help_tells_the_defaults(name, vocab_size, place, capsys):
    with pytest.raises(SystemExit):
        prepare(name, "--help")
    words = " ".join(capsys.readouterr().out.split())
    assert f"trained here (default: {vocab_size})" in words and f"write the dataset (default: {place})" in words


# ---- the vocabulary of another dataset -------------------------------------------------------------------------


def test_a_dataset_in_anothers_vocabulary_is_its_text_without_other_characters(tmp_path, capsys):
    own, other = "宝玉笑道：“来了。”\n" * 40, "\u3000\u3000行者笑道：“[-^\\]来了！”\n" * 40_000  # of several pieces
    for name, text in (("own", own), ("other", other)):
        (tmp_path / f"{name}.txt").write_text(text, encoding="utf-8")
    prepare("hongloumeng", "--input", tmp_path / "own.txt", "--out_dir", tmp_path / "own")
    capsys.readouterr()
    options = ["--input", tmp_path / "other.txt", "--vocabulary", tmp_path / "own", "--clean"]
    prepare("hongloumeng", *options, "--out_dir", tmp_path / "other")
    assert "left out 320,000 characters that the vocabulary lacks: 行 (40,000)" in capsys.readouterr().out
    first, second = open_dataset(tmp_path / "own"), open_dataset(tmp_path / "other")
    kept = "".join(character for character in other if character in own)
    assert text_of(second, "train") + text_of(second, "val") == kept
    assert second.bytes("train") + second.bytes("val") == len(kept.encode())
    assert second.tokenizer.to_json() == first.tokenizer.to_json()
    # so a model of the one can be trained further on the other, without a note that only sizes were compared
    state = {"tokenizer": first.tokenizer.to_json(), "model_args": {"vocab_size": first.vocab_size}, "config": {}}
    assert has_ids_of(second, state, None)


def test_a_vocabulary_has_to_be_of_characters(tmp_path):
    (tmp_path / "novel.txt").write_text("宝玉笑道 " * 100, encoding="utf-8")
    prepare("hongloumeng", "--input", tmp_path / "novel.txt", "--tokenizer=byte", "--out_dir", tmp_path / "bytes")
    with pytest.raises(ValueError, match="is of byte; choose one prepared with --tokenizer=char"):
        options = ["--input", tmp_path / "novel.txt", "--vocabulary", tmp_path / "bytes"]
        prepare("hongloumeng", *options, "--out_dir", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_dataset_is_not_overwritten_by_a_text_in_its_own_vocabulary(tmp_path):
    (tmp_path / "novel.txt").write_text("宝玉笑道 " * 100, encoding="utf-8")
    options = ["--input", tmp_path / "novel.txt", "--out_dir", tmp_path / "own"]
    prepare("hongloumeng", *options)
    before = (tmp_path / "own" / "meta.json").read_bytes()
    with pytest.raises(ValueError, match="that dataset would be overwritten"):
        prepare("hongloumeng", *options, "--vocabulary", tmp_path / "own", "--val_fraction=0.5")
    assert (tmp_path / "own" / "meta.json").read_bytes() == before


# ---- the other corpora -------------------------------------------------------------------------------------


def test_tinyshakespeare_has_nanogpts_numbers_in_gpt2_tokens(tmp_path, shared_data):
    prepare(
        "shakespeare",
        "--input",
        shared_data("tinyshakespeare.txt"),
        "--out_dir",
        tmp_path,
        "--tokenizer_file",
        shared_data("gpt2"),
    )
    assert counts(tmp_path) == (50_257, 301_966, 36_059)


def test_hongloumeng_in_qwen2_tokens_whole_and_trimmed(tmp_path, shared_data):
    options = [
        "--input",
        shared_data("hongloumeng.txt"),
        "--tokenizer=qwen2",
        "--tokenizer_file",
        shared_data("qwen2/tokenizer.json.xz"),
    ]
    prepare("hongloumeng", *options, "--out_dir", tmp_path / "whole")
    size, train, val = counts(tmp_path / "whole")
    assert (size, train + val) == (151_646, 690_190)
    prepare("hongloumeng", *options, "--out_dir", tmp_path / "trimmed", "--trim")
    whole, trimmed = open_dataset(tmp_path / "whole"), open_dataset(tmp_path / "trimmed")
    assert (whole.dtype, trimmed.dtype) == ("uint32", "uint16")
    base = whole.tokenizer
    kept = {*whole.array("train").tolist(), *base.byte_ids, *base.special_tokens.values()}
    assert trimmed.vocab_size == len(kept)
    for place in (*RUN_PAGES, "data/hongloumeng/prepare.py", "config/train_hongloumeng_qwen2.py"):
        assert f"{len(kept):,}" in (DATA.parent / place).read_text(encoding="utf-8"), place
    for split in ("train", "val"):
        assert text_of(whole, split) == text_of(trimmed, split)


def test_hongloumeng_goes_to_a_folder_for_each_tokenizer(tmp_path, monkeypatch):
    folders = []
    monkeypatch.setattr("data.build.build", lambda args, *_: folders.append(args.out_dir.relative_to(DATA).as_posix()))
    (tmp_path / "a.txt").write_text("红楼梦", encoding="utf-8")
    for options in (
        [],
        ["--tokenizer=bpe"],
        ["--tokenizer=qwen2"],
        ["--tokenizer=qwen2", "--trim"],
        ["--tokenizer=Qwen/Qwen2-0.5B"],
        ["--tokenizer=models/Qwen2/"],
        [f"--out_dir={DATA / 'mine'}"],
    ):
        prepare("hongloumeng", "--input", tmp_path / "a.txt", *options)
    assert folders == [
        "hongloumeng",
        "hongloumeng_bpe",
        "hongloumeng_qwen2",
        "hongloumeng_qwen2_trimmed",
        "hongloumeng_Qwen2_0_5B",
        "hongloumeng_Qwen2",
        "mine",
    ]


def test_each_classic_is_cut_at_its_own_end(tmp_path):
    for name, letter in (("a.txt", "红"), ("b.txt", "水")):
        (tmp_path / name).write_text("".join(f"{letter}{i}。\n" for i in range(500)), encoding="utf-8")
    prepare(
        "classics", "--input", tmp_path / "a.txt", tmp_path / "b.txt", "--out_dir", tmp_path / "out", "--vocab_size=300"
    )
    found = documents(tmp_path / "out", distinct=False)
    assert [len(found[split]) for split in ("train", "val")] == [2, 2]
    for letter in "红水":
        texts = [text for split in ("train", "val") for text in found[split] if letter in text]
        assert "".join(texts) == "".join(f"{letter}{i}。\n" for i in range(500))


def test_a_folder_of_books_is_split_by_book_and_one_book_by_position(tmp_path, capsys):
    books = {f"{i}": f"第{i}回 " + f"宝玉来见他，{i}。\n" * 50 for i in range(40)}
    folder = tmp_path / "books"
    folder.mkdir()
    for i, (name, text) in enumerate(books.items()):
        if i < 20:
            (folder / f"{name}.txt").write_bytes(text.encode("gb18030" if i % 2 else "utf-8"))
    rows = [json.dumps({"text": text}) for i, text in enumerate(books.values()) if i >= 20]
    (folder / "more.jsonl.xz").write_bytes(lzma.compress("\n".join(rows).encode()))
    prepare("text", "--input", folder, "--encoding=auto", "--out_dir", tmp_path / "out", "--tokenizer=char")
    found = documents(tmp_path / "out")
    assert found["train"] | found["val"] == set(books.values()) and found["train"] and found["val"]
    prepare(
        "text", "--input", folder / "3.txt", "--encoding=gb18030", "--out_dir", tmp_path / "one", "--tokenizer=char"
    )
    [train], [val] = documents(tmp_path / "one").values()
    assert train + val == books["3"] and len(train) == int(len(books["3"]) * 0.9)
    with pytest.raises(ValueError, match="name files, folders or archives"):
        prepare("text", "--out_dir", tmp_path / "none")


@pytest.mark.parametrize("kind", ["char", "byte", "bpe", "trimmed"])
def test_a_datasets_folder_stands_for_its_tokenizer(tmp_path, kind):
    first, second = tmp_path / "first.txt", tmp_path / "second.txt"
    first.write_text("宝玉来见黛玉，黛玉笑了。\n" * 200, encoding="utf-8")
    second.write_text("黛玉来见宝玉。\n" * 100, encoding="utf-8")
    options = {"bpe": ["--vocab_size=300"], "trimmed": [f"--tokenizer_file={tmp_path / 'tokenizer.json'}", "--trim"]}
    (tmp_path / "tokenizer.json").write_text(BPETokenizer.train([HARD_TEXT], 400).to_json()["tokenizer"], "utf-8")
    named = "bpe" if kind == "trimmed" else kind
    prepare("text", "--input", first, f"--tokenizer={named}", *options.get(kind, []), "--out_dir", tmp_path / "a")
    prepare("text", "--input", second, f"--tokenizer={tmp_path / 'a'}", "--out_dir", tmp_path / "b")
    a, b = open_dataset(tmp_path / "a"), open_dataset(tmp_path / "b")
    assert a.meta["tokenizer"] == b.meta["tokenizer"] and a.meta["tokenizer"]["kind"] == kind
    assert "".join(text for split in documents(tmp_path / "b").values() for text in split) == second.read_text("utf-8")
    (tmp_path / "a/meta.json").write_text("{}", "utf-8")
    with pytest.raises(ValueError, match="a is not a dataset whose tokenizer can be read: .* kind None"):
        prepare("text", "--input", second, f"--tokenizer={tmp_path / 'a'}", "--out_dir", tmp_path / "c")


def test_a_folder_says_what_it_leaves_out_and_why_whether_dry_or_not(tmp_path, capsys):
    folder = tmp_path / "books"
    (folder / ".git").mkdir(parents=True)
    texts = [f"第{i}回，宝玉来见。\n" for i in range(20)]
    rows = [{"text": text} for text in texts[:10]] + [{"text": None}, {"text": "", "content": texts[10]}]
    (folder / "a.json").write_text(json.dumps(rows), encoding="utf-8")
    quoted = "".join(f'{i},"{text}"\n' for i, text in enumerate(texts[11:])) + "9,\n9,\n"
    (folder / "b.csv").write_text("id,text\n" + quoted, encoding="gb18030")
    for name in ("config.json", "a.pdf", "b.pdf", "c.docx", ".DS_Store"):
        (folder / name).write_text("{}", encoding="utf-8")
    for options in (["--dry_run"], []):
        prepare(
            "text", "--input", folder, "--encoding=auto", "--tokenizer=char", "--out_dir", tmp_path / "out", *options
        )
        left_out = {line for line in capsys.readouterr().out.splitlines() if line.startswith("left out")}
        assert left_out == {
            f"left out 2 as hidden: {folder}/.git, {folder}/.DS_Store",
            f"left out 3 of another type (2 .pdf, 1 .docx): {folder}/a.pdf, {folder}/b.pdf, {folder}/c.docx",
            "left out 3 rows without text: books/a.json, books/b.csv (2)",
            "left out 1 as JSON that has no rows of text: books/config.json",
        }
    found = documents(tmp_path / "out")
    assert found["train"] | found["val"] == set(texts)


CHATS = [f"<|user|>宝玉来见 {i}，他说<|bot|>the old dream, {i}.<|bot|\n" * (i % 3 + 1) for i in range(60)]


def chats(tmp_path):
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in CHATS), encoding="utf-8")
    return path


@pytest.mark.parametrize("special", ["text", "encode"])
def test_typed_special_tokens_are_text_or_their_ids_and_the_report_counts_them(tmp_path, capsys, monkeypatch, special):
    monkeypatch.setattr("data.units.PIECE", 1 << 5)
    options = ["--tokenizer=bpe", "--vocab_size=400", f"--special={special}", "--workers=1"]
    options += ["--special_tokens", "<|user|>", "<|bot|>", "<|tool|>"]
    prepare("text", "--input", chats(tmp_path), "--out_dir", tmp_path / "out", *options)
    dataset, names = open_dataset(tmp_path / "out"), ["<|user|>", "<|bot|>"]
    ids, encode = dataset.tokenizer.special_tokens, dataset.tokenizer.encode
    expected = []
    for text in CHATS:
        pieces = re.split("(<\\|user\\|>|<\\|bot\\|>)", text) if special == "encode" else [text]
        parts = [[ids[piece]] if piece in names else encode(piece).tolist() for piece in pieces]
        expected.append(sum(parts, []))
    whole = np.concatenate([dataset.array("train"), dataset.array("val")])
    ends = np.flatnonzero(whole == dataset.tokenizer.eot)
    assert sorted(part[:-1].tolist() for part in np.split(whole, ends + 1)[:-1]) == sorted(expected)
    n_bytes = sum(len(text.encode()) for text in CHATS)
    n_typed = {name: sum(text.count(name) for text in CHATS) for name in names}
    n_bytes -= sum(len(name) * n for name, n in n_typed.items()) if special == "encode" else 0
    assert dataset.bytes("train") + dataset.bytes("val") == n_bytes  # those that the ids stand for
    assert dataset.meta["source"]["special"] == special
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("special ")]
    if special == "encode":
        counts = f"<|user|> {n_typed['<|user|>']}, <|bot|> {n_typed['<|bot|>']}"
        assert line == f"special {counts}; unused: <|tool|>"
        spellings = [encode(name).size for name in names]
        assert min(spellings) >= 5  # merges were learned from the text between them
    else:
        assert line.startswith("special <|user|>, <|bot|>, <|tool|>: stay unused") and "--special=encode" in line


def test_what_every_text_begins_with_is_not_counted_as_typed(tmp_path, capsys):
    library = MAKERS["Metaspace BPE, Llama-2's"]()
    folder = tmp_path / "model"
    folder.mkdir()
    library.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", library.token_to_id("<s>"))]
    )
    library.save(str(folder / "tokenizer.json"))
    settings = {"bos_token": "<s>", "eos_token": "</s>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    options = [f"--tokenizer={folder}", "--special=encode", "--workers=1"]
    prepare("text", "--input", chats(tmp_path), "--out_dir", tmp_path / "out", *options)
    dataset = open_dataset(tmp_path / "out")
    assert list(dataset.tokenizer.begin) == [library.token_to_id("<s>")]
    assert dataset.bytes("train") + dataset.bytes("val") == sum(len(text.encode()) for text in CHATS)
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("special ")]
    assert line.startswith("special none") and "<s>" not in line


def test_a_typed_end_of_text_ends_nothing_unless_special_tokens_are_encoded(tmp_path, capsys):
    path = tmp_path / "a.txt"
    path.write_text(f"to be{EOT}or not{EOT}" * 50, encoding="utf-8")
    for tokenizer, n in (("byte", 100), ("char", 100)):
        options = ["--input", path, f"--tokenizer={tokenizer}", "--out_dir", tmp_path / tokenizer, "--special=encode"]
        prepare("text", *options)
        dataset = open_dataset(tmp_path / tokenizer)
        whole = np.concatenate([dataset.array("train"), dataset.array("val")])
        assert (whole == dataset.tokenizer.eot).sum() == n + 2  # one after each split
        assert f"special {EOT} {n}" in capsys.readouterr().out.splitlines()
        assert text_of(dataset, "train") + text_of(dataset, "val") == "to beor not" * 50
    assert "<" not in dataset.tokenizer.chars


def test_special_tokens_that_cannot_be_encoded_are_refused(tmp_path):
    options = ["--input", chats(tmp_path), "--special=encode", "--out_dir", tmp_path / "out"]
    with pytest.raises(ValueError, match="--special=encode: this tokenizer has no special tokens"):
        prepare("hongloumeng", *options)  # without an end of text
    with pytest.raises(ValueError, match=r"the special token '<\|a user\|>' has white space .*where texts are cut"):
        prepare("text", *options, "--tokenizer=bpe", "--special_tokens", "<|a user|>")
    assert not (tmp_path / "out").exists()


def test_rows_that_all_lack_text_are_counted_in_the_refusal(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": null, "body": "x"}\n' * 5, encoding="utf-8")
    with pytest.raises(ValueError, match=r"no text; left out 5 rows without text: a.jsonl \(5\): .*--field"):
        prepare("text", "--input", path, "--out_dir", tmp_path / "out")


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are bytes on Linux only")
def test_books_with_names_in_gbk_become_a_dataset(tmp_path, capsys):
    for name in ("红楼", "水浒"):
        (tmp_path / os.fsdecode(name.encode("gbk") + b".txt")).write_text(name * 50, encoding="utf-8")
    prepare("text", "--input", *sorted(tmp_path.iterdir()), "--out_dir", tmp_path / "out", "--tokenizer=byte")
    assert open_dataset(tmp_path / "out").meta["source"]["from"] == "水浒.txt, 红楼.txt"
    assert "longest document 水浒.txt" in capsys.readouterr().out


def test_c_and_cpp_end_with_0xff_and_other_files_stay_out(tmp_path):
    (tmp_path / "src").mkdir()
    for i in range(30):
        (tmp_path / "src" / f"{i}.{['h', 'cpp', 'cu'][i % 3]}").write_text(f"int x{i}; // 汉\n" * 9, encoding="utf-8")
    (tmp_path / "src" / "notes.txt").write_text("none", encoding="utf-8")
    (tmp_path / "src" / "latin.h").write_bytes(b"// caf\xe9")
    archive = shutil.make_archive(tmp_path / "src-main", "zip", tmp_path, "src")
    prepare("cppcode", "--input", archive, "--out_dir", tmp_path / "out")
    found = documents(tmp_path / "out")
    assert len(found["train"] | found["val"]) == 30 and open_dataset(tmp_path / "out").tokenizer.eot == 0xFF


@pytest.fixture
def gpt2_stand_in(tmp_path) -> list:
    """The options for a small tokenizer in place of GPT-2's, which would be downloaded."""
    tokenizer = BPETokenizer.train(["A page to be, or not to be. A line of text.\n"], 270).to_json()["tokenizer"]
    (tmp_path / "vocabulary").mkdir()
    (tmp_path / "vocabulary" / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
    return ["--tokenizer_file", tmp_path / "vocabulary" / "tokenizer.json"]


@pytest.mark.parametrize("kind", ["txt", "jsonl", "parquet"])
def test_tinystories_have_the_given_validation_stories(tmp_path, kind):
    stories = {
        "train": [f"Once upon a time there were {i} cats.\n\nThe end." for i in range(300)],
        "valid": [f"One day {i} dogs came." for i in range(9)],
    }
    for name, texts in stories.items():
        path = tmp_path / f"Stories-{name}.{kind}"
        if kind == "txt":
            path.write_text("\n<|endoftext|>\n".join(texts), encoding="utf-8")
        elif kind == "jsonl":
            path.write_text("".join(json.dumps({"story": text}) + "\n" for text in texts), encoding="utf-8")
        else:
            pyarrow = pytest.importorskip("pyarrow")
            pytest.importorskip("pyarrow.parquet").write_table(pyarrow.table({"text": texts}), path)
    options = ["--input", tmp_path, "--tokenizer=bpe", "--vocab_size=300"]
    if kind == "txt":
        options[1:2] = [tmp_path / "Stories-train.txt", "--val_input", tmp_path / "Stories-valid.txt"]
    prepare("tinystories", *options, "--out_dir", tmp_path / "out")
    assert documents(tmp_path / "out") == {"train": set(stories["train"]), "val": set(stories["valid"])}
    prepare("tinystories", *options, "--out_dir", tmp_path / "tenth", "--fraction=0.1")
    prepare("tinystories", *options, "--out_dir", tmp_path / "all", "--fraction=1")
    assert documents(tmp_path / "all")["train"] == set(stories["train"])
    tenth = documents(tmp_path / "tenth")
    assert tenth["val"] == set(stories["valid"])
    assert tenth["train"] < set(stories["train"]) and 10 < len(tenth["train"]) < 60


def test_the_pages_in_openwebtexts_archives_of_archives_become_documents(tmp_path, gpt2_stand_in):
    pages = [f"Page {i}: to be, or not to be.\n" * 3 for i in range(200)]
    (tmp_path / "in").mkdir()
    for i in range(2):
        with tarfile.open(tmp_path / "in" / f"urlsf_subset00-{i}_data.xz", "w:xz") as archive:
            for j in range(i, 200, 2):
                info = tarfile.TarInfo(f"{j:07}-abc.txt")
                info.size = len(pages[j])
                archive.addfile(info, io.BytesIO(pages[j].encode()))
    prepare("openwebtext", "--input", tmp_path / "in", "--out_dir", tmp_path / "out", *gpt2_stand_in)
    found = documents(tmp_path / "out")
    assert found["train"] | found["val"] == set(pages) and len(found["val"]) == 1


def test_wikitext_is_the_same_running_text_from_a_zip_and_from_parquet(tmp_path, gpt2_stand_in):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    text = {split: f" \n = {split} = \n \n" + " A line @-@ of text . \n" * 50 for split in ("train", "valid", "test")}
    with zipfile.ZipFile(tmp_path / "wikitext-2-raw-v1.zip", "w") as archive:
        for split in text:
            archive.writestr(f"wikitext-2-raw/wiki.{split}.raw", text[split])
    (tmp_path / "hub").mkdir()
    for split, name in (("train", "train"), ("valid", "validation"), ("test", "test")):
        rows = [line if line.strip() else "" for line in text[split].splitlines(keepends=True)]
        parquet.write_table(pyarrow.table({"text": rows}), tmp_path / "hub" / f"{name}-00000-of-00001.parquet")
    for name in ("wikitext-2-raw-v1.zip", "hub"):
        prepare("wikitext", "--input", tmp_path / name, "--out_dir", tmp_path / "out", *gpt2_stand_in)
        dataset = open_dataset(tmp_path / "out")
        assert (text_of(dataset, "train"), text_of(dataset, "val")) == (text["train"], text["valid"])


def test_wikitexts_download_leaves_the_test_text_as_it_was(tmp_path, monkeypatch, gpt2_stand_in):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    splits = ("train", "validation", "test")
    text = {split: f" \n = {split} = \n \n" + " A line @-@ of text . \n" * 50 for split in splits}

    def download(urls, sha256, path):
        lines = next(text[split] for split in text if f"/{split}-" in urls[0]).splitlines(keepends=True)
        rows = [line if line.strip() else "" for line in lines]
        parquet.write_table(pyarrow.table({"text": rows}), path)

    monkeypatch.setattr("data.source.download_file", download)
    folder = tmp_path / "wikitext"
    shutil.copytree(DATA / "wikitext", folder, ignore=shutil.ignore_patterns("*.parquet", "*.bin", "*.raw", "meta*"))
    spec = importlib.util.spec_from_file_location("prepare", folder / "prepare.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.main(["--out_dir", str(tmp_path / "out"), *map(str, gpt2_stand_in)])
    assert (tmp_path / "out" / "wiki.test.raw").read_bytes().decode() == text["test"]
    assert text_of(open_dataset(tmp_path / "out"), "val") == text["validation"]


@pytest.mark.parametrize("name", ["shakespeare", "hongloumeng", "classics", "tinystories", "openwebtext", "wikitext"])
def test_a_dry_run_without_input_names_what_it_would_download(tmp_path, name, capsys, monkeypatch):
    monkeypatch.setattr("data.source.download_file", lambda *_: pytest.fail("downloaded"))
    if any((DATA / name).glob("*.txt")) or any((DATA / name).glob("*.parquet")):
        pytest.skip("its text was downloaded before")
    prepare(name, "--dry_run")
    lines = capsys.readouterr().out.splitlines()
    assert lines and all(line.startswith("dry run: would download https://") for line in lines)
