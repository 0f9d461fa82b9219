"""linear, jitter, mlp, cosine, random: each equals its formula written out in NumPy."""

import numpy as np
import pytest
import torch

from routers.contract import Sizes
from routers.score.cosine import Cosine
from routers.score.jitter import Jitter
from routers.score.linear import Linear
from routers.score.mlp import MLP
from routers.score.random import Random
from tests.support.scoring import (
    SIZES,
    array,
    assert_equal,
    assert_gradients_are_those_of_the_formula,
    context,
    tokens,
)


def test_linear_is_a_product_with_the_router_matrix() -> None:
    score = Linear(SIZES, bias=True)
    x = tokens(4)
    assert_equal(
        score(x, context(4)).logits, array(x) @ array(score.proj.weight).T + array(score.proj.bias)
    )
    assert_gradients_are_those_of_the_formula(score, x, context(4))


def test_jitter_multiplies_the_input_by_at_most_eps_and_only_in_training() -> None:
    score = Jitter(SIZES, bias=False, eps=0.1)
    x = tokens(4)
    where = context(4)
    weight = array(score.proj.weight)
    draws = where.drawn("score", x.size(1))
    assert_equal(score(x, where).logits, (array(x) * (0.9 + 0.2 * array(draws))) @ weight.T)
    assert not torch.equal(score(x, where).logits, score(x, where._replace(seed=8)).logits)
    assert_equal(score.eval()(x, where).logits, array(x) @ weight.T)


def test_mlp_is_two_products_with_a_relu_between() -> None:
    score = MLP(SIZES, hidden_dim=7, activation="relu")
    x = tokens(4)
    hidden = np.maximum(array(x) @ array(score.hidden.weight).T, 0)
    assert_equal(score(x, context(4)).logits, hidden @ array(score.head.weight).T)
    smooth = MLP(SIZES, hidden_dim=7, activation="tanh")
    assert_gradients_are_those_of_the_formula(smooth, x, context(4))


def test_mlp_has_the_parameters_of_rmoes_baseline() -> None:
    medium = Sizes(dim=352, num_experts=16, top_k=2, num_layers=8, vocab_size=256)
    score = MLP(medium, hidden_dim=256, activation="relu")
    assert round(8 * sum(p.numel() for p in score.parameters()) / 1e6, 2) == 0.75


@pytest.mark.parametrize("proj_dim", [None, 3])
def test_cosine_is_the_angle_over_the_temperature(proj_dim: int | None) -> None:
    score = Cosine(SIZES, proj_dim=proj_dim, normalize_input=True, tau=0.2, min_tau=0.01)
    x = tokens(4)
    p = array(x) if proj_dim is None else array(x) @ array(score.proj.weight).T
    e = array(score.embedding)
    angle = (p @ e.T) / (np.linalg.norm(p, axis=1)[:, None] * np.linalg.norm(e, axis=1))
    assert_equal(score(x, context(4)).logits, angle / 0.2)
    assert_gradients_are_those_of_the_formula(score, x, context(4))


def test_cosine_as_in_rmoes_runs_normalises_the_embeddings_only_and_has_no_temperature() -> None:
    score = Cosine(SIZES, proj_dim=3, normalize_input=False, tau=None, min_tau=0.01)
    x = tokens(4)
    p = array(x) @ array(score.proj.weight).T
    e = array(score.embedding)
    assert_equal(score(x, context(4)).logits, p @ (e / np.linalg.norm(e, axis=1, keepdims=True)).T)
    assert_gradients_are_those_of_the_formula(score, x, context(4))


def test_the_temperature_of_cosine_never_acts_below_its_bound() -> None:
    score = Cosine(SIZES, proj_dim=3, normalize_input=True, tau=0.2, min_tau=0.1)
    x = tokens(4)
    at_bound = score(x, context(4)).logits * 2
    torch.nn.init.constant_(score.tau, -1.0)
    torch.testing.assert_close(score(x, context(4)).logits, at_bound)


def test_random_has_no_parameters_and_its_own_weights_for_each_layer_and_seed() -> None:
    one = Random(SIZES, seed=3)
    same = Random(SIZES, seed=3)
    assert not list(one.parameters()) and torch.equal(one.weight, same.weight)
    assert not torch.equal(one.weight, Random(SIZES._replace(layer=2), seed=3).weight)
    assert not torch.equal(one.weight, Random(SIZES, seed=4).weight)
    assert one.weight.abs().max() <= SIZES.dim**-0.5
    x = tokens(4)
    assert_equal(one(x, context(4)).logits, array(x) @ array(one.weight).T)
