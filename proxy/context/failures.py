"""Counts upstream errors of unknown meaning per session: where each turn fails, the session may be too long."""

from __future__ import annotations

from collections import OrderedDict

from proxy.core.model import SessionKey

PATIENCE = 2  # errors in a row that are let through
TRIED = 3  # that are answered by a cut then, each deeper
KEPT = 1000  # sessions


class Failures:
    """Counts, for the newest sessions, the errors in a row whose meaning is unknown."""

    def __init__(self) -> None:
        self._failed: OrderedDict[SessionKey, int] = OrderedDict()

    def again(self, key: SessionKey) -> int | None:
        """Count one more error. Return the number of the trim attempt that it calls for, from 0 on; None for no
        attempt."""
        before = self._failed.pop(key, 0)
        self._failed[key] = before + 1
        if len(self._failed) > KEPT:
            self._failed.popitem(last=False)
        tried = before - PATIENCE
        return tried if 0 <= tried < TRIED else None

    def over(self, key: SessionKey) -> None:
        """Reset the count of a session: an answer came."""
        if self._failed:
            self._failed.pop(key, None)
