"""Prepares a client's stored message for an upstream, and places cache_control as its client does now.

A stored message loses its cache_control and, an assistant's, its fillers. Pure, message by message: the order of
messages and upstreams are not known here. A message that cannot be read goes unchanged, for the upstream to judge.
"""

from __future__ import annotations

import re

from proxy.core.json_bytes import Malformed, elements, joined, loads, members

_CACHE_CONTROL = "cache_control"
_EMPTY = re.compile(rb"\[\s*\]")


def asked_form(raw: bytes) -> bytes:
    """A client's message as it goes upstream from the store: without its cache marks, which would add up to more
    than Anthropic takes, and an assistant's without fillers. `raw` itself where it has neither."""
    if not (
        b"null" in raw
        or b"cache_control" in raw
        or b'"tool_calls"' in raw
        or b'"annotations"' in raw
        or b'"prefix"' in raw
    ):
        return raw
    try:
        found = _raws(raw)
        fillers = loads(found.get("role", b"null")) == "assistant"
        form = {name: value for name, value in found.items() if not (fillers and _is_filler(name, value))}
        form.pop(_CACHE_CONTROL, None)
        for name in ("content", "tool_calls"):
            if form.get(name, b"").startswith(b"["):
                parts = elements(form[name])
                new = [_without_cache_control(part) for part in parts]
                form[name] = form[name] if new == parts else _array(new)
        return raw if form == found else joined(form)
    except Malformed:
        return raw


def with_cache_control(ours: bytes, theirs: bytes) -> bytes:
    """Our copy of a message with cache marks where the client's present copy has them: on the message, and on the
    same parts, counted from the end (thoughts and what else a client drops stand in front)."""
    if _CACHE_CONTROL.encode() not in theirs:
        return ours
    try:
        found, wanted = _raws(ours), _raws(theirs)
        form = dict(found)
        for name in ("content", "tool_calls"):
            if name in found and wanted.get(name, b"").startswith(b"["):
                form[name] = _with_cache_control_of(found[name], elements(wanted[name]))
        if (control := wanted.get(_CACHE_CONTROL, b"null")) != b"null":
            form[_CACHE_CONTROL] = control
        return ours if form == found else joined(form)
    except Malformed:
        return ours


def _is_filler(name: str, value: bytes) -> bool:
    """What an assistant's message does without: what says nothing, and `prefix`, which is said of a last one only."""
    if name == "prefix":
        return True
    empty = name in ("tool_calls", "annotations") and _EMPTY.fullmatch(value)
    return bool(empty) or (value == b"null" and name != "content")


def _without_cache_control(part: bytes) -> bytes:
    found = _raws(part) if _CACHE_CONTROL.encode() in part and part.startswith(b"{") else {}
    return (
        joined({name: value for name, value in found.items() if name != _CACHE_CONTROL})
        if _CACHE_CONTROL in found
        else part
    )


def _with_cache_control_of(ours: bytes, theirs: list[bytes]) -> bytes:
    """Our parts with the marks of theirs; a text becomes a list of one part where its part is marked."""
    text = [b'{"type":"text","text":' + ours + b"}"] if ours.startswith(b'"') and ours != b'""' else []
    parts = elements(ours) if ours.startswith(b"[") else text
    new = list(parts)
    for distance, part in enumerate(reversed(theirs), 1):
        wanted = _raws(part) if _CACHE_CONTROL.encode() in part and part.startswith(b"{") else {}
        index = (
            _index_of(parts, distance, wanted.get("type")) if wanted.get(_CACHE_CONTROL, b"null") != b"null" else None
        )
        if index is not None:
            new[index] = joined(_raws(parts[index]) | {_CACHE_CONTROL: wanted[_CACHE_CONTROL]})
    return ours if new == parts else _array(new)


def _index_of(parts: list[bytes], distance: int, kind: bytes | None) -> int | None:
    """Where the part is that stands so far from the end; if that is of another type, the last that is of this."""
    indexes = [n for n, part in enumerate(parts) if part.startswith(b"{") and _raws(part).get("type") == kind]
    same = len(parts) - distance
    return same if same in indexes else indexes[-1] if indexes else None


def _raws(raw: bytes) -> dict[str, bytes]:
    return {name: member.raw for name, member in members(raw).items()}


def _array(parts: list[bytes]) -> bytes:
    return b"[" + b",".join(parts) + b"]"
