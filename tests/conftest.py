"""Settings and fixtures of all tests: one thread, no network, real text where it is at hand."""

import os
from pathlib import Path

# before torch is imported; the processes that tests start inherit them
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

torch.set_num_threads(1)
# no example fails for being slow: a machine may be busy
settings.register_profile("no clock", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("no clock")


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture(scope="session")
def shared_data():
    """shared_data(name): the path of a text beside the clone, ../shared/data/<name>, or the test skips."""

    def find(name: str) -> Path:
        path = Path(__file__).resolve().parents[2] / "shared" / "data" / name
        if not path.exists():
            pytest.skip(f"needs the text {name}, which is not in ../shared/data")
        return path

    return find


@pytest.fixture
def packed_layers():
    """pack(), which says in its .count how many layers of the model are packed; skips where none can be."""
    from inference.pack import PackedLinear, can_pack, pack

    def counting(model):
        pack(model)
        counting.count = sum(isinstance(module, PackedLinear) for module in model.modules())

    if not can_pack(torch.empty(1)):
        pytest.skip("no packed product on this machine")
    return counting
