"""Any score with any selection, weighing, drop, balance and layout:
trains, or is refused in one line.
"""

import random

import pytest
import torch
from torch import Tensor

from app.pages.refused import refused
from app.registry import UserError, names
from tests.support import nano

KINDS = ("score", "select", "weigh", "drop", "balance", "experts")


def draw(number: int) -> list[dict[str, str]]:
    """Random combinations, every name of every kind about equally often."""
    rng = random.Random(0)
    columns = {}
    for kind in KINDS:
        choices = [name for name in names(kind) if (kind, name) != ("experts", "dense")]
        columns[kind] = (choices * (number // len(choices) + 1))[:number]
        rng.shuffle(columns[kind])
    return [{kind: columns[kind][i] for kind in KINDS} for i in range(number)]


def two_steps(combination: dict[str, str]) -> Tensor:
    """The loss after two steps of gradient descent and of the controllers."""
    parts = dict(combination)
    net = nano.model([parts.pop("balance")], experts=parts.pop("experts"), **parts).train()
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
    for step in range(2):
        data = nano.batch(seed=step, padding=2)
        loss, routings = nano.total_loss(net, data, seed=step)
        loss.backward()
        assert all(
            p.grad is not None and p.grad.isfinite().all()
            for p in net.parameters()
            if p.requires_grad
        )
        optimizer.step()
        optimizer.zero_grad()
        net.balancer.update(net.balancer.observe(routings), data["valid"].sum())
    assert all(b.isfinite().all() for b in net.buffers() if b.is_floating_point())
    return net.eval()(**data)[0].mean()


@pytest.mark.nightly
@pytest.mark.parametrize("part", range(4))
def test_two_hundred_random_combinations_train_two_steps_or_are_refused_in_one_line(part):
    refused = 0
    for combination in draw(200)[part::4]:
        try:
            loss = two_steps(combination)
        except (UserError, ValueError) as error:
            assert "\n" not in str(error) and len(str(error)) < 250, combination
            refused += 1
        except Exception as error:
            raise AssertionError(f"{combination}: {error!r}") from error
        else:
            assert loss.isfinite(), combination
    assert refused <= 50 // 3, (
        "a combination has ten router pairs; at most a tenth of the pairs may be refused"
    )


def test_at_most_a_tenth_of_the_pairs_is_refused_each_with_a_reason_in_one_line():
    pairs_refused = list(refused())
    sizes = [len(names(kind)) for kind in KINDS[:5]]
    pairs = sum(a * b for i, a in enumerate(sizes) for b in sizes[:i])
    assert len(pairs_refused) <= pairs / 10
    assert all(reason and "\n" not in reason for *_, reason in pairs_refused)
    assert ("score=linear", "balance=smooth_load") in [
        (first, second) for first, second, _ in pairs_refused
    ]
