"""How many experts does a token need? The trained model with fewer and with more of them, as its
router ranks them.

Dai et al. 2024, arXiv 2401.06066, section 4.5 and figure 5. The router is not trained again.
"""

from collections.abc import Sequence

from matplotlib.figure import Figure

from app.analysis.experiments.intervene import moe_layers, with_k
from app.analysis.experiments.observe import Numbers
from app.analysis.likelihood import evaluate
from app.data.corpus import Batch
from app.runs.read import TrainedRun
from app.training.messages import watched

TITLE = "Fewer and more experts per token"
READING = (
    "Where the line is flat to the left of the mark, fewer experts would have done (DeepSeekMoE, "
    "figure 5: 4 of its 7 experts are as good as GShard's two, twice as wide)."
)
POINTS = 8


def measure(run: TrainedRun, batches: Sequence[Batch]) -> Numbers | None:
    """Nats per token by the number of experts per token;
    None where the selection has no such number.
    """
    trained = moe_layers(run.model)[0].router.top_k
    nats = {}
    for k in watched(grid(trained, run.model.num_experts), TITLE):
        if model := with_k(run, k):
            nats[k] = evaluate(model, batches, run.text.domains)["nats"]
    return {"trained": trained, "k": [*nats], "nats": [*nats.values()]} if len(nats) > 1 else None


def grid(trained: int, num_experts: int) -> list[int]:
    """What is tried: up to twice as many as the router was trained with, which is among them."""
    most = min(2 * trained, num_experts)
    return sorted({trained, *range(1, most + 1, -(-most // POINTS))})


def draw(figure: Figure, numbers: Numbers) -> None:
    """A line over the number of experts, and a mark at the trained one."""
    axes = figure.subplots()
    axes.plot(numbers["k"], numbers["nats"], marker="o")
    axes.axvline(numbers["trained"], color="0.6", linestyle="--")
    axes.set(
        xlabel="experts per token (dashed: as trained)",
        ylabel="nats per token",
        xticks=numbers["k"],
    )
    axes.grid(alpha=0.3)
