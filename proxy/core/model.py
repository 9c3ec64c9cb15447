"""The words of the proxy as values: session key, message, turn, history, session.

Frozen, with no behaviour but what follows from their fields. Nothing here knows
where a value came from or where it goes: no dialect, no store, no clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property


@dataclass(frozen=True, slots=True)
class SessionKey:
    """What names a session: two parts, never joined, so that no ID can reach across tenants.

    `tenant` is opaque bytes derived from the caller's credential, `id` the session ID
    as sent (1 to 256 characters, valid UTF-8, no control characters).
    """

    tenant: bytes
    id: str


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a history: its role and its JSON, byte for byte as it is sent upstream."""

    role: str
    raw: bytes


class TurnState(StrEnum):
    COMPLETE = "complete"


@dataclass(frozen=True)
class Turn:
    """One request with its reply: what remains of an exchange.

    `system` is the leading system block as sent (JSON objects joined by commas), or None
    where the request had none of its own or repeated its parent's. `reply` is the reply as
    received, lossless; `echo` the form of it that goes back upstream, None where the
    reply is empty and the turn is therefore not sent on. `usage` is the upstream's JSON.
    """

    id: str
    system: bytes | None
    asked: tuple[Message, ...]
    reply: bytes
    echo: Message | None
    state: TurnState = TurnState.COMPLETE
    model: str | None = None
    finish_reason: str | None = None
    usage: bytes | None = None
    started: int = 0  # wall clock, ms since the epoch; for people, never for order
    ended: int = 0

    @cached_property
    def sent(self) -> tuple[Message, ...]:
        """The messages of this turn that later requests carry."""
        return (*self.asked, self.echo) if self.echo is not None else ()

    @property
    def joined(self) -> bytes:
        return b",".join([message.raw for message in self.sent])

    @cached_property
    def size(self) -> int:
        """Bytes this turn takes in memory, roughly: its messages, once more in `History.joined`, and
        512 for the objects around them."""
        raw = sum(len(message.raw) for message in self.asked)
        echo = len(self.echo.raw) if self.echo else 0
        return 512 + 2 * raw + 2 * echo + len(self.reply) + len(self.system or b"")


@dataclass(frozen=True)
class Ask:
    """A request as its dialect read it.

    `system` is the leading system block (JSON objects joined by commas) or None, `messages`
    what follows it. `body[start:end]` is the array that holds both.
    """

    body: bytes
    start: int
    end: int
    system: bytes | None
    messages: tuple[Message, ...]
    model: str | None
    stream: bool


@dataclass(frozen=True)
class Reply:
    """A reply as its dialect folded it.

    `message` is the recorded choice, lossless, None where there is none; `echo` the form of it
    that goes back upstream, None where it says nothing. `finished` tells that the upstream
    said so, `error` that it reported a failure inside a 200.
    """

    message: bytes | None = None
    echo: Message | None = None
    model: str | None = None
    finish_reason: str | None = None
    usage: bytes | None = None
    finished: bool = False
    error: bool = False


class SessionState(StrEnum):
    NEW = "new"
    CONTINUED = "continued"
    EXPIRED = "expired"


@dataclass(frozen=True)
class History:
    """The turns from the first to the tip, in order."""

    turns: tuple[Turn, ...] = ()

    @cached_property
    def system(self) -> bytes | None:
        """The system block in force at the tip: the newest that a turn brought."""
        return next((turn.system for turn in reversed(self.turns) if turn.system is not None), None)

    @cached_property
    def joined(self) -> bytes:
        """Every message that a next request carries, joined by commas; empty without any."""
        return b",".join([turn.joined for turn in self.turns if turn.sent])

    @cached_property
    def count(self) -> int:
        return sum(len(turn.sent) for turn in self.turns)

    @cached_property
    def size(self) -> int:
        return sum(turn.size for turn in self.turns)

    def plus(self, turn: Turn) -> History:
        return History((*self.turns, turn))


@dataclass(frozen=True, slots=True)
class Session:
    """What a store knows of a key: how it stands, and its history."""

    state: SessionState
    history: History


def fresh(state: SessionState = SessionState.NEW) -> Session:
    return Session(state, History())
