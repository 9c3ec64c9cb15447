"""What the ratios of repeated pairs say: the middle of them, and how far it may be off.

Knows no sockets, no processes and no clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb, inf
from statistics import median, quantiles

DOUBT = 0.05  # of the intervals do not hold the true median


@dataclass(frozen=True)
class Interval:
    low: float
    middle: float
    high: float

    def __str__(self) -> str:
        if self.low == -inf:
            return f"{self.middle:.3f} (too few for an interval)"
        return f"{self.middle:.3f} ({self.low:.3f} to {self.high:.3f})"


def of_median(values: Sequence[float]) -> Interval:
    """The median with its 95 % interval. Its ends are two of the sorted values (order statistics): that holds whatever
    the distribution, and one wild pair does not move it. It takes six values; with fewer the ends are infinite."""
    ordered = sorted(values)
    place = rank(len(ordered))
    low, high = (ordered[place - 1], ordered[-place]) if place else (-inf, inf)
    return Interval(low, median(ordered), high)


def rank(count: int) -> int:
    """How far from either end of `count` sorted values the interval ends; 0 where there is none. The true median lies
    below the value at that rank when fewer than so many of `count` fair coins show heads."""
    place, outside = 0, 0
    while 2 * (outside := outside + comb(count, place)) <= DOUBT * 2**count:
        place += 1
    return place


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Where the middle nine tenths of single values lie."""
    if len(values) == 1:
        return values[0], values[0]
    cuts = quantiles(values, n=20, method="inclusive")
    return cuts[0], cuts[-1]
