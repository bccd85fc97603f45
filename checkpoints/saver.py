"""Saving in the background."""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from checkpoints.file import save_checkpoint
from system.device import make_current


class Saver:
    """Saves checkpoints in the background, one at a time; only rank 0 has one.

        saver.save(state, out_dir / "last.pt")   # returns at once, unless the last save is still running
        saver.before_update()                    # from here on the tensors of `state` may change

    In between, the loop can do the next forward and backward passes while a thread copies the tensors to host memory,
    on CUDA through a stream of its own, into buffers kept for later saves. A failed save leaves its `error` for the
    loop to stop at its next step; wait() raises it.

    keep: versions of last.pt, as in publish. background=False writes at once and needs no memory for a copy.
    before: called before each checkpoint is written.
    """

    def __init__(
        self, device: torch.device, keep: int, background: bool = True, before: Callable[[], None] = lambda: None
    ):
        self.device, self.keep, self.background, self.before = device, keep, background, before
        self.error: ValueError | None = None
        self.thread: threading.Thread | None = None
        self.copied = threading.Event()
        self.copied.set()
        self.buffers: dict[tuple, torch.Tensor] = {}
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def save(self, state: dict, *paths: Path, is_copy: bool = False) -> None:
        """Starts to save `state` as each of `paths`. is_copy: nobody will change its tensors."""
        self.join()
        if self.error:
            return
        if not self.background:
            return self.write(state, paths)
        ready = None
        if self.device.type not in ("cpu", "cuda") and not is_copy:  # such devices accept work from one thread only
            state = self.copy(state)
        elif not is_copy:
            ready = torch.cuda.current_stream(self.device).record_event() if self.stream else None
            self.copied.clear()
        self.thread = threading.Thread(target=self.write, args=(state, paths, ready), name="save")
        self.thread.start()

    def write(self, state: dict, paths: Sequence[Path], ready: "torch.cuda.Event | None" = None) -> None:
        try:
            make_current(self.device)
            if not self.copied.is_set():
                state = self.copy(state, ready)
                self.copied.set()
            self.before()
            save_checkpoint(list(paths), state, self.versions_of(paths))
        except ValueError as error:
            self.error = error
        except Exception as error:  # mostly: no memory for the copy
            self.error = ValueError(f"cannot save {paths[0]}: {error} (--async_save=False needs less memory)")
            self.error.__cause__ = error
        finally:
            self.copied.set()

    def versions_of(self, paths: Sequence[Path]) -> int | None:
        """publish's `keep` for a save as these paths."""
        return self.keep if paths[-1].name == "last.pt" else None

    def copy(self, state: dict, ready: "torch.cuda.Event | None" = None) -> dict:
        """`state` with its tensors copied to host memory; tensors that share memory still do."""
        kept: dict[tuple, torch.Tensor] = {}

        def copied(value):
            if isinstance(value, torch.Tensor):
                key = (value.data_ptr(), value.dtype, value.shape, value.stride())
                if key not in kept:
                    buffer = self.buffers.get(key)
                    if buffer is None:
                        buffer = torch.empty_like(value, device="cpu", pin_memory=value.is_cuda)
                    kept[key] = buffer.copy_(value, non_blocking=value.is_cuda)
                return kept[key]
            if isinstance(value, dict):
                return {key: copied(item) for key, item in value.items()}
            return [copied(item) for item in value] if isinstance(value, list) else value

        if self.stream is None:
            state = copied(state)
        else:
            with torch.cuda.stream(self.stream):
                self.stream.wait_event(ready)
                state = copied(state)
            self.stream.synchronize()
        self.buffers = kept
        return state

    def before_update(self) -> None:
        self.copied.wait()

    def join(self) -> None:
        """Waits for a running save."""
        if self.thread is not None:
            self.thread.join()
            self.thread = None

    def wait(self) -> None:
        """Waits until everything is on the disk. Raises ValueError if something could not be written."""
        self.join()
        if self.error:
            raise self.error
