"""How a weight holds the units of a network: what an optimizer must know to treat them alike at every width."""

from typing import NamedTuple, Protocol, runtime_checkable


class MatrixLayout(NamedTuple):
    """Units, such as heads or hidden units, along one axis of a weight (..., rows, columns)."""

    axis: int
    """-2 or -1: the axis that the units lie on."""
    sections: tuple[int, ...]
    """Sizes on that axis of the matrices that lie side by side in the weight: [gate | up], [query | key | value]."""
    unit: int = 1
    """Neighbours on the axis that belong to one unit: the width of a head, 1 for hidden units."""
    paired: bool = False
    """Whether unit i of every section is the same unit of the network, as in [gate | up]."""


@runtime_checkable
class HasMatrixLayouts(Protocol):
    """A module that says where the units lie in its own weights."""

    def matrix_layouts(self) -> dict[str, MatrixLayout]:
        """Return the layout of each weight that has units, by the weight's name."""
