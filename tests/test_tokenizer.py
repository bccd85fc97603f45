"""data/tokenizer.py: ids agree with plain loops and the libraries, text survives, errors name the cause."""

import functools
import hashlib
import itertools
import json
import lzma
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import regex
import requests
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data import tokenizer as module
from data.tokenizer import (
    EOT,
    TRAIN_PATTERN,
    BPETokenizer,
    ByteTokenizer,
    CharTokenizer,
    IncrementalDecoder,
    TiktokenTokenizer,
    tokenizer_from_json,
)

HARD_TEXT = ("\ufeff第一回\u3000甄士隐\r\n\u3000\u3000列位看官，你道\r\n"
             "𠀀𪚥 👩‍👩‍👧 ❤️ \x00\x85\u2028 हिन्दी e\u0301\rend\n\n")
CODE = "def f(self, x):\n    if x is None:\n        return x.y_z[100:2000]  # it's\n\n\nclass A:\n    pass\n"
STORY = "Once upon a time, there was a dog. The dog didn't like the cat. “Hi,” it said.\n" + CODE + HARD_TEXT

few = settings(max_examples=40, deadline=None)
# dense in the characters where pre-tokens begin and end
edgy_text = st.text(st.sampled_from(list("ab的了é1'.,，。!_ \u3000\n\r\t\x1c\x85Z🙂\u0301")), max_size=80)


@functools.cache
def gpt2_like_vocabulary() -> dict[str, int]:
    """An encoder.json of GPT-2's size: bytes, then pairs and triples of common letters, then any pairs."""
    symbols = sorted(module._SYMBOL.values())
    words = ["".join(p) for n in (2, 3) for p in itertools.product("abdeĠĊ.,ZéçļĦ", repeat=n)]
    pairs = ("".join(p) for p in itertools.product(symbols, repeat=2))
    tokens = list(itertools.islice(dict.fromkeys(itertools.chain(symbols, words, pairs)), 50256))
    return {token: i for i, token in enumerate([*tokens, EOT])}


@pytest.fixture(scope="module")
def gpt2_like():
    ids = gpt2_like_vocabulary()
    return TiktokenTokenizer("gpt2", tokens=[module._from_symbols(token) for token in ids if token != EOT])


@pytest.fixture(scope="module")
def bpe():
    return BPETokenizer.train([STORY, STORY], 400)


@pytest.fixture(scope="module")
def kinds(bpe, gpt2_like):
    return {"byte": ByteTokenizer(), "byte eot": ByteTokenizer(eot=255), "bpe": bpe, "tiktoken": gpt2_like}


def with_char(kinds: dict, text: str) -> list:
    return [*kinds.values(), CharTokenizer.train(text + "."), CharTokenizer.train(text + ".", eot=True)]


# ---- every kind ------------------------------------------------------------------------------------------


@few
@given(text=st.text(max_size=60) | edgy_text)
@example(text=HARD_TEXT)
@example(text="")
@example(text=EOT + "<|im_end|>")
def test_text_survives_and_token_bytes_are_its_utf8(kinds, text):
    for tokenizer in with_char(kinds, text):
        ids = tokenizer.encode(text)
        assert (ids.dtype, ids.ndim) == (np.uint16, 1)
        assert tokenizer.decode(ids) == tokenizer.decode(ids.tolist()) == text
        assert b"".join(map(tokenizer.token_bytes, ids)) == text.encode("utf-8")
        assert tokenizer.eot is None or tokenizer.eot not in ids


def test_a_description_survives_json_and_rebuilds_the_same_tokenizer(kinds):
    for tokenizer in with_char(kinds, HARD_TEXT):
        again = tokenizer_from_json(json.loads(json.dumps(tokenizer.to_json())))
        assert type(again) is type(tokenizer)
        assert (again.vocab_size, again.eot) == (tokenizer.vocab_size, tokenizer.eot)
        assert again.to_json() == tokenizer.to_json()
        assert again.encode(HARD_TEXT).tolist() == tokenizer.encode(HARD_TEXT).tolist()


def test_the_end_of_text_id_stands_for_no_text(kinds):
    assert [t.eot for t in with_char(kinds, "ab")] == [None, 255, 399, 50256, None, 3]
    for tokenizer in with_char(kinds, "ab"):
        if tokenizer.eot is not None:
            a, b = tokenizer.encode("ab").tolist() if len(tokenizer.encode("ab")) == 2 else (0, 1)
            assert tokenizer.eot == tokenizer.vocab_size - 1
            assert tokenizer.token_bytes(tokenizer.eot) == b""
            assert tokenizer.decode([a, tokenizer.eot, b]) == tokenizer.decode([a, b])


@pytest.mark.parametrize("ids, named", [([0, -1], "-1"), ([0, 60000], "60000"), ([2**40], str(2**40)),
                                        ([[0]], r"\(1, 1\)"), ([0.0], "float64"), (["0"], "<U1")])
def test_ids_that_no_token_has_are_named(kinds, ids, named):
    for tokenizer in with_char(kinds, "ab"):
        with pytest.raises(ValueError, match=named):
            tokenizer.decode(ids)


def test_an_id_of_the_padded_vocabulary_is_named(kinds):
    for tokenizer in with_char(kinds, "ab"):
        id = tokenizer.vocab_size
        with pytest.raises(ValueError, match=f"token id {id} is outside .* of {id};"):
            tokenizer.token_bytes(id)
        with pytest.raises(ValueError, match=f"token id {id} is outside .* of {id};"):
            tokenizer.decode(np.array([0, id]))


def test_lone_surrogates_are_refused_with_their_position(kinds):
    text = "🙂" * 20000 + "\udc80!"
    calls = [t.encode for t in with_char(kinds, "🙂")]
    for call in [*calls, CharTokenizer.train, lambda text: BPETokenizer.train([text], 300)]:
        with pytest.raises(ValueError, match=r"lone surrogate, U\+DC80, at character 20000"):
            call(text)


@pytest.mark.parametrize("d", [
    None, [], {}, {"kind": "words"}, {"kind": "byte", "eot": 7}, {"kind": "char"},
    {"kind": "char", "chars": 5, "eot": False}, {"kind": "bpe"}, {"kind": "bpe", "tokenizer": "{}"},
    {"kind": "tiktoken", "name": "gpt2", "tokens": "a b c"},
    {"kind": "tiktoken", "name": "o200k", "tokens": "a"},
])
def test_a_damaged_description_is_a_value_error(d):
    with pytest.raises(ValueError, match="kind|tokenizer"):
        tokenizer_from_json(d)


# ---- characters ------------------------------------------------------------------------------------------


@few
@given(text=st.text(min_size=1), other=st.text())
@example(text=HARD_TEXT, other="\U0010ffff")
def test_char_ids_are_nanogpts(text, other):
    chars = sorted(set(text))
    stoi = {c: i for i, c in enumerate(chars)}
    tokenizer = CharTokenizer.train(iter([text[:3], text[3:]]))
    assert (tokenizer.vocab_size, tokenizer.chars) == (len(chars), "".join(chars))
    assert tokenizer.encode(text).tolist() == [stoi[c] for c in text]
    unknown = sorted(set(other) - set(text))
    if unknown:
        with pytest.raises(ValueError) as error:
            tokenizer.encode(text + other)
        named = [f"{c!r} U+{ord(c):04X}" for c in unknown]
        assert f"{len(unknown)} distinct" in str(error.value)
        assert all(name in str(error.value) for name in named[:8])
        assert not any(f"{name}," in str(error.value) for name in named[8:])


def test_no_other_character_passes_for_one_of_the_vocabulary():
    tokenizer = CharTokenizer("ab")
    for other in (*map(chr, range(300)), "\U0010ffff"):
        if other not in "ab":
            with pytest.raises(ValueError, match="1 distinct"):
                tokenizer.encode("a" + other)


def test_char_ids_outgrow_16_bits_after_65536_characters():
    codes = [*range(0xD800), *range(0xE000, 0x10801)]
    text = "".join(map(chr, codes))
    small, large = CharTokenizer(text[:65536]), CharTokenizer(text[:65537])
    assert (small.encode(text[65535]).dtype, small.encode(text[65535]).tolist()) == (np.uint16, [65535])
    assert (large.encode(text[65536]).dtype, large.encode(text[65536]).tolist()) == (np.uint32, [65536])
    assert CharTokenizer(text[:65536], eot=True).encode(text[:9]).dtype == np.uint32
    assert large.decode(large.encode(text[:65537])) == text[:65537]


@pytest.mark.parametrize("chars", ["", "aba"])
def test_char_vocabularies_without_or_with_repeated_characters_are_refused(chars):
    with pytest.raises(ValueError, match="distinct"):
        CharTokenizer(chars)


def test_char_vocabularies_of_real_texts(shared_data):
    for name, size in ("hongloumeng.txt", 4435), ("tinyshakespeare.txt", 65):
        text = shared_data(name).read_text(encoding="utf-8")
        tokenizer = CharTokenizer.train(text)
        assert tokenizer.vocab_size == size
        assert tokenizer.decode(tokenizer.encode(text)) == text


# ---- byte-level BPE --------------------------------------------------------------------------------------


def merges_of(tokenizer: BPETokenizer) -> list[tuple[str, str]]:
    return [tuple(pair) for pair in json.loads(tokenizer.to_json()["tokenizer"])["model"]["merges"]]


def words_of(text: str) -> list[str]:
    """Pre-tokens by another regex engine, spelled in byte symbols. Between matches there is nothing."""
    words = regex.findall(TRAIN_PATTERN, text)
    assert "".join(words) == text
    return [module._to_symbols(word.encode("utf-8")) for word in words]


def merged(symbols: list[str], pair: tuple[str, str]) -> list[str]:
    out = []
    for symbol in symbols:
        if out and (out[-1], symbol) == pair:
            out[-1] += symbol
        else:
            out.append(symbol)
    return out


@few
@given(text=st.text(max_size=60) | edgy_text)
@example(text=STORY)
@example(text="字" * 40 + "a" * 70 + "." * 40 + " " * 70 + "\n" * 40 + "\t" * 70 + "1" * 8)
def test_bpe_ids_are_those_of_a_plain_loop_over_the_merges(bpe, text):
    ids = []
    vocab = json.loads(bpe.to_json()["tokenizer"])["model"]["vocab"]
    for word in words_of(text):
        symbols = list(word)
        for pair in merges_of(bpe):
            symbols = merged(symbols, pair)
        ids += [vocab[symbol] for symbol in symbols]
    assert bpe.encode(text).tolist() == ids


def test_each_bpe_merge_is_of_a_most_frequent_pair():
    words = [list(word) for word in words_of(STORY)]
    for pair in merges_of(BPETokenizer.train(STORY, 320)):
        counts = Counter(p for word in words for p in itertools.pairwise(word))
        assert counts[pair] == max(counts.values()) >= 2
        words = [merged(word, pair) for word in words]


def test_bpe_training_gives_the_same_ids_in_another_process_and_on_one_thread(bpe, tmp_path):
    path = tmp_path / "story.txt"
    path.write_bytes(STORY.encode("utf-8"))
    program = ("import json, sys; from data.tokenizer import BPETokenizer\n"
               "text = open(sys.argv[1], 'rb').read().decode('utf-8')\n"
               "print(json.dumps(BPETokenizer.train(iter([text, text]), 400).to_json()))")
    run = subprocess.run([sys.executable, "-c", program, str(path)], cwd=Path(module.__file__).parents[1],
                         env={**os.environ, "RAYON_NUM_THREADS": "1"}, check=True, capture_output=True)
    assert json.loads(run.stdout) == bpe.to_json()


def test_bpe_has_all_bytes_and_end_of_text_last_however_little_text_there_was():
    tokenizer = BPETokenizer.train([], 300)
    assert (tokenizer.vocab_size, tokenizer.eot) == (257, 256)
    assert {tokenizer.token_bytes(i) for i in range(256)} == {bytes([b]) for b in range(256)}
    assert tokenizer.decode(tokenizer.encode(HARD_TEXT)) == HARD_TEXT
    with pytest.raises(ValueError, match="256, expected at least 257"):
        BPETokenizer.train(["text"], 256)


def test_a_typed_special_token_is_encoded_as_if_the_vocabulary_had_none(bpe):
    plain = json.loads(bpe.to_json()["tokenizer"])
    plain["added_tokens"] = []
    text = f"a {EOT}{EOT}b\n{EOT}"
    assert bpe.encode(text).tolist() == tokenizers.Tokenizer.from_str(json.dumps(plain)).encode(text).ids


GPT2_SPLIT = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
GPT4_SPLIT = tokenizers.pre_tokenizers.Sequence([
    tokenizers.pre_tokenizers.Split(tokenizers.Regex(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+"), "isolated"),
    tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
NO_SPLIT = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def library_bpe(pre_tokenizer, text: str = STORY, **trainer) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator([text], tokenizers.trainers.BpeTrainer(
        vocab_size=420, show_progress=False, initial_alphabet=alphabet, **trainer))
    return tokenizer


@pytest.fixture(scope="module")
def file_tokenizers(bpe):
    mixed = "".join(a + b for a in "ab的了" for b in "a的1'., \n，。") * 3 + STORY
    libraries = [library_bpe(split, mixed) for split in (GPT2_SPLIT, GPT4_SPLIT, NO_SPLIT)]
    return [bpe, *(BPETokenizer(library.to_str()) for library in libraries)]


@few
@given(parts=st.lists(edgy_text, max_size=8))
def test_long_texts_get_the_ids_that_the_libraries_give_them_unsplit(file_tokenizers, gpt2_like, parts):
    text = "".join(parts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK", 3)
        patch.setattr(module, "GROUP", 2)
        assert gpt2_like.encode(text).tolist() == gpt2_like._encoding.encode_ordinary(text)
        for tokenizer in file_tokenizers:
            library = tokenizers.Tokenizer.from_str(tokenizer.to_json()["tokenizer"])
            assert tokenizer.encode(text).tolist() == library.encode(text).ids


def test_texts_are_split_where_their_tokenizer_allows_it(file_tokenizers):
    assert [t._cut is not None for t in file_tokenizers] == [True, True, True, False]
    pieces = list(module._pieces(STORY * 2000, module.CUT))
    assert "".join(pieces) == STORY * 2000
    assert max(map(len, pieces)) < module.CHUNK + len(STORY)


def test_a_file_with_special_and_added_tokens(tmp_path):
    library = library_bpe(GPT4_SPLIT, special_tokens=["<pad>", EOT])
    library.add_tokens(["    ", "é!"])
    library.add_special_tokens(["<|im_end|>"])
    library.enable_truncation(3)
    library.enable_padding(length=50)
    path = tmp_path / "tokenizer.json"
    library.save(str(path))
    tokenizer = BPETokenizer.from_file(path)
    assert (tokenizer.vocab_size, tokenizer.eot) == (library.get_vocab_size(), 1)
    assert list(map(tokenizer.token_bytes, (0, 1, 420, 421, 422))) == [b"", b"", b"    ", "é!".encode(), b""]
    ids = tokenizer.encode("if x:\n    é! <pad><|im_end|>").tolist()
    assert 420 in ids and 421 in ids and not {0, 1, 422} & set(ids)
    assert tokenizer.decode(ids) == "if x:\n    é! <pad><|im_end|>"


def test_files_that_would_change_the_text_are_refused(tmp_path):
    path = tmp_path / "t.json"
    prefix = library_bpe(tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True))
    lower = library_bpe(GPT2_SPLIT)
    lower.normalizer = tokenizers.normalizers.Lowercase()
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    for library, reason in (prefix, "gives back"), (lower, "gives back"), (words, "254 of the 256 bytes"):
        library.save(str(path))
        with pytest.raises(ValueError, match=reason) as error:
            BPETokenizer.from_file(path)
        assert str(path) in str(error.value)
    for content, bad in (b"{", path), (b"\xff", path), (b"", tmp_path / "none.json"), (b"", tmp_path):
        path.write_bytes(content)
        with pytest.raises(ValueError) as error:
            BPETokenizer.from_file(bad)
        assert str(bad) in str(error.value) and "\n" not in str(error.value)


def test_qwens_file_on_a_novel(shared_data, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(lzma.decompress(shared_data("qwen2/tokenizer.json.xz").read_bytes()))
    text = shared_data("hongloumeng.txt").read_text(encoding="utf-8")
    tokenizer = BPETokenizer.from_file(path)
    ids = tokenizer.encode(text)
    assert (tokenizer.vocab_size, ids.dtype) == (151646, np.uint32)
    assert (len(ids), len(np.unique(ids))) == (690190, 9301)
    assert tokenizer.decode(ids) == text


# ---- GPT-2 -----------------------------------------------------------------------------------------------


@pytest.fixture
def encoder_json(tmp_path, monkeypatch):
    """The bytes of a made-up file that passes for GPT-2's; caches are empty and the network is closed."""
    data = json.dumps(gpt2_like_vocabulary()).encode()
    monkeypatch.setattr(module, "GPT2_SHA256", hashlib.sha256(data).hexdigest())
    monkeypatch.setattr(module, "__file__", str(tmp_path / "code" / "tokenizer.py"))
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    monkeypatch.setattr(requests, "get", lambda *args, **kwargs: pytest.fail("asked the network"))
    return data


def answer(content: bytes, status: int = 200) -> requests.Response:
    response = requests.Response()
    response.status_code, response._content = status, content
    return response


@pytest.mark.parametrize("place", [
    "folder/encoder.json", "folder/vocab.json", "cache/encoder.json", "code/gpt2/encoder.json",
    "cache/6c7ea1a7e38e3a7f062df639a5b80947f075ffe6",  # as tiktoken caches it
])
def test_gpt2_is_read_from_local_files_without_the_network(encoder_json, gpt2_like, tmp_path, place):
    path = tmp_path / place
    path.parent.mkdir(parents=True)
    path.write_bytes(encoder_json)
    tokenizer = TiktokenTokenizer("gpt2", path.parent if path.parent.name == "folder" else None)
    assert tokenizer.to_json() == gpt2_like.to_json()


def test_gpt2_downloads_once_from_the_first_address_that_has_it(
        encoder_json, gpt2_like, tmp_path, monkeypatch):
    asked = []

    def get(url, timeout):
        asked.append(url)
        return answer(encoder_json) if "mirror" in url else answer(b"<html>log in</html>")

    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example/")
    monkeypatch.setattr(requests, "get", get)
    for _ in range(2):
        assert TiktokenTokenizer("gpt2").to_json() == gpt2_like.to_json()
    assert asked == [module.GPT2_URLS[0], "https://mirror.example/openai-community/gpt2/resolve/main/vocab.json"]
    assert [p.read_bytes() for p in (tmp_path / "cache").iterdir()] == [encoder_json]


def test_a_refused_download_says_which_file_goes_where(encoder_json, tmp_path, monkeypatch):
    def get(url, timeout):
        if "openaipublic" in url:
            raise requests.ConnectionError("no route")
        return answer(b"", status=404)

    monkeypatch.setattr(requests, "get", get)
    with pytest.raises(ValueError) as error:
        TiktokenTokenizer("gpt2")
    for part in (module.GPT2_URLS[0], "huggingface.co/openai-community/gpt2/resolve/main/vocab.json",
                 "ConnectionError", "HTTPError", str(tmp_path / "code" / "gpt2" / "encoder.json"),
                 "TIKTOKEN_CACHE_DIR"):
        assert part in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "cache").exists()


def test_missing_and_damaged_gpt2_files_are_named(encoder_json, tmp_path):
    with pytest.raises(ValueError, match="has no encoder.json.*openaipublic.blob.core.windows.net"):
        TiktokenTokenizer("gpt2", tmp_path)
    tmp_path.joinpath("encoder.json").write_bytes(encoder_json[:1000])
    with pytest.raises(ValueError, match=r"encoder\.json \(1000 bytes\) is not GPT-2's"):
        TiktokenTokenizer("gpt2", tmp_path)
    with pytest.raises(ValueError, match="'gpt3' is not known"):
        TiktokenTokenizer("gpt3")


def test_endless_spaces_are_gpt2_tokens_too(gpt2_like):
    """tiktoken alone panics here. GPT-2's pattern makes one word of all spaces but the last."""
    n = 1_000_000
    ids = gpt2_like.encode("a" + " " * n + "b").tolist()
    assert ids == [*gpt2_like.encode("a"), *gpt2_like.encode(" " * (n - 1)), *gpt2_like.encode(" b")]


def test_gpt2_agrees_with_tokenizers_reading_the_published_merges(shared_data):
    folder = shared_data("gpt2")
    vocab = json.loads((folder / "encoder.json").read_text(encoding="utf-8"))
    merges = (folder / "vocab.bpe").read_text(encoding="utf-8").split("\n")[1:-1]
    library = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, [tuple(merge.split()) for merge in merges]))
    library.pre_tokenizer = GPT2_SPLIT
    text = shared_data("tinyshakespeare.txt").read_text(encoding="utf-8")
    tokenizer = TiktokenTokenizer("gpt2", folder)
    n = int(len(text) * 0.9)
    assert [len(tokenizer.encode(part)) for part in (text[:n], text[n:])] == [301966, 36059]
    text = text[:100_000] + STORY + shared_data("hongloumeng.txt").read_text(encoding="utf-8")[:50_000] + CODE
    assert tokenizer.encode(text).tolist() == library.encode(text).ids
    assert (tokenizer.vocab_size, tokenizer.eot) == (50257, vocab[EOT])


# ---- IncrementalDecoder ----------------------------------------------------------------------------------

# Every way that a character's UTF-8 can be cut short (64 neighbours differ in the last byte only). Python's
# decoder also waits for a third byte before it gives up on a surrogate.
UNFINISHED = {chr(c).encode("utf-8", "surrogatepass")[:n] for c in range(0, 0x110000, 64)
              for n in range(len(chr(c).encode("utf-8", "surrogatepass")))}
TRICKY_BYTES = b"a\x80\xbf\xc3\xe4\xb8\xad\xed\xa0\xf0\x9f\x98\x80\xf4\x90\xff"


@settings(max_examples=100, deadline=None)
@given(data=st.text(max_size=20).map(str.encode) | st.lists(st.sampled_from(list(TRICKY_BYTES))).map(bytes))
@example(data="👩‍👩‍👧中\U0010ffff".encode())
def test_incremental_decoding_gives_the_whole_text_in_whole_characters(data):
    decoder, text = IncrementalDecoder(ByteTokenizer()), ""
    for i, byte in enumerate(data, 1):
        text += decoder.push(byte)
        assert decoder.pending in UNFINISHED
        assert text + decoder.pending.decode("utf-8", "replace") == ByteTokenizer().decode(list(data[:i]))
    assert decoder.flush() == ""
    assert text + decoder.pending.decode("utf-8", "replace") == data.decode("utf-8", "replace")


def test_incremental_decoding_of_every_kind(kinds):
    for tokenizer in with_char(kinds, HARD_TEXT):
        decoder, text = IncrementalDecoder(tokenizer), ""
        ids = tokenizer.encode(HARD_TEXT)
        for i, id in enumerate(ids, 1):
            text += decoder.push(id)
            assert HARD_TEXT.startswith(text)
            assert text + decoder.pending.decode("utf-8", "replace") == tokenizer.decode(ids[:i])
        assert text + decoder.flush() == HARD_TEXT
        assert decoder.pending == b""
        with pytest.raises(ValueError, match=f"token id {tokenizer.vocab_size} "):
            decoder.push(tokenizer.vocab_size)
