"""Windows with a stride: every token is predicted once,
of as much of its document as the window holds.
"""

import math

import pytest
import torch

from app.analysis.likelihood import evaluate, strided
from app.config.compose import composed
from app.data.corpus import Batch
from app.model.assemble import build_model

ROW = 6
SIZE = 60


def rows(lengths: list[int]) -> list[Batch]:
    """Documents of these lengths one after another, cut into rows, two rows a batch."""
    ids = torch.cat([torch.full((n,), i) for i, n in enumerate(lengths)])
    total = len(ids)
    tokens = torch.randint(1, SIZE, (total + 1,), generator=torch.Generator().manual_seed(0))
    columns = {
        "tokens": tokens[:-1],
        "targets": tokens[1:],
        "document": ids,
        "domain": torch.zeros_like(ids),
        "topic": ids,
        "nbytes": torch.ones_like(ids),
    }
    empty = {"targets": -100, "document": -1, "topic": -1}
    room = -total % (2 * ROW)
    padded = {
        n: torch.nn.functional.pad(v, (0, room), value=empty.get(n, 0)) for n, v in columns.items()
    }
    padded["valid"] = padded["document"] >= 0
    cut = {name: values.view(-1, 2, ROW) for name, values in padded.items()}
    return [Batch(**{n: v[i] for n, v in cut.items()}) for i in range(len(cut["tokens"]))]  # type: ignore[typeddict-item]


def targets(lengths: list[int], stride: int, window: int = 8) -> list[tuple[int, int, int]]:
    """Of every predicted token: its document, its place there,
    and how many tokens stand before it in its window.
    """
    found = []
    starts: dict[int, int] = {}
    for batch in strided(rows(lengths), window, stride, 2):
        assert bool((batch["targets"][~batch["valid"]] == -100).all())
        for row in range(len(batch["tokens"])):
            document = int(batch["document"][row, 0])
            start = starts.get(document, 0)
            places = (batch["targets"][row] >= 0).nonzero().flatten().tolist()
            found += [(document, start + place, place) for place in places]
            starts[document] = start + stride
    return found


@pytest.mark.parametrize("stride", [1, 3, 8])
def test_every_token_is_predicted_once_of_all_that_the_window_holds(stride: int) -> None:
    lengths = [20, 1, 5, 8, 13]
    found = targets(lengths, stride)
    assert [(d, p) for d, p, _ in found] == [
        (d, p) for d, n in enumerate(lengths) for p in range(n)
    ]
    assert all(before >= min(place, 8 - stride) for _, place, before in found)


def test_a_window_that_holds_the_document_and_one_token_at_a_time_agree_with_the_definition() -> (
    None
):
    torch.manual_seed(0)
    model = build_model(composed(["model=nano", "experts=coarse"]), SIZE).eval()
    batches = rows([9, 4])
    tokens = torch.cat([batch["tokens"][batch["valid"]] for batch in batches])
    following = torch.cat([batch["targets"][batch["valid"]] for batch in batches])
    nats = []
    for start, stop in ((0, 9), (9, 13)):
        for place in range(start, stop):
            seen = tokens[max(start, place - 4) : place + 1]  # five tokens at most
            nats.append(-model.logits(seen[None])[0, -1].log_softmax(-1)[following[place]].item())
    found = evaluate(model, strided(batches, 5, 1, 3), ["text"])
    assert found["nats"] == pytest.approx(sum(nats) / 13, rel=1e-5)
    assert found["bpb"] == pytest.approx(sum(nats) / 13 / math.log(2), rel=1e-5)
