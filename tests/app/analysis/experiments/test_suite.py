"""The experiments on a trained run: values that can be known beforehand, through the real `train.py`."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from app.analysis.experiments import experts_per_token, masking, removal, without_shared
from app.analysis.experiments.suite import BATCH, EXPERIMENTS, conducted, picture
from app.analysis.likelihood import evaluate
from app.data.corpus import Batch
from app.runs.read import TrainedRun, read_run

Train = Callable[..., Path]
Trained = Callable[..., tuple[TrainedRun, list[Batch]]]


@pytest.fixture
def trained(train: Train, text: Path, tmp_path: Path) -> Trained:
    """A short run on code and digits, and its held-out rows."""

    def run(*overrides: str) -> tuple[TrainedRun, list[Batch]]:
        (tmp_path / "digits.txt").write_text("".join(f"{7 * n % 1009} " for n in range(9000)))
        sources = f"data.sources={{code:{{path:{text}}},digits:{{path:{tmp_path / 'digits.txt'}}}}}"
        folder = train("trainer.max_steps=20", "optimizer.lr=0.02", *overrides, source=("data=mix", sources))
        found = read_run(folder)
        return found, list(found.text.held_out(2, BATCH))

    return run


def nats(run: TrainedRun, batches: list[Batch]) -> float:
    return evaluate(run.model, batches, run.text.domains)["nats"]


def test_an_expert_of_one_domain_is_missed_by_that_domain_alone(trained: Trained) -> None:
    run, batches = trained("router=oracle", "experts=coarse", "experts.num_experts=6", "balance=none")
    found = removal.measure(run, batches)
    assert found is not None and found["domains"] == ["code", "digits"]
    assert len(found["rise"]) == len(run.model.blocks)
    for layer in found["rise"]:
        assert all(code != 0 and digits == 0 for code, digits in layer[:2])
        assert all(code == 0 and digits != 0 for code, digits in layer[2:4])
        assert layer[4:] == [[0, 0], [0, 0]], "nobody uses them"


def test_the_masks_are_sixteenths_and_leave_enough_to_choose_from(trained: Trained) -> None:
    run, batches = trained("experts=coarse", "experts.num_experts=32", "experts.top_k=2")
    found = masking.measure(run, batches)
    assert found is not None and found["masked"] == [0, 2, 4, 6, 8]
    assert found["nats"][0] == nats(run, batches) and len({*found["nats"]}) == 5


def test_a_sweep_over_k_has_the_trained_one_and_its_loss(trained: Trained) -> None:
    run, batches = trained("experts=coarse", "experts.num_experts=6", "experts.top_k=2")
    found = experts_per_token.measure(run, batches)
    assert found is not None and found["k"] == [1, 2, 3, 4] and found["trained"] == 2
    assert found["nats"][1] == nats(run, batches) and len({*found["nats"]}) == 4


def test_the_sweep_is_of_a_coarse_grid_where_many_experts_work() -> None:
    assert experts_per_token.grid(7, 64) == [1, 3, 5, 7, 9, 11, 13]
    assert experts_per_token.grid(8, 10) == [1, 3, 5, 7, 8, 9]


def test_the_shared_expert_is_missed(trained: Trained) -> None:
    run, batches = trained("experts=deepseek", "experts.num_experts=4", "experts.segments=2", "experts.num_shared=1")
    found = without_shared.measure(run, batches)
    assert found is not None and found["as trained"] == nats(run, batches)
    assert found["one more routed instead"] > found["as trained"]


@pytest.mark.parametrize(
    ("overrides", "lacking"),
    [
        (["router=top_p"], {"experts_per_token", "without_shared"}),
        (["router=switch", "experts=coarse", "experts.num_experts=2"], {"without_shared"}),
        (["router=hash", "balance=none"], {"without_shared"}),
        (["router=expert_choice", "balance=none", "allow_non_causal=true"], {"without_shared"}),
        (["experts=coarse", "experts.top_k=8"], {"masking", "without_shared"}),
    ],
)
def test_a_run_is_asked_what_it_can_be_asked_and_every_number_is_one(
    trained: Trained, overrides: list[str], lacking: set[str]
) -> None:
    run, _ = trained("trainer.max_steps=2", *overrides)
    found = conducted(run, 1)
    assert EXPERIMENTS.keys() - found.keys() == lacking
    for name, numbers in found.items():
        assert picture(name, numbers).startswith(b"\x89PNG")
        assert all(math.isfinite(value) for value in flat(numbers))


def flat(value: object) -> list[float]:
    if isinstance(value, dict):
        return [each for inner in value.values() for each in flat(inner)]
    if isinstance(value, list):
        return [each for inner in value for each in flat(inner)]
    return [value] if isinstance(value, int | float) else []
