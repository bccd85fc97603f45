"""data/rows.py: rows that json and csv wrote come back whole, however they are cut, encoded, packed and laid out."""

import bz2
import csv
import gzip
import io
import json
import zipfile
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import formats, rows
from data.formats import Reading, documents, parts_of
from data.rows import FIELDS, csv_rows, json_rows

TEXTS = ['第一回\n\n“好”, 她说; \\ "x"\t|', "a,b\r\nc", "𠀀 👩‍👩‍👧 [{}]", "'", '"', "null", "x" * 300_000]
STRINGS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
ROWS = st.lists(st.tuples(STRINGS.filter(str), STRINGS), max_size=6)


def write(path, content):
    path.write_bytes(content)
    return path


def read(path, left_out=None, **options):
    """{number: text}"""
    reading = Reading(**options)
    found = {}
    for part in parts_of(path, path.name, reading):
        for document, text, ends in documents(part, reading, left_out):
            assert ends and document not in found
            found[document] = text
    return {int(document.rpartition(":")[2]): text for document, text in found.items()}


def as_csv(table, **options):
    file = io.StringIO(newline="")
    csv.writer(file, **options).writerows(table)
    return file.getvalue()


def json_layouts(dicts):
    """The same rows in every layout of a .json file."""
    yield json.dumps(dicts)
    yield json.dumps(dicts, indent=2, ensure_ascii=False)
    yield "\n".join(json.dumps(row) for row in dicts)
    yield "".join(json.dumps(row, indent=1) for row in dicts)
    yield json.dumps({"version": "1", "tags": ["x"], "data": dicts, "n": None}, indent=1)


@given(table=ROWS, size=st.integers(1, 50))
def test_rows_come_back_however_the_text_is_cut(table, size):
    dicts = [{"id": i, "title": title, "text": text} for i, (text, title) in enumerate(table)]
    for text in json_layouts(dicts):
        texts = [text[i : i + size] for i in range(0, len(text), size)]
        if dicts or text.startswith("["):
            assert [row for _, row in json_rows(texts, FIELDS, "a.json")] == dicts
    strings = [{**row, "id": str(row["id"])} for row in dicts]
    for options in ({}, {"quoting": csv.QUOTE_ALL}, {"delimiter": ";"}, {"delimiter": "\t"}):
        text = as_csv([["id", "title", "text"], *(row.values() for row in dicts)], **options)
        texts = [text[i : i + size] for i in range(0, len(text), size)]
        assert [row for _, row in csv_rows(texts, FIELDS, "a.csv", pytest.fail)] == strings


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030", "utf-16"])
@pytest.mark.parametrize("suffix", ["", ".gz", ".bz2", ".zst"])
def test_rows_are_read_in_any_encoding_and_packing(tmp_path, encoding, suffix):
    pack = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress}.get(suffix)
    pack = pack or pytest.importorskip("zstandard").compress
    dicts = [{"text": text, "id": i} for i, text in enumerate(TEXTS)]
    whole = [*json_layouts([json.loads(json.dumps(row)) for row in dicts])]
    for text in [json.dumps(dicts, ensure_ascii=False), *whole]:
        path = write(tmp_path / f"a.json{suffix}", pack(text.encode(encoding)))
        for asked in {encoding.removesuffix("-sig"), "auto"}:
            assert list(read(path, encoding=asked).values()) == TEXTS
    for kind, delimiter in ((".csv", ","), (".tsv", "\t")):
        text = as_csv([["id", "text"], *([row["id"], row["text"]] for row in dicts)], delimiter=delimiter)
        path = write(tmp_path / f"a{kind}{suffix}", pack(text.encode(encoding)))
        for asked in {encoding.removesuffix("-sig"), "auto"}:
            found = read(path, encoding=asked)
            assert list(found.values()) == TEXTS and list(found)[:3] == [2, 5, 7]  # the lines they start in


def test_json_with_a_row_in_each_line_is_read_in_parts_and_the_rest_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "UNIT", 1 << 12)
    monkeypatch.setattr(formats, "READ_BYTES", 1 << 9)
    dicts = [{"text": f"第{i}回\n" * 9} for i in range(300)]
    lines, array, *_ = ("\n".join(map(json.dumps, dicts)), *json_layouts(dicts))
    table = as_csv([["text"], *([row["text"]] for row in dicts)])
    for name, text, is_divided in (("a.json", lines, True), ("b.json", array, False), ("c.csv", table, False)):
        path = write(tmp_path / name, text.encode())
        parts = parts_of(path, name, Reading())
        assert len(parts) > 10 if is_divided else len(parts) == 1
        found = [text for part in parts for _, text, _ in documents(part, Reading())]
        assert found == [row["text"] for row in dicts]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_the_first_field_that_has_text_is_read_and_rows_without_are_counted(tmp_path, suffix):
    values = [(None, "a"), ("", "b"), ("c", "no"), (" \n", "d"), (None, None), ("", ""), (" ", None)]
    path = tmp_path / f"a{suffix}"
    if suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        table = {"content": [text for _, text in values], "text": [text for text, _ in values]}
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.table(table), path)
    elif suffix == ".csv":
        write(path, as_csv([["content", "text"], *((second, first) for first, second in values)]).encode())
    else:
        dicts = [{"content": second, "text": first} for first, second in values]
        write(path, ("\n".join(map(json.dumps, dicts)) if suffix == ".jsonl" else json.dumps(dicts)).encode())
    left_out = Counter()
    assert list(read(path, left_out).values()) == ["a", "b", "c", "d", " "]
    assert left_out == {("rows without text", path.name): 2}
    assert list(read(path, left_out := Counter(), field="text").values()) == ["c", " \n", " "]
    assert left_out == {("rows without text", path.name): 4}


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.json", b"hello", "a.json begins with 'hello', expected the { or"),
        ("a.json", b'[{"text": "a"}, {"text": "b"', "a.json is not readable JSON .*character 28"),
        ("a.json", b'[{"text": "a"} {"text": "b"}]', "a.json is not readable JSON .*',' or ']' .*character 15"),
        ("a.json", b'[{"text": "a"}] x', "a.json is not readable JSON .*after the array at character 16"),
        ("a.json", b'{"text": "a"} x', "a.json is not readable JSON .*character 14"),
        ("a.json", b'[{"text": "a\n"}]', "a.json is not readable JSON .*control character"),
        ("a.json", b'[{"text": ' + b"[" * 200_000, "a.json is not readable JSON .*recursion"),
        ("a.json", b'[{"text": "a"}, {"text": 1}]', "a.json:2: field text has type int, expected text"),
        ("a.json", b'[{"title": "x", "body": "y"}]', "a.json:1 has no field text or .*, only: title, body; .*--field"),
        ("a.json", b'{"title": "x"}', "a.json:1 has no field text or .*, only: title; .*--field"),
        ("a.json", b'{"a": [{"text": "x"}], "b": [{}]}', "a.json has several lists of rows: a, b; "),
        ("a.json", b'["x"]', "a.json:1 has no field .*only: str"),
        ("a.csv", b"id,body\n1,x\n", "a.csv names no column text or .* in its first row, only: id, body; .*--field"),
        ("a.csv", b"id,text\n1,x\n2,x,y\n", "a.csv:3 has 3 fields, but the first row names 2: is a field not quoted"),
        ("a.csv", b'id,text\n1,"x"y\n', "a.csv:2 is not a readable row .*must be quoted"),
        ("a.csv", b'text\n"x\ny', "a.csv:2 is not a readable row .*must be quoted"),
        ("a.csv", "text\n你\n".encode("gbk"), "a.csv is not utf-8: byte 0xc4 at offset 5 .*--encoding=auto"),
        ("a.csv", b"id,text\r1,hello\r2,bye\r", "a.csv:1 is not a readable row .*new-line"),
        ("a.tsv", b"id,text\n", "a.tsv names no column .*only: id,text; "),
    ],
)
def test_what_is_wrong_is_one_line_that_names_the_place(tmp_path, name, content, message):
    with pytest.raises(ValueError, match=message) as error:
        read(write(tmp_path / name, content))
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_a_quote_that_is_never_closed_is_named_before_it_fills_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "LONGEST_ROW", 1000)
    with pytest.raises(ValueError, match="a.csv:3 is not a readable row .*field limit"):
        read(write(tmp_path / "a.csv", b'text\nx\n"' + b"y\n" * 10**6))
    with pytest.raises(ValueError, match="a.json is not readable JSON .*Unterminated string .* character 27"):
        read(write(tmp_path / "a.json", b'[{"text": "x"},{"text":    "' + b"y " * 10**6))


def test_skip_bad_reports_rows_of_a_table_and_goes_on(tmp_path, capsys):
    path = write(tmp_path / f"{tmp_path.name}.csv", b'text,id\na,1\nb\n"c"d,1\n"e\n,",2\nf,3\n')
    [part] = parts_of(path, path.name, Reading(), lenient=True)
    assert [text for _, text, _ in documents(part, Reading())] == ["a", "e\n,", "f"]
    err = capsys.readouterr().err
    assert err.count("skipped: ") == 2 and ".csv:3 has 1 fields" in err and ".csv:4 is not a readable" in err


def test_json_beside_the_data_of_a_folder_or_archive_is_not_read_as_rows(tmp_path):
    members = {
        "d/rows.json": b'[{"text": "a"}]',
        "d/one.json": b'{"title": "t", "text": "b"}',
        "d/tokenizer.json": b'{"added_tokens": [{"content": "<s>"}], "model": {}}',
        "d/dataset_infos.json": b'{"default": {"features": {}}}',
    }
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    left_out, reading = Counter(), Reading()
    parts = parts_of(tmp_path / "a.zip", "a.zip", reading)
    assert [text for part in parts for _, text, _ in documents(part, reading, left_out)] == ["b", "a"]
    why = "as JSON that has no rows of text"
    assert left_out == {(why, "a.zip/d/tokenizer.json"): 1, (why, "a.zip/d/dataset_infos.json"): 1}
    assert read(write(tmp_path / "tokenizer.json", members["d/tokenizer.json"])) == {1: "<s>"}  # named by hand
