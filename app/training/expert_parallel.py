"""Expert parallelism: the ranks of a group hold different experts of every stack,
and rows travel to their experts.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed import ProcessGroup, distributed_c10d
from torch.distributed._functional_collectives import all_to_all_single
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from app.fault_points import fault_point
from app.registry import UserError
from experts.contract import Dispatcher, Stack


class AllToAll(Dispatcher):
    """Each rank of the group holds E / ranks experts: rows go to their experts, and their outputs
    come back.

    The result is awaited when it is first used. Keeps nothing: recomputation runs it again. The
    host waits for the device once, for the numbers of rows.
    """

    def __init__(self, group: ProcessGroup) -> None:
        self.group = group

    def __call__(
        self, x: Tensor, ends: Tensor, compute: Callable[[Tensor, Tensor], Tensor]
    ) -> Tensor:
        fault_point("exchange rows")
        group = self.group
        load = ends.diff(prepend=ends.new_zeros(1))  # (E,) rows of this rank for every expert
        # (ranks, own experts)
        arriving = all_to_all_single(load, None, None, group).view(group.size(), -1)
        sent = load.view(group.size(), -1).sum(1).tolist()
        received = arriving.sum(1).tolist()
        # by rank, then by expert
        rows = all_to_all_single(x[: sum(sent)], received, sent, group)
        order = _by_expert(arriving)
        y = compute(rows[order], arriving.sum(0).cumsum(0).to(torch.int32))
        back = torch.empty_like(order).scatter(0, order, torch.arange(len(order), device=x.device))
        y = all_to_all_single(y[back], sent, received, group)
        # unassigned rows stay here
        return y if len(y) == len(x) else F.pad(y, (0, 0, 0, len(x) - len(y)))


def _by_expert(arriving: Tensor) -> Tensor:
    """The order that sorts rows by expert which came sorted by rank and then by expert;
    numbers (ranks, experts).
    """
    ranks, experts = arriving.shape
    expert = (
        torch.arange(experts, device=arriving.device)
        .repeat(ranks)
        .repeat_interleave(arriving.flatten())
    )
    return expert.argsort(stable=True)


def shard_experts(
    model: nn.Module, data: DeviceMesh, ep_size: int
) -> Iterator[tuple[Stack, DeviceMesh]]:
    """Splits every stack over neighbouring ranks;
    yields it with the mesh of the ranks that hold the same experts.
    """
    shape = (data.size() // ep_size, ep_size)
    grid = init_device_mesh(data.device_type, shape, mesh_dim_names=("replica", "ep"))
    _copy_timeout(data, grid)
    for stack in stacks(model):
        for name, parameter in list(stack.named_parameters()):
            stack.register_parameter(
                name, nn.Parameter(distribute_tensor(parameter, grid["ep"], [Shard(0)]))
            )
        stack.dispatcher = AllToAll(grid["ep"].get_group())
        yield stack, grid["replica"]


def stacks(model: nn.Module) -> list[Stack]:
    """All stacks of experts."""
    return [module for module in model.modules() if isinstance(module, Stack)]


def check_expert_parallel(model: nn.Module, ep_size: int) -> None:
    """Checks that the experts can be split over `ep_size` ranks.

    Raises:
        UserError: there are none in stacks, or a stack does not divide.
    """
    sizes = {len(stack.w_in) for stack in stacks(model)}
    if ep_size > 1 and not sizes:
        raise UserError(
            f"trainer.ep_size={ep_size}: the model has no stacked experts to split; use "
            "trainer=fsdp"
        )
    for size in sorted(sizes):
        if size % ep_size:
            raise UserError(
                f"trainer.ep_size={ep_size}: must divide {size}, the experts of a stack of this "
                "layout"
            )


def _copy_timeout(data: DeviceMesh, grid: DeviceMesh) -> None:
    """Gives the groups of a grid the time-out of the whole;
    a new group waits half an hour for a rank that hangs.
    """
    # A DeviceMesh makes its groups itself, and takes no time-out for them; torch has no public way
    # to read or set that of a group.
    timeout = data.get_group()._get_backend(torch.device(data.device_type)).options._timeout
    for group in grid.get_all_groups():
        distributed_c10d._set_pg_timeout(timeout, group)
