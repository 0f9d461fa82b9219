"""Blocks of a weight that a matrix optimizer such as Muon treats as separate matrices."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard

GateUp = Literal["apart", "together"]


@dataclass(frozen=True)
class Blocks:
    """Blocks of neighbouring units of a weight (..., rows, columns).

    The axis is cut into blocks of at most `width` whose sizes differ by at most one unit. A block
    never crosses the boundary between two concatenated matrices (`sections`) and never cuts a unit
    such as a head.
    """

    axis: int = -1
    """-2 or -1: the axis that is cut."""
    width: int | None = None
    """Largest size of a block on the axis; None: a section is one block."""
    sections: tuple[int, ...] = ()
    """Sizes of the matrices that are concatenated along the axis; empty: a single matrix."""
    unit: int = 1
    """Size of a unit on the axis."""
    together: bool = False
    """Whether a block spans the same units of every section; the sections then share its width."""

    @classmethod
    def of_group(
        cls, group: Mapping[str, Any], width: int | None, gate_up: GateUp | None
    ) -> "Blocks":
        """Return the blocks for a parameter group with the fields of a `MatrixLayout`.

        With `gate_up=None` the axis is cut as if it held a single matrix.
        """
        if group["axis"] is None:
            return cls()
        if gate_up is None:
            return cls(group["axis"], width)
        sections = tuple(group["sections"])
        together = gate_up == "together" and group["paired"] and len(sections) > 1
        return cls(group["axis"], width, sections, group["unit"], together)

    def cuts(self, section: int) -> list[tuple[int, int]]:
        """Return (number, size) of the blocks of a section of that size:
        larger ones first, then one unit smaller.
        """
        if self.width is None:
            return [(1, section)]
        width = self.width // len(self.sections) if self.together else self.width
        units = section // self.unit
        number = math.ceil(units / max(1, width // self.unit))
        units_of_block, larger = divmod(units, number)
        cuts = [
            (larger, (units_of_block + 1) * self.unit),
            (number - larger, units_of_block * self.unit),
        ]
        return [(count, size) for count, size in cuts if count]

    def equal_parts(self, size: int) -> int | None:
        """Return the block size for an axis of the given size if
        all blocks are equal, else None.
        """
        sizes = {block for section in self.sections or (size,) for _, block in self.cuts(section)}
        return sizes.pop() if len(sizes) == 1 and not self.together else None


def map_blocks(function: Callable[[Tensor], Tensor], x: Tensor, blocks: Blocks) -> Tensor:
    """Return x (..., rows, columns) with `function` applied to its blocks.

    Args:
        function: From blocks (..., rows, columns), any number of dimensions before them, to results
            of the same shape.
        x: A weight or a stack of weights.
        blocks: How it is cut.
    """
    axis = blocks.axis
    sections = blocks.sections or (x.size(axis),)
    if len({*sections}) > 1:
        # Sections of different sizes, queries beside fewer keys and values, one after the other.
        alone = replace(blocks, sections=())
        parts = [map_blocks(function, part, alone) for part in x.split(sections, axis)]
        return torch.cat(parts, axis)

    # The axis of the sections comes before that of their units.
    x = x.unflatten(axis, (len(sections), sections[0]))
    over = _over_equal_blocks_together if blocks.together else _over_equal_blocks
    results = []
    start = 0
    for number, size in blocks.cuts(sections[0]):
        part = x.narrow(axis, start, number * size)
        results.append(over(function, part, size, axis))
        start += number * size
    return torch.cat(results, axis).flatten(axis - 1, axis)


def _over_equal_blocks(
    function: Callable[[Tensor], Tensor], x: Tensor, size: int, axis: int
) -> Tensor:
    """Apply `function` to blocks of each section; the sections are on the axis before."""
    places = (axis - 2, axis - 1)
    blocks = x.unflatten(axis, (-1, size)).movedim(places, (0, 1))
    # (sections, blocks, ..., rows, columns)
    results = function(blocks)
    return results.movedim((0, 1), places).flatten(axis - 1, axis)


def _over_equal_blocks_together(
    function: Callable[[Tensor], Tensor], x: Tensor, size: int, axis: int
) -> Tensor:
    """Apply `function` to blocks that have the same units of all sections;
    the sections are on the axis before.
    """
    sections = x.size(axis - 1)
    blocks = x.unflatten(axis, (-1, size)).movedim(axis - 1, 0).flatten(axis - 1, axis)
    # (blocks, ..., rows, columns)
    results = function(blocks).unflatten(axis, (sections, size))
    return results.movedim(0, axis - 1).flatten(axis - 1, axis)


def map_blocks_on_ranks(function: Callable[[Tensor], Tensor], x: Tensor, blocks: Blocks) -> Tensor:
    """Return `map_blocks` of a weight that may be split over ranks, split as it was.

    A stack is sharded by matrix, so each rank holds whole matrices. A single matrix is resharded by
    block if the blocks are equal and their number is a multiple of the number of ranks. Otherwise
    it is gathered, and each rank computes a share of the blocks, or all of them if they cannot be
    divided evenly.
    """
    if not isinstance(x, DTensor):
        return map_blocks(function, x, blocks)
    mesh = x.device_mesh
    size = x.size(blocks.axis)
    part = blocks.equal_parts(size)
    placements: list[Placement]
    if x.dim() == 3:
        placements = list(x.placements)
    elif part is not None and (size // part) % mesh.size() == 0:
        placements = [Shard(blocks.axis % 2)] * mesh.ndim
        # of this rank's part of the axis
        blocks = Blocks(blocks.axis, part)
    else:
        placements = [Replicate()] * mesh.ndim
        function = partial(_shared_out, function, mesh)
    own = x.redistribute(placements=placements).to_local()
    y = DTensor.from_local(
        map_blocks(function, own, blocks), mesh, placements, shape=x.shape, stride=x.stride()
    )
    return y.redistribute(placements=x.placements)


def _shared_out(function: Callable[[Tensor], Tensor], mesh: DeviceMesh, blocks: Tensor) -> Tensor:
    """Return function(blocks) of blocks (..., rows, columns) that every rank has,
    computed by all ranks together.
    """
    flat = blocks.flatten(0, -3)
    if len(flat) % mesh.size():
        return function(blocks)
    parts: list[Placement] = [Shard(0)] * mesh.ndim
    own = (
        DTensor.from_local(flat, mesh, [Replicate()] * mesh.ndim)
        .redistribute(placements=parts)
        .to_local()
    )
    return DTensor.from_local(function(own), mesh, parts).full_tensor().view_as(blocks)
