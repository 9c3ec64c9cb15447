"""Summaries that were asked for after a turn, until the next turn takes them along. What a summary is of, and how one
is asked for, stands in `summarize`."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Coroutine
from typing import Any, NamedTuple

from proxy.core.history import History
from proxy.core.model import Cut, SessionKey

log = logging.getLogger("proxy.summary")
KEPT = 1000  # sessions whose summary is kept, or that it failed
AT_ONCE = 4  # summaries that are asked for at a time; who comes then is trimmed
REST = 16  # messages that a session grows by before a summary is asked for again that failed


class Ready(NamedTuple):
    """A cut with its summary, for the branch that holds the turn `tip`."""

    tip: str
    cut: Cut


class Summaries:
    def __init__(self) -> None:
        self._ready: OrderedDict[SessionKey, Ready] = OrderedDict()
        self._failed: OrderedDict[SessionKey, int] = OrderedDict()
        self._asking: dict[SessionKey, asyncio.Task[None]] = {}

    def ready(self, key: SessionKey, history: History) -> Cut | None:
        """The summary that the next turn of a session is to take along."""
        found, now = self._ready.get(key), history.cut
        if found is None or found.cut.at < now.at or (found.cut.at == now.at and now.summary is not None):
            return None
        on_branch = any([turn.id == found.tip for turn in history.ancestors(history.tip)])
        return found.cut if on_branch else None

    def is_free(self, key: SessionKey) -> bool:
        """Whether one may be asked for."""
        return key not in self._asking and len(self._asking) < AT_ONCE

    def has_rested(self, key: SessionKey, size: int) -> bool:
        """Whether a session of so many messages has grown since a summary of it failed."""
        return key not in self._failed or size >= self._failed[key] + REST

    def keep(self, key: SessionKey, ready: Ready) -> None:
        _kept(self._ready, key, ready)
        self._failed.pop(key, None)

    def fail(self, key: SessionKey, size: int) -> None:
        _kept(self._failed, key, size)

    def start(self, key: SessionKey, work: Coroutine[Any, Any, None]) -> None:
        """Ask, beside everything else: no drain waits for it."""

        def over(task: asyncio.Task[None]) -> None:
            self._asking.pop(key, None)
            if not task.cancelled() and (fault := task.exception()):
                log.error("no summary: %s", fault)

        task = self._asking[key] = asyncio.create_task(work)
        task.add_done_callback(over)

    def forget(self, key: SessionKey) -> None:
        self._ready.pop(key, None)
        if task := self._asking.get(key):
            task.cancel()


def _kept(values: OrderedDict[SessionKey, Any], key: SessionKey, value: Any) -> None:
    values.pop(key, None)
    values[key] = value
    if len(values) > KEPT:
        values.popitem(last=False)
