"""Notices for slow operations: printed after a delay,
so that a quick error remains the only line of output.
"""

from collections.abc import Callable
from threading import Lock, Timer
from typing import Self

PATIENCE = 5.0  # seconds


class SlowNotice:
    """Context manager that prints a line once: after `PATIENCE` seconds, or earlier when
    `print_now` is called.

    Args:
        write: Prints a line.
        line: The notice.
    """

    def __init__(self, write: Callable[[str], object], line: str) -> None:
        self._write = write
        self._line = line
        self._lock = Lock()
        self.is_printed = False
        self._timer = Timer(PATIENCE, self.print_now)
        self._timer.daemon = True

    def print_now(self) -> None:
        """Print the line unless it is already printed."""
        with self._lock:
            if not self.is_printed:
                self.is_printed = True
                self._write(self._line)

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
