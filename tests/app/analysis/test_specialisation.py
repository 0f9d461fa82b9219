"""Who works with whom: planted cases, and NumPy or scikit-learn's definition written out."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from app.analysis.specialisation import (
    chosen,
    co_activation,
    first_choice,
    joint_choice,
    load_by_label,
    mutual_information,
    quantile_of_counts,
    rmoe_information,
    tokens_by_k,
    typical_tokens,
    weight_similarity,
)
from experts.contract import Stack
from tests.support.routings import route


def test_experts_that_serve_one_domain_each_show_a_diagonal() -> None:
    domain = torch.tensor([[0, 0, 1, 1, 2, -1]])
    table = load_by_label(route(torch.tensor([[0], [0], [1], [1], [2], [2]]), 3), domain, 3)
    assert table.tolist() == [[2, 0, 0], [0, 2, 0], [0, 0, 1]]


def test_mutual_information_is_the_entropy_for_equal_labels_and_nothing_for_independent_ones() -> (
    None
):
    equal = 3 * torch.eye(4)
    independent = torch.outer(torch.tensor([1.0, 2, 3]), torch.tensor([4.0, 0, 1]))
    assert mutual_information(equal).item() == pytest.approx(math.log(4))
    assert mutual_information(independent).item() == pytest.approx(0, abs=1e-12)


def test_co_activation_counts_the_tokens_that_have_both() -> None:
    pairs = co_activation(route(torch.tensor([[0, 1], [0, 1], [1, 2], [2, -1]]), 3))
    assert pairs.tolist() == [[2, 2, 0], [2, 3, 1], [0, 1, 2]]


def test_experts_per_token_and_their_percentiles() -> None:
    valid = torch.tensor([[True] * 4 + [False]])
    counts = tokens_by_k(
        route(torch.tensor([[0, 1], [0, -1], [2, 1], [1, 0], [-1, -1]]), 3, valid=valid)
    )
    assert counts.tolist() == [0, 1, 3, 0]
    assert [quantile_of_counts(counts, q).item() for q in (0.05, 0.25, 0.5, 1.0)] == [1, 1, 2, 2]


def test_percentiles_of_counts_equal_numpy() -> None:
    k = np.random.default_rng(0).integers(0, 7, 101)
    counts = torch.from_numpy(np.bincount(k, minlength=8)).float()
    for q in (0.05, 0.5, 0.95, 1.0):
        assert quantile_of_counts(counts, q).item() == np.quantile(k, q, method="inverted_cdf")


def test_the_first_choice_has_the_largest_gate_and_the_unassigned_have_none() -> None:
    routing = route(torch.tensor([[0, 2], [1, -1], [-1, -1]]), 3)
    routing = routing._replace(gate=torch.tensor([0.2, 0.8, 0.0, 0.0, 0.0, 0.0]))
    assert first_choice(routing).tolist() == [2, 1, -1]
    assert chosen(routing).tolist() == [[True, False, True], [False, True, False], [False] * 3]


def test_a_layer_that_permutes_the_choice_of_another_tells_all_of_it() -> None:
    below = torch.arange(12) % 4
    joint = joint_choice(below, (below + 1) % 4, 4)
    assert mutual_information(joint).item() == pytest.approx(math.log(4))


def test_rmoe_information_equals_its_definition_in_numpy() -> None:
    torch.manual_seed(0)
    low, high = (
        route(torch.zeros(20, 1, dtype=torch.int64), 16, 4 * torch.randn(20, 16)) for _ in range(2)
    )
    assert rmoe_information(low, high).item() == pytest.approx(
        _definition(low.scores, high.scores), rel=1e-9
    )


def _definition(low: Tensor, high: Tensor) -> float:
    """sklearn.metrics.mutual_info_score of the digitised probabilities of every token, summed."""
    bins = np.linspace(0, 1, 100)
    total = 0.0
    for one, other in zip(low.numpy(), high.numpy(), strict=True):
        a = np.digitize(one, bins)
        b = np.digitize(other, bins)
        for x in set(a):
            for y in set(b):
                p = ((a == x) & (b == y)).mean()
                total += p * math.log(p / ((a == x).mean() * (b == y).mean())) if p else 0
    return total


def test_equal_experts_have_similarity_one_and_orthogonal_ones_none() -> None:
    stack = Stack(3, 4, 2)
    with torch.no_grad():
        for weight in (stack.w_in, stack.w_out):
            weight.copy_(torch.randn_like(weight[:1]).expand_as(weight))
    assert weight_similarity(stack).item() == pytest.approx(1)
    with torch.no_grad():
        stack.w_in.copy_(torch.eye(4)[:3, :, None].expand(3, 4, 4))
        stack.w_out.copy_(torch.eye(4)[:3, None, :].expand(3, 2, 4))
    assert weight_similarity(stack).item() == pytest.approx(0)
    assert weight_similarity(Stack(1, 4, 2)) is None


def test_similarity_is_the_papers_figure_rescaled() -> None:
    torch.manual_seed(0)
    stack = Stack(16, 8, 4)
    for weight in stack.parameters():
        torch.nn.init.normal_(weight)
    gate, up = stack.w_in.detach().numpy().reshape(16, 8, 2, 4).transpose(2, 0, 1, 3).mean(-1)
    pieces = [
        p / np.linalg.norm(p, axis=1, keepdims=True)
        for p in (gate, up, stack.w_out.detach().numpy().mean(1))
    ]
    joined = np.concatenate(pieces, 1)
    paper = (joined @ joined.T).mean()  # with the diagonal of 3
    assert weight_similarity(stack).item() == pytest.approx((16 * paper - 3) / 15 / 3, rel=1e-5)


def test_the_typical_tokens_of_an_expert_are_those_it_has_more_often_than_others() -> None:
    tokens = torch.tensor([7, 7, 7, 9, 9, 9, 5, 5, 5, 5])
    have = torch.tensor([[1, 0]] * 3 + [[0, 1]] * 3 + [[1, 0], [0, 1]] * 2).bool()
    places = typical_tokens(have, tokens, 2)
    assert [tokens[place[0]].item() for place in places] == [7, 9]
    # the common token is typical of none
    assert [len(place) for place in places] == [1, 1]
