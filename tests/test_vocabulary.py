"""data/vocabulary.py: each published file is found, known and read wherever it is; errors say what to do."""

import base64
import hashlib
import json
import lzma
from pathlib import Path

import pytest
import requests
import tiktoken_ext.openai_public

from data import vocabulary as module
from data.vocabulary import NEEDED, PUBLISHED, from_symbols, read_ranks, read_tokenizer_json, to_symbols

EOT = "<|endoftext|>"
TOKENS = sorted((bytes([b]) for b in range(256)), key=to_symbols)
TOKENS += [b"th", b" th", b" the", "的".encode(), b"\x00\xff"]
MERGES = [(b"t", b"h"), (b" ", b"th"), (b" th", b"e"), (b"\xe7\x9a", b"\x84"), (b"\x00", b"\xff")]


def content(file: str) -> bytes:
    """A small file of the same form, with TOKENS; in p50k_base, without id 256."""
    if file == "encoder.json":
        return json.dumps({to_symbols(t): i for i, t in enumerate(TOKENS)} | {EOT: len(TOKENS)}).encode()
    if file == "vocab.bpe":
        lines = [f"{to_symbols(a)} {to_symbols(b)}\n" for a, b in MERGES]
        return "".join(["#version: 0.2\n", *lines]).encode()
    skip = 256 if file.startswith("p50k") else len(TOKENS)
    ids = [i + (i >= skip) for i in range(len(TOKENS))]
    return b"".join(base64.b64encode(t) + b" %d\n" % i for i, t in zip(ids, TOKENS, strict=True))


@pytest.fixture(autouse=True)
def small_files(tmp_path, monkeypatch):
    """Small files pass for the published ones; caches are empty and the network is closed."""
    for file in PUBLISHED:
        monkeypatch.setitem(PUBLISHED, file, hashlib.sha256(content(file)).hexdigest())
    monkeypatch.setattr(module, "FOLDERS", tmp_path / "code")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    monkeypatch.setattr(requests, "get", lambda *args, **kwargs: pytest.fail("asked the network"))


def answer(content: bytes, status: int = 200) -> requests.Response:
    response = requests.Response()
    response.status_code, response._content, response._content_consumed = status, content, True
    return response


def save(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(lzma.compress(data) if path.suffix == ".xz" else data)
    return path


# ---- OpenAI's ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, place, file",
    [
        ("gpt2", "cache/encoder.json", "encoder.json"),
        ("gpt2", "code/gpt2/encoder.json", "encoder.json"),
        ("gpt2", "code/gpt2/vocab.json", "encoder.json"),
        ("gpt2", "cache/merges.txt", "vocab.bpe"),
        ("gpt2", "cache/r50k_base.tiktoken", "r50k_base.tiktoken"),
        ("r50k_base", "cache/vocab.bpe", "vocab.bpe"),
        ("gpt2", "code/gpt2/encoder.json.xz", "encoder.json"),
        ("gpt2", "cache/6c7ea1a7e38e3a7f062df639a5b80947f075ffe6", "encoder.json"),  # as tiktoken caches it
        ("cl100k_base", "cache/9b5ad71b2ce5302211f9c61530b329a4922fc6a4", "cl100k_base.tiktoken"),
        ("o200k_base", "cache/fb374d419588a4632f3f557e76b4b70aebbca790", "o200k_base.tiktoken"),
    ],
)
def test_vocabularies_are_found_without_the_network(tmp_path, name, place, file):
    save(tmp_path / place, content(file))
    assert read_ranks(name) == TOKENS


@pytest.mark.parametrize("name", NEEDED)
def test_any_file_that_has_the_vocabulary_can_be_given(tmp_path, name):
    for i, file in enumerate(NEEDED[name]):
        path = save(tmp_path / f"{i}" / file, content(file))
        renamed = save(tmp_path / "any name.xz", content(file))
        expected = TOKENS[:256] + [b""] + TOKENS[256:] if name == "p50k_base" else TOKENS
        for given in path, path.parent, renamed:
            assert read_ranks(name, given) == expected


@pytest.mark.parametrize("name", NEEDED)
def test_addresses_and_checksums_are_tiktokens(name, monkeypatch):
    monkeypatch.undo()
    asked = {}
    monkeypatch.setattr(
        tiktoken_ext.openai_public,
        "load_tiktoken_bpe",
        lambda url, expected_hash: asked.update({url: expected_hash}) or {},
    )
    monkeypatch.setattr(
        tiktoken_ext.openai_public,
        "data_gym_to_mergeable_bpe_ranks",
        lambda **k: (
            asked.update({k["vocab_bpe_file"]: k["vocab_bpe_hash"], k["encoder_json_file"]: k["encoder_json_hash"]})
            or {}
        ),
    )
    tiktoken_ext.openai_public.ENCODING_CONSTRUCTORS[name]()
    ours = {module._addresses(file)[0]: sha256 for file, sha256 in PUBLISHED.items() if file in NEEDED[name]}
    assert asked and asked.items() <= ours.items()


def test_the_published_files_of_gpt2_agree(shared_data, monkeypatch):
    monkeypatch.undo()
    folder = shared_data("gpt2/encoder.json").parent
    tokens = read_ranks("gpt2", folder)
    assert tokens == read_ranks("gpt2", folder / "vocab.bpe") == read_ranks("r50k_base", folder)
    ids = json.loads((folder / "encoder.json").read_text(encoding="utf-8"))
    assert {to_symbols(token): id for id, token in enumerate(tokens)} | {EOT: 50256} == ids


def test_a_download_is_made_once_from_the_first_address_that_has_the_file(tmp_path, monkeypatch):
    asked = []

    def get(url, **_):
        asked.append(url)
        return answer(content("encoder.json")) if "mirror" in url else answer(b"<html>log in</html>")

    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example/")
    monkeypatch.setattr(requests, "get", get)
    for _ in range(2):
        assert read_ranks("gpt2") == TOKENS
    assert asked == [
        module._addresses("encoder.json")[0],
        "https://mirror.example/openai-community/gpt2/resolve/main/vocab.json",
    ]
    assert [path.read_bytes() for path in (tmp_path / "cache").iterdir()] == [content("encoder.json")]


@pytest.mark.parametrize(
    "name, file, hub",
    [
        ("gpt2", "encoder.json", "huggingface.co/openai-community/gpt2/resolve/main/vocab.json"),
        ("cl100k_base", "cl100k_base.tiktoken", ""),
    ],
)
def test_a_refused_download_says_which_file_goes_where(tmp_path, monkeypatch, name, file, hub):
    asked = []

    def get(url, timeout, **_):
        asked.append(url)
        assert max(timeout) <= 30
        if "openaipublic" in url:
            raise requests.ConnectionError("no\nroute")
        return answer(b"", status=404)

    monkeypatch.setattr(requests, "get", get)
    with pytest.raises(ValueError) as error:
        read_ranks(name)
    for part in (
        module._addresses(file)[0],
        hub,
        "no connection",
        "HTTP 404" if hub else "",
        "--tokenizer_file",
        str(tmp_path / "code" / name / file),
        "TIKTOKEN_CACHE_DIR",
    ):
        assert part in str(error.value)
    assert "\n" not in str(error.value)
    assert len(asked) == len(set(asked))  # no second tries
    assert not (tmp_path / "cache").exists()


def test_missing_and_damaged_files_are_named(tmp_path):
    with pytest.raises(ValueError, match="has none of encoder.json, vocab.bpe.*openaipublic.blob"):
        read_ranks("gpt2", tmp_path)
    with pytest.raises(ValueError, match="cannot read .*none.json .No such file"):
        read_ranks("gpt2", tmp_path / "none.json")
    path = save(tmp_path / "encoder.json", content("encoder.json")[:1000])
    for given in path, tmp_path:
        with pytest.raises(ValueError, match=r"encoder\.json \(1,000 bytes\) is not the published"):
            read_ranks("gpt2", given)
    path = save(tmp_path / "cut.xz", b"")
    path.write_bytes(b"no xz")
    with pytest.raises(ValueError, match="cut.xz"):
        read_ranks("gpt2", path)


# ---- the hub's ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, place",
    [
        ("qwen2", "qwen2/tokenizer.json"),
        ("llama2", "llama2/tokenizer.json.xz"),
        ("Qwen/Qwen2.5-7B", "Qwen2.5-7B/tokenizer.json"),
    ],
)
def test_a_tokenizer_json_beside_the_code_comes_first(tmp_path, name, place):
    path = save(tmp_path / "code" / place, b'{"a": "\xe7\x9a\x84"}')
    assert read_tokenizer_json(name) == ('{"a": "的"}', str(path))


def test_a_tokenizer_json_can_be_given_packed_or_by_its_folder(tmp_path):
    for i, file in enumerate(("tokenizer.json", "tokenizer.json.xz")):
        path = save(tmp_path / f"{i}" / file, b"{}")
        assert read_tokenizer_json("qwen2", path) == read_tokenizer_json("", path.parent) == ("{}", str(path))


def test_without_the_hub_the_file_its_address_and_its_places_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example/")
    for name, repo in ("qwen2", "Qwen/Qwen2-0.5B"), ("own/er", "own/er"):
        with pytest.raises(ValueError) as error:
            read_tokenizer_json(name)
        for part in (
            f"https://mirror.example/{repo}/resolve/main/tokenizer.json",
            "HF_ENDPOINT",
            str(tmp_path / "code" / name.split("/")[-1] / "tokenizer.json"),
            "--tokenizer_file",
        ):
            assert part in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("data, found", [(b"\n\x0e\xff", "SentencePiece"), (None, "cannot read")])
def test_files_that_are_no_tokenizer_json_are_explained(tmp_path, data, found):
    path = tmp_path / "tokenizer.model"
    if data:
        path.write_bytes(data)
    with pytest.raises(ValueError, match=found) as error:
        read_tokenizer_json("llama2", path)
    assert str(path) in str(error.value)
    with pytest.raises(ValueError, match="no tokenizer.json"):
        read_tokenizer_json("llama2", tmp_path)


def test_byte_symbols_are_a_bijection_and_nothing_else_passes_for_one():
    every = bytes(range(256))
    assert from_symbols(to_symbols(every)) == every
    assert to_symbols(every).isprintable() and " " not in to_symbols(every)
    for character in map(chr, [*range(600), 0x4E00]):
        if character not in to_symbols(every):
            with pytest.raises(ValueError, match="not spelled in bytes"):
                from_symbols("a" + character)
