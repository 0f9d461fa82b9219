"""expert_choice, sinkhorn, base, seq_top_k:
each equals its rule written out, and evens out what it promises to.
"""

from itertools import product

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from routers.select.base_layer import Base, assign
from routers.select.expert_choice import ExpertChoice
from routers.select.seq_top_k import SeqTopK, full_rank, prefix_rank
from routers.select.sinkhorn import Sinkhorn
from routers.select.top_k import TopK
from tests.support.selecting import SIZES, build, every, pairs, probabilities


def skewed(num_tokens: int) -> Tensor:
    """Scores that nearly all prefer expert 0."""
    return (torch.randn(num_tokens, 6) + torch.tensor([3.0, 0, 0, 0, 0, 0])).softmax(-1)


def load(chosen: set[tuple[int, int]]) -> list[int]:
    return np.bincount([e for _, e in chosen], minlength=6).tolist()


def test_every_expert_chooses_its_best_tokens() -> None:
    choice = probabilities(12)
    rows = choice.double().numpy()
    expected = {(int(t), e) for e in range(6) for t in np.argsort(-rows[:, e])[:4]}  # 2 * 12 / 6
    assert pairs(ExpertChoice(SIZES, k=2), choice) == expected


def test_padding_takes_no_place_of_an_expert() -> None:
    valid = every(1, 12)
    valid[0, 9:] = False
    chosen = pairs(ExpertChoice(SIZES, k=2), skewed(12) + ~valid.view(-1, 1), valid)
    assert load(chosen) == [3] * 6  # 2 * 9 / 6


def scaled(logits: np.ndarray, rounds: int) -> np.ndarray:
    """Megatron's and the paper's form: from exp(logits), in plain float64 products."""
    cost = np.exp(logits)
    num_tokens, num_experts = cost.shape
    for _ in range(rounds):
        cost *= num_tokens / num_experts / cost.sum(0)
        cost /= cost.sum(1, keepdims=True)
    return cost


def test_sinkhorn_takes_the_best_of_the_doubly_normalised_matrix() -> None:
    logits = torch.randn(30, 6) + torch.tensor([3.0, 0, 0, 0, 0, 0])
    balanced = scaled(logits.double().numpy(), 10)
    expected = {(t, int(e)) for t, row in enumerate(balanced) for e in np.argsort(-row)[:2]}
    assert pairs(Sinkhorn(SIZES, k=2, rounds=10), logits.softmax(-1)) == expected


def test_sinkhorn_evens_out_the_load_in_training_only() -> None:
    select = Sinkhorn(SIZES, k=1, rounds=10)
    choice = skewed(300)
    assert max(load(pairs(select, choice))) < 2 * 50 < max(load(pairs(select.eval(), choice)))


def test_the_rows_and_columns_of_sinkhorn_converge() -> None:
    valid = torch.ones(30, 1, dtype=torch.bool)
    balanced = Sinkhorn(SIZES, k=1, rounds=50)._balance(probabilities(30).log(), valid).exp()
    torch.testing.assert_close(balanced.sum(1), torch.ones(30))
    torch.testing.assert_close(balanced.sum(0), torch.full((6,), 5.0), rtol=1e-3, atol=0)


def test_base_finds_the_best_even_assignment() -> None:
    sizes = SIZES._replace(num_experts=3)
    for _ in range(5):
        choice = torch.randn(6, 3)
        chosen = pairs(Base(sizes, k=1), choice)
        worth = sum(choice[t, e].item() for t, e in chosen)
        even = [a for a in product(range(3), repeat=6) if all(a.count(e) == 2 for e in range(3))]
        assert worth == pytest.approx(
            max(sum(choice[t, e].item() for t, e in enumerate(a)) for a in even)
        )


@pytest.mark.parametrize(
    "num_tokens,num_experts", [(1, 5), (40, 1), (64, 8), (61, 8), (50, 16), (3, 7)]
)
@pytest.mark.parametrize("kind", ["random", "collapsed", "tied"])
def test_the_assignment_is_worth_as_much_as_scipys(
    num_tokens: int, num_experts: int, kind: str
) -> None:
    rng = np.random.default_rng(0)
    for _ in range(5):
        worth = rng.normal(size=(num_tokens, num_experts))
        worth = worth.round() if kind == "tied" else worth
        worth[:, 0] += 5 * (kind == "collapsed")
        places = np.repeat(np.arange(num_experts), -(-num_tokens // num_experts))
        row, place = linear_sum_assignment(worth[:, places], maximize=True)
        expert = assign(worth)
        assert np.bincount(expert).max() <= -(-num_tokens // num_experts)
        assert worth[row, expert].sum() == pytest.approx(worth[row, places[place]].sum())


@pytest.mark.parametrize("k", [1, 2, 3])
def test_base_gives_every_expert_the_same_load(k: int) -> None:
    chosen = pairs(Base(SIZES, k=k), skewed(24))
    assert load(chosen) == [4 * k] * 6
    assert all(sum(t == token for t, _ in chosen) == k for token in range(24))


@pytest.mark.parametrize("k", [1, 2])
def test_base_serves_a_token_even_if_its_only_expert_is_full(k: int) -> None:
    choice = torch.full((8, 6), -torch.inf)
    choice[:, 2] = 1.0
    assert pairs(Base(SIZES, k=k), choice) == {(t, 2) for t in range(8)}


@pytest.mark.parametrize("cls,knobs", [(Base, {}), (Sinkhorn, {"rounds": 10})])
def test_in_evaluation_balanced_selections_are_plain_top_k(
    cls: type[TopK], knobs: dict[str, int]
) -> None:
    choice = skewed(10)
    assert pairs(cls(SIZES, k=2, **knobs).eval(), choice) == pairs(TopK(SIZES, k=2), choice)


def seq_rule(rows: np.ndarray, budget: int, min_k: int, max_k: int) -> set[tuple[int, int]]:
    """The `budget` best pairs of the given tokens, each token's best min_k first,
    none beyond its best max_k.
    """
    ranked = []
    for t, row in enumerate(rows):
        for place, e in enumerate(np.argsort(-row)[:max_k]):
            ranked.append((0 if place < min_k else 1, -row[e] if place >= min_k else 0, t, int(e)))
    return {(t, e) for _, _, t, e in sorted(ranked)[:budget]}


@pytest.mark.parametrize("min_k,max_k", [(0, 6), (1, 4), (2, 2)])
def test_seq_top_k_takes_the_best_pairs_of_a_sequence(min_k: int, max_k: int) -> None:
    select = SeqTopK(SIZES, k=2, min_k=min_k, max_k=max_k)
    choice = probabilities(14)
    rows = choice.double().numpy()
    first = seq_rule(rows[:7], 14, min_k, max_k)
    second = seq_rule(rows[7:], 14, min_k, max_k)
    assert pairs(select, choice, every(2, 7)) == first | {(t + 7, e) for t, e in second}


@pytest.mark.parametrize("min_k,max_k", [(0, 6), (1, 4), (2, 2)])
def test_seq_top_k_decides_online_in_evaluation(min_k: int, max_k: int) -> None:
    select = SeqTopK(SIZES, k=2, min_k=min_k, max_k=max_k).eval()
    choice = probabilities(11)
    rows = choice.double().numpy()
    expected = set()
    for t in range(11):
        so_far = seq_rule(rows[: t + 1], 2 * (t + 1), min_k, max_k)
        expected |= {pair for pair in so_far if pair[0] == t}
    assert pairs(select, choice) == expected


def test_the_budget_of_seq_top_k_is_spent_in_full_in_training() -> None:
    chosen = pairs(build("seq_top_k", k=2), probabilities(20), every(2, 10))
    assert len(chosen) == 40
    per_token = [sum(t == token for t, _ in chosen) for token in range(20)]
    assert min(per_token) >= 1 and max(per_token) <= 4 and len(set(per_token)) > 1


@pytest.mark.parametrize("length,pairs_each", [(1, 3), (2, 1), (7, 3), (8, 2), (13, 4)])
def test_ranks_count_what_comes_before_also_among_ties(length: int, pairs_each: int) -> None:
    value = (
        torch.randint(0, 4, (2, length, pairs_each)).float().sort(dim=-1, descending=True).values
    )
    flat = value.flatten(1).tolist()
    for b, (full, prefix) in enumerate(
        zip(full_rank(value).flatten(1), prefix_rank(value).flatten(1), strict=True)
    ):
        for i, mine in enumerate(flat[b]):
            before = [j for j, v in enumerate(flat[b]) if (-v, j) < (-mine, i)]
            assert full[i] == len(before)
            assert prefix[i] == sum(j // pairs_each <= i // pairs_each for j in before)
