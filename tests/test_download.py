"""data/download.py: downloads resume, are verified, and go on to the next address."""

import hashlib
import json
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from data.download import addresses_of, download_file, download_from_hub, fetch_first, github_urls, hub_urls

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
    for variable in (
        "HTTP_PROXY",
        "ALL_PROXY",
        "NO_PROXY",
        "HF_ENDPOINT",
        "MODELSCOPE_ENDPOINT",
        "GITHUB_RAW_ENDPOINT",
    ):
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


def test_a_connection_that_breaks_is_resumed(tmp_path, server):
    download_file([server.url("cut")], SHA256, tmp_path / "input.txt")
    check(tmp_path)
    starts = [int((header or "bytes=0-")[6:-1]) for _, header in server.requests]
    assert len(starts) == 3
    assert all(190_000 * i <= start <= 200_000 * i for i, start in enumerate(starts))  # whole pieces are kept


def test_a_file_cut_off_without_a_word_is_resumed(tmp_path, server, monkeypatch):
    """As by urllib3 1, which does not compare what came with what was announced."""
    from requests import Response

    pieces = Response.iter_content

    def cut(reply, size):
        if reply.request.url.endswith("cut"):
            yield pieces(reply, size).__next__()
        else:
            yield from pieces(reply, size)

    monkeypatch.setattr(Response, "iter_content", cut)
    failures = fetch_first([server.url("cut"), server.url("good")], None, tmp_path / "input.txt")
    assert len(failures) <= 1
    check(tmp_path)


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


# ---- ModelScope --------------------------------------------------------------------------------------------


class ModelScope(Handler):
    """What https://modelscope.cn answers: its API lists the files of a model, and files are at resolve/master.

    AI-ModelScope has copies of gpt2 (whose b.json is not what the list says) and of the dataset stories."""

    def do_GET(self):
        self.server.requests.append(self.path)
        files = {"config.json": b"{}", "model.safetensors": BODY, "b.json": b"damaged"}
        model, _, file = self.path.partition("/resolve/master/")
        if self.path == "/api/v1/models/AI-ModelScope/gpt2/repo/files?Revision=master&Recursive=true":
            sums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
            rows = [{"Path": name, "Sha256": sums[name], "Type": "blob"} for name in files]
            rows[-1]["Sha256"] = SHA256
            body = json.dumps({"Code": 200, "Data": {"Files": rows}, "Success": True}).encode()
        elif model == "/models/AI-ModelScope/gpt2" and file in files:
            body = files[file]
        elif self.path == "/datasets/AI-ModelScope/stories/resolve/master/d/a.txt":
            body = BODY
        else:
            return self.send_error(404)
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def modelscope(server, tmp_path, monkeypatch):
    server.RequestHandlerClass = ModelScope
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", server.url(""))
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
    return server


def test_weights_come_from_modelscope_checked_and_are_kept(tmp_path, modelscope):
    files = ["config.json", "model.safetensors"]
    paths = download_from_hub("openai-community/gpt2", files, "")
    assert [path.read_bytes() for path in paths] == [b"{}", BODY]
    assert paths[0].parent == tmp_path / "cache/models/AI-ModelScope/gpt2"  # where ModelScope's own library looks
    listing = "/api/v1/models/{}/gpt2/repo/files?Revision=master&Recursive=true".format
    assert modelscope.requests == [
        *(listing("openai-community"), listing("AI-ModelScope")),
        *(f"/models/AI-ModelScope/gpt2/resolve/master/{file}" for file in files),
    ]
    modelscope.requests.clear()
    assert download_from_hub("openai-community/gpt2", files, "") == paths and not modelscope.requests


def test_what_modelscope_lacks_or_damaged_is_one_line(tmp_path, modelscope):
    message = "cannot get b.json of openai-community/gpt2 .*HTTP 404.*b.json .wrong contents.* and use FOLDER"
    with pytest.raises(ValueError, match=message) as error:
        download_from_hub("openai-community/gpt2", ["b.json"], "use FOLDER")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "cache/models/AI-ModelScope/gpt2/b.json").exists()
    with pytest.raises(ValueError, match="cannot get x of a/b .a/b: HTTP 404; AI-ModelScope/b: HTTP 404"):
        download_from_hub("a/b", ["x"], "")


def test_datasets_come_from_modelscope_under_their_own_name_or_as_a_copy(tmp_path, modelscope):
    download_file(hub_urls("a/stories", "d/a.txt"), None, tmp_path / "in" / "input.txt")
    check(tmp_path / "in")
    names = ("a/stories", "AI-ModelScope/stories")
    assert modelscope.requests == [f"/datasets/{name}/resolve/master/d/a.txt" for name in names]


@pytest.mark.parametrize("variable", ["HF_ENDPOINT", "MODELSCOPE_ENDPOINT"])
def test_either_variable_may_name_modelscope(monkeypatch, variable):
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    monkeypatch.setenv(variable, "https://www.modelscope.cn/")
    assert addresses_of("https://huggingface.co/Qwen/Qwen2-0.5B/resolve/main/tokenizer.json") == [
        f"https://www.modelscope.cn/models/{owner}/Qwen2-0.5B/resolve/master/tokenizer.json"
        for owner in ("Qwen", "AI-ModelScope")
    ]
    monkeypatch.setenv("GITHUB_RAW_ENDPOINT", "https://github.example")
    assert addresses_of("https://raw.githubusercontent.com/a") == ["https://github.example/a"]


def test_without_a_checksum_the_one_that_the_hub_states_is_used(tmp_path, server):
    with pytest.raises(ValueError, match="wrong contents"):
        download_file([server.url("hublie")], None, tmp_path / "input.txt")
    (tmp_path / "input.txt.part").write_bytes(b"x" * 1000)  # of something else
    download_file([server.url("hub")], None, tmp_path / "input.txt")
    check(tmp_path)


@pytest.mark.parametrize("name", ["good", "plain"])
def test_without_any_checksum_an_earlier_part_is_not_trusted_nor_its_rest_fetched(tmp_path, server, monkeypatch, name):
    from requests import Response

    pieces, received = Response.iter_content, []

    def counted(reply, size):
        for piece in pieces(reply, size):
            received.append(len(piece))
            yield piece

    monkeypatch.setattr(Response, "iter_content", counted)
    (tmp_path / "input.txt.part").write_bytes(b"x" * 1000)
    download_file([server.url(name)], None, tmp_path / "input.txt")
    check(tmp_path)
    assert sum(received) == len(BODY)


def test_two_addresses_that_one_mirror_replaces_are_tried_once(tmp_path, server, monkeypatch):
    mirror = server.url("mirror")
    monkeypatch.setenv("HF_ENDPOINT", mirror)
    with pytest.raises(ValueError, match="HTTP 404") as error:
        download_file(["https://huggingface.co/a/gone", f"{mirror}/a/gone"], None, tmp_path / "input.txt")
    assert str(error.value).count(mirror) == len(server.requests) == 1
