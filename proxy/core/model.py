"""Defines the values that all modules share: session key, message, turn, request, reply.

Frozen structs of msgspec, made in a third of the time of dataclasses. gc=False: they cannot form cycles, so Python's
collector need not track them. Nothing here knows a dialect, a store or a clock.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec import Struct

if TYPE_CHECKING:
    from proxy.core.window.token_estimate import Sizes

Span = tuple[int, int]  # messages of a turn's parent, from start to before stop
Layout = tuple[Span | int, ...]  # spans of the parent's messages, and in between how many of the turn's own


class SessionKey(NamedTuple):
    """The key of a session: tenant and session ID, never joined, so that no ID can reach across tenants.

    `tenant` is opaque bytes derived from the caller's credential, `id` the session ID
    as sent (1 to 256 characters, valid UTF-8, no control characters).
    """

    tenant: bytes
    id: str


class ModelKey(NamedTuple):
    """The key of a learned limit: a model (as requests name it) at an upstream's host, for one tenant."""

    tenant: bytes
    upstream: str
    model: str


class Message(Struct, frozen=True, gc=False):
    """One message: its role, its JSON byte for byte, and its fingerprint (16 bytes; empty where none was needed)."""

    role: str
    raw: bytes
    fingerprint: bytes = b""


class TurnState(StrEnum):
    COMPLETE = "complete"
    INTERRUPTED = "cut"  # the upstream died or was stopped: the text so far
    ADOPTED = "adopted"  # the client brought it along; no upstream gave its reply in this session


# Traits of a turn: how it was asked for, and what it is.
TOOLS, STREAM = 1, 2  # its request had tools; it asked for a stream
CARRIES = 4  # its list carried a reply of ours, and behind it a message of the user's: its client resends
SIDE = 8  # a side request, or one that may be: the tip does not move to it
SPLICED = 16  # the line behind it holds what others said and its list did not
FLAGS = 8  # bits of these; what is above them is the length of the member `tools` in bytes
CLIENT = 8  # bytes of a client's fingerprint, and of the fingerprint of its list's first message behind it


class TrimPoint(NamedTuple):
    """Where the window begins: `at` messages at the front of a path are left out, and `summary`, a message, is sent in
    their place (None: nothing is). `told`: how many of them the summary covers; None: all."""

    at: int = 0
    summary: bytes | None = None
    told: int | None = None

    @property
    def covered(self) -> int:
        """How many messages at the front of the path the summary covers; 0 without one."""
        if self.summary is None:
            return 0
        return self.at if self.told is None else self.told


class Turn(Struct, frozen=True, gc=False):
    """One request with its reply, as it is stored.

    A turn follows its parent: it keeps messages of the parent's line by `layout` (None: all of them) and adds its own,
    `asked` and the reply. `system` is the leading system block as sent (JSON objects joined by commas), empty for none,
    or None where it is the parent's. `reply` is the reply as received, lossless; `rendered` the form of it that goes
    back upstream under `rendering_key` (whose habits and which model family), None where the reply says nothing: only
    what was asked is sent on then. `request` is the digest of the request's body; `resends` tells that its client is
    one that resends its list. `usage` is the upstream's JSON. `trim_point` is where the window begins from this turn
    on, in its own line; None where it is the parent's; `trimmed_for` is what it was made for (see `trim_points`).
    `client` is the fingerprint of the software that asked and, where its list carried a history, of that list's first
    message; `traits` are flags.
    """

    id: str
    system: bytes | None
    asked: tuple[Message, ...]
    reply: bytes
    rendered: Message | None
    parent: str | None = None
    layout: Layout | None = None
    state: TurnState = TurnState.COMPLETE
    rendering_key: str = ""
    request: bytes = b""
    idempotency_key: str | None = None
    resends: bool = False
    model: str | None = None
    finish_reason: str | None = None
    usage: bytes | None = None
    trim_point: TrimPoint | None = None
    started: int = 0  # wall clock, ms since the epoch; for people, never for order
    ended: int = 0
    client: bytes = b""
    traits: int = 0
    trimmed_for: str = ""

    @property
    def is_side_request(self) -> bool:
        return bool(self.traits & SIDE)

    @property
    def carries_history(self) -> bool:
        return bool(self.traits & CARRIES)

    @property
    def is_spliced(self) -> bool:
        return bool(self.traits & SPLICED)

    @property
    def size(self) -> int:
        """Bytes that this turn takes in memory, roughly: its messages, a second copy as they are sent, and 768 for the
        objects around them."""
        raw = sum([len(message.raw) + 256 for message in self.asked])
        echo = len(self.rendered.raw) if self.rendered else 0
        copies = 3 if self.resends else 2  # of a client that resends its list is kept, too
        summary = len(self.trim_point.summary or b"") if self.trim_point else 0
        return 768 + copies * (raw + echo) + len(self.reply) + len(self.system or b"") + copies * summary


class Answer(Struct, frozen=True, gc=False):
    """The answer that a client was given for a turn, kept to be replayed."""

    status: int
    content_type: str | None
    body: bytes


class SeenPrefix(NamedTuple):
    """The prefix of the latest request that carried its history. A next request that begins with these bytes is parsed
    only behind them.

    `prefix`: the body up to the end of its last message. `start`: where its list begins. `system`: its system block.
    `size`: messages behind that block; `covered`: how many messages of the path they are. `hashed`: a running SHA-256
    of the prefix. `client`: as in Turn."""

    prefix: bytes
    start: int
    system: bytes | None
    size: int
    covered: int
    hashed: Any
    client: bytes = b""


@dataclass(slots=True)
class HistoryCache:
    """What was derived from a history's path. Whoever reads it checks that the path still begins so, and goes on.

    `seen`: the latest list that carried the history itself. `sizes`: running sums over the path. `renderings`: the path
    as it goes upstream, by the key of the rendering.
    """

    seen: SeenPrefix | None = None
    sizes: Sizes | None = None
    renderings: dict[str, object] = field(default_factory=dict)


class Ask(Struct, frozen=True, dict=True):
    """A chat request as its dialect read it.

    `system`: the leading system block (JSON objects joined by commas) or None. `body[start:end]`: the array with it and
    the messages. `tail`: the messages behind the prefix that was `seen` before; all of them without one. `tools`: the
    member as sent, empty without one.
    """

    body: bytes
    start: int
    end: int
    system: bytes | None
    tail: tuple[Message, ...]
    model: str | None
    stream: bool
    tools: bytes = b""
    seen: SeenPrefix | None = None
    whole: Callable[[], tuple[Message, ...]] | None = None  # reads the messages that were seen, too

    @property
    def messages(self) -> tuple[Message, ...]:
        """What follows the system block."""
        return self._messages if self.whole else self.tail

    @cached_property
    def _messages(self) -> tuple[Message, ...]:
        return self.whole() if self.whole else self.tail

    @property
    def count(self) -> int:
        """How many messages follow the system block."""
        return (self.seen.size if self.seen else 0) + len(self.tail)


def has_tools(tools: bytes) -> bool:
    """Whether the member `tools` of a request names any."""
    return tools.strip(b" \t\r\n[]") not in (b"", b"null")


class Reply(Struct, frozen=True, gc=False):
    """A reply as its dialect read it from the body.

    `message`: the JSON of choice 0, None where there is none. `finished`: the upstream said that it is complete.
    `error`: it reported a failure inside a 200.
    """

    message: bytes | None = None
    model: str | None = None
    finish_reason: str | None = None
    usage: bytes | None = None
    finished: bool = False
    error: bool = False


class SessionState(StrEnum):
    NEW = "new"
    CONTINUED = "continued"
    EXPIRED = "expired"
