"""Arithmetic on scores, as probabilities over the experts. Letters as in `routers.contract`."""

import torch
from torch import Tensor


def normalized(log_scores: Tensor) -> Tensor:
    """Scores (..., E) normalised over the experts, of their logarithms; 0 where all of them are 0.

    Without an epsilon: the sum is 1 however small the scores are, so no router lowers a loss by
    lowering them all.
    """
    nothing = (log_scores == -torch.inf).all(-1, keepdim=True)
    return log_scores.masked_fill(nothing, 0).softmax(-1).masked_fill(nothing, 0)


def sequence_sum(values: Tensor, valid: Tensor) -> Tensor:
    """Sum over the valid tokens of each sequence, of values (T, E): (B, E)."""
    return torch.einsum("bs,bse->be", valid.to(values.dtype), values.view(*valid.shape, -1))


def entropy(probabilities: Tensor) -> Tensor:
    """Entropy in nats over the last dimension;
    the logarithm is clamped, so the gradient is finite at 0.
    """
    return -(probabilities * probabilities.clamp_min(1e-20).log()).sum(-1)


def squared_variation(values: Tensor) -> Tensor:
    """Squared coefficient of variation over the last dimension, var / mean^2;
    0 where all values are 0.
    """
    mean = values.mean(-1, keepdim=True)
    return (values - mean).square().mean(-1) / mean.squeeze(-1).square().clamp_min(1e-20)


def violation(load: Tensor, target: Tensor) -> Tensor:
    """How far a load (..., E) falls short of a target (..., 1), in its units: 1 at no load;
    0 where none is due.
    """
    due = target > 0
    return (1 - load / target.where(due, 1)) * due
