"""A few of the folders of tests/folders.py, and some of its texts: all equal to the libraries, or refused in words."""

import pytest
from folders import awkward_texts, cases, compare, make_folder, refusals

# byte-level with NFC, Llama-2's, Unigram, WordPiece, WordLevel; all shapes, specials and storages
CHOSEN = (8, 17, 26, 30, 38, 40, 48, 55, 61, 65)


@pytest.mark.parametrize("number", CHOSEN)
def test_ids_greedy_texts_and_exports_are_the_libraries(number, tmp_path):
    make_folder(cases()[number], tmp_path / "folder", seed=number)
    result, finished = compare(tmp_path / "folder", awkward_texts()[number % 4 :: 4], tmp_path / "exported")
    assert result.startswith("equal"), result
    assert finished


def test_the_folders_cover_every_choice():
    for field in ("name", "shape", "specials", "tied", "storage"):
        every = {getattr(case, field) for case in cases()}
        assert field == "name" or {getattr(cases()[number], field) for number in CHOSEN} == every
    assert len(cases()) >= 60 and len(set(awkward_texts())) == 200


def test_what_cannot_be_read_whole_is_refused_in_words(tmp_path):
    words = ("only tokenizer.model: save the one", "609 ids, but the model has 608", "`tokenizers` can run",
             "rope_type is 'dynamic', whose angles change", "sliding_window=128 is less than", "caps attention scores",
             "attn_logit_softcapping is 50.0")  # fmt: skip
    for result, expected in zip(refusals(tmp_path), words, strict=True):
        assert result.startswith("refused: ") and expected in result and "\n" not in result
