"""Inflating: the same bytes whatever the pieces, never more than a step at a time."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable
from typing import Any

import brotli
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.inflate import STEP, Broken, Inflate, Unknown, inflater

ENCODERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    " DEFLATE ": zlib.compress,
    "deflate": lambda body: zlib.compress(body)[2:-4],  # without zlib's frame
    "br": brotli.compress,
    "zstd": zstandard.compress,
}


@pytest.mark.parametrize(
    "encoding",
    [
        None,
        "",
        "identity",
        " Identity ",
        "none",
        "utf-8",
        "UTF8",
        "ISO-8859-1",
        '"utf-8"',
        "identity, utf-8",
        ",",
        "null",
    ]
    + ["application/json", "text/event-stream", "7bit", "chunked"],
)
def test_what_codes_nothing_needs_no_undoing(encoding: str | None) -> None:
    assert inflater(encoding) is None


@pytest.mark.parametrize(
    "encoding", ["x", "compress", "base64", "zip", "dcb", "gzip, x", "utf-8\0", "gzip,gzip,gzip,gzip"]
)
def test_an_encoding_that_cannot_be_undone_is_named(encoding: str) -> None:
    with pytest.raises(Unknown) as unknown:
        inflater(encoding)
    assert str(unknown.value) in encoding


def undone(inflate: Any, packed: bytes, size: int) -> bytes:
    pieces = [packed[at : at + size] for at in range(0, len(packed), size)]
    return b"".join([plain for piece in pieces for plain in inflate.feed(piece)])


@given(st.sampled_from(sorted(ENCODERS)), st.binary(max_size=200), st.integers(1, 50))
def test_a_body_comes_out_as_it_was_whatever_the_pieces(encoding: str, body: bytes, size: int) -> None:
    packed, inflate = ENCODERS[encoding](body), inflater(encoding)
    assert inflate is not None
    assert undone(inflate, packed, size) == body
    assert inflate.eof
    assert list(inflate.feed(b"after the end")) == []
    assert inflate.eof


@given(
    st.lists(st.binary(max_size=50), min_size=1, max_size=4),
    st.integers(1, 50),
    st.sampled_from([b"", b"\0\0", b"\x1f"]),
)
def test_several_members_are_one_body(parts: list[bytes], size: int, behind: bytes) -> None:
    inflate = Inflate()
    assert undone(inflate, b"".join(map(gzip.compress, parts)) + behind, size) == b"".join(parts)
    assert inflate.eof


@pytest.mark.parametrize(
    ("encoding", "empty"), [("gzip", gzip.compress(b"")), ("zstd", zstandard.compress(b""))], ids=["gzip", "zstd"]
)
def test_members_of_next_to_nothing_are_not_read_without_an_end(encoding: str, empty: bytes) -> None:
    some, many = inflater(encoding), inflater(encoding)
    assert some is not None and many is not None
    assert list(some.feed(empty * 1000)) == [] and some.eof
    with pytest.raises(Broken):
        list(many.feed(empty * 1002))


def test_what_lies_between_two_encodings_is_bounded() -> None:
    inflate = inflater("gzip, gzip")
    assert inflate is not None
    packed = gzip.compress(gzip.compress(b"a") + bytes(70 * 1024 * 1024), 1)
    with pytest.raises(Broken):
        list(inflate.feed(packed))


def test_only_deflate_may_be_raw() -> None:
    with pytest.raises(Broken):
        list(Inflate().feed(zlib.compress(b"a" * 99)[2:-4]))


def test_a_member_that_does_not_end_is_no_end() -> None:
    inflate = Inflate()
    assert undone(inflate, gzip.compress(b"a") + gzip.compress(b"b")[:-1], 7) == b"ab"
    assert not inflate.eof
    inflate = Inflate()
    assert undone(inflate, gzip.compress(b"a") + b"junk" + gzip.compress(b"b"), 1) == b"a"
    assert inflate.eof


def test_what_is_flushed_comes_out_before_the_rest_is_here() -> None:
    packer = zlib.compressobj(wbits=31)
    inflate = Inflate()
    assert b"".join(inflate.feed(packer.compress(b"data: a\n\n") + packer.flush(zlib.Z_SYNC_FLUSH))) == b"data: a\n\n"
    assert not inflate.eof


@pytest.mark.parametrize("size", [STEP - 1, STEP, STEP + 1, 5 * STEP])
@pytest.mark.parametrize("encoding", sorted(ENCODERS))
def test_a_small_piece_that_grows_large_comes_in_steps(size: int, encoding: str) -> None:
    inflate = inflater(encoding)
    assert inflate is not None
    steps = list(inflate.feed(ENCODERS[encoding](b"\0" * size)))
    assert max(map(len, steps)) <= 16 * STEP  # zstandard cannot be told how much to give
    assert b"".join(steps) == b"\0" * size
    assert inflate.eof


@pytest.mark.parametrize("encoding", sorted(ENCODERS))
@pytest.mark.parametrize("at", [0, 20])
def test_what_is_not_compressed_is_an_error(encoding: str, at: int) -> None:
    packed = ENCODERS[encoding](bytes(range(256)) * 2000)
    inflate = inflater(encoding)
    assert inflate is not None
    with pytest.raises(Broken):
        list(inflate.feed(packed[:at] + b"\xff\xfe data: plain\n\n" * 99))


def test_an_error_behind_what_was_given_is_one() -> None:
    packer = zlib.compressobj()
    packed = packer.compress(bytes(2 * STEP)) + packer.flush(zlib.Z_SYNC_FLUSH)
    inflate = Inflate()
    given: list[bytes] = []
    with pytest.raises(Broken):
        for plain in inflate.feed(packed + b"\xff" * 99):
            given.append(plain)
    assert b"".join(given) == bytes(2 * STEP)[: len(given) * STEP]
    with pytest.raises(Broken):
        list(inflate.feed(b"\xff" * 99))


def test_what_says_deflate_may_be_gzip() -> None:
    inflate = Inflate(raw=True)
    assert undone(inflate, gzip.compress(b"a" * 99), 1) == b"a" * 99 and inflate.eof


def test_encodings_on_top_of_each_other_are_undone_from_the_outside() -> None:
    inflate = inflater("gzip, utf-8, deflate")
    assert inflate is not None
    packed = zlib.compress(gzip.compress(b"a" * 1000))
    assert not inflate.eof
    assert undone(inflate, packed, 5) == b"a" * 1000
    assert inflate.eof


@pytest.mark.parametrize(("encoding", "pack"), [("zstd", zstandard.compress), ("x-zstd", zstandard.compress)])
def test_frames_of_zstd_are_one_body(encoding: str, pack: Callable[[bytes], bytes]) -> None:
    inflate = inflater(encoding)
    assert inflate is not None
    assert undone(inflate, pack(b"a" * 99) + pack(b"b" * 99), 3) == b"a" * 99 + b"b" * 99
    assert inflate.eof


@pytest.mark.parametrize("encoding", ["zstd", "br"])
def test_without_its_library_an_encoding_cannot_be_undone(encoding: str) -> None:
    def absent(name: str) -> Any:
        raise ImportError(name)

    with pytest.raises(Unknown, match=encoding):
        inflater(encoding, absent)


def test_a_brotli_that_cannot_be_told_how_much_to_give_is_none() -> None:
    class Old:
        Decompressor = object

    with pytest.raises(Unknown, match="br"):
        inflater("br", lambda name: Old)


class Own:
    """As `compression.zstd` of Python 3.14 has it."""

    class ZstdDecompressor:
        def __init__(self) -> None:
            self._inflater = zlib.decompressobj()
            self._held = b""

        @property
        def eof(self) -> bool:
            return self._inflater.eof

        @property
        def unused_data(self) -> bytes:
            return self._inflater.unused_data

        def decompress(self, data: bytes, max_length: int) -> bytes:
            if self.eof:
                raise EOFError
            plain = self._inflater.decompress(self._held + data, max_length)
            self._held = self._inflater.unconsumed_tail
            return plain


@pytest.mark.parametrize("size", [3, 1 << 30])
def test_pythons_own_zstd_comes_first(size: int) -> None:
    loaded: list[str] = []

    def load(name: str) -> Any:
        loaded.append(name)
        return Own

    inflate = inflater("zstd", load)
    assert inflate is not None and loaded == ["compression.zstd"]
    body = b"a" * 3 * STEP
    packed = zlib.compress(body) * 2
    steps = list(inflate.feed(packed)) if size > STEP else [undone(inflate, packed, size)]
    assert b"".join(steps) == body * 2 and inflate.eof
    assert size < STEP or max(map(len, steps)) == STEP
