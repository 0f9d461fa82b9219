"""Arithmetic on scores, as probabilities over the experts. Letters as in `routers.contract`."""

import torch
from torch import Tensor


def distribution(scores: Tensor) -> Tensor:
    """Scores (..., E) normalised over the experts: the P of the f.P losses is the mean of this."""
    return scores / scores.sum(-1, keepdim=True).clamp_min(1e-20)


def sequence_sum(values: Tensor, valid: Tensor) -> Tensor:
    """Sum over the valid tokens of each sequence, of values (T, E): (B, E)."""
    return torch.einsum("bs,bse->be", valid.to(values.dtype), values.view(*valid.shape, -1))


def entropy(probabilities: Tensor) -> Tensor:
    """Entropy in nats over the last dimension; the logarithm is clamped, so the gradient is finite at 0."""
    return -(probabilities * probabilities.clamp_min(1e-20).log()).sum(-1)


def squared_variation(values: Tensor) -> Tensor:
    """Squared coefficient of variation over the last dimension, var / mean^2; 0 where all values are 0."""
    mean = values.mean(-1, keepdim=True)
    return (values - mean).square().mean(-1) / mean.squeeze(-1).square().clamp_min(1e-20)
