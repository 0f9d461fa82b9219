"""What the processes that train together know of each other."""

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

K = TypeVar("K")


def rank_sum(values: Tensor) -> Tensor:
    """Sum over all ranks, without gradient; the values themselves where there is one process."""
    if distributed.is_available() and distributed.is_initialized():
        values = values.detach().clone()
        distributed.all_reduce(values)
    return values


def rank_sums(values: Mapping[K, Tensor]) -> dict[K, Tensor]:
    """The sum of each over all ranks, without gradient, by one collective;
    every rank has the same keys and shapes.
    """
    if not values or num_ranks() == 1:
        return dict(values)
    flat = rank_sum(torch.cat([value.flatten().double() for value in values.values()]))
    parts = flat.split([value.numel() for value in values.values()])
    return {
        key: part.view_as(old).to(old.dtype)
        for (key, old), part in zip(values.items(), parts, strict=True)
    }


def num_ranks() -> int:
    """How many processes train together."""
    return (
        distributed.get_world_size()
        if distributed.is_available() and distributed.is_initialized()
        else 1
    )


def rank() -> int:
    """The number of this process among them."""
    return (
        distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0
    )


def gathered(value: object) -> list[Any]:
    """The value of every rank, in their order; every rank calls it."""
    values: list[Any] = [value] * num_ranks()
    if len(values) > 1:
        distributed.all_gather_object(values, value)
    return values
