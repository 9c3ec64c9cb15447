"""Bundles what a request needs from the process. A reload replaces the configuration in it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from proxy.config.model import Config
from proxy.context.failures import Failures
from proxy.context.in_flight import TurnRegistry
from proxy.context.routing import Target, find
from proxy.context.summaries import Summaries
from proxy.downstream.watch import POLL_INTERVAL, Poller
from proxy.observe.counters import Counters
from proxy.observe.log import LogHandler
from proxy.stores.base import Store
from proxy.upstream.client import Client

ROUTES = 1000  # request targets that are remembered
NOTES = 64  # texts that are remembered as told


class Noted:
    """Remembers which warnings were logged. After `NOTES` of them it lets no new one through."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def is_first(self, text: str) -> bool:
        if text in self._seen or len(self._seen) >= NOTES:
            return False
        self._seen.add(text)
        return True


@dataclass
class Runtime:
    """Holds the shared objects. `now` returns the wall clock in ms, `turn_id` a new turn ID that nobody can guess,
    `request_id` a new request ID."""

    config: Config
    store: Store
    client: Client
    secret: bytes
    now: Callable[[], int]
    turn_id: Callable[[], str]
    registry: TurnRegistry[Any] = field(
        default_factory=TurnRegistry
    )  # of turn.RecordedTurn, which is made of a runtime
    summaries: Summaries = field(default_factory=Summaries)
    poller: Poller = field(init=False)
    request_id: Callable[[], str] = field(default_factory=lambda: map("req_{}".format, itertools.count(1)).__next__)
    counters: Counters = field(default_factory=Counters)
    log: LogHandler | None = None
    noted: Noted = field(default_factory=Noted)
    failures: Failures = field(default_factory=Failures)
    _routes: dict[tuple[str, str], Target | None] = field(default_factory=dict)
    _routed: Config | None = None

    def __post_init__(self) -> None:
        self.poller = Poller(
            lambda: min(POLL_INTERVAL, self.config.limits.write_timeout), lambda: self.registry.draining
        )

    def find(self, raw_target: str, method: str) -> Target | None:
        """Find a request's target, as `routing.find` does. Results are cached until the configuration changes."""
        if self._routed is not self.config:
            self._routed, self._routes = self.config, {}
        key = (raw_target, method)
        if key in self._routes:
            return self._routes[key]
        found = find(raw_target, method, self.config.upstreams)
        if len(self._routes) < ROUTES:
            self._routes[key] = found
        return found
