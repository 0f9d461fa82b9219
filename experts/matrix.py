"""Layout of heads and hidden units in a weight,
so that an optimizer can treat them alike at every width.
"""

from typing import NamedTuple, Protocol, runtime_checkable


class MatrixLayout(NamedTuple):
    """Units, such as heads or hidden units, along one axis of a weight (..., rows, columns)."""

    axis: int
    """-2 or -1: the axis of the units."""
    sections: tuple[int, ...]
    """Sizes along the axis of the concatenated matrices: [gate | up], [query | key | value]."""
    unit: int = 1
    """Number of entries of a unit along the axis: the width of a head, 1 for a hidden unit."""
    paired: bool = False
    """Whether unit i of every section is the same hidden unit, as in [gate | up]."""


@runtime_checkable
class HasMatrixLayouts(Protocol):
    """A module that declares the layout of its own weights."""

    def matrix_layouts(self) -> dict[str, MatrixLayout]:
        """Return the layout of each weight that has units, by the weight's name."""
