"""The numbers of a report on a run: held-out text by expert, experiments, statistics, likelihood,
curves, budget.
"""

from collections import Counter

import torch
from torch import Tensor

from app.analysis.continuation import continued
from app.analysis.curves import curves_of
from app.analysis.experiments.observe import passes
from app.analysis.experiments.suite import BATCH, conducted
from app.analysis.specialisation import load_by_label
from app.config.saved import dumped
from app.cost.budget import Budget
from app.data.corpus import Batch
from app.data.tokenizers import Tokenizer
from app.runs.read import TrainedRun
from app.training.metrics import (
    LanguageMetric,
    Total,
    routing_statistics,
    routing_sums,
    uniform_multiple,
)
from routers.assignments import gates
from routers.contract import Routing

# experts of a token, at most
SHOWN = 8
# tokens that decide how the next one is written
BEFORE = 8
# rows of every domain that experiments read, at most: they read them many times
FEW = 3
# says nothing here, where a batch is of one domain
BY_BATCH = "maxvio_micro"


@torch.no_grad()
def measure(run: TrainedRun, rows: int, experiments: bool = True) -> dict[str, object]:
    """Everything on the page, of `rows` held-out rows of every domain,
    of those that its validations read.
    """
    text = run.text
    total = Total()
    samples: dict[str, dict[str, object]] = {}
    domains = text.domains
    metric = LanguageMetric(domains)
    for batch, nll, routings in passes(run, text.held_out(rows, BATCH)):
        metric.update(nll, batch["targets"], batch["nbytes"], batch["domain"])
        by_domain = [load_by_label(routing, batch["domain"], len(domains)) for routing in routings]
        total.add(routing_sums(routings) | {"by_domain": torch.stack(by_domain)})
        name = domains[int(batch["domain"][0, 0])]
        samples.setdefault(name, _sample(name, batch, nll, routings, text.tokenizer))
    sums = total.take()
    statistics = routing_statistics(sums)
    return {
        "run": str(run.folder),
        "about": f"{run.checkpoint.name}, {int(sums['tokens']):,} tokens: {_which_rows(run, rows)}",
        "num_experts": run.model.num_experts,
        "domains": domains,
        "samples": list(samples.values()),
        "statistics": {
            name: value.tolist() for name, value in statistics.items() if name != BY_BATCH
        },
        "by_domain": uniform_multiple(sums["by_domain"]).tolist(),
        "values": {name: value.item() for name, value in metric.compute().items()},
        "experiments": conducted(run, min(rows, FEW)) if experiments else {},
        "curves": curves_of(run.folder),
        "budget": Budget.of(run.model, run.seq_len).as_dict(),
        "config": dumped(run.config),
    }


def _which_rows(run: TrainedRun, rows: int) -> str:
    """Describe the validation rows that the report uses, at most `rows` per domain."""
    available = Counter(run.text.rows["domain"][:, 0].tolist()).values()
    used = {min(rows, number) for number in available}
    number = f"{min(used)}" if len(used) == 1 else f"{min(used)} to {max(used)}"
    if rows >= max(available):
        return f"all {number} validation rows per domain, so the loss equals the validation loss"
    return (
        f"{number} of the {max(available)} validation rows per domain, so the loss is near the "
        f"validation loss; --rows {max(available)} uses all"
    )


def _sample(
    name: str, batch: Batch, nll: Tensor, routings: list[Routing], tokenizer: Tokenizer
) -> dict[str, object]:
    """The first row of a batch: its tokens as text, their nats,
    and for each layer and token its experts.
    """
    length = int(batch["valid"][0].sum())
    tokens = batch["tokens"][0, :length].tolist()
    return {
        "name": name,
        "tokens": [_spelled(tokenizer, tokens, place) for place in range(length)],
        "nats": [round(value, 3) for value in nll[0, :length].tolist()],
        "experts": [_experts(gates(routing)[:length]) for routing in routings],
    }


def _spelled(tokenizer: Tokenizer, tokens: list[int], place: int) -> str:
    """A token as it reads after those before it; ¶ for what is no text."""
    return (
        continued(tokenizer, tokens[max(0, place - BEFORE) : place], tokens[place : place + 1])
        or "¶"
    )


def _experts(gate: Tensor) -> list[list[tuple[int, float]]]:
    best = gate.topk(min(SHOWN, gate.size(1)), -1)
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [[(e, round(g, 4)) for e, g in zip(*pair, strict=True) if g] for pair in pairs]
