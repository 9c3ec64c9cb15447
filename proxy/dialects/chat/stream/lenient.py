"""Reads events and bodies that break the standards, as the official client libraries do.

openai-python takes NaN, Infinity and a byte order mark, openai-node bytes that are no UTF-8. Where one of them reads a
text, its user has seen it, and it belongs in the history. Pure; called only where strict reading has failed.
"""

from __future__ import annotations

import json
import re
from typing import Any

from proxy.core import sse
from proxy.core.json_bytes import Malformed, dumps, lenient, loads
from proxy.core.model import Reply

_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_CONTROL = re.compile(r"[\0-\x08\x0e-\x1f\x7f]")
_FIELDS = {b"data", b"event", b"error", b"id", b"retry", b""}  # the last is a comment's
_BEGINNINGS = [field + b":" for field in _FIELDS]


def chunks(data: bytes) -> tuple[list[Any], bool]:
    """Parse the data of an event that is not one JSON value. Each line may be an object, and the lines between two such
    lines may be one object together. Gives the parsed values, with None in the place of each part that is not JSON, and
    whether a `[DONE]` line came."""
    found: list[Any] = []
    rest: list[bytes] = []
    lines = data.split(b"\n") if b"\n" in data else []
    ended = False
    for line in lines:
        if ended := line.startswith(b"[DONE]"):
            break
        value = _json(line) if line.lstrip().startswith(b"{") else None
        if value is None:
            rest.append(line)
        else:
            found += [*_joined(rest), value]
            rest = []
    return [*found, *_joined(rest)] if lines else [None], ended


def _joined(lines: list[bytes]) -> list[Any]:
    text = b"\n".join(lines)
    return [_json(text)] if text.strip() else []


def document(body: bytes) -> Any:
    """A JSON body. Raises Malformed where none of the libraries reads it."""
    try:
        return loads(body.strip())
    except Malformed:
        pass
    try:
        text = body.decode(json.detect_encoding(body), "surrogatepass")
    except UnicodeDecodeError:
        text = body.decode(errors="replace").removeprefix("\ufeff")
    return lenient(text)


def is_torn(body: bytes) -> bool:
    """Whether what begins like JSON ends before its value does."""
    rest = _STRING.sub(b"", body)
    opened = rest.count(b"{") + rest.count(b"[") - rest.count(b"}") - rest.count(b"]")
    return opened > 0 or b'"' in rest


def fold_text(body: bytes, content_type: str) -> Reply:
    """A whole body that is no JSON and says nothing as a stream. Plain text is a reply, of which nothing says that it
    is all; of a stream that only lacks its sign nothing remains. Raises Malformed for what has no text for anybody."""
    lines = [line for line in body.removeprefix(sse.BOM).splitlines() if line.strip()]
    if lines and any([field.startswith(lines[-1]) for field in _BEGINNINGS]):  # it breaks off there
        lines.pop()
    fields = {line.partition(b":")[0] for line in lines}
    if b"data" in fields:
        if body[-1:] not in b"\r\n" or any([_json(event.data) is not None for event in sse.events(body)]):
            return Reply()
        raise Malformed("no event of the stream is JSON")
    if not content_type.startswith("text/") or "event-stream" in content_type:
        if fields <= _FIELDS:
            return Reply()
        if _FIELDS & {field.strip() for field in fields}:
            raise Malformed("neither a stream nor plain text")
    text = body.removeprefix(sse.BOM).decode(errors="replace")
    if _CONTROL.search(text):
        raise Malformed("neither JSON nor a stream nor text")
    return Reply(message=dumps({"role": "assistant", "content": text}))


def _json(data: bytes) -> Any:
    """None where it is none."""
    try:
        return lenient(data)
    except Malformed:
        return None
