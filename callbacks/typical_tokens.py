"""Which tokens does each expert like? After every `every`-th validation, as text.

Of the first `rows` rows of every validation batch; `app.analysis.specialisation` says what is
typical.
"""

import lightning
import torch
from torch import Tensor

from app.analysis.continuation import continued
from app.analysis.specialisation import chosen, typical_tokens
from app.registry import register, require
from app.training.module import Batch
from app.training.tags import Tag
from callbacks.routing_callback import RoutingCallback
from callbacks.writing import event_writer, step_of, table
from routers.contract import Routing

# tokens of context on either side
AROUND = 8


@register("callback")
class TypicalTokens(RoutingCallback):
    """Writes the most typical tokens of every expert.

    Args:
        every: validations between two texts; at least 1.
        rows: of each validation batch that are looked at; at least 1.
        number: of tokens per expert; at least 1.
        layers: which; negative ones count from the last; null: all.

    Raises:
        ValueError: a knob is out of its range.
    """

    tags = (
        Tag(
            "specialisation/typical_tokens/LAYER",
            "the most typical tokens of every expert, the first one in its context",
            "text",
            "text",
            "rank 0",
        ),
    )

    kept = ("looks",)

    def __init__(self, *, every: int, rows: int, number: int, layers: list[int] | None) -> None:
        for name, value in (("every", every), ("rows", rows), ("number", number)):
            require(name, value, value >= 1, "must be at least 1")
        self.every = every
        self.rows = rows
        self.number = number
        self.layers = layers
        self.looks = 0
        self.tokens: list[Tensor] = []  # (T,) of each batch
        self.have: list[Tensor] = []  # (L, T, E) bool

    def on_validation_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        self.tokens = []
        self.have = []
        self.tokenizer = getattr(getattr(trainer, "datamodule", None), "tokenizer", None)
        self.active = (
            trainer.is_global_zero and self.tokenizer is not None and self.looks % self.every == 0
        )

    def on_validation_routings(self, routings: list[Routing], batch: Batch) -> None:
        if self.active:
            tokens = batch["tokens"][: self.rows].flatten()
            self.tokens.append(tokens)
            self.have.append(torch.stack([chosen(routing)[: len(tokens)] for routing in routings]))

    @torch.no_grad()
    def on_validation_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        self.looks += 1
        writer = event_writer(trainer)
        if writer is None or not self.have:
            return
        tokens = torch.cat(self.tokens).cpu()
        have = torch.cat(self.have, 1).cpu()
        layers = range(len(have)) if self.layers is None else self.layers
        for layer in (index % len(have) for index in layers):
            places = typical_tokens(have[layer], tokens, self.number)
            rows = [[str(expert), *self._row(tokens, found)] for expert, found in enumerate(places)]
            text = table(["expert", "typical tokens", "in context"], rows)
            writer.add_text(f"specialisation/typical_tokens/{layer}", text, step_of(trainer))
        self.tokens = []
        self.have = []

    def _row(self, tokens: Tensor, places: list[int]) -> tuple[str, str]:
        if not places:
            return "", ""
        words = "  ".join(
            f"«{self._text(tokens, place - AROUND, place, place + 1)}»" for place in places
        )
        first = places[0]
        left = self._text(tokens, first - AROUND, first - AROUND, first)
        word = self._text(tokens, first - AROUND, first, first + 1)
        return (
            words,
            f"{left}«{word}»{self._text(tokens, first - AROUND, first + 1, first + 1 + AROUND)}",
        )

    def _text(self, tokens: Tensor, before: int, start: int, stop: int) -> str:
        """What stands from `start` to `stop`, as it reads after the tokens from `before` on."""
        assert self.tokenizer is not None
        before = max(0, before)
        start = max(0, start)
        return continued(self.tokenizer, tokens[before:start].tolist(), tokens[start:stop].tolist())
