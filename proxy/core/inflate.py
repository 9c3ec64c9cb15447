"""Undoing a Content-Encoding piece by piece, for upstreams that compress although asked not to.

(Seen from Gemini's endpoint and, rarely, from OpenAI and Anthropic.) Pure; bounded per step.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

STEP = 256 * 1024  # bytes given at a time, whatever the piece inflates to


class Inflate:
    """`feed` gives the plain bytes of a piece in steps; `eof` tells whether the end was reached."""

    def __init__(self) -> None:
        # 32 + 15: gzip or zlib by the stream's own header. "deflate" is zlib in practice.
        self._inflater = zlib.decompressobj(32 + zlib.MAX_WBITS)

    @property
    def eof(self) -> bool:
        return self._inflater.eof

    def feed(self, piece: bytes) -> Iterator[bytes]:
        """Raises zlib.error where the bytes are no such stream."""
        plain = b"" if self._inflater.eof else self._inflater.decompress(piece, STEP)
        while plain:
            yield plain
            plain = self._inflater.decompress(self._inflater.unconsumed_tail, STEP)


def inflater(encoding: str | None) -> Inflate | None:
    """The undoing of a Content-Encoding; None for none. Raises ValueError for one we cannot undo."""
    name = (encoding or "identity").strip().lower()
    if name == "identity":
        return None
    if name in ("gzip", "x-gzip", "deflate"):
        return Inflate()
    raise ValueError(name)
