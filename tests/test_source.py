"""data/source.py: text arrives unchanged, bad input is located, downloads resume and are verified."""

import hashlib
import threading
from argparse import Namespace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.source import (
    arguments,
    download,
    github_urls,
    origin,
    read_document,
    read_input,
    split_by_characters,
)

HARD_TEXT = "\ufeff第一回\u3000甄士隐\r\n\u3000\u3000列位看官\r\n𠀀𪚥 emoji 👩‍👩‍👧 \x00\x85\u2028\rend\n"


def write(path, content):
    path.write_bytes(content)
    return path


# ---- text ------------------------------------------------------------------------------------------------


def test_text_survives_unchanged(tmp_path):
    document = read_document(write(tmp_path / "a.txt", HARD_TEXT.encode()))
    assert document.text == HARD_TEXT
    assert (document.name, document.size) == ("a.txt", len(HARD_TEXT.encode()))
    assert document.sha256 == hashlib.sha256(HARD_TEXT.encode()).hexdigest()


def test_normalize_drops_a_leading_bom_and_crlf_and_nothing_else(tmp_path):
    path = write(tmp_path / "a.txt", (HARD_TEXT + "\ufeff").encode())
    expected = "第一回\u3000甄士隐\n\u3000\u3000列位看官\n𠀀𪚥 emoji 👩‍👩‍👧 \x00\x85\u2028\rend\n\ufeff"
    assert read_document(path, normalize=True).text == expected


@pytest.mark.parametrize("encoding", ["gb18030", "utf-16", "utf-8"])
def test_other_encodings_are_read_when_named(tmp_path, encoding):
    text = "红楼梦\u3000𠀀\r\n"
    assert read_document(write(tmp_path / "a.txt", text.encode(encoding)), encoding).text == text


def test_text_that_is_not_utf8_is_located_by_file_and_byte(tmp_path):
    path = write(tmp_path / "old.txt", "好".encode() * 1000 + "红楼梦".encode("gb18030"))
    with pytest.raises(ValueError, match=r"old\.txt is not utf-8.* at offset 3000 .*--encoding=gb18030"):
        read_document(path)


def test_utf16_is_recognised_by_its_mark(tmp_path):
    with pytest.raises(ValueError, match="--encoding=utf-16"):
        read_document(write(tmp_path / "a.txt", "红楼梦".encode("utf-16")))


@pytest.mark.parametrize("content, options, message", [
    (None, {}, "cannot read .*missing"),
    (b"", {}, "is empty"),
    (b"\xef\xbb\xbf", {"normalize": True}, "is empty"),
    (b"x", {"encoding": "gb-18"}, "unknown encoding 'gb-18'"),
    (b"x", {"encoding": "hex"}, "unknown encoding 'hex'"),
    (b"ab\xff", {"encoding": "gb18030"}, "not gb18030: byte 0xff at offset 2.*another --encoding"),
])
def test_unusable_text_is_one_clear_error(tmp_path, content, options, message):
    path = tmp_path / "missing"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_document(path, **options)


@given(texts=st.lists(st.text(max_size=20), max_size=5), val_fraction=st.floats(0.01, 0.99))
def test_split_cuts_the_texts_in_a_row_once_where_nanogpt_would(texts, val_fraction):
    parts = list(split_by_characters(texts, val_fraction))
    whole = "".join(texts)
    cut = int(len(whole) * (1 - val_fraction))
    assert "".join(text for split, text in parts if split == "train") == whole[:cut]
    assert "".join(text for split, text in parts if split == "val") == whole[cut:]
    assert [split for split, _ in parts] == sorted(split for split, _ in parts)  # train before val
    assert all(text for _, text in parts)


# ---- what a prepare script reads ---------------------------------------------------------------------------


def parse(folder, *argv):
    return arguments("", folder).parse_args(list(map(str, argv)))


def test_input_files_come_in_the_order_given_before_input_txt(tmp_path):
    write(tmp_path / "input.txt", b"beside")
    a, b = write(tmp_path / "a", b"A"), write(tmp_path / "b", b"B")
    assert [d.text for d in read_input(parse(tmp_path, "--input", b, a), [], "")] == ["B", "A"]
    assert [d.text for d in read_input(parse(tmp_path), [], "")] == ["beside"]


def test_a_dry_run_does_not_download(tmp_path, capsys):
    assert read_input(parse(tmp_path, "--dry_run"), ["http://127.0.0.1:9/x"], "") == []
    assert "would download http://127.0.0.1:9/x" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_only_the_known_file_itself_is_normalized_unasked(tmp_path):
    known, other = write(tmp_path / "known", b"\r\nA"), write(tmp_path / "other", b"\r\nB")
    sha256 = hashlib.sha256(b"\r\nA").hexdigest()
    args = parse(tmp_path, "--input", known, other)
    documents = read_input(args, ["http://host/known.txt"], sha256)
    assert [(d.name, d.text) for d in documents] == [("http://host/known.txt", "\nA"), ("other", "\r\nB")]
    source = origin(args, documents[:1])
    assert source == {"from": "http://host/known.txt", "files": 1, "bytes": 3, "sha256": sha256,
                      "encoding": "utf-8", "normalize": True}
    assert origin(args, documents[1:])["normalize"] is False


@pytest.mark.parametrize("value", ["0", "1", "-0.1", "nan", "x"])
def test_val_fraction_is_checked(tmp_path, value):
    with pytest.raises(ValueError, match="val_fraction"):
        parse(tmp_path, f"--val_fraction={value}")


# ---- downloads ---------------------------------------------------------------------------------------------

BODY = bytes(range(256)) * 2000
SHA256 = hashlib.sha256(BODY).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """/good has ranges, /plain ignores them, /wrong has other content, /cut breaks off after 200 kB."""

    def do_GET(self):
        self.server.requests.append((self.path, self.headers.get("Range")))
        name = self.path.rsplit("/", 1)[-1]
        if name not in ("good", "plain", "wrong", "cut"):
            return self.send_error(404)
        start = int((self.headers.get("Range") or "bytes=0-")[6:-1]) if name != "plain" else 0
        body = BODY[start:] if name != "wrong" else b"please log in"
        if not body:
            return self.send_error(416)
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(BODY) - 1}/{len(BODY)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:200_000] if name == "cut" else body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    for variable in ("HTTP_PROXY", "ALL_PROXY", "NO_PROXY", "HF_ENDPOINT", "GITHUB_RAW_ENDPOINT"):
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.delenv(variable.lower(), raising=False)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.requests = []
        server.url = partial("http://127.0.0.1:{}/{}".format, server.server_port)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def check(folder):
    assert (folder / "input.txt").read_bytes() == BODY
    assert [path.name for path in folder.iterdir()] == ["input.txt"]


def test_a_download_is_complete_and_leaves_nothing_else(tmp_path, server):
    download([server.url("good")], SHA256, tmp_path / "input.txt")
    check(tmp_path)


def test_a_download_resumes_where_an_earlier_one_stopped(tmp_path, server):
    (tmp_path / "input.txt.part").write_bytes(BODY[:1000])
    download([server.url("good")], SHA256, tmp_path / "input.txt")
    check(tmp_path)
    assert server.requests == [("/good", "bytes=1000-")]


def test_a_server_without_ranges_sends_it_all_again(tmp_path, server):
    (tmp_path / "input.txt.part").write_bytes(BODY[:1000])
    download([server.url("plain")], SHA256, tmp_path / "input.txt")
    check(tmp_path)


@pytest.mark.parametrize("start", [b"x" * 1000, BODY + b"x", b"x" * len(BODY)])
def test_a_wrong_start_is_thrown_away(tmp_path, server, start):
    (tmp_path / "input.txt.part").write_bytes(start)
    download([server.url("good")], SHA256, tmp_path / "input.txt")
    check(tmp_path)
    assert server.requests[-1] == ("/good", None)


def test_a_complete_part_is_used(tmp_path, server):
    (tmp_path / "input.txt.part").write_bytes(BODY)
    download([server.url("good")], SHA256, tmp_path / "input.txt")
    check(tmp_path)


def test_a_connection_that_breaks_is_taken_up_again(tmp_path, server):
    download([server.url("cut")], SHA256, tmp_path / "input.txt")
    check(tmp_path)
    starts = [int((header or "bytes=0-")[6:-1]) for _, header in server.requests]
    assert len(starts) == 3
    assert all(190_000 * i <= start <= 200_000 * i for i, start in enumerate(starts))  # whole pieces are kept


def test_the_next_address_follows_one_that_fails_or_lies(tmp_path, server):
    download([server.url("gone"), server.url("wrong"), server.url("good")], SHA256, tmp_path / "input.txt")
    check(tmp_path)
    assert [path for path, _ in server.requests] == ["/gone", "/wrong", "/good"]


def test_when_all_addresses_fail_one_line_says_what_to_fetch_and_how_to_pass_it(tmp_path, server):
    closed = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    closed.server_close()
    nowhere = f"http://127.0.0.1:{closed.server_port}/x"
    with pytest.raises(ValueError) as error:
        download([server.url("gone"), server.url("wrong"), nowhere], SHA256, tmp_path / "input.txt")
    message = str(error.value)
    assert "\n" not in message
    for piece in (f"{server.url('gone')} (HTTP 404)", f"{server.url('wrong')} (wrong contents",
                  f"{nowhere} (no connection)", "--input FILE", str(tmp_path / "input.txt")):
        assert piece in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("host, variable", [("https://huggingface.co", "HF_ENDPOINT"),
                                            ("https://raw.githubusercontent.com", "GITHUB_RAW_ENDPOINT")])
def test_a_mirror_takes_the_place_of_its_host(tmp_path, server, monkeypatch, host, variable):
    monkeypatch.setenv(variable, server.url("mirror") + "/")
    download([host + "/a/b/good"], SHA256, tmp_path / "input.txt")
    check(tmp_path)
    assert server.requests == [("/mirror/a/b/good", None)]


def test_the_proxy_of_the_environment_is_used(tmp_path, server, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", server.url(""))
    download(["http://files.invalid/good"], SHA256, tmp_path / "input.txt")
    check(tmp_path)
    assert server.requests == [("http://files.invalid/good", None)]


def test_a_missing_input_txt_is_downloaded_beside_the_script_once(tmp_path, server):
    args = Namespace(input=[], folder=tmp_path, dry_run=False, encoding="latin-1", normalize=False)
    for _ in range(2):
        assert read_input(args, [server.url("good")], SHA256)[0].size == len(BODY)
    check(tmp_path)
    assert len(server.requests) == 1


def test_addresses_of_a_file_on_github():
    assert github_urls("a/b", "c0ffee", "d/e.txt") == [
        "https://raw.githubusercontent.com/a/b/c0ffee/d/e.txt", "https://cdn.jsdelivr.net/gh/a/b@c0ffee/d/e.txt"]
