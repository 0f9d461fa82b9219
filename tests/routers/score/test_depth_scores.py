"""depth_average and residual: what a layer takes over from the layer below."""

import math

import numpy as np
import torch

from routers.score.constant import Constant
from routers.score.context import ContextAware
from routers.score.depth_average import DepthAverage
from routers.score.residual import Residual
from tests.support.scoring import (
    SIZES,
    array,
    assert_equal,
    assert_gradients_are_those_of_the_formula,
    context,
    tokens,
)

erf = np.vectorize(math.erf)


def gelu(x: np.ndarray) -> np.ndarray:
    return x * (1 + erf(x / math.sqrt(2))) / 2


def affine(x: np.ndarray, linear: torch.nn.Linear) -> np.ndarray:
    return x @ array(linear.weight).T + array(linear.bias)


def test_depth_average_adds_the_scaled_state_and_scores_it_by_three_layers() -> None:
    bottom, top = (DepthAverage(SIZES._replace(layer=i), state_dim=4) for i in range(2))
    torch.nn.init.normal_(top.gamma)
    x = tokens(5)
    y = tokens(5)
    below = bottom(x, context(5)).state
    ours = top(y, context(5, state=below))
    r = affine(array(x), bottom.proj)
    assert_equal(below, r)
    r = affine(array(y), top.proj) + array(top.gamma) * r
    assert_equal(ours.state, r)
    normed = r / np.sqrt((r**2).mean(1, keepdims=True) + 1e-5) * array(top.norm.weight)
    hidden = gelu(affine(gelu(affine(normed, top.hidden[0])), top.hidden[2]))
    assert_equal(ours.logits, hidden @ array(top.head.weight).T)
    assert_gradients_are_those_of_the_formula(top, y, context(5, state=below.detach()))


def test_residual_adds_the_mapped_sum_of_all_layers_below() -> None:
    scores = [Residual(SIZES._replace(layer=i), hidden_per_expert=0) for i in range(3)]
    expected = np.zeros((5, 5))
    state = None
    for score in scores:
        x = tokens(5)
        scored = score(x, context(5, state=state))
        own = array(x) @ array(score.proj.weight).T
        expected = own if score.map is None else own + expected @ array(score.map.weight).T
        assert_equal(scored.logits, expected)
        state = scored.state
    assert_gradients_are_those_of_the_formula(
        scores[1], tokens(3), context(3, state=torch.randn(3, 5))
    )


def test_the_released_gate_of_moepp_has_a_hidden_tanh_layer_of_eight_units_an_expert() -> None:
    score = Residual(SIZES, hidden_per_expert=8)
    x = tokens(5)
    below = torch.randn(5, 5)
    assert score.hidden[0].weight.shape == (40, 6)
    own = np.tanh(array(x) @ array(score.hidden[0].weight).T) @ array(score.proj.weight).T
    assert_equal(
        score(x, context(5, state=below)).logits, own + array(below) @ array(score.map.weight).T
    )
    assert_gradients_are_those_of_the_formula(score, x, context(5, state=below))


def test_context_is_an_mlp_of_one_layer_that_all_layers_above_share() -> None:
    below, own, above = (
        ContextAware(SIZES._replace(layer=i, num_layers=3), at=1, hidden_dims=[7, 4])
        for i in range(3)
    )
    for parameter in own.parameters():
        torch.nn.init.normal_(parameter)
    x = tokens(5)
    assert not below(x, context(5)).logits.any() and not [*below.parameters(), *above.parameters()]
    scored = own(x, context(5))
    hidden = array(x)
    for layer in (own.net[0][0], own.net[1][0]):
        hidden = np.maximum(affine(hidden, layer), 0)
    assert_equal(scored.logits, affine(hidden, own.net[2]))
    handed = above(tokens(5), context(5, state=scored.state))
    assert torch.equal(handed.logits, scored.logits) and handed.state is handed.logits
    (slope,) = torch.autograd.grad(handed.logits.sum(), own.net[2].bias)
    assert_equal(slope, np.full(5, 5.0))
    assert_gradients_are_those_of_the_formula(own, x, context(5))


def test_constant_is_one_learned_vector_of_the_first_layer_that_starts_with_equal_shares() -> None:
    first, above = (Constant(SIZES._replace(layer=layer)) for layer in range(2))
    x = tokens(5)
    assert_equal(first(x, context(5)).logits, np.full((5, 5), 0.2))
    torch.nn.init.normal_(first.logits)
    scored = first(x, context(5))
    assert_equal(scored.logits, np.tile(array(first.logits), (5, 1)))
    assert torch.equal(above(x, context(5, state=scored.state)).logits, scored.logits) and not [
        *above.parameters()
    ]
    assert_gradients_are_those_of_the_formula(first, x, context(5))


def test_the_first_layer_has_no_parameter_for_a_layer_below() -> None:
    assert Residual(SIZES._replace(layer=0), hidden_per_expert=0).map is None
    assert DepthAverage(SIZES._replace(layer=0), state_dim=4).gamma is None
