"""Decode steps of fixed shapes: compiled, and recorded as CUDA graphs, which a CPU imitates here."""

import math
import shutil
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch
from test_generate import OTHERS, SHAPES, build, rows, run, seeded
from torch._inductor.utils import run_and_get_code
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from inference import static
from inference.generate import stream
from inference.quantize import quantize
from inference.sampling import Sampling
from inference.static import CompiledStep, RecordedStep, reach_for

# ---- compiled ----


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_static_shapes_give_the_same_ids_from_one_graph_and_again_from_the_same_cache(backend):
    model, prompts = build(**SHAPES[-1], n_layer=1), rows(3, 16, 5)
    expected, uniform = run(model, prompts, 40), run(model, [prompts[0]] * 3, 40)
    torch._dynamo.reset()
    compiled = CompiledStep(model, 3, backend=backend)  # fullgraph: a break would be an error
    memory = compiled.cache.kv[0].data_ptr()
    with torch._dynamo.config.patch(error_on_recompile=True):
        assert torch.equal(run(model, prompts, 40, static=compiled), expected)
        assert torch.equal(run(model, [prompts[0]] * 3, 40, static=compiled), uniform)
        assert torch.equal(run(model, prompts, 40, static=compiled), expected)
    assert compiled.cache.kv[0].data_ptr() == memory


@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="needs a C++ compiler")
def test_a_compiled_step_writes_into_the_cache_and_copies_none_of_it():
    """Read in inductor's code: no memory of a layer's size, and no loop over as many elements."""
    model, idx = build(block_size=40, pos="rope"), torch.zeros(2, 1, dtype=torch.int64)
    torch._dynamo.reset()
    step = CompiledStep(model, 2)
    shape = step.cache.kv[0].shape
    with torch._inductor.config.patch(force_disable_caches=True), torch.no_grad():
        logits, (code,) = run_and_get_code(step, idx)
    torch.testing.assert_close(logits, model(idx)[0], atol=1e-5, rtol=0)
    assert all(keys.count_nonzero() == 2 * 4 * 8 for keys in step.cache.kv)  # one position
    assert "scaled_dot_product" in code and f"empty_strided_cpu({tuple(shape)}" not in code
    assert f"{shape.numel()}L" not in code and "select_scatter" not in code


def test_int8_weights_compile_where_activations_are_not_rounded(monkeypatch):
    monkeypatch.setattr("inference.quantize.ROUNDED_SIZE", 0)
    model, prompts = build(**OTHERS[0]), rows(3, 16, 5)
    quantize(model, round_inputs=False)
    expected = run(model, prompts, 20)
    torch._dynamo.reset()
    assert torch.equal(run(model, prompts, 20, static=CompiledStep(model, 3, backend="eager")), expected)


# ---- recorded ----

SYNCHRONISING = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2", "unique_dim")


class Tape(TorchDispatchMode):
    """A CUDA graph on a CPU: records operations as they are dispatched, with the tensors themselves, and repeats them
    into the same memory. As on a GPU, nothing has happened after the recording: what operations wrote to is set back,
    and what they made is nan. Reading a value, on which shapes or Python's way may depend, is an error."""

    def __init__(self):
        super().__init__()
        self.operations, self.before, self.made = [], [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in SYNCHRONISING:
            raise RuntimeError(f"{func} is not permitted when stream is capturing\nhow to debug")
        known = {tensor.untyped_storage().data_ptr() for tensor in self.made}
        for argument, value in zip(func._schema.arguments, args, strict=False):
            if argument.alias_info and argument.alias_info.is_write and value.untyped_storage().data_ptr() not in known:
                self.before.append((value, value.clone()))
        out = func(*args, **kwargs or {})
        if not any(result.alias_info and not result.alias_info.is_write for result in func._schema.returns):  # no view
            self.operations.append((func, args, kwargs or {}, out))
            if not any(result.alias_info for result in func._schema.returns):
                self.made += [tensor for tensor in tree_leaves(out) if isinstance(tensor, torch.Tensor)]
        return out

    def end(self):
        for tensor, value in reversed(self.before):
            tensor.copy_(value)
        for tensor in self.made:
            tensor.fill_(math.nan if tensor.is_floating_point() else 0)

    def replay(self):
        for func, args, kwargs, out in self.operations:
            new = func(*args, **kwargs)
            for tensor, value in zip(tree_leaves(out), tree_leaves(new), strict=True):
                if isinstance(tensor, torch.Tensor) and tensor is not value:
                    tensor.copy_(value)


@pytest.fixture
def tapes(monkeypatch) -> list[Tape]:
    """Makes torch.cuda's graphs Tapes, and lists them."""
    made = []

    @contextmanager
    def record(tape):
        with tape:
            yield
        tape.end()

    def graph():
        made.append(Tape())
        return made[-1]

    stream = SimpleNamespace(wait_stream=lambda other: None)
    fakes = {"CUDAGraph": graph, "graph": record, "stream": nullcontext}
    for name, fake in fakes.items() | {("Stream", lambda: stream), ("current_stream", lambda: stream)}:
        monkeypatch.setattr(torch.cuda, name, fake)
    return made


@pytest.mark.parametrize("shape", SHAPES + OTHERS, ids=lambda shape: "-".join(map(str, shape.values())))
def test_a_recorded_step_writes_the_same_ids_as_the_plain_one(tapes, monkeypatch, shape):
    """Also past block_size, where rows are encoded again, and from one step for several texts."""
    monkeypatch.setattr(static, "SHORTEST_REACH", 4)
    model, prompts = build(**shape), rows(3, 16, 5)
    step, sampling = RecordedStep(model, 3), Sampling(1.1, top_k=30, top_p=0.9, min_p=0.02, repetition_penalty=1.3)
    for _ in range(2):
        assert torch.equal(run(model, prompts, 40, static=step), run(model, prompts, 40))
        expected = run(model, [prompts[0]] * 3, 20, sampling, [seeded(s) for s in range(3)])
        drawn = run(model, [prompts[0]] * 3, 20, sampling, [seeded(s) for s in range(3)], static=step)
        assert torch.equal(drawn, expected)
    assert set(step.steps) == {4, 8, 16} and len(step.draws) == 2 and len(tapes) == 5
    assert all(tape.operations for tape in tapes)


def test_log_probabilities_and_constraints_are_those_of_the_plain_step(tapes):
    model, prompts, found = build(), rows(4, 8), []
    for step in (None, RecordedStep(model, 2)):
        allowed = iter([torch.arange(50).expand(2, 50) > 30, torch.arange(50).expand(2, 50) > 40, None])
        sampling, draws = Sampling(0.8, vocab_size=50, logprobs=True), [seeded(1), seeded(2)]
        options = {"constrain": lambda drawn, allowed=allowed: next(allowed), "static": step}
        found.append([(ids.tolist(), scores) for ids, scores in stream(model, prompts, 9, sampling, draws, **options)])
    for (ids, scores), (other_ids, other_scores) in zip(*found, strict=True):
        assert ids == other_ids
        torch.testing.assert_close(scores, other_scores, atol=1e-5, rtol=0)
    assert min(found[1][0][0]) > 30 and min(found[1][1][0]) > 40 and len(tapes) == 2


def test_what_cannot_be_recorded_runs_as_it_is_with_a_note(tapes, capsys):
    model, prompts = build(), rows(3, 5)
    expected, forward = run(model, prompts, 20), model.forward

    def reading(*args, **kwargs):
        logits, loss = forward(*args, **kwargs)
        return logits + 0 * float(logits.sum()), loss

    model.forward = reading
    assert torch.equal(run(model, prompts, 20, static=RecordedStep(model, 2)), expected)
    message = "note: no CUDA graph, so each token takes longer: aten._local_scalar_dense.default is not permitted"
    assert message in capsys.readouterr().err


def test_reach_is_the_next_power_of_two_within_the_context():
    assert [reach_for(n, 1024) for n in (1, 256, 257, 512, 513, 1024)] == [256, 256, 512, 512, 1024, 1024]
    assert [reach_for(n, 700) for n in (1, 257, 700)] == [256, 512, 700] and reach_for(1, 16) == 16
