"""What the strategies ask of the model: sharding, exchanging rows, gradients held back between micro-batches, clipping.

Under FSDP2 gradients are sums over the ranks: torch's own division is wrong in three ways for experts on a mesh of
their own (pytorch#190745, a second division where that mesh has one rank, no such operation in gloo), and the loss
divides already. DDP and FSDP1 take means; `averaged_ranks` is the one place that knows.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import lightning
import torch
import torch.nn.functional as F
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn
from torch.distributed import ProcessGroup, distributed_c10d
from torch.distributed._functional_collectives import all_to_all_single
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from app.registry import UserError
from app.transformer import Transformer
from experts import grouped
from experts.contract import Stack
from routers.contract import num_ranks, rank_sum


def shard(model: Transformer, mesh: DeviceMesh, ep_size: int) -> None:
    """Splits parameters, gradients and optimizer state over the ranks (FSDP2), a block at a time; once only.

    With `ep_size` > 1 neighbouring ranks hold different experts of every stack.
    """
    if isinstance(model, FSDPModule):
        return
    data = mesh["data_parallel"]
    policy = MixedPrecisionPolicy(cast_forward_inputs=False)  # the router's offset and state stay float32
    # every gathering of experts for a checkpoint would print a warning, and every validation another
    logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    if ep_size > 1:
        grid = init_device_mesh(mesh.device_type, (data.size() // ep_size, ep_size), mesh_dim_names=("replica", "ep"))
        _hasten(grid, data)
        for stack in stacks(model):
            _deal_experts(stack, grid["ep"])
            fully_shard(stack, mesh=grid["replica"], mp_policy=policy)
    for block in model.blocks:
        fully_shard(block, mesh=data, mp_policy=policy)
    fully_shard(model, mesh=data, mp_policy=policy)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    torch.distributed.fsdp.register_fsdp_forward_method(model, "logits")


def stacks(model: nn.Module) -> list[Stack]:
    """All stacks of experts, which expert parallelism deals out."""
    return [module for module in model.modules() if isinstance(module, Stack)]


def require_dealable(model: nn.Module, ep_size: int) -> None:
    """Checks that the experts can be dealt out.

    Raises:
        UserError: there are none in stacks, or a stack does not divide.
    """
    sizes = {len(stack.w_in) for stack in stacks(model)}
    if ep_size > 1 and not sizes:
        raise UserError(f"trainer.ep_size={ep_size}: the model has no stacked experts to deal out; use trainer=fsdp2")
    for size in sorted(sizes):
        if size % ep_size:
            raise UserError(f"trainer.ep_size={ep_size}: must divide {size}, the experts of a stack of this layout")


def _hasten(grid: DeviceMesh, data: DeviceMesh) -> None:
    """Gives the groups of a grid the time-out of the whole; a new group waits half an hour for a rank that hangs."""
    timeout = data.get_group()._get_backend(torch.device(data.device_type)).options._timeout
    for group in grid.get_all_groups():
        distributed_c10d._set_pg_timeout(timeout, group)


def _deal_experts(stack: Stack, mesh: DeviceMesh) -> None:
    for name, parameter in list(stack.named_parameters()):
        stack.register_parameter(name, nn.Parameter(distribute_tensor(parameter, mesh, [Shard(0)])))
    stack.compute = partial(exchanged_swiglu, group=mesh.get_group())


def exchanged_swiglu(x: Tensor, ends: Tensor, w_in: DTensor, w_out: DTensor, group: ProcessGroup) -> Tensor:
    """`grouped.swiglu` where each rank of the group holds E / ranks experts: rows go to their experts and come back.

    The result is awaited when it is first used. Keeps nothing: recomputation runs it again. The host waits for the
    device once, for the numbers of rows.
    """
    load = ends.diff(prepend=ends.new_zeros(1))  # (E,) rows of this rank for every expert
    arriving = all_to_all_single(load, None, None, group).view(group.size(), -1)  # (ranks, own experts)
    sent, received = load.view(group.size(), -1).sum(1).tolist(), arriving.sum(1).tolist()
    rows = all_to_all_single(x[: sum(sent)], received, sent, group)  # by rank, then by expert
    expert = torch.arange(arriving.size(1), device=x.device).repeat(group.size()).repeat_interleave(arriving.flatten())
    order = expert.argsort(stable=True)
    own_ends = arriving.sum(0).cumsum(0).to(torch.int32)
    y = grouped.swiglu(rows[order], own_ends, w_in.to_local(), w_out.to_local())
    back = torch.empty_like(order).scatter(0, order, torch.arange(len(order), device=x.device))
    y = all_to_all_single(y[back], sent, received, group)
    return y if len(y) == len(x) else F.pad(y, (0, 0, 0, len(x) - len(y)))  # nobody's rows stay at home


def averaged_ranks(model: nn.Module) -> int:
    """By how many ranks the strategy divides the sum of their gradients; 1 where `shard` has switched that off."""
    return 1 if isinstance(model, FSDPModule) else num_ranks()


def is_first_rank() -> bool:
    """Whether this process writes files and speaks; known before the processes have met."""
    return getattr(rank_zero_only, "rank", 0) == 0


@contextmanager
def hold_gradients(module: lightning.LightningModule) -> Iterator[None]:
    """Adds up gradients on this rank only, for all micro-batches of a step but the last."""
    strategy: Any = module.trainer.strategy
    if isinstance(strategy, DDPStrategy):
        with strategy.block_backward_sync():
            yield
    else:
        yield


def gradient_norm(module: lightning.LightningModule) -> Tensor:
    """The norm of all gradients together, over all ranks."""
    groups = _by_mesh(list(module.parameters()))
    norms = [torch.nn.utils.get_total_norm([p.grad for p in group]) for group in groups]  # type: ignore[misc]
    total = torch.stack([whole(norm) for norm in norms]).norm()
    if isinstance(module.trainer.strategy, FSDPStrategy):  # plain tensors there, each rank's own part
        total = rank_sum(total.square()).sqrt()
    return total


def clip_gradients(parameters: list[nn.Parameter], norm: Tensor, max_norm: float) -> None:
    """Scales all gradients down to `max_norm` where their norm is larger."""
    for group in _by_mesh(parameters):
        torch.nn.utils.clip_grads_with_norm_(group, max_norm, norm)


def _by_mesh(parameters: list[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Those with a gradient; torch does not combine the norms of several device meshes (pytorch#180346)."""
    groups: dict[Any, list[nn.Parameter]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            groups.setdefault(getattr(parameter, "device_mesh", None), []).append(parameter)
    return list(groups.values())


def whole(value: Tensor) -> Tensor:
    """The full tensor, gathered where it is split over ranks: then all of them have to call."""
    return value.full_tensor() if isinstance(value, DTensor) else value
