"""Defines the plan of a request: how its list is read, what goes upstream, what is recorded.

Values only; `core.matching` makes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from functools import cached_property
from typing import NamedTuple

from msgspec import Struct

from proxy.core.history import Entry
from proxy.core.matching.alignment import Entries
from proxy.core.model import Ask, Layout, Message


class Mode(StrEnum):
    AUTO = "auto"
    APPEND = "append"
    RESEND = "resend"


class Decision(StrEnum):
    APPEND = "append"
    ADOPT = "adopt"
    RESEND = "resend"
    REWRITE = "rewrite"
    RETRY = "retry"
    ASIDE = "aside"


class Flight(NamedTuple):
    """A turn in flight, as far as it matters for reading another request. `client`: as in Turn. `ask`: its request."""

    asked: Sequence[Message]
    system: bytes | None
    tools: bytes
    resends: bool = False  # its list carries the history itself
    id: str = ""
    client: bytes = b""
    abandoned: bool = False  # nobody listens to it any more
    carries_history: bool = False  # its client has shown that it resends
    spliced: bool = False  # the line keeps what others said
    ask: Ask | None = None


class Sent(NamedTuple):
    """One message that goes upstream: a stored one, the client's own, or, where both are set, the stored one in place
    of the client's copy."""

    entry: Entry | None
    theirs: Message | None


class Plan(Struct, frozen=True, dict=True):
    """What becomes of a request: how it is read, what goes upstream, and what is recorded of it.

    The turn will follow `parent` by `layout` and add `asked`; `system` is the block in force, None for none. `messages`
    go upstream behind the first `injected` of `path`; `pairs` says which of them are in the line, ours to be sent in
    their place. `alone` tells that the list carries its history itself and needs nothing of a turn in flight. `adopted`
    are the turns that the list brings along. `side` tells that it is asked beside the conversation, or may be: the tip
    does not move to it. `spliced`: the line keeps what other clients said, which this list has not; `branches`: what
    they say until it is kept itself stays on its branch. `demoted` are turns in flight that turned out to be side
    requests. `client` and `carries_history` are kept with the turn (see `Turn`).
    """

    decision: Decision
    reason: str
    parent: str | None
    messages: Sequence[Message]
    asked: tuple[Message, ...]
    system: bytes | None
    path: Entries = ()
    pairs: Sequence[tuple[int, int]] = ()
    injected: int = 0
    layout: Layout | None = None
    adopted: tuple[tuple[Message, ...], ...] = ()
    resends: bool = False
    alone: bool = False
    side: bool = False
    spliced: bool = False
    branches: bool = False
    demoted: tuple[str, ...] = ()
    client: bytes = b""
    carries_history: bool = False

    @property
    def whole(self) -> bool:
        """Whether all of `path` goes upstream, and then `tail`."""
        return self.layout is None and not self.spliced

    @property
    def tail(self) -> Sequence[Message]:
        """The client's messages behind the last one that repeats a stored one."""
        return self.messages[self.pairs[-1][0] + 1 :] if self.pairs else self.messages

    @cached_property
    def sent(self) -> list[Sent]:
        """Each message that goes upstream, in order."""
        found: dict[int, list[Entry]] = {}
        for n, at in self.pairs:
            found.setdefault(n, []).append(self.path[at])
        made = [Sent(entry, None) for entry in self.path[: self.injected]]
        for n, message in enumerate(self.messages):
            stored = found.get(n, [])
            made += [Sent(entry, message if len(stored) == 1 else None) for entry in stored] or [Sent(None, message)]
        return made
