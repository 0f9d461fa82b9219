"""What came of the experts, told on the terminal when the run ends: no browser is needed for the
first answer.

    experts on held-out text: ░ little, ▒ even, ▓ more, █ from 1.75 times the even load on, x no
        token
    layer 0  ▒█▓░▓▒x▓
    load: even. The busiest expert, number 5 of layer 2, has 1.52 times the even load; MaxVio is
        0.31 on average
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

# by multiples of the even load, up to the number
SHADES = {0.75: "░", 1.25: "▒", 1.75: "▓", float("inf"): "█"}
# MaxVio below which the load is called so
WORDS = ((0.5, "even"), (2.0, "uneven"), (float("inf"), "very uneven"))


@register("callback")
class LoadMap(RoutingCallback):
    """Tells at the end how even the load of the experts is, what they specialise on,
    and who is dead.
    """

    def __init__(self) -> None:
        self.total = Total()
        self.load = torch.zeros(0)  # (L, domains, E), of the last validation

    def on_validation_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        self.number = max(1, len(labels_of(trainer, "domains")))

    def on_validation_routings(self, routings: list[Routing], batch: Batch) -> None:
        each = [load_by_label(routing, batch["domain"], self.number) for routing in routings]
        self.total.add({"load": torch.stack(each)})

    def on_validation_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        self.load = self.total.take().get("load", self.load).cpu()

    def on_train_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        for line in lines(self.load) if self.load.numel() else []:
            say(line)


def lines(load: Tensor) -> list[str]:
    """Return the lines that describe a load (L, domains, E)."""
    whole = load.sum(1)  # (L, E)
    findings = [_balance(whole), _specialisation(load), _dead(dead_experts(whole), whole.size(1))]
    head = (
        "experts on held-out text: ░ little, ▒ even, ▓ more, █ from 1.75 times the even load on, x "
        "no token"
    )
    rows = [f"layer {layer}  {_shaded(row)}" for layer, row in enumerate(uniform_multiple(whole))]
    return [head, *rows, *(line for line in findings if line)]


def _shaded(row: Tensor) -> str:
    return "".join("x" if load == 0 else _shade(load) for load in row.tolist())


def _shade(load: float) -> str:
    return next(shade for below, shade in SHADES.items() if load < below)


def _balance(load: Tensor) -> str:
    """Return a line on the load (L, E) of the experts."""
    violation = max_violation(load).mean().item()
    multiple = uniform_multiple(load)
    layer, expert = divmod(int(multiple.argmax()), load.size(1))
    word = next(word for below, word in WORDS if violation < below)
    return (
        f"load: {word}. The busiest expert, number {expert} of layer {layer}, has "
        f"{multiple.max():.2f} times the even load; MaxVio is {violation:.2f} on average"
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
    where = ", ".join(
        f"layer {layer}: {number}" for layer, number in enumerate(dead.tolist()) if number
    )
    return (
        (f"dead: {int(dead.sum())} of {total} experts got no token ({where})")
        if where
        else f"dead: none of {total}"
    )
