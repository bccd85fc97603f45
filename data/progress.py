"""A progress bar in bytes, shown on a terminal only."""

from typing import Any


def byte_bar(desc: str, size: int | None, disable: bool | None = None, **options: Any) -> Any:
    """tqdm's bar for `size` bytes; None: unknown. `options` are tqdm's."""
    from tqdm import tqdm

    return tqdm(desc=desc, total=size, unit="B", unit_scale=True, disable=disable, **options)
