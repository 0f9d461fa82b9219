"""How replaceable are the best experts of a token? They are masked, and the next ones work in their
place.

Dai et al. 2024, arXiv 2401.06066, section 4.5 and figure 4: 0 to 4 sixteenths of the routed
experts, those with the highest probability, are masked for each token, in all layers. The gates are
those of a router without them.
"""

from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor

from app.analysis.experiments.intervene import forbidden, moe_layers
from app.analysis.experiments.observe import Numbers
from app.analysis.likelihood import evaluate
from app.data.corpus import Batch
from app.runs.read import TrainedRun
from app.training.messages import watched

TITLE = "Without the best experts of every token"
READING = (
    "The steeper the loss rises, the less can other experts replace the best ones of a token "
    "(DeepSeekMoE, figure 4: fine-grained experts with a shared one rise the steepest)."
)
SIXTEENTHS = 4


def measure(run: TrainedRun, batches: Sequence[Batch]) -> Numbers | None:
    """Nats per token by the number of masked experts;
    None where no further one is left to choose.
    """
    layers = moe_layers(run.model)
    num_experts = run.model.num_experts
    most = max(layer.router.top_k for layer in layers)
    counts = sorted({-(-num_experts * part // 16) for part in range(SIXTEENTHS + 1)})
    counts = [count for count in counts if count + most <= num_experts]
    nats = []
    for count in watched(counts, TITLE):
        with forbidden(layers, lambda logits, count=count: best(logits, count)):  # type: ignore[misc]
            nats.append(evaluate(run.model, batches, run.text.domains)["nats"])
    return {"num_experts": num_experts, "masked": counts, "nats": nats} if len(counts) > 1 else None


def best(logits: Tensor, count: int) -> Tensor:
    """The `count` largest of every row of logits (T, E): (T, E) bool."""
    return torch.zeros_like(logits, dtype=torch.bool).scatter(
        -1, logits.topk(count, -1).indices, True
    )


def draw(figure: Figure, numbers: Numbers) -> None:
    """A line over the number of masked experts."""
    axes = figure.subplots()
    axes.plot(numbers["masked"], numbers["nats"], marker="o")
    axes.set(
        xlabel=f"masked experts of {numbers['num_experts']}",
        ylabel="nats per token",
        xticks=numbers["masked"],
    )
    axes.grid(alpha=0.3)
