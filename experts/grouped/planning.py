"""Which row of the expert-sorted layout holds which assignment.

Small products in native bfloat16 cost more to start than to compute: on such a CPU neighbouring
experts are padded to a common number of rows, and one `bmm` computes all of them. A padding row
repeats token 0 and has gate 0.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from experts.grouped.device import autocast_dtype, has_amx, is_native, on_host

# rows; a padded expert is a multiple of it, so that oneDNN compiles few kernels
BLOCK = 64


class Plan(NamedTuple):
    """Where the rows of a batch go: R rows (with padding),
    A assignments in the order of their tokens.
    """

    token: Tensor  # (R,) int64: the token in a row
    ends: Tensor  # (E,) int32: where the rows of an expert end
    row: Tensor  # (A,) int64: the row of an assignment
    unassigned: Tensor  # (A,) bool: assignments without an expert
    starts: Tensor  # (T,) int64: the first assignment of a token


def plan(
    expert: Tensor, token: Tensor, num_experts: int, num_tokens: int, rows_per_product: int = 0
) -> Plan:
    """Sorts assignments by expert.

    Args:
        expert: (A,) int64 in [0, E]; E is unassigned.
        token: (A,) int64 in [0, T), ascending.
        num_experts: E.
        num_tokens: T.
        rows_per_product: how many rows of padding cost as much as one more matrix product (see
            `rows_worth_a_product`); 0 pads nothing.

    Without a host sync on CUDA, where R = A.

    Raises:
        ValueError: the tokens do not ascend; found on the CPU only.
    """
    if on_host(token) and bool((token[1:] < token[:-1]).any()):
        raise ValueError("assignments must stand in the order of their tokens")
    sorted_expert, order = expert.to(torch.int16).sort(stable=True)  # int16 sorts 4 times faster
    each = torch.arange(num_experts, dtype=torch.int16, device=expert.device)
    ends = torch.searchsorted(sorted_expert, each, right=True)  # (E,)
    place = torch.arange(len(order), device=order.device)
    token_of = token[order]
    # order[i] is the assignment that stands i-th by expert and place[i] its row; the scatter turns
    # that round
    if on_host(expert):
        place, ends, num_rows = _padded_places(sorted_expert.long(), ends, rows_per_product)
        token_of = token.new_zeros(num_rows).scatter(0, place, token_of)
    row = torch.empty_like(order).scatter(0, order, place)
    starts = torch.searchsorted(token, torch.arange(num_tokens, device=token.device))
    return Plan(token_of, ends.to(torch.int32), row, expert == num_experts, starts)


def rows_worth_a_product(x: Tensor, expert_params: int) -> int:
    """How many rows through an expert of so many parameters cost one more run of products; 0:
    padding does not pay.
    """
    if not on_host(x) or autocast_dtype(x) != torch.bfloat16 or not is_native(torch.bfloat16):
        return 0
    # Starting the six products of a run takes 0.2 ms; a row at D = 256, F = 128 half a microsecond
    # with AMX, 2 without.
    return int((4e7 if has_amx() else 1e7) / expert_params)


def _padded_places(
    sorted_expert: Tensor, unpadded: Tensor, rows_per_product: int
) -> tuple[Tensor, Tensor, int]:
    """Row of every assignment sorted by expert (A,), where the experts' rows end (E,), and the
    number of rows R.

    All unassigned share one row, the first after the last expert's: their outputs are not used.
    """
    load = unpadded.diff(prepend=unpadded.new_zeros(1))  # (E,)
    size = load
    if rows_per_product:
        size = torch.tensor(_padded(load.tolist(), rows_per_product))
    ends = size.cumsum(0)
    # The rows of padding before an expert: its start with padding less its start without. The
    # unassigned come after all padding.
    before = (ends - size) - (unpadded - load)
    padding = torch.cat((before, ends[-1:] - unpadded[-1:]))  # (E + 1,)
    last = int(ends[-1])
    place = torch.arange(len(sorted_expert)) + padding[sorted_expert]
    has_unassigned = len(sorted_expert) > int(unpadded[-1])
    return place.clamp_(max=last), ends, last + has_unassigned


def _padded(load: list[int], rows_per_product: int) -> list[int]:
    """Rows of every expert after padding:
    neighbours share a size where that costs less than one more product.
    """
    sizes: list[int] = []
    # The run of experts that is being built: its first expert, and the rows of its largest.
    first = 0
    largest = 0
    for expert, rows_of_expert in enumerate(load):
        rows = math.ceil(rows_of_expert / BLOCK) * BLOCK
        length = expert - first
        joined = (length + 1) * max(largest, rows)
        apart = length * largest + rows
        if joined > apart + rows_per_product:
            sizes += [largest] * length
            first = expert
            largest = rows
        else:
            largest = max(largest, rows)
    return sizes + [largest] * (len(load) - first)
