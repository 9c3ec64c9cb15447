"""How the deltas of a streamed chat completion add up to one message.

The rules follow what upstreams really send: pieces of tool calls without an index, with an
index that is always 0, with empty ids; content as parts; reasoning details keyed by type and
index. Choice 0 is the recorded one. Knows nothing of events, requests or histories.
"""

from __future__ import annotations

import json
from typing import Any

from proxy.core.members import dumps

_CONCATENATED = frozenset(("content", "reasoning", "reasoning_content", "refusal"))


class Fold:
    """`chunk` per chunk, then `message`. `error` tells that a choice reported a failure."""

    def __init__(self) -> None:
        self.finish_reason: str | None = None
        self.error = False
        self._message: dict[str, Any] | None = None
        self._calls = Calls()

    def chunk(self, chunk: dict[str, Any]) -> None:
        for choice in as_list(chunk.get("choices")):
            if isinstance(choice, dict) and not choice.get("index"):
                self._choice(choice)

    def message(self) -> dict[str, Any] | None:
        """The message, or None where no delta came at all."""
        if self._message is None:
            return None
        calls = self._calls.finished()
        return {**self._message, "tool_calls": calls} if calls else dict(self._message)

    def _choice(self, choice: dict[str, Any]) -> None:
        delta = choice.get("delta")
        if isinstance(delta, dict):
            self._delta(delta)
        reason = choice.get("finish_reason")
        if choice.get("error") or reason == "error":
            self.error = True
        if isinstance(reason, str) and reason:
            self.finish_reason = self.finish_reason or reason

    def _delta(self, delta: dict[str, Any]) -> None:
        message = self._message = self._message or _nothing_yet()
        for key, value in delta.items():
            if value is None or key == "role":
                continue
            if key == "tool_calls":
                self._calls.add(as_list(value))
            elif key == "reasoning_details":
                _add_details(message.setdefault(key, []), as_list(value))
            elif key == "function_call":
                _add_function(message.setdefault(key, {}), value)
            elif key == "audio":
                _add_audio(message.setdefault(key, {}), value)
            else:
                message[key] = _joined(key, message.get(key), value)


def _nothing_yet() -> dict[str, Any]:
    # Cloudflare, GPUStack and Groq's compound models never send a role.
    return {"role": "assistant", "content": None}


class Calls:
    """The tool calls of a reply, in the order of their first appearance."""

    def __init__(self) -> None:
        self._calls: list[dict[str, Any]] = []
        self._at: dict[int, dict[str, Any]] = {}  # the newest call at an index

    def add(self, pieces: list[Any]) -> None:
        for piece in pieces:
            if isinstance(piece, dict):
                self._merge(self._target(piece), piece)

    def finished(self) -> list[dict[str, Any]]:
        for call in self._calls:
            function = call.get("function")
            # Databricks never sends the arguments of a call that has none; "" is refused by several.
            if isinstance(function, dict) and not function.get("arguments"):
                function["arguments"] = "{}"
            # Snowflake fills in the other kind of call, with empty members.
            for kind, other in (("custom", "function"), ("function", "custom")):
                if kind in call and other in call and not call[kind].get("name"):
                    del call[kind]
        return self._calls

    def _target(self, piece: dict[str, Any]) -> dict[str, Any]:
        index = piece.get("index") if isinstance(piece.get("index"), int) else None
        current = self._at.get(index) if index is not None else (self._calls[-1] if self._calls else None)
        if current is None or self._another(current, index, piece):
            current = {"id": "", "type": "function"}
            self._calls.append(current)
        if index is not None:
            self._at[index] = current
        return current

    @staticmethod
    def _another(current: dict[str, Any], index: int | None, piece: dict[str, Any]) -> bool:
        """Whether a piece begins another call than `current`, the one at its index: Ollama, Gemini
        adapters and Cerebras number parallel calls 0, 0, 0. Without an index an id or a name does."""
        id, name = piece.get("id"), _dict(piece.get("function")).get("name")
        if id and current["id"]:
            return bool(id != current["id"])
        if index is None:
            return bool(id or name)
        function = _dict(current.get("function"))
        return bool(name and not id and name != function.get("name") and _is_json(function.get("arguments")))

    @staticmethod
    def _merge(call: dict[str, Any], piece: dict[str, Any]) -> None:
        for key, value in piece.items():
            if value is None or key == "index" or (key in ("id", "type") and not value):
                continue
            if key in ("function", "custom"):
                _add_function(call.setdefault(key, {}), value)
            else:
                call[key] = value


def whole(calls: Any) -> list[dict[str, Any]]:
    """The tool calls of a reply that came in one piece, in the form in which they go back."""
    found: list[dict[str, Any]] = []
    for call in as_list(calls):
        one = Calls()
        one.add([call])
        found += one.finished()
    return found


def _add_function(function: dict[str, Any], piece: Any) -> None:
    for key, value in _dict(piece).items():
        if value is None:
            continue
        if key in ("arguments", "input"):
            text = value if isinstance(value, str) else dumps(value).decode()
            function[key] = function.get(key, "") + text
        elif key != "name" or not function.get("name"):
            function[key] = value
        elif value != function["name"] and not function.get("arguments"):
            # A repeated name (Novita, Kimi) is not another piece of it.
            function["name"] = _longer(function["name"], value)


def _add_details(details: list[Any], pieces: list[Any]) -> None:
    """Keyed by (type, index): xAI streams a summary and an encrypted item both under index 0."""
    for piece in pieces:
        if not isinstance(piece, dict):
            details.append(piece)
            continue
        same = next((d for d in details if isinstance(d, dict) and _detail_key(d) == _detail_key(piece)), None)
        if same is None or piece.get("type") == "reasoning.encrypted":
            details.append(dict(piece))
            continue
        for key, value in piece.items():
            if key in ("text", "summary") and isinstance(value, str):
                same[key] = _longer(same.get(key), value)
            elif value not in (None, ""):
                same[key] = value


def _detail_key(detail: dict[str, Any]) -> tuple[Any, Any]:
    return detail.get("type"), detail.get("index")


def _add_audio(audio: dict[str, Any], piece: Any) -> None:
    for key, value in _dict(piece).items():
        if key in ("data", "transcript") and isinstance(value, str):
            audio[key] = _longer(audio.get(key), value)
        elif value is not None:
            audio[key] = value


def _joined(key: str, old: Any, new: Any) -> Any:
    if key == "content" and (isinstance(new, list) or isinstance(old, list)):
        return _add_parts(_parts(old), _parts(new))
    if old is None:
        return new
    if key in _CONCATENATED and isinstance(old, str) and isinstance(new, str):
        return old + new
    if isinstance(old, list) and isinstance(new, list):
        return old + new
    if isinstance(old, dict) and isinstance(new, dict):
        return {**old, **new}
    return new


def _parts(content: Any) -> list[Any]:
    if isinstance(content, list):
        return content
    return [{"type": "text", "text": content}] if content else []


def _add_parts(parts: list[Any], new: list[Any]) -> list[Any]:
    """Mistral streams content as small parts, mixed with plain strings; neighbours of a type join."""
    parts = list(parts)
    for part in new:
        last = parts[-1] if parts else None
        if isinstance(part, dict) and isinstance(last, dict) and part.get("type") == last.get("type"):
            if isinstance(part.get("text"), str):
                parts[-1] = {**last, **part, "text": _longer(last.get("text"), part["text"])}
                continue
            if part.get("type") == "thinking":
                thinking = _add_parts(_parts(last.get("thinking")), _parts(part.get("thinking")))
                parts[-1] = {**last, **part, "thinking": thinking}
                continue
        parts.append(part)
    return parts


def _is_json(text: Any) -> bool:
    try:
        json.loads(text)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def _longer(old: Any, new: Any) -> Any:
    return old + new if isinstance(old, str) and isinstance(new, str) else new


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
