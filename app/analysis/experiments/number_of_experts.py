"""Which tokens take many experts? By layer, by domain, and by how hard a token is to predict.

For routers that leave the number to the data: Huang et al. 2024, arXiv 2403.07652, whose lower
layers and harder tasks take more of them.
"""

from collections.abc import Sequence

import torch
from matplotlib.figure import Figure

from app.analysis.experiments.observe import Numbers, passes
from app.analysis.specialisation import chosen
from app.data.corpus import Batch
from app.runs.read import TrainedRun

TITLE = "How many experts a token takes"
READING = (
    "Lines that fall to the right give the lower layers more experts; one that rises in the second "
    "picture gives the harder tokens more (both seen in Dynamic MoE)."
)
# of the tokens, from the easiest to the hardest
PARTS = 10


def measure(run: TrainedRun, batches: Sequence[Batch]) -> Numbers | None:
    """Experts per token by layer and domain (L, domains), and by difficulty;
    None where all tokens take as many.
    """
    ks = []
    difficulty = []
    domain = []
    for batch, nll, routings in passes(run, batches):
        real = batch["valid"].flatten()
        ks.append(torch.stack([chosen(routing).sum(-1)[real] for routing in routings]))
        difficulty.append(nll.flatten()[real])
        domain.append(batch["domain"].flatten()[real])
    # (L, T), (T,), (T,)
    k = torch.cat(ks, 1).double()
    nats = torch.cat(difficulty)
    of = torch.cat(domain)
    if k.min() == k.max():
        return None
    seen = [number for number in range(len(run.text.domains)) if (of == number).any()]
    parts = nats.argsort().tensor_split(PARTS)
    return {
        "domains": [run.text.domains[number] for number in seen],
        "by_layer": torch.stack([k[:, of == number].mean(1) for number in seen], 1).tolist(),
        "difficulty": [nats[part].mean().item() for part in parts],
        "by_difficulty": [k[:, part].mean().item() for part in parts],
    }


def draw(figure: Figure, numbers: Numbers) -> None:
    """A line for each domain over the layers, and one over the difficulty."""
    by_layer, by_difficulty = figure.subplots(1, 2)
    for name, column in zip(
        numbers["domains"], zip(*numbers["by_layer"], strict=True), strict=True
    ):
        by_layer.plot(column, marker=".", label=name)
    by_layer.legend(fontsize=8)
    by_layer.set(xlabel="layer", ylabel="experts per token", xticks=range(len(numbers["by_layer"])))
    by_difficulty.plot(numbers["difficulty"], numbers["by_difficulty"], marker="o")
    by_difficulty.set(xlabel="nats of the token (tenths of all tokens)", ylabel="experts per token")
