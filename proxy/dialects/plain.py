"""A stream that says nothing but text, as most do, folded in one go. Knows only what `chat` would make of it, and
leaves any other stream to it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from proxy.core.members import dumps, is_utf8
from proxy.core.model import Reply

_NEXT = b"\n\ndata: "
_END = b"\n\ndata: [DONE]"


_Nothing = Annotated[list[Any], msgspec.Meta(max_length=0)] | None


class _Delta(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """OpenAI, vLLM and others send members empty that a reply might have had."""

    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    role: str | None = None
    refusal: None = None
    tool_calls: _Nothing = None
    function_call: None = None


class _Choice(msgspec.Struct, gc=False):
    delta: _Delta
    finish_reason: str | None = None
    index: Literal[0] | None = None
    error: None = None


class _Chunk(msgspec.Struct, gc=False):
    choices: Annotated[list[_Choice], msgspec.Meta(max_length=1)]
    model: str | None = None
    usage: dict[str, Any] | None = None
    error: None = None


_CHUNKS = msgspec.json.Decoder(_Chunk)


def folded(body: bytes) -> Reply | None:
    """The reply of a finished stream; None where it is not one of text alone, each event a line, and an end."""
    lines = _lines(body)
    if lines is None:
        return None
    try:
        chunks = _CHUNKS.decode_lines(lines)
    except (msgspec.MsgspecError, RecursionError):
        return None
    choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
    reasons = [choice.finish_reason for choice in choices if choice.finish_reason]
    message = _message([choice.delta for choice in choices])
    if not message or "error" in reasons:
        return None
    usage = next((chunk.usage for chunk in reversed(chunks) if chunk.usage), None)
    return Reply(
        message=dumps(message),
        model=next((chunk.model for chunk in chunks if chunk.model), None),
        finish_reason=reasons[0] if reasons else None,
        usage=dumps(usage) if usage else None,
        finished=bool(reasons),
    )


def _lines(body: bytes) -> bytes | None:
    """The data of a stream's events up to its end, each on a line."""
    start = 0
    while body.startswith(b":", start):  # OpenRouter: while it waits for the model
        start = body.find(b"\n\n", start) + 2 or len(body)
    end = body.find(_END, start)
    text = body[start + 6 : end]
    lines = text.replace(_NEXT, b"\n")
    each_is_one = len(text) - len(lines) == (len(_NEXT) - 1) * lines.count(b"\n") and b"\r" not in lines
    # msgspec does not look into what it leaves out
    return lines if end > 0 and body.startswith(b"data: ", start) and each_is_one and is_utf8(text) else None


def _message(said: list[_Delta]) -> dict[str, str | None] | None:
    """None where there is nothing, and where a thought has two names, whose order would have to be known."""
    content = [delta.content for delta in said if delta.content is not None]
    message = {"role": "assistant", "content": "".join(content) if content else None}
    if thoughts := [delta.reasoning for delta in said if delta.reasoning is not None]:
        message["reasoning"] = "".join(thoughts)
    if others := [delta.reasoning_content for delta in said if delta.reasoning_content is not None]:
        message["reasoning_content"] = "".join(others)
    return message if said and not (thoughts and others) else None
