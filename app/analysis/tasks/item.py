"""A question with several answers, of which a model chooses the likeliest."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from app.data.corpus import IGNORED
from app.model.transformer import Transformer

Tokens = tuple[int, ...]
BATCH = 64  # answers of a forward pass


class Option(NamedTuple):
    """What is read, beginning with the separator, and what is judged after it."""

    context: Tokens
    text: Tokens


class Item(NamedTuple):
    """The right option is the first; `domain` is that of the text, None where it has none."""

    options: tuple[Option, ...]
    domain: int | None = None


class Score(NamedTuple):
    """Share of right answers, the standard error that so many items have, and what guessing gives."""

    accuracy: float
    error: float
    chance: float
    items: int


def score(model: Transformer, items: Sequence[Item]) -> Score:
    """Of a model in evaluation mode. An answer is right if it is likelier than all others; a tie of m counts 1/m."""
    likelihoods = iter(_likelihoods(model, [(o, item.domain) for item in items for o in item.options]))
    points = [_points([next(likelihoods) for _ in item.options]) for item in items]
    mean = sum(points) / len(items)
    chance = sum(1 / len(item.options) for item in items) / len(items)
    return Score(mean, (mean * (1 - mean) / len(items)) ** 0.5, chance, len(items))


def _points(likelihoods: list[float]) -> float:
    best = max(likelihoods)
    return (likelihoods[0] == best) / likelihoods.count(best)


@torch.no_grad()
def _likelihoods(model: Transformer, options: Sequence[tuple[Option, int | None]]) -> list[float]:
    """log p(text | context) of each, in nats."""
    device, found = model.embedding.weight.device, []
    for start in range(0, len(options), BATCH):
        some = options[start : start + BATCH]
        tokens, targets, valid = (part.to(device) for part in padded([option for option, _ in some]))
        domain = _domains([number for _, number in some], tokens)
        nll, _ = model(tokens, targets, valid, torch.zeros_like(tokens), domain=domain)
        found += (-nll.double().sum(-1)).tolist()
    return found


def padded(options: Sequence[Option]) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, targets and validity (B, S) of rows that end with padding."""
    length = max(len(context) + len(text) for context, text in options) - 1
    tokens = torch.zeros(len(options), length, dtype=torch.int64)
    targets, valid = torch.full_like(tokens, IGNORED), torch.zeros_like(tokens, dtype=torch.bool)
    for row, (context, text) in enumerate(options):
        whole = torch.tensor(context + text)
        tokens[row, : len(whole) - 1], valid[row, : len(whole) - 1] = whole[:-1], True
        targets[row, len(context) - 1 : len(whole) - 1] = whole[len(context) :]
    return tokens, targets, valid


def _domains(numbers: Sequence[int | None], tokens: Tensor) -> Tensor | None:
    known = [number for number in numbers if number is not None]
    if len(known) < len(numbers):
        return None
    return tokens.new_tensor(known)[:, None].expand_as(tokens)
