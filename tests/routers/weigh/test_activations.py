"""The activations against NumPy in float64, and their gradients at the edges."""

import numpy as np
import pytest
import torch

from app.config.parts import build_part
from routers.router import Router
from tests.routers.nano import SIZES

FORMULAS = {
    "softmax": lambda x: np.exp(x) / np.exp(x).sum(-1, keepdims=True),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "sqrt_softplus": lambda x: np.sqrt(np.log1p(np.exp(x))),
    "relu": lambda x: np.maximum(x, 0),
    "sparsemixer": lambda x: np.exp(x) / np.exp(x).sum(-1, keepdims=True),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_scores_and_their_gradient_equal_the_formula(name):
    torch.manual_seed(0)
    logits = 3 * torch.randn(6, 8, dtype=torch.float64)
    weigh = build_part("weigh", name, SIZES)
    np.testing.assert_allclose(weigh.scores(logits), FORMULAS[name](logits.numpy()), rtol=1e-9)
    assert torch.autograd.gradcheck(weigh.scores, logits.requires_grad_())


@pytest.mark.parametrize("name", FORMULAS)
def test_forbidden_and_huge_logits_have_finite_scores_and_gradients(name):
    logits = torch.tensor([[1e4, -1e4, 0.0, 1.0]], requires_grad=True)
    scores = build_part("weigh", name, SIZES).scores(logits)
    assert scores.isfinite().all()
    assert torch.autograd.grad(scores.sum(), logits)[0].isfinite().all()
    forbidden = torch.tensor([[-torch.inf, 0.0, 1.0, -torch.inf]])
    assert build_part("weigh", name, SIZES).scores(forbidden)[:, [0, 3]].abs().max() < 1e-5


@pytest.mark.parametrize("name", ["softmax", "sigmoid", "sqrt_softplus", "relu"])
def test_a_constant_gate_is_refused_and_says_what_to_do(name):
    sizes = SIZES._replace(top_k=1)
    weigh = build_part("weigh", name, sizes)
    weigh.normalize = True
    select = build_part("select", "top_k", SIZES)
    select.k = 1
    score, drop = build_part("score", "linear", sizes), build_part("drop", "none", sizes)
    with pytest.raises(ValueError, match="normalize=false"):
        Router(score, weigh, select, drop, sizes)
    weigh.normalize = False
    Router(score, weigh, select, drop, sizes)
