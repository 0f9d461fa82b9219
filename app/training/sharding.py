"""FSDP2: parameters, gradients and optimizer state split over the ranks, and gradients held back
between micro-batches.

Under FSDP2 gradients are sums over the ranks: torch's own division is wrong in three ways for
experts on a mesh of their own (pytorch#190745, a second division where that mesh has one rank, no
such operation in gloo), and the loss divides already. DDP takes means; `averaged_ranks` is the one
place that knows.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from app.model.transformer import Transformer
from app.training.expert_parallel import shard_experts
from experts.contract import Stack
from routers.collectives import num_ranks
from routers.router import Router


def shard(
    model: Transformer, mesh: DeviceMesh, ep_size: int, low: torch.dtype | None = None
) -> None:
    """Splits a model over the ranks, a block at a time; once only.

    With `ep_size` > 1 neighbouring ranks hold different experts of every stack. The matrices of a
    block are gathered in `low`, which is autocast's: gathered in float32, each would leave a copy
    in `low` until the backward pass. Routers, norms and whatever is passed from layer to layer stay
    float32.
    """
    if isinstance(model, FSDPModule):
        return
    data = mesh["data_parallel"]
    high = MixedPrecisionPolicy(cast_forward_inputs=False)
    policy = MixedPrecisionPolicy(
        param_dtype=low, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    _silence_warnings()
    if ep_size > 1:
        for stack, replicas in shard_experts(model, data, ep_size):
            fully_shard(stack, mesh=replicas, mp_policy=policy)
    for block in model.blocks if low else ():
        fully_shard(_multiplied(block), mesh=data, mp_policy=policy)
    for module in (*model.blocks, model):
        fully_shard(module, mesh=data, mp_policy=high)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    _prefetch(list(model.blocks))
    torch.distributed.fsdp.register_fsdp_forward_method(model, "logits_of_next")


def _prefetch(blocks: list[Any]) -> None:
    """The next block is gathered while this one computes:
    experts wait for the host, which gets no further ahead.
    """
    for block, after in pairwise(blocks):
        block.set_modules_to_forward_prefetch([after])
        after.set_modules_to_backward_prefetch([block])


def _multiplied(block: nn.Module) -> list[nn.Module]:
    """The parts of a block that are matrices, outside of its router, and not split yet;
    in the order of the forward.
    """
    routers = {
        inner
        for module in block.modules()
        if isinstance(module, Router)
        for inner in module.modules()
    }
    found = [m for m in block.modules() if isinstance(m, nn.Linear | Stack) and m not in routers]
    return [module for module in found if not isinstance(module, FSDPModule)]


def _silence_warnings() -> None:
    """Every gathering of experts for a checkpoint would print one, and every validation another."""
    logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")


def averaged_ranks(model: nn.Module) -> int:
    """By how many ranks the strategy divides the sum of their gradients;
    1 where `shard` has switched that off.
    """
    return 1 if isinstance(model, FSDPModule) else num_ranks()


@contextmanager
def hold_gradients(module: lightning.LightningModule) -> Iterator[None]:
    """Adds up gradients on this rank only, for all micro-batches of a step but the last."""
    strategy: object = module.trainer.strategy
    with (
        strategy.block_backward_sync()
        if hasattr(strategy, "block_backward_sync")
        else nullcontext()
    ):
        yield


def full_tensor(value: Tensor) -> Tensor:
    """The tensor, gathered where it is split over ranks: then all of them have to call."""
    return value.full_tensor() if isinstance(value, DTensor) else value
