"""Chunks that need no parser: which bytes are whole ones, and that nobody notices who read them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.chunks import LAST, chunk
from proxy.upstream.response_parser import unchunked

PIECES = st.lists(st.binary(min_size=1, max_size=40) | st.sampled_from([LAST, b"\r\n", b"1\r\nx\r\n", b"x" * 300]))


@given(PIECES)
def test_whole_chunks_carry_what_was_put_into_them(pieces: list[bytes]) -> None:
    assert unchunked(b"".join(map(chunk, pieces))) == b"".join(pieces)


@given(PIECES, st.data())
def test_what_ends_elsewhere_than_a_chunk_is_left_to_the_parser(pieces: list[bytes], data: st.DataObject) -> None:
    whole = b"".join(map(chunk, [*pieces, b"one more"]))
    cut = data.draw(st.integers(1, len(whole) - 1))
    ends = [len(b"".join(map(chunk, pieces[:n]))) for n in range(len(pieces) + 1)]
    assert (unchunked(whole[:cut]) is None) == (cut not in ends)


@pytest.mark.parametrize(
    "data",
    [
        *[LAST, b"1\r\nx\r\n" + LAST, b"00\r\n\r\n", b"\r\n", b"1\r\nx\r\n\r\n", b"1;e=1\r\nx\r\n", b"1 \r\nx\r\n"],
        *[b"1\nx\n", b"1\r\nxy\r\n", b"1\r\nx", b"1\r\nx\n\n", b"2\r\nx\r\n", b"-1\r\nx\r\n", b"+1\r\nx\r\n"],
        *[b" 1\r\nx\r\n", b"0x1\r\nx\r\n", b"1_0\r\n" + b"x" * 16 + b"\r\n", b"g\r\nx\r\n", b"00000001\r\nx\r\n"],
        *["\u0661".encode() + b"\r\nx\r\n", b"HTTP/1.1 200 OK\r\n\r\n", b"data: x\n\n"],
    ],
)
def test_what_is_written_otherwise_is_left_to_the_parser(data: bytes) -> None:
    assert unchunked(data) is None


@pytest.mark.parametrize("data", [b"A\r\n" + b"x" * 10 + b"\r\n", b"0a\r\n" + b"x" * 10 + b"\r\n"])
def test_a_size_is_hexadecimal(data: bytes) -> None:
    assert unchunked(data) == b"x" * 10
