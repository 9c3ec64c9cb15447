"""The numbers as Prometheus reads them: names, what they mean, and the text of a scrape.

The one module that knows prometheus-client, which is imported with it: only where somebody may ask. Knows no request.
"""

from __future__ import annotations

import platform
import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from itertools import accumulate
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from proxy import __version__
from proxy.observe.counters import Counters, Histogram
from proxy.stores.base import StoreStats

CONTENT_TYPE = CONTENT_TYPE_LATEST
_NAME = "session_proxy_"
KINDS = ("prompt", "cached", "completion", "reasoning", "summary_prompt", "summary_completion")  # of tokens


@dataclass
class Present:
    """How it stands at the moment of a scrape; None where the store could not tell."""

    in_flight: int
    waiting: int
    cache_limit: int
    draining: bool
    store: StoreStats | None


class Metrics(Collector):
    """Renders the counters."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._present: Present | None = None
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def render(self, present: Present) -> bytes:
        """The answer to a scrape, of `CONTENT_TYPE`."""
        self._present = present
        return generate_latest(self._registry)

    def collect(self) -> Iterable[Metric]:
        yield _build()
        yield from _counted(self._counters)
        yield from _timed(self._counters)
        if present := self._present:
            yield from _gauges(present)


def _build() -> Metric:
    versions = {
        "version": __version__,
        "python": platform.python_version(),
        "aiohttp": metadata.version("aiohttp"),
        "sqlite": sqlite3.sqlite_version,
    }
    family = GaugeMetricFamily(_NAME + "build_info", "What runs here; always 1.", labels=list(versions))
    family.add_metric(list(versions.values()), 1)
    return family


def _counted(counters: Counters) -> Iterable[Metric]:
    yield _counter(
        "requests",
        "Requests by what became of them (recorded, passed, sessions, health, other), upstream, and class of the status"
        " (none: the client went before it).",
        ["route", "upstream", "status"],
        {(route, to, f"{status}xx" if status else "none"): n for (route, to, status), n in counters.requests.items()},
    )
    yield _counter(
        "turns",
        "Turns by decision and outcome: complete, nothing (the upstream's word stands, such as an error of its own, and"
        " there was nothing to keep), unmarked (all came and nothing in it says so: kept as cut), cut (it broke off or"
        " was stopped), broken (no answer that could be read), unkept (the store failed), failed (no answer at all).",
        ["decision", "outcome"],
        counters.turns,
    )
    unrecorded = {(reason,): count for reason, count in counters.unrecorded.items()}
    yield _counter(
        "unrecorded",
        "Whole answers that were handed on and are not in the history: error (the upstream reported one within a 200),"
        " empty (it says nothing), unreadable (no text that any client reads), encoding (one that is not undone here).",
        ["reason"],
        unrecorded,
    )
    rejected = {(reason,): count for reason, count in counters.rejected.items()}
    yield _counter("rejected", "Errors of the proxy's own, by code.", ["reason"], rejected)
    summaries = {(outcome,): counters.summaries[outcome] for outcome in ("made", "failed")}
    yield _counter("summaries", "Requests for summaries, by outcome: made, failed.", ["outcome"], summaries)
    yield _counter(
        "tokens",
        "Tokens of recorded turns as the upstreams counted them; cached are among prompt, reasoning among completion."
        " Those of requests for summaries are kinds of their own.",
        ["kind"],
        {(kind,): getattr(counters, kind) for kind in KINDS},
    )


def _counter(name: str, what: str, labels: list[str], counts: Mapping[Any, int]) -> Metric:
    family = CounterMetricFamily(_NAME + name, what, labels=labels)
    for values, count in counts.items():
        family.add_metric([str(value) for value in values], count)
    return family


def _timed(counters: Counters) -> Iterable[Metric]:
    for name, what, histograms in (
        ("request", "From the head of a request to the end of its answer.", counters.total),
        ("first_byte", "From the head of a request to the head of its answer.", counters.first),
        ("overhead", "What the proxy itself took, before it asked and after the upstream's end.", counters.overhead),
    ):
        family = HistogramMetricFamily(f"{_NAME}{name}_seconds", what, labels=["route"])
        for route, histogram in histograms.items():
            family.add_metric([route], _buckets(histogram), histogram.total)
        yield family
    for name, what, histogram in (
        ("queue", "How long requests waited for their place in a session's line, of those that did.", counters.queue),
        ("commit", "Until a turn was on disk.", counters.commit),
    ):
        yield HistogramMetricFamily(f"{_NAME}{name}_seconds", what, _buckets(histogram), histogram.total)


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    bounds = [*[f"{bound:g}" for bound in histogram.bounds], "+Inf"]
    return list(zip(bounds, accumulate(histogram.counts), strict=True))


def _gauges(present: Present) -> Iterable[Metric]:
    yield _gauge("in_flight", "Turns and pass-throughs whose answer has not ended.", present.in_flight)
    yield _gauge("waiting", "Requests that stand in line.", present.waiting)
    yield _gauge("draining", "1 while the proxy is being stopped.", int(present.draining))
    yield _gauge("store_up", "Whether the store could be read for this answer.", int(present.store is not None))
    if (store := present.store) is None:
        return
    yield _gauge("sessions", "Sessions that were heard of within sessions.ttl.", store.sessions)
    yield _gauge("database_bytes", "Size of the database and its log.", store.size)
    yield _gauge("cache_sessions", "Sessions whose history is in memory.", store.cached)
    yield _gauge("cache_bytes", "What they take.", store.cached_size)
    yield _gauge("cache_limit_bytes", "What they may take: limits.cache.", present.cache_limit)
    loads = {("hit",): store.hits, ("miss",): store.misses}
    yield _counter("cache_loads", "Reads of a session, from memory or not.", ["result"], loads)


def _gauge(name: str, what: str, value: float) -> Metric:
    return GaugeMetricFamily(_NAME + name, what, value)
