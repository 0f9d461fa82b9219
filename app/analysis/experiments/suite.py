"""All experiments on the experts of a trained run, on its held-out text;
each changes one thing and trains nothing.
"""

from collections.abc import Sequence
from typing import Protocol

from matplotlib.figure import Figure

from app.analysis.experiments import (
    experts_per_token,
    labels,
    masking,
    merging,
    number_of_experts,
    redundancy,
    removal,
    routers_certainty,
    saturation,
    skill_mixture,
    without_shared,
)
from app.analysis.experiments.observe import Numbers
from app.data.corpus import Batch
from app.runs.read import TrainedRun

BATCH = 8  # rows of a forward pass


class Experiment(Protocol):
    """What a file here offers."""

    TITLE: str
    # how to read the picture, and which figure of a paper it answers
    READING: str

    def measure(self, run: TrainedRun, batches: Sequence[Batch]) -> Numbers | None:
        """Its numbers, as JSON has them; None where a run like this cannot be asked."""

    def draw(self, figure: Figure, numbers: Numbers) -> None:
        """Its picture."""


EXPERIMENTS: dict[str, Experiment] = {
    "masking": masking,
    "experts_per_token": experts_per_token,
    "without_shared": without_shared,
    "removal": removal,
    "redundancy": redundancy,
    "merging": merging,
    "number_of_experts": number_of_experts,
    "labels": labels,
    "routers_certainty": routers_certainty,
    "saturation": saturation,
    "skill_mixture": skill_mixture,
}


def conducted(run: TrainedRun, rows: int) -> dict[str, Numbers]:
    """The numbers of all that can be asked of a run, by name,
    on `rows` held-out rows of every domain.
    """
    batches = list(run.text.held_out(rows, BATCH))
    found = {name: experiment.measure(run, batches) for name, experiment in EXPERIMENTS.items()}
    return {name: numbers for name, numbers in found.items() if numbers is not None}
