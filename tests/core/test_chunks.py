"""Chunks as they stand on the wire."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from proxy.core.chunks import LAST, chunk


@given(st.lists(st.binary(min_size=1, max_size=300)))
def test_chunks_are_read_as_what_was_written(pieces: list[bytes]) -> None:
    sent = b"".join([chunk(piece) for piece in pieces]) + LAST
    read = []
    while not sent.startswith(b"0"):
        size, _, rest = sent.partition(b"\r\n")
        read.append(rest[: int(size, 16)])
        sent = rest[int(size, 16) + 2 :]
    assert (read, sent) == (pieces, LAST)
