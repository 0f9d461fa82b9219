"""What a run tells its user, on one line each and by the first of its processes only."""

from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console

console = Console(stderr=True, soft_wrap=True, highlight=False)


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
