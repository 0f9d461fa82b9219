"""What a few seeds allow to say about differences: intervals, four verdicts, and how small a
difference could be seen.

Differences are paired: contestant minus baseline on the same seed, so on the same rows in the same
order and, where the shapes agree, from the same initial weights. A negative one is better. All
tests are Student's t.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Literal, NamedTuple

import numpy as np
from scipy import optimize, stats

# of every test; an interval covers 1 - LEVEL
LEVEL = 0.05
# with which a difference is said to be seen
POWER = 0.8
Verdict = Literal["better", "worse", "equivalent", "cannot tell"]


@dataclass(frozen=True)
class Interval:
    """A mean, and half of the width of its interval.

    The half is None with one value, which says nothing of the spread.
    """

    mean: float
    half: float | None

    def times(self, factor: float) -> "Interval":
        """Return the interval of a multiple."""
        half = None if self.half is None else self.half * factor
        return Interval(self.mean * factor, half)


class Judged(NamedTuple):
    """A mean difference, and the error probabilities of the two things to be said of it,
    corrected for their number.
    """

    difference: Interval
    p_difference: float | None  # that there is none
    # that it is as large as the margin
    p_equivalence: float | None
    verdict: Verdict


def interval(values: Sequence[float]) -> Interval:
    """The mean of independent values with the interval that covers
    the true one in 95 % of all cases.
    """
    if len(values) < 2:
        return Interval(fmean(values), None)
    half = stats.t.ppf(1 - LEVEL / 2, len(values) - 1) * stdev(values) / len(values) ** 0.5
    return Interval(fmean(values), float(half))


def difference_p(values: Sequence[float]) -> float:
    """Of the two-sided test that the mean is 0."""
    # no spread: t is 0/0 or infinite
    if np.ptp(values) == 0:
        return float(values[0] == 0)
    return float(stats.ttest_1samp(values, 0).pvalue)


def equivalence_p(values: Sequence[float], margin: float) -> float:
    """Of the two one-sided tests (Schuirmann 1987) that the mean lies outside of +- margin;
    the larger one.
    """
    if np.ptp(values) == 0:
        return float(abs(values[0]) >= margin)
    above = stats.ttest_1samp(values, -margin, alternative="greater").pvalue
    below = stats.ttest_1samp(values, margin, alternative="less").pvalue
    return float(max(above, below))


def holm(ps: Sequence[float], number: int) -> list[float]:
    """The p-values corrected for the number of tests (Holm 1979): at 0.05 all of them together err
    in at most 5 %.

    Tests that are still to be made, as many as `ps` lacks, are taken to come out larger, which is
    the cautious side.
    """
    order = np.argsort(ps, kind="stable")
    factors = number - np.arange(len(ps))
    raised = np.minimum(1, np.maximum.accumulate(factors * np.asarray(ps, float)[order]))
    return [float(p) for p in raised[np.argsort(order, kind="stable")]]


def judged(
    differences: Mapping[str, Sequence[float]], margin: float, number: int
) -> dict[str, Judged]:
    """Return a verdict on each contestant.

    `equivalent` comes first: a difference that is surely smaller than the margin does not matter,
    even if it is significant.

    Args:
        differences: Paired differences to the baseline, by contestant.
        margin: Largest difference that does not matter.
        number: How many contestants will be judged in all, for Holm's correction.
    """
    # A single pair cannot be tested.
    tested = {name: values for name, values in differences.items() if len(values) > 1}
    difference_ps = holm([difference_p(values) for values in tested.values()], number)
    equivalence_ps = holm([equivalence_p(values, margin) for values in tested.values()], number)
    different = dict(zip(tested, difference_ps, strict=True))
    equivalent = dict(zip(tested, equivalence_ps, strict=True))
    return {
        name: _judged(interval(values), different.get(name), equivalent.get(name))
        for name, values in differences.items()
    }


def _judged(difference: Interval, different: float | None, equal: float | None) -> Judged:
    verdict: Verdict = "cannot tell"
    if equal is not None and equal < LEVEL:
        verdict = "equivalent"
    elif different is not None and different < LEVEL:
        verdict = "better" if difference.mean < 0 else "worse"
    return Judged(difference, different, equal, verdict)


def detectable(spread: float, seeds: int) -> float:
    """The smallest true difference that a paired test on so many seeds sees four times out of five.

    `spread` is the standard deviation of a difference, sqrt(2) times that of a run where pairing
    brings nothing.
    """
    free = seeds - 1
    bar = stats.t.ppf(1 - LEVEL / 2, free)

    def lacking(shift: float) -> object:
        # on the other side it is seen next to never
        return stats.nct.sf(bar, free, shift) - POWER

    return float(optimize.brentq(lacking, 1, 10)) * spread / seeds**0.5
