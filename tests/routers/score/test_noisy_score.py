"""noisy: Shazeer's equation 4, and what the smooth load needs of it."""

import numpy as np
import torch

from routers.contract import Context
from routers.score.noisy import Noisy
from tests.support.scoring import (
    SIZES,
    array,
    assert_equal,
    assert_gradients_are_those_of_the_formula,
    context,
    tokens,
)


def trained(min_std: float = 0.01) -> Noisy:
    score = Noisy(SIZES, min_std=min_std)
    for parameter in score.parameters():
        torch.nn.init.normal_(parameter)
    return score


def test_noise_has_the_learned_width_in_training_and_is_absent_in_evaluation() -> None:
    score = trained()
    x = tokens(4)
    where = context(4)
    clean = array(x) @ array(score.proj.weight).T
    raw = array(x) @ array(score.noise.weight).T
    std = np.log1p(np.exp(raw)) + 0.01
    draws = where.drawn("score", 5, torch.randn)
    scored = score(x, where)
    assert_equal(scored.logits, clean + array(draws) * std)
    assert_equal(scored.clean, clean)
    assert_equal(scored.noise_std, std)
    plain = score.eval()(x, where)
    assert_equal(plain.logits, clean)
    assert plain.clean is None and plain.noise_std is None


def test_gradients() -> None:
    assert_gradients_are_those_of_the_formula(trained(), tokens(3), context(3))


def test_another_step_draws_other_noise_and_the_global_generator_is_left_alone() -> None:
    score = trained()
    x = tokens(4)
    before = torch.get_rng_state()
    one = score(x, context(4, seed=1)).logits
    two = score(x, context(4, seed=2)).logits
    assert not torch.equal(one, two)
    assert torch.equal(before, torch.get_rng_state())


def test_it_starts_without_a_signal() -> None:
    score = Noisy(SIZES, min_std=0.0)
    x = tokens(4)
    scored = score(x, context(4))
    assert not scored.clean.any() and torch.allclose(scored.noise_std, torch.tensor(2.0).log())


def test_any_seed_of_a_run_gives_noise():
    far = (2**32 * 1_000_003 + 10**6) * 1_000_003 * 1_000
    one, two = (Context(torch.ones(1, 4), seed=far + i).drawn("score", 1) for i in range(2))
    assert not one.equal(two)
