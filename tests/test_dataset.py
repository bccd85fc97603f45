"""data/dataset.py: what is written is read back, damage is noticed, batches are pure and cover the text."""

import hashlib
import itertools
import json
import os
import pickle
import shutil
import subprocess
import sys
import tracemalloc
from collections import Counter
from math import factorial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import dataset as module
from data import matching
from data.dataset import DatasetWriter, open_dataset
from data.tokenizer import BPETokenizer, ByteTokenizer, CharTokenizer
from data.windows import FAR, batch, eval_batch, eval_windows, line_windows, mix, permute, windows_per_epoch


class Ids:
    """A tokenizer as far as the writer looks at it; to_json describes another one, valid for reading."""

    eot = None

    def __init__(self, vocab_size):
        self.vocab_size = vocab_size

    def to_json(self):
        return ByteTokenizer().to_json()


def write(folder, train, val=(1, 2, 3), vocab_size=256):
    with DatasetWriter(folder, Ids(vocab_size), {"from": "test"}) as writer:
        writer.write("train", np.asarray(train), n_bytes=len(train))
        writer.write("val", np.asarray(val), n_bytes=len(val))
    return open_dataset(folder)


def foreign(folder, train, val=(1, 2, 3), dtype="<u2"):
    """Bins as nanoGPT writes them, with nothing beside them."""
    folder.mkdir(exist_ok=True)
    np.asarray(train, dtype=dtype).tofile(folder / "train.bin")
    np.asarray(val, dtype=dtype).tofile(folder / "val.bin")
    return folder


def counting(folder, n):
    """A dataset whose token i has the id i, so that a batch shows where it was cut."""
    return open_dataset(foreign(folder, np.arange(n), dtype="<u4"), vocab_size=2**32 - 1)


# ---- writing ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vocab_size, dtype", [(65, "<u2"), (65536, "<u2"), (65537, "<u4")])
def test_written_ids_are_raw_little_endian_and_the_largest_does_not_wrap(tmp_path, vocab_size, dtype):
    ids = [0, 1, vocab_size - 1]
    dataset = write(tmp_path, ids, vocab_size=vocab_size)
    assert (tmp_path / "train.bin").read_bytes() == np.array(ids, dtype).tobytes()
    assert dataset.array("train").tolist() == ids
    assert dataset.vocab_size == vocab_size


def test_meta_has_the_keys_of_the_contract_and_hashes_of_the_files(tmp_path):
    tokenizer = CharTokenizer("abc天𠀀")
    with DatasetWriter(tmp_path, tokenizer, {"from": "here"}) as writer:
        for text in ("ab天", "𠀀"):
            writer.write("train", tokenizer.encode(text), n_bytes=len(text.encode()))
        writer.write("val", tokenizer.encode("cc"), n_bytes=2)
    meta = json.loads((tmp_path / "meta.json").read_text(encoding="utf-8"))
    train, val = (hashlib.sha256((tmp_path / f"{s}.bin").read_bytes()).hexdigest() for s in ("train", "val"))
    assert meta == {
        "format": 1,
        "dtype": "uint16",
        "vocab_size": 5,
        "tokenizer": tokenizer.to_json(),
        "eot": None,
        "splits": {
            "train": {"tokens": 4, "bytes": 9, "documents": 2, "sha256": train},
            "val": {"tokens": 2, "bytes": 2, "documents": 1, "sha256": val},
        },
        "source": {"from": "here"},
    }
    dataset = open_dataset(tmp_path)
    assert (dataset.tokens("train"), dataset.bytes("train"), dataset.name) == (4, 9, tmp_path.name)
    assert dataset.tokenizer.decode(dataset.array("train")) == "ab天𠀀"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["meta.json", "train.bin", "val.bin"]


@pytest.mark.parametrize("ids", [[5, 256], [-1, 3]])
def test_an_id_outside_the_vocabulary_is_refused_and_the_old_dataset_stays(tmp_path, ids):
    write(tmp_path, [7, 8, 9])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=f"{ids[0]}.*vocab_size is 256|{ids[1]}.*vocab_size is 256"):
        write(tmp_path, ids)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failure_while_writing_leaves_the_old_dataset(tmp_path, error):
    write(tmp_path, [7, 8, 9])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(error), DatasetWriter(tmp_path, Ids(256), {}) as writer:
        writer.write("train", np.array([1, 2]), n_bytes=2)
        raise error
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_file_that_cannot_be_replaced_leaves_the_old_dataset(tmp_path, monkeypatch):
    """Windows refuses to replace a file that another process has mapped."""
    write(tmp_path, [7, 8, 9])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    replace = os.replace

    def refuse(source, target):
        if Path(target) == tmp_path / "val.bin":
            raise PermissionError("in use")
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(ValueError, match="cannot write the dataset.*in use"):
        write(tmp_path, [1, 2])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_empty_split_is_refused(tmp_path):
    with pytest.raises(ValueError, match="val split would be empty"):
        write(tmp_path, [1, 2], val=[])
    with pytest.raises(ValueError, match="no train.bin"):
        open_dataset(tmp_path)


def write_test(folder, test=(4, 5, 6, 7), train=(7, 8, 9)):
    splits = ("train", "val", "test")
    with DatasetWriter(folder, Ids(256), {"from": "test"}, splits=splits) as writer:
        for split, ids in zip(splits, (train, (1, 2), test), strict=True):
            writer.write(split, np.array(ids), n_bytes=len(ids))
    return open_dataset(folder)


def test_a_test_split_is_listed_and_opened_by_who_asks_for_it(tmp_path):
    dataset = write_test(tmp_path)
    assert dataset.sizes == {"train": 3, "val": 2}
    assert dataset.array("test").tolist() == [4, 5, 6, 7] and dataset.tokens("test") == dataset.bytes("test") == 4
    digest = hashlib.sha256((tmp_path / "test.bin").read_bytes()).hexdigest()
    assert dataset.meta["splits"]["test"] == {"tokens": 4, "bytes": 4, "documents": 1, "sha256": digest}
    with pytest.raises(ValueError, match="test split would be empty; .*--val_fraction and --test_fraction"):
        write_test(tmp_path / "empty", test=[])


def test_a_test_split_changes_neither_the_fingerprint_nor_what_else_is_opened(tmp_path):
    whole = write_test(tmp_path / "a").fingerprint()
    dataset = write_test(tmp_path / "b", test=[9])
    assert dataset.fingerprint() == whole and dataset.tokens("test") == 1 and dataset.fingerprint() == whole
    (tmp_path / "b" / "test.bin").unlink()
    assert open_dataset(tmp_path / "b").fingerprint() == whole
    with pytest.raises(ValueError, match="no test.bin, though meta.json lists it; prepare .* --test_fraction"):
        open_dataset(tmp_path / "b").tokens("test")
    with pytest.raises(ValueError, match="no test split; prepare it again with --test_fraction"):
        write(tmp_path / "c", [1, 2]).array("test")
    np.array([1, 2, 3], "<u2").tofile(tmp_path / "a" / "test.bin")
    with pytest.raises(ValueError, match="test.bin: 3 tokens, but meta.json says 4"):
        open_dataset(tmp_path / "a").tokens("test")


def test_a_test_bin_beside_foreign_bins_is_checked_when_it_is_asked_for(tmp_path):
    folder = foreign(tmp_path / "a", [1, 2, 3])
    np.array([300], "<u2").tofile(folder / "test.bin")
    dataset = open_dataset(folder, vocab_size=256)
    with pytest.raises(ValueError, match="test.bin: token 0 is id 300, but vocab_size is 256"):
        dataset.tokens("test")
    assert open_dataset(folder, vocab_size=301).array("test").tolist() == [300]


def test_an_old_test_split_goes_with_its_dataset_and_a_file_of_that_name_stays(tmp_path):
    write_test(tmp_path)
    write(tmp_path, [1, 2])
    assert sorted(os.listdir(tmp_path)) == ["meta.json", "train.bin", "val.bin"]
    (tmp_path / "test.bin").write_bytes(b"a user's own")
    write(tmp_path, [3, 4])
    assert (tmp_path / "test.bin").read_bytes() == b"a user's own"


@pytest.mark.parametrize("before, after", [(True, True), (True, False), (False, True)])
def test_a_kill_between_any_steps_leaves_the_old_dataset_or_none_and_never_other_test_ids(
    tmp_path, monkeypatch, before, after
):
    """The steps are replacing and removing a file."""
    steps, known = -1, {}

    def step(original):
        def killed(*args, **options):
            nonlocal steps
            steps -= 1
            if steps == 0:
                raise KeyboardInterrupt
            return original(*args, **options)

        return killed

    for number in range(1, 12):
        folder, steps = tmp_path / str(number), -1
        write_test(folder) if before else write(folder, [7, 8, 9])
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", step(os.replace))
            patch.setattr(Path, "unlink", step(Path.unlink))
            steps = number
            try:
                write_test(folder, test=[100], train=[50]) if after else write(folder, [50])
            except KeyboardInterrupt:
                pass
        if not (folder / "train.bin").exists():
            known[number] = "none"
            continue
        dataset = open_dataset(folder)
        is_old = dataset.array("train")[0] == 7
        known[number] = "old" if is_old else "new"
        if before if is_old else after:
            assert dataset.array("test").tolist() == ([4, 5, 6, 7] if is_old else [100])
        else:
            assert "test" not in dataset.meta["splits"] and (is_old or not (folder / "test.bin").exists())
    assert [*dict.fromkeys(known.values())] == ["old", "none", "new"]


def test_masks_of_earlier_conversations_go_with_them(tmp_path):
    with DatasetWriter(tmp_path, Ids(256), {"from": "test"}) as writer:
        for split in ("train", "val"):
            writer.write_conversation(split, np.array([1, 2, 3]), np.array([False, True, True]), n_bytes=3)
    assert open_dataset(tmp_path).is_masked and (tmp_path / "val.mask").exists()
    assert not write(tmp_path, [7, 8, 9]).is_masked
    assert sorted(path.name for path in tmp_path.iterdir()) == ["meta.json", "train.bin", "val.bin"]


def test_a_folder_that_cannot_be_made_is_the_users_error(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(ValueError, match="cannot write the dataset"):
        write(tmp_path / "file", [1, 2])


def test_a_second_writer_takes_over_and_the_first_fails_without_harm(tmp_path):
    refused = pytest.raises(ValueError, match="cannot write the dataset")
    with refused, DatasetWriter(tmp_path, Ids(256), {}) as first:
        write(tmp_path, [7, 8, 9])
        first.write("train", np.array([1]), n_bytes=1)
        first.write("val", np.array([1]), n_bytes=1)
    assert open_dataset(tmp_path).array("train").tolist() == [7, 8, 9]


# ---- opening ---------------------------------------------------------------------------------------------


def test_bins_alone_are_gpt2_with_a_warning(tmp_path):
    foreign(tmp_path, [0, 50256])
    with pytest.warns(UserWarning, match="GPT-2"):
        dataset = open_dataset(tmp_path)
    assert dataset.vocab_size == 50257
    assert (dataset.tokenizer, dataset.meta, dataset.bytes("train")) == (None, None, None)


@pytest.mark.filterwarnings("error")
def test_vocab_size_names_the_vocabulary_of_bins_alone(tmp_path):
    assert open_dataset(foreign(tmp_path, [0, 60000]), vocab_size=60001).vocab_size == 60001
    assert open_dataset(foreign(tmp_path, [0, 99999], dtype="<u4"), vocab_size=100000).dtype == np.uint32


@pytest.mark.parametrize("position", [0, 2**22 - 1, 2**22, 2**22 + 4])
def test_the_scan_finds_an_id_out_of_range_wherever_it_is(tmp_path, position):
    ids = np.zeros(2**22 + 5, np.uint16)
    ids[position] = 1000
    with pytest.raises(ValueError, match=f"token {position:,} is id 1000, but vocab_size is 1000"):
        open_dataset(foreign(tmp_path, ids), vocab_size=1000)


@pytest.mark.parametrize("chars", [sorted("天地玄黄 \n"), list("天地玄黄 \n")])
def test_nanogpt_meta_pkl_gives_the_char_tokenizer_with_its_own_order(tmp_path, chars):
    itos = dict(enumerate(chars))
    meta = {"vocab_size": len(chars), "itos": itos, "stoi": {c: i for i, c in itos.items()}}
    foreign(tmp_path, [5, 0, 1])
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps(meta))
    dataset = open_dataset(tmp_path)
    assert dataset.vocab_size == 6
    assert dataset.tokenizer.decode([5, 0, 1]) == chars[5] + chars[0] + chars[1]


def test_meta_pkl_with_other_than_characters_is_read_without_a_tokenizer(tmp_path):
    foreign(tmp_path, [0, 1], [1, 0])
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": 2, "itos": {0: "ab", 1: "c"}}))
    with pytest.warns(UserWarning, match="used without a tokenizer"):
        dataset = open_dataset(tmp_path)
    assert (dataset.vocab_size, dataset.tokenizer) == (2, None)


class Touch:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path):
    foreign(tmp_path, [0, 1])
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": 2, "itos": Touch(tmp_path / "ran")}))
    with pytest.raises(ValueError, match="meta.pkl.*asks for"):
        open_dataset(tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("extra", [1.5, b"x", [1], (1,), None, {"a": {"b": [1]}}])
def test_meta_pkl_with_other_than_dict_str_and_int_is_refused(tmp_path, extra):
    foreign(tmp_path, [0, 1])
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": 2, "more": extra}))
    with pytest.raises(ValueError, match="values other than dict, str and int"):
        open_dataset(tmp_path)


@pytest.mark.parametrize("content", [b"", b"junk", pickle.dumps([1, 2]), pickle.dumps({"vocab_size": "9"})])
def test_a_damaged_meta_pkl_is_one_error(tmp_path, content):
    foreign(tmp_path, [0, 1])
    (tmp_path / "meta.pkl").write_bytes(content)
    with pytest.raises(ValueError, match="meta.pkl"):
        open_dataset(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 1}', '{"format": 2, "dtype": 1}', "\0"])
def test_a_damaged_meta_json_is_one_error(tmp_path, content):
    write(tmp_path, [1, 2, 3])
    (tmp_path / "meta.json").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match="meta.json"):
        open_dataset(tmp_path)


@pytest.mark.parametrize("content, message", [(b"", "0 bytes"), (b"\0\0\0", "3 bytes.*multiple of 2")])
def test_an_empty_or_odd_length_bin_is_refused(tmp_path, content, message):
    foreign(tmp_path, [1, 2])
    (tmp_path / "train.bin").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        open_dataset(tmp_path, vocab_size=10)


def test_a_bin_of_another_length_than_meta_json_says_is_refused(tmp_path):
    write(tmp_path, [1, 2, 3])
    (tmp_path / "val.bin").write_bytes(b"\0\0")
    with pytest.raises(ValueError, match="val.bin: 1 tokens, but meta.json says 3"):
        open_dataset(tmp_path)
    (tmp_path / "val.bin").unlink()
    with pytest.raises(ValueError, match="val.bin: missing"):
        open_dataset(tmp_path)


def test_a_bin_replaced_while_open_is_noticed(tmp_path):
    dataset = write(tmp_path, [1, 2, 3])
    write(tmp_path, [1, 2, 3, 4])
    with pytest.raises(ValueError, match="no longer the 3 tokens"):
        dataset.array("train")


def test_a_missing_split_of_foreign_bins_is_an_error_only_when_asked_for(tmp_path):
    foreign(tmp_path, [1, 2])
    (tmp_path / "val.bin").unlink()
    dataset = open_dataset(tmp_path, vocab_size=10)
    assert dataset.tokens("train") == 2
    with pytest.raises(ValueError, match="no val.bin"):
        dataset.tokens("val")


def test_vocab_size_below_the_datas_own_is_refused(tmp_path):
    write(tmp_path, [1, 2, 3], vocab_size=100)
    assert open_dataset(tmp_path, vocab_size=128).vocab_size == 100
    with pytest.raises(ValueError, match="vocab_size=99 is too small"):
        open_dataset(tmp_path, vocab_size=99)


def test_a_name_is_looked_up_under_data_and_errors_say_what_to_run(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "DATA", tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "data" / "made", [1, 2])
    (tmp_path / "data" / "raw").mkdir()
    (tmp_path / "data" / "raw" / "prepare.py").write_text("", encoding="utf-8")
    (tmp_path / "made").mkdir()  # a folder of that name without a dataset is not in the way
    assert open_dataset("made").folder == tmp_path / "data" / "made"
    with pytest.raises(ValueError, match=r"python data.raw.prepare\.py"):
        open_dataset("raw")
    with pytest.raises(ValueError, match="no dataset nowhere.*made.*raw"):
        open_dataset("nowhere")
    with pytest.raises(ValueError, match="no train.bin"):
        open_dataset(tmp_path)


def test_the_fingerprint_follows_the_ids_not_the_place(tmp_path):
    ids = np.arange(300_000) % 200
    changed = ids.copy()
    changed[-1] += 1
    for make in (write, lambda folder, ids: open_dataset(foreign(folder, ids), vocab_size=256)):
        a = make(tmp_path / "a", ids)
        shutil.copytree(tmp_path / "a", tmp_path / "b")
        assert open_dataset(tmp_path / "b", 256).fingerprint() == a.fingerprint()
        assert make(tmp_path / "c", changed).fingerprint() != a.fingerprint()
        for name in "abc":
            shutil.rmtree(tmp_path / name)


# ---- batches ---------------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(n=st.integers(1, 3000), key=st.integers(0, 2**64 - 1))
def test_permute_is_a_permutation(n, key):
    k = np.arange(n, dtype=np.uint64)
    assert sorted(permute(k, n, np.full(n, key, np.uint64)).tolist()) == list(range(n))


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_permute_draws_all_orders_equally_often(n):
    """chi-squared over all n! orders; its mean is the degrees of freedom, its deviation sqrt(2 * that)."""
    draws = 48_000
    key = mix(np.arange(draws, dtype=np.uint64))
    orders = zip(*(permute(np.full(draws, i, np.uint64), n, key).tolist() for i in range(n)), strict=True)
    counts, expected, free = Counter(orders), draws / factorial(n), factorial(n) - 1
    chi2 = sum((counts[order] - expected) ** 2 / expected for order in itertools.permutations(range(n)))
    assert chi2 < free + 5 * (2 * free) ** 0.5


@settings(max_examples=60)
@given(n=st.integers(2, 700), block_size=st.integers(1, 60), seed=st.integers(-5, 2**40))
def test_an_epoch_predicts_no_token_twice_and_leaves_out_few(tmp_path_factory, n, block_size, seed):
    dataset = counting(tmp_path_factory.mktemp("n"), n)
    if n <= block_size:
        with pytest.raises(ValueError, match=f"{n} tokens, but block_size={block_size} .* {block_size + 1};"):
            windows_per_epoch(dataset, "train", block_size)
        return
    per_epoch = windows_per_epoch(dataset, "train", block_size)
    for epoch in (0, 1, 77):
        x, y = batch(dataset, "train", seed, np.arange(per_epoch) + epoch * per_epoch, block_size)
        assert x.dtype == y.dtype == np.int64 and x.shape == y.shape == (per_epoch, block_size)
        assert (x == x[:, :1] + np.arange(block_size)).all()  # as token i has id i: a window in one piece
        assert (y == x + 1).all()
        assert np.unique(y).size == y.size > n - 1 - 2 * block_size
        assert len(set((x[:, 0] % block_size).tolist())) == 1  # one grid


def test_every_token_but_the_first_becomes_a_target_in_some_epoch(tmp_path):
    dataset = counting(tmp_path, 131)
    _, y = batch(dataset, "train", 1, np.arange(12 * 200), 10)
    assert set(y.ravel().tolist()) == set(range(1, 131))


def test_a_batch_depends_on_seed_split_and_index_alone(tmp_path):
    dataset = open_dataset(foreign(tmp_path, np.arange(1000), np.arange(1000)), vocab_size=1000)
    index = np.arange(250)  # over several epochs
    x, _ = batch(dataset, "train", 7, index, 16)
    order = np.random.default_rng(0).permutation(index)
    assert (batch(dataset, "train", 7, order, 16)[0] == x[order]).all()
    again = open_dataset(tmp_path, 1000)
    slices = [batch(again, "train", 7, part, 16)[0] for part in np.array_split(index, 7)]
    assert (np.concatenate(slices) == x).all()
    assert (batch(dataset, "train", 8, index, 16)[0] != x).any(axis=1).mean() > 0.9
    assert (batch(dataset, "val", 7, index, 16)[0] != x).any(axis=1).mean() > 0.9


def test_epochs_differ_in_order_and_phase(tmp_path):
    dataset = counting(tmp_path, 1000)
    per_epoch = windows_per_epoch(dataset, "train", 10)
    starts = batch(dataset, "train", 7, np.arange(20 * per_epoch), 10)[0][:, 0].reshape(20, per_epoch)
    assert len(set((starts[:, 0] % 10).tolist())) > 5
    assert len({tuple((row // 10).tolist()) for row in starts}) == 20


def test_mix_gives_the_published_first_outputs_of_splitmix64():
    """Seed 0; the generator adds the constant that mix adds to its state before every output."""
    states = [i * 0x9E3779B97F4A7C15 % 2**64 for i in range(3)]
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert mix(np.array(states, np.uint64)).tolist() == expected


def test_the_order_is_the_same_on_every_machine_and_version(tmp_path):
    """Golden values: a change here breaks resuming of every run that there is."""
    x, _ = batch(counting(tmp_path, 1000), "train", 1337, np.array([0, 1, 98, 99, 10**12]), 10)
    assert x[:, 0].tolist() == [606, 526, 886, 343, 751]


@settings(max_examples=60)
@given(n=st.integers(2, 300), block_size=st.integers(1, 40), batch_size=st.integers(1, 5))
def test_all_eval_windows_predict_all_but_the_first_token_once(tmp_path_factory, n, block_size, batch_size):
    dataset = counting(tmp_path_factory.mktemp("n"), n)
    windows = eval_windows(dataset, "train", block_size)
    assert eval_windows(dataset, "train", block_size, limit=len(windows)).tolist() == windows.tolist()
    targets = []
    for i in range(0, len(windows), batch_size):
        x, y = eval_batch(dataset, "train", windows[i : i + batch_size], block_size)
        assert x.dtype == y.dtype == np.int64 and x.shape == y.shape and x.shape[1] == block_size
        assert (y[y != -1] == x[y != -1] + 1).all()
        targets += y[y != -1].tolist()
    assert targets == list(range(1, n))


@settings(max_examples=60)
@given(n=st.integers(2, 3000), block_size=st.integers(1, 40), limit=st.integers(1, 60))
def test_limited_evaluation_takes_distinct_full_windows_spread_evenly(tmp_path_factory, n, block_size, limit):
    dataset = counting(tmp_path_factory.mktemp("n"), n)
    windows = eval_windows(dataset, "train", block_size, limit)
    n_full, n_all = (n - 1) // block_size, -(-(n - 1) // block_size)
    assert len(windows) == min(limit, n_all)
    if limit < n_all:
        gaps = np.diff([*windows, n_full])
        assert windows[0] == 0 and gaps.min() >= 1 and gaps.max() - gaps.min() <= 1
        assert (eval_batch(dataset, "train", windows, block_size)[1] >= 0).all()


def test_one_token_cannot_be_evaluated(tmp_path):
    with pytest.raises(ValueError, match="at least 2"):
        eval_windows(counting(tmp_path, 1), "train", 8)


@pytest.mark.skipif(os.name == "nt", reason="makes a sparse file of 8 GB")
def test_a_file_of_billions_of_tokens_is_not_read_as_a_whole(tmp_path):
    n = 2**32 + 1000
    foreign(tmp_path, [0, 0])
    with open(tmp_path / "train.bin", "rb+") as file:
        file.truncate(2 * n)
        file.seek(2 * (n - 1))
        file.write(b"\x07\x00")
    tracemalloc.start()
    dataset = open_dataset(tmp_path, vocab_size=2**16)  # any uint16 is in range: nothing to scan
    x, y = batch(dataset, "train", 1, np.arange(64), 1024)
    last = eval_batch(dataset, "train", eval_windows(dataset, "train", 1024, 10**9)[-1:], 1024)[1]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert x.shape == y.shape == (64, 1024)
    assert 7 in last
    assert peak < 64 * 2**20


RESIDENT = """
import resource, sys
sys.path.insert(0, {root!r})
import numpy as np
from data.dataset import open_dataset
from data.windows import batch, eval_batch, eval_windows
dataset = open_dataset(sys.argv[1])
for sampling, n in (("contiguous", 50), ("line", 10)):  # without newlines, each line is searched for as far as allowed
    for i in range(n):
        batch(dataset, "train", 1, np.arange(64 * i, 64 * i + 64), 1024, sampling)
    for window in eval_windows(dataset, "train", 1024, 4 * n):
        eval_batch(dataset, "train", np.array([window]), 1024, sampling)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="makes a sparse file of 10 GB, and reads the peak memory in KiB")
def test_batches_of_a_10_gb_file_take_no_more_memory_than_those_of_a_10_mb_one(tmp_path):
    """The pages that were read would add up to hundreds of MB, if they stayed mapped."""
    script, peaks = RESIDENT.format(root=str(Path(__file__).resolve().parents[1])), {}
    for size in (10**7, 10**10):
        write(tmp_path, [5, 5])
        os.truncate(tmp_path / "train.bin", size)
        meta = json.loads((tmp_path / "meta.json").read_text(encoding="utf-8"))
        meta["splits"]["train"]["tokens"] = size // 2
        (tmp_path / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
        done = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        peaks[size] = int(done.stdout) / 1024
    assert peaks[10**10] < peaks[10**7] + 50


# ---- windows that start with a line ------------------------------------------------------------------------


def code(folder, files, tokenizer=None):
    """A dataset of these files, each with the end-of-text id behind it."""
    tokenizer = tokenizer or ByteTokenizer(eot=255)
    with DatasetWriter(folder, tokenizer, {}) as writer:
        for text in files:
            writer.write("train", np.array([*tokenizer.encode(text), tokenizer.eot]), n_bytes=len(text.encode()))
        writer.write("val", tokenizer.encode(files[0]), n_bytes=len(files[0].encode()))
    return open_dataset(folder)


FILES = st.lists(st.text(alphabet="ab\n", min_size=1, max_size=60), min_size=1, max_size=12)


@settings(max_examples=60)
@given(files=FILES, block_size=st.integers(1, 40))
def test_a_line_window_is_bos_and_then_a_file_from_the_next_start_of_a_line_on(tmp_path_factory, files, block_size):
    dataset = code(tmp_path_factory.mktemp("n"), files)
    ids = dataset.array("train").tolist()
    starts = [i for i in range(len(ids)) if ids[i] != 255 and (i == 0 or ids[i - 1] in (10, 255))]
    x, y = line_windows(dataset, "train", np.arange(len(ids)), block_size)
    assert x.dtype == y.dtype == np.int64 and x.shape == y.shape == (len(ids), block_size)
    for position, inputs, targets in zip(range(len(ids)), x.tolist(), y.tolist(), strict=True):
        start = min((i for i in starts if i >= position), default=0)
        text = ids[start : ids.index(255, start) + 1][:block_size]
        assert targets == text + [-1] * (block_size - len(text))
        assert inputs == [0, *text[:-1], *[0] * (block_size - len(text))]


@pytest.fixture
def lines(tmp_path):
    draw = np.random.default_rng(0)
    return code(tmp_path, ["\n".join("x" * n for n in draw.integers(0, 40, 30)) + f" {i}\n" for i in range(20)])


def test_a_batch_of_lines_depends_on_seed_split_and_index_alone(lines):
    index = np.arange(3 * windows_per_epoch(lines, "train", 32))
    x, y = batch(lines, "train", 7, index, 32, "line")
    parts = [batch(open_dataset(lines.folder), "train", 7, part, 32, "line") for part in np.array_split(index, 5)]
    assert (np.concatenate([part[0] for part in parts]) == x).all()
    assert (np.concatenate([part[1] for part in parts]) == y).all()
    assert (batch(lines, "train", 8, index, 32, "line")[1] != y).any(axis=1).mean() > 0.9


def test_lines_of_other_tokens_start_behind_those_that_end_in_a_newline(tmp_path):
    text = "def f(x):\n\n    return x;\n" * 40
    tokenizer = BPETokenizer.train([text], 300)
    dataset = code(tmp_path, [text, "if x:\n" + text], tokenizer)
    _, y = batch(dataset, "train", 1, np.arange(300), 8, "line")
    ids = dataset.array("train").tolist()
    before = {tokenizer.token_bytes(i)[-1:] for i, j in zip(ids, ids[1:], strict=False) if j in set(y[:, 0].tolist())}
    assert before >= {b"\n"} and len(set(y[:, 0].tolist())) > 1
    runs = {
        tuple(ids[i + 1 : i + 9]) for i in range(len(ids) - 9) if tokenizer.token_bytes(ids[i])[-1:] in (b"\n", b"")
    }
    full = [row for row in y.tolist() if -1 not in row]
    assert full and all(tuple(row) in runs | {tuple(ids[:8])} for row in full)


def test_256_ids_that_nothing_explains_are_taken_as_bytes(tmp_path):
    dataset = open_dataset(foreign(tmp_path, list(b"ab\ncd\xffef\n\xff")), vocab_size=256)
    _, y = line_windows(dataset, "train", np.array([0, 1, 4, 9]), 4)
    assert y.tolist() == [[97, 98, 10, 99], [99, 100, 255, -1], [101, 102, 10, 255], [97, 98, 10, 99]]


def test_lines_of_text_without_newlines_or_without_tokenizer_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no token of this dataset ends in a newline"):
        batch(code(tmp_path, ["abab"], CharTokenizer("ab", eot=True)), "train", 1, np.arange(2), 2, "line")
    dataset = open_dataset(foreign(tmp_path / "ids", [1, 2, 3]), vocab_size=1000)
    with pytest.raises(ValueError, match="this dataset has no tokenizer"):
        batch(dataset, "train", 1, np.arange(2), 2, "line")


def test_an_endless_line_is_started_where_it_is_met(tmp_path):
    dataset = code(tmp_path, ["a\n" + "b" * (2 * FAR) + "\n" + "c"])
    _, y = line_windows(dataset, "train", np.array([3, 2 * FAR - 100]), 4)
    assert y.tolist() == [list(b"bbbb"), [*b"c", 255, -1, -1]]


def test_a_checkpoints_own_tokenizer_is_recognized_without_its_table(tmp_path, monkeypatch):
    with DatasetWriter(tmp_path, CharTokenizer("abc"), {"from": "here"}) as writer:
        for split in ("train", "val"):
            writer.write(split, np.arange(3), n_bytes=3)
    dataset = open_dataset(tmp_path)
    saved = {"model_args": {"vocab_size": 3}, "tokenizer": CharTokenizer("abc").to_json()}
    other = saved | {"tokenizer": CharTokenizer("abd").to_json()}
    assert matching.has_ids_of(dataset, saved) and not matching.has_ids_of(dataset, other)
    monkeypatch.setattr(matching, "token_table", None)  # not called
    assert matching.has_ids_of(dataset, saved)
