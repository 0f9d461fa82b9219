"""Named places at which a test interrupts a run. Nothing happens at them otherwise."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass
class _Pending:
    """An action that waits for a visit of its place."""

    visits_left: int
    action: Callable[[], object]


_pending: dict[str, _Pending] = {}


def fault_point(name: str) -> None:
    """Mark a place that a run passes; run what a test has installed for this visit."""
    if name not in _pending:
        return
    _pending[name].visits_left -= 1
    if _pending[name].visits_left == 0:
        _pending.pop(name).action()


def install(name: str, visit: int, action: Callable[[], object]) -> None:
    """Run `action` once, when this process passes the place for the `visit`-th time from now on."""
    _pending[name] = _Pending(visit, action)
