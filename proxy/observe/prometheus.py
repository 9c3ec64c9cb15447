"""Renders the counters as Prometheus reads them: metric names, help texts, and the text of a scrape.

The only module that imports prometheus-client, so it is imported only if the admin listener is configured. Knows no
request.
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
    """Holds the current values at the moment of a scrape. `store` is None while the store is unavailable."""

    in_flight: int
    waiting: int
    cache_limit: int
    draining: bool
    store: StoreStats | None


class Metrics(Collector):
    """Collects the counters for prometheus-client, and renders a scrape."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._present: Present | None = None
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def render(self, present: Present) -> bytes:
        """Render the body of a scrape, of the type `CONTENT_TYPE`."""
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
        "Requests by route (recorded, passed, sessions, health, other), upstream and status class ('none': the client"
        " disconnected first).",
        ["route", "upstream", "status"],
        {(route, to, f"{status}xx" if status else "none"): n for (route, to, status), n in counters.requests.items()},
    )
    yield _counter(
        "turns",
        "Turns by decision and outcome: complete, nothing (the upstream answered, such as with an error, and there was"
        " nothing to record), unmarked (plain text, which has no sign of its end: recorded as interrupted), cut (broken"
        " off or stopped: recorded as interrupted), broken (unreadable answer), unkept (the store failed), failed (no"
        " answer).",
        ["decision", "outcome"],
        counters.turns,
    )
    unrecorded = {(reason,): count for reason, count in counters.unrecorded.items()}
    yield _counter(
        "unrecorded",
        "Complete answers that were forwarded and not recorded: error (the upstream reported one within a 200), empty"
        " (no content), unreadable (no format that a client reads), encoding (one that the proxy cannot decode).",
        ["reason"],
        unrecorded,
    )
    rejected = {(reason,): count for reason, count in counters.rejected.items()}
    yield _counter("rejected", "The proxy's own errors, by code.", ["reason"], rejected)
    summaries = {(outcome,): counters.summaries[outcome] for outcome in ("made", "failed")}
    yield _counter("summaries", "Requests for summaries, by outcome: made, failed.", ["outcome"], summaries)
    yield _counter(
        "tokens",
        "Tokens of recorded turns as the upstreams counted them; cached is part of prompt, reasoning of completion."
        " Requests for summaries have kinds of their own.",
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
        (
            "overhead",
            "Time of the proxy itself: before it sent the request, and after the upstream's end.",
            counters.overhead,
        ),
    ):
        family = HistogramMetricFamily(f"{_NAME}{name}_seconds", what, labels=["route"])
        for route, histogram in histograms.items():
            family.add_metric([route], _buckets(histogram), histogram.total)
        yield family
    for name, what, histogram in (
        ("queue", "Time in a session's queue, of the requests that were queued.", counters.queue),
        ("commit", "Time to commit a turn to disk.", counters.commit),
    ):
        yield HistogramMetricFamily(f"{_NAME}{name}_seconds", what, _buckets(histogram), histogram.total)


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    bounds = [*[f"{bound:g}" for bound in histogram.bounds], "+Inf"]
    return list(zip(bounds, accumulate(histogram.counts), strict=True))


def _gauges(present: Present) -> Iterable[Metric]:
    yield _gauge("in_flight", "Turns and pass-throughs whose answer has not ended.", present.in_flight)
    yield _gauge("waiting", "Queued requests.", present.waiting)
    yield _gauge("draining", "1 while the proxy stops.", int(present.draining))
    yield _gauge("store_up", "1 if the store could be read for this scrape.", int(present.store is not None))
    if (store := present.store) is None:
        return
    yield _gauge("sessions", "Sessions with a request within sessions.ttl.", store.sessions)
    yield _gauge("database_bytes", "Size of the database and its write-ahead log.", store.size)
    yield _gauge("cache_sessions", "Sessions whose history is in memory.", store.cached)
    yield _gauge("cache_bytes", "Memory of the cached sessions.", store.cached_size)
    yield _gauge("cache_limit_bytes", "The limit of that memory: limits.cache.", present.cache_limit)
    loads = {("hit",): store.hits, ("miss",): store.misses}
    yield _counter("cache_loads", "Loads of a session, by whether it was in memory.", ["result"], loads)


def _gauge(name: str, what: str, value: float) -> Metric:
    return GaugeMetricFamily(_NAME + name, what, value)
