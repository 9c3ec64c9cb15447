"""Keeps the summaries that were written after a turn, until a later turn uses them. `turns/summarize.py` requests
them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, OrderedDict
from collections.abc import Coroutine
from typing import Any, NamedTuple

from proxy.core.matching.alignment import Entries
from proxy.core.model import SessionKey, TrimPoint
from proxy.core.window.chain import digest

log = logging.getLogger("proxy.summary")
KEPT = 1000  # sessions whose summary is kept, or that it failed
AT_ONCE = 64  # sessions of an upstream that are summarized at a time; each has one at most, and each has an end
# After a summary that failed the next one is asked for when the session has grown by so many messages, or so many
# seconds later; each is doubled with each failure, up to a bound.
REST, MOST_REST = 2, 16
WAIT, MOST_WAIT = 60.0, 900.0


class Ready(NamedTuple):
    """A finished summary: the trim point that it allows, the digest of the messages it covers, and the model it was
    written for. While it does not cover all that leaves the window, the trim point is 0."""

    trim_point: TrimPoint
    digest: bytes
    model: str | None = None


class Failed(NamedTuple):
    """Records the failed summaries of a session: how many in a row, and the latest (monotonic seconds)."""

    times: int
    size: int  # messages of the session
    when: float


class Summaries:
    """Keeps finished summaries by session, and the requests for summaries that are running or failed."""

    def __init__(self) -> None:
        self._ready: OrderedDict[SessionKey, Ready] = OrderedDict()
        self._failed: OrderedDict[SessionKey, Failed] = OrderedDict()
        self._asking: dict[SessionKey, asyncio.Task[None]] = {}
        self._hosts: Counter[str] = Counter()

    def ready(self, key: SessionKey, path: Entries, beyond: int = 0) -> Ready | None:
        """Return the session's summary if it covers more than `beyond` messages, and the history still begins with
        them."""
        found = self._ready.get(key)
        if found is None or not beyond < found.trim_point.covered <= len(path):
            return None
        return found if digest(path, found.trim_point.covered) == found.digest else None

    def is_free(self, key: SessionKey, host: str = "") -> bool:
        """Whether a summary of this session may be requested now."""
        return key not in self._asking and self._hosts[host] < AT_ONCE

    def has_rested(self, key: SessionKey, size: int) -> bool:
        """Whether a session of `size` messages may try again after a failed summary."""
        failed = self._failed.get(key)
        if failed is None:
            return True
        doubled = 2.0 ** (failed.times - 1)
        grown = size - failed.size >= min(MOST_REST, REST * doubled)
        return grown or time.monotonic() - failed.when >= min(MOST_WAIT, WAIT * doubled)

    def keep(self, key: SessionKey, ready: Ready) -> None:
        _kept(self._ready, key, ready)

    def succeed(self, key: SessionKey) -> None:
        self._failed.pop(key, None)

    def fail(self, key: SessionKey, size: int) -> None:
        before = self._failed.get(key)
        times = min(before.times, 16) + 1 if before else 1
        _kept(self._failed, key, Failed(times, size, time.monotonic()))

    def start(self, key: SessionKey, host: str, work: Coroutine[Any, Any, None]) -> None:
        """Request a summary in the background; a drain does not wait for it."""

        def over(task: asyncio.Task[None]) -> None:
            self._hosts[host] -= 1
            if self._asking.get(key) is task:
                del self._asking[key]
            if not task.cancelled() and (fault := task.exception()):
                log.error("summary failed with an internal error: %s", fault)

        self._hosts[host] += 1
        task = self._asking[key] = asyncio.create_task(work)
        task.add_done_callback(over)

    def forget(self, key: SessionKey) -> None:
        self._ready.pop(key, None)
        self._failed.pop(key, None)
        if task := self._asking.get(key):
            task.cancel()


def _kept(values: OrderedDict[SessionKey, Any], key: SessionKey, value: Any) -> None:
    values.pop(key, None)
    values[key] = value
    if len(values) > KEPT:
        values.popitem(last=False)
