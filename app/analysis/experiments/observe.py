"""What the routers of a trained model choose on its held-out text."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from app.data.corpus import Batch
from app.runs.read import TrainedRun
from routers.contract import Routing

# What an experiment has measured: values that JSON can hold, by name.
Numbers = dict[str, Any]


@torch.no_grad()
def passes(
    run: TrainedRun, batches: Iterable[Batch]
) -> Iterator[tuple[Batch, Tensor, list[Routing]]]:
    """Each batch with the nats of its targets (B, S) and a routing for each MoE layer."""
    for batch in batches:
        inputs = (batch["tokens"], batch["targets"], batch["valid"], batch["document"])
        yield (batch, *run.model(*inputs, domain=batch["domain"]))
