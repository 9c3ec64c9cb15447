"""Finds the members of a JSON object in its bytes, so that one can be replaced and all others keep their bytes.

Bytes of clients and upstreams are never parsed and written again: numbers such as `1.0`, `1e400` or thirty digits,
unusual escapes and the order of keys survive only as bytes. Knows nothing of what the members mean.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any, NoReturn

import msgspec
import orjson

# What a typed decoder of msgspec raises for bytes that it does not take. It is quick, and takes less than JSON allows
# (no half surrogates) and than upstreams send: whoever decodes so has a slow way for the rest.
UNDECODED = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ARRAY = msgspec.json.Decoder(list[msgspec.Raw])
_KEY = re.compile(rb'[\s,{]*"(?:[^"\\]|\\.)*"\s*:\s*', re.DOTALL)
_END = re.compile(rb"[\s{]*\}\s*")
_SPACE = re.compile(r"[ \t\r\n]*")


class Malformed(ValueError):
    """Not JSON, or not the kind of JSON value asked for."""


class Member(msgspec.Struct, frozen=True, gc=False):
    """A member's value and where it lies: `body[start:end] == raw`."""

    raw: bytes
    start: int
    end: int


def members(body: bytes) -> dict[str, Member]:
    """The members of the object that `body` is, in order. A name that occurs twice is Malformed.

    Two readers of an ambiguous body may see two different requests; we refuse to be one of them.
    """
    _refuse_invalid_utf8(body)
    try:
        raws = _OBJECT.decode(body)
    except UNDECODED:
        return _slow_members(body)
    # A name that occurs twice has one value here: some value is not where it is looked for, or
    # the object goes on after the last.
    found: dict[str, Member] = {}
    position = 0
    for name, value in raws.items():
        raw = bytes(value)
        key = _KEY.match(body, position)
        start = key.end() if key else 0
        if key is None or not body.startswith(raw, start):
            raise Malformed("a member occurs twice")
        position = start + len(raw)
        found[name] = Member(raw, start, position)
    if not _END.fullmatch(body, position):
        raise Malformed("a member occurs twice")
    return found


def elements(raw: bytes) -> list[bytes]:
    """The elements of the array that `raw` is, each as its bytes."""
    try:
        return [bytes(element) for element in _ARRAY.decode(raw)]
    except UNDECODED:
        return _slow_elements(raw)


def joined(raws: Mapping[str, bytes]) -> bytes:
    """The object of these members; the values are JSON already."""
    return b"{" + b",".join([dumps(name) + b":" + value for name, value in raws.items()]) + b"}"


def with_default(body: bytes, name: str, value: str) -> bytes:
    """The object with a member more, unless it has one of that name. An empty object stays empty."""
    found = members(body)
    if name in found or not found:
        return body
    start = body.index(b"{") + 1
    return body[:start] + dumps(name) + b":" + dumps(value) + b"," + body[start:]


def loads(raw: bytes) -> Any:
    """A JSON value as Python's; orjson where it can, the standard library for what it refuses
    (lone surrogates)."""
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        pass
    try:
        return json.loads(raw.decode(), parse_constant=_constant)
    except (ValueError, RecursionError) as error:
        raise Malformed(str(error)) from error


def lenient(raw: bytes | str) -> Any:
    """A JSON value as `loads` gives it, and beyond that what the official clients' libraries take: NaN and Infinity,
    which become null, and bytes that are no UTF-8, which become U+FFFD."""
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        pass
    text = raw if isinstance(raw, str) else raw.decode(errors="replace")
    try:
        return _LENIENT.decode(text)
    except (ValueError, RecursionError) as error:
        raise Malformed(str(error)) from error


def dumps(value: Any) -> bytes:
    """A Python value as JSON; lone surrogates become escapes, as UTF-8 has no bytes for them.

    Raises Malformed where even the standard library cannot write it (nested too deep).
    """
    try:
        return orjson.dumps(value)
    except TypeError:
        pass
    try:
        return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        raise Malformed(str(error)) from error


def is_utf8(body: bytes) -> bool:
    """msgspec does not look into the strings of a value that it leaves as bytes, or leaves out."""
    try:
        return body.isascii() or body.decode() is not None
    except UnicodeDecodeError:
        return False


def _refuse_invalid_utf8(body: bytes) -> None:
    if not is_utf8(body):
        raise Malformed("not valid UTF-8")


# What msgspec refuses and JSON allows (a lone surrogate escape) goes through the standard
# library's scanner, which tells where a value ends.


def _constant(name: str) -> NoReturn:
    raise Malformed(f"{name} is not JSON")


def _finite(text: str) -> float | None:
    """A number, of as many digits as may be, where a double can hold it."""
    number = float(text)
    return number if math.isfinite(number) else None


def _integer(text: str) -> int | float | None:
    return int(text) if len(text) < _DIGITS else _finite(text)


_DIGITS = 4000  # of which Python makes an integer
_LENIENT = json.JSONDecoder(parse_constant=lambda _: None, parse_float=_finite, parse_int=_integer)
_SCANNER = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=_constant)


def _value_end(text: str, position: int) -> int:
    try:
        return _SCANNER.raw_decode(text, position)[1]
    except (ValueError, RecursionError) as error:
        raise Malformed(str(error)) from error


def _space(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    return match.end() if match else position


def _text(raw: bytes, opening: str) -> tuple[str, int]:
    _refuse_invalid_utf8(raw)
    text = raw.decode()
    start = _space(text, 0)
    if not text.startswith(opening, start):
        raise Malformed(f"does not begin with {opening}")
    if _space(text, _value_end(text, start)) != len(text):
        raise Malformed("text after the end of the value")
    return text, start + 1


def _slow_members(body: bytes) -> dict[str, Member]:
    text, position = _text(body, "{")
    found: dict[str, Member] = {}
    while not text.startswith("}", position := _space(text, position)):
        position = _space(text, position + text.startswith(",", position))
        key_end = _value_end(text, position)
        name = json.loads(text[position:key_end])
        first = _space(text, _space(text, key_end) + 1)
        position = _value_end(text, first)
        raw, start = text[first:position].encode(), len(text[:first].encode())
        if name in found:
            raise Malformed("a member occurs twice")
        found[name] = Member(raw, start, start + len(raw))
    return found


def _slow_elements(raw: bytes) -> list[bytes]:
    text, position = _text(raw, "[")
    found: list[bytes] = []
    while not text.startswith("]", position := _space(text, position)):
        first = _space(text, position + text.startswith(",", position))
        position = _value_end(text, first)
        found.append(text[first:position].encode())
    return found
