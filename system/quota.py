"""How much of a processor a process may use; needs no torch, which takes a second to import."""

from contextlib import suppress
from pathlib import Path

MOST_THREADS = 1024  # where the system cannot start as many as PyTorch was told to, the process crashes


def check_threads(threads: int | str) -> None:
    """ValueError unless `threads` is 'auto' or a possible number of threads."""
    if threads != "auto" and not 1 <= threads <= MOST_THREADS:
        raise ValueError(f"threads={threads} must be from 1 to {MOST_THREADS}, or auto")


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Cores that Linux's control groups, version 2 or 1, let this process use; None if they set no limit."""
    quotas, group = [], Path()
    with suppress(OSError, StopIteration):
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
        group = Path(next(line for line in lines if line.startswith("0::")).removeprefix("0::").strip("/"))
    for folder in (group, *group.parents):  # each limits the groups in it; a container sees its own as the root
        with suppress(OSError, ValueError):
            quota, period = (root / "sys/fs/cgroup" / folder / "cpu.max").read_text(encoding="ascii").split()
            quotas.append(int(quota) / int(period))  # "max" is no number
    with suppress(OSError, ValueError):
        quota, period = (
            int((root / "sys/fs/cgroup/cpu" / f"cpu.cfs_{name}_us").read_text(encoding="ascii"))
            for name in ("quota", "period")
        )
        if quota > 0:  # -1: no limit
            quotas.append(quota / period)
    return min(quotas, default=None)
