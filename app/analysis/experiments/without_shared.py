"""What does the shared expert know that no routed one knows? It is left out, and one more routed
expert works instead.

Dai et al. 2024, arXiv 2401.06066, section 4.5: the loss of DeepSeekMoE 2B rises from 1.808 to
2.414.
"""

from collections.abc import Sequence

from matplotlib.figure import Figure

from app.analysis.experiments.intervene import has_shared, moe_layers, unshared, with_k
from app.analysis.experiments.observe import Numbers
from app.analysis.likelihood import evaluate
from app.data.corpus import Batch
from app.runs.read import TrainedRun

TITLE = "Without the shared expert"
READING = (
    "The higher the second bar, the less do routed experts know of what the shared one does "
    "(DeepSeekMoE, section 4.5: 1.808 becomes 2.414)."
)


def measure(run: TrainedRun, batches: Sequence[Batch]) -> Numbers | None:
    """Nats per token with the shared expert, and with one more routed expert instead;
    None where there is none.
    """
    model = with_k(run, moe_layers(run.model)[0].router.top_k + 1)
    if model is None or not has_shared(run):
        return None
    with unshared(moe_layers(model)):
        without = evaluate(model, batches, run.text.domains)["nats"]
    return {
        "as trained": evaluate(run.model, batches, run.text.domains)["nats"],
        "one more routed instead": without,
    }


def draw(figure: Figure, numbers: Numbers) -> None:
    """Two bars."""
    axes = figure.subplots()
    axes.bar_label(
        axes.bar([*numbers], [*numbers.values()], color=["tab:blue", "tab:red"]), fmt="%.3f"
    )
    axes.set(ylabel="nats per token")
