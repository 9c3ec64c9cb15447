"""Replaces half surrogate pairs in a message by U+FFFD: strict upstreams refuse the whole request for one.

A reply that is cut within an emoji ends in one (`\\ud83d`), and a model may write one into the arguments of a call,
which are JSON within a JSON string. Every other byte stays. Pure.
"""

from __future__ import annotations

import re
from typing import Any

from proxy.core.json_bytes import Malformed, dumps, joined, loads, members

# Pairs and other escapes come first, so that what is left is a half.
_ESCAPE = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(\\u[dD][89a-fA-F][0-9a-fA-F]{2})|\\.", re.DOTALL
)
_INNER = re.compile(rb"\\\\u[dD][89a-fA-F]")  # an escape within a string of a string
_CALLS = ("tool_calls", "function_call")


def whole(message: bytes) -> bytes:
    """A message (or any JSON) without halves; `message` itself where it has none."""
    if b"\\" not in message or b"\\u" not in message:  # the first takes no time
        return message
    mended = _mended(message)
    return _with_whole_arguments(mended) if _INNER.search(mended) else mended


def _mended(json: bytes) -> bytes:
    """JSON text without escapes that are a half."""
    return _ESCAPE.sub(lambda found: b"\\ufffd" if found[1] else found[0], json)


def _with_whole_arguments(message: bytes) -> bytes:
    try:
        value = loads(message)
        found = members(message)
        calls = {name: _arguments(value[name]) for name in _CALLS if name in found}
        changed = {name: dumps(call) for name, call in calls.items() if call != value[name]}
    except (Malformed, TypeError):  # the upstream is to judge it
        return message
    return joined({name: changed.get(name, each.raw) for name, each in found.items()}) if changed else message


def _arguments(value: Any) -> Any:
    """Calls whose arguments are JSON without halves."""
    if isinstance(value, list):
        return [_arguments(each) for each in value]
    if not isinstance(value, dict):
        return value
    if isinstance(value.get("function"), dict):
        return value | {"function": _arguments(value["function"])}
    text = value.get("arguments")
    return value | {"arguments": _mended(text.encode()).decode()} if isinstance(text, str) else value
