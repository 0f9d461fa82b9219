"""Expert statistics against cases worked on paper and against NumPy."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from app.training.metrics import (
    STATISTICS,
    LanguageMetric,
    Total,
    coefficient_of_variation,
    dead_experts,
    load_entropy,
    max_violation,
    routing_statistics,
    routing_sums,
)
from routers.contract import Routing
from tests.support.routings import route


def statistics(*forwards: list[Routing]) -> dict[str, Tensor]:
    total = Total()
    for routings in forwards:
        total.add(routing_sums(routings))
    return routing_statistics(total.take())


def test_every_statistic_has_words() -> None:
    assert list(statistics([route(torch.tensor([[0], [1]]), 2)])) == list(STATISTICS)


def test_an_even_load_has_no_violation_and_all_experts_take_part() -> None:
    even = torch.tensor([[5.0, 5, 5, 5]])
    assert (
        max_violation(even).item()
        == dead_experts(even).item()
        == coefficient_of_variation(even).item()
        == 0
    )
    assert load_entropy(even).item() == pytest.approx(math.log(4))


def test_a_worked_case_of_four_tokens_and_four_experts() -> None:
    expert = torch.tensor([[0, 1], [0, 2], [0, 1], [0, 1]])  # load 4 3 1 0, mean 2
    # probabilities 1/2 1/4 1/8 1/8
    logits = torch.tensor([[math.log(4), math.log(2), 0.0, 0.0]]).expand(4, 4)
    seen = statistics([route(expert, 4, logits)])
    worked = {
        "maxvio": 1.0,
        "dead": 1,
        "load_max": 2.0,
        "load_min": 0.0,
        "load_median": 1.0,
        "load_cv": math.sqrt((4 + 1 + 1 + 4) / 4) / 2,
        "load_entropy": 0.5 * math.log(2) + 3 / 8 * math.log(8 / 3) + 1 / 8 * math.log(8),
        "importance_max": 2.0,
        "mean_k": 2.0,
        "drop_rate": 0.0,
        "token_entropy": 1.75 * math.log(2),
        "margin": 0.25,
        "z": math.log(8) ** 2,
        "logit_rms": math.sqrt((math.log(4) ** 2 + math.log(2) ** 2) / 4),
    }
    for name, value in worked.items():
        assert seen[name].item() == pytest.approx(value, abs=1e-6), name


def test_a_collapsed_router_shows_dead_experts_and_the_largest_violation() -> None:
    num_experts = 8
    k = 2
    seen = statistics([route(torch.tensor([[0, 1]]).expand(16, k), num_experts)])
    assert seen["maxvio"].item() == num_experts / k - 1
    assert seen["dead"].item() == num_experts - k
    assert seen["effective_experts"].item() == pytest.approx(k)


def test_a_router_that_drops_half_shows_a_half_and_the_same_load() -> None:
    expert = torch.randint(0, 4, (32, 1))
    dropping = route(expert, 4, kept=torch.arange(32) % 2 == 0)
    seen = statistics([dropping])
    assert seen["drop_rate"].item() == 0.5
    assert seen["maxvio"].item() == statistics([route(expert, 4)])["maxvio"].item()


def test_padding_and_the_unassigned_count_nowhere() -> None:
    logits = torch.randn(4, 3)
    padded = torch.cat((logits, 100 * torch.ones(2, 3)))
    valid = torch.tensor([[True] * 4 + [False] * 2])
    expert = torch.tensor([[0], [1], [1], [2]])
    real = statistics([route(expert, 3, logits)])
    seen = statistics(
        [route(torch.cat((expert, torch.tensor([[-1], [-1]]))), 3, padded, valid=valid)]
    )
    for name, value in real.items():
        torch.testing.assert_close(seen[name], value, msg=name)


def test_all_but_the_micro_batch_violation_are_the_same_however_the_tokens_are_cut() -> None:
    torch.manual_seed(0)
    expert = torch.randint(0, 6, (2, 24, 2))
    logits = torch.randn(2, 24, 6)
    whole = statistics([route(expert[layer], 6, logits[layer]) for layer in range(2)])
    cut = [
        [route(expert[i, part], 6, logits[i, part]) for i in range(2)]
        for part in torch.arange(24).split(6)
    ]
    seen = statistics(*cut)
    for name in whole.keys() - {"maxvio_micro"}:
        torch.testing.assert_close(seen[name], whole[name], msg=name)
    alone = torch.stack([statistics(routings)["maxvio"] for routings in cut])
    torch.testing.assert_close(seen["maxvio_micro"], alone.mean(0))


def test_statistics_equal_numpy() -> None:
    torch.manual_seed(1)
    expert = torch.randint(-1, 5, (64, 3))
    logits = 3 * torch.randn(64, 5)
    seen = statistics([route(expert, 5, logits)])
    chosen = expert.numpy()
    x = logits.double().numpy()
    load = np.array([(chosen == e).sum() for e in range(5)])
    p = np.exp(x) / np.exp(x).sum(1, keepdims=True)
    ordered = np.sort(p, 1)
    share = load / load.sum()
    brute = {
        "maxvio": load.max() / load.mean() - 1,
        "load_cv": load.std() / load.mean(),
        "load_entropy": -(share * np.log(share)).sum(),
        "token_entropy": -(p * np.log(p)).sum(1).mean(),
        "margin": (ordered[:, -1] - ordered[:, -2]).mean(),
        "z": (np.log(np.exp(x).sum(1)) ** 2).mean(),
        "logit_rms": np.sqrt((x**2).mean()),
        "mean_k": (chosen >= 0).sum() / 64,
    }
    for name, value in brute.items():
        assert seen[name].item() == pytest.approx(value, rel=1e-5), name


def test_a_forbidden_expert_leaves_the_statistics_finite() -> None:
    logits = torch.tensor([[0.0, -torch.inf, 0.0]]).expand(4, 3)
    seen = statistics([route(torch.zeros(4, 1, dtype=torch.int64), 3, logits)])
    assert all(value.isfinite().all() for value in seen.values())
    assert seen["logit_rms"].item() == 0
    assert seen["token_entropy"].item() == pytest.approx(math.log(2))


def test_bits_per_byte_of_a_worked_case() -> None:
    metric = LanguageMetric(["a", "b", "unseen"])
    nll = torch.tensor([[math.log(2), math.log(4), 0.0], [math.log(16), math.log(16), 0.0]])
    targets = torch.tensor([[1, 2, -100], [3, 4, -100]])
    nbytes = torch.tensor([[1, 2, 7], [1, 1, 7]])
    metric.update(nll, targets, nbytes, torch.tensor([[0, 0, 0], [1, 1, 1]]))
    values = metric.compute()
    assert values["bpb_a"].item() == pytest.approx(1.0)
    assert values["bpb_b"].item() == pytest.approx(4.0)
    assert values["bpb"].item() == pytest.approx(2.5)
    assert values["nats"].item() == pytest.approx(11 * math.log(2) / 4)
    assert "bpb_unseen" not in values
