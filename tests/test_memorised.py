"""eval.py --memorised against a plain search for the longest common passage."""

import tracemalloc
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_eval import build, run, save, write_dataset

import eval as evaluate
from data.dataset import DatasetWriter
from data.tokenizer import ByteTokenizer
from evaluation import memorised
from evaluation.memorised import longest_passages, text_in_parts


def longest(sample: bytes, text: bytes, least: int) -> int:
    """The length of the longest passage of sample in text, one after the other; 0 below `least`."""
    passages = (sample[i:j] for i in range(len(sample)) for j in range(i + least, len(sample) + 1))
    return max((len(passage) for passage in passages if passage in text), default=0)


@settings(max_examples=60)
@given(
    samples=st.lists(st.text("ab", max_size=40), min_size=1, max_size=3),
    text=st.text("ab", max_size=200),
    size=st.sampled_from([1, 7, 64, 2**17]),
)
def test_passages_are_those_of_a_plain_search_however_the_text_is_cut(samples, text, size):
    samples, text = [sample.encode() for sample in samples], text.encode()
    ids = np.frombuffer(text, np.uint8)
    with mock.patch.object(memorised, "IDS_AT_ONCE", size):
        parts = list(text_in_parts(ids, ByteTokenizer(), overlap=max(map(len, samples))))
    found = longest_passages(samples, parts, shortest=8)
    for sample, passage in zip(samples, found, strict=True):
        assert len(passage) == longest(sample, text, 8)
        assert passage in sample and passage in text


def test_of_a_long_text_parts_at_even_distances_are_searched_which_a_note_says(capsys, monkeypatch):
    monkeypatch.setattr(memorised, "IDS_AT_ONCE", 10)
    monkeypatch.setattr(memorised, "SEARCHED", 40)
    ids = np.arange(100, dtype=np.uint16)
    assert b"".join(text_in_parts(ids[:40], ByteTokenizer(), overlap=0)) == bytes(range(40))
    assert capsys.readouterr().err == ""
    assert list(text_in_parts(ids, ByteTokenizer(), 5)) == [bytes(range(i, i + 10)) for i in (0, 30, 60, 90)]
    assert "note: of 100 training tokens, one part in 3 is searched" in capsys.readouterr().err


def test_text_that_repeats_one_character_takes_no_memory_for_each_pair_of_places():
    sample, text = b"-" * 600 + b"end", (b"-" * 700 + b"\n") * 300
    tracemalloc.start()
    assert longest_passages([sample], [text]) == [b"-" * 600]
    assert tracemalloc.get_traced_memory()[1] < 200 * len(text)
    tracemalloc.stop()


def test_a_model_that_repeats_its_training_text_is_found_out(tmp_path, capsys, monkeypatch):
    """What the model writes is replaced, in one row by a passage of the training text."""
    rng, passage = np.random.default_rng(0), "却说贾母因问黛玉念何书。黛玉道：“只刚念了《四书》。”"
    noise = ["".join(map(chr, rng.integers(97, 123, 700))) for _ in range(4)]
    held_out = "".join(noise[2][i : i + 20] + passage[:9] for i in range(40))
    with DatasetWriter(tmp_path / "data", ByteTokenizer(eot=255), {"name": "test"}) as writer:
        for split, text in (("train", noise[0] + passage + noise[1]), ("val", held_out)):
            writer.write(split, np.frombuffer(text.encode(), np.uint8), len(text.encode()))
    rows = [(noise[3][:5] + passage[2:14]).encode(), *[b"xyz" * 70] * 15]

    def drawn(model, prompts, length, *_):
        return [(torch.tensor([row[i] for row in rows]), None) for i in range(min(length, len(rows[0])))]

    monkeypatch.setattr(memorised, "stream", drawn)
    save(tmp_path / "out", build(), ByteTokenizer(eot=255), config={"dataset": str(tmp_path / "data")})
    found = run(capsys, f"--out_dir={tmp_path / 'out'}", "--memorised")
    assert found["copied_samples_text"] == passage[2:14] and found["copied_samples_longest"] == 12
    assert found["copied_samples_median"] == 0
    assert passage[:9] in found["copied_held_out_text"] and found["copied_held_out_longest"] < 12


def test_what_a_real_model_writes_is_compared(tmp_path, capsys):
    write_dataset(tmp_path / "data", ByteTokenizer(eot=255), ["宝玉笑道：“来了。”\n" * 60])
    save(tmp_path / "out", build(), ByteTokenizer(eot=255), config={"dataset": str(tmp_path / "data")})
    found = run(capsys, f"--out_dir={tmp_path / 'out'}", "--memorised")
    assert found["copied_samples_longest"] == 0  # random weights
    assert found["copied_held_out_longest"] >= 20  # the splits are the same


def test_samples_can_continue_the_test_split(tmp_path, capsys):
    """Its text is in training here, that of validation is not."""
    text, tokenizer = "宝玉笑道：“来了。”\n" * 60, ByteTokenizer(eot=255)
    with DatasetWriter(tmp_path / "data", tokenizer, {}, splits=("train", "val", "test")) as writer:
        for split, own in (("train", text), ("val", "".join(map(chr, range(40, 120))) * 9), ("test", text)):
            writer.write(split, tokenizer.encode(own), len(own.encode()))
    save(tmp_path / "out", build(), tokenizer, config={"dataset": str(tmp_path / "data")})
    val, test = (run(capsys, f"--out_dir={tmp_path / 'out'}", "--memorised", f"--split={s}") for s in ("val", "test"))
    assert val["copied_held_out_longest"] == 0 and test["copied_held_out_longest"] >= 20


@pytest.mark.parametrize(
    "options, message",
    [
        (["--input=x.txt"], "leave --input out"),
        (["--split=train"], "leave --split out"),
        (["--task=chat"], "leave one out"),
        ([], "val has 6 ids, and its first 16 are a prompt"),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path, options, message):
    write_dataset(tmp_path / "data", ByteTokenizer(eot=255), ["short"])
    save(tmp_path / "out", build(), ByteTokenizer(eot=255), config={"dataset": str(tmp_path / "data")})
    with pytest.raises(ValueError, match=message):
        evaluate.main([f"--out_dir={tmp_path / 'out'}", "--memorised", "--device=cpu", *options])
