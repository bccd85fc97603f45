"""What can go wrong in a run: a full disk, a folder that cannot be written, a damaged checkpoint, a clock that jumps, a
second run in its folder, data far larger than memory. tests/torture.py adds kills."""

import errno
import glob
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from test_train import ROOT, SMALL, assert_equal_states, run, run_script, timeless, write_dataset

import train
from checkpoints.folder import lock_folder
from checkpoints.load import load_checkpoint
from training.metrics import Metrics, read_metrics


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    words = random.Random(0).choices(["the ", "cat ", "sat ", "on ", "a ", "mat. ", "dog "], k=800)
    return write_dataset(tmp_path_factory.mktemp("dataset"), "".join(words))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MiB; small_disk.remount(option) makes it read-only ('ro') and back ('rw')."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if not sys.platform.startswith("linux") or os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounts a tmpfs, which takes root on Linux")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def contents(folder) -> dict:
    return {path.name: path.read_bytes() for path in folder.glob("*.pt")}


def fill(disk, leave: int) -> None:
    """Leaves that many bytes free."""
    with open(disk / "filler", "wb", buffering=0) as file:
        free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
        os.posix_fallocate(file.fileno(), 0, free - leave)


@pytest.mark.parametrize("background", [True, False])
def test_a_full_disk_stops_the_run_and_it_resumes_when_there_is_room(dataset, small_disk, tmp_path, background):
    options = (f"--async_save={background}", "--max_iters=12")
    whole = run(dataset, tmp_path / "whole", *options)
    out_dir = small_disk / "out"
    run(dataset, out_dir, "--max_iters=4")
    before, names = contents(out_dir), set(os.listdir(out_dir))
    fill(small_disk, leave=50_000)
    with pytest.raises(ValueError, match=r"checkpoint .*ckpt.pt: No space left .*; ckpt.pt is intact: fix this"):
        run(dataset, out_dir, "--init_from=resume", *options)
    assert contents(out_dir) == before and set(os.listdir(out_dir)) == names
    (small_disk / "filler").unlink()
    assert_equal_states(whole, run(dataset, out_dir, "--init_from=resume", *options))
    assert timeless(out_dir) == timeless(tmp_path / "whole")


def test_a_disk_without_room_for_a_line_of_metrics_stops_the_run_too(dataset, small_disk, tmp_path):
    out_dir = small_disk / "out"
    run(dataset, out_dir, "--max_iters=4")
    before = contents(out_dir) | {"metrics.jsonl": (out_dir / "metrics.jsonl").read_bytes()}
    fill(small_disk, leave=0)
    with pytest.raises(ValueError, match="cannot write .*metrics.jsonl.*No space left"):
        run(dataset, out_dir, "--init_from=resume", "--max_iters=8")
    assert contents(out_dir) | {"metrics.jsonl": (out_dir / "metrics.jsonl").read_bytes()} == before
    assert not list(out_dir.glob("*.tmp"))


def test_metrics_that_cannot_be_written_in_the_middle_of_a_run_end_it(dataset, tmp_path, monkeypatch):
    plain = Metrics.write

    def write(metrics, record):
        if record["iter"] == 3:
            metrics.file.close()
            metrics.file = open("/dev/full", "w", encoding="utf-8")
        plain(metrics, record)

    monkeypatch.setattr(Metrics, "write", write)
    with pytest.raises(ValueError, match="cannot write .*metrics.jsonl.*No space left"):
        run(dataset, tmp_path, "--max_iters=100")
    assert load_checkpoint(tmp_path / "last.pt", verify=True)["iter_num"] == 2


def test_a_read_only_folder_is_refused_with_all_in_it_intact_but_can_be_evaluated(dataset, small_disk, capsys):
    out_dir = small_disk / "out"
    run(dataset, out_dir, "--max_iters=4")
    before = contents(out_dir)
    remount = ["mount", "-o", "remount,{}", str(small_disk)]
    subprocess.run([word.format("ro") for word in remount], check=True)
    resume = [*SMALL, f"--dataset={dataset}", f"--out_dir={out_dir}", "--init_from=resume"]
    for options in (resume, [*resume[:-1], "--init_from=scratch"], [*resume[:-1], f"--out_dir={small_disk / 'new'}"]):
        with pytest.raises(ValueError, match="out_dir=.* cannot be created or written: .*Read-only"):
            train.main([*options, "--max_iters=8"])
    assert train.main([*resume, "--eval_only"]) == 0
    assert contents(out_dir) == before
    subprocess.run([word.format("rw") for word in remount], check=True)
    run(dataset, out_dir, "--init_from=resume", "--max_iters=6")


@pytest.mark.skipif(os.name == "nt" or not os.geteuid(), reason="permissions do not bind root")
def test_a_folder_without_permission_is_refused(dataset, tmp_path):
    out_dir = tmp_path / "out"
    run(dataset, out_dir, "--max_iters=2")
    out_dir.chmod(0o555)
    try:
        with pytest.raises(ValueError, match="out_dir=.* cannot be created or written|cannot write"):
            run(dataset, out_dir, "--init_from=resume", "--max_iters=4")
    finally:
        out_dir.chmod(0o755)


def test_after_a_corrupted_byte_the_run_goes_on_from_the_state_before_and_ends_the_same(dataset, tmp_path, capsys):
    whole = run(dataset, tmp_path / "whole", "--max_iters=8")
    run(dataset, tmp_path / "parts", "--max_iters=6")
    (tmp_path / "parts" / "ckpt.pt").unlink()  # the same file as last.pt here
    weight = load_checkpoint(tmp_path / "parts" / "last.pt", mapped=False)["model"]["transformer.h.1.mlp.c_proj.weight"]
    data = bytearray((tmp_path / "parts" / "last.pt").read_bytes())
    data[data.index(weight.numpy().tobytes()) + 100] ^= 4
    (tmp_path / "parts" / "last.pt").write_bytes(data)
    assert_equal_states(whole, run(dataset, tmp_path / "parts", "--init_from=resume", "--max_iters=8"))
    said = capsys.readouterr().err
    assert "last.pt" in said and "damaged" in said and "resuming from last-1.pt (4 steps)" in said
    assert timeless(tmp_path / "parts") == timeless(tmp_path / "whole")


def test_a_clock_that_jumps_and_odd_times_of_files_change_nothing(dataset, tmp_path, monkeypatch):
    options = ("--max_minutes=60", "--decay_lr=False")
    whole = run(dataset, tmp_path / "whole", "--max_iters=8", *options)
    clock = random.Random(0)
    for name in ("time", "time_ns", "localtime", "gmtime"):
        real = getattr(time, name)
        monkeypatch.setattr(time, name, lambda *_, real=real: real() if "ns" in real.__name__ else real(
            clock.randrange(2**31)) if real.__name__ != "time" else clock.randrange(2**31))  # fmt: skip
    for steps in (2, 5, 8):
        begin = "resume" if steps > 2 else "scratch"
        state = run(dataset, tmp_path / "parts", f"--max_iters={steps}", f"--init_from={begin}", *options)
        for path in tmp_path.glob("parts/*"):
            when = clock.randrange(2**31)
            os.utime(path, (when, when))
    assert_equal_states(whole, state)
    assert timeless(tmp_path / "parts") == timeless(tmp_path / "whole")


LIBFAKETIME = glob.glob("/usr/lib/*/faketime/libfaketimeMT.so.1")


@pytest.mark.skipif(not LIBFAKETIME, reason="needs libfaketime")
def test_a_system_clock_that_races_and_then_goes_back_by_years_changes_nothing(dataset, tmp_path, monkeypatch):
    options = ("--max_iters=20", "--eval_interval=5", "--max_minutes=60", "--decay_lr=False")
    whole = run(dataset, tmp_path / "whole", *options)
    monkeypatch.setenv("LD_PRELOAD", LIBFAKETIME[0])
    monkeypatch.setenv("NO_FAKE_STAT", "1")
    monkeypatch.setenv("FAKETIME_DONT_FAKE_MONOTONIC", "1")  # setting a clock does not change that one either
    for begin, offset, status in (("scratch", "+0 x100000", 143), ("resume", "-4000d", 0)):
        monkeypatch.setenv("FAKETIME", offset)
        process = run_script(dataset, tmp_path / "parts", *options, f"--init_from={begin}")
        for line in process.stdout:
            if line.startswith("iter 10:") and begin == "scratch":
                process.terminate()
        assert process.wait(600) == status, process.stderr.read()
    assert_equal_states(whole, torch.load(tmp_path / "parts" / "last.pt", weights_only=True))


def start_ranks(n: int, *argv: str, limit: int | None = None) -> list[subprocess.Popen]:
    """train.py in n processes, as torchrun would start them; none may write a file of more than `limit` bytes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])

    def limited() -> None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return [
        subprocess.Popen(
            [sys.executable, str(ROOT / "train.py"), *SMALL, *argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, preexec_fn=limited if limit else None,
            env={**os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(n),
                 "LOCAL_WORLD_SIZE": str(n), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port},
        )
        for rank in range(n)
    ]  # fmt: skip


def test_a_second_run_in_a_folder_is_refused_until_the_first_has_ended(dataset, tmp_path):
    run(dataset, tmp_path, "--max_iters=2")
    with lock_folder(tmp_path):
        before = contents(tmp_path) | {"metrics": (tmp_path / "metrics.jsonl").read_bytes()}
        for begin in ("scratch", "resume"):
            with pytest.raises(ValueError, match=f"in use by process {os.getpid()} on "):
                run(dataset, tmp_path, "--max_iters=4", f"--init_from={begin}")
        processes = start_ranks(2, f"--dataset={dataset}", f"--out_dir={tmp_path}", "--init_from=resume")
        errors = [process.communicate(timeout=600)[1] for process in processes]
        assert [process.returncode for process in processes] == [2, 2], errors
        assert len(errors[0].splitlines()) == 1 and "in use by process" in errors[0] and errors[1] == ""
        assert contents(tmp_path) | {"metrics": (tmp_path / "metrics.jsonl").read_bytes()} == before
    run(dataset, tmp_path, "--max_iters=4", "--init_from=resume")


@pytest.mark.skipif(os.name == "nt", reason="limits the size of files")
def test_of_two_processes_both_end_with_one_message_when_one_cannot_save(dataset, tmp_path):
    argv = [f"--dataset={dataset}", f"--out_dir={tmp_path / 'out'}", "--max_iters=1000000", "--eval_interval=10"]
    processes = start_ranks(2, *argv, limit=20_000)
    results = [process.communicate(timeout=600) for process in processes]
    assert [process.returncode for process in processes] == [2, 2], results
    (out, errors), (_, other_errors) = results
    said = [line for line in (errors + other_errors).splitlines() if "error" in line.lower() or "Traceback" in line]
    assert len(said) == 1 and said[0].startswith("error: cannot write checkpoint"), said
    assert os.strerror(errno.EFBIG) in said[0]
    last = [line for line in out.splitlines() if line.startswith("iter ")][-1]
    assert int(last.split(":")[0].removeprefix("iter ")) <= 20  # the save after step 10 is the one that fails
    assert not list((tmp_path / "out").glob("*.pt*"))  # neither a checkpoint nor half of one


def test_a_dataset_of_10_gigabytes_takes_no_more_memory_than_one_of_10_megabytes(dataset, tmp_path):
    used = {}
    for name, size in (("small", 10 * 10**6), ("large", 10 * 10**9)):
        shutil.copytree(dataset, tmp_path / name)
        os.truncate(tmp_path / name / "train.bin", size)  # zeros that take no room
        if os.stat(tmp_path / name / "train.bin").st_blocks * 512 > 10**6:
            pytest.skip("this file system has no sparse files")
        meta = json.loads((tmp_path / name / "meta.json").read_text(encoding="utf-8"))
        meta["splits"]["train"]["tokens"] = size // np.dtype(meta["dtype"]).itemsize
        (tmp_path / name / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
        run(
            tmp_path / name,
            tmp_path / f"out-{name}",
            "--max_iters=20",
            "--eval_interval=10",
            "--batch_size=64",
            "--n_layer=1",
            "--n_embd=8",
        )
        records = read_metrics(tmp_path / f"out-{name}" / "metrics.jsonl")
        used[name] = max(record["memory_mb"] for record in records if record["kind"] == "train")
    assert used["large"] - used["small"] < 50, used


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds a process's children in /proc")
def test_the_end_of_one_process_is_one_line_of_the_others_and_torchrun_names_the_cause(dataset, tmp_path):
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    process = run_script(dataset, tmp_path, "--max_iters=1000000", "--eval_interval=1000000", launcher=launcher)
    for line in process.stdout:
        if line.startswith("iter 3:"):
            break
    main = (tmp_path / "lock").read_text("utf-8").split()[1]
    ranks = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text("utf-8").split()
    (other,) = set(ranks) - {main}
    os.kill(int(other), signal.SIGKILL)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 1
    assert errors.count("error: another process of this run has ended") == 1 and "[rank0]: Traceback" not in errors
    assert f"exitcode  : -9 (pid: {other})" in errors.split("Root Cause")[1]
