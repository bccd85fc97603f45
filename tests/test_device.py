"""device.py: what 'auto' stands for, and what is refused."""

import threading
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from checkpoints.load import load_checkpoint
from checkpoints.saver import Saver
from system import cpu
from system import device as module
from system.device import peak_flops_of, pick_compile, pick_device, pick_dtype
from training.start import dtype_to_train_in

CPU = torch.device("cpu")


def test_auto_is_the_cpu_where_there_is_nothing_else(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert pick_device("auto") == CPU
    for name, message in (("cuda", "PyTorch finds 0"), ("mps", "needs a Mac"), ("gpu", "unknown")):
        with pytest.raises(ValueError, match=message):
            pick_device(name)


def test_more_processes_than_gpus_is_refused_by_all_of_them(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    for rank in (0, 7):
        with pytest.raises(ValueError, match="GPU 7 is needed, PyTorch finds 4"):
            pick_device("cuda", local_rank=rank)


def test_without_torchrun_each_process_looks_for_its_own_gpu(monkeypatch):
    """srun sets no LOCAL_WORLD_SIZE, and RANK and the rest only as its user does."""
    used = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", used.append)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert pick_device("cuda", local_rank=3) == torch.device("cuda", 3) and used == [torch.device("cuda", 3)]
    with pytest.raises(ValueError, match="GPU 4 is needed, PyTorch finds 4"):
        pick_device("cuda", local_rank=4)


@pytest.mark.parametrize("native", [True, False])
def test_a_cpu_takes_bfloat16_only_where_it_is_native(monkeypatch, native):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native, raising=False)
    assert pick_dtype("auto", CPU) == (torch.bfloat16 if native else torch.float32)
    assert pick_dtype("float16", CPU) == torch.float16


def test_short_names_of_number_formats_mean_the_long_ones():
    for short, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)):
        assert pick_dtype(short, CPU) == pick_dtype(str(dtype).removeprefix("torch."), CPU) == dtype


def test_float16_on_a_mac_is_for_writing_not_for_training():
    mps = torch.device("mps")
    assert pick_dtype("fp16", mps) == torch.float16
    with pytest.raises(ValueError, match="dtype=float16.*mps"):
        dtype_to_train_in("fp16", mps)


def test_compile_is_off_on_a_cpu_unless_asked_for_and_noted_where_it_cannot_work(monkeypatch, capsys):
    assert not pick_compile("auto", CPU) and not pick_compile(False, CPU)
    monkeypatch.setattr(module.shutil, "which", lambda _: None)
    assert not pick_compile(True, CPU) and "C compiler" in capsys.readouterr().err
    monkeypatch.setattr(module.shutil, "which", lambda name: name)
    assert pick_compile(True, CPU)


@pytest.mark.parametrize("scheme", ["posix_prefix", "posix_local"])  # the second is Debian's
def test_compile_is_off_with_a_note_where_python_h_is_missing(monkeypatch, capsys, tmp_path, scheme):
    paths = {"posix_prefix": tmp_path, "posix_local": tmp_path / "local"}
    monkeypatch.setattr(module.shutil, "which", lambda name: name)
    monkeypatch.setattr(module.sysconfig, "get_default_scheme", lambda: scheme)
    monkeypatch.setattr(module.sysconfig, "get_path", lambda _, scheme: str(paths[scheme]))
    assert not pick_compile(True, CPU) and "torch.compile needs Python.h" in capsys.readouterr().err
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "Python.h").touch()
    monkeypatch.setenv("CPATH", f"/none:{tmp_path / 'elsewhere'}")
    assert pick_compile(True, CPU)
    monkeypatch.delenv("CPATH")
    (tmp_path / "Python.h").touch()
    assert pick_compile(True, CPU) and not capsys.readouterr().err


@pytest.mark.parametrize(
    "name, tflops",
    [("NVIDIA H200", 989), ("NVIDIA A100-SXM4-80GB", 312), ("NVIDIA H100 PCIe", 756), ("NVIDIA L40S", 362),
     ("NVIDIA GeForce RTX 3060", 25), ("NVIDIA GeForce RTX 4090 Laptop GPU", None), ("NVIDIA RTX A4000", None),
     ("NVIDIA RTX A1000", None), ("NVIDIA T400", None), ("NVIDIA H200 NVL", 835), ("NVIDIA GH200 480GB", 989),
     ("NVIDIA GB200", 2500), ("NVIDIA B200", 2250), ("AMD Instinct MI300X", 1307), ("NVIDIA GeForce RTX 3080 Ti", 68),
     ("NVIDIA GeForce RTX 4090 D", None), ("NVIDIA GeForce RTX 4080 SUPER", 104), ("NVIDIA GeForce RTX 5070 Ti", 88),
     ("NVIDIA GeForce RTX 5070", 62), ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None), ("NVIDIA GeForce RTX 3050", 18),
     ("NVIDIA GeForce RTX 4070", 58), ("NVIDIA GeForce RTX 4070 SUPER", 71), ("NVIDIA GeForce RTX 4070 Ti", 80),
     ("NVIDIA GeForce RTX 4070 Ti SUPER", 88), ("NVIDIA GeForce RTX 4060 Laptop GPU", None),
     ("NVIDIA GeForce RTX 2080 Ti", 54), ("NVIDIA GeForce RTX 2080 SUPER", None), ("NVIDIA GeForce RTX 5060 Ti", 47)],
)  # fmt: skip
def test_the_peak_is_known_or_not_told(monkeypatch, name, tflops):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)
    assert peak_flops_of(torch.device("cuda", 0), torch.bfloat16, None) == (tflops and tflops * 1e12)


def test_the_peak_of_a_cpu_is_measured_unless_given():
    assert peak_flops_of(CPU, torch.float32, 2.0) == 2e12
    assert peak_flops_of(CPU, torch.float32, None) > 0


@pytest.mark.parametrize(
    "files, cores",
    [
        ({}, None),
        ({"sys/fs/cgroup/cpu.max": "max 100000"}, None),
        ({"sys/fs/cgroup/cpu.max": "150000 100000"}, 1.5),
        ({"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, None),
        ({"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "300000", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, 3),
        ({"proc/self/cgroup": "0::/a/b", "sys/fs/cgroup/a/cpu.max": "200000 100000",
          "sys/fs/cgroup/a/b/cpu.max": "max 100000"}, 2),
        ({"proc/self/cgroup": "0::/a/b", "sys/fs/cgroup/a/cpu.max": "800000 100000",
          "sys/fs/cgroup/a/b/cpu.max": "50000 100000"}, 0.5),
    ],
)  # fmt: skip
def test_the_quota_of_a_container_is_the_least_of_its_groups(monkeypatch, tmp_path, capsys, files, cores):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content + "\n")
    assert cpu.cpu_quota(tmp_path) == cores
    chosen = []
    monkeypatch.setattr(cpu, "cpu_quota", lambda: cores)
    monkeypatch.setattr(torch, "get_num_threads", lambda: chosen[-1] if chosen else 8)
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    pick_device("cpu")
    assert chosen == ([max(1, int(cores))] if cores else []) and ("threads" in capsys.readouterr().err) == bool(cores)
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    chosen.clear()
    pick_device("cpu")
    assert not chosen


def test_the_thread_that_saves_uses_the_gpu_of_the_run(tmp_path, monkeypatch):
    """With stand-ins for CUDA's calls: else the first pinned buffer would take memory on GPU 0."""
    event, used = object(), []
    stream = SimpleNamespace(wait_event=used.append, synchronize=lambda: None, record_event=lambda: event)
    monkeypatch.setattr(torch.cuda, "Stream", lambda _: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: stream)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: used.append((threading.current_thread().name, device)))
    saver = Saver(torch.device("cuda", 1), keep=2)
    saver.save({"model": {"weight": torch.ones(2)}, "model_args": {}}, tmp_path / "last.pt")
    saver.wait()
    assert used == [("save", torch.device("cuda", 1)), event]
    assert load_checkpoint(tmp_path / "last.pt")["model"]["weight"].tolist() == [1, 1]
