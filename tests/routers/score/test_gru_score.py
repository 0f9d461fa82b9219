"""gru: RMoE's router and its published variants."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from routers.contract import Scored, Sizes
from routers.score.gru import GRU
from tests.support.scoring import (
    SIZES,
    array,
    assert_equal,
    assert_gradients_are_those_of_the_formula,
    context,
    tokens,
)

PLAIN = {
    "state_dim": 4,
    "cell": "gru",
    "shared_projection": False,
    "stateless": False,
    "detach": False,
    "residual": 0.0,
}


def layers(sizes: Sizes = SIZES, **knobs: Any) -> tuple[list[GRU], nn.Module]:
    built = [GRU(sizes._replace(layer=i), **{**PLAIN, **knobs}) for i in range(sizes.num_layers)]
    return built, built[0].shared()


def unroll(scores: list[GRU], shared: nn.Module, xs: list[Tensor]) -> list[Scored]:
    scored: list[Scored] = []
    for score, x in zip(scores, xs, strict=True):
        state = scored[-1].state if scored else None
        scored.append(score(x, context(len(x), state=state, shared=shared)))
    return scored


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def test_it_is_the_printed_gru_over_the_layers_of_a_token() -> None:
    scores, shared = layers()
    xs = [tokens(5) for _ in scores]
    w = array(shared.cell.weight_ih)
    u = array(shared.cell.weight_hh)
    b = array(shared.cell.bias_ih)
    c = array(shared.cell.bias_hh)
    h = np.zeros((5, 4))
    for score, x, ours in zip(scores, xs, unroll(scores, shared, xs), strict=True):
        a = array(x) @ array(score.proj.weight).T @ w.T + b  # (T, 3P): reset, update, candidate
        v = h @ u.T + c
        reset = sigmoid(a[:, :4] + v[:, :4])
        update = sigmoid(a[:, 4:8] + v[:, 4:8])
        h = (1 - update) * np.tanh(a[:, 8:] + reset * v[:, 8:]) + update * h
        assert_equal(ours.state, h)
        assert_equal(ours.logits, h @ array(score.head.weight).T)


@pytest.mark.parametrize(
    "cell,reference", [("gru", nn.GRUCell), ("rnn", nn.RNNCell), ("lstm", nn.LSTMCell)]
)
def test_each_cell_is_torchs_unrolled_over_depth(cell: str, reference: type[nn.Module]) -> None:
    scores, shared = layers(cell=cell)
    theirs = reference(4, 4)
    theirs.load_state_dict(shared.cell.state_dict())
    xs = [tokens(5) for _ in scores]
    state = None
    for score, x, ours in zip(scores, xs, unroll(scores, shared, xs), strict=True):
        state = theirs(score.proj(x), state)
        h = state[0] if cell == "lstm" else state
        torch.testing.assert_close(ours.logits, h @ score.head.weight.T)


def test_the_router_of_enwik8_medium_has_475_904_parameters() -> None:
    medium = Sizes(dim=352, num_experts=16, top_k=2, num_layers=8, vocab_size=256)
    scores, shared = layers(medium, state_dim=128)
    assert sum(p.numel() for module in (*scores, shared) for p in module.parameters()) == 475_904


def test_gradients_go_through_the_state() -> None:
    scores, shared = layers()
    where = context(3, state=torch.randn(3, 4), shared=shared.double())
    assert_gradients_are_those_of_the_formula(scores[1], tokens(3), where)


@pytest.mark.parametrize("detach", [False, True])
def test_detach_cuts_the_gradient_to_the_layers_below(detach: bool) -> None:
    scores, shared = layers(detach=detach, residual=0.5)
    xs = [tokens(5).requires_grad_() for _ in scores]
    unroll(scores, shared, xs)[-1].logits.sum().backward()
    assert (xs[0].grad is None) == detach
    assert xs[-1].grad is not None


def test_a_stateless_layer_starts_at_zero() -> None:
    scores, shared = layers(stateless=True)
    xs = [tokens(5) for _ in scores]
    for score, x, ours in zip(scores, xs, unroll(scores, shared, xs), strict=True):
        torch.testing.assert_close(ours.logits, score.head(shared.cell(score.proj(x))))


def test_a_shared_projection_exists_once() -> None:
    scores, shared = layers(shared_projection=True)
    xs = [tokens(5) for _ in scores]
    assert all(not isinstance(score.proj, nn.Linear) for score in scores)
    below = torch.zeros(5, 4)
    for score, x, ours in zip(scores, xs, unroll(scores, shared, xs), strict=True):
        below = shared.cell(x @ shared.proj.weight.T, below)
        torch.testing.assert_close(ours.logits, score.head(below))


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_residual_adds_the_logits_of_the_layer_below(cell: str) -> None:
    scores, shared = layers(cell=cell, residual=0.5)
    xs = [tokens(5) for _ in scores]
    ours = unroll(scores, shared, xs)
    for score in scores:
        score.residual = 0.0
    plain = unroll(scores, shared, xs)
    expected = plain[0].logits
    torch.testing.assert_close(ours[0].logits, expected)
    for with_residual, without in zip(ours[1:], plain[1:], strict=True):
        expected = without.logits + 0.5 * expected
        torch.testing.assert_close(with_residual.logits, expected)
