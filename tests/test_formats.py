"""data/formats.py: every kind of file gives the same text, whole or in parts; bad files are named in one line."""

import bz2
import gzip
import io
import json
import lzma
import os
import re
import tarfile
import zipfile

import pytest

from data import formats
from data.encodings import check_encoding, detect_encoding
from data.formats import Reading, documents, kind_of, parts_of, walk, why_left_out
from data.options import prepare_parser, reading_of
from data.source import find_parts
from data.tokenizer import find_cut
from data.units import make_units

HARD_TEXT = "\ufeff第一回\u3000甄士隐\r\n\u3000\u3000列位看官\r\n𠀀𪚥 emoji 👩‍👩‍👧 \x00\x85\u2028\rend\n"
NOVEL = "".join(
    f"第{i}回 宝玉来见，他说道：“我这里有个人，要到你们那里去了。”\n不知是谁的，上下都说不可 {i}\r\n"
    for i in range(3000)
)
PACKERS = {".gz": gzip.compress, ".xz": lzma.compress, ".bz2": bz2.compress}


def write(path, content):
    path.write_bytes(content)
    return path


def read(path, **options):
    """{document: text} of a file, checking that every document ends once and that none overlap."""
    reading = Reading(**options)
    found, ended = {}, set()
    for part in (part for part in parts_of(path, path.name, reading) if part.size):  # as find() leaves empty ones out
        for document, text, ends in documents(part, reading):
            assert document not in ended
            found[document] = found.get(document, "") + text
            ended |= {document} if ends else set()
    assert ended == set(found)
    return found


def tar(members, mode="w"):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def zipped(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


@pytest.fixture
def small_parts(monkeypatch):
    """Parts of 4 KiB, read by 512 bytes, so that the texts of the tests have many."""
    monkeypatch.setattr(formats, "UNIT", 1 << 12)
    monkeypatch.setattr(formats, "READ_BYTES", 1 << 9)
    monkeypatch.setattr(formats, "DECODED", 1 << 7)


# ---- kinds of files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, kind",
    [
        ("a.txt", (".txt", "")),
        ("A.JSONL.GZ", (".jsonl", ".gz")),
        ("a.tgz", (".tar", ".tgz")),
        ("a.xz", ("", ".xz")),
        ("a.tar.zst", (".tar", ".zst")),
        ("README", ("", "")),
    ],
)
def test_the_suffixes_say_what_a_file_is(name, kind):
    assert kind_of(name) == kind


@pytest.mark.parametrize("suffix", ["", *PACKERS, ".zst"])
def test_text_survives_unchanged_packed_or_not(tmp_path, suffix, small_parts):
    if suffix == ".zst":
        zstandard = pytest.importorskip("zstandard")
    pack = PACKERS.get(suffix) or (zstandard.compress if suffix else bytes)
    text = HARD_TEXT * 300
    assert read(write(tmp_path / f"a.txt{suffix}", pack(text.encode()))) == {f"a.txt{suffix}": text}


def test_rows_of_jsonl_are_documents_named_by_their_line(tmp_path):
    rows = [{"text": HARD_TEXT, "id": 1}, {"content": "二", "text": None}, {"content": "𪚥"}, {"story": "x"}]
    lines = "\ufeff" + "\n\n".join(json.dumps(row, ensure_ascii=i % 2 == 0) for i, row in enumerate(rows))
    path = write(tmp_path / "a.jsonl", lines.encode())
    assert read(path) == {"a.jsonl:1": HARD_TEXT, "a.jsonl:3": "二", "a.jsonl:5": "𪚥", "a.jsonl:7": "x"}
    path = write(tmp_path / "b.jsonl.gz", gzip.compress(json.dumps(rows[1]).encode()))
    assert read(path, field="content") == {"b.jsonl.gz:1": "二"}


def test_rows_of_parquet_are_documents_whatever_the_row_groups(tmp_path, small_parts):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    texts = [f"{HARD_TEXT}{i}" * 3 if i % 7 else None for i in range(300)]
    table = pyarrow.table({"id": range(300), "text": texts, "story": ["no" if i % 7 else None for i in range(300)]})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=20)
    assert len(parts_of(tmp_path / "a.parquet", "", Reading())) > 2
    assert read(tmp_path / "a.parquet") == {f"a.parquet:{i + 1}": text for i, text in enumerate(texts) if text}
    assert len(read(tmp_path / "a.parquet", field="story")) == 257


def test_joined_rows_are_the_lines_of_one_document(tmp_path, small_parts):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    lines = ["", " = Title = \n", "", " Text . \n"] * 100  # as the hub has WikiText
    parquet.write_table(pyarrow.table({"text": lines}), tmp_path / "a.parquet", row_group_size=30)
    assert read(tmp_path / "a.parquet", joined=True) == {"a.parquet": " \n = Title = \n \n Text . \n" * 100}


MEMBERS = {
    "b/two.txt": b"two",
    "a/one.md": HARD_TEXT.encode(),
    "a/.git/x.txt": b"no",
    "a/x.exe": b"no",
    "node_modules/x.txt": b"no",
    "a/three.txt.gz": gzip.compress(b"three"),
    "a/empty.txt": b"",
}
TEXTS = {"b/two.txt": "two", "a/one.md": HARD_TEXT, "a/three.txt.gz": "three"}


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz", "a.tgz", "a.tar.xz", "a.xz"])
def test_members_of_archives_are_documents_without_what_is_no_text(tmp_path, name):
    path = tmp_path / name
    if name == "a.zip":
        zipped(path, MEMBERS)
    else:
        path.write_bytes(tar(MEMBERS, "w:gz" if "gz" in name else "w:xz" if "xz" in name else "w"))
    assert read(path) == {f"{name}/{member}": text for member, text in TEXTS.items()}


@pytest.mark.parametrize("mode", ["w", "w:xz"])
def test_archives_in_archives_are_read_as_openwebtext_has_them(tmp_path, mode):
    pages = {f"{i:07}-0123.txt": f"page {i}".encode() for i in range(30)}
    outer = {f"openwebtext/urlsf_subset00-{i}_data.xz": tar(pages, "w:xz") for i in range(2)}
    path = write(tmp_path / ("subset00.tar" if mode == "w" else "openwebtext.tar.xz"), tar(outer, mode))
    found = read(path)
    assert len(found) == 60 and set(found.values()) == {f"page {i}" for i in range(30)}


@pytest.mark.parametrize("encoding", ["gb18030", "utf-8"])
def test_names_that_chinese_windows_or_a_mac_wrote_into_a_zip_are_readable(tmp_path, encoding):
    name = "红.x".encode(encoding)
    stand_in = b"x" * (len(name) - 2) + b".x"
    path = zipped(tmp_path / "a.zip", {stand_in.decode(): b"x"})
    path.write_bytes(path.read_bytes().replace(stand_in, name))  # without the flag for UTF-8
    assert list(read(path, suffixes=(".x",))) == ["a.zip/红.x"]


@pytest.mark.parametrize(
    "name, why",
    [
        ("a/b.txt", None),
        ("./a/b.TXT", None),
        ("a\\b.txt", None),
        ("a/.b.txt", "as hidden"),
        (".a/b.txt", "as hidden"),
        ("tests/b.txt", "in folders to skip"),
        ("a/tests.txt", None),
        ("a/b.py", "of another type"),
        ("a/b.txt.xz", None),
        ("a/b.json.gz", None),
        ("a/b.tsv", None),
        ("data.xz", None),
    ],
)
def test_which_members_are_wanted(name, why):
    assert why_left_out(name, Reading(skip=("tests",))) == why


needs_links = pytest.mark.skipif(os.name == "nt", reason="making links takes rights there")


@needs_links
def test_links_to_folders_are_followed_once_and_broken_ones_reported(tmp_path, capsys):
    books, elsewhere = tmp_path / "books", tmp_path / "elsewhere"
    for folder in (books / "b", elsewhere):
        folder.mkdir(parents=True)
        (folder / "1.txt").write_text(folder.name, encoding="utf-8")
    (books / "a").symlink_to(elsewhere)
    (books / "b" / "around").symlink_to(books)
    (books / "b" / "up").symlink_to(tmp_path)  # to all that the books are in
    (elsewhere / "2.txt").symlink_to(elsewhere / "1.txt")
    (books / "library.so").symlink_to(tmp_path / "nowhere")
    for name in ("gone", "gone.txt"):
        (books / name).symlink_to(tmp_path / "nowhere")
    (books / "self.txt").symlink_to(books / "self.txt")
    found = [path.relative_to(books).as_posix() for path in walk(books, Reading())]
    assert found == ["a/1.txt", "a/2.txt", "b/1.txt"]
    err = capsys.readouterr().err.splitlines()
    assert [line.split(" is a link to ")[0] for line in err] == [
        f"skipped: {books}/{name}" for name in ("gone", "gone.txt", "self.txt")
    ]


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch, capsys):
    (tmp_path / "a").mkdir()
    (tmp_path / "b.txt").write_text("b", encoding="utf-8")
    scandir = os.scandir

    def refused(path):  # as for anyone but root
        if str(path).endswith("a"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(ValueError, match=f"cannot read {re.escape(str(tmp_path / 'a'))}: Permission denied; "):
        list(walk(tmp_path, Reading()))
    args = prepare_parser("", tmp_path).parse_args([f"--input={tmp_path}", "--skip_bad"])
    assert [part.name for part in find_parts(args, reading_of(args))] == [f"{tmp_path.name}/b.txt"]
    assert f"skipped: cannot read {tmp_path / 'a'}: Permission denied" in capsys.readouterr().err


# ---- parts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "gb18030", "big5hkscs", "utf-16"])
def test_ranges_of_a_text_are_the_text_and_cut_where_a_tokenizer_allows_it(tmp_path, small_parts, encoding):
    path = write(tmp_path / "a.txt", NOVEL.encode(encoding, "ignore"))
    text = NOVEL.encode(encoding, "ignore").decode(encoding)
    parts = parts_of(path, "a.txt", Reading(encoding=encoding))
    assert len(parts) == 1 if encoding == "utf-16" else len(parts) > 20
    assert read(path, encoding=encoding) == {"a.txt": text}
    at = 0
    for part in parts[:-1]:
        at += sum(len(text) for _, text, _ in documents(part, Reading(encoding=encoding)))
        assert find_cut(text, at) == at
    assert [part.first for part in parts] == [True] + [False] * (len(parts) - 1)
    assert [part.last for part in parts] == [False] * (len(parts) - 1) + [True]


def test_a_text_without_a_place_to_cut_is_read_whole(tmp_path, small_parts):
    path = write(tmp_path / "a.txt", ("字" * 30_000).encode())
    assert len(parts_of(path, "", Reading())) == 1
    assert read(path) == {"a.txt": "字" * 30_000}


def test_ranges_of_rows_hold_whole_rows(tmp_path, small_parts):
    rows = [f"{i}" + HARD_TEXT * (i % 9) for i in range(500)]
    path = write(tmp_path / "a.jsonl", "".join(json.dumps({"text": row}) + "\n" for row in rows).encode())
    assert len(parts_of(path, "", Reading())) > 10
    assert list(read(path).values()) == rows


@pytest.mark.parametrize("separator", ["<|endoftext|>", "\n\n\n", "\n* * *\n"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_ranges_of_separated_documents_hold_whole_ones(tmp_path, small_parts, separator, newline):
    stories = [f"story {i}\n\n" + "Once upon a time. " * (i % 50) + "End." for i in range(300)]
    stories = [story.replace("\n", newline) for story in stories]
    between = f"\n{separator}\n".replace("\n", newline)
    path = write(tmp_path / "a.txt", (between.join(stories) + between).encode())
    assert len(parts_of(path, "", Reading(separator=separator))) > 10
    assert list(read(path, separator=separator).values()) == stories


@pytest.mark.parametrize("spelled", [r"\n\n\n", r"\r\n\r\n\r\n"])
def test_crlf_files_are_separated_however_the_newlines_are_spelled(tmp_path, spelled):
    path = write(tmp_path / "a.txt", b"one\r\n1\r\n\r\n\r\ntwo\r\n2")
    for flag, texts in (("--normalize", ["one\n1", "two\n2"]), ("--clean=bom", ["one\r\n1", "two\r\n2"])):
        args = prepare_parser("", tmp_path).parse_args(["--input", str(path), flag, "--separator", spelled])
        [unit] = make_units(args, find_parts(args, reading_of(args)), reading_of(args))
        assert [piece.text for piece in unit.pieces()] == texts


def test_a_separator_that_never_comes_does_not_fill_the_memory(tmp_path, small_parts):
    path = write(tmp_path / "a.txt", NOVEL.encode())
    reading = Reading(separator="<|endoftext|>")
    chunks = [chunk for part in parts_of(path, "a.txt", reading) for chunk in documents(part, reading)]
    assert max(len(text) for _, text, _ in chunks) < 10 * formats.READ_BYTES
    assert "".join(text for _, text, _ in chunks) == NOVEL.strip()


# ---- encodings ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "gb18030", "big5hkscs", "utf-16"])
@pytest.mark.parametrize("pack", ["", ".gz", "zip", "tgz"])
def test_auto_finds_the_encoding_of_chinese_text(tmp_path, encoding, pack):
    text = NOVEL[:20_000].encode(encoding, "ignore").decode(encoding)
    raw = text.encode(encoding)
    if pack == "zip":
        path = zipped(tmp_path / "a.zip", {"a.txt": raw})
    elif pack == "tgz":
        path = write(tmp_path / "a.tgz", tar({"a.txt": raw}, "w:gz"))
    else:
        path = write(tmp_path / f"a.txt{pack}", PACKERS.get(pack, bytes)(raw))
    assert list(read(path, encoding="auto").values()) == [text]


def test_auto_finds_the_encoding_of_a_novel(shared_data):
    text = shared_data("xiyouji.txt").read_text(encoding="utf-8")
    for start in range(0, len(text), 50_000):
        page = text[start : start + 1000]
        for encoding in ("utf-8", "gb18030", "utf-16", "utf-32"):
            assert detect_encoding(page.encode(encoding), "page") == encoding


def test_utf8_is_tried_first_and_a_character_that_the_sample_cuts_is_no_error():
    assert detect_encoding("红楼梦红".encode()[:10], "", whole=False) == "utf-8"
    assert detect_encoding(b"plain", "") == "utf-8"


@pytest.mark.parametrize("raw", [b"caf\xe9 au lait", bytes(range(256)) * 9, "Привет, мир".encode("koi8-r")])
def test_what_is_no_chinese_is_not_guessed(raw):
    with pytest.raises(ValueError, match="book.txt is neither.*--encoding"):
        detect_encoding(raw, "book.txt")


@pytest.mark.parametrize("encoding, byte", [("gb18030", b"\xff"), ("utf-8", b"\xff"), ("big5hkscs", b"\xff")])
def test_one_damaged_byte_is_located_and_can_be_replaced(tmp_path, encoding, byte):
    raw = NOVEL[:20_000].encode(encoding, "ignore")
    at = raw.index(b"\n", 9000) + 1
    path = write(tmp_path / "a.txt", raw[:at] + byte + raw[at:])
    with pytest.raises(ValueError) as auto:
        read(path, encoding="auto")
    assert f"a.txt looks like {encoding}, but has byte 0xff at offset {at} (" in str(auto.value)
    assert "--errors=replace" in str(auto.value) and "--encoding=auto" not in str(auto.value)
    with pytest.raises(ValueError, match=f"is not {encoding}: byte 0xff at offset {at} .*--errors=replace"):
        read(path, encoding=encoding)
    whole = raw[:at].decode(encoding) + "\ufffd" + raw[at:].decode(encoding)
    assert read(path, encoding="auto", errors="replace") == {"a.txt": whole}


@pytest.mark.parametrize("encoding", ["gb18030", "utf-8"])
def test_damage_is_replaced_in_parts_as_in_one_piece_and_counted_by_file(tmp_path, small_parts, capsys, encoding):
    raw = bytearray(NOVEL.encode(encoding))
    raw[100::999] = b"\xff" * len(raw[100::999])
    path = write(tmp_path / "a.txt", bytes(raw))
    write(tmp_path / "b.txt", NOVEL[:999].encode(encoding))
    assert len(parts_of(path, "", Reading(encoding=encoding, errors="replace"))) > 20
    whole = raw.decode(encoding, "replace")
    assert read(path, encoding=encoding, errors="replace") == {"a.txt": whole}
    args = prepare_parser("", tmp_path).parse_args([f"--input={tmp_path}", "--encoding=auto", "--errors=replace"])
    parts = find_parts(args, reading_of(args))
    assert {part.encoding for part in parts} == {encoding}
    replaced = [line for line in capsys.readouterr().out.splitlines() if ": replaced " in line]
    n = len(raw) - len(raw.decode(encoding, "ignore").encode(encoding))
    assert replaced == [f"{tmp_path.name}/a.txt: replaced {n:,} undecodable bytes with U+FFFD"]


@pytest.mark.parametrize("data", [NOVEL.encode("gb18030"), bytes(range(256)) * 99])
def test_a_file_in_another_encoding_and_no_text_are_not_read_as_damaged(tmp_path, data):
    write(tmp_path / "a.txt", data)
    write(tmp_path / "b.txt", NOVEL[:999].encode())
    args = prepare_parser("", tmp_path).parse_args([f"--input={tmp_path}", "--errors=replace"])
    with pytest.raises(ValueError, match=r"a\.txt: [\d,]+ bytes among [\d,]+ characters cannot be decoded"):
        find_parts(args, reading_of(args))


@pytest.mark.parametrize("option, reading", [(["--skip_bad"], {}), ([], {"lenient": True, "suffixes": (".txt",)})])
def test_where_unreadable_files_are_left_out_those_in_another_encoding_are(tmp_path, capsys, option, reading):
    write(tmp_path / "a.txt", NOVEL.encode("gb18030"))
    (tmp_path / "other").mkdir()
    write(tmp_path / "other/a.txt", NOVEL[:999].encode() + b"\xff")
    args = prepare_parser("", tmp_path).parse_args([f"--input={tmp_path}", "--errors=replace", *option])
    assert [part.name for part in find_parts(args, reading_of(args, **reading))] == [f"{tmp_path.name}/other/a.txt"]
    out, err = capsys.readouterr()
    assert f"skipped: {tmp_path.name}/a.txt: " in err and "other/a.txt: replaced 1 undecodable" in out


def test_a_short_file_that_ends_within_a_character_is_damaged(tmp_path, capsys):
    path = write(tmp_path / "a.txt", "再见".encode()[:-1])
    args = prepare_parser("", tmp_path).parse_args([f"--input={path}", "--errors=replace"])
    assert find_parts(args, reading_of(args))
    assert "a.txt: replaced 2 undecodable bytes" in capsys.readouterr().out


@pytest.mark.parametrize("suffix", ["", ".gz", ".tar.gz"])
@pytest.mark.parametrize("kind", [".txt", ".jsonl", ".json", ".csv"])
@pytest.mark.parametrize("encoding", ["gb18030", "big5", "utf-8"])
def test_an_encoding_that_shows_late_is_detected_where_it_shows(tmp_path, monkeypatch, encoding, kind, suffix):
    monkeypatch.setattr(formats, "DETECTED_BYTES", 1 << 12)
    monkeypatch.setattr(formats, "READ_BYTES", 1 << 10)
    monkeypatch.setattr(formats, "DECODED", 1 << 9)
    text = "to be, or not to be\n" * 1000 + "他說道：我這裡有個人，要到你們那裡去了。不知是誰的，上下都說不可。\n" * 9
    rows = {"text": text, "n": 1}, {"text": text[:-1], "n": 2}
    contents = {
        ".txt": text,
        ".jsonl": "\n".join(json.dumps(row, ensure_ascii=False) for row in rows),
        ".json": json.dumps(rows, ensure_ascii=False),
        ".csv": "text\n" + "".join(f'"{row["text"]}"\n' for row in rows),
    }
    content = contents[kind].encode(encoding)
    name = f"a{kind}{suffix}"
    packed = {"": content, ".gz": gzip.compress(content), ".tar.gz": tar({f"x{kind}": content}, "w:gz")}
    found = list(read(write(tmp_path / name, packed[suffix]), encoding="auto").values())
    assert found == ([text] if kind == ".txt" else [row["text"] for row in rows])


def test_damaged_rows_are_replaced_too(tmp_path):
    path = write(tmp_path / "a.jsonl", b'{"text": "caf\xe9"}\n{"text": "b"}\n')
    assert read(path, errors="replace") == {"a.jsonl:1": "caf\ufffd", "a.jsonl:2": "b"}
    with pytest.raises(ValueError, match="a.jsonl:1 is not utf-8: byte 0xe9 at offset 13 .*--errors=replace"):
        read(path)
    pyarrow = pytest.importorskip("pyarrow")
    table = pyarrow.table({"text": pyarrow.array([b"caf\xe9"]).view(pyarrow.string())})
    pytest.importorskip("pyarrow.parquet").write_table(table, tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet", errors="replace") == {"a.parquet:1": "caf\ufffd"}


def test_text_of_no_known_encoding_is_left_out_and_not_replaced(tmp_path, capsys):
    write(tmp_path / "russian.txt", "Привет, мир".encode("koi8-r"))
    write(tmp_path / "good.txt", b"good")
    args = prepare_parser("", tmp_path).parse_args(
        [f"--input={tmp_path}", "--encoding=auto", "--errors=replace", "--skip_bad"]
    )
    assert [part.name for part in find_parts(args, reading_of(args))] == [f"{tmp_path.name}/good.txt"]
    assert "russian.txt is neither UTF-8 (byte 0xf0 at offset 0)" in capsys.readouterr().err


def test_rows_are_read_in_utf16_too(tmp_path):
    texts = ["Ċ 第一回\u2028", "\u0a0a", "x" * 70_000]  # with bytes 0x0A that are no newlines
    rows = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\r\n" for text in texts)
    for encoding in ("utf-16", "utf-16-le"):
        path = write(tmp_path / "a.jsonl", rows.encode(encoding))
        assert list(read(path, encoding=encoding).values()) == texts
    path = write(tmp_path / "a.jsonl", rows.encode("utf-16"))
    assert list(read(path, encoding="auto")) == ["a.jsonl:1", "a.jsonl:2", "a.jsonl:3"]
    with pytest.raises(ValueError, match="a.jsonl is not utf-16: .*BOM"):
        read(write(tmp_path / "a.jsonl", rows.encode("utf-16-le")), encoding="utf-16")


@pytest.mark.parametrize("name", ["gb-18", "hex"])
def test_an_unknown_encoding_is_refused(name):
    with pytest.raises(ValueError, match=f"unknown encoding '{name}'"):
        check_encoding(name)
    assert check_encoding("big5") == "big5"


# ---- what can't be read ------------------------------------------------------------------------------------


def test_text_that_is_not_utf8_is_located_by_file_and_byte(tmp_path, small_parts):
    path = write(tmp_path / "old.txt", "好".encode() * 9000 + "红楼梦".encode("gb18030"))
    with pytest.raises(ValueError, match=r"old\.txt is not utf-8: byte 0xba at offset 27000 .*--encoding=auto"):
        read(path)
    path = write(tmp_path / "old.txt", ("好。好\n" * 9000).encode() + "红楼梦".encode("gb18030"))
    with pytest.raises(ValueError, match=r"offset 90000 "):  # of the file, not of the range
        read(path)


def test_utf16_is_recognised_by_its_mark(tmp_path):
    with pytest.raises(ValueError, match="--encoding=utf-16"):
        read(write(tmp_path / "a.txt", "红楼梦".encode("utf-16")))


def zstd(data):
    try:
        import zstandard
    except ImportError:
        return data
    return zstandard.compress(data)


GOOD = b"".join(b"%d %x\n" % (i, i * i) for i in range(30_000))


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.txt.gz", gzip.compress(GOOD)[:-2000], "cannot read .*a.txt.gz: .*damaged"),
        ("a.txt.xz", lzma.compress(GOOD)[:-2000], "cannot read .*a.txt.xz: .*damaged"),
        ("a.txt.bz2", bz2.compress(GOOD)[:-2000], "cannot read .*a.txt.bz2: .*damaged"),
        ("a.txt.gz", b"no gzip", "cannot read .*a.txt.gz: .*damaged"),
        ("a.txt.zst", b"no zstandard", "cannot read .*a.txt.zst: .*damaged|pip install zstandard"),
        ("a.txt.zst", zstd(GOOD)[:-2000], "cannot read .*a.txt.zst: .*end is missing.*damaged|pip install zstandard"),
        ("a.txt", b"PK\3\4\x14\0\xb8" * 9, "a.txt is an .epub, .docx, .pdf, .parquet, an archive or another"),
        ("a.zip", b"PK no zip", "cannot read .*a.zip: .*damaged"),
        ("a.tar", b"no tar" * 200, "cannot read .*a.tar: .*damaged"),
        ("a.tgz", tar({"x.txt": GOOD}, "w:gz")[:-2000], "cannot read .*a.tgz: .*damaged"),
        ("a.parquet", b"PAR1 no parquet", "cannot read .*a.parquet: .*damaged|pip install pyarrow"),
        ("a.jsonl", b'{"text": "ok"}\n{"text": "o', "a.jsonl:2 is not a readable line of JSON"),
        ("a.jsonl", b'{"title": "x", "body": "y"}', "a.jsonl:1 has no field text or .*, only: title, body; .*--field"),
        ("a.jsonl", b'{"text": 5}', "a.jsonl:1: field text has type int, expected text"),
        ("a.jsonl", b"[1]", "a.jsonl:1 has no field .*list"),
        (
            "a.jsonl",
            b'{"text": "a"}\n' + b"[" * 200_000,
            r"a.jsonl:2 is not a readable line of JSON \(.*recursion",
        ),
        (
            "a.jsonl",
            b'{"text": "a", "n": ' + b"9" * 5000 + b"}",
            "a.jsonl:1 is not a readable line of JSON .*4300 digits",
        ),
        ("a.jsonl", b'{"text": "\\ud800"}', "a.jsonl:1 has half a surrogate pair"),
        ("a.tar", tar({"x.zip": b"PK"}), "x.zip: cannot read a .zip inside another file"),
        ("a.txt", b"", "a.txt is empty; expected text"),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "auto"])
def test_damage_is_one_line_that_names_the_file(tmp_path, name, content, message, encoding):
    with pytest.raises(ValueError, match=message) as error:
        read(write(tmp_path / name, content), encoding=encoding)
    assert "\n" not in str(error.value)


def test_a_zst_of_several_frames_is_read_whole_and_its_errors_are_those_of_a_file(tmp_path):
    pytest.importorskip("zstandard")
    path = write(tmp_path / "a.txt.zst", zstd(GOOD) + zstd(HARD_TEXT.encode()) + zstd(b"") + zstd(GOOD))
    assert read(path) == {"a.txt.zst": GOOD.decode() + HARD_TEXT + GOOD.decode()}
    for cut in (1, 7, len(zstd(GOOD)) // 2):
        with pytest.raises(ValueError, match="end is missing"):
            read(write(path, (zstd(HARD_TEXT.encode()) + zstd(GOOD))[:-cut]))


def test_a_separator_is_not_found_within_a_character(tmp_path, small_parts):
    text = "亅亅亅亅亅亅亅亅\n" * 900 + "|" + "亅" * 99  # 81 7C each in GB18030, where 7C alone is "|"
    path = write(tmp_path / "a.txt", text.encode("gb18030"))
    assert list(read(path, encoding="gb18030", separator="|").values()) == [text.split("|")[0].strip(), "亅" * 99]


def test_a_damaged_member_of_a_zip_is_named(tmp_path):
    path = zipped(tmp_path / "a.zip", {"x.txt": GOOD})
    raw = bytearray(path.read_bytes())
    raw[5000] ^= 0xFF
    with pytest.raises(ValueError, match="cannot read a.zip/x.txt: .*damaged"):
        read(write(path, bytes(raw)))


def test_a_missing_file_and_a_column_that_is_not_there_are_named(tmp_path):
    with pytest.raises(ValueError, match="cannot read .*missing.txt: No such file"):
        read(tmp_path / "missing.txt")
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"text": [1, 2], "b": ["x", "y"]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a.parquet has no text column .*, only: text \(int64\), b \(string\);"):
        read(tmp_path / "a.parquet")


def test_columns_of_parquet_that_hold_no_text_are_refused_and_every_kind_of_text_is_read(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    texts = pyarrow.array(["a", None, "红"])
    raw = texts.cast(pyarrow.binary())
    for column in (
        *(texts, texts.cast(pyarrow.large_string()), texts.dictionary_encode()),
        *(raw, raw.cast(pyarrow.large_binary()), raw.dictionary_encode(), raw.view(pyarrow.binary())),
    ):
        parquet.write_table(pyarrow.table({"text": column}), tmp_path / "a.parquet")
        assert read(tmp_path / "a.parquet") == {"a.parquet:1": "a", "a.parquet:3": "红"}
    for column in ([["a"], ["b"]], [{"s": "a"}], pyarrow.array([1, 2]).dictionary_encode()):
        parquet.write_table(pyarrow.table({"text": column}), tmp_path / "a.parquet")
        with pytest.raises(ValueError, match=r"a.parquet has no text column text .*, only: text \(.*\); .*--field"):
            read(tmp_path / "a.parquet")


def test_a_row_of_parquet_that_is_not_utf8_is_named_or_left_out(tmp_path, capsys):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({"text": pyarrow.array([b"ok", b"caf\xe9"]).view(pyarrow.string())})
    parquet.write_table(table, tmp_path / "bad.parquet")
    with pytest.raises(ValueError, match=r"bad.parquet:2 is not UTF-8: byte 0xe9 at offset 3 "):
        read(tmp_path / "bad.parquet")
    [part] = parts_of(tmp_path / "bad.parquet", "bad.parquet", Reading(), lenient=True)
    assert [text for _, text, _ in documents(part, Reading())] == ["ok"]
    assert "skipped: bad.parquet:2 is not UTF-8" in capsys.readouterr().err


def test_lenient_reading_reports_rows_and_members_and_goes_on(tmp_path, capsys):
    reading = Reading(lenient=True)  # as source code is read
    path = write(tmp_path / "a.jsonl", b'{"text": "a"}\n{"text\n{"text": "b"}\n')
    [part] = parts_of(path, f"{tmp_path.name}.jsonl", reading, lenient=True)
    assert [text for _, text, _ in documents(part, reading)] == ["a", "b"]
    members = {"x.txt": b"x", "y.txt": b"\xff\xfe\xff", "z.txt": b"z\0", "w.txt": b"w"}
    path = write(tmp_path / "a.tgz", tar(members, "w:gz"))
    [part] = parts_of(path, f"{tmp_path.name}.tgz", reading, lenient=True)
    assert "".join(text for _, text, _ in documents(part, reading)) == "xw"
    err = capsys.readouterr().err
    assert err.count("skipped: ") == 3 and "jsonl:2 is not" in err and "y.txt is not utf-8" in err and "NUL" in err


def test_skip_bad_leaves_text_with_a_nul_in(tmp_path):
    args = prepare_parser("", tmp_path).parse_args(["--input", str(tmp_path), "--skip_bad", "--clean=control"])
    write(tmp_path / "nul.txt", b"Page\0 one\n")
    [unit] = make_units(args, find_parts(args, reading_of(args)), reading_of(args))
    assert [piece.text for piece in unit.pieces()] == ["Page one\n"]
