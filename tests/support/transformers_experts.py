"""Experts and routers of transformers."""

from typing import Any

import pytest
import torch
from torch import nn

from routers.contract import Sizes

transformers = pytest.importorskip("transformers", minversion="5.0")


D = 16


E = 8


K = 2


F = 12


SIZES = Sizes(dim=D, num_experts=E, top_k=K, num_layers=1, vocab_size=8)


NAMES = {
    "hidden_size": D,
    "num_experts_per_tok": K,
    "moe_intermediate_size": F,
    "intermediate_size": F,
}


def theirs(folder: str, block: str, config: str, **values: Any) -> nn.Module:
    """A block of transformers with random weights."""
    modeling = pytest.importorskip(f"transformers.models.{folder}.modeling_{folder}")
    settings = getattr(transformers, config)(**values)
    settings._attn_implementation = settings._experts_implementation = "eager"
    module = getattr(modeling, block)(settings).eval()
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, 0, 0.4)
    return module
