"""Effective speed-up: how much longer must the baseline train for the same loss?

The baseline also runs for other numbers of steps, each with a schedule of its own that ends with
the run: a point in the middle of one run is no end of another. Between them its loss is straight in
the logarithm of the steps.
"""

import math
from collections.abc import Mapping
from itertools import pairwise


def share_for(loss: float, ladder: Mapping[float, float]) -> float | None:
    """The share of a whole run after which the baseline has this loss; None outside of what was
    run.

    Args:
        loss: of somebody's whole run.
        ladder: the baseline's loss at the end of a run of each share.
    """
    for low, high in pairwise(sorted(ladder)):
        if ladder[high] <= loss <= ladder[low]:
            part = (ladder[low] - loss) / (ladder[low] - ladder[high])
            return float(low * math.exp(part * math.log(high / low)))
    return None


def bound(loss: float, ladder: Mapping[float, float]) -> str:
    """What is known of a loss that lies outside:
    the share is less than the shortest, or more than the longest.
    """
    return f"< {min(ladder)}" if loss > max(ladder.values()) else f"> {max(ladder)}"
