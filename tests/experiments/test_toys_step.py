"""Every toy makes a step: a finite loss,
and a finite gradient for every parameter (or DDP stops at step 2).
"""

import pytest
import torch

from app.config.compose import CONF, composed
from app.model.assemble import build_model

TOYS = sorted(path.stem for path in (CONF / "experiment" / "toy").glob("*.yaml"))
V = 64
B = 2
S = 16


@pytest.mark.parametrize("name", TOYS)
def test_a_toy_makes_a_step(name):
    torch.manual_seed(0)
    model = build_model(composed([f"experiment=toy/{name}", "model.num_layers=2"]), V)
    tokens = torch.randint(0, V, (B, S))
    nll, routings = model(
        tokens, tokens, torch.ones_like(tokens, dtype=torch.bool), torch.zeros_like(tokens)
    )
    nll.mean().backward()
    assert nll.isfinite().all() and len(routings) == len(model.routers())
    assert not {key for key, p in model.named_parameters() if p.requires_grad and p.grad is None}
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
