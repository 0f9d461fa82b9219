"""What came of the experts, told on the terminal when the run ends: no browser is needed for the first answer.

    experts of held-out text, · none to █ 2 times the even load, x dead
    layer 0  ▒█▓░▓▒x▓
    load: even. The busiest expert of a layer has 1.31 times the even load (MaxVio 0.31; layer 2: 0.52)
    specialisation: the choice of experts tells 24 % of the domain (0.39 of 1.61 nats)
    dead: 1 of 32 experts got no token (layer 0: 1)

All of it is of the last validation. Writes no metric.
"""

import lightning
import torch
from torch import Tensor

from app.analysis.specialisation import load_by_label, mutual_information
from app.registry import register
from app.training.messages import say
from app.training.metrics import Total, dead_experts, max_violation, uniform_multiple
from app.training.module import Batch
from callbacks.routing_callback import RoutingCallback
from callbacks.writing import labels_of
from routers.contract import Routing

SHADES = "·░▒▓█"
FULL = 2.0  # multiple of the even load that has the darkest shade
WORDS = ((0.5, "even"), (2.0, "uneven"), (float("inf"), "very uneven"))  # MaxVio below which the load is called so


@register("callback")
class LoadMap(RoutingCallback):
    """Tells at the end how even the load of the experts is, what they specialise on, and who is dead."""

    def __init__(self) -> None:
        self.total = Total()
        self.load = torch.zeros(0)  # (L, domains, E), of the last validation

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.number = max(1, len(labels_of(trainer, "domains")))

    def on_validation_routings(self, routings: list[Routing], batch: Batch) -> None:
        each = [load_by_label(routing, batch["domain"], self.number) for routing in routings]
        self.total.add({"load": torch.stack(each)})

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.load = self.total.take().get("load", self.load).cpu()

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        for line in lines(self.load) if self.load.numel() else []:
            say(line)


def lines(load: Tensor) -> list[str]:
    """What is told of a load (L, domains, E)."""
    whole = load.sum(1)  # (L, E)
    said = [_balance(max_violation(whole)), _specialisation(load), _dead(dead_experts(whole), whole.size(1))]
    head = f"experts of held-out text, {SHADES[0]} none to {SHADES[-1]} {FULL:g} times the even load, x dead"
    rows = [f"layer {layer}  {_shaded(row)}" for layer, row in enumerate(uniform_multiple(whole))]
    return [head, *rows, *(line for line in said if line)]


def _shaded(row: Tensor) -> str:
    steps = (row / FULL * (len(SHADES) - 1)).round().clamp(max=len(SHADES) - 1).int().tolist()
    return "".join("x" if load == 0 else SHADES[step] for load, step in zip(row.tolist(), steps, strict=True))


def _balance(violation: Tensor) -> str:
    mean, worst = violation.mean().item(), int(violation.argmax())
    word = next(word for below, word in WORDS if mean < below)
    return (
        f"load: {word}. The busiest expert of a layer has {1 + mean:.2f} times the even load (MaxVio {mean:.2f}; layer "
        f"{worst}: {violation[worst]:.2f})"
    )


def _specialisation(load: Tensor) -> str:
    """Nothing where the text has one domain."""
    domains = load.sum((0, 2)) / load.sum()
    most = torch.special.entr(domains).sum().item()
    known = mutual_information(load).mean().item()
    told = f"{known / most:.0%} of the domain ({known:.2f} of {most:.2f} nats)" if most else ""
    return told and f"specialisation: the choice of experts tells {told}"


def _dead(dead: Tensor, num_experts: int) -> str:
    total = len(dead) * num_experts
    where = ", ".join(f"layer {layer}: {number}" for layer, number in enumerate(dead.tolist()) if number)
    return f"dead: {int(dead.sum())} of {total} experts got no token ({where})" if where else f"dead: none of {total}"
