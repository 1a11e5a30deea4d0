"""Paired differences with 95 % intervals. A document has one question, so that documents are the units."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.stats import norm, ttest_1samp

CONFIDENCE = 0.95
NEAR = 1e-9


class Difference(NamedTuple):
    """Mean of ``ours - theirs`` over pairs, and its interval."""

    mean: float
    low: float
    high: float


def difference(ours: Sequence[float], theirs: Sequence[float]) -> Difference:
    """Of numbers, by Student's t; a single pair has no bounds (NaN)."""
    pairs = np.subtract(ours, theirs)
    if len(pairs) < 2:
        return Difference(float(pairs.mean()), math.nan, math.nan)
    # Where all pairs are alike it would warn that it knows no more than their mean.
    if not np.ptp(pairs):
        return Difference(*[float(pairs[0])] * 3)
    low, high = ttest_1samp(pairs, 0).confidence_interval(CONFIDENCE)
    return Difference(float(pairs.mean()), float(low), float(high))


def difference_of_shares(ours: Sequence[bool], theirs: Sequence[bool]) -> Difference:
    """Of yes and no, by Tango's score interval (Statistics in Medicine 17, 1998).

    Unlike Student's and a bootstrap's it has a width where all pairs agree: 20 of 20 prove little.
    """
    n = len(ours)
    won = sum(a and not b for a, b in zip(ours, theirs, strict=True))
    lost = sum(b and not a for a, b in zip(ours, theirs, strict=True))
    reach = float(norm.ppf((1 + CONFIDENCE) / 2))

    def beyond(delta: float, side: int) -> float:
        """Zero where the difference ``delta`` is just not refuted."""
        linear = (2 * n - won + lost) * delta - won - lost
        lost_share = (math.sqrt(max(0.0, linear**2 + 8 * n * lost * delta * (1 - delta))) - linear) / (4 * n)
        variance = n * (2 * lost_share + delta * (1 - delta))
        return won - lost - n * delta + side * reach * math.sqrt(max(0.0, variance))

    mean = (won - lost) / n
    # Where all pairs are alike the mean itself is a root as well, and not the bound.
    low = -1.0 if lost == n else float(brentq(beyond, -1, mean - NEAR, args=(-1,)))
    high = 1.0 if won == n else float(brentq(beyond, mean + NEAR, 1, args=(1,)))
    return Difference(mean, low, high)
