"""Reads server-sent events from bytes, and holds back the terminator of a stream.

Follows the WHATWG standard (line ends LF, CRLF, CR; one optional space after the colon; a byte order mark before any
line), and keeps two things that it drops: an event that is pending at the end of the stream (seen from Mistral and
xAI), and llama.cpp's `error:` lines. Knows nothing of what the data means.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

BOM = b"\xef\xbb\xbf"
# The longest text that may still turn out to be the beginning of the terminator's line.
_TERMINATORS = (b"data: [DONE]", b"data:[DONE]")


class Event(NamedTuple):
    """`name` is the event field (empty where there is none, `error` for an `error:` line)."""

    name: str
    data: bytes


def events(body: bytes) -> Iterator[Event]:
    """The events of a finished stream, in order; comments and empty events are left out."""
    if b"\r" not in body:
        for block in body.split(b"\n\n"):
            if block.startswith(b"data: ") and b"\n" not in block:  # as nearly all are
                yield Event("", block[6:])
            else:
                yield from _fields(block)
    else:
        yield from _fields(body)


def _fields(body: bytes) -> Iterator[Event]:
    name = ""
    data: list[bytes] = []
    for line in body.splitlines():
        line = line.removeprefix(BOM)  # openai-node takes it off each line
        if not line:
            if data:
                yield Event(name, b"\n".join(data))
            name, data = "", []
            continue
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            data.append(value)
        elif field == b"event":
            name = value.decode(errors="replace")
        elif field == b"error":
            yield Event("error", value)
    if data:
        yield Event(name, b"\n".join(data))


class Terminator:
    """Finds the line `data: [DONE]` in a stream that comes in pieces, and holds it back.

    `feed` returns what may go to the client now. `held`: from the terminator's line on, once it was `seen`; before that
    a tail that may be its beginning.
    """

    def __init__(self) -> None:
        self.seen = False
        self.held = b""
        self._at_line_start = True  # of the first byte of `held`

    @property
    def rests(self) -> bool:
        """Whether all lines so far are whole, and none is the terminator's. Then it need not see a piece that is
        whole lines, none of them the terminator's either."""
        return self._at_line_start and not (self.held or self.seen)

    def feed(self, piece: bytes) -> bytes:
        if self.seen:
            self.held += piece
            return b""
        text = self.held + piece if self.held else piece
        cut = self._cut(text)
        self.held = text[cut:]
        if cut:
            self._at_line_start = text[cut - 1] in b"\r\n"
        return text[:cut] if self.held else text

    def _cut(self, text: bytes) -> int:
        """Where the part that must wait begins; the length of the text where nothing must."""
        position = 0
        while (found := text.find(b"[DONE]", position)) >= 0:
            for line in _TERMINATORS:
                start = found + 6 - len(line)
                if start >= 0 and text.startswith(line, start) and self._starts_line(text, start):
                    self.seen = True
                    return start
            position = found + 1
        start = max(text.rfind(b"\n"), text.rfind(b"\r")) + 1
        tail = text[start:]
        begins = tail and any(line.startswith(tail) for line in _TERMINATORS)
        return start if begins and self._starts_line(text, start) else len(text)

    def _starts_line(self, text: bytes, start: int) -> bool:
        return text[start - 1] in b"\r\n" if start else self._at_line_start
