"""Micro-batches on their way to a device, seen through stand-ins for CUDA's and MPS's calls."""

import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_train import SMALL, write_dataset

import train
from configurator import configure
from data.dataset import open_dataset
from data.windows import batch
from system.distributed import Ranks
from training.batches import Batches

HERE = "main"  # the thread


@pytest.fixture
def calls(monkeypatch) -> list[tuple]:
    """(call, thread, tensor or device, options) of what would reach a device, in order; tensors stay where they are."""
    made = []

    def record(name):
        def call(value, *_, **options):
            thread = HERE if threading.current_thread() is threading.main_thread() else "loader"
            made.append((name, thread, value, options))
            return value

        return call

    monkeypatch.setattr(torch.cuda, "set_device", record("set_device"))
    monkeypatch.setattr(torch.Tensor, "pin_memory", record("pin"))
    monkeypatch.setattr(torch.Tensor, "to", record("to"))
    return made


@pytest.fixture
def run(tmp_path) -> SimpleNamespace:
    config, _ = configure(train.TrainConfig, SMALL)
    dataset = open_dataset(write_dataset(tmp_path, "the cat sat on a mat.\nthe dog ran to it.\n" * 20))
    return SimpleNamespace(
        config=config, dataset=dataset, ranks=Ranks(), iter_num=3, micro_steps=2, shift=0, trims=False
    )


@pytest.mark.parametrize("device", ["cpu", "mps", "cuda:1"])
def test_only_the_main_thread_moves_batches_which_are_contiguous_and_on_cuda_pinned(run, calls, device):
    run.device = torch.device(device)
    batches = Batches(run)
    taken = [batches.next() for _ in range(3)]
    batches.close()
    for number, (x, y, n) in enumerate(taken, 3 * 2):
        expected = batch(run.dataset, "train", 1337, np.arange(4) + 4 * number, 16)
        assert np.array_equal(x, expected[0]) and np.array_equal(y, expected[1]) and n == 4 * 16
        assert x.is_contiguous() and y.is_contiguous()  # not so, the copy to CUDA is pageable and synchronous
    moved = [(thread, options["non_blocking"]) for name, thread, _, options in calls if name == "to"]
    assert moved == [(HERE, device == "cuda:1")] * 6
    others = [(name, thread) for name, thread, *_ in calls if name != "to"]
    expected = [("set_device", "loader"), *[("pin", "loader")] * 6] if device == "cuda:1" else []
    assert others[:7] == expected  # a fourth batch may follow, loaded ahead
    for name, _, value, _ in calls:
        assert value == run.device if name == "set_device" else value.is_contiguous()


def test_lines_are_drawn_where_the_run_samples_by_line(run):
    run.device, run.config.sampling = torch.device("cpu"), "line"
    batches = Batches(run)
    x, y, _ = batches.next()
    batches.close()
    expected = batch(run.dataset, "train", 1337, np.arange(24, 28), 16, "line")
    assert np.array_equal(x, expected[0]) and np.array_equal(y, expected[1])
    assert not np.array_equal(x, batch(run.dataset, "train", 1337, np.arange(24, 28), 16)[0])


def test_peek_shows_what_next_returns(run):
    run.device = torch.device("cpu")
    batches = Batches(run)
    for _ in range(3):
        for seen, brought in zip(batches.peek(), batches.next(), strict=True):
            assert torch.equal(torch.as_tensor(seen), torch.as_tensor(brought))
    batches.close()
