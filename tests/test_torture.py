"""A short torture: a few kills of a run in one process and in two. tests/torture.py says more, and does more."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks its processes")
@pytest.mark.parametrize("processes", [1, 2])
def test_killed_runs_lose_nothing_and_end_as_an_undisturbed_one(processes):
    script = Path(__file__).with_name("torture.py")
    options = ["--kills=4", "--max_iters=40", f"--processes={processes}", f"--seed={processes}"]
    process = subprocess.run([sys.executable, str(script), *options], capture_output=True, text=True)
    assert process.returncode == 0, process.stdout[-2000:] + process.stderr[-4000:]
    assert "4 kills" in process.stdout.splitlines()[-1] and "bitwise" in process.stdout.splitlines()[-1]
