"""What a client of the benchmark sends next, and the one right answer to it.

Knows no sockets and no clock.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

from bench import wire

_numbers: Iterator[int] = count(1)  # of sessions: no two in a run are the same


@dataclass(frozen=True)
class Kind:
    """How a client behaves. With neither `session` nor `resend` nobody remembers, and each request is the same."""

    session: bool = False  # it sends a session ID, and but for `resend` only its new message
    resend: bool = False  # it sends all that was said so far
    before: int = 0  # messages in front of its first question; an even number, as they go in pairs
    life: int = 0  # turns until it begins a new session; 0: never
    pace: int | None = None  # us between two deltas of a stream; None: no stream


@dataclass(frozen=True, slots=True)
class Turn:
    request: bytes
    answer: bytes  # its body, decoded from its framing, with the stamps of a stream at zero
    messages: int  # that the upstream is to receive


class Client:
    """One client, turn after turn."""

    def __init__(self, kind: Kind, session: int | None = None) -> None:
        self.kind = kind
        self._begin(next(_numbers) if session is None else session)

    def _begin(self, session: int) -> None:
        self.session = session
        self._tag = wire.tag(session)
        self._turns = 0
        self._said = 0  # messages of the history
        self._list: list[bytes] = []  # what a client that resends carries
        self._same: Turn | None = None

    def continues(self, messages: int, turns: int) -> Client:
        """The client of a session that has these already: another one went on with it before."""
        self._said, self._turns = messages, turns
        return self

    def restart(self) -> None:
        """Begin a new session: after an answer that failed nobody knows what the old one holds."""
        self._begin(next(_numbers))

    def next(self) -> Turn:
        if self._same:
            return self._same
        if self.kind.life and self._turns == self.kind.life:
            self.restart()
        new = self._new()
        messages = self._said + len(new)
        turn = Turn(self._request(new, messages), self._answer(messages), messages)
        self._turns += 1
        if self.kind.session or self.kind.resend:
            self._said = messages + 1
        else:
            self._same = turn
        return turn

    def _answer(self, messages: int) -> bytes:
        if self.kind.pace is None:
            return wire.answer(self._tag, messages, messages)
        return wire.stream(self._tag, messages)

    def _new(self) -> list[bytes]:
        before = range(0 if self._turns else self.kind.before)
        said = [wire.message(b"assistant" if n % 2 else b"user", self._tag, n) for n in before]
        return [*said, wire.message(b"user", self._tag, self._said + len(said))]

    def _request(self, new: list[bytes], messages: int) -> bytes:
        sent = [*self._list, *new] if self.kind.resend else new
        if self.kind.resend:
            self._list = [*sent, wire.reply(self._tag, messages)]
        body = wire.body(b",".join(sent), self.kind.pace)
        return wire.request(body, self._tag if self.kind.session else None)
