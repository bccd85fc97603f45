"""data/build.py: a naive oracle gives the same ids, in any units, on any number of workers, through any kill."""

import argparse
import errno
import hashlib
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, namedtuple
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import splits as module
from data.build import build
from data.dataset import open_dataset
from data.options import prepare_parser
from data.report import count_range
from data.splits import Fold, Seen, find_limits, split_texts
from data.tokenizer import ByteTokenizer, CharTokenizer

Piece = namedtuple("Piece", "document text ends split begins", defaults=[True])
FILES = ("train.bin", "val.bin", "meta.json")


@dataclass(frozen=True)
class Unit:
    key: str
    content: tuple
    size: int = 1000
    log: str = ""  # a file that gets a line for each time that this is read
    fails: str = ""

    def pieces(self, left_out=None):
        if self.log:
            with open(self.log, "a", encoding="utf-8") as file:
                file.write(self.key + "\n")
        yield from self.content
        if self.fails == "exit":
            os._exit(9)
        if self.fails:
            raise ValueError(self.fails)


def units_of(documents, **options):
    """One unit a document (name: text)."""
    return [Unit(name, (Piece(name, text, True, None),), **options) for name, text in documents.items()]


def arguments(out, **options):
    parser = prepare_parser("", Path(out), tokenizer="byte")
    return parser.parse_args([f"--out_dir={out}"], argparse.Namespace(**{"val_fraction": 0.3, "workers": 1} | options))


def bytes_with_eot(_texts):
    return ByteTokenizer(eot=255)


def chars_with_eot(read):
    return CharTokenizer.train(read(None), eot=True)


def run(out, units, make_tokenizer=bytes_with_eot, **options):
    build(arguments(out, **options), units, make_tokenizer, {"from": "a test"}, "config/x.py")
    return open_dataset(out)


def novel(n, seed=0):
    """n different documents of some kilobytes, {name: text}."""
    draw = random.Random(seed)
    return {
        f"book{i}": "".join(draw.choice("the old 红楼 dream of\n\n\u3000") for _ in range(draw.randint(1, 5000)))
        + f" {i}"
        for i in range(n)
    }


def digests(folder):
    names = [*FILES, "test.bin"] if (folder / "test.bin").exists() else FILES
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}


# ---- the oracle ----------------------------------------------------------------------------------------------


def folded(text):
    blank = rb"(?:[\x00-\x20]|\xc2\xa0|\xe3\x80\x80)+"
    return re.sub(blank, b"\0", text.encode()).strip(b"\0")


def hash64(data):
    return int.from_bytes(hashlib.sha1(data).digest()[:8], "little")


def expected(units, val_fraction, head, test_fraction=0.0):
    """{split: list of texts} and duplicates per split, the slow and obvious way."""
    documents = [[]]  # of lists of texts, one text for each unit that the document is in
    for unit in units:
        texts_here = {}
        for piece in unit.content:
            if len(documents) - 1 not in texts_here:
                texts_here[len(documents) - 1] = True
                documents[-1].append("")
            documents[-1][-1] += piece.text
            if piece.ends:
                documents.append([])
    documents.pop()
    ranks = [hash64(folded(document[0])[:head]) for document in documents]
    order, has_test = sorted(set(ranks)), test_fraction > 0
    if len(order) < 2 + has_test:
        return None

    def count(share):
        return sum(rank <= int(share * 2**64) for rank in order)

    n_val = min(max(count(val_fraction), 1), len(order) - 1 - has_test)
    n_held = min(max(count(val_fraction + test_fraction), n_val + 1), len(order) - 1) if has_test else n_val
    split_of = (
        dict.fromkeys(order, "train") | dict.fromkeys(order[:n_held], "test") | dict.fromkeys(order[:n_val], "val")
    )
    found, seen, copies = {"train": [], "val": []} | ({"test": []} if has_test else {}), set(), Counter()
    for document, rank in zip(documents, ranks, strict=True):
        split, key = split_of[rank], tuple(map(folded, document))
        if key in seen:
            copies[split] += 1
        else:
            found[split].append("".join(document))
        seen.add(key)
    return found, copies


TEXT = st.text(alphabet="ab \n\u3000é\x00\xa0", max_size=30)


@st.composite
def corpora(draw):
    """Units whose documents come in pieces, some of them over several units, some of them copies."""
    pool = draw(st.lists(TEXT, min_size=2, max_size=6))
    pieces = []
    for i, text in enumerate(draw(st.lists(st.sampled_from(pool), min_size=2, max_size=12))):
        cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=3)))
        parts = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        pieces += [Piece(f"d{i}", part, n == len(parts) - 1, None) for n, part in enumerate(parts)]
    bounds = sorted(draw(st.lists(st.integers(0, len(pieces)), max_size=6)))
    pairs = zip([0, *bounds], [*bounds, len(pieces)], strict=True)
    return [Unit(f"u{i}", tuple(pieces[a:b])) for i, (a, b) in enumerate(pairs)]


@settings(max_examples=60)
@given(units=corpora(), val_fraction=st.floats(0.01, 0.99), test_share=st.just(0.0) | st.floats(0.01, 0.99))
def test_any_corpus_in_any_units_gives_the_ids_of_the_oracle(tmp_path_factory, units, val_fraction, test_share):
    out, shares = tmp_path_factory.mktemp("out"), {"val_fraction": val_fraction}
    if test_share:
        shares["test_fraction"] = test_share * (1 - val_fraction)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("splits.RANK_BYTES", 16), ("splits.CACHED_BYTES", 5), ("build.SLICE", 7)):
            patch.setattr(f"data.{name}", value)
        found = expected(units, head=16, **shares)
        if found is None or not all(found[0].values()):
            with pytest.raises(ValueError, match=f"at least {3 if test_share else 2}|would be empty"):
                run(out, units, **shares)
            return
        dataset = run(out, units, **shares)
    for split, documents in found[0].items():
        assert (
            dataset.array(split).tobytes()
            == np.frombuffer(b"".join(text.encode() + b"\xff" for text in documents), np.uint8).astype("<u2").tobytes()
        )
        counts = dataset.meta["splits"][split]
        assert (counts["documents"], counts["bytes"]) == (len(documents), sum(len(t.encode()) for t in documents))
    assert sorted(os.listdir(out)) == sorted(FILES + ("test.bin",) * bool(test_share))


@settings(max_examples=100)
@given(
    text=st.text(alphabet="ab \n\t\x1f\u3000\xa0é红"),
    cuts=st.lists(st.integers(0, 60), max_size=4),
    head=st.integers(1, 40),
)
def test_a_fold_is_that_of_a_regex_however_the_text_is_cut(text, cuts, head):
    fold = Fold()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "RANK_BYTES", head)
        patch.setattr(module, "CACHED_BYTES", 7)
        for a, b in zip([0, *sorted(cuts)], [*sorted(cuts), len(text)], strict=True):
            assert fold.add(Piece("", text[a:b], False, None)) == len(text[a:b].encode())
    whole = folded(text)
    assert fold.value() == hash64(whole)
    assert fold.rank == (hash64(whole[:head]) if len(whole) >= head else None)


@settings(max_examples=100)
@given(batches=st.lists(st.lists(st.integers(0, 60) | st.integers(2**64 - 60, 2**64 - 1)), max_size=30))
def test_seen_is_a_set(batches):
    seen, oracle = Seen(), set()
    for batch in batches:
        was_there = [key in oracle or oracle.add(key) for key in batch]
        assert seen.add(np.array(batch, np.uint64)).tolist() == [bool(there) for there in was_there]
    sizes = [array.size for array in seen.arrays]
    assert sum(sizes) == len(oracle) and all(a > 2 * b for a, b in zip(sizes, sizes[1:], strict=False))


# ---- splits ----------------------------------------------------------------------------------------------------


def split_of_each(dataset):
    return {
        text: split
        for split in dataset.meta["splits"]
        for text in dataset.array(split).astype(np.uint8).tobytes().decode("latin-1").split("\xff")[:-1]
    }


def test_more_files_move_no_document_between_splits(tmp_path):
    few, more = novel(30), novel(30) | novel(40, seed=1)
    before = split_of_each(run(tmp_path / "few", units_of(few)))
    after = split_of_each(run(tmp_path / "more", units_of(dict(sorted(more.items(), reverse=True)))))
    assert len(before) == 30 and set(before.values()) == {"train", "val"}
    assert all(after[text] == split for text, split in before.items() if text in after)


def test_a_test_split_takes_its_documents_from_train_alone(tmp_path):
    """And leaves as training what a val_fraction that is larger by as much would leave."""
    units = units_of(novel(60))
    plain, larger = (split_of_each(run(tmp_path / str(v), units, val_fraction=v)) for v in (0.2, 0.45))
    tested = split_of_each(run(tmp_path / "test", units, val_fraction=0.2, test_fraction=0.25))
    assert tested.keys() == plain.keys() and len(tested) == 60 and Counter(tested.values())["test"] > 5
    for text, split in tested.items():
        assert (split == "val") == (plain[text] == "val") and (split == "train") == (larger[text] == "train")


def test_a_test_split_is_a_share_of_the_other_documents_where_validation_is_given(tmp_path, capsys):
    documents = novel(60)
    given = [Unit("v", (Piece("v", "validation", True, "val"), Piece("w", documents["book7"], True, "val")))]
    shares = {"val_fraction": 0.1, "test_fraction": 0.25, "val_input": [tmp_path]}
    tested = split_of_each(run(tmp_path / "a", given + units_of(documents), **shares))
    plain = split_of_each(run(tmp_path / "b", units_of(documents), val_fraction=0.25))
    assert tested.pop("validation") == "val" and len(tested) == 60
    for text, split in plain.items():
        in_val = text == documents["book7"].encode().decode("latin-1")  # whose copy is dropped
        assert tested[text] == ("val" if in_val else "test" if split == "val" else "train")


def test_splits_that_are_all_given_are_kept(tmp_path):
    given = [Unit(split, (Piece(split, f"the {split} text", True, split),)) for split in ("train", "val", "test")]
    dataset = run(tmp_path, given, test_fraction=0.5)
    assert split_of_each(dataset) == {f"the {split} text": split for split in ("train", "val", "test")}


@pytest.mark.parametrize("shares, n", [((1e-12, 1e-12), (1, 1)), ((1 - 1e-12, 1e-13), (18, 1)), ((0.5, 1e-12), None)])
def test_each_of_three_splits_has_a_document_where_three_differ(tmp_path, shares, n):
    dataset = run(tmp_path / "out", units_of(novel(20)), val_fraction=shares[0], test_fraction=shares[1])
    splits = {name: split["documents"] for name, split in dataset.meta["splits"].items()}
    if n is None:
        plain = run(tmp_path / "plain", units_of(novel(20)), val_fraction=shares[0])
        n = plain.meta["splits"]["val"]["documents"], 1
    assert (splits["val"], splits["test"]) == n and sum(splits.values()) == 20


def test_two_documents_are_too_few_for_three_splits(tmp_path):
    with pytest.raises(ValueError, match="2 documents .*: need at least 3, as each goes to train or val or test whole"):
        run(tmp_path / "out", units_of(novel(2)), test_fraction=0.3)
    assert not (tmp_path / "out").exists()


def test_a_copy_with_other_whitespace_is_dropped_and_stays_in_its_split(tmp_path, capsys):
    documents = novel(20)
    copies = {f"copy {name}": " \n" + text.replace(" ", "\u3000 ") for name, text in documents.items()}
    once = run(tmp_path / "once", units_of(documents))
    twice = run(tmp_path / "twice", units_of(documents | copies))
    assert [once.array(s).tolist() for s in ("train", "val")] == [twice.array(s).tolist() for s in ("train", "val")]
    columns = [line.split()[:3] for line in capsys.readouterr().out.splitlines()]
    assert ["all", "20", "0"] in columns and ["all", "20", "20"] in columns


@pytest.mark.parametrize("n", [1, 8, 30])
def test_the_report_names_the_first_copies_and_says_how_many_more_there_are(tmp_path, capsys, n):
    documents = novel(3)
    copies = {f"copy{i:02}": documents["book1"] for i in range(n)}
    run(tmp_path / "out", units_of(documents | copies))
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("left out")]
    names, _, more = line.partition(": ")[2].partition(" and ")
    assert names.split(", ") == list(copies)[:8] and more == (f"{n - 8} more" if n > 8 else "")


@pytest.mark.parametrize("val_fraction, n_val", [(1e-12, 1), (1 - 1e-12, 19)])
def test_each_split_has_a_document_where_two_differ(tmp_path, val_fraction, n_val):
    dataset = run(tmp_path / "out", units_of(novel(20)), val_fraction=val_fraction)
    assert dataset.meta["splits"]["val"]["documents"] == n_val


@pytest.mark.parametrize("documents", [{}, {"a": "one"}, {"a": "one two", "b": "one  two"}])
def test_fewer_than_two_documents_are_refused_and_leave_nothing(tmp_path, documents):
    with pytest.raises(ValueError, match="need at least 2.* --input.* --separator"):
        run(tmp_path / "out", units_of(documents))
    assert not (tmp_path / "out").exists()


def test_splits_that_are_given_are_kept_and_one_text_may_be_cut_by_position(tmp_path):
    pieces = (Piece("a", "first ", False, "train"), Piece("a", "half", True, "train"), Piece("a", "rest", True, "val"))
    dataset = run(tmp_path / "out", [Unit("a", pieces[:1]), Unit("b", pieces[1:])])
    assert split_of_each(dataset) == {"first half": "train", "rest": "val"}
    plain = run(tmp_path / "plain", [Unit("a", pieces)], eot=False)
    assert [bytes(plain.array(s).astype(np.uint8)) for s in ("train", "val")] == [b"first half", b"rest"]


def test_the_tokenizer_sees_the_training_texts_or_all(tmp_path):
    documents = novel(30) | {"long": "x" * 3 * module.RANK_BYTES}
    units, seen = [*units_of(documents), Unit("two", (Piece("z", "a", False, None), Piece("z", "b", True, None)))], {}

    def make_tokenizer(read):
        seen.update({split: "".join(read(split)) for split in ("train", "val", None)})
        assert "".join(read()) == seen["train"]
        return CharTokenizer.train(read(None))

    dataset = run(tmp_path / "out", units, make_tokenizer)
    assert [dataset.tokenizer.decode(dataset.array(s)) for s in ("train", "val")] == [seen["train"], seen["val"]]
    assert Counter(seen[None]) == Counter("".join(documents.values()) + "ab")


def test_a_search_for_the_splits_reads_no_further_than_it_must(tmp_path):
    log = tmp_path / "log"
    limits = find_limits(units_of(novel(50), log=str(log)), 0.5)
    assert limits == (("val", 2**63),) and 1 < len(log.read_text(encoding="utf-8").splitlines()) < 20
    given = [Unit("t", (Piece("t", "text", True, "train"),)), Unit("v", (Piece("v", "text", True, "val"),), fails="no")]
    assert find_limits(given, 0.5) == limits
    assert list(split_texts(given[:1], limits)) == ["text"]


# ---- workers ---------------------------------------------------------------------------------------------------

# A prepare of its own, since workers import the script that starts them: units of documents, some of which go on in the
# next unit or are copies. FAIL=<unit's number>:<how> makes it fail. "sweep" forks runs that are killed right before the
# n-th time that they open, rename or remove anything in the folder, each followed by one that is not, for n = 0, 1, 2,
# ... until none is killed; and prints the files' hashes behind each.
PREPARE = """
import hashlib, os, random, signal, sys
sys.path.insert(0, {root!r})
from collections import namedtuple
from dataclasses import dataclass
from pathlib import Path
from configurator import exit_on_error
from data.build import build
from data.encode import BYTES_PER_WORKER
from data.options import prepare_parser
from data.tokenizer import CharTokenizer
Piece = namedtuple("Piece", "document text ends split begins", defaults=[True])
@dataclass(frozen=True)
class Unit:
    key: str
    n: int
    size: int = BYTES_PER_WORKER
    def pieces(self, left_out=None):
        draw = random.Random(int(self.key) % 30)
        for i in range(self.n):
            text = "".join(draw.choice("abc 红\\n") for _ in range(draw.randint(1, 800)))
            yield Piece(str(i), text, i != self.n - 1 or self.key[-1] not in "12", None)
        fail, how = os.environ.get("FAIL", "-1:").split(":")
        if fail == self.key:
            if how == "exit":
                os._exit(9)
            yield Piece("bad.txt", how, True, None)
def run(out, workers, n_units, n):
    argv = [f"--out_dir={{out}}", f"--workers={{workers}}", "--val_fraction=0.2", "--test_fraction=0.2"]
    args = prepare_parser("", Path(out), tokenizer="byte").parse_args(argv)
    tokenizer = CharTokenizer("abc 红\\n", eot=True)
    build(args, [Unit(str(i), n) for i in range(n_units)], lambda texts: tokenizer, {{"from": "here"}}, "config/x.py")
def forked(out, n):
    child = os.fork()
    if not child:
        def watch(event, args):
            nonlocal n
            if event in ("open", "os.rename", "os.remove", "os.truncate") and str(args[0]).startswith(out):
                n -= 1
                if n < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(watch)
        sys.stdout, os.fsync = open(os.devnull, "w", encoding="utf-8"), int
        run(out, 1, 5, 2)
        os._exit(0)
    return os.waitpid(child, 0)[1]
def main(argv):
    if argv[0] != "sweep":
        return run(argv[0], int(argv[1]), 40, 50)
    import tqdm  # not anew in every fork
    n, killed = 0, True
    while killed:
        out = argv[1] + str(n)
        killed = forked(out, n)
        assert not forked(out, 10**9)
        files = (Path(out, name).read_bytes() for name in ("train.bin", "val.bin", "meta.json", "test.bin"))
        print(*(hashlib.sha256(file).hexdigest() for file in files))
        n += 1
if __name__ == "__main__":
    exit_on_error(main)
"""


@pytest.fixture(scope="module")
def prepare(tmp_path_factory):
    """prepare(*argv, **environment) runs the script; prepare.command is how to start it."""
    path = tmp_path_factory.mktemp("script") / "prepare.py"
    path.write_text(PREPARE.format(root=str(Path(__file__).resolve().parents[1])), encoding="utf-8")

    def prepare(*argv, **environment):
        return subprocess.run(
            [*prepare.command, *map(str, argv)],
            capture_output=True,
            text=True,
            encoding="utf-8",
            env={**os.environ, **environment},
        )

    prepare.command = [sys.executable, str(path)]
    return prepare


@pytest.fixture(scope="module")
def undisturbed(prepare, tmp_path_factory):
    """The hashes of what the script makes with one worker."""
    out = tmp_path_factory.mktemp("undisturbed")
    assert prepare(out, 1).returncode == 0
    assert all(split["documents"] > 100 for split in open_dataset(out).meta["splits"].values())
    return digests(out)


def test_the_result_is_the_same_for_any_number_of_workers(tmp_path, prepare, undisturbed):
    assert prepare(tmp_path, 3).returncode == 0  # further down there are 2
    assert digests(tmp_path) == undisturbed


def test_bad_text_in_a_worker_is_one_line_that_names_the_document(tmp_path, prepare):
    result = prepare(tmp_path / "out", 2, FAIL="17:abx")
    assert result.returncode == 2 and result.stderr.count("\n") == 1
    assert re.search("bad.txt: .*'x' U\\+0078", result.stderr)


def test_a_worker_that_is_killed_is_one_line_and_the_run_can_be_continued(tmp_path, prepare, undisturbed):
    result = prepare(tmp_path / "out", 2, FAIL="17:exit")
    assert result.returncode == 2 and result.stderr.count("\n") == 1
    assert re.search("a worker process was killed.*--workers=1", result.stderr)
    assert "parts, finished by an earlier run" in prepare(tmp_path / "out", 2).stdout
    assert digests(tmp_path / "out") == undisturbed


def test_text_that_cannot_be_encoded_is_an_error_that_names_the_document(tmp_path):
    with pytest.raises(ValueError, match=r"d1: .*U\+D800"):
        run(tmp_path / "out", units_of({"d0": "ab", "d1": "a\ud800", "d2": "b"}))
    with pytest.raises(ValueError, match="d1: .*not in the vocabulary"):
        run(tmp_path / "out", units_of({"d0": "ab", "d1": "abc", "d2": "b"}), lambda _: CharTokenizer("ab"))


def test_ids_above_65_535_are_stored_in_32_bits(tmp_path):
    chars = "".join(map(chr, [*range(0x20, 0xD800), *range(0xE000, 0x12000)]))
    documents = {"a": chars[::-1], "b": chars[::2], "c": "abc"}
    dataset = run(tmp_path, units_of(documents), lambda _: CharTokenizer(chars))
    assert dataset.dtype == np.uint32 and len(chars) > 65_536
    text = "".join(dataset.tokenizer.decode(dataset.array(split)) for split in ("train", "val"))
    assert Counter(text) == Counter("".join(documents.values()))


# ---- interrupted runs ------------------------------------------------------------------------------------------


def test_a_second_run_reads_only_what_the_first_did_not_finish(tmp_path, capsys):
    log = tmp_path / "log"
    units = units_of(novel(20), log=str(log))
    broken = [*units[:15], Unit(units[15].key, units[15].content, log=str(log), fails="the disk broke"), *units[16:]]
    given = [Unit("train", (Piece("t", "text", True, "train"),)), Unit("val", (Piece("v", "more", True, "val"),))]
    with pytest.raises(ValueError, match="the disk broke"):  # given splits: nothing is read ahead
        run(tmp_path / "out", given + broken)
    log.unlink()
    run(tmp_path / "out", given + units)
    again = log.read_text(encoding="utf-8").split()  # not those behind 15 that were done before its failure was seen
    assert again[0] == units[15].key and set(again) <= {unit.key for unit in units[15:]}
    assert "17 of 22 parts" in capsys.readouterr().out
    run(tmp_path / "whole", given + units)
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")
    assert sorted(os.listdir(tmp_path / "out")) == sorted(FILES)


@pytest.mark.parametrize("change", ["text", "order", "tokenizer", "val_fraction", "test_fraction", "damage", "fewer"])
def test_what_was_made_of_something_else_is_not_used(tmp_path, change):
    units, options = units_of(novel(20)), {}
    broken = [*units[:15], Unit("bad", units[15].content, fails="stop"), *units[16:]]
    with pytest.raises(ValueError, match="stop"):
        run(tmp_path / "out", broken)
    if change == "text":
        units[3] = Unit("new key", (Piece("new", "another text", True, None),))
    elif change == "order":
        units[2], units[9] = units[9], units[2]
    elif change == "tokenizer":
        options["make_tokenizer"] = chars_with_eot
    elif change == "val_fraction":
        options["val_fraction"] = 0.6
    elif change == "test_fraction":
        options["test_fraction"] = 0.3
    elif change == "damage":
        for path in (tmp_path / "out").glob(".prepare-*/train.bin"):
            os.truncate(path, 10)
    else:
        units = units[5:]
    run(tmp_path / "out", units, **options)
    run(tmp_path / "whole", units, **options)
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")
    assert sorted(os.listdir(tmp_path / "out")) == sorted(digests(tmp_path / "whole"))
    assert (change == "test_fraction") == (tmp_path / "out" / "test.bin").exists()


@pytest.mark.parametrize("n_before, settings", [(0, {}), (2, {}), (2, {"val_fraction": 0.6})])
def test_two_prepares_of_one_dataset_do_not_mix(tmp_path, n_before, settings):
    """The first waits in a unit, with or without finished parts before it, while the second starts."""
    reads, entered, leave = [], threading.Event(), threading.Event()

    class Waiting(Unit):
        def pieces(self, left_out=None):
            reads.append(self)
            if len(reads) == 1 + (n_before == 0):  # the very first unit is read once more, for the splits
                entered.set()
                assert leave.wait(600)
            return super().pieces(left_out)

    given = Unit("g", (Piece("t", "text", True, "train"), Piece("v", "more", True, "val")))
    units = [given, *units_of(novel(5))]
    slow = [*units[:n_before], Waiting(units[n_before].key, units[n_before].content), *units[n_before + 1 :]]
    first = threading.Thread(target=partial(run, tmp_path / "out", slow))
    first.start()
    assert entered.wait(600)
    with pytest.raises(ValueError, match="another prepare.py is writing"):
        run(tmp_path / "out", units, **settings)
    leave.set()
    first.join()
    run(tmp_path / "whole", units)
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")


def test_the_next_command_can_be_pasted(tmp_path, capsys):
    run(tmp_path / "my data", units_of(novel(5)))
    last = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert last == ["next", "python", "train.py", "config/x.py", f"--dataset={tmp_path / 'my data'}"]


def test_a_dry_run_reports_the_same_and_writes_nothing(tmp_path, capsys):
    units = units_of(novel(20))
    run(tmp_path / "out", units)
    wet = capsys.readouterr().out.splitlines()
    before = digests(tmp_path / "out")
    build(arguments(tmp_path / "out", dry_run=True), units, bytes_with_eot, {"from": "a test"}, "config/x.py")
    build(arguments(tmp_path / "no", dry_run=True), units, bytes_with_eot, {"from": "a test"}, "config/x.py")
    dry = capsys.readouterr().out.splitlines()
    assert dry[: len(wet) - 2] == wet[:-2] and "nothing written" in dry[-1]
    assert digests(tmp_path / "out") == before and sorted(os.listdir(tmp_path)) == ["out"]


@pytest.mark.parametrize("refused", [False, True])
def test_a_dry_run_works_beside_the_dataset_if_it_can(tmp_path, monkeypatch, refused):
    places, make = [], tempfile.mkdtemp

    def mkdtemp(suffix=None, prefix=None, dir=None):
        places.append(dir)
        if refused and dir is not None:
            raise PermissionError(errno.EACCES, "Permission denied", str(dir))
        return make(suffix, prefix, dir)

    monkeypatch.setattr(tempfile, "mkdtemp", mkdtemp)
    build(arguments(tmp_path / "new/out", dry_run=True), units_of(novel(5)), bytes_with_eot, {"from": "a test"}, "x")
    assert places == [tmp_path, None][: 1 + refused] and not os.listdir(tmp_path)


@pytest.mark.skipif(os.name == "nt", reason="needs fork")
def test_a_dry_run_that_was_killed_leaves_its_folder_only_until_the_next(tmp_path):
    def dry_run(units):
        build(arguments(tmp_path / "out", dry_run=True), units, bytes_with_eot, {"from": "a test"}, "x")

    entered, leave = (threading.Event() for _ in range(2))

    class Waiting(Unit):
        def pieces(self, left_out=None):
            if threading.current_thread() is not thread:  # the worker's: while the folder is in use
                entered.set()
                assert leave.wait(600)
            return super().pieces(left_out)

    if not (child := os.fork()):
        dry_run([*units_of(novel(5)), Unit("end", (Piece("end", "text", True, None),), fails="exit")])
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    [killed] = tmp_path.glob(".dry-run-*")
    units = units_of(novel(5))
    thread = threading.Thread(target=dry_run, args=[[*units, Waiting("more", (Piece("more", "text", True, None),))]])
    thread.start()
    assert entered.wait(600)
    alive = set(tmp_path.glob(".dry-run-*"))
    dry_run(units)
    left = set(tmp_path.glob(".dry-run-*"))
    leave.set()
    thread.join()
    assert len(alive) == 1 and killed not in alive and left == alive
    assert not os.listdir(tmp_path)


def test_the_report_has_what_a_person_wants_to_check(tmp_path, capsys):
    documents = {"a.txt": "aaab", "b.txt": "红" * 50, "c.txt": "aaab", "d.txt": "x\n" * 20, "e.txt": "红楼"}
    run(tmp_path / "out", units_of(documents), chars_with_eot, val_fraction=1e-12)
    out = capsys.readouterr().out
    lines = [line.split() for line in out.splitlines()]
    n_all = ["all", "4", "1", "96", "200", "100", "2.00", "6"]  # 96 characters and 4 ends, of 6 kinds
    assert n_all in lines
    assert ["vocab", "7", "(char),"] == next(line[:3] for line in lines if line[:1] == ["vocab"])
    assert "longest document b.txt, 50 characters" in out
    assert len([line for line in lines if line[:1] == ["sample:"]]) == 6
    train = next(line for line in out.splitlines() if line.startswith("most frequent: '红'"))
    counts = Counter("".join(text for name, text in documents.items() if name != "c.txt"))
    assert "'\\n'" in train and "'红'" in train and counts["红"] == 51
    assert f"--dataset={tmp_path / 'out'}" in out


@pytest.mark.parametrize("vocab_size", [256, 300])
@pytest.mark.parametrize("first, n", [(0, 1000), (3, 501), (990, 99), (5, 0)])
def test_ids_are_counted_as_bincount_does(tmp_path, monkeypatch, vocab_size, first, n):
    monkeypatch.setattr("data.report.CACHED_BYTES", 77)
    ids = np.random.default_rng(0).integers(0, vocab_size, 1000).astype("<u2")
    ids.tofile(tmp_path / "x.bin")
    counts = count_range(tmp_path / "x.bin", ids.dtype, first, n, vocab_size)
    assert counts.tolist() == np.bincount(ids[first : first + n], minlength=vocab_size).tolist()


# ---- kills -----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_kill_before_any_step_and_another_run_give_the_undisturbed_files(tmp_path, prepare):
    result = prepare("sweep", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) > 40 and len(set(lines)) == 1


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs process groups")
def test_a_kill_at_a_random_moment_and_another_run_give_the_undisturbed_files(tmp_path, prepare, undisturbed):
    """Twice; KILLS=20 in the environment makes it 20 times, and SEED=2 takes other moments."""
    draw, n = random.Random(int(os.environ.get("SEED", "1"))), int(os.environ.get("KILLS", "2"))
    start = time.monotonic()
    assert prepare(tmp_path / "whole", 2).returncode == 0
    duration = time.monotonic() - start
    assert digests(tmp_path / "whole") == undisturbed
    for i in range(n):
        out = tmp_path / str(i // 2)  # two kills of each
        process = subprocess.Popen([*prepare.command, str(out), "2"], start_new_session=True, stdout=subprocess.DEVNULL)
        time.sleep(duration * draw.uniform(0.2, 1))  # the moment of the kill; no result depends on it
        if i % 4 == 1:  # the parent alone: its workers must not harm what comes next
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if i % 2 or i == n - 1:
            assert prepare(out, 2).returncode == 0
            assert digests(out) == undisturbed and sorted(os.listdir(out)) == sorted(undisturbed)
