"""data/json_tokenizer.py and data/model_tokenizer.py against the `tokenizers` library that they run."""

import json
import lzma
import random
import re
import unicodedata

import pytest
import tokenizers
from folders import MAKERS, awkward_texts
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from data.dataset import DatasetWriter, open_dataset
from data.json_tokenizer import JsonTokenizer
from data.matching import has_ids_of
from data.model_tokenizer import read_model_tokenizer
from data.tokenizer import (
    EOT,
    BPETokenizer,
    ByteTokenizer,
    CharTokenizer,
    TrimmedTokenizer,
    make_tokenizer,
    tokenizer_from_json,
)

TEXTS = awkward_texts()
# Unigram with byte fallback is among them since it takes a typed <s> for the special token
LOSSY = ("Metaspace BPE without bytes", "Unigram", "WordPiece", "WordLevel")


@pytest.fixture(scope="module", params=MAKERS)
def made(request):
    """(its name, the library's tokenizer, ours)."""
    library = MAKERS[request.param]()
    return request.param, library, JsonTokenizer(library.to_str())


def test_bytes_joined_are_the_text_or_are_refused_with_the_reason(made):
    name, _, ours = made
    assert bool(ours.lossy) == name.startswith(LOSSY)
    if ours.lossy:
        with pytest.raises(ValueError, match=f"bytes of single tokens .*: {re.escape(ours.lossy)}"):
            ours.token_bytes(0)
        with pytest.raises(ValueError, match="json tokenizer cannot be trimmed"):
            TrimmedTokenizer.train(ours, "text")
        return
    for text in TEXTS:
        inside = b"".join(map(ours.token_bytes, ours.encode(text, inside=True))).decode()
        expected = unicodedata.normalize("NFC", text) if "NFC" in name else text
        assert inside == (expected if "byte-level" in name else expected.replace("▁", " "))  # its sign for a space
        whole = b"".join(map(ours.token_bytes, ours.encode(text))).decode()
        assert whole == inside or (ours.first_space and whole == " " + inside)


def test_a_description_rebuilds_it(made):
    _, _, ours = made
    again = tokenizer_from_json(json.loads(json.dumps(ours.to_json())))
    for text in TEXTS[::5]:
        try:
            ids = ours.encode(text).tolist()
        except ValueError:  # WordLevel without an unknown token
            continue
        assert again.encode(text).tolist() == ids
    assert (again.eot, again.bos, again.ends, again.lossy) == (ours.eot, ours.bos, ours.ends, ours.lossy)


def test_text_that_grows_id_by_id_is_the_librarys_text_of_all(made):
    _, library, ours = made
    rng = random.Random(1)
    for _ in range(40):
        before = [rng.randrange(ours.vocab_size) for _ in range(rng.randrange(4))]
        while before and ours.is_open(before[-1]):
            before.pop()
        ids = [rng.randrange(ours.vocab_size) for _ in range(30)]
        decoder, text = ours.decoder(before), ""
        start = library.decode(before)
        for i, id in enumerate(ids, 1):
            text += decoder.push(id)
            assert library.decode(before + ids[:i])[len(start) :].startswith(text) or "\ufffd" in text
        whole = library.decode(before + ids)[len(start) :]
        assert (text + decoder.finish()).rstrip("\ufffd") == whole.rstrip("\ufffd")


def test_what_makes_ids_random_or_cuts_and_fills_texts_is_dropped():
    library = MAKERS["byte-level BPE, GPT-2's"]()
    plain = library.encode(TEXTS[15] * 9).ids
    library.model.dropout = 0.9
    library.enable_truncation(4)
    library.enable_padding(length=300)
    assert JsonTokenizer(library.to_str()).encode(TEXTS[15] * 9).tolist() == plain


@pytest.mark.parametrize("text", ["{", "{}", "[]", '{"model": {}}'])
def test_what_the_library_cannot_run_is_refused_in_one_line(text):
    with pytest.raises(ValueError, match="source: not a tokenizer.json that `tokenizers` can run") as error:
        JsonTokenizer(text, source="source")
    assert "\n" not in str(error.value)


def test_a_text_that_the_vocabulary_cannot_spell_is_a_value_error():
    library = tokenizers.Tokenizer(models.WordLevel({"山": 0, "水": 1}, unk_token="[UNK]"))
    with pytest.raises(ValueError, match=r"cannot encode the text: .*Missing \[UNK\]"):
        JsonTokenizer(library.to_str()).encode("x")


# ---- the folder of a model -----------------------------------------------------------------------------------


def save(folder, library, **files) -> None:
    """tokenizer.json, and other JSON files by name."""
    folder.mkdir(exist_ok=True)
    library.save(str(folder / "tokenizer.json"))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")


def test_words_of_one_character_with_an_unknown_token_are_not_read_as_characters(tmp_path):
    vocab = {token: id for id, token in enumerate(["[UNK]", *"春夏秋冬山水"])}
    library = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    for split in (None, pre_tokenizers.Split(tokenizers.Regex("."), "isolated")):
        if split:
            library.pre_tokenizer = split
        save(tmp_path, library)
        tokenizer = read_model_tokenizer(tmp_path)
        assert tokenizer.encode("山水").tolist() == library.encode("山水").ids
        assert tokenizer.vocab_size == 7


def test_the_256_symbols_in_sorted_order_are_not_read_as_bytes(tmp_path):
    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer, library.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=256, initial_alphabet=alphabet, show_progress=False)
    library.train_from_iterator(["ab"], trainer)
    library.add_tokens(["<tool>"])
    library.add_special_tokens(["<|im_end|>"])
    save(tmp_path, library, generation_config={"eos_token_id": 257})
    tokenizer = read_model_tokenizer(tmp_path)
    assert tokenizer.encode("Az").tolist() == library.encode("Az").ids == [32, 89]
    assert tokenizer.encode("<tool>").tolist() == [256]
    assert list(tokenizer.ends) == [257] and tokenizer.special_tokens == {"<|im_end|>": 257}


@pytest.mark.parametrize("tokenizer", [
    ByteTokenizer(), ByteTokenizer(eot=255), CharTokenizer("ab山"), CharTokenizer("ab山", eot=True),
    BPETokenizer.train(["some text, some more text"] * 3, 270),
], ids=lambda tokenizer: tokenizer.kind)  # fmt: skip
def test_what_export_writes_is_read_back_by_the_same_kind(tokenizer, tmp_path):
    from export import write_json, write_tokenizer

    write_tokenizer(tmp_path, tokenizer, 8, None)
    write_json(tmp_path / "generation_config.json", {"eos_token_id": tokenizer.eot, "bos_token_id": tokenizer.eot})
    again = read_model_tokenizer(tmp_path)
    assert again.kind == tokenizer.kind and again.to_json() == tokenizer.to_json()


@pytest.mark.parametrize("change", [
    dict(normalizer={"type": "Lowercase"}), dict(pre_tokenizer=None), dict(decoder=None),
    dict(added_tokens=[dict(id=3, content="[PAD]", special=True, single_word=False, lstrip=False, rstrip=False,
                            normalized=False)]),
])  # fmt: skip
def test_a_file_that_differs_from_export_s_in_anything_is_run_by_the_library(change, tmp_path):
    from export import tokenizer_json

    d = json.loads(tokenizer_json(CharTokenizer("aAb"))) | change
    (tmp_path / "tokenizer.json").write_text(json.dumps(d), encoding="utf-8")
    assert read_model_tokenizer(tmp_path).kind == "json"


ENDS = {
    "generation_config": (dict(generation_config={"eos_token_id": [5, 6], "bos_token_id": 4},
                               config={"eos_token_id": 1, "bos_token_id": 2}), 4, [5, 6]),
    "config": (dict(generation_config={"eos_token_id": None}, config={"eos_token_id": 6, "bos_token_id": 5},
                    tokenizer_config={"eos_token": "</s>"}), 5, [6]),
    "tokenizer_config": (dict(config={}, tokenizer_config={"eos_token": {"content": "[EOS]"}, "bos_token": "<s>"}),
                         3, [5]),
    "special_tokens_map": (dict(special_tokens_map={"eos_token": "</s>", "bos_token": None}), None, [4]),
    "nothing": (dict(config={"eos_token_id": "5"}), None, []),
    "no other file": (dict(), None, [4]),
    "defaults": (dict(config={"model_type": "llama", "vocab_size": 7}), 1, [2]),
    "defaults, but null": (dict(config={"model_type": "llama", "vocab_size": 7, "eos_token_id": None}), 1, []),
    "defaults out of range": (dict(config={"model_type": "gpt2", "vocab_size": 7}), None, []),
}  # fmt: skip


@pytest.mark.parametrize("files, bos, ends", ENDS.values(), ids=ENDS)
def test_bos_and_eos_are_read_in_transformers_order(files, bos, ends, tmp_path):
    library = tokenizers.Tokenizer(models.WordLevel({"a": 0, "b": 1, "c": 2}))
    library.add_special_tokens(["<s>", "</s>", "[EOS]", "<|im_end|>"])
    save(tmp_path, library, **files)
    tokenizer = read_model_tokenizer(tmp_path)
    assert (tokenizer.bos, list(tokenizer.ends)) == (bos, ends)
    assert tokenizer_from_json(tokenizer.to_json()).ends == tokenizer.ends


def test_tokens_and_template_of_tokenizer_config_are_transformers(tmp_path):
    from transformers import PreTrainedTokenizerFast

    library = MAKERS["byte-level BPE, GPT-2's"]()
    library.add_special_tokens(["<s>", "</s>"])
    tool = dict(content="<tool>", lstrip=False, rstrip=False, single_word=False, normalized=False, special=False)
    settings = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "the", "add_bos_token": True,  # it is not read
                "added_tokens_decoder": {"422": tool}, "tokenizer_class": "PreTrainedTokenizerFast"}  # fmt: skip
    save(tmp_path, library, tokenizer_config=settings)
    theirs, ours = PreTrainedTokenizerFast.from_pretrained(tmp_path), read_model_tokenizer(tmp_path)
    for text in ("x<tool>y", "the <s> end</s>", *TEXTS[::9]):
        assert ours.encode_document(text, special=True).tolist() == theirs.encode(text)
        assert ours.decode(theirs.encode(text)) == theirs.decode(theirs.encode(text), skip_special_tokens=True)


def test_the_longest_of_several_ends_that_is_spelled_end_of_text_separates_documents(tmp_path):
    library = MAKERS["byte-level BPE, GPT-2's"]()
    library.add_special_tokens(["<|im_end|>", EOT])
    save(tmp_path, library, generation_config={"eos_token_id": [420, 421]})
    tokenizer = read_model_tokenizer(tmp_path)
    assert tokenizer.eot == 421 and list(tokenizer.ends) == [420, 421]


def test_qwen2s_published_file_gives_the_librarys_ids(shared_data, tmp_path):
    packed = shared_data("qwen2/tokenizer.json.xz").read_bytes()
    (tmp_path / "tokenizer.json").write_bytes(lzma.decompress(packed))
    ours, library = read_model_tokenizer(tmp_path), tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    library.encode_special_tokens = True
    assert not ours.lossy and ours.vocab_size == 151646
    for text in [*TEXTS, shared_data("hongloumeng.txt").read_text(encoding="utf-8")[:200_000]]:
        assert ours.encode_document(text).tolist() == library.encode(text).ids


# ---- datasets ------------------------------------------------------------------------------------------------


def test_a_folder_makes_its_tokenizer_but_a_file_alone_keeps_texts(tmp_path):
    library = MAKERS["Metaspace BPE, Llama-2's"]()
    save(tmp_path, library, config={"eos_token_id": 2})
    for name, file in ((str(tmp_path), None), ("bpe", tmp_path)):
        tokenizer = make_tokenizer(name, file=file)
        assert tokenizer.kind == "json" and tokenizer.encode("a b").tolist() == library.encode("a b").ids
    path = tmp_path / "tokenizer.json"
    assert make_tokenizer(str(path)).to_json() == BPETokenizer.from_file(path).to_json()
    assert make_tokenizer(str(tmp_path), lambda split: ["a b"], trim=True).base.kind == "bpe"
    MAKERS["WordPiece, cased"]().save(str(path))
    assert make_tokenizer(str(path)).kind == "json"
    with pytest.raises(ValueError, match="its model is WordPiece"):
        make_tokenizer(str(path), lambda split: ["a b"], trim=True)


def test_ids_match_by_bytes_or_by_spelling(tmp_path):
    libraries = {name: MAKERS[name]() for name in ("Metaspace BPE, Llama-2's", "WordPiece, cased", "Unigram, T5's")}
    ours = {name: JsonTokenizer(library.to_str()) for name, library in libraries.items()}
    ours["bpe"] = BPETokenizer(libraries["Metaspace BPE, Llama-2's"].to_str())
    for a in ours:
        with DatasetWriter(tmp_path / a, ours[a], {"from": "test"}) as writer:
            for split in ("train", "val"):
                writer.write(split, ours[a].encode("a b c"), n_bytes=5)
        dataset = open_dataset(tmp_path / a)
        assert (dataset.bytes("val") is None) == bool(ours[a].lossy)
        for b in ours:
            state = {"model_args": {"vocab_size": 700}, "tokenizer": ours[b].to_json()}
            both_llama = {a, b} <= {"Metaspace BPE, Llama-2's", "bpe"}
            assert has_ids_of(dataset, state) == (a == b or both_llama), (a, b)


def test_added_tokens_of_any_kind_keep_the_librarys_flags():
    library = MAKERS["byte-level BPE, GPT-2's"]()
    library.add_tokens([AddedToken("<x>", lstrip=True, rstrip=True), AddedToken("word", single_word=True)])
    ours = JsonTokenizer(library.to_str())
    for text in ("a <x> b", "word words", " <x>"):
        assert ours.encode(text).tolist() == library.encode(text).ids
