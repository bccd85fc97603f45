"""data/tokenizer.py: ids agree with plain loops and the libraries, text survives, errors name the cause."""

import functools
import itertools
import json
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import regex
import tiktoken_ext.openai_public
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data import bpe as module
from data.bpe import TRAIN_PATTERN
from data.tokenizer import (
    EOT,
    OPENAI_ENCODINGS,
    BPETokenizer,
    ByteTokenizer,
    CharTokenizer,
    IncrementalDecoder,
    TiktokenTokenizer,
    TrimmedTokenizer,
    find_cut,
    fingerprint,
    make_tokenizer,
    tokenizer_from_json,
)
from data.vocabulary import SYMBOL, from_symbols, to_symbols

HARD_TEXT = (
    "\ufeff第一回\u3000甄士隐\r\n\u3000\u3000列位看官，你道\r\n𠀀𪚥 👩‍👩‍👧 ❤️ \x00\x85\u2028 हिन्दी e\u0301\rend\n\n"
)
CODE = "def f(self, x):\n    if x is None:\n        return x.y_z[100:2000]  # it's\n\n\nclass A:\n    pass\n"
STORY = "Once upon a time, there was a dog. The dog didn't like the cat. “Hi,” it said.\n" + CODE + HARD_TEXT

few = settings(max_examples=40)
# dense in the characters where pre-tokens begin and end
edgy_text = st.text(st.sampled_from(list("ab的了é1'.,，。!_ \u3000\n\r\t\x1c\x85Z🙂\u0301")), max_size=80)


@functools.cache
def made_up_tokens(n: int) -> list[bytes]:
    """n byte strings: all bytes, then pairs and triples of common letters, then any pairs and triples."""
    words = (p for k in (2, 3) for p in itertools.product("abdeĠĊ.,ZéçļĦ", repeat=k))
    rest = (p for k in (2, 3) for p in itertools.product(sorted(SYMBOL.values()), repeat=k))
    tokens = dict.fromkeys(sorted(SYMBOL.values()))
    for word in itertools.chain(words, rest):
        tokens["".join(word)] = None
        if len(tokens) == n:
            return list(map(from_symbols, tokens))


def llama_like(text: str) -> dict:
    """A small tokenizer.json with all that Llama-2's has; every split of a token into two is a merge, as in
    the conversion from SentencePiece."""
    library = tokenizers.Tokenizer(tokenizers.models.BPE())
    library.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="always")
    library.train_from_iterator([text], tokenizers.trainers.BpeTrainer(vocab_size=500, show_progress=False))
    pieces = sorted(library.get_vocab(), key=library.get_vocab().get)
    specials = ["<unk>", "<s>", "</s>"]
    tokens = [*specials, *(f"<0x{b:02X}>" for b in range(256)), *pieces]
    vocab = {token: id for id, token in enumerate(tokens)}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": id, "content": t, "special": True, **flags} for id, t in enumerate(specials)],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "pair": [],
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": vocab,
            "merges": [[t[:i], t[i:]] for t in pieces for i in range(1, len(t)) if t[:i] in vocab and t[i:] in vocab],
        },
    }


@pytest.fixture(scope="module")
def gpt2_like():
    return TiktokenTokenizer("gpt2", tokens=made_up_tokens(50256))


@pytest.fixture(scope="module")
def bpe():
    return BPETokenizer.train([STORY, STORY], 400)


@pytest.fixture(scope="module")
def llama():
    return BPETokenizer(json.dumps(llama_like(STORY)))


@pytest.fixture(scope="module")
def trimmed(bpe):
    return TrimmedTokenizer.train(bpe, [CODE, HARD_TEXT[:9]])


@pytest.fixture(scope="module")
def kinds(bpe, gpt2_like, llama, trimmed):
    return {
        "byte": ByteTokenizer(),
        "byte eot": ByteTokenizer(eot=255),
        "bpe": bpe,
        "llama": llama,
        "tiktoken": gpt2_like,
        "cl100k": TiktokenTokenizer("cl100k_base", tokens=made_up_tokens(100256)),
        "trimmed": trimmed,
        "trimmed llama": TrimmedTokenizer.train(llama, CODE, min_count=2),
        "trimmed tiktoken": TrimmedTokenizer.train(gpt2_like, CODE),
    }


def with_char(kinds: dict, text: str) -> list:
    return [*kinds.values(), CharTokenizer.train(text + "."), CharTokenizer.train(text + ".", eot=True)]


# ---- every kind ------------------------------------------------------------------------------------------


@few
@given(text=st.text(max_size=60) | edgy_text)
@example(text=HARD_TEXT)
@example(text="")
@example(text=EOT + "<|im_end|></s><0x0A>▁ ▁▁a  ▁")
def test_text_survives_and_token_bytes_are_its_utf8(kinds, text):
    for tokenizer in with_char(kinds, text):
        ids = tokenizer.encode(text)
        assert ids.ndim == 1
        assert ids.dtype == (np.uint16 if tokenizer.vocab_size <= 65536 else np.uint32)
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
        assert again.special_tokens == tokenizer.special_tokens


def test_fingerprints_tell_tokenizers_apart(kinds):
    tokenizers = with_char(kinds, HARD_TEXT)
    prints = [fingerprint(tokenizer) for tokenizer in tokenizers]
    assert prints == [fingerprint(tokenizer_from_json(tokenizer.to_json())) for tokenizer in tokenizers]
    assert len(set(prints)) == len(prints) and all(len(p) == 16 for p in prints)


def test_special_tokens_stand_for_no_text(kinds):
    assert [t.eot for t in with_char(kinds, "ab")] == [
        None,
        255,
        399,
        2,
        50256,
        100257,
        kinds["trimmed"].vocab_size - 1,
        2,
        kinds["trimmed tiktoken"].vocab_size - 1,
        None,
        3,
    ]
    for tokenizer in with_char(kinds, "ab"):
        ids = tokenizer.encode("ab").tolist()
        for id in tokenizer.special_tokens.values():
            assert tokenizer.token_bytes(id) == b""
            assert tokenizer.decode([id, *ids[:1], id, *ids[1:], id]) == "ab"


@few
@given(choices=st.lists(st.integers(0, 9), max_size=6))
@example(choices=[0, 1, 2, 3, 4, 5, 6, 7])
def test_special_tokens_are_encoded_where_they_are_asked_for(kinds, choices):
    for tokenizer in [*kinds.values(), CharTokenizer.train(EOT + "a▁", eot=True)]:
        names = [*tokenizer.special_tokens, "<|end", "a", "▁", "|>"]
        parts = [names[i % len(names)] for i in choices]
        ids, text = [], ""
        for special, group in itertools.groupby(parts, tokenizer.special_tokens.__contains__):
            words = list(group)
            plain = [] if special else tokenizer.encode("".join(words)).tolist()
            ids += plain or [tokenizer.special_tokens[word] for word in words]
            text += "".join(words)
        assert tokenizer.encode(text, special=True).tolist() == ids
        assert not set(tokenizer.special_tokens.values()) & set(tokenizer.encode(text).tolist())


def test_the_number_of_threads_changes_nothing(kinds):
    text = STORY * 200
    for tokenizer in with_char(kinds, STORY):
        ids = tokenizer.encode(text).tolist()
        for n in (1, 3):
            assert tokenizer.encode(text, num_threads=n).tolist() == ids


def test_ten_megabytes_without_a_newline_survive(kinds):
    hard = "".join(HARD_TEXT.split()) + " " * 70_000 + "字" * 70_000 + "a" * 70_000
    text = hard + "甄士隐，士隐，" * 480_000
    assert len(text.encode()) > 10**7
    for tokenizer in with_char({name: kinds[name] for name in ("byte", "bpe", "llama", "tiktoken")}, text):
        assert tokenizer.decode(tokenizer.encode(text)) == text


@few
@given(text=edgy_text, start=st.integers(0, 60), more=edgy_text)
@example(text="a  \n\n  b", start=3, more="")
@example(text="a   \n", start=1, more="b")
@example(text="a ▁ b", start=1, more="")
def test_a_text_may_be_cut_where_find_cut_says_whatever_follows(kinds, file_tokenizers, text, start, more):
    for tokenizer in [*with_char(kinds, text + more), *file_tokenizers]:
        whole = tokenizer.encode(text + more).tolist()
        for i in {tokenizer.find_cut(text, start), find_cut(text, start)} - {-1}:
            if tokenizer is not file_tokenizers[-1]:  # it has no words
                assert start <= i < len(text) and i > 0
                parts = tokenizer.encode(text[:i]), tokenizer.encode(text[i:] + more)
                assert [*parts[0].tolist(), *parts[1].tolist()] == whole


def test_ordinary_text_has_a_cut_every_few_characters(kinds):
    for tokenizer in with_char(kinds, STORY):
        for start in range(0, len(STORY) - len(HARD_TEXT), 7):
            assert start <= tokenizer.find_cut(STORY, start) <= start + 40
        assert tokenizer.find_cut("ab" * 3, 6) == tokenizer.find_cut("", 0) == find_cut("", 0) == -1


@pytest.mark.parametrize(
    "ids, named",
    [
        ([0, -1], "-1"),
        ([0, 101000], "101000"),
        ([2**40], str(2**40)),
        ([[0]], r"\(1, 1\)"),
        ([0.0], "float64"),
        (["0"], "<U1"),
    ],
)
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


@pytest.mark.parametrize(
    "d",
    [
        None,
        [],
        {},
        {"kind": "words"},
        {"kind": "byte", "eot": 7},
        {"kind": "char"},
        {"kind": "char", "chars": 5, "eot": False},
        {"kind": "bpe"},
        {"kind": "bpe", "tokenizer": "{}"},
        {"kind": "tiktoken", "name": "gpt2", "tokens": "a b c"},
        {"kind": "tiktoken", "name": "o200k", "tokens": "a"},
        {"kind": "trimmed"},
        {"kind": "trimmed", "base": {"kind": "byte", "eot": None}, "ids": []},
        {"kind": "trimmed", "base": BPETokenizer.train([], 257).to_json(), "ids": [*range(255), 256]},
        {"kind": "trimmed", "base": BPETokenizer.train([], 257).to_json(), "ids": [*range(256), 9]},
        {"kind": "trimmed", "base": BPETokenizer.train([], 257).to_json(), "ids": [*range(256), 257]},
    ],
)
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
    return [to_symbols(word.encode("utf-8")) for word in words]


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
    program = (
        "import json, sys; from data.tokenizer import BPETokenizer\n"
        "text = open(sys.argv[1], 'rb').read().decode('utf-8')\n"
        "print(json.dumps(BPETokenizer.train(iter([text, text]), 400).to_json()))"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, str(path)],
        cwd=Path(module.__file__).parents[1],
        env={**os.environ, "RAYON_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
    )
    assert json.loads(run.stdout) == bpe.to_json()


def test_bpe_has_all_bytes_and_end_of_text_last_however_little_text_there_was():
    tokenizer = BPETokenizer.train([], 300)
    assert (tokenizer.vocab_size, tokenizer.eot) == (257, 256)
    assert {tokenizer.token_bytes(i) for i in range(256)} == {bytes([b]) for b in range(256)}
    assert tokenizer.decode(tokenizer.encode(HARD_TEXT)) == HARD_TEXT
    with pytest.raises(ValueError, match="256, expected at least 257"):
        BPETokenizer.train(["text"], 256)


def test_a_large_corpus_is_sampled_evenly_and_always_the_same_way():
    texts = [f"{i:04d} " + "word " * 99 for i in range(1000)]
    everything = list(module._sample(iter(texts), 10**6))
    assert everything == texts
    some = list(module._sample(iter(texts), 10**5))
    assert some == list(module._sample(iter(texts), 10**5)) == sorted(some)
    assert 10**5 - 500 < sum(map(len, some)) <= 10**5
    tenths = Counter(int(text[:4]) // 100 for text in some)
    assert len(tenths) == 10 and max(tenths.values()) < 40
    han = list(module._sample(iter(["字" * 99 + "。"] * 1000), 10**5))
    assert len(han) == 40
    assert "".join(module._sample(["字" * 10**5], 10**9)) == "字" * 10**5


def test_bpe_training_with_more_special_tokens():
    tokenizer = BPETokenizer.train([STORY, STORY], 300, ["<|user|>", EOT, "<|bot|>"])
    assert tokenizer.special_tokens == {EOT: 297, "<|user|>": 298, "<|bot|>": 299}
    assert (tokenizer.vocab_size, tokenizer.eot) == (300, 297)
    assert tokenizer.encode("<|bot|>a", special=True).tolist() == [299, *tokenizer.encode("a")]
    with pytest.raises(ValueError, match="'a' was also learned as an ordinary token"):
        BPETokenizer.train(STORY, 300, ["a"])
    with pytest.raises(ValueError, match="258, expected at least 259"):
        BPETokenizer.train(STORY, 258, ["<|user|>", "<|bot|>"])


def test_a_typed_special_token_is_encoded_as_if_the_vocabulary_had_none(bpe):
    plain = json.loads(bpe.to_json()["tokenizer"])
    plain["added_tokens"] = []
    text = f"a {EOT}{EOT}b\n{EOT}"
    assert bpe.encode(text).tolist() == tokenizers.Tokenizer.from_str(json.dumps(plain)).encode(text).ids


GPT2_SPLIT = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
GPT4_SPLIT = tokenizers.pre_tokenizers.Sequence(
    [
        tokenizers.pre_tokenizers.Split(
            tokenizers.Regex(
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
                r"|\s+(?!\S)|\s+"
            ),
            "isolated",
        ),
        tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
)
NO_SPLIT = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def library_bpe(pre_tokenizer, text: str = STORY, **trainer) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        [text],
        tokenizers.trainers.BpeTrainer(vocab_size=420, show_progress=False, initial_alphabet=alphabet, **trainer),
    )
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
        patch.setattr(module, "PIECE_CHARS", 3)
        patch.setattr(module, "GROUP", 2)
        assert gpt2_like.encode(text).tolist() == gpt2_like._encoding.encode_ordinary(text)
        for tokenizer in file_tokenizers:
            library = tokenizers.Tokenizer.from_str(tokenizer.to_json()["tokenizer"])
            assert tokenizer.encode(text).tolist() == library.encode(text).ids


def test_texts_are_split_where_their_tokenizer_allows_it(file_tokenizers, llama):
    text = STORY * 200
    for tokenizer in (*file_tokenizers[:-1], llama):
        pieces = list(module._pieces(text, tokenizer.find_cut))
        assert "".join(pieces) == text
        assert max(map(len, pieces)) < module.PIECE_CHARS + len(STORY)
    assert list(module._pieces(text, file_tokenizers[-1].find_cut)) == [text]  # it has no words


def test_an_added_token_that_contains_a_cut_is_not_cut():
    library = library_bpe(GPT2_SPLIT)
    library.add_tokens(["Once upon"])
    tokenizer = BPETokenizer(library.to_str())
    text = "Once upon a time. " * 4000
    assert tokenizer.find_cut(text, 0) == -1
    assert tokenizer.encode(text).tolist() == library.encode(text).ids


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


def test_habits_of_files_that_change_texts_are_dropped():
    library = library_bpe(tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True))
    library.normalizer = tokenizers.normalizers.NFC()
    library.model.dropout = 0.5
    library.add_tokens([tokenizers.AddedToken("<x>", lstrip=True, rstrip=True, normalized=False)])
    tokenizer = BPETokenizer(library.to_str())
    text = "a e\u0301 <x> \u212b b"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    library.model.dropout = None
    plain = "The dog didn't like the cat."
    assert tokenizer.encode(" " + plain).tolist() == library.encode(plain).ids


def test_files_that_would_change_the_text_are_refused(tmp_path):
    path = tmp_path / "t.json"
    refused = []
    for name in ("Lowercase", "NFKC", "StripAccents"):
        refused.append((library_bpe(GPT2_SPLIT), name))
        refused[-1][0].normalizer = getattr(tokenizers.normalizers, name)()
    drops = tokenizers.pre_tokenizers.Split(tokenizers.Regex(r"\s+"), "removed")
    bert = tokenizers.pre_tokenizers.BertPreTokenizer()
    for split, reason in (drops, "Split"), (bert, "comes back as"):
        split = tokenizers.pre_tokenizers.Sequence([split, NO_SPLIT])
        refused.append((library_bpe(split), reason))
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    few_bytes = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "b": 1}, []))
    for library, reason in *refused, (words, "WordLevel"), (few_bytes, "254 of the 256 bytes"):
        library.save(str(path))
        with pytest.raises(ValueError, match=reason) as error:
            BPETokenizer.from_file(path)
        assert str(path) in str(error.value) and "\n" not in str(error.value)
    for content in (b"{", b"\xff", b"{}", b"[1]", None):
        path.write_bytes(content) if content else path.unlink()
        with pytest.raises(ValueError) as error:
            BPETokenizer.from_file(path)
        assert str(path) in str(error.value) and "\n" not in str(error.value)


# ---- Llama-2's kind of file --------------------------------------------------------------------------------


@few
@given(text=st.text(min_size=1, max_size=60) | edgy_text.filter(bool))
@example(text=STORY)
@example(text="  two  spaces\n\n   <s></s>  ")
def test_llama_ids_are_the_librarys_after_the_space_that_it_puts_first(llama, text):
    library = tokenizers.Tokenizer.from_str(json.dumps(llama_like(STORY)))
    library.encode_special_tokens = True
    text = text.replace("▁", "_")  # the library takes it for a space
    ids = library.encode(text, add_special_tokens=False).ids
    assert llama.encode(" " + text).tolist() == ids
    assert llama.decode(ids) == " " + text


def test_the_same_tokens_in_llamas_newer_format_and_without_a_first_space(llama):
    newer = llama_like(STORY)
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    newer |= {"normalizer": None, "pre_tokenizer": metaspace, "decoder": metaspace}
    gemma = llama_like(STORY)
    gemma["normalizer"] = gemma["normalizer"]["normalizers"][1]
    gemma["pre_tokenizer"] = {
        "type": "Split",
        "pattern": {"String": " "},
        "behavior": "MergedWithPrevious",
        "invert": False,
    }
    for d in newer, gemma:
        tokenizer = BPETokenizer(json.dumps(d))
        assert tokenizer.encode(STORY * 99).tolist() == llama.encode(STORY * 99).tolist()
        assert tokenizer.find_cut(STORY, 9) == llama.find_cut(STORY, 9) > 0


def test_what_to_json_says_of_llama_is_exact_in_the_library_too(llama):
    library = tokenizers.Tokenizer.from_str(llama.to_json()["tokenizer"])
    for text in (STORY, " a", "a", "\n"):
        ids = library.encode(text, add_special_tokens=False).ids
        assert ids == llama.encode(text).tolist()
        assert library.decode(ids) == text


def test_qwens_file_on_a_novel(shared_data):
    text = shared_data("hongloumeng.txt").read_text(encoding="utf-8")
    tokenizer = make_tokenizer("qwen2", file=shared_data("qwen2/tokenizer.json.xz"))
    ids = tokenizer.encode(text)
    assert (tokenizer.vocab_size, ids.dtype) == (151646, np.uint32)
    assert (len(ids), len(np.unique(ids))) == (690190, 9301)
    assert tokenizer.decode(ids) == text

    trimmed = TrimmedTokenizer.train(tokenizer, text)
    assert 9301 < trimmed.vocab_size <= 9301 + 256 + len(tokenizer.special_tokens)
    small = trimmed.encode(text)
    assert small.dtype == np.uint16
    assert trimmed.ids[small].tolist() == ids.tolist()
    assert trimmed.decode(small) == text
    assert trimmed.decode(trimmed.encode(HARD_TEXT + CODE)) == HARD_TEXT + CODE


# ---- trimmed -----------------------------------------------------------------------------------------------


def test_trimming_keeps_what_is_used_and_all_bytes_and_special_tokens(bpe):
    ids = bpe.encode(STORY).tolist()
    for min_count in (1, 2, 5):
        trimmed = TrimmedTokenizer.train(bpe, iter([STORY[:500], STORY[500:]]), min_count)
        counts = Counter([*bpe.encode(STORY[:500]).tolist(), *bpe.encode(STORY[500:]).tolist()])
        used = {id for id, n in counts.items() if n >= min_count}
        assert trimmed.ids.tolist() == sorted(used | set(range(256)) | {bpe.eot})
    trimmed = TrimmedTokenizer.train(bpe, STORY)
    assert trimmed.ids[trimmed.encode(STORY)].tolist() == ids


@few
@given(text=st.text(max_size=60) | edgy_text)
@example(text=STORY)
def test_dropped_tokens_are_taken_apart_along_their_merges(bpe, trimmed, text):
    made_of = {"".join(pair): pair for pair in merges_of(bpe)}
    vocab = json.loads(bpe.to_json()["tokenizer"])["model"]["vocab"]
    spelling = {id: token for token, id in vocab.items()}

    def parts(token):
        return [token] if vocab[token] in trimmed.ids else parts(made_of[token][0]) + parts(made_of[token][1])

    expected = [vocab[part] for id in bpe.encode(text).tolist() for part in parts(spelling[id])]
    assert trimmed.ids[trimmed.encode(text)].tolist() == expected


def test_every_token_can_be_taken_apart_down_to_its_bytes(bpe, llama, gpt2_like):
    for tokenizer in bpe, llama, gpt2_like:
        for id in range(0, tokenizer.vocab_size, 1 + tokenizer.vocab_size // 3000):
            parts, whole = tokenizer.unmerge(id), tokenizer.token_bytes(id)
            if id in tokenizer.byte_ids or not whole:
                assert parts == []
                continue
            assert b"".join(map(tokenizer.token_bytes, parts)) == whole
            assert all(p in tokenizer.byte_ids or len(tokenizer.token_bytes(p)) < len(whole) for p in parts)


def test_gpt2_tokens_come_apart_into_the_pairs_of_the_published_merges(shared_data):
    tokenizer = TiktokenTokenizer("gpt2", shared_data("gpt2/encoder.json"))
    merges = shared_data("gpt2/vocab.bpe").read_text(encoding="utf-8").split("\n")[1:-1]
    for i in range(0, 50000, 17):
        parts = tokenizer.unmerge(256 + i)
        assert " ".join(to_symbols(tokenizer.token_bytes(part)) for part in parts) == merges[i]


def test_added_tokens_of_a_file_are_taken_apart_too():
    library = library_bpe(GPT2_SPLIT)
    library.add_tokens(["Once upon", "é!"])
    trimmed = TrimmedTokenizer.train(BPETokenizer(library.to_str()), "nothing of it")
    text = "Once upon a time é! é!"
    assert trimmed.decode(trimmed.encode(text)) == text


def test_what_cannot_be_trimmed_is_named(bpe):
    for tokenizer in ByteTokenizer(), CharTokenizer("ab"), TrimmedTokenizer.train(bpe, "a"):
        with pytest.raises(ValueError, match=tokenizer.kind):
            TrimmedTokenizer(tokenizer, range(256))
    with pytest.raises(ValueError, match="min_count is 0"):
        TrimmedTokenizer.train(bpe, "a", 0)


# ---- make_tokenizer ----------------------------------------------------------------------------------------


def test_each_name_makes_its_tokenizer(tmp_path, bpe):
    path = tmp_path / "folder" / "tokenizer.json"
    path.parent.mkdir()
    path.write_text(bpe.to_json()["tokenizer"], encoding="utf-8")
    asked = []

    def texts(split):
        asked.append(split)
        return iter([STORY[:200], STORY[200:]] if split is None else [STORY[:200]])

    def make(name, **options):
        asked.clear()
        return make_tokenizer(name, texts, **options)

    assert (make("byte").eot, make("byte", eot=False).eot, asked) == (255, None, [])
    assert make("char", eot=False).chars == "".join(sorted(set(STORY))) and asked == [None]
    assert make("char").eot == len(set(STORY))
    assert make("bpe", vocab_size=300).to_json() == BPETokenizer.train(STORY[:200], 300).to_json()
    assert asked == ["train"]
    assert make("bpe", vocab_size=300, special_tokens=["<|x|>"]).special_tokens.keys() == {EOT, "<|x|>"}
    for name, file in (
        ("bpe", path),
        ("qwen2", path.parent),
        (str(path), None),
        (str(path.parent), None),
        ("gpt2", path),
        ("a/b", path),
    ):
        assert make(name, file=file).to_json() == bpe.to_json() and asked == []
    trimmed = make("bpe", file=path, trim=True, min_count=2)
    assert trimmed.ids.tolist() == TrimmedTokenizer.train(bpe, STORY[:200], 2).ids.tolist()
    assert asked == ["train"]


@pytest.mark.parametrize(
    "name, options, found",
    [
        ("gpt3", {}, "gpt3: no such file or name; expected one of byte, char, bpe, bpe_code, gpt2"),
        ("char", {"trim": True}, "char cannot be combined with --trim"),
        ("byte", {"file": "x.json"}, "x.json"),
        ("bpe", {"file": "none.json"}, "cannot read none.json"),
        ("none.json", {}, "cannot read none.json"),
        ("cl100k_base", {"file": "none"}, "cannot read none"),
        ("bpe", {"vocab_size": 12}, "vocab_size is 12"),
    ],
)
def test_names_and_options_that_make_no_tokenizer_are_explained(name, options, found):
    with pytest.raises(ValueError, match=found) as error:
        make_tokenizer(name, lambda split: [STORY], **options)
    assert "\n" not in str(error.value)


# ---- OpenAI's ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPENAI_ENCODINGS)
def test_patterns_and_special_tokens_are_tiktokens(name, monkeypatch):
    for load in ("load_tiktoken_bpe", "data_gym_to_mergeable_bpe_ranks"):
        monkeypatch.setattr(tiktoken_ext.openai_public, load, lambda *args, **kwargs: {})
    theirs = tiktoken_ext.openai_public.ENCODING_CONSTRUCTORS[name]()
    pattern, _, size, special_tokens = OPENAI_ENCODINGS[name]
    assert special_tokens == theirs["special_tokens"]
    assert theirs.get("explicit_n_vocab") in (None, max(size, theirs["special_tokens"][EOT] + 1))
    theirs, ours, rng = regex.compile(theirs["pat_str"]), regex.compile(pattern), random.Random(name)
    letters = "abAB的é1٣'.,!/ \u3000\n\r\t\x1c\x85\xa0ſ🙂\u0301ǅʰsSdDlLvVeErRtTmM"
    for _ in range(3000):
        text = "".join(rng.choices(letters, k=12))
        assert ours.findall(text) == theirs.findall(text)


def test_endless_spaces_are_tokens_too(kinds):
    """tiktoken alone gives up here. OpenAI's patterns make one word of all spaces but the last."""
    n = 1_000_000
    for tokenizer in kinds["tiktoken"], kinds["cl100k"]:
        ids = tokenizer.encode("a" + " " * n + "b").tolist()
        assert ids == [*tokenizer.encode("a"), *tokenizer.encode(" " * (n - 1)), *tokenizer.encode(" b")]


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
    code = Path(module.__file__).read_text(encoding="utf-8")
    text = text[:100_000] + STORY + shared_data("hongloumeng.txt").read_text(encoding="utf-8")[:50_000] + code
    assert tokenizer.encode(text).tolist() == library.encode(text).ids
    assert (tokenizer.vocab_size, tokenizer.eot) == (50257, vocab[EOT])


# ---- IncrementalDecoder ----------------------------------------------------------------------------------

# Every way that a character's UTF-8 can be cut short (64 neighbours differ in the last byte only). Python's
# decoder also waits for a third byte before it gives up on a surrogate.
UNFINISHED = {
    chr(c).encode("utf-8", "surrogatepass")[:n]
    for c in range(0, 0x110000, 64)
    for n in range(len(chr(c).encode("utf-8", "surrogatepass")))
}
TRICKY_BYTES = b"a\x80\xbf\xc3\xe4\xb8\xad\xed\xa0\xf0\x9f\x98\x80\xf4\x90\xff"


@settings(max_examples=100)
@given(data=st.text(max_size=20).map(str.encode) | st.lists(st.sampled_from(list(TRICKY_BYTES))).map(bytes))
@example(data="👩‍👩‍👧中\U0010ffff".encode())
def test_incremental_decoding_gives_the_whole_text_in_whole_characters(data):
    decoder, text = IncrementalDecoder(ByteTokenizer()), ""
    for i, byte in enumerate(data, 1):
        text += decoder.push(byte)
        assert decoder.pending in UNFINISHED
        assert text + decoder.pending.decode("utf-8", "replace") == ByteTokenizer().decode(list(data[:i]))
    assert text + decoder.pending.decode("utf-8", "replace") == data.decode("utf-8", "replace")


def test_incremental_decoding_of_every_kind(kinds):
    for tokenizer in with_char(kinds, HARD_TEXT):
        decoder, text = IncrementalDecoder(tokenizer), ""
        ids = tokenizer.encode(HARD_TEXT)
        for i, id in enumerate(ids, 1):
            text += decoder.push(id)
            assert HARD_TEXT.startswith(text)
            assert text + decoder.pending.decode("utf-8", "replace") == tokenizer.decode(ids[:i])
        assert text == HARD_TEXT and decoder.pending == b""
        with pytest.raises(ValueError, match=f"token id {tokenizer.vocab_size} "):
            decoder.push(tokenizer.vocab_size)
