"""hash and hyper: what is drawn from a seed and never trained."""

import numpy as np
import pytest
import torch

from routers.contract import Sizes
from routers.score.hash import Hash
from routers.score.hyper import Hyper
from tests.support.scoring import (
    SIZES,
    array,
    assert_equal,
    assert_gradients_are_those_of_the_formula,
    context,
    tokens,
)


@pytest.mark.parametrize("kind", ["random", "balanced"])
@pytest.mark.parametrize("k", [1, 2, 5])
def test_hash_allows_the_k_experts_of_a_tokens_id_and_no_other(kind: str, k: int) -> None:
    score = Hash(SIZES, k=k, kind=kind, learned=False, seed=0)
    ids = torch.tensor([3, 39, 3, 0])
    logits = score(tokens(4), context(4)._replace(token_ids=ids)).logits
    for row, token in zip(logits, ids, strict=True):
        assert set(torch.where(row == 0)[0].tolist()) == set(score.table[token].tolist())
        assert (row == -torch.inf).sum() == SIZES.num_experts - k
    assert not list(score.parameters())


@pytest.mark.parametrize("k", [1, 3])
def test_the_balanced_table_gives_every_expert_equally_many_neighbouring_ids(k: int) -> None:
    score = Hash(SIZES, k=k, kind="balanced", learned=False, seed=0)
    for start in range(0, SIZES.vocab_size, SIZES.num_experts):
        assert (
            score.table[start : start + SIZES.num_experts].flatten().bincount(minlength=5) == k
        ).all()


@pytest.mark.parametrize("kind", ["random", "balanced"])
def test_each_layer_and_seed_has_its_own_table(kind: str) -> None:
    one = Hash(SIZES, k=2, kind=kind, learned=False, seed=0).table
    assert torch.equal(one, Hash(SIZES, k=2, kind=kind, learned=False, seed=0).table)
    assert not torch.equal(
        one, Hash(SIZES._replace(layer=2), k=2, kind=kind, learned=False, seed=0).table
    )
    assert not torch.equal(one, Hash(SIZES, k=2, kind=kind, learned=False, seed=1).table)


def test_hash_survives_a_vocabulary_that_the_experts_do_not_divide() -> None:
    assert Hash(
        SIZES._replace(vocab_size=43), k=2, kind="balanced", learned=False, seed=0
    ).table.shape == (43, 2)


def test_a_learned_hash_weighs_the_fixed_experts_by_a_linear_router() -> None:
    score = Hash(SIZES, k=2, kind="random", learned=True, seed=0)
    x = tokens(4)
    logits = score(x, context(4)).logits
    allowed = logits > -torch.inf
    assert (allowed.sum(1) == 2).all()
    assert_equal(logits[allowed], (array(x) @ array(score.proj.weight).T)[allowed.numpy()])


def test_the_weights_of_hyper_come_out_of_its_fixed_network() -> None:
    score = Hyper(SIZES, hidden_dim=8, seed=0)
    x = tokens(4)
    inner = array(score.inner)
    outer = array(score.outer)
    hidden = np.maximum(inner[:, :-1] @ array(score.embedding) + inner[:, -1], 0)
    weight = (outer[:, :-1] @ hidden + outer[:, -1]).reshape(5, 7)
    assert_equal(score(x, context(4)).logits, array(x) @ weight[:, :-1].T + weight[:, -1])
    assert_equal(score.directions(), weight[:, :-1])
    assert_gradients_are_those_of_the_formula(score, x, context(4))


def test_only_the_input_of_hyper_is_learned_and_its_network_has_the_papers_size() -> None:
    medium = Sizes(dim=352, num_experts=16, top_k=2, num_layers=8, vocab_size=256)
    score = Hyper(medium, hidden_dim=256, seed=0)
    assert [p.shape for p in score.parameters()] == [(352,)]
    # beyond SMoE's linear router
    added = 8 * sum(t.numel() for t in score.state_dict().values()) - 8 * 352 * 16
    assert round(added / 1e6, 1) == 12.3  # RMoE, table 1: 48.41 M - 36.08 M
