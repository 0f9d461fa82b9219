"""The activations against NumPy in float64, and their gradients at the edges."""

import numpy as np
import pytest
import torch

from app.config.parts import build_part
from app.registry import find
from routers.contract import Context
from routers.router import Router
from tests.support.nano import SIZES

FORMULAS = {
    "softmax": lambda x: np.exp(x) / np.exp(x).sum(-1, keepdims=True),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "sqrt_softplus": lambda x: np.sqrt(np.log1p(np.exp(x))),
    "relu": lambda x: np.maximum(x, 0),
    "identity": lambda x: x,
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
    score = build_part("score", "linear", sizes)
    drop = build_part("drop", "none", sizes)
    for select in (
        find("select", "top_k")(sizes, k=1),
        find("select", "top_p")(sizes, p=0.4, min_k=1, max_k=1),
        find("select", "seq_top_k")(sizes, k=1, min_k=1, max_k=1),
        find("select", "group_limited")(sizes, k=1, groups=2, limit=1, score="max"),
        find("select", "grouped")(sizes, k=1, groups=None),
    ):
        weigh.normalize = True
        with pytest.raises(ValueError, match="normalize=false"):
            Router(score, weigh, select, drop, sizes)
        weigh.normalize = False
        Router(score, weigh, select, drop, sizes)


@pytest.mark.parametrize("name", FORMULAS)
def test_the_logarithm_of_the_scores_is_exact_where_they_round_to_zero(name):
    weigh = build_part("weigh", name, SIZES)
    logits = torch.randn(6, 8, dtype=torch.float64)
    if not weigh.signed:
        torch.testing.assert_close(weigh.log_scores(logits).exp(), weigh.scores(logits))
    low = torch.tensor([[-60.0, -61.0, -200.0, -60.0]])
    # its scores are 0 there, not small
    if name != "relu":
        share = low.double().mul(0.5 if name == "sqrt_softplus" else 1.0).softmax(-1)
        torch.testing.assert_close(
            weigh.activated(low).probabilities.double(), share, rtol=1e-5, atol=1e-12
        )


@pytest.mark.parametrize("name", ["softmax", "sigmoid", "sqrt_softplus"])
@pytest.mark.parametrize("shift", [0.0, -30.0, -60.0, -1e3])
def test_normalised_gates_sum_to_one_for_any_shift_of_the_logits(name, shift):
    weigh = build_part("weigh", name, SIZES)
    weigh.normalize = True
    logits = (shift + torch.randn(5, 8)).requires_grad_()
    token = torch.arange(5).repeat_interleave(3)
    expert = logits.topk(3).indices.flatten()
    gate = weigh(
        weigh.activated(logits), token, expert, Context(torch.ones(1, 5, dtype=torch.bool))
    )
    torch.testing.assert_close(gate.view(5, 3).sum(-1), torch.ones(5))
    gradient = torch.autograd.grad(gate.view(5, 3)[:, 0].sum(), logits)[0]
    assert gradient.isfinite().all() and (shift > 20 or gradient.abs().max() > 1e-3)
