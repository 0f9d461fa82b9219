"""What the processes that train together know of each other."""

from typing import Any

from torch import Tensor, distributed


def rank_sum(values: Tensor) -> Tensor:
    """Sum over all ranks, without gradient; the values themselves where there is one process."""
    if distributed.is_available() and distributed.is_initialized():
        values = values.detach().clone()
        distributed.all_reduce(values)
    return values


def num_ranks() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """The number of this process among them."""
    return distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0


def gathered(value: Any) -> list[Any]:
    """The value of every rank, in their order; every rank calls it."""
    values: list[Any] = [value] * num_ranks()
    if len(values) > 1:
        distributed.all_gather_object(values, value)
    return values
