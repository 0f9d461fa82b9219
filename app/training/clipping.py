"""The norm of the gradients over all ranks, and clipping by it, under every strategy."""

import lightning
import torch
from torch import Tensor, nn

from app.training.sharding import full_tensor


def gradient_norm(module: lightning.LightningModule) -> Tensor:
    """The norm of all gradients together, over all ranks."""
    groups = _by_mesh(list(module.parameters()))
    norms = [torch.nn.utils.get_total_norm([p.grad for p in group]) for group in groups]  # type: ignore[misc]
    return torch.stack([full_tensor(norm) for norm in norms]).norm()


def clip_gradients(parameters: list[nn.Parameter], norm: Tensor, max_norm: float) -> None:
    """Scales all gradients down to `max_norm` where their norm is larger."""
    for group in _by_mesh(parameters):
        torch.nn.utils.clip_grads_with_norm_(group, max_norm, norm)


def _by_mesh(parameters: list[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Those with a gradient; torch does not combine the norms of
    several device meshes (pytorch#180346).
    """
    groups: dict[object, list[nn.Parameter]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            groups.setdefault(getattr(parameter, "device_mesh", None), []).append(parameter)
    return list(groups.values())
