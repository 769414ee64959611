"""A function whose worker process is killed; it has a module of its own, which workers import quickly."""

import os
import signal


def die_at_one(number: int) -> int:
    """Return the number, but kill the process for 1."""
    if number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return number
