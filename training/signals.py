"""SIGINT, SIGTERM and SIGHUP, remembered until the loop has finished its step and can save."""

import os
import signal
import time
from contextlib import suppress

NOTE = b"\nstopping: the step in progress is finished and saved first; Ctrl-C again stops at once and saves nothing\n"


class StopSignals:
    """signal: the first one received, else 0; SIGHUP, of a closed terminal, counts as SIGTERM. A second Ctrl-C stops at
    once, if it comes over a second later: torchrun forwards each one twice. saves: whether there will be something to
    save; else they end the process as usual."""

    def __init__(self, saves: bool = True) -> None:
        self.signal, self.time = 0, 0.0
        numbers = [signal.SIGINT, signal.SIGTERM]
        if os.name == "posix" and signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:  # nohup ignores it
            numbers.append(signal.SIGHUP)
        self.before = {number: signal.signal(number, self.catch) for number in numbers if saves}

    def restore(self) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def catch(self, number: int, _frame) -> None:
        if self.signal and number == signal.SIGINT and time.monotonic() - self.time > 1:
            raise KeyboardInterrupt
        if not self.signal:
            self.signal, self.time = signal.SIGINT if number == signal.SIGINT else signal.SIGTERM, time.monotonic()
            if os.environ.get("RANK", "0") == "0":
                with suppress(OSError):  # the terminal may be gone
                    os.write(2, NOTE)  # print() may be what was interrupted
