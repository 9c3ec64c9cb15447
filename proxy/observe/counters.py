"""Counts requests, turns, tokens and times as plain numbers, which are cheap to increment during a request.

Knows no request, no clock and no format; times are in seconds. Labels come from the code or the configuration, never
from a client, so the number of counters does not grow with time.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Sequence

from proxy.core.usage import TokenCounts

LONG = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0)
SHORT = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)


class Histogram:
    """A histogram with fixed buckets. `counts[i]` counts values up to `bounds[i]` and above the bound before; the
    last count is for values above all bounds. `total` is the sum of the values."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


class Counters:
    """Holds all counters of the process, which start at zero with it."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, str, int]] = Counter()  # by route, upstream, first digit of the status
        self.turns: Counter[tuple[str, str]] = Counter()  # by decision, outcome
        self.unrecorded: Counter[str] = Counter()  # by why the upstream's whole answer is not in the history
        self.rejected: Counter[str] = Counter()  # by the code of the error
        self.summaries: Counter[str] = Counter()  # requests for them, by outcome: made, failed
        self.summary_prompt = self.summary_completion = 0  # tokens of those that were made
        self.prompt = self.cached = self.completion = self.reasoning = 0  # tokens
        self.total: defaultdict[str, Histogram] = defaultdict(lambda: Histogram(LONG))  # by route, as the next two
        self.first: defaultdict[str, Histogram] = defaultdict(lambda: Histogram(LONG))
        self.overhead: defaultdict[str, Histogram] = defaultdict(lambda: Histogram(SHORT))
        self.queue = Histogram(LONG)  # of those that waited
        self.commit = Histogram(SHORT)

    def answered(
        self, route: str, upstream: str, status: int, total: float, first: float | None, overhead: float | None
    ) -> None:
        """Count a request that has ended, with its times in seconds. `status` is 0 if the client disconnected before a
        head was sent."""
        self.requests[route, upstream, status // 100] += 1
        self.total[route].add(total)
        if first is not None:
            self.first[route].add(first)
        if overhead is not None:
            self.overhead[route].add(overhead)

    def summarized(self, told: TokenCounts | None) -> None:
        """Count one successful request for a summary, and its tokens if the upstream counted them."""
        self.summaries["made"] += 1
        self.summary_prompt += told.prompt if told else 0
        self.summary_completion += told.reply if told else 0

    def used(self, told: TokenCounts) -> None:
        """Add the tokens of a turn. `cached` is part of `prompt`, `reasoning` part of `completion`."""
        self.prompt += told.prompt
        self.cached += told.cached
        self.completion += told.reply
        self.reasoning += told.thoughts
