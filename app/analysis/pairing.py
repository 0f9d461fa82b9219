"""Which expert of one run does what an expert of another does? Their numbers are arbitrary, so they
are matched.

In each layer the experts are paired one to one so that as many tokens as possible have paired first
choices (Hungarian method). A token on which the two runs disagree is then one whose first choices
are no pair.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

# of a report: text, and for each layer and token its experts by falling gate
Sample = Mapping[str, Any]


def same_text(one: Sequence[Sample], other: Sequence[Sample]) -> bool:
    """Whether two runs read the same tokens."""
    return [sample["tokens"] for sample in one] == [sample["tokens"] for sample in other]


def paired(
    one: Sequence[Sample], other: Sequence[Sample], experts: tuple[int, int]
) -> list[list[int | None]]:
    """For each layer that both have, and each expert of the other run, its partner in the first;
    None: it has none.

    Args:
        one: samples of the first run.
        other: of the other one, on the same tokens.
        experts: how many they have.
    """
    layers = min(len(one[0]["experts"]), len(other[0]["experts"]))
    return [_paired(_together(one, other, layer, experts)) for layer in range(layers)]


def _together(
    one: Sequence[Sample], other: Sequence[Sample], layer: int, experts: tuple[int, int]
) -> np.ndarray:
    """How many tokens have this first choice in one run and that one in the other."""
    counts = np.zeros(experts, dtype=np.int64)
    for sample, other_sample in zip(one, other, strict=True):
        choices = sample["experts"][layer]
        other_choices = other_sample["experts"][layer]
        for choice, other_choice in zip(choices, other_choices, strict=True):
            # A token may have no expert.
            if choice and other_choice:
                first, _ = choice[0]
                second, _ = other_choice[0]
                counts[first, second] += 1
    return counts


def _paired(counts: np.ndarray) -> list[int | None]:
    """The partner of each expert of the other run, by how many tokens have both (E, E')."""
    partners: list[int | None] = [None] * counts.shape[1]
    rows, columns = linear_sum_assignment(counts, maximize=True)
    for first, second in zip(rows, columns, strict=True):
        partners[second] = int(first)
    return partners
