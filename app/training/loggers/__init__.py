"""Where curves, pictures and text of a run go: one file a logger, each of which makes Lightning's
own.

A run that goes on after a kill has logged beyond its checkpoint; `open` is told the step from which
it logs again.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from lightning.pytorch.loggers import Logger


class LoggerPart(Protocol):
    """What a class registered under the kind `logger` offers."""

    def open(self, folder: Path, step: int) -> Logger:
        """Logs into the folder of the run from a step on,
        without what was logged at and after it.
        """


def flush(loggers: Iterable[Logger]) -> None:
    """Writes to the disk what was logged; on the first rank, where loggers have files."""
    for logger in loggers:
        logger.save()
        write = getattr(logger.experiment, "flush", None)  # type: ignore[attr-defined]
        if write is not None:
            write()
