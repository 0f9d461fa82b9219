"""Noise that hangs on the seed, the place and the row of text alone:
not on ranks, micro-batches or recomputation.
"""

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

Part = Literal["score", "weigh", "select", "drop"]  # of a router
PARTS: tuple[Part, ...] = get_args(Part)


@torch.compiler.disable
def rows_of_noise(
    part: Part,
    seed: int,
    first: int,
    shape: tuple[int, int, int],
    device: torch.device,
    draw: Callable[..., Tensor],
) -> Tensor:
    """Noise (rows * length, columns) float32, every row drawn from a source of its own.

    Args:
        part: of a router; no two of them draw the same.
        seed: of the step and the layer.
        first: the number of the first row in the step.
        shape: rows, length, columns.
        device: where it is drawn.
        draw: from (length, columns, generator=, device=) to a tensor.
    """
    rows, *each = shape
    # has no random generator; only the shape matters
    if device.type == "meta":
        return torch.empty(rows * each[0], each[1], device=device)
    sources = (
        torch.Generator(device).manual_seed(mixed(seed, PARTS.index(part), first + i))
        for i in range(rows)
    )
    return torch.cat([draw(*each, generator=source, device=device) for source in sources])


def mixed(*numbers: int) -> int:
    """One number of several, by the steps of SplitMix64 (Steele et al.
    2014): CPUs seed with its last 32 bits alone.
    """
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) % 2**64
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        state = (state ^ state >> 27) * 0x94D049BB133111EB % 2**64
        state ^= state >> 31
    return state >> 1
