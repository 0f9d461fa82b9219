"""When have the routers made up their minds? The share of the final choices that an earlier
checkpoint makes as well.

Router saturation of OLMoE: Muennighoff et al. 2024, arXiv 2409.02060, section 5.1.
"""

from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from app.analysis.experiments.observe import Numbers, passes
from app.analysis.specialisation import chosen
from app.data.corpus import Batch
from app.registry import UserError
from app.runs.read import TrainedRun, read_run
from app.training.checkpoints import step_of
from app.training.messages import watched
from routers.contract import Routing

TITLE = "How early the routers decide"
READING = (
    "A line near 1 at an early step belongs to a layer whose routing is settled, near k/E to one "
    "that still chooses anew (OLMoE, section 5.1; more checkpoints give more points: "
    "trainer.keep_checkpoints)."
)


def measure(run: TrainedRun, batches: Sequence[Batch]) -> Numbers | None:
    """By step and layer, of the checkpoints that are left; None where this is the only one."""
    final = [_choices(routings) for _, _, routings in passes(run, batches)]
    shares = {}
    for path in watched(_before(run), TITLE):
        try:
            earlier = read_run(path)
        except UserError:
            # A damaged checkpoint gives no point.
            continue
        shares[step_of(path)] = _shared(earlier, batches, final)
    if not shares:
        return None
    return {"steps": list(shares), "saturation": list(shares.values())}


def _choices(routings: Sequence[Routing]) -> Tensor:
    """Which experts each token has (L, T, E)."""
    return torch.stack([chosen(routing) for routing in routings])


def _before(run: TrainedRun) -> list[Any]:
    """The checkpoints before that of the run, from the first to the last."""
    paths = sorted(run.checkpoint.parent.glob("*.ckpt"), key=step_of)
    return [path for path in paths if step_of(path) < step_of(run.checkpoint)]


def _shared(run: TrainedRun, batches: Sequence[Batch], final: list[Tensor]) -> list[float]:
    """The share of the final choices that a run makes, by layer."""
    same = torch.zeros(())
    total = torch.zeros(())
    for (_, _, routings), last in zip(passes(run, batches), final, strict=True):
        same = same + (_choices(routings) & last).sum((1, 2))
        total = total + last.sum((1, 2))
    return [float(share) for share in same / total.clamp_min(1)]


def draw(figure: Figure, numbers: Numbers) -> None:
    """A line for each layer over the steps."""
    axes = figure.subplots()
    for layer, column in enumerate(zip(*numbers["saturation"], strict=True)):
        axes.plot(numbers["steps"], column, marker="o", label=f"layer {layer}")
    axes.set(
        xlabel="step", ylabel="share of the final choices", ylim=(0, 1), xticks=numbers["steps"]
    )
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
