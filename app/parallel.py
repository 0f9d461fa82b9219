"""What the strategies ask of the model: sharding, gradients held back between micro-batches, clipping."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning
import torch
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from app.transformer import Transformer


def shard(model: Transformer, mesh: DeviceMesh) -> None:
    """Splits parameters, gradients and optimizer state over the ranks (FSDP2), a block at a time; once only."""
    if isinstance(model, FSDPModule):
        return
    data = mesh["data_parallel"]
    policy = MixedPrecisionPolicy(cast_forward_inputs=False)  # the router's offset and state stay float32
    for block in model.blocks:
        fully_shard(block, mesh=data, mp_policy=policy)
    fully_shard(model, mesh=data, mp_policy=policy)
    torch.distributed.fsdp.register_fsdp_forward_method(model, "logits")


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


def clip_gradients(parameters: list[nn.Parameter], max_norm: float | None) -> Tensor:
    """Scales all gradients down to `max_norm` where their global norm is larger; returns the norm before.

    Parameters may lie on several device meshes, whose norms torch does not combine (pytorch#180346).
    """
    groups: dict[Any, list[nn.Parameter]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            groups.setdefault(getattr(parameter, "device_mesh", None), []).append(parameter)
    norms = [torch.nn.utils.get_total_norm([p.grad for p in group]) for group in groups.values()]  # type: ignore[misc]
    total = torch.stack([n.full_tensor() if isinstance(n, DTensor) else n for n in norms]).norm()
    if max_norm is not None:
        for group in groups.values():
            torch.nn.utils.clip_grads_with_norm_(group, max_norm, total)
    return total
