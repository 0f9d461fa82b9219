"""What a run tells its user, on one line each and by the first of its processes only."""

from collections.abc import Iterable, Sequence
from typing import TypeVar

from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from rich.progress import track

console = Console(stderr=True, soft_wrap=True, highlight=False)


Item = TypeVar("Item")


def is_first_rank() -> bool:
    """Whether this process writes files and speaks; known before the processes have met."""
    return getattr(rank_zero_only, "rank", 0) == 0


@rank_zero_only
def say(what: object) -> None:
    """News of the run: a line, or a table."""
    console.print(what, markup=False)


@rank_zero_only
def warn(line: str) -> None:
    """What looks wrong, as one line."""
    console.print(f"warning: {line}", markup=False)


def watched(items: Sequence[Item], what: str) -> Iterable[Item]:
    """The items, with a bar that tells how far along their work is."""
    return track(items, what, console=console, transient=True, disable=not console.is_terminal)
