"""Ctrl-C and SIGTERM: once asks the work to finish what is in flight, twice to stop now."""

import signal
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType


class Stop:
    """How often the user asked to stop. Work polls it, or subscribes."""

    def __init__(self) -> None:
        self.asked = 0
        self._listeners: list[Callable[[], object]] = []

    @property
    def requested(self) -> bool:
        """Finish what is in flight, then end."""
        return self.asked >= 1

    @property
    def now(self) -> bool:
        """End at once; nothing in flight is waited for."""
        return self.asked >= 2

    def check(self) -> None:
        """For work with nothing in flight yet. Raises KeyboardInterrupt when the user asked to stop."""
        if self.requested:
            raise KeyboardInterrupt

    def ask(self) -> None:
        self.asked += 1
        for listener in self._listeners:
            listener()

    def subscribe(self, listener: Callable[[], object]) -> None:
        """Call `listener` at each request, from a signal handler: it must only set a flag or wake a loop."""
        self._listeners.append(listener)


@contextmanager
def signals(stop: Stop, note: Callable[[str], None]) -> Generator[None, None, None]:
    """Route SIGINT and SIGTERM to `stop` while the block runs. Only in the main thread.

    One of each is one wish: at a shutdown every process gets SIGTERM, and may be asked by its parent besides.
    """
    came = {signal.SIGINT: 0, signal.SIGTERM: 0}

    def handle(number: int, frame: FrameType | None) -> None:
        came[signal.Signals(number)] += 1
        if came[signal.Signals(number)] <= stop.asked:
            return
        stop.ask()
        if stop.asked == 1:
            note("stopping: finishing what is in flight (once more to stop now)")
        elif stop.asked > 2:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
