"""Saving in the background."""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from checkpoints.file import save


class Saver:
    """Saves in the background, one checkpoint at a time. Only rank 0 makes one.

        saver.save(state, out_dir / "last.pt")   # returns at once, unless the save before is still going on
        saver.before_update()                    # from here on the tensors of `state` may change

    In between the loop may read them, so it can go through the next step's forward and backward pass while a
    thread copies them to host memory (kept for the next save; pinned and by a stream of its own on CUDA). What
    goes wrong is left in `error`, for the loop to stop at its next step; wait() raises it.

    keep: as in save(), for saves as last.pt. background=False writes at once and needs no memory for a copy. before:
    is called before a checkpoint is written.
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
        self.join()
        if self.error:
            return
        if not self.background:
            self.write(state, paths)
        elif is_copy:  # nobody changes the tensors of `state`
            self.start(state, paths)
        elif self.device.type in ("cpu", "cuda"):
            ready = torch.cuda.current_stream(self.device).record_event() if self.stream else None
            self.copied.clear()
            self.start(state, paths, ready)
        else:  # other devices' queues take work from one thread only
            self.start(self.copy(state), paths)

    def start(self, *args) -> None:
        self.thread = threading.Thread(target=self.write, args=args, name="save")
        self.thread.start()

    def write(self, state: dict, paths: tuple[Path, ...], ready: "torch.cuda.Event | None" = None) -> None:
        try:
            if not self.copied.is_set():
                try:
                    state = self.copy(state, ready)
                finally:
                    self.copied.set()
            self.before()
            save(list(paths), state, self.keep_of(paths))
        except ValueError as error:
            self.error = error
        except Exception as error:  # no memory for the copy, mostly
            self.error = ValueError(f"cannot save {paths[0]}: {error} (--async_save=False needs less memory)")
            self.error.__cause__ = error

    def keep_of(self, paths: Sequence[Path]) -> int | None:
        """save()'s keep, for a save by these names."""
        return self.keep if paths[-1].name == "last.pt" else None

    def copy(self, state: dict, ready: "torch.cuda.Event | None" = None) -> dict:
        """`state` with copies of its tensors in host memory; what shares its memory goes on doing so."""
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
        """Waits for the save that is going on, if any."""
        if self.thread is not None:
            self.thread.join()
            self.thread = None

    def wait(self) -> None:
        """Waits until all is on the disk. Raises ValueError if something could not be written."""
        self.join()
        if self.error:
            raise self.error
