"""How well does a model predict a text?"""

from collections.abc import Iterable, Iterator
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
    windows: list[Columns] = []
    for document in _documents(rows):
        for cut in _windows(document, window, stride):
            windows.append(cut)
            if len(windows) == size:
                yield _batch(windows, window)
                windows = []
    if windows:
        yield _batch(windows, window)


def _batch(windows: list[Columns], length: int) -> Batch:
    columns = {
        name: torch.stack([_padded(cut, name, length) for cut in windows]) for name in windows[0]
    }
    return cast(Batch, {**columns, "valid": columns["document"] >= 0})


def _documents(rows: Iterable[Batch]) -> Iterator[Columns]:
    """The columns of each document (N,), whatever rows it was cut into."""
    pieces: list[Columns] = []
    for batch in rows:
        for row in range(len(batch["tokens"])):
            for piece in _parts(batch, row):
                if pieces and _document_of(piece) != _document_of(pieces[0]):
                    yield _joined(pieces)
                    pieces = []
                pieces.append(piece)
    if pieces:
        yield _joined(pieces)


def _document_of(piece: Columns) -> tuple[int, int]:
    return int(piece["domain"][0]), int(piece["document"][0])


def _joined(pieces: list[Columns]) -> Columns:
    return {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}


def _parts(batch: Batch, row: int) -> Iterator[Columns]:
    """The documents in a row, without its padding."""
    valid = batch["valid"][row]
    columns = {
        name: values[row][valid] for name, values in cast(Columns, batch).items() if name != "valid"
    }
    starts = (columns["document"].diff() != 0).nonzero().flatten() + 1
    for places in torch.arange(len(columns["tokens"])).tensor_split(starts):
        if len(places):
            yield {name: values[places] for name, values in columns.items()}


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
    # Padding keeps the domain of the row: an index of the metric.
    fillers = {"targets": IGNORED, "document": -1, "topic": -1, "domain": int(cut["domain"][0])}
    missing = length - len(cut[name])
    return torch.nn.functional.pad(cut[name], (0, missing), value=fillers.get(name, 0))
