"""How well does a model predict a text?"""

from collections.abc import Iterable, Iterator
from itertools import groupby, islice
from typing import cast

import torch

from app.data.corpus import IGNORED, Batch
from app.model.transformer import Transformer
from app.training.metrics import LanguageMetric

Columns = dict[str, torch.Tensor]


@torch.no_grad()
def evaluate(model: Transformer, batches: Iterable[Batch], domains: list[str]) -> dict[str, float]:
    """`nats`, `ppl`, `bpb` and `bpb_DOMAIN` of a model in evaluation mode,
    computed where the model is.
    """
    metric = LanguageMetric(domains)
    device = model.embedding.weight.device
    for batch in batches:
        near = {name: values.to(device) for name, values in cast(Columns, batch).items()}
        nll, _ = model(
            near["tokens"], near["targets"], near["valid"], near["document"], domain=near["domain"]
        )
        metric.update(nll.cpu(), batch["targets"], batch["nbytes"], batch["domain"])
    return {name: value.item() for name, value in metric.compute().items()}


def strided(rows: Iterable[Batch], window: int, stride: int, size: int) -> Iterator[Batch]:
    """The documents in windows of which each begins `stride` tokens after the one before and
    predicts what is new.

    Args:
        rows: of whole documents, in their order.
        window: tokens of a window.
        stride: in 1..window.
        size: windows of a batch.
    """
    windows = (cut for document in _documents(rows) for cut in _windows(document, window, stride))
    while some := list(islice(windows, size)):
        padded = {
            name: torch.stack([_padded(cut, name, window) for cut in some]) for name in some[0]
        }
        yield Batch(**padded, valid=padded["document"] >= 0)  # type: ignore[typeddict-item]


def _documents(rows: Iterable[Batch]) -> Iterator[Columns]:
    """The columns of each document (N,), whatever rows it was cut into."""
    parts = (
        part for batch in rows for row in range(len(batch["tokens"])) for part in _parts(batch, row)
    )
    for _, same in groupby(
        parts, key=lambda part: (int(part["domain"][0]), int(part["document"][0]))
    ):
        pieces = list(same)
        yield {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}


def _parts(batch: Batch, row: int) -> Iterator[Columns]:
    """The documents in a row, without its padding."""
    known = cast(Columns, batch)
    columns = {
        name: values[row][known["valid"][row]] for name, values in known.items() if name != "valid"
    }
    starts = (columns["document"].diff() != 0).nonzero().flatten() + 1
    for place in torch.arange(len(columns["tokens"])).tensor_split(starts):
        if len(place):
            yield {name: values[place] for name, values in columns.items()}


def _windows(document: Columns, window: int, stride: int) -> Iterator[Columns]:
    length = len(document["tokens"])
    start = 0
    known = 0
    while known < length:
        cut = {name: values[start : start + window] for name, values in document.items()}
        cut["targets"] = cut["targets"].clone()
        cut["targets"][: known - start] = IGNORED
        known = start + len(cut["targets"])
        start += stride
        yield cut


def _padded(cut: Columns, name: str, length: int) -> torch.Tensor:
    filler = {"targets": IGNORED, "document": -1, "topic": -1, "domain": int(cut["domain"][0])}.get(
        name, 0
    )
    return torch.nn.functional.pad(cut[name], (0, length - len(cut[name])), value=filler)
