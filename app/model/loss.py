"""Cross entropy of the language-model head, with one copy of the logits in memory.

The logits' gradient, softmax minus one-hot, is written over the logits while they are at hand, so
that the backward pass needs neither the logits again nor a second matrix of their size.
"""

from typing import Any

import torch
from torch import Tensor

# tokens whose float32 logits exist at one time
ROWS = 1024


def token_nll(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """-log p(target) in nats, float32, of the shape of `targets`; 0 where the target is negative.

    Args:
        hidden: (..., D) outputs of the last layer.
        weight: (V, D) of the head.
        targets: (...) int64.
    """
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        hidden = hidden.to(dtype)
        weight = weight.to(dtype)
    if torch.is_grad_enabled():
        return _LinearCrossEntropy.apply(hidden, weight, targets)
    # Without a gradient, the logits of some rows at a time are enough.
    parts = []
    rows = zip(hidden.flatten(0, -2).split(ROWS), targets.flatten().split(ROWS), strict=True)
    for some_hidden, some_targets in rows:
        nll, _ = _nll(some_hidden @ weight.T, some_targets)
        parts.append(nll)
    return torch.cat(parts).view_as(targets)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        logits = hidden.flatten(0, -2) @ weight.T  # (T, V)
        parts = []
        for some_logits, some_targets in zip(
            logits.split(ROWS), targets.flatten().split(ROWS), strict=True
        ):
            parts.append(_softmax_minus_onehot(some_logits, some_targets))
        # The logits have become their own gradient.
        ctx.save_for_backward(hidden, weight, logits)
        return torch.cat(parts).view_as(targets)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        hidden, weight, slope = ctx.saved_tensors
        # In float32: one rounded factor would bend the whole gradient.
        scale = grads[0].flatten()[:, None]
        grad_hidden = (slope @ weight * scale).to(hidden.dtype).view_as(hidden)
        grad_weight = slope.T @ (hidden.flatten(0, -2) * scale).to(hidden.dtype)
        return grad_hidden, grad_weight, None


def _nll(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The likelihoods of some rows (R,), and log p (R, V) of logits (R, V)."""
    log_p = logits.float().log_softmax(-1)
    nll = -log_p.gather(1, targets.clamp_min(0)[:, None]).squeeze(1)
    return nll.masked_fill(targets < 0, 0), log_p


def _softmax_minus_onehot(logits: Tensor, targets: Tensor) -> Tensor:
    """The likelihoods of some rows (R,); their gradient replaces the logits (R, V)."""
    nll, log_p = _nll(logits, targets)
    index = targets.clamp_min(0)[:, None]
    slope = log_p.exp_().scatter_add_(1, index, -torch.ones_like(index, dtype=log_p.dtype))
    logits.copy_(slope.masked_fill_((targets < 0)[:, None], 0))
    return nll
