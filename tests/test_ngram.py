"""--ngram: an n-gram model beside a GPT, against the formulas in float64, with a dictionary for each length."""

import json
import math
from collections import Counter, defaultdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_eval import build, run, save, write_dataset

import eval as evaluate
import sample
from data.dataset import DatasetWriter
from data.tokenizer import ByteTokenizer, CharTokenizer
from inference import ngram
from inference.ensemble import join_models
from inference.generate import stream
from inference.ngram import DISCOUNTS, NGram, distinct
from inference.sampling import Sampling

SIX = 6  # ids in the longest n-gram
TEXT = "the cat sat on the mat. the cat sat on the hat. a rat sat on the cat! "


class Oracle:
    """Chen & Goodman's interpolated modified Kneser-Ney, as equations (20) to (23) of their report define it."""

    def __init__(self, ids: list[int], vocab_size: int):
        self.vocab_size, self.longest = vocab_size, min(SIX, len(ids))
        runs = {k: Counter(tuple(ids[i : i + k]) for i in range(len(ids) - k + 1)) for k in range(1, self.longest + 1)}
        self.counts = {self.longest: runs[self.longest]}
        for k in range(1, self.longest):
            before = defaultdict(set)
            for longer in runs[k + 1]:
                before[longer[1:]].add(longer[0])
            self.counts[k] = {shorter: len(before[shorter]) for shorter in runs[k]}
        self.discounts = {k: self.discounts_of(counts) for k, counts in self.counts.items()}

    def discounts_of(self, counts: dict) -> tuple:
        n = Counter(counts.values())
        if not (n[1] and n[2] and n[3]):
            return DISCOUNTS
        y = n[1] / (n[1] + 2 * n[2])
        found = [c - (c + 1) * y * n[c + 1] / n[c] for c in (1, 2, 3)]
        return tuple(found) if all(0 < d <= c for c, d in zip((1, 2, 3), found, strict=True)) else DISCOUNTS

    def p(self, context: list[int], id: int) -> float:
        k = min(len(context) + 1, self.longest)
        context = tuple(context[len(context) - k + 1 :])
        behind = {run[-1]: c for run, c in self.counts[k].items() if run[:-1] == context and c}
        lower = self.p(list(context[1:]), id) if k > 1 else 1 / self.vocab_size
        total = sum(behind.values())
        if not total:
            return lower
        taken = {w: self.discounts[k][min(c, 3) - 1] for w, c in behind.items()}
        return (behind.get(id, 0) - taken.get(id, 0)) / total + sum(taken.values()) / total * lower


texts = st.lists(st.integers(0, 3), min_size=2, max_size=60)


@settings(max_examples=150, deadline=None)
@given(texts, st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=9), min_size=1, max_size=4))
def test_probabilities_are_those_of_the_formulas(ids, prompts):
    oracle, counts = Oracle(ids, 5), NGram([np.array(ids, np.uint16)], 5, 0.2)
    found = counts.probabilities(prompts)
    for row, prompt in zip(found, prompts, strict=True):
        assert row == pytest.approx([oracle.p(prompt, id) for id in range(5)], rel=1e-5)
        assert row.sum() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("largest", [50, 2**53 - 1, 2**53, 2**62])  # from 2**53 on, 10 bits for its place are too many
def test_distinct_is_numpys_unique(largest):
    rng = np.random.default_rng(1)
    keys = rng.choice(rng.integers(0, largest, 300, endpoint=True), 1000)
    keys[-1] = largest
    for found, expected in zip(distinct(keys), np.unique(keys, return_index=True, return_inverse=True), strict=True):
        np.testing.assert_array_equal(found, expected)


@settings(max_examples=60, deadline=None)
@given(texts, st.integers(0, 2**32 - 1))
def test_the_nats_of_a_mixture_need_no_context_from_before_the_row(ids, seed):
    rng, oracle, counts = np.random.default_rng(seed), Oracle(ids, 5), NGram([np.array(ids)], 5, 0.3)
    x, y = rng.integers(0, 5, (2, 7)), rng.integers(-1, 5, (2, 7))
    nats = rng.random((y >= 0).sum()) * 4
    expected = [
        -math.log(0.7 * math.exp(-n) + 0.3 * oracle.p(x[b, : t + 1].tolist(), y[b, t]))
        for n, (b, t) in zip(nats, np.argwhere(y >= 0), strict=True)
    ]
    assert counts.mix_nats(nats, x, y) == pytest.approx(expected, rel=1e-5)


def test_discounts_are_those_of_the_text_where_it_is_long_enough():
    counts = np.repeat([0, 1, 2, 3, 4, 9], [7, 100, 30, 12, 6, 5])
    y = 100 / 160
    expected = (1 - 2 * y * 30 / 100, 2 - 3 * y * 12 / 30, 3 - 4 * y * 6 / 12)
    assert ngram.discounts(counts) == pytest.approx(expected)
    assert ngram.discounts(np.array([1, 1, 2, 2])) == DISCOUNTS  # nothing was seen three times
    assert ngram.discounts(np.repeat([1, 2, 3], [2, 1, 40])) == DISCOUNTS  # the second would be below 0


@pytest.fixture
def trained(tmp_path):
    """A run over bytes, its model, and a second dataset with the same ids."""
    model = build(seed=3)
    write_dataset(tmp_path / "data", ByteTokenizer(eot=255), [TEXT, TEXT[20:50]])
    write_dataset(tmp_path / "more", ByteTokenizer(eot=255), ["a dog sat on the log. " * 2])
    save(tmp_path / "out", model, ByteTokenizer(eot=255), config={"dataset": str(tmp_path / "data")})
    return tmp_path, model


def mixed(model, oracle: Oracle, ids: list[int], share: float) -> np.ndarray:
    """The probabilities (V,) of what follows ids, in float64."""
    with torch.no_grad():
        own = model(torch.tensor([ids[-8:]]))[0][0, -1].double().softmax(-1).numpy()  # 8: its context
    return (1 - share) * own + share * np.array([oracle.p(ids[-8:], id) for id in range(256)])


@pytest.mark.parametrize("names, share", ((["data"], 0.25), (["data", "more"], 0.25), (["data"], 1)))
def test_evals_loss_is_the_mixtures(trained, capsys, names, share):
    folder, model = trained
    options = [f"--out_dir={folder / 'out'}", "--stride=1", f"--ngram={share}"]
    if len(names) > 1:
        options.append("--ngram_data=" + ",".join(str(folder / name) for name in names))
    found = run(capsys, *options)
    counted = [id for name in names for id in np.fromfile(folder / name / "train.bin", "<u2").tolist()]
    oracle, ids = Oracle(counted, 256), np.fromfile(folder / "data" / "val.bin", "<u2").tolist()
    nats = [-math.log(mixed(model, oracle, ids[:i], share)[ids[i]]) for i in range(1, len(ids))]
    assert found["loss"] == pytest.approx(sum(nats) / len(nats), rel=1e-5)
    assert found["loss"] < run(capsys, *options[:2])["loss"]  # val is train, so counts know it
    assert found["ngram"] == share and found["counted"] == f"{', '.join(names)}: {len(counted):,} tokens"


def test_samples_follow_the_mixture(trained, capsys):
    """Greedy ids of rows of different lengths, past the end of the model's context, and log-probabilities as JSON."""
    folder, model = trained
    train = np.fromfile(folder / "data" / "train.bin", "<u2")
    oracle, counts = Oracle(train.tolist(), 256), NGram([train], 256, 0.5)
    prompts = [list(b"the"), list(b"a"), list(b"x rat sat on th")]
    rows = [torch.tensor(prompt) for prompt in prompts]
    drawn = [ids for ids, _ in stream(join_models([model], counts), rows, 6, Sampling(temperature=0))]
    for row, prompt in zip(torch.stack(drawn, 1).tolist(), prompts, strict=True):
        ids, context = list(prompt), prompt[-8:]
        for id in row:
            own = mixed(model, oracle, context, 0)  # of a full context the model sees half, the counts all
            p = 0.5 * own + 0.5 * np.array([oracle.p(ids, id) for id in range(256)])
            assert p[id] == pytest.approx(p.max(), rel=1e-5)
            ids.append(id)
            context = ids[-4:] if len(context) == 8 else [*context, id]
    options = ["--ngram=0.5", "--start=the", "--num_samples=2", "--max_new_tokens=4", "--logprobs", "--top_k=0"]
    sample.main([f"--out_dir={folder / 'out'}", *options, "--dtype=float32", "--device=cpu"])
    for line in capsys.readouterr().out.splitlines():
        ids = list(b"the")
        for token in json.loads(line)["tokens"]:
            assert token["logprob"] == pytest.approx(math.log(mixed(model, oracle, ids, 0.5)[token["id"]]), abs=1e-4)
            ids.append(token["id"])


def test_several_models_and_counts_work_together(trained, capsys):
    folder, model = trained
    other = build(seed=4, n_layer=1)
    save(folder / "other", other, ByteTokenizer(eot=255), config={"dataset": str(folder / "data")})
    found = run(capsys, f"--out_dir={folder / 'out'},{folder / 'other'}", "--stride=1", "--ngram=0.25")
    oracle = Oracle(np.fromfile(folder / "data" / "train.bin", "<u2").tolist(), 256)
    ids, nats = np.fromfile(folder / "data" / "val.bin", "<u2").tolist(), []
    for i in range(1, len(ids)):
        both = [mixed(one, oracle, ids[:i], 0.25)[ids[i]] for one in (model, other)]
        nats.append(-math.log(sum(both) / 2))
    assert found["loss"] == pytest.approx(sum(nats) / len(nats), rel=1e-5)


def test_ids_that_are_not_drawn_are_left_out_after_mixing(trained):
    """As in serving/engine.py, and eval.py, which leaves none out."""
    _, model = trained
    train = np.frombuffer(TEXT.encode(), np.uint8)
    oracle, counts = Oracle(train.tolist(), 256), NGram([train], 256, 0.5)
    sampling = Sampling(temperature=0, vocab_size=ord("t"), logprobs=True)  # neither t nor what is above it
    ((id, score),) = stream(join_models([model], counts), [torch.tensor(list(b"the ca"))], 1, sampling)
    p = mixed(model, oracle, list(b"the ca"), 0.5)[: ord("t")]
    assert id.item() == p.argmax() and score.item() == pytest.approx(math.log(p.max() / p.sum()), abs=1e-5)


def test_a_row_does_not_depend_on_the_others(trained):
    _, model = trained
    counts = NGram([np.frombuffer((TEXT * 2).encode(), np.uint8)], 256, 0.4)

    def draw(prompts: list[bytes]) -> list[list[int]]:
        generators = [torch.Generator().manual_seed(len(prompt)) for prompt in prompts]
        rows = [torch.tensor(list(prompt)) for prompt in prompts]
        ids = [ids for ids, _ in stream(join_models([model], counts), rows, 12, Sampling(), generators)]
        return torch.stack(ids, 1).tolist()

    prompts = [b"the cat", b"a rat sat", b"on"]
    assert draw(prompts) == [row for prompt in prompts for row in draw([prompt])]


def test_what_cannot_be_counted_is_refused_in_a_line(trained, monkeypatch):
    folder, _ = trained
    out = f"--out_dir={folder / 'out'}"

    def refused(message: str, *options, command=evaluate) -> None:
        with pytest.raises(ValueError, match=message):
            command.main([out, "--device=cpu", *options])

    write_dataset(folder / "chars", CharTokenizer("".join(sorted({*TEXT}))), [TEXT])
    for command in (evaluate, sample):
        refused(r"ngram=1\.5 must be from 0 \(off\) to 1 \(counts alone\)", "--ngram=1.5", command=command)
        refused("names what --ngram=SHARE counts: give a share too", "--ngram_data=novels", command=command)
        options = ["--ngram=0.2", f"--ngram_data={folder / 'data'},{folder / 'chars'}"]
        refused(r"dataset chars .* does not match the checkpoint", *options, command=command)
    refused("--ngram is for a text, not for --task=fim", "--ngram=0.2", "--task=fim")
    refused("--chat cannot be combined with --ngram", "--ngram=0.2", "--chat", command=sample)
    refused("so its loss there says nothing", "--ngram=0.2", "--split=train")
    for names in ("data,", "data,data"):
        refused(f"--ngram_data={names} must name each dataset once", "--ngram=0.2", f"--ngram_data={names}")
    monkeypatch.setattr(ngram, "MOST_IDS", 50)
    refused("counts from 2 to 50 tokens, found data: 102 tokens: change --ngram_data", "--ngram=0.2")
    with DatasetWriter(folder / "talk", ByteTokenizer(eot=255), {"name": "test"}) as writer:
        for split in ("train", "val"):
            writer.write_conversation(split, np.frombuffer(b"hello", np.uint8), np.ones(5, bool), 5)
    refused("dataset talk has conversations", "--ngram=0.2", f"--ngram_data={folder / 'talk'}")
