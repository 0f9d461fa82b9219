"""Which row of the expert-sorted layout holds which assignment.

Small products in native bfloat16 cost more to start than to compute: on such a CPU neighbouring experts are padded to a
common number of rows, and one `bmm` computes all of them. A padding row repeats token 0 and has gate 0.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from experts.grouped.device import autocast_dtype, is_native, on_host

BLOCK = 64  # rows; a padded expert is a multiple of it, so that oneDNN compiles few kernels


class Plan(NamedTuple):
    """Where the rows of a batch go: R rows (with padding), A assignments in the order of their tokens."""

    token: Tensor  # (R,) int64: the token in a row
    ends: Tensor  # (E,) int32: where the rows of an expert end
    row: Tensor  # (A,) int64: the row of an assignment, ordered by token
    unassigned: Tensor  # (A,) bool: assignments without an expert, ordered by token
    by_token: Tensor | None  # (A,) int64: the order by token; None where the assignments have it already
    starts: Tensor  # (T,) int64: the first assignment of a token, ordered by token


def plan(expert: Tensor, token: Tensor, num_experts: int, num_tokens: int, rows_per_product: int = 0) -> Plan:
    """Sorts assignments by expert.

    Args:
        expert: (A,) int64 in [0, E]; E is unassigned.
        token: (A,) int64 in [0, T).
        num_experts: E.
        num_tokens: T.
        rows_per_product: how many rows of padding cost as much as one more matrix product (see `rows_worth_a_product`);
            0 pads nothing.

    Without a host sync on CUDA, where R = A.
    """
    sorted_expert, order = expert.to(torch.int16).sort(stable=True)  # int16 sorts 4 times faster
    load = _count(expert, num_experts + 1)  # (E + 1,), the unassigned last
    if on_host(expert):
        place, ends, num_rows = _padded_places(sorted_expert.long(), load, rows_per_product)
    else:
        place, ends, num_rows = torch.arange(len(order), device=order.device), load[:-1].cumsum(0), len(order)
    # order[i] is the assignment that stands i-th by expert and place[i] its row; the scatter turns that round
    row = torch.empty_like(order).scatter(0, order, place)
    row_token = torch.zeros(num_rows, dtype=torch.int64, device=token.device).scatter(0, row, token)
    by_token = None if _is_sorted(token) else token.argsort(stable=True)
    if by_token is not None:
        row, expert = row[by_token], expert[by_token]
    count = _count(token, num_tokens)
    return Plan(row_token, ends.to(torch.int32), row, expert == num_experts, by_token, count.cumsum(0) - count)


def rows_worth_a_product(x: Tensor, expert_params: int) -> int:
    """How many rows through an expert of so many parameters cost one more run of products; 0: padding does not pay."""
    if not on_host(x) or autocast_dtype(x) != torch.bfloat16 or not is_native(torch.bfloat16):
        return 0
    # Starting the six products of a run takes 0.23 ms with AMX, a row at D = 256, F = 128 half a microsecond.
    return int(3.9e7 / expert_params)


def _padded_places(sorted_expert: Tensor, load: Tensor, rows_per_product: int) -> tuple[Tensor, Tensor, int]:
    """Row of every assignment sorted by expert (A,), where the experts' rows end (E,), and the number of rows R.

    All unassigned share one row, the first after the last expert's: their outputs are not used.
    """
    size = torch.tensor(_padded(load[:-1].tolist(), rows_per_product)) if rows_per_product else load[:-1]  # (E,)
    ends, unpadded = size.cumsum(0), load[:-1].cumsum(0)
    # the rows of padding before an expert: its start with padding less its start without; so too for the unassigned
    padding = torch.cat((ends - size - (unpadded - load[:-1]), ends[-1:] - unpadded[-1:]))  # (E + 1,)
    place = (torch.arange(len(sorted_expert)) + padding[sorted_expert]).clamp_(max=int(ends[-1]))
    return place, ends, int(ends[-1] + load[-1].clamp(max=1))


def _padded(load: list[int], rows_per_product: int) -> list[int]:
    """Rows of every expert after padding: neighbours share a size where that costs less than one more product."""
    size: list[int] = []
    first, largest = 0, 0  # of the run that is being built
    for index, rows in enumerate(-(-rows // BLOCK) * BLOCK for rows in load):
        length, top = index - first, max(largest, rows)
        if (length + 1) * top > length * largest + rows + rows_per_product:
            size += [largest] * length
            first, top = index, rows
        largest = top
    return size + [largest] * (len(load) - first)


def _is_sorted(token: Tensor) -> bool:
    """Known without a host sync only: elsewhere they count as not sorted."""
    return on_host(token) and bool((token[1:] >= token[:-1]).all())


def _count(index: Tensor, length: int) -> Tensor:
    return torch.zeros(length, dtype=torch.int64, device=index.device).scatter_add(0, index, torch.ones_like(index))
