"""data/download.py: downloads resume, are verified, and go on to the next address."""

import hashlib
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from data.download import download_file, github_urls, hub_urls

BODY = bytes(range(256)) * 2000
SHA256 = hashlib.sha256(BODY).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """/good has ranges, /plain ignores them, /wrong has other content, /cut breaks off after 200 kB.

    /hub sends on to /good, /hublie to /wrong, and both state the sha256 that the file should have.
    """

    def do_GET(self):
        self.server.requests.append((self.path, self.headers.get("Range")))
        name = self.path.rsplit("/", 1)[-1]
        if name.startswith("hub"):
            self.send_response(302)
            self.send_header("X-Linked-Etag", f'"{SHA256}"')
            self.send_header("Location", "/good" if name == "hub" else "/wrong")
            self.send_header("Content-Length", "0")
            return self.end_headers()
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
    download_file([server.url("good")], SHA256, tmp_path / "input.txt")
    check(tmp_path)


def test_a_download_resumes_where_an_earlier_one_stopped(tmp_path, server):
    (tmp_path / "input.txt.part").write_bytes(BODY[:1000])
    download_file([server.url("good")], SHA256, tmp_path / "input.txt")
    check(tmp_path)
    assert server.requests == [("/good", "bytes=1000-")]


def test_a_server_without_ranges_sends_it_all_again(tmp_path, server):
    (tmp_path / "input.txt.part").write_bytes(BODY[:1000])
    download_file([server.url("plain")], SHA256, tmp_path / "input.txt")
    check(tmp_path)


@pytest.mark.parametrize("start", [b"x" * 1000, BODY + b"x", b"x" * len(BODY)])
def test_a_wrong_start_is_thrown_away(tmp_path, server, start):
    (tmp_path / "input.txt.part").write_bytes(start)
    download_file([server.url("good")], SHA256, tmp_path / "input.txt")
    check(tmp_path)
    assert server.requests[-1] == ("/good", None)


def test_a_complete_part_is_used(tmp_path, server):
    (tmp_path / "input.txt.part").write_bytes(BODY)
    download_file([server.url("good")], SHA256, tmp_path / "input.txt")
    check(tmp_path)


def test_a_connection_that_breaks_is_taken_up_again(tmp_path, server):
    download_file([server.url("cut")], SHA256, tmp_path / "input.txt")
    check(tmp_path)
    starts = [int((header or "bytes=0-")[6:-1]) for _, header in server.requests]
    assert len(starts) == 3
    assert all(190_000 * i <= start <= 200_000 * i for i, start in enumerate(starts))  # whole pieces are kept


def test_the_next_address_follows_one_that_fails_or_lies(tmp_path, server):
    download_file([server.url("gone"), server.url("wrong"), server.url("good")], SHA256, tmp_path / "input.txt")
    check(tmp_path)
    assert [path for path, _ in server.requests] == ["/gone", "/wrong", "/good"]


def test_when_all_addresses_fail_one_line_says_what_to_fetch_and_how_to_pass_it(tmp_path, server):
    closed = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    closed.server_close()
    nowhere = f"http://127.0.0.1:{closed.server_port}/x"
    with pytest.raises(ValueError) as error:
        download_file([server.url("gone"), server.url("wrong"), nowhere], SHA256, tmp_path / "input.txt")
    message = str(error.value)
    assert "\n" not in message
    for piece in (
        f"{server.url('gone')} (HTTP 404)",
        f"{server.url('wrong')} (wrong contents",
        f"{nowhere} (no connection)",
        "--input FILE",
        str(tmp_path / "input.txt"),
    ):
        assert piece in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "host, variable",
    [("https://huggingface.co", "HF_ENDPOINT"), ("https://raw.githubusercontent.com", "GITHUB_RAW_ENDPOINT")],
)
def test_a_mirror_takes_the_place_of_its_host(tmp_path, server, monkeypatch, host, variable):
    monkeypatch.setenv(variable, server.url("mirror") + "/")
    download_file([host + "/a/b/good"], SHA256, tmp_path / "input.txt")
    check(tmp_path)
    assert server.requests == [("/mirror/a/b/good", None)]


def test_the_proxy_of_the_environment_is_used(tmp_path, server, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", server.url(""))
    download_file(["http://files.invalid/good"], SHA256, tmp_path / "input.txt")
    check(tmp_path)
    assert server.requests == [("http://files.invalid/good", None)]


def test_addresses_of_a_file_on_github():
    assert github_urls("a/b", "c0ffee", "d/e.txt") == [
        "https://raw.githubusercontent.com/a/b/c0ffee/d/e.txt",
        "https://cdn.jsdelivr.net/gh/a/b@c0ffee/d/e.txt",
    ]


def test_addresses_of_a_file_on_the_hub_and_of_a_chinese_name():
    assert hub_urls("a/b", "c.txt") == [
        "https://huggingface.co/datasets/a/b/resolve/main/c.txt",
        "https://hf-mirror.com/datasets/a/b/resolve/main/c.txt",
    ]
    assert github_urls("a/b", "c", "三.txt")[0].endswith("/a/b/c/%E4%B8%89.txt")


def test_without_a_checksum_the_one_that_the_hub_states_is_used(tmp_path, server):
    with pytest.raises(ValueError, match="wrong contents"):
        download_file([server.url("hublie")], None, tmp_path / "input.txt")
    (tmp_path / "input.txt.part").write_bytes(b"x" * 1000)  # of something else
    download_file([server.url("hub")], None, tmp_path / "input.txt")
    check(tmp_path)


def test_without_any_checksum_an_earlier_part_is_not_trusted(tmp_path, server):
    (tmp_path / "input.txt.part").write_bytes(b"x" * 1000)
    download_file([server.url("good")], None, tmp_path / "input.txt")
    check(tmp_path)
