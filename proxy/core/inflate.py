"""Decompresses a body piece by piece: of upstreams that compress although asked not to, and of clients.

(Seen from Gemini's endpoint and, rarely, from OpenAI and Anthropic; Codex sends zstd.) Pure; bounded per step.
"""

from __future__ import annotations

import codecs
import re
import zlib
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any, Protocol

STEP = 256 * 1024  # bytes given at a time, whatever the piece inflates to
_MOST = 3  # encodings on top of each other
_SLICE = (
    64  # bytes given to a library that cannot be told how much to give: one block of zstd has 4 or more, gives 128 KiB
)
_GZIP, _RAW = 32 + zlib.MAX_WBITS, -zlib.MAX_WBITS  # the first takes zlib's form as well, by its own header
_PART = 16 * 1024  # bytes that are looked at together: what lies behind a member's end is copied
_MANY, _LEAST = 1000, 64  # members, and the bytes that each of so many has to give
_BETWEEN = 64 * 1024 * 1024  # bytes from one encoding to the next
_MAGIC = b"\x1f\x8b"  # of a member of gzip
_NOTHING = frozenset(
    ("", "identity", "none", "null", "no", "off", "plain", "text", "binary", "7bit", "8bit", "chunked")
)
_TYPE = re.compile(r"[a-z]+/[-+.a-z0-9]+")  # a media type, in the wrong header

Load = Callable[[str], Any]


class Broken(zlib.error):
    """The bytes are not in the encoding that they claim."""


class Unknown(ValueError):
    """An encoding that cannot be undone here; its name."""


class Coding(Protocol):
    """`feed` gives the plain bytes of a piece in steps, and raises Broken; `eof` tells whether the end was reached."""

    @property
    def eof(self) -> bool: ...

    def feed(self, piece: bytes) -> Iterator[bytes]: ...


class _Members:
    """How many members or frames have begun, and what they gave: thousands of next to nothing are work and no body."""

    def __init__(self) -> None:
        self._count = self._size = 0

    def begin(self) -> None:
        self._count += 1
        if self._count > _MANY and self._size < self._count * _LEAST:
            raise Broken("too many members for what is in them")

    def give(self, plain: bytes) -> bytes:
        self._size += len(plain)
        return plain


class Inflate:
    """gzip, of one member or several, or zlib; and where it may be `raw`, the form without a frame that some call
    deflate."""

    def __init__(self, raw: bool = False) -> None:
        self._inflater = zlib.decompressobj(_GZIP)
        self._begun = b"" if raw else None  # what came, until something was read of it
        self._next = b""  # of another member's beginning
        self._members = _Members()

    @property
    def eof(self) -> bool:
        return self._inflater.eof

    def feed(self, piece: bytes) -> Iterator[bytes]:
        for at in range(0, len(piece), _PART):
            part = piece[at : at + _PART]
            while part:
                if self._inflater.eof:
                    if not self._goes_on(part):
                        return
                    part, self._next = self._next + part, b""
                    self._members.begin()
                yield from map(self._members.give, self._steps(part))
                part = self._inflater.unused_data

    def _goes_on(self, piece: bytes) -> bool:
        """Whether another member begins; zeros and whatever else lies behind the end are nobody's."""
        begun = self._next + piece
        if begun[:2] == _MAGIC:
            self._inflater = zlib.decompressobj(_GZIP)
            return True
        self._next = begun if begun == _MAGIC[:1] else b"\0"
        return False

    def _steps(self, piece: bytes) -> Iterator[bytes]:
        if self._begun is not None:
            self._begun += piece
            if self._begun[:2] == _MAGIC:
                self._begun = None  # no doubt about this one
        try:
            plain = self._inflater.decompress(piece, STEP)
        except zlib.error as error:
            if self._begun is None:
                raise Broken(str(error)) from error
            plain = self._raw(self._begun)
        while plain:
            self._begun = None
            yield plain
            try:
                plain = self._inflater.decompress(self._inflater.unconsumed_tail, STEP)
            except zlib.error as error:
                raise Broken(str(error)) from error

    def _raw(self, begun: bytes) -> bytes:
        self._begun, self._inflater = None, zlib.decompressobj(_RAW)
        try:
            return self._inflater.decompress(begun, STEP)
        except zlib.error as error:
            raise Broken(str(error)) from error


class _Library:
    """What a library undoes, a frame at a time. `made` gives an object for a frame; `step` what it makes of some
    encoded bytes, and, of none, what it has held back; `ended` whether that was the frame's end; `unused` what lies
    behind it, where there may be another frame."""

    def __init__(
        self,
        made: Callable[[], Any],
        step: Callable[[Any, bytes], bytes],
        ended: Callable[[Any], bool],
        unused: Callable[[Any], bytes] | None,
        size: int = STEP,
    ) -> None:
        self._made, self._step, self._ended, self._unused, self._size = made, step, ended, unused, size
        self._frame = made()
        self._members = _Members()
        self._doubtful = self._over = False  # whether another frame has begun, and whether what lies behind is none

    @property
    def eof(self) -> bool:
        return self._over or self._ended(self._frame)

    def feed(self, piece: bytes) -> Iterator[bytes]:
        for at in range(0, len(piece), self._size):
            part = piece[at : at + self._size]
            while part:
                if self.eof:
                    if self._over or not self._unused:
                        return
                    self._members.begin()
                    self._frame, self._doubtful = self._made(), True
                yield from map(self._members.give, self._steps(part))
                part = self._unused(self._frame) if self._unused and self.eof and not self._over else b""

    def _steps(self, part: bytes) -> Iterator[bytes]:
        try:
            while plain := self._step(self._frame, part):
                self._doubtful = False
                yield plain
                if self.eof:
                    return
                part = b""
        except Exception as error:  # each library has a name of its own for it
            if not self._doubtful:
                raise Broken(str(error)) from error
            self._over = True


class _Chain:
    """Encodings on top of each other, the outermost first."""

    def __init__(self, codings: list[Coding]) -> None:
        self._codings = codings
        self._between = 0

    @property
    def eof(self) -> bool:
        return all([coding.eof for coding in self._codings])

    def feed(self, piece: bytes) -> Iterator[bytes]:
        return self._through(piece, self._codings)

    def _through(self, piece: bytes, codings: list[Coding]) -> Iterator[bytes]:
        for plain in codings[0].feed(piece):
            if codings[1:]:
                self._between += len(plain)
                if self._between > _BETWEEN:
                    raise Broken("too much lies between its encodings")
                yield from self._through(plain, codings[1:])
            else:
                yield plain


def inflater(encoding: str | None, load: Load = import_module) -> Coding | None:
    """The undoing of a Content-Encoding; None where it codes nothing. Raises Unknown for one that cannot be undone: it
    is none that we know, or the library that undoes it is not there."""
    if encoding is None:
        return None
    names = [name.strip().strip("\"'").lower() for name in encoding.split(",")]
    coded = [name for name in reversed(names) if not _codes_nothing(name)]
    if len(coded) > _MOST:
        raise Unknown(encoding)
    codings = [_coding(name, load) for name in coded]
    return _Chain(codings) if len(codings) > 1 else codings[0] if codings else None


def _codes_nothing(name: str) -> bool:
    """Whether a name says nothing of the bytes: a charset or a media type in the wrong header, and words for none."""
    if name in _NOTHING or _TYPE.fullmatch(name):
        return True
    try:
        return bool(getattr(codecs.lookup(name), "_is_text_encoding", True))
    except (LookupError, ValueError):
        return False


def _coding(name: str, load: Load) -> Coding:
    if name in ("gzip", "x-gzip"):
        return Inflate()
    if name in ("deflate", "x-deflate", "zlib"):
        return Inflate(raw=True)
    if name in ("zstd", "x-zstd"):
        return _zstd(load)
    if name == "br":
        return _brotli(load)
    raise Unknown(name)


def _zstd(load: Load) -> Coding:
    """Python's own from 3.14 on, else `zstandard`."""
    if library := _loaded("compression.zstd", load):
        return _Library(library.ZstdDecompressor, lambda own, part: own.decompress(part, STEP), *_ENDS)
    if library := _loaded("zstandard", load):
        made = library.ZstdDecompressor().decompressobj
        return _Library(made, lambda own, part: own.decompress(part) if part else b"", *_ENDS, _SLICE)
    raise Unknown("zstd")


def _brotli(load: Load) -> Coding:
    """From 1.2 on, which can be told how much to give."""
    library = _loaded("brotli", load)
    if library and hasattr(library.Decompressor, "can_accept_more_data"):
        step = lambda own, part: own.process(part, output_buffer_limit=STEP)  # noqa: E731
        return _Library(library.Decompressor, step, lambda own: bool(own.is_finished()), None)
    raise Unknown("br")


_ENDS = (lambda own: bool(own.eof), lambda own: bytes(own.unused_data))


def _loaded(name: str, load: Load) -> Any:
    try:
        return load(name)
    except ImportError:
        return None
