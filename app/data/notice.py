"""News of something slow: said when it takes long, so a command that ends at once with a mistake says nothing else."""

from collections.abc import Callable
from threading import Lock, Timer
from typing import Self

PATIENCE = 5.0  # seconds


class SlowNotice:
    """A context in which a line is said as soon as it takes longer than `PATIENCE`, or when `say_now` is called.

    Args:
        say: Prints a line.
        line: It is said once.
    """

    def __init__(self, say: Callable[[str], object], line: str) -> None:
        self._say, self._line, self._lock = say, line, Lock()
        self.said = False
        self._timer = Timer(PATIENCE, self.say_now)
        self._timer.daemon = True

    def say_now(self) -> None:
        """Say the line unless it was said."""
        with self._lock:
            if not self.said:
                self.said = True
                self._say(self._line)

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
