"""Ending long work in good order: a signal becomes a wish to stop, which the work notices between two steps.

Trainings use it, in Dagster's process and in the processes that torchrun starts.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopWish:
    """Whether a signal asked to stop.

    Attributes:
        signal_number: The first signal that came; 0 if none came yet.
    """

    def __init__(self) -> None:
        self.signal_number = 0
        self._before: dict[int, Any] = {}

    def __call__(self) -> bool:
        """Tell whether to stop."""
        return self.signal_number != 0

    def _take(self, number: int, frame: FrameType | None) -> None:
        if self.signal_number:  # the sender of a second signal does not want to wait
            self.deliver(number, frame)
        self.signal_number = number

    def deliver(self, number: int | None = None, frame: FrameType | None = None) -> None:
        """Call the handler that was installed before, for the given signal or the one that came; do nothing if none came."""
        number = number or self.signal_number
        handler = self._before.get(number)
        if callable(handler):
            handler(number, frame)
        elif number and handler == signal.SIG_DFL:
            raise KeyboardInterrupt


@contextmanager
def signals_as_wish() -> Iterator[StopWish]:
    """Turn SIGINT and SIGTERM into a wish to stop while the block runs; a second signal goes to the handler before.

    Python delivers signals to the main thread only; in any other thread this context manager does nothing.
    """
    wish = StopWish()
    if threading.current_thread() is not threading.main_thread():
        yield wish
        return
    for number in _SIGNALS:
        wish._before[number] = signal.signal(number, wish._take)
    try:
        yield wish
    finally:
        for before, handler in wish._before.items():
            signal.signal(before, handler)
