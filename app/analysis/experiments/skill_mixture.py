"""Which skills does a mixture take, on which text, token by token and over depth? Of layouts whose
experts have names.

The alpha of PSEC (Liu et al. 2025, arXiv 2502.05932, section 4): one for all layers with the score
`context`, one for each layer where every layer has a router of its own.
"""

from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor

from app.analysis.experiments.observe import Numbers, passes
from app.data.corpus import Batch
from app.model.skills import names_of
from app.runs.read import TrainedRun
from routers.assignments import gates

TITLE = "What the mixture takes of each skill"
READING = (
    "Above: the mean share of each skill in each layer, of the text of one domain, and how far its "
    "tokens lie from it (one standard deviation). Where the order of the skills changes between "
    "domains the router tells them apart; flat lines are one mixture for all layers. Below: the "
    "shares of the first tokens of a row, mean over the layers."
)
# of a row that are drawn
TOKENS = 64


def measure(run: TrainedRun, batches: Sequence[Batch]) -> Numbers | None:
    """Mean and spread over tokens (domains, L, k), and the tokens of one row each (T, k);
    None without named skills.
    """
    skills = names_of(run.model)
    if not skills:
        return None
    alphas: dict[str, list[Tensor]] = {}
    rows: dict[str, list[list[float]]] = {}
    for batch, _, routings in passes(run, batches):
        alpha = torch.stack([gates(routing) for routing in routings])  # (L, T, k)
        domain = run.text.domains[int(batch["domain"][0, 0])]
        real = batch["valid"].flatten()
        alphas.setdefault(domain, []).append(alpha[:, real])
        rows.setdefault(domain, alpha[:, : int(batch["valid"][0].sum())].mean(0)[:TOKENS].tolist())
    whole = {domain: torch.cat(parts, 1).double() for domain, parts in alphas.items()}
    return {
        "skills": skills,
        "domains": [*whole],
        "mean": [alpha.mean(1).tolist() for alpha in whole.values()],
        "spread": [alpha.std(1, correction=0).tolist() for alpha in whole.values()],
        "tokens": [rows[domain] for domain in whole],
    }


def draw(figure: Figure, numbers: Numbers) -> None:
    """A column for each domain: over the layers, and over the tokens of a row."""
    skills = numbers["skills"]
    domains = numbers["domains"]
    figure.set_size_inches(3 * max(2, len(domains)), 5)
    depth, tokens = figure.subplots(2, len(domains), sharey="row", squeeze=False)
    for column, domain in enumerate(domains):
        mean = numbers["mean"][column]
        spread = numbers["spread"][column]
        for place, skill in enumerate(skills):
            # Bars stand beside each other, so that none hides another.
            shift = 0.1 * (place - (len(skills) - 1) / 2)
            depth[column].errorbar(
                [layer + shift for layer in range(len(mean))],
                [layer[place] for layer in mean],
                [layer[place] for layer in spread],
                marker="o",
                capsize=3,
                label=skill,
            )
            tokens[column].plot([alpha[place] for alpha in numbers["tokens"][column]])
        depth[column].set(title=domain, xlabel="layer", xticks=range(len(mean)))
        tokens[column].set(xlabel="token of a row")
    depth[0].legend(fontsize=8)
    for axes in (depth[0], tokens[0]):
        axes.set_ylabel("share (alpha)")
