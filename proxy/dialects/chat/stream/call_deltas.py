"""Joins the pieces of streamed tool calls into whole calls.

Upstreams number parallel calls 0, 0, 0, or not at all, repeat or omit IDs, and send the name last. No single member
tells where a call begins, so `_begins` weighs all of them (decision 52). Pure; reads tool calls only.
"""

from __future__ import annotations

import json
import re
from typing import Any

from proxy.core.json_bytes import dumps
from proxy.dialects.json_values import as_dict, as_list

Json = dict[str, Any]

KINDS = {"function": "arguments", "custom": "input"}  # where a call has its text
_MARKS = re.compile(r'\\.?|["{}\[\]]', re.DOTALL)
_SHORT = 64


class Calls:
    """The tool calls of a reply, in the order of their first appearance."""

    def __init__(self) -> None:
        self._calls: list[_Call] = []
        self._at: dict[Any, _Call] = {}  # the newest of an index
        self._newest: dict[Any, _Call] = {}  # by ID, and by index and ID
        self._last: _Call | None = None  # that had a piece

    def add(self, pieces: list[Any]) -> None:
        for piece in pieces:
            if isinstance(piece, dict) and not self._goes_on(piece):
                self._add(piece)

    def finished(self) -> list[Json]:
        return [_finished(call.said) for call in self._calls]

    def _goes_on(self, piece: Json) -> bool:
        """Takes the usual piece, that goes on with the arguments of the call of its index: what `_add` would make of it
        too, and most of a stream."""
        index, said = piece.get("index"), piece.get("function")
        call = self._at.get(index) if type(index) is int else None
        if call is None or call.head or type(said) is not dict:
            return False
        id, name = piece.get("id"), said.get("name")
        if id or name:  # again on each piece, at some
            text, function = said.get("arguments"), call.said.get("function")
            if self._last is not call or type(text) is not str or text.lstrip()[:1] in "{[":
                return False
            if id and (type(id) is not str or self._newest.get(("both", index, id)) is not call):
                return False
            if name and name != as_dict(function).get("name"):
                return False
        self._last = call
        call.merge(piece)
        return True

    def _add(self, piece: Json) -> None:
        index, id = _index(piece), piece.get("id") or None
        call = self._candidate(index, id)
        head = call.head if call and _starts(piece) else None
        if call is None or head or _begins(call, piece):
            call = _Call()
            self._calls.append(call)
            call.merge(_without_name(head) if head and _named(piece) else head or {})
        elif call.is_told_again(piece):
            call.head = piece
        call.merge(piece)
        call.index = index if call.index is None else call.index
        self._last = call
        self._at[index] = self._newest["id", _hashable(id)] = self._newest["both", index, _hashable(id)] = call

    def _candidate(self, index: Any, id: Any) -> _Call | None:
        """The call that a piece would go on with: the newest of its index or, without one, of its ID; of those that
        share an index, the one with its ID."""
        newest = self._last
        if index is None:
            return (id and self._newest.get(("id", _hashable(id)))) or newest
        found = (id and self._newest.get(("both", index, _hashable(id)))) or self._at.get(index)
        return found or (newest if newest and newest.index is None else None)


class _Call:
    """A call so far, and how far its arguments have been read."""

    def __init__(self) -> None:
        self.said: Json = {"id": "", "type": "function"}
        self.index: Any = None
        self.head: Json | None = None  # came behind whole arguments: told again, or the head of the next call
        self._read = 0
        self._depth = 0
        self._quoted = False
        self._bracketed = False

    @property
    def name(self) -> str:
        return _named(self.said)

    @property
    def text(self) -> str:
        return _text_of(self.said)

    @property
    def is_custom(self) -> bool:
        return bool(as_dict(self.said.get("custom")).get("name"))

    def is_told_again(self, piece: Json) -> bool:
        """Whether a piece has an ID or a name, and nothing that the call lacks or could still get."""
        id, name = piece.get("id"), _named(piece)
        lacks = (name and not self.name) or (id and not self.said["id"])
        return bool(id or name) and not lacks and not _text_of(piece).strip() and self.is_whole()

    def merge(self, piece: Json) -> None:
        for key, value in piece.items():
            if value is None or key == "index" or (key in ("id", "type") and not value):
                continue
            if key in ("function", "custom"):
                add_function(self.said.setdefault(key, {}), value)
            else:
                self.said[key] = value

    def is_whole(self) -> bool:
        """Whether the arguments are one whole JSON value, behind which no more of them can come. Each character is
        looked at once, however often this is asked."""
        text = self.text
        for found in _MARKS.finditer(text, self._read):
            mark = found.group()
            if mark == "\\":  # the character that it escapes is still to come
                self._read = found.start()
                break
            self._mark(mark)
        else:
            self._read = len(text)
        if self._bracketed:
            return not self._depth
        return len(text) < _SHORT and _is_json(text)

    def _mark(self, mark: str) -> None:
        if mark == '"':
            self._quoted = not self._quoted
        elif not self._quoted and mark in "{}[]":
            self._depth += 1 if mark in "{[" else -1
            self._bracketed = True


def _begins(call: _Call, piece: Json) -> bool:
    """Whether a piece begins another call than the one it would go on with. A piece with neither ID nor name never
    does, for that is how arguments go on."""
    id, name = piece.get("id"), _named(piece)
    if not id and not name:
        return False
    if id and call.said["id"] and id != call.said["id"]:
        return True
    if _starts(piece) and call.is_whole():
        return True  # other arguments begin behind whole ones
    if not name or not call.name:
        return False  # of what has one, the other half: an ID that comes late, a name that comes last
    numbered = _index(piece) is not None
    if name == call.name:
        # Who numbers nothing sends calls whole, or tells them apart by their IDs.
        return not (numbered or call.said["id"]) and (not call.text or call.is_whole())
    if call.text and (call.is_custom or call.is_whole()):
        return True
    # A name in two pieces; else one that others of the call's members come with.
    return not numbered or bool(id or piece.get("type"))


def _without_name(piece: Json) -> Json:
    return {key: value for key, value in piece.items() if key not in KINDS}


def _starts(piece: Json) -> bool:
    """Whether a piece's text is where arguments begin, which are an object (a list in the wild)."""
    return _text_of(piece).lstrip()[:1] in ("{", "[")


def whole(calls: Any) -> list[Json]:
    """The tool calls of a reply that came in one piece, in the form in which they go back."""
    found: list[Json] = []
    for call in as_list(calls):
        one = Calls()
        one.add([call])
        found += one.finished()
    return found


def add_function(function: Json, piece: Any) -> None:
    for key, value in as_dict(piece).items():
        if value is None:
            continue
        if key in ("arguments", "input"):
            function[key] = function.get(key, "") + (value if isinstance(value, str) else dumps(value).decode())
        elif key != "name" or not function.get("name"):
            function[key] = value
        elif value != function["name"] and not function.get("arguments"):
            # A repeated name (Novita, Kimi) is not another piece of it.
            old = function["name"]
            function["name"] = old + value if isinstance(old, str) and isinstance(value, str) else value


def _finished(call: Json) -> Json:
    function = call.get("function")
    # Databricks never sends the arguments of a call that has none; "" is refused by several.
    if isinstance(function, dict) and not function.get("arguments"):
        function["arguments"] = "{}"
    # Snowflake fills in the other kind of call, with empty members.
    for kind, other in (("custom", "function"), ("function", "custom")):
        if kind in call and other in call and not call[kind].get("name"):
            del call[kind]
    return call


def _index(piece: Json) -> Any:
    index = piece.get("index")
    return index if isinstance(index, int | float | str) and index != "" else None


def _hashable(id: Any) -> Any:
    return id if isinstance(id, str | int | float | None) else str(id)


def _named(call: Json) -> str:
    names = [as_dict(call.get(kind)).get("name") for kind in KINDS]
    return next((name for name in names if isinstance(name, str) and name), "")


def _text_of(call: Json) -> str:
    for kind, text in KINDS.items():
        if value := as_dict(call.get(kind)).get(text):
            return _as_text(value)
    return ""


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else dumps(value).decode()


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True
