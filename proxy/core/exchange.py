"""Tracks one reply in flight, as a state machine over bytes.

Says which bytes may go to the client now and which are held until the commit; at the end, what is to be recorded and
whether the end may be released. It never raises: a body that it cannot read passes unchanged and is not recorded.
Knows no socket and no store; the dialect reads the bytes.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple, Protocol

from proxy.core.json_bytes import Malformed
from proxy.core.model import Reply
from proxy.core.sse import BOM, Terminator


class Dialect(Protocol):
    """How replies of one API are read. Functions only; one module per dialect."""

    def fold_stream(self, body: bytes) -> Reply: ...

    def fold_body(self, body: bytes) -> Reply:
        """Raises Malformed where the body is not JSON."""

    def fold_text(self, body: bytes, content_type: str) -> Reply:
        """A whole body that is neither; raises Malformed where it has no text for anybody."""

    def is_torn(self, body: bytes) -> bool:
        """Whether a body that is not JSON would be, with more behind it."""


class Kind(Enum):
    STREAM = "stream"
    JSON = "json"
    OTHER = "other"  # not a reply of this dialect: an error, a page; passed on, not recorded


_STREAM, _JSON, _OTHER = Kind  # to look up a member takes as long as all else that is done with a piece


class Verdict(Enum):
    COMPLETE = "complete"  # to be recorded before the end is released
    NOTHING = "nothing"  # the upstream's word stands, but there is nothing to record
    UNMARKED = "unmarked"  # all of it came, and it does not say so: to be recorded as cut, and the end released
    INTERRUPTED = "cut"  # what came is to be recorded as cut; the end must not be released
    BROKEN = "broken"  # the end must not be released


_NOTHING = Verdict.NOTHING
RECORDED = (Verdict.COMPLETE, Verdict.UNMARKED, Verdict.INTERRUPTED)
RELEASED = (Verdict.COMPLETE, Verdict.UNMARKED, Verdict.NOTHING)


class Outcome(NamedTuple):
    verdict: Verdict
    reply: Reply


class Exchange:
    """Call `begin`, then `receive` for each piece, `finish` once (when `terminated`, or at the end of the transfer),
    and `release` after the commit. `limit` bounds the bytes of the reply that are kept for recording.
    """

    def __init__(self, dialect: Dialect, limit: int) -> None:
        self.size = 0
        self.unrecorded = ""  # why a 200 whose end is released is not recorded: encoding, unreadable, error, empty
        self._dialect = dialect
        self._limit = limit
        self._kind: Kind | None = _OTHER
        self._content_type = ""
        self._begun = b""  # of a byte order mark
        self._length: int | None = None
        self._pieces: list[bytes] = []
        self._terminator = Terminator()
        self._last = b""
        self._released = False
        self._flows = False  # a piece that is whole lines of a stream goes on as it is

    def begin(self, status: int, content_type: str | None, length: int | None, coded: bool = False) -> None:
        """Take the head of the answer. `length`: bytes of the body, None where it does not say. `coded`: its
        Content-Encoding cannot be undone."""
        if 200 <= status < 300:
            self._kind = _OTHER if coded else None
            self.unrecorded = "encoding" if coded else ""
        self._content_type = content_type or ""
        self._length = length

    def receive(self, piece: bytes) -> bytes:
        """Take a piece of the body; return the bytes that may go to the client now."""
        self.size += len(piece)
        # One event, whose one line is no terminator's: told without a search through all of it.
        line = len(piece) - 2
        if self._flows and piece.find(b"\n") == line and piece.endswith(b"}\n\n") and self.size <= self._limit:
            self._pieces.append(piece)
            return piece
        out = self._received(piece)
        self._flows = self._kind is _STREAM and self._length is None and self._terminator.rests
        return out

    def _received(self, piece: bytes) -> bytes:
        kind = self._kind
        if kind is _OTHER or self._released:
            return piece
        if kind is None:
            kind = self._kind = self._sniff(piece)
            self.unrecorded = "unreadable" if kind is _OTHER else ""
        if self.size <= self._limit:
            self._pieces.append(piece)
        else:
            self._pieces.clear()
        out = piece if kind is _JSON or kind is _OTHER else self._terminator.feed(piece)
        if self.size == self._length and out and not self._terminator.held:
            # Of a stream all but a byte; of a body, of which the beginning is no use, the whole piece in one write.
            kept = 1 if kind is _STREAM else len(out)
            out, self._last = out[:-kept], out[-kept:]
        return out

    @property
    def terminated(self) -> bool:
        """Whether the stream's terminator has come and is held."""
        return self._terminator.seen and not self._released

    @property
    def ends_itself(self) -> bool:
        """Whether the released terminator is an end, whatever follows; not where a length promises more bytes."""
        return self._terminator.seen and self._released and self._length is None

    @property
    def has_finished(self) -> bool:
        """Whether the stream so far has a finish_reason. Reads all of the body so far."""
        return self._kind is _STREAM and self._folded(self.body).reply.finished

    @property
    def body(self) -> bytes:
        """The body so far; empty once it is over the limit."""
        if len(self._pieces) > 1:
            self._pieces = [b"".join(self._pieces)]
        return self._pieces[0] if self._pieces else b""

    @property
    def answer(self) -> bytes:
        """The body so far, to be replayed. The line end behind the terminator is added where it has not come yet."""
        body = self.body
        if not self._terminator.seen:
            return body
        end = b"\r\n\r\n" if b"\r\n" in body else b"\n\n"
        tail = body[body.rfind(b"[DONE]") + 6 :]
        return body + end[len(tail) :] if end.startswith(tail) else body

    def finish(self, clean: bool) -> Outcome:
        """The verdict, and the reply to record. `clean`: the transfer ended as HTTP says, or is `terminated`."""
        outcome = self._finished(clean)
        if outcome.verdict is not _NOTHING:
            self.unrecorded = ""
        elif self._kind is not _OTHER:
            self.unrecorded = self.unrecorded or ("error" if outcome.reply.error else "empty")
        return outcome

    def _finished(self, clean: bool) -> Outcome:
        if self._kind is _OTHER or self._kind is None:
            return Outcome(Verdict.NOTHING if clean else Verdict.BROKEN, Reply())
        if self.size > self._limit:
            return Outcome(Verdict.BROKEN, Reply())
        outcome = self._folded(self.body)
        if outcome.verdict is Verdict.BROKEN:
            return self._unread() if clean else outcome
        if clean:
            return outcome
        return Outcome(Verdict.INTERRUPTED if outcome.verdict in RECORDED else Verdict.BROKEN, outcome.reply)

    def _unread(self) -> Outcome:
        """What remains of a body that came whole, where it can be told from one that was cut, and was not read: what
        the client makes of it is its own matter, and another try would be paid for again."""
        body = self.body
        first = body.lstrip().removeprefix(BOM).lstrip()[:1]
        try:
            if first in (b"{", b"["):
                nothing_lost = not self._dialect.is_torn(body)
            elif first == b"<":
                nothing_lost = True
            else:
                reply = self._dialect.fold_text(body, self._content_type.lower())
                if reply.message is not None:
                    return Outcome(Verdict.UNMARKED, reply)
                nothing_lost = False
        except Malformed:
            nothing_lost = True
        self.unrecorded = "unreadable"
        return Outcome(Verdict.NOTHING if nothing_lost else Verdict.BROKEN, Reply())

    def release(self) -> bytes:
        """The bytes that were held. All that comes from now on passes at once."""
        self._released, self._flows = True, False
        self._pieces.clear()
        return self._terminator.held + self._last

    def _folded(self, body: bytes) -> Outcome:
        try:
            fold = self._dialect.fold_stream if self._kind is _STREAM else self._dialect.fold_body
            reply = fold(body)
        except Malformed:
            return Outcome(Verdict.BROKEN, Reply())
        if reply.error:
            return Outcome(Verdict.NOTHING, reply)
        if reply.finished or self._terminator.seen:
            return Outcome(Verdict.COMPLETE if reply.message is not None else Verdict.NOTHING, reply)
        if self._kind is _JSON:  # a JSON body that parses is the upstream's whole word
            return Outcome(Verdict.UNMARKED if reply.message is not None else Verdict.NOTHING, reply)
        # A stream without a sign of its end was cut: a close-delimited body cut short looks like a clean end.
        return Outcome(Verdict.INTERRUPTED if reply.message is not None else Verdict.BROKEN, reply)

    def _sniff(self, piece: bytes) -> Kind | None:
        """By the first byte that says something: content types are wrong or missing in the wild,
        and OpenRouter pads JSON with leading white space."""
        text = self._begun + piece.lstrip()
        if text[:1] == BOM[:1]:
            if BOM.startswith(text):
                self._begun = text
                return None
            text = text.removeprefix(BOM).lstrip()
        first = text[:1]
        if not first:
            return None
        if first in b"{[" or ("json" in self._content_type and first not in b"dei:r\xef"):
            return _JSON
        return _OTHER if first == b"<" else _STREAM
