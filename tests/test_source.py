"""What --input names, as units of documents in an order and splits that nothing can shake."""

import errno
import io
import json
import lzma
import os
import pickle
import sys
import tarfile
import zipfile
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data import formats, source, units
from data.download import hash_file
from data.formats import EMPTY
from data.options import prepare_parser, reading_of, tokenizer_of
from data.source import download_inputs, find_parts, origin, split_of
from data.tokenizer import find_cut
from data.units import Piece, by_position, cut_at, is_one_text, make_units

HARD_TEXT = "\ufeff第一回\u3000甄士隐\r\n\u3000\u3000列位看官\r\n𠀀𪚥 emoji 👩‍👩‍👧 \x00\x85\u2028\rend\n"
NOVEL = "".join(
    f"第{i}回 宝玉来见\r\n他说道：“我这里有个人，要到你们那里去了。”不知是谁的，上下都说不可 {i}\n" for i in range(3000)
)


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def parse(folder, *argv):
    return prepare_parser("", folder).parse_args(list(map(str, argv)))


def made(args, **options):
    """(parts, units), the units pickled and back, as workers get them."""
    reading = reading_of(args, **options)
    parts = find_parts(args, reading)
    return parts, pickle.loads(pickle.dumps(make_units(args, parts, reading)))


def read(args, **options):
    return documents(made(args, **options)[1])


def documents(all_units):
    """{(document, split): text}, checking that the pieces of each come in a row and that its last one ends it."""
    found, current = {}, None
    for unit in all_units:
        for piece in unit.pieces():
            key = piece.document, piece.split
            assert current in (None, key) and (current or key not in found)
            found[key] = found.get(key, "") + piece.text
            current = None if piece.ends else key
    assert current is None
    return found


@pytest.fixture
def small_parts(monkeypatch):
    """Units of 4 KiB and pieces of 256 characters, so that the texts of the tests have many."""
    for module in (formats, units):
        monkeypatch.setattr(module, "UNIT", 1 << 12)
    monkeypatch.setattr(formats, "READ_BYTES", 1 << 9)
    monkeypatch.setattr(formats, "DECODED", 1 << 7)
    monkeypatch.setattr(units, "PIECE", 1 << 8)
    monkeypatch.setattr(units, "LONGEST_PIECE", 1 << 10)


# ---- finding -----------------------------------------------------------------------------------------------


def test_files_come_in_the_order_given_and_folders_by_name(tmp_path):
    write(tmp_path / "books" / "b.txt", "b")
    write(tmp_path / "books" / "a" / "z.md", "z")
    for name in ("books/none.exe", "books/.hidden.txt", "books/.git/x.txt", "books/__pycache__/x.txt"):
        write(tmp_path / name, "no")
    write(tmp_path / "books" / "empty.txt", "")
    first = write(tmp_path / "first", HARD_TEXT)  # named by hand: whatever its suffix
    assert read(parse(tmp_path, "--input", first, tmp_path / "books")) == {
        ("first", None): HARD_TEXT,
        ("books/b.txt", None): "b",
        ("books/a/z.md", None): "z",
    }


def test_what_is_named_twice_is_read_once(tmp_path):
    book = write(tmp_path / "books" / "a.txt", HARD_TEXT)
    write(tmp_path / "books" / "b.txt", "b")
    args = parse(tmp_path, "--input", book, tmp_path / "books", book)
    assert [Path(part.path).name for part in find_parts(args, reading_of(args))] == ["a.txt", "b.txt"]


@pytest.mark.parametrize(
    "name, message",
    [("missing.txt", "No such file"), ("empty.txt", "is empty"), ("folder", "holds nothing to read; looked for .txt")],
)
def test_an_input_without_text_is_refused(tmp_path, name, message):
    write(tmp_path / "empty.txt", "")
    write(tmp_path / "folder" / "x.exe", "x")
    with pytest.raises(ValueError, match=message):
        made(parse(tmp_path, "--input", tmp_path / name))


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs POSIX's permissions")
def test_what_may_not_be_read_is_named(tmp_path):
    path = write(tmp_path / "closed" / "a.txt", "a")
    path.parent.chmod(0)
    is_root = os.geteuid() == 0
    try:
        if is_root:  # to whom nothing is closed
            os.seteuid(65534)
        with pytest.raises(ValueError, match=f"cannot read {path}: Permission denied; make it readable"):
            made(parse(tmp_path, "--input", path))
    finally:
        if is_root:
            os.seteuid(0)
        path.parent.chmod(0o700)


def test_a_file_that_can_no_longer_be_read_when_it_is_hashed_is_named(tmp_path, monkeypatch):
    def refuse(path, progress=int):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    args = parse(tmp_path, "--input", write(tmp_path / "a.txt", "a"))
    parts = find_parts(args, reading_of(args))
    monkeypatch.setattr(source, "hash_file", refuse)
    for call in (partial(find_parts, args, reading_of(args), "0" * 64), partial(origin, args, parts)):
        with pytest.raises(ValueError, match="cannot read .*a.txt: Permission denied; make it readable"):
            call()


def test_a_bad_file_stops_or_is_reported_and_left_out_where_that_is_wanted(tmp_path, capsys):
    good, bad = write(tmp_path / "a.py", "x = 1"), write(tmp_path / "b.py", b"# caf\xe9")
    write(tmp_path / "c.zip", b"no zip")
    options = {"suffixes": (".py", ".zip"), "lenient": True}
    assert read(parse(tmp_path, "--input", tmp_path), **options) == {(f"{tmp_path.name}/a.py", None): "x = 1"}
    err = capsys.readouterr().err
    assert err.count("\n") == 2 and "b.py is not utf-8: byte 0xe9 at offset 5" in err and "c.zip" in err
    with pytest.raises(ValueError, match="b.py is not utf-8"):  # named by hand
        read(parse(tmp_path, "--input", good, bad), **options)
    assert len(read(parse(tmp_path, "--input", good, bad, "--skip_bad"))) == 1


def test_validation_input_comes_first_so_that_copies_of_it_are_dropped_from_train(tmp_path):
    a, b = write(tmp_path / "a.txt", "a"), write(tmp_path / "b.txt", "b")
    found = read(parse(tmp_path, "--input", a, "--val_input", b))
    assert list(found) == [("b.txt", "val"), ("a.txt", "train")]


@pytest.mark.parametrize(
    "name, split",
    [
        ("TinyStoriesV2-GPT4-train.txt", "train"),
        ("a/TinyStoriesV2-GPT4-valid.txt", "val"),
        ("wiki.test.raw", "test"),
        ("validation-00000-of-00001.parquet", "val"),
        ("dev.jsonl", "val"),
        ("training.txt", None),
        ("train/a.txt", None),
        ("evaluate.txt", None),
    ],
)
def test_names_of_files_tell_the_split(name, split):
    assert split_of(name) == split


def test_splits_by_name_need_a_validation_file(tmp_path, capsys):
    train, test = write(tmp_path / "wiki.train.txt", "a"), write(tmp_path / "wiki.test.txt", "c")
    assert read(parse(tmp_path, "--input", train, test), named_splits=True) == {("wiki.train.txt", None): "a"}
    assert capsys.readouterr().out == "left out 1 as test, by name: wiki.test.txt\n"
    val = write(tmp_path / "wiki.valid.txt", "b")
    assert read(parse(tmp_path, "--input", train, test, val), named_splits=True) == {
        ("wiki.valid.txt", "val"): "b",
        ("wiki.train.txt", "train"): "a",
    }


def test_auto_reports_what_each_file_was_taken_for(tmp_path, capsys):
    write(tmp_path / "a.txt", NOVEL.encode("gb18030"))
    write(tmp_path / "b.txt", NOVEL.encode())
    found = read(parse(tmp_path, "--input", tmp_path, "--encoding=auto"))
    assert set(found.values()) == {NOVEL}
    assert capsys.readouterr().out.splitlines() == [
        f"encoding {tmp_path.name}/a.txt: gb18030",
        "encoding utf-8: 1 of 2 files",
    ]


def zip_of(*names):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, "x" * (not name.startswith("空")))
    return file.getvalue()


def test_empty_files_and_members_are_named_and_count_as_nothing_read(tmp_path, capsys):
    write(tmp_path / "books" / "a.txt", "a")
    write(tmp_path / "books" / "z.zip", zip_of("a.txt", "空.txt", "空.exe", "folder/"))
    for i in range(9):
        write(tmp_path / "books" / f"空{i}.txt", "")
    args = parse(tmp_path, "--input", tmp_path / "books", "--encoding=auto")
    parts, found = made(args)
    assert set(documents(found)) == {("books/a.txt", None), ("books/z.zip/a.txt", None)}
    assert capsys.readouterr().out.splitlines() == [
        "left out 1 of another type (1 .exe): books/z.zip/空.exe",
        f"left out 10 as empty: books/z.zip/空.txt, {', '.join(f'books/空{i}.txt' for i in range(7))} and 2 more",
        "encoding utf-8: 2 of 2 files",
    ]
    assert origin(args, parts)["files"] == 2
    write(tmp_path / "none" / "空.md", "")
    with pytest.raises(ValueError, match="none holds nothing to read; looked for .*; left out 1 as empty: none/空.md"):
        made(parse(tmp_path, "--input", tmp_path / "none"))


def test_documents_of_which_cleaning_leaves_nothing_are_left_out_as_empty(tmp_path):
    texts = {"a.txt": "a", "bom.txt": "\ufeff", "tags.txt": "<p></p>\n<hr>", "blank.txt": " \n"}
    paths = [write(tmp_path / "in" / name, text) for name, text in texts.items()]
    lines = ["b", "<br>", "c", "<p>", "<td>"]
    paths.append(write(tmp_path / "in" / "rows.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in lines)))
    reports = {}
    for clean in ((), ("--clean",)):
        _, found = made(parse(tmp_path, "--input", *paths, *clean))
        left_out = Counter()
        reports[clean] = {piece.document for unit in found for piece in unit.pieces(left_out=left_out)}, left_out
    assert reports[()] == ({*texts, *(f"rows.jsonl:{i}" for i in range(1, 6))}, {})
    assert reports["--clean",] == (
        {"a.txt", "blank.txt", "rows.jsonl:1", "rows.jsonl:3"},
        {(EMPTY, "bom.txt"): 1, (EMPTY, "tags.txt"): 1, (EMPTY, "rows.jsonl"): 3},
    )


def test_only_the_known_file_itself_is_normalized_unasked(tmp_path, capsys):
    known, other = write(tmp_path / "known", "\ufeff\r\nA"), write(tmp_path / "other", "\r\nB")
    asked = parse(tmp_path, "--input", known, "--normalize")
    find_parts(asked, reading_of(asked), hash_file(known))
    assert capsys.readouterr().out == ""
    args = parse(tmp_path, "--input", known, other)
    reading = reading_of(args)
    parts = find_parts(args, reading, hash_file(known))
    out = capsys.readouterr().out
    assert out.startswith("newlines known: 1 CRLF and a byte-order mark of") and ": 4 bytes less" in out
    assert list(documents(make_units(args, parts, reading)).values()) == ["\nA", "\r\nB"]
    assert origin(args, parts[:1]) == {
        "from": "known",
        "files": 1,
        "bytes": 6,
        "sha256": hash_file(known),
        "encoding": "utf-8",
        "errors": "strict",
        "normalize": True,
        "clean": [],
        "special": "text",
    }
    assert origin(args, parts[1:])["normalize"] is False


def test_files_of_the_same_name_count_as_many(tmp_path, capsys):
    paths = [write(tmp_path / folder / "content.txt", NOVEL.encode("gb18030")) for folder in "ab"]
    args = parse(tmp_path, "--input", *paths, "--encoding=auto")
    described = origin(args, find_parts(args, reading_of(args)))
    assert (described["from"], described["files"]) == ("content.txt", 2)
    assert capsys.readouterr().out.splitlines() == ["encoding content.txt: gb18030"] * 2 + [
        "encoding utf-8: 0 of 2 files"
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are bytes on Linux only")
def test_names_that_are_not_utf8_are_shown_as_text(tmp_path):
    for name in ("红楼".encode("gbk"), "水浒".encode(), b"\xff"):
        write(tmp_path / "书" / os.fsdecode(name + b".txt"), "x")
    with tarfile.open(tmp_path / "书" / "z.tgz", "w:gz", format=tarfile.USTAR_FORMAT, encoding="gbk") as archive:
        info = tarfile.TarInfo("三国.txt")
        info.size = 1
        archive.addfile(info, io.BytesIO(b"x"))
    args = parse(tmp_path, "--input", tmp_path / "书")
    parts, found = made(args)
    assert sorted(name for name, _ in documents(found)) == [
        "书/z.tgz/三国.txt",
        "书/水浒.txt",
        "书/红楼.txt",
        "书/\ufffd.txt",
    ]
    assert set(origin(args, parts)["from"].split(", ")) == {"书/z.tgz", "书/水浒.txt", "书/红楼.txt", "书/\ufffd.txt"}


def test_a_missing_download_is_only_announced_in_a_dry_run(tmp_path, capsys):
    files, args = {"input.txt": (["http://127.0.0.1:9/x"], None)}, parse(tmp_path, "--dry_run")
    assert not download_inputs(args, files) and args.input == []
    assert "would download http://127.0.0.1:9/x" in capsys.readouterr().out and not list(tmp_path.iterdir())
    path, args = write(tmp_path / "input.txt", "x"), parse(tmp_path)
    assert download_inputs(args, files) and args.input == [path]


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--val_fraction=0"], "val_fraction"),
        (["--val_fraction=nan"], "val_fraction"),
        (["--val_fraction=x"], "val_fraction: x is not between 0 and 1"),
        (["--test_fraction=1"], "test_fraction: 1 is not from 0 to below 1"),
        (["--test_fraction=nan"], "test_fraction"),
        (["--val_fraction=0.6", "--test_fraction=0.4"], "leave no text to train on: their sum must be below 1"),
        (["--val_input=x", "--val_fraction=0.3"], "--val_fraction=0.3 and --val_input both name the validation split"),
        (["--encoding=gb-18"], "unknown encoding 'gb-18'"),
        (["--clean=adverts"], "no cleaning rule adverts"),
        (["--imput=x"], "imput"),
        (["--workers=-4"], "workers: -4 is not a whole number from 0"),
        (["--tokenizer=gpt2", "--vocab_size=7"], "--vocab_size is only for a bpe .*found --tokenizer=gpt2"),
        (["--tokenizer=byte", "--special_tokens", "<|a|>"], "--special_tokens is only for a bpe"),
        (["--tokenizer=bpe", "--tokenizer_file=x.json", "--vocab_size=300"], "found --tokenizer_file=x.json"),
        (["--tokenizer=bpe", "--min_count=5"], "--min_count=5 needs --trim"),
        (["--tokenizer=bpe", "--vocabulary=a"], "--vocabulary=a needs --tokenizer=char"),
        (["--trim", "--vocabulary=a"], "--vocabulary=a needs --tokenizer=char"),
        (["--special=encode", "--vocabulary=a"], "--vocabulary=a needs --tokenizer=char"),
        (["--vocabulary=nowhere"], "no dataset nowhere"),
    ],
)
def test_flags_are_checked(tmp_path, argv, message):
    with pytest.raises(ValueError, match=message):
        reading_of(parse(tmp_path, *argv))


def test_normalize_and_clean_become_rules_in_their_order(tmp_path):
    assert reading_of(parse(tmp_path)).rules == ()
    assert reading_of(parse(tmp_path, "--normalize")).rules == ("bom", "newlines")
    assert reading_of(parse(tmp_path, "--clean=urls", "--normalize")).rules == ("bom", "newlines", "urls")
    assert reading_of(parse(tmp_path, r"--separator=\n\n\n")).separator == "\n\n\n"


def test_the_flags_make_the_tokenizer(tmp_path):
    args = parse(tmp_path, "--tokenizer=bpe", "--vocab_size=300")
    tokenizer = tokenizer_of(args)(lambda split="train": iter(["abc abd abc"] * 3))
    assert tokenizer.kind == "bpe" and tokenizer.encode("abc").size == 1
    args = parse(tmp_path, "--tokenizer=bpe", "--special_tokens", "<|user|>", "<|bot|>")
    tokenizer = tokenizer_of(args)(lambda split="train": iter(["abc"]))
    assert list(tokenizer.special_tokens) == ["<|endoftext|>", "<|user|>", "<|bot|>"]
    args.tokenizer, args.eot = "char", False
    described = tokenizer_of(args)(lambda split="train": iter(["cab"])).to_json()
    assert described == {"kind": "char", "chars": "abc", "eot": False}


# ---- units -------------------------------------------------------------------------------------------------


def test_small_files_share_a_unit_and_large_ones_have_several(tmp_path, small_parts):
    for i in range(100):
        write(tmp_path / "d" / f"{i:03}.txt", f"{i}" * 100)
    write(tmp_path / "d" / "novel.txt", NOVEL)
    parts, found = made(parse(tmp_path, "--input", tmp_path / "d"))
    assert 20 < len(found) < 0.8 * len(parts)
    assert all(unit.size <= 2.5 * units.UNIT for unit in found)
    assert sum(unit.size for unit in found) == sum(path.stat().st_size for path in (tmp_path / "d").iterdir())
    assert len({unit.key for unit in found}) == len(found)


@pytest.mark.parametrize("argv", [[], ["--normalize"], ["--clean"], ["--clean=blank"]])
def test_pieces_of_ranges_are_what_the_whole_file_gives(tmp_path, small_parts, monkeypatch, argv):
    text = "\ufeff" + NOVEL + "喜书网（www.xitxt.net)免费电子书下载\n\n\n\n" + NOVEL
    path = write(tmp_path / "a.txt", text)
    parts, found = made(parse(tmp_path, "--input", path, *argv))
    assert len(parts) > 20
    pieces = [piece.text for unit in found for piece in unit.pieces()]
    assert max(map(len, pieces)) <= units.LONGEST_PIECE
    monkeypatch.setattr(formats, "UNIT", 1 << 30)
    [whole] = read(parse(tmp_path, "--input", path, *argv)).values()
    assert "".join(pieces) == whole
    at = 0
    for piece in pieces[:-1]:
        at += len(piece)
        assert find_cut(whole, at) == at
    if not argv:
        assert whole == text


def test_a_text_without_a_place_to_cut_still_comes_in_pieces(tmp_path, small_parts):
    _, found = made(parse(tmp_path, "--input", write(tmp_path / "a.txt", "字" * 30_000)))
    pieces = [piece.text for unit in found for piece in unit.pieces()]
    assert "".join(pieces) == "字" * 30_000 and max(map(len, pieces)) == units.LONGEST_PIECE


def test_a_row_of_any_length_is_copied_once(tmp_path, small_parts, monkeypatch):
    searched = []
    monkeypatch.setattr(units, "find_cut", lambda text, start: searched.append(len(text)) or find_cut(text, start))
    path = write(tmp_path / "a.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in (NOVEL, "", "a", NOVEL)))
    assert list(read(parse(tmp_path, "--input", path)).values()) == [NOVEL, "a", NOVEL]
    assert max(searched) <= units.LONGEST_PIECE and sum(searched) < 6 * 2 * len(NOVEL)


def test_a_position_in_the_last_word_of_a_piece_moves_to_its_end():
    pieces = [Piece("a", "one two", False, None), Piece("a", " three", True, None)]
    heads = [
        "".join(piece.text for piece in cut_at(pieces, left, True) if piece.split == "train") for left in range(1, 8)
    ]
    assert heads == ["one"] * 3 + ["one two"] * 4


def test_a_position_in_a_text_without_a_place_to_cut_stays(monkeypatch):
    monkeypatch.setattr(units, "LONGEST_PIECE", 10)
    pieces = [Piece("a", "字" * 10, False, None), Piece("a", "字" * 3, True, None)]
    assert "".join(piece.text for piece in cut_at(pieces, 8, True) if piece.split == "train") == "字" * 8


def test_pieces_say_where_a_document_begins_in_each_split(tmp_path, small_parts, monkeypatch):
    monkeypatch.setattr(units, "PIECE", 50)
    path = write(tmp_path / "a.txt", NOVEL)
    pieces = [piece for unit in made(parse(tmp_path, "--input", path))[1] for piece in unit.pieces()]
    assert len(pieces) > 5 and [piece.begins for piece in pieces] == [True] + [False] * (len(pieces) - 1)
    rows = write(tmp_path / "b.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in (NOVEL, "a", NOVEL)))
    pieces = [piece for unit in made(parse(tmp_path, "--input", rows))[1] for piece in unit.pieces()]
    after_an_end = [True, *(piece.ends for piece in pieces[:-1])]
    assert [piece.begins for piece in pieces] == after_an_end and sum(after_an_end) == 3
    halves = list(cut_at([Piece("a", "one two", False, None), Piece("a", " three", True, None, False)], 3, True))
    assert [(piece.text, piece.begins) for piece in halves] == [("one", True), (" two", True), (" three", False)]
    halves = list(cut_at([Piece("a", text, False, None, text == "one") for text in ("one", " two", " six")], 3, False))
    assert [(piece.text, piece.begins) for piece in halves] == [("one", True), (" two", True), (" six", False)]


def test_the_key_changes_with_whatever_changes_the_text(tmp_path):
    path = write(tmp_path / "a.txt", "abc")
    keys = [
        made(parse(tmp_path, "--input", path, *argv))[1][0].key
        for argv in ([], [], ["--clean"], ["--normalize"], ["--encoding=gbk"], ["--separator=b"])
    ]
    assert keys[0] == keys[1] and len(set(keys)) == 5
    write(path, "abcd")
    assert made(parse(tmp_path, "--input", path))[1][0].key not in keys


def test_a_fraction_takes_the_same_documents_each_time_and_all_of_validation(tmp_path):
    write(tmp_path / "train.txt", "|".join(f"story {i}" for i in range(2000)))
    write(tmp_path / "valid.txt", "|".join(f"tale {i}" for i in range(100)))
    argv = ["--input", tmp_path / "train.txt", tmp_path / "valid.txt", "--separator=|"]
    tenth = read(parse(tmp_path, *argv), named_splits=True, fraction=0.1)
    half = read(parse(tmp_path, *argv), named_splits=True, fraction=0.5)
    assert 100 + 150 < len(tenth) < 100 + 250 and 100 + 900 < len(half) < 100 + 1100
    assert tenth.items() <= half.items()


def test_a_dry_run_shows_what_cleaning_takes_out_by_line_of_the_file(tmp_path, small_parts, capsys):
    text = NOVEL + "喜书网（www.xitxt.net)免费电子书下载\n" + NOVEL
    path = write(tmp_path / "a.txt", text)
    made(parse(tmp_path, "--input", path, "--clean=ads", "--dry_run"))
    assert capsys.readouterr().out.splitlines() == [
        "clean  a.txt:6001: ads: '喜书网（www.xitxt.net)免费电子书下载'",
        "clean  ads: 1 times, 25 characters",
    ]
    made(parse(tmp_path, "--input", path, "--clean=ads"))
    assert capsys.readouterr().out == ""


def test_a_dry_run_has_one_line_for_the_line_ends_and_spaces_of_a_file_of_many_parts(tmp_path, small_parts, capsys):
    folder = tmp_path / "books"
    n = len(NOVEL.splitlines())
    for name in ("a.txt", "b.txt"):
        write(folder / name, "".join(f"\u3000\u3000{line}\r\n\r\n\r\n" for line in NOVEL.splitlines()))
    parts, _ = made(parse(tmp_path, "--input", folder, "--clean", "--dry_run"))
    assert len(parts) > 20
    *lines, _ = capsys.readouterr().out.splitlines()
    assert [line.partition(": ")[0] for line in lines] == ["clean  books/a.txt", "clean  books/b.txt"]
    for line in lines:
        assert set(line.partition(": ")[2].split(", ")) == {
            f"newlines: {3 * n:,} times",
            f"spaces: {n:,} times",
            f"blank: {n:,} times",
        }


# ---- splits by position ------------------------------------------------------------------------------------


@given(
    texts=st.lists(st.text(st.sampled_from("ab 字。\n"), min_size=1, max_size=40), min_size=1, max_size=4),
    val_fraction=st.floats(0.01, 0.99),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=50)
def test_texts_in_a_row_are_cut_once_where_nanogpt_would(tmp_path, texts, val_fraction):
    paths = [write(tmp_path / f"{i}.txt", text) for i, text in enumerate(texts)]
    args = parse(tmp_path, "--input", *paths, f"--val_fraction={val_fraction}")
    reading = reading_of(args)
    found = documents(by_position(args, find_parts(args, reading), reading))
    whole = "".join(texts)
    cut = int(len(whole) * (1 - val_fraction))
    assert "".join(text for (_, split), text in found.items() if split == "train") == whole[:cut]
    assert "".join(text for (_, split), text in found.items() if split == "val") == whole[cut:]
    assert all(found.values())


@given(
    texts=st.lists(st.text(st.sampled_from("ab 字。\n"), min_size=1, max_size=40), min_size=1, max_size=4),
    val_fraction=st.floats(0.01, 0.5),
    test_fraction=st.floats(0.01, 0.45),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=50)
def test_a_test_split_by_position_is_the_end_and_leaves_train_as_a_larger_val_fraction_would(
    tmp_path, texts, val_fraction, test_fraction
):
    paths = [write(tmp_path / f"{i}.txt", text) for i, text in enumerate(texts)]
    args = parse(tmp_path, "--input", *paths, f"--val_fraction={val_fraction}", f"--test_fraction={test_fraction}")
    reading = reading_of(args)
    cut = by_position(args, find_parts(args, reading), reading)
    found, whole = documents(cut), "".join(texts)
    first, second = (int(len(whole) * share) for share in (1 - (val_fraction + test_fraction), 1 - test_fraction))
    for split, text in (("train", whole[:first]), ("val", whole[first:second]), ("test", whole[second:])):
        assert "".join(text for (_, of), text in found.items() if of == split) == text
    for split in ("train", "val", "test"):  # each ends and begins where another does
        side = [piece for unit in cut for piece in unit.pieces() if piece.split == split]
        assert not side or side[-1].ends


@pytest.mark.parametrize("each", [False, True])
def test_three_splits_cut_no_word_in_two_and_train_is_that_of_a_larger_val_fraction(tmp_path, small_parts, each):
    texts = {"a.txt": NOVEL, "b.txt": "好。well " * 50}
    paths = [write(tmp_path / name, text) for name, text in texts.items()]

    def cut(*shares):
        args = parse(tmp_path, "--input", *paths, "--tokenizer=bpe", *shares)
        reading = reading_of(args)
        return documents(by_position(args, find_parts(args, reading), reading, each))

    found, plain = cut("--val_fraction=0.25", "--test_fraction=0.25"), cut("--val_fraction=0.5")
    of_train = [name for name, split in found if split == "train"]
    assert len(of_train) == 1 + each and all(found[name, "train"] == plain[name, "train"] for name in of_train)
    splits = [[found.get((name, split), "") for split in ("train", "val", "test")] for name in texts]
    assert ["".join(parts) for parts in splits] == list(texts.values())
    whole = texts.values() if each else ["".join(texts.values())]
    ends = [[sum(map(len, parts[: i + 1])) for i in (0, 1)] for parts in splits]
    ends = ends if each else [[sum(column) for column in zip(*ends, strict=True)]]
    assert ends == [[find_cut(text, int(len(text) * share)) for share in (0.5, 0.75)] for text in whole]


def test_with_validation_given_the_end_of_the_other_text_is_test(tmp_path):
    a, b = write(tmp_path / "a.txt", "a" * 100), write(tmp_path / "b.txt", "b" * 10)
    args = parse(tmp_path, "--input", a, "--val_input", b, "--test_fraction=0.2")
    reading = reading_of(args)
    assert documents(by_position(args, find_parts(args, reading), reading)) == {
        ("b.txt", "val"): "b" * 10,
        ("a.txt", "train"): "a" * 80,
        ("a.txt", "test"): "a" * 20,
    }
    assert documents(make_units(args, find_parts(args, reading), reading)) == {
        ("b.txt", "val"): "b" * 10,
        ("a.txt", None): "a" * 100,  # by its rank
    }


def test_with_a_test_split_training_files_by_name_are_shared_out(tmp_path):
    for name in ("train-0.txt", "train-1.txt", "valid.txt", "test.txt", "more.txt"):
        write(tmp_path / "in" / name, name)
    for option, split in (("--test_fraction=0", "train"), ("--test_fraction=0.1", None)):
        args = parse(tmp_path, "--input", tmp_path / "in", option)
        parts = find_parts(args, reading_of(args, named_splits=True))
        assert {part.name.rpartition("/")[2]: part.split for part in parts} == {
            "valid.txt": "val", "train-0.txt": split, "train-1.txt": split, "more.txt": None
        }  # fmt: skip


def test_each_text_by_itself_is_cut_at_its_own_end_and_no_word_in_two(tmp_path, small_parts):
    paths = [write(tmp_path / "a.txt", NOVEL), write(tmp_path / "b.txt", "好。" * 50)]
    args = parse(tmp_path, "--input", *paths, "--tokenizer=bpe", "--val_fraction=0.25")
    reading = reading_of(args)
    parts = find_parts(args, reading)
    found = documents(by_position(args, parts, reading, each=True))
    for name, text in (("a.txt", NOVEL), ("b.txt", "好。" * 50)):
        assert found[name, "train"] + found[name, "val"] == text
        cut = len(found[name, "train"])
        assert cut == find_cut(text, int(len(text) * 0.75)) < 0.76 * len(text)


@given(st.lists(st.lists(st.text("ab", max_size=4), min_size=1, max_size=3), max_size=3), st.integers(0, 20))
def test_every_side_of_a_cut_ends_its_documents(texts, left):
    pieces = []
    for i, parts in enumerate(texts):
        last = len(parts) - 1
        pieces += [
            Piece(str(i), text, j == last, None)
            for j, text in enumerate(parts)
            if "".join(parts) and (text or j == last)
        ]
    cut, whole = list(cut_at(pieces, left, False)), "".join(piece.text for piece in pieces)
    for split, text in (("train", whole[:left]), ("val", whole[left:])):
        side = [piece for piece in cut if piece.split == split]
        assert "".join(piece.text for piece in side) == text
        assert not side or side[-1].ends
    assert [replace(piece, split=None) for piece in cut_at(pieces, 10**6, False)] == pieces


@pytest.mark.parametrize("each", [False, True])
def test_what_is_given_for_validation_is_not_cut_by_position(tmp_path, each):
    a, b = write(tmp_path / "a.txt", "a" * 100), write(tmp_path / "b.txt", "b" * 10)
    args = parse(tmp_path, "--input", a, "--val_input", b)
    reading = reading_of(args)
    assert documents(by_position(args, find_parts(args, reading), reading, each)) == {
        ("b.txt", "val"): "b" * 10,
        ("a.txt", "train"): "a" * 100,
    }


def test_what_is_one_text(tmp_path, small_parts):
    a, b = write(tmp_path / "a.txt", NOVEL), write(tmp_path / "b.jsonl", b'{"text": "x"}\n')
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as archive:
        archive.writestr("x.txt", "x")

    def answer(*argv, **options):
        args = parse(tmp_path, "--input", *argv)
        reading = reading_of(args, **options)
        return is_one_text(find_parts(args, reading), reading)

    assert answer(a) and answer(tmp_path / "c.zip")
    assert not answer(a, tmp_path / "c.zip") and not answer(b) and not answer(a, separator="|")
    assert not answer(a, write(tmp_path / "other" / "a.txt", NOVEL))
    assert answer(write(tmp_path / "novel.xz", lzma.compress(NOVEL.encode())))
    with tarfile.open(tmp_path / "pages.xz", "w:xz") as archive:
        archive.add(a, "1.txt")
        archive.add(a, "2.txt")
    assert not answer(tmp_path / "pages.xz")
    assert answer(a, "--val_input", b, "--test_fraction=0.1") and not answer(a, b, "--val_input", a)


def test_archives_that_hide_the_names_of_their_files_are_refused_where_names_tell_the_splits(tmp_path):
    path = write(tmp_path / "stories.tar.gz", b"")
    with tarfile.open(path, "w:gz") as archive:
        info = tarfile.TarInfo("train.txt")
        info.size = 1
        archive.addfile(info, io.BytesIO(b"x"))
    with pytest.raises(ValueError, match="stories.tar.gz: unpack it and pass the folder"):
        read(parse(tmp_path, "--input", path), named_splits=True)


@pytest.mark.parametrize("name", ["novels.tar.xz", "novels.xz", "novels.tar", "novels.zip"])
def test_each_novel_of_an_archive_is_cut_at_its_own_end(tmp_path, small_parts, name):
    texts = {f"{letter}.txt": f"{letter}，好。" * n for letter, n in (("甲", 700), ("乙", 40), ("丙", 400))}
    if name == "novels.zip":
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            for file, text in texts.items():
                archive.writestr(file, text)
    else:
        with tarfile.open(tmp_path / name, "w:xz" if name.endswith("xz") else "w") as archive:
            for file, text in texts.items():
                archive.add(write(tmp_path / file, text), file)
    args = parse(tmp_path, "--input", tmp_path / name, "--val_fraction=0.25")
    reading = reading_of(args)
    found = documents(by_position(args, find_parts(args, reading), reading, each=True))
    assert found == {
        (f"{name}/{file}", split): part
        for file, text in texts.items()
        for split, part in (("train", text[: len(text) * 3 // 4]), ("val", text[len(text) * 3 // 4 :]))
    }


def test_novels_of_the_same_name_are_cut_each_by_itself(tmp_path):
    paths = [write(tmp_path / folder / "a.txt", letter * 100) for folder, letter in (("x", "a"), ("y", "b"))]
    args = parse(tmp_path, "--input", *paths)
    reading = reading_of(args)
    pieces = [
        piece for unit in by_position(args, find_parts(args, reading), reading, each=True) for piece in unit.pieces()
    ]
    assert [(piece.text, piece.split) for piece in pieces] == [
        ("a" * 90, "train"),
        ("a" * 10, "val"),
        ("b" * 90, "train"),
        ("b" * 10, "val"),
    ]
