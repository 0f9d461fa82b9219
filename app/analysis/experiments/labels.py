"""What do experts specialise on: the word that they read, the word that comes next, the topic, or
the domain?

OLMoE, Muennighoff et al. 2024, arXiv 2409.02060, sections 5.3 and 5.4: of all tokens with one
label, the share that goes to one expert. Here: to the one that gets most of them, over all labels
with at least `FEWEST` tokens, weighted by their number. A favourite of few tokens has a large share
by chance, so the same is told of labels dealt out anew.
"""

from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor

from app.analysis.experiments.observe import Numbers, passes
from app.analysis.specialisation import chosen
from app.data.corpus import Batch
from app.runs.read import TrainedRun

TITLE = "What experts specialise on"
READING = (
    "The share of the tokens of one label that its favourite expert serves: experts specialise on "
    "that whose line is farthest above its dashed one, which is chance (OLMoE, sections 5.3 and "
    "5.4)."
)
FEWEST = 16  # tokens of a label
KINDS = {"word read": "tokens", "word to come": "targets", "topic": "topic", "domain": "domain"}


def measure(run: TrainedRun, batches: Sequence[Batch]) -> Numbers | None:
    """By kind of label and layer, of the labels of the text and
    of the same ones dealt out by chance.
    """
    have, labels = [], {kind: [] for kind in KINDS}  # type: ignore[var-annotated]
    for batch, _, routings in passes(run, batches):
        real = batch["valid"].flatten()
        have.append(torch.stack([chosen(routing)[real] for routing in routings]))
        for kind, column in KINDS.items():
            labels[kind].append(batch[column].flatten()[real])  # type: ignore[literal-required]
    whole = torch.cat(have, 1).double()  # (L, T, E)
    dealt = torch.randperm(whole.size(1), generator=torch.Generator().manual_seed(0))
    found: dict[str, dict[str, list[float]]] = {"shares": {}, "chance": {}}
    for kind, each in labels.items():
        label = torch.cat(each)
        if (label >= 0).any():
            found["shares"][kind] = favourite(whole, label).tolist()
            found["chance"][kind] = favourite(whole, label[dealt]).tolist()
    return found


def favourite(have: Tensor, label: Tensor) -> Tensor:
    """The weighted mean over labels (T,) of the share at their favourite expert (L,),
    of have (L, T, E).
    """
    known = label >= 0
    ids, id_of_token, times = label[known].unique(return_inverse=True, return_counts=True)
    # Of a label with few tokens, the favourite has a large share by chance.
    frequent = times >= min(FEWEST, int(times.max()))
    counts = have.new_zeros(len(have), len(ids), have.size(-1))  # (L, U, E)
    counts.index_add_(1, id_of_token, have[:, known])
    at_favourite = counts.amax(-1)[:, frequent].sum(1)
    return at_favourite / times[frequent].sum()


def draw(figure: Figure, numbers: Numbers) -> None:
    """A line for each kind of label over the layers."""
    axes = figure.subplots()
    for kind, shares in numbers["shares"].items():
        (line,) = axes.plot(shares, marker="o", label=kind)
        axes.plot(numbers["chance"][kind], color=line.get_color(), linestyle="--")
    layers = range(len(next(iter(numbers["shares"].values()))))
    axes.set(
        xlabel="layer (dashed: by chance)",
        ylabel="share at the favourite expert",
        ylim=(0, 1),
        xticks=layers,
    )
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
