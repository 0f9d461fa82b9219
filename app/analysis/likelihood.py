"""How well does a model predict a text?"""

from collections.abc import Iterable

import torch

from app.data.corpus import Batch
from app.model.transformer import Transformer
from app.training.metrics import LanguageMetric


@torch.no_grad()
def evaluate(model: Transformer, batches: Iterable[Batch], domains: list[str]) -> dict[str, float]:
    """`nats`, `ppl`, `bpb` and `bpb_DOMAIN` of a model in evaluation mode."""
    metric = LanguageMetric(domains)
    for batch in batches:
        nll, _ = model(batch["tokens"], batch["targets"], batch["valid"], batch["document"], domain=batch["domain"])
        metric.update(nll, batch["targets"], batch["nbytes"], batch["domain"])
    return {name: value.item() for name, value in metric.compute().items()}
