"""Errors that nobody could read, by session: one whose every turn fails in the same way may have grown too long."""

from __future__ import annotations

from collections import OrderedDict

from proxy.core.model import SessionKey

PATIENCE = 2  # errors in a row that are let through
TRIED = 3  # that are answered by a cut then, each deeper
KEPT = 1000  # sessions


class Failures:
    def __init__(self) -> None:
        self._failed: OrderedDict[SessionKey, int] = OrderedDict()

    def again(self, key: SessionKey) -> int | None:
        """Note one more; which try of a cut it calls for, from 0 on, None for none."""
        before = self._failed.pop(key, 0)
        self._failed[key] = before + 1
        if len(self._failed) > KEPT:
            self._failed.popitem(last=False)
        tried = before - PATIENCE
        return tried if 0 <= tried < TRIED else None

    def over(self, key: SessionKey) -> None:
        """An answer came."""
        if self._failed:
            self._failed.pop(key, None)
