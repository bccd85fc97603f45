"""The number of threads: the fastest by an imitated clock, kept by a resumed run, and no trace in the model."""

from types import SimpleNamespace

import pytest
import torch

from model import GPT, GPTConfig
from training import threads

CPU = torch.device("cpu")


@pytest.fixture
def run(monkeypatch):
    """A run on a machine of 4 threads on which a pass takes run.cost[n] seconds with n of them."""
    model = GPT(
        GPTConfig(block_size=8, vocab_size=11, n_layer=1, n_head=2, n_embd=16), torch.Generator().manual_seed(0)
    )
    config = SimpleNamespace(threads="auto", batch_size=2, block_size=8, eval_only=False)
    ranks = SimpleNamespace(world_size=1, say=lambda text: made.said.append(text))
    made = SimpleNamespace(
        config=config, ranks=ranks, device=CPU, dtype=torch.float32, model=model, resumed=False, progress={}, said=[],
        optimizer=torch.optim.SGD(model.parameters()), cost={1: 0.1, 2: 0.1, 4: 0.1}, n=4, passes=[], now=0.0,
    )  # fmt: skip

    def clock() -> float:  # read before and after each pass
        made.now += made.cost[made.n]
        made.passes.append(made.n)
        return made.now

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: made.n)
    monkeypatch.setattr(torch, "set_num_threads", lambda n: setattr(made, "n", n))
    monkeypatch.setattr(threads.time, "perf_counter", clock)
    return made


@pytest.mark.parametrize(
    "cost, chosen",
    [
        ({1: 0.10, 2: 0.06, 4: 0.04}, 4),
        ({1: 0.10, 2: 0.06, 4: 0.08}, 2),
        ({1: 0.04, 2: 0.06, 4: 0.08}, 1),
        ({1: 0.04, 2: 0.03, 4: 2.50}, 2),
        ({1: 0.040, 2: 0.039, 4: 0.041}, 4),  # no difference worth it
        ({1: 1.50, 2: 0.90, 4: 9.00}, 1),  # long: all or one
        ({1: 1.50, 2: 0.90, 4: 0.50}, 4),
    ],
)
def test_the_fastest_number_of_threads_is_chosen(run, cost, chosen):
    run.cost = cost
    before = [p.clone() for p in run.model.parameters()]
    threads.choose_threads(run)
    assert run.n == run.progress["threads"] == chosen
    assert all(p.grad is None for p in run.model.parameters())
    assert all(map(torch.equal, before, run.model.parameters()))
    if cost[4] == 2.5 or cost[1] == 1.5:
        assert run.passes.count(4) == 2  # one pass, since it is hopeless, or long


def test_what_is_set_or_saved_decides_without_a_trial(run, monkeypatch):
    def settle(**state) -> int:
        run.n, run.resumed, run.progress = 4, False, {}
        for key, value in state.items():
            setattr(run, key, value)
        threads.choose_threads(run)
        return run.n

    run.cost[4] = 0.5  # a trial would choose 1
    assert settle(resumed=True, progress={"threads": 2}) == 2
    assert settle(resumed=True) == 4  # a checkpoint of before trials
    run.config.threads = 3
    assert settle() == 3 and run.progress["threads"] == 3
    run.config.threads = "auto"
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert settle() == 4
    monkeypatch.delenv("OMP_NUM_THREADS")
    run.ranks.world_size = 2  # each would choose for itself, and FSDP's passes wait for each other
    assert settle() == 4 and not run.passes
    run.ranks.world_size = 1
    with monkeypatch.context() as large:
        large.setattr(threads, "MOST_FLOPS", 1)  # a pass that would take minutes
        assert settle() == 4 and not run.passes
    assert settle(resumed=True, progress={"threads": 8}) == 1  # saved on a larger machine
