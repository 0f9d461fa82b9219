"""What a race keeps of a run: the FLOPs of what was chosen, and the curve as it was written."""

from types import SimpleNamespace
from typing import Any

import pytest

from app.config.compose import composed
from app.model.assemble import build_model
from app.races.record import chosen_flops
from app.races.work import reason

# parameters of an expert of the nano model
EXPERT = 3 * 32 * 32


def run(*overrides: str) -> Any:
    return SimpleNamespace(
        model=build_model(composed(["model=nano", "experts=coarse", *overrides]), 64)
    )


def test_flops_are_of_the_experts_that_were_chosen() -> None:
    """A training token costs 6 FLOPs for every parameter that it meets;
    the model has two layers.
    """
    assert chosen_flops(run("router=top_p", "experts.top_k=2"), 3.5) == pytest.approx(
        6 * 2 * 1.5 * EXPERT
    )
    assert chosen_flops(run("router=top_p", "experts.top_k=2"), 1.0) == pytest.approx(
        -6 * 2 * EXPERT
    )
    assert chosen_flops(run("router=topk", "experts.top_k=2"), 2.0) == 0
    assert chosen_flops(run("experts=dense", "balance=none"), None) == 0


@pytest.mark.parametrize(
    ("code", "said", "why"),
    [
        (2, "a table\nerror: router=typo: unknown\n", "router=typo: unknown"),
        (1, "Traceback\nRuntimeError: no\n", "RuntimeError: no"),
        (-9, "step 3\n", "killed by SIGKILL (out of memory?)"),
        (-11, "", "killed by SIGSEGV"),
        (1, "", "exit status 1"),
    ],
)
def test_a_failure_has_a_reason_in_a_line(code: int, said: str, why: str) -> None:
    assert reason(code, said) == why
