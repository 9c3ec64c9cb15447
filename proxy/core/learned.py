"""Remembers what upstreams refuse: members of messages, and prompts over a model's limit. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from proxy.core.model import ModelKey

PROBED = 8  # turns that a limit is in the way of, until one asks for more
IMAGES = 1000  # models of which it is remembered how many images they take
# A server may come back with a larger context, and would never be asked for more than it once had. What it then
# costs to find out again is one refused request.
LIMIT_KEPT = 24 * 3600 * 1000  # ms
_VERSION = re.compile(r"[-@:]\d{3,}")


class Limit(NamedTuple):
    tokens: int
    learned: int  # ms since the epoch


class LearnedLimits:
    """The refused members and context limits of upstreams, first those of the stored rows."""

    def __init__(self, refusals: Iterable[Any] = (), limits: Iterable[Any] = ()) -> None:
        self.refusals: Mapping[str, frozenset[str]] = {}  # by upstream, members of messages
        for upstream, member in refusals:
            self.refusal(upstream, member)
        self.images: dict[ModelKey, int] = {}  # how many a request may have, as long as the process lives
        self._waited: dict[ModelKey, int] = {}
        self.limits: Mapping[ModelKey, Limit] = {
            ModelKey(*key): Limit(tokens, learned) for *key, tokens, learned in limits
        }

    def refusal(self, upstream: str, member: str) -> None:
        self.refusals = {**self.refusals, upstream: self.refusals.get(upstream, frozenset()) | {member}}

    def limit(self, of: ModelKey, now: int) -> int | None:
        """The tokens that a model takes, as its upstream named it, unless that is long ago."""
        found = self.limits.get(of)
        return found.tokens if found and not is_old(found.learned, now) else None

    def is_probed(self, of: ModelKey) -> bool:
        """Whether the next turn that a limit is in the way of is to ask for more: a limit that grew is told by nobody.
        Call it for each of them."""
        waited = self._waited.get(of, 0) + 1
        self._waited[of] = waited
        return waited >= PROBED

    def probed(self, of: ModelKey, taken: bool) -> None:
        """One asked for more. Where it was taken the next one asks for more again."""
        self._waited[of] = PROBED if taken else 0

    def pictured(self, of: ModelKey, images: int) -> None:
        """A request may have so many images."""
        self.images[of] = images
        if len(self.images) > IMAGES:
            self.images.pop(next(iter(self.images)))

    def limited(self, of: ModelKey, tokens: int, now: int) -> None:
        fresh = [(key, found) for key, found in self.limits.items() if not is_old(found.learned, now)]
        self.limits = {**dict(fresh), of: Limit(tokens, now)}
        self._waited = {key: waited for key, waited in self._waited.items() if key in self.limits}


def is_of(told: str | None, asked: str | None) -> bool:
    """Whether a reply of a model that it names so is one of the model that was asked for: it may name a version."""
    told, asked = told or "", asked or ""
    return told == asked or (told.startswith(asked) and _VERSION.match(told, len(asked)) is not None)


def is_old(learned: int, now: int) -> bool:
    """Whether a limit need not be kept any more. A clock that went back never makes one old."""
    return now - learned > LIMIT_KEPT
