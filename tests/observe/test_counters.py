"""What is counted of requests, and how values spread."""

from __future__ import annotations

from bisect import bisect_left

from hypothesis import given
from hypothesis import strategies as st

from proxy.core.usage import TokenCounts
from proxy.observe.counters import LONG, SHORT, Counters, Histogram


@given(st.lists(st.floats(0, 2000) | st.sampled_from(LONG)))
def test_a_histogram_counts_each_value_in_one_bucket(values: list[float]) -> None:
    spread = Histogram(LONG)
    for value in values:
        spread.add(value)
    for at, bound in enumerate(LONG):
        assert sum(spread.counts[: at + 1]) == len([value for value in values if value <= bound])
    assert sum(spread.counts) == len(values) and spread.total == sum(values)


def test_a_request_is_counted_by_route_and_missing_times_are_skipped() -> None:
    numbers = Counters()
    numbers.answered("recorded", "api", 200, 0.3, 0.2, 0.001)
    numbers.answered("passed", "api", 0, 2.0, None, None)
    assert numbers.requests == {("recorded", "api", 2): 1, ("passed", "api", 0): 1}
    assert numbers.total["recorded"].counts[bisect_left(LONG, 0.3)] == numbers.total["passed"].counts[8] == 1
    assert numbers.first["recorded"].total == 0.2 and "passed" not in numbers.first
    assert numbers.overhead["recorded"].counts[bisect_left(SHORT, 0.001)] == 1 and "passed" not in numbers.overhead


def test_tokens_add_up() -> None:
    numbers = Counters()
    for _ in range(2):
        numbers.used(TokenCounts(prompt=12, reply=9, thoughts=5, cached=8))
    assert (numbers.prompt, numbers.cached, numbers.completion, numbers.reasoning) == (24, 16, 18, 10)
