"""Pairs an assistant message's tool calls with the results that must follow it directly.

Decides which result answers which call, and the ID under which both go upstream. IDs come empty (Gemini), twice in one
message (adapters that use the function's name as ID), or in a form that another upstream refuses. Knows one group, not
the list around it.
"""

from __future__ import annotations

import copy
import hashlib
import re
from dataclasses import dataclass, replace
from typing import Any, Final

import msgspec

from proxy.core.json_bytes import UNDECODED, Malformed, dumps, loads, members
from proxy.dialects.json_values import as_text

# Role of a result: the member that names its call.
RESULTS: Final = {"tool": "tool_call_id", "function": "name"}
# Not empty, as several upstreams refuse that, and nothing that a model could take for success.
NO_RESULT: Final = "No result."


class _Names(msgspec.Struct):
    tool_call_id: Any = None
    name: Any = None


_NAMES = msgspec.json.Decoder(_Names)


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool call. `said`: the ID in the message (empty: none of use). `id`: the one that goes upstream, empty until it
    is chosen. `index`: its position in `tool_calls`. A legacy function_call has its name as ID."""

    role: str
    said: str
    index: int = 0
    id: str = ""


@dataclass(frozen=True, slots=True)
class StandIn:
    """A result that is sent in place of a missing one. `name`: the ID that a late result will name, unless the call
    came `nameless`."""

    role: str
    name: str
    id: str
    raw: bytes
    nameless: bool


def calls(raw: bytes) -> list[ToolCall]:
    """The calls of an assistant message; none where it cannot be read."""
    if b"_call" not in raw and b"\\u00" not in raw:  # neither key, nor one with escaped letters
        return []
    try:
        message = loads(raw)
    except Malformed:
        return []
    if not isinstance(message, dict):
        return []
    listed = message.get("tool_calls")
    pairs = enumerate(listed if isinstance(listed, list) else [])
    found = [ToolCall("tool", as_text(call.get("id")), index) for index, call in pairs if isinstance(call, dict)]
    function = message.get("function_call")
    name = as_text(function.get("name")) if isinstance(function, dict) else ""
    return found + [ToolCall("function", name, id=name)] if name else found


def named(role: str, raw: bytes) -> str:
    """The id (or legacy name) of the call that a result says it answers; empty where it names none."""
    try:
        return as_text(getattr(_NAMES.decode(raw), RESULTS[role]))
    except UNDECODED:
        pass
    try:
        result = loads(raw)
    except Malformed:
        return ""
    return as_text(result.get(RESULTS[role])) if isinstance(result, dict) else ""


def made(role: str, raw: bytes) -> list[str]:
    """The ids of the calls in a message."""
    return [call.said for call in calls(raw)] if role == "assistant" else []


def answered(role: str, raw: bytes) -> str | None:
    """The id of the call that a message is the result of, empty where it names none; None: it is no result."""
    return named(role, raw) if role in RESULTS else None


def renamed(role: str, raw: bytes, id: str) -> bytes:
    """The result as one of the call `id`; as it is where it says so already or cannot be written."""
    if named(role, raw) == id:
        return raw
    try:
        return _put(raw, RESULTS[role], dumps(id))
    except Malformed:
        return raw


class Group:
    """Collects the results of one message's calls: `answer`, `adopt` and `pass_on` take them, `close` ends it.

    `position` (messages before it) makes ids of its own unique in a list; ids that do not
    fullmatch `pattern` are replaced.
    """

    def __init__(self, raw: bytes, calls: list[ToolCall], position: int, pattern: str | None) -> None:
        self._raw = raw
        self._position = position
        self._pattern = pattern
        self._calls = calls[:]
        self._ids: set[str] = set()
        self._lacking = set(range(len(calls)))
        self._first = 0  # no call before this one lacks its result
        self._results: list[bytes] = []
        # By what results call it; a key stays when nothing waits under it any more.
        self._waiting: dict[tuple[str, str], list[int]] = {}
        for number in reversed(range(len(calls))):
            self._waiting.setdefault((calls[number].role, calls[number].said), []).append(number)
        for number, call in enumerate(calls):
            if call.said:
                self._identify(number, call.said)

    @property
    def size(self) -> int:
        """Messages of the group once it is closed."""
        return 1 + len(self._results) + len(self._lacking)

    def copy(self) -> Group:
        twin = copy.copy(self)
        twin._calls = self._calls[:]
        twin._ids = self._ids.copy()
        twin._lacking = self._lacking.copy()
        twin._results = self._results[:]
        twin._waiting = {key: numbers[:] for key, numbers in self._waiting.items()}
        return twin

    def answer(self, role: str, id: str, raw: bytes) -> bool:
        """Takes the result if a call by that very id (or without one, like the result) waits for it."""
        waiting = self._waiting.get((role, id))
        if not waiting:
            return False
        self._take(waiting.pop(), id, raw)
        return True

    def adopt(self, role: str, id: str, raw: bytes) -> bool:
        """Takes the result if one of the two sides has no id: the call that lacks one takes the
        result's, a result without one is that of the first call that waits."""
        if id and (role, id) in self._waiting:  # the second result of a call
            return False
        waiting = self._waiting.get((role, "" if id else self._next()))
        if not waiting:
            return False
        self._waiting.setdefault((role, id), [])
        self._take(waiting.pop(), id, raw)
        return True

    def pass_on(self, raw: bytes) -> None:
        """A result of no call of ours keeps its place among the others."""
        self._results.append(raw)

    def close(self) -> tuple[list[bytes], list[StandIn]]:
        """The call with its results, and what stands in for those that did not come."""
        missing = []
        for number in sorted(self._lacking):
            call = self._identify(number, self._calls[number].said)
            raw = dumps({"role": call.role, RESULTS[call.role]: call.id, "content": NO_RESULT})
            missing.append(StandIn(call.role, call.said or call.id, call.id, raw, not call.said))
        return [self._call(), *self._results], missing

    def _next(self) -> str:
        while self._first < len(self._calls) and self._first not in self._lacking:
            self._first += 1
        return self._calls[self._first].said if self._first < len(self._calls) else ""

    def _take(self, number: int, id: str, raw: bytes) -> None:
        self._lacking.discard(number)
        self._results.append(renamed(self._calls[number].role, raw, self._identify(number, id).id))

    def _identify(self, number: int, wanted: str) -> ToolCall:
        """The call under an id that no other call of the group has."""
        call = self._calls[number]
        if not call.id:
            id = wanted or f"call_{self._position}_{number}"
            if self._pattern is not None and not re.fullmatch(self._pattern, id):
                id = _short(id)
            while id in self._ids:
                id = _short(f"{id} {number}")
            self._ids.add(id)
            call = self._calls[number] = replace(call, id=id)
        return call

    def _call(self) -> bytes:
        changed = [call for call in self._calls if call.id != call.said]
        if not changed:
            return self._raw
        try:
            listed = loads(self._raw)["tool_calls"]
            for call in changed:
                listed[call.index]["id"] = call.id
            return _put(self._raw, "tool_calls", dumps(listed))
        except Malformed:
            return self._raw


def _short(id: str) -> str:
    """Satisfies Mistral (nine alphanumerics) and OpenAI (at most 40 characters) alike."""
    return hashlib.sha256(id.encode(errors="surrogatepass")).hexdigest()[:9]


def _put(raw: bytes, name: str, value: bytes) -> bytes:
    """The object with that member's value; its other bytes stay, unless it names a member twice."""
    try:
        found = members(raw)
    except Malformed:
        raw = dumps(loads(raw))
        found = members(raw)
    if name in found:
        return raw[: found[name].start] + value + raw[found[name].end :]
    start = raw.index(b"{") + 1
    return raw[:start] + dumps(name) + b":" + value + (b"," if found else b"") + raw[start:]
