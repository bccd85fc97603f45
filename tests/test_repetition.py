"""Penalties for repetition against transformers, plain loops over all sequences, and single rows."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_generate import build, rows, run, seeded
from test_train import write_dataset
from torch.nn import functional as F
from transformers import NoRepeatNGramLogitsProcessor

import bench
import train
from checkpoints.build import build_model
from checkpoints.load import load_checkpoint
from data.dataset import open_dataset
from inference.generate import stream
from inference.repetition import FORBIDDEN, History, Repetition
from inference.sampling import Sampling
from inference.static import CompiledStep

V = 7


def texts(seed, *lengths):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(V, (n,), generator=generator) for n in lengths]


def naive_dry(ids, multiplier, base, allowed_length):
    """{id: cost}, by comparing the end of the text with the end of everything before each earlier id."""
    costs = {}
    for i, id in enumerate(ids):
        length = 0
        while length < i and ids[i - 1 - length] == ids[len(ids) - 1 - length]:
            length += 1
        if length >= allowed_length:
            costs[id] = max(costs.get(id, 0.0), multiplier * base ** (length - allowed_length))
    return costs


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_no_repeat_ngram_forbids_what_transformers_forbids(n):
    theirs, some = NoRepeatNGramLogitsProcessor(n), 0
    for prompts in (texts(n, 30, 1, 4, 2), texts(n + 1, 3, 90)):
        prompts[0] = torch.cat([prompts[0], prompts[0][: n + 1]])
        logits = torch.randn(len(prompts), V)
        ours = Repetition(Sampling(no_repeat_ngram=n), prompts).apply(logits)
        for row, prompt in enumerate(prompts):
            forbidden = theirs(prompt[None], logits[row : row + 1].clone())[0] == -math.inf
            assert torch.equal(ours[row] < -FORBIDDEN / 2, forbidden)
            assert torch.equal(ours[row][~forbidden], logits[row][~forbidden])
            some += int(forbidden.sum())
    assert some > 0


@pytest.mark.parametrize("allowed_length", [1, 2, 4])
def test_dry_costs_are_those_of_a_naive_loop_as_a_text_grows(allowed_length):
    sampling = Sampling(dry_multiplier=0.7, dry_base=1.5, dry_allowed_length=allowed_length, unpenalized=(3,))
    prompts, longest = texts(5, 9, 40), 0.0
    prompts[1][20:] = prompts[1][:20]
    repetition = Repetition(sampling, prompts)
    for drawn in torch.stack(texts(6, 30, 30), dim=1):
        found = repetition.apply(torch.zeros(2, V))
        for row, prompt in enumerate(prompts):
            expected = torch.zeros(V)
            for id, cost in naive_dry(prompt.tolist(), 0.7, 1.5, allowed_length).items():
                expected[id] = -cost if id != 3 else 0.0
            torch.testing.assert_close(found[row], expected)
            longest = max(longest, -float(expected.min()))
        repetition.add(drawn)
        prompts = [torch.cat([prompt, drawn[row : row + 1]]) for row, prompt in enumerate(prompts)]
    assert longest > 0.7 * 1.5**3


def test_a_long_repetition_costs_a_finite_amount():
    ids = [0, 1] * 3000
    logits = Repetition(Sampling(dry_multiplier=1.0, dry_base=4.0), [ids]).apply(torch.zeros(1, V))
    assert -1e9 <= logits[0, 0] < -9e8 and torch.isfinite(logits).all()


BOTH = Sampling(0.7, no_repeat_ngram=3, dry_multiplier=0.8, dry_allowed_length=1)


def test_a_rows_ids_do_not_depend_on_the_other_rows():
    model, prompts = build(pos="rope"), rows(3, 11, 7)
    together = run(model, prompts, 50, BOTH, [seeded(s) for s in range(3)])
    for row, prompt in enumerate(prompts):
        assert torch.equal(run(model, prompt[None], 50, BOTH, seeded(row))[0], together[row])


def test_no_sequence_is_drawn_twice_past_block_size():
    model, prompts = build(), rows(2, 9)
    for row, prompt in zip(run(model, prompts, 60, Sampling(0.01, no_repeat_ngram=2)), prompts, strict=True):
        text = torch.cat([prompt, row]).tolist()
        pairs = list(zip(text, text[1:], strict=False))
        first = len(prompt) - 1  # the prompt's own may be there twice
        assert all(pairs[i] not in pairs[:i] for i in range(first, len(pairs)))
    greedy = run(model, prompts, 60, Sampling(0))[0].tolist()
    assert len(set(zip(greedy, greedy[1:], strict=False))) < 59  # it does repeat itself without


def test_where_every_id_is_forbidden_an_allowed_one_is_drawn():
    model = build(vocab_size=V)
    ids = torch.stack([new for new, _ in stream(model, [torch.arange(V)], 20, Sampling(no_repeat_ngram=1))])
    assert ids.min() >= 0 and ids.max() < V
    allowed = torch.arange(V)[None] == 4
    ((new, _),) = stream(model, [torch.arange(V)], 1, Sampling(no_repeat_ngram=1), constrain=lambda drawn: allowed)
    assert new.tolist() == [4]


def test_log_probabilities_are_the_models_own():
    model, prompts = build(), rows(4, 8)
    plain, penalized = (
        next(stream(model, prompts, 1, Sampling(0, logprobs=True, **more)))
        for more in ({}, dict(dry_multiplier=1e-9, dry_allowed_length=1))
    )
    assert torch.equal(plain[0], penalized[0]) and torch.equal(plain[1], penalized[1])


def test_static_shapes_give_the_same_ids():
    model, prompts = build(n_layer=1), rows(3, 16, 5)
    expected = run(model, prompts, 40, BOTH, [seeded(s) for s in range(3)])
    torch._dynamo.reset()
    compiled = CompiledStep(model, 3, backend="eager")
    assert torch.equal(run(model, prompts, 40, BOTH, [seeded(s) for s in range(3)], static=compiled), expected)


@pytest.mark.parametrize(
    "bad", ["no_repeat_ngram=-1", "dry_multiplier=-0.5", "dry_base=0.5", "dry_allowed_length=0", "dry_multiplier=inf"]
)
def test_settings_out_of_range_are_refused(bad):
    key, _, value = bad.partition("=")
    with pytest.raises(ValueError, match=f"{key}={value} must be"):
        Sampling(**{key: float(value)} if "." in value or value == "inf" else {key: int(value)}).validate()


def test_the_benchmark_scores_what_was_written_as_a_plain_loop_does(tmp_path, capsys):
    """With a scorer that is the writer, the bits of the passages themselves."""
    dataset = write_dataset(tmp_path / "data", "the cat sat on a mat. the dog ran to it. " * 40)
    small = [
        "--n_layer=1",
        "--n_head=2",
        "--n_embd=16",
        "--block_size=32",
        "--gradient_accumulation_steps=1",
        "--device=cpu",
    ]
    train.main([*small, f"--dataset={dataset}", f"--out_dir={tmp_path / 'out'}", "--max_iters=2", "--eval_iters=1"])
    options = ["--passages=3", "--given=5", "--new=20", "--json"]
    bench.main(["repetition", f"--out_dir={tmp_path / 'out'}", f"--scorer={tmp_path / 'out'}", *options])
    rows = json.loads(next(line for line in capsys.readouterr().out.splitlines() if line.startswith("{")))["rows"]
    assert rows[0]["setting"] == "none" and len({row["setting"] for row in rows}) == len(rows)
    three = next(row for row in rows if row["setting"] == "no_repeat_ngram=3")
    assert three["distinct_4"] == 1
    state = load_checkpoint(tmp_path / "out" / "ckpt.pt")
    model, ids = build_model(state).eval(), open_dataset(dataset).array("val").astype(np.int64)
    bits = []
    for start in np.linspace(0, len(ids) - 26, 3).astype(int):
        passage = torch.from_numpy(ids[start : start + 25])[None]
        logits = model(passage[:, :-1], passage[:, 1:])[0][0, 4:].detach()
        bits.append(F.cross_entropy(logits, passage[0, 5:]).item() / math.log(2))  # a character is a byte
    assert rows[-1]["scorer"] == pytest.approx(np.mean(bits), abs=1e-4)


@given(st.lists(st.integers(0, 2), max_size=30), st.lists(st.integers(0, 2), max_size=5))
def test_a_history_made_at_once_equals_one_that_grew(ids, more):
    """The second, id by id, compares the end of the ids with what precedes each position."""
    made, grown = History(ids), History([])
    for id in ids:
        grown.add(id)
    for id in more:
        made.add(id)
        grown.add(id)
    assert made.ids == grown.ids and made.lengths.tolist() == grown.lengths.tolist()
