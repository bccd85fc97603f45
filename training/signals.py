"""SIGINT and SIGTERM, remembered until the loop has finished its step and can save."""

import signal
import time


class StopSignals:
    """signal: the number of the first one received, else 0. A second Ctrl-C stops at once, if it comes over a second
    later: torchrun forwards each one twice."""

    def __init__(self) -> None:
        self.signal, self.time = 0, 0.0
        self.before = {number: signal.signal(number, self.catch) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore(self) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def catch(self, number: int, _frame) -> None:
        if self.signal and number == signal.SIGINT and time.monotonic() - self.time > 1:
            raise KeyboardInterrupt
        if not self.signal:
            self.signal, self.time = number, time.monotonic()
