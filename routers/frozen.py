"""Weights that are never trained, as the routers of HyperRouter and SMoE-Dropout have them."""

import torch
from torch import Tensor


def frozen(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """A linear layer (rows, columns + 1), the bias last,
    uniform in +-1/sqrt(columns) as torch draws its own.
    """
    return (
        2 * torch.rand(rows, columns + 1, generator=generator, device="cpu") - 1
    ) * columns**-0.5
