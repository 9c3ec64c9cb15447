"""Inflating: the same bytes whatever the pieces, never more than a step at a time."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.inflate import STEP, Inflate, inflater

ENCODERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    " DEFLATE ": zlib.compress,
}


@pytest.mark.parametrize("encoding", [None, "", "identity", " Identity "])
def test_an_identity_body_needs_no_inflating(encoding: str | None) -> None:
    assert inflater(encoding) is None


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, gzip", "x"])
def test_an_encoding_that_cannot_be_undone_is_named(encoding: str) -> None:
    with pytest.raises(ValueError, match=encoding):
        inflater(encoding)


@given(st.sampled_from(sorted(ENCODERS)), st.binary(max_size=200), st.integers(1, 50))
def test_a_body_comes_out_as_it_was_whatever_the_pieces(encoding: str, body: bytes, size: int) -> None:
    packed, inflate = ENCODERS[encoding](body), inflater(encoding)
    assert inflate is not None
    pieces = [packed[at : at + size] for at in range(0, len(packed), size)]
    assert b"".join([plain for piece in pieces for plain in inflate.feed(piece)]) == body
    assert inflate.eof
    assert list(inflate.feed(b"after the end")) == []


def test_what_is_flushed_comes_out_before_the_rest_is_here() -> None:
    packer = zlib.compressobj(wbits=31)
    inflate = Inflate()
    assert b"".join(inflate.feed(packer.compress(b"data: a\n\n") + packer.flush(zlib.Z_SYNC_FLUSH))) == b"data: a\n\n"
    assert not inflate.eof


@pytest.mark.parametrize("size", [STEP - 1, STEP, STEP + 1, 5 * STEP])
def test_a_small_piece_that_grows_large_comes_in_steps(size: int) -> None:
    inflate = Inflate()
    steps = list(inflate.feed(gzip.compress(b"\0" * size)))
    assert max(map(len, steps)) <= STEP
    assert b"".join(steps) == b"\0" * size
    assert inflate.eof


def test_what_is_not_compressed_is_an_error() -> None:
    with pytest.raises(zlib.error):
        list(Inflate().feed(b"data: plain\n\n"))
