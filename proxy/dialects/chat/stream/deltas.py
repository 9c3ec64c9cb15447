"""Adds up the deltas of a streamed chat completion to one message.

Follows what upstreams really send: pieces of tool calls without an index, with index 0 throughout, with empty IDs;
content as parts; reasoning details keyed by type and index. Only choice 0 is recorded. Pure.
"""

from __future__ import annotations

from typing import Any

from proxy.dialects.chat.stream.call_deltas import Calls, add_function
from proxy.dialects.json_values import as_dict, as_list

_CONCATENATED = frozenset(("content", "reasoning", "reasoning_content", "refusal"))
_NO_REASON = ("", "null")  # iFlytek writes the word into each chunk before the last


class Fold:
    """Call `chunk` for each chunk, then `message`. `error`: a choice reported a failure."""

    def __init__(self) -> None:
        self.finish_reason: str | None = None
        self.error = False
        self._message: dict[str, Any] | None = None
        self._calls = Calls()
        self._instead: dict[str, Any] | None = None  # a message that came in the place of deltas

    def chunk(self, chunk: dict[str, Any]) -> None:
        for choice in as_list(chunk.get("choices")):
            if isinstance(choice, dict) and not choice.get("index"):
                self._choice(choice)

    def message(self) -> dict[str, Any] | None:
        """The message, or None where no delta came at all."""
        if self._instead and not self._has_said:
            return self._instead
        if self._message is None:
            return None
        calls = self._calls.finished()
        return {**self._message, "tool_calls": calls} if calls else dict(self._message)

    @property
    def _has_said(self) -> bool:
        """Whether the deltas said anything: a message beside them (Perplexity's) tells the same again."""
        said = self._message or {}
        return any([value for name, value in said.items() if name != "role"]) or bool(self._calls.finished())

    def _choice(self, choice: dict[str, Any]) -> None:
        delta, message = choice.get("delta"), choice.get("message")
        if isinstance(delta, dict):
            self._delta(delta)
        if isinstance(message, dict):
            self._whole(message)
        reason = choice.get("finish_reason")
        if choice.get("error") or reason == "error":
            self.error = True
        if isinstance(reason, str) and reason not in _NO_REASON:
            self.finish_reason = self.finish_reason or reason

    def _whole(self, message: dict[str, Any]) -> None:
        """A message in the place of a delta: the whole one, or as much of it as there is by now. One that does not
        repeat the text before it goes on from there."""
        said = self._instead or {}
        told = {key: value for key, value in message.items() if value not in (None, "", [])}
        old, new = said.get("content"), told.get("content")
        if isinstance(old, str) and isinstance(new, str) and not new.startswith(old):
            told["content"] = old + new
        self._instead = {**_nothing_yet(), **said, **told}

    def _delta(self, delta: dict[str, Any]) -> None:
        message = self._message = self._message or _nothing_yet()
        for key, value in delta.items():
            if value is None or key == "role":
                continue
            if key == "tool_calls":
                self._calls.add(as_list(value))
            elif key == "reasoning_details":
                _add_details(message.setdefault(key, []), as_list(value))
            elif key == "thinking_blocks":
                _add_thoughts(message.setdefault(key, []), as_list(value))
            elif key == "function_call":
                add_function(message.setdefault(key, {}), value)
            elif key == "audio":
                _add_audio(message.setdefault(key, {}), value)
            else:
                message[key] = _joined(key, message.get(key), value)


def fails(chunk: dict[str, Any]) -> bool:
    """Whether a chunk says that the reply failed. It mostly has an `error`; vLLM's older servers and Mistral send one
    that is the error, MiniMax one with a status and no choices."""
    if chunk.get("error"):
        return True
    if isinstance(chunk.get("choices"), list):
        return False
    return "error" in (chunk.get("object"), chunk.get("type")) or bool(
        as_dict(chunk.get("base_resp")).get("status_code")
    )


def _nothing_yet() -> dict[str, Any]:
    # Cloudflare, GPUStack and Groq's compound models never send a role.
    return {"role": "assistant", "content": None}


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


def _add_thoughts(blocks: list[Any], pieces: list[Any]) -> None:
    """LiteLLM sends Claude's thinking as a block for each event: one goes on until its signature, which comes alone, or
    with the whole text again."""
    for piece in pieces:
        last: Any = blocks[-1] if blocks else None
        if not (_is_thought(last) and _is_thought(piece)) or last.get("signature"):
            blocks.append(piece)
            continue
        old, new = last.get("thinking") or "", piece.get("thinking") or ""
        again = piece.get("signature") and new.startswith(old)
        blocks[-1] = {**last, **piece, "thinking": new if again else old + new}


def _is_thought(block: Any) -> bool:
    return isinstance(block, dict) and block.get("type") == "thinking" and isinstance(block.get("thinking"), str | None)


def _add_audio(audio: dict[str, Any], piece: Any) -> None:
    for key, value in as_dict(piece).items():
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


def _longer(old: Any, new: Any) -> Any:
    return old + new if isinstance(old, str) and isinstance(new, str) else new
