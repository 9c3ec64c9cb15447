"""Folds a stream of plain text in one pass, as most streams are; leaves any other one to `wire`. Pure."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import msgspec

from proxy.core.json_bytes import UNDECODED, dumps, is_utf8
from proxy.core.model import Reply

_NEXT = b"\n\ndata: "
_END = b"\n\ndata: [DONE]"
_SAYS = re.compile(rb'"delta":\{(?:"role":"assistant",)?"(?:content|reasoning|reasoning_content)":"')
# Text between its quotes, with no escape that could mean something else beside another one.
_CHARACTERS = rb'[^"\\\x00-\x1f]*'
_TEXT = re.compile(_CHARACTERS + rb'(?:\\["\\/bfnrt]' + _CHARACTERS + rb")*")

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
    events = fewer(_events(body))
    lines = b"\n".join(events)
    if lines.count(b"\n") + 1 != len(events):
        return None
    try:
        chunks = _CHUNKS.decode_lines(lines)
    except UNDECODED:
        return None
    choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
    reasons = [choice.finish_reason for choice in choices if choice.finish_reason]
    message = _message([choice.delta for choice in choices])
    odd = "error" in reasons or "null" in reasons
    if not message or odd or not any([text for name, text in message.items() if name != "role"]):
        return None  # what says nothing may have said it elsewhere: a message in place of its deltas
    usage = next((chunk.usage for chunk in reversed(chunks) if chunk.usage), None)
    return Reply(
        message=dumps(message),
        model=next((chunk.model for chunk in chunks if chunk.model), None),
        finish_reason=reasons[0] if reasons else None,
        usage=dumps(usage) if usage else None,
        finished=bool(reasons),
    )


def _events(body: bytes) -> list[bytes]:
    """The data of a stream's events up to its end; none where they are not plainly written."""
    start = 0
    while body.startswith(b":", start):  # OpenRouter: while it waits for the model
        start = body.find(b"\n\n", start) + 2 or len(body)
    end = body.rfind(_END, start)
    text = body[start + 6 : end]
    # msgspec does not look into what it leaves out
    plain = end > 0 and body.startswith(b"data: ", start) and b"\r" not in text and is_utf8(text)
    return text.split(_NEXT) if plain else []


def fewer(events: list[bytes]) -> list[bytes]:
    """Events that say the same: those around the middle one that differ in a delta's text alone have become one. To see
    that takes a third of what it takes to decode them."""
    like = events[len(events) // 2] if events else b""
    found = _SAYS.search(like)
    end = like.find(b'"}', found.end()) if found else -1
    if not found or end < 0:
        return events
    head, tail = like[: found.end()], like[end:]
    alike = [event.startswith(head) and event.endswith(tail) for event in events]
    first, size = alike.index(True), alike.count(True)
    run = slice(first, first + size)
    said = [event[len(head) : -len(tail)] for event in events[run]]
    # Of a second delta, however its name is spelled, each repetition would count.
    alone = b'"delta"' not in head[: found.start()] + tail and b"\\" not in head + tail
    if not (alone and all(alike[run]) and _TEXT.fullmatch(b" ".join(said))):
        return events
    return [*events[:first], head + b"".join(said) + tail, *events[run.stop :]]


def _message(said: list[_Delta]) -> dict[str, str | None] | None:
    """None where there is nothing, and where a thought has two names, whose order would have to be known."""
    content = [delta.content for delta in said if delta.content is not None]
    message = {"role": "assistant", "content": "".join(content) if content else None}
    if thoughts := [delta.reasoning for delta in said if delta.reasoning is not None]:
        message["reasoning"] = "".join(thoughts)
    if others := [delta.reasoning_content for delta in said if delta.reasoning_content is not None]:
        message["reasoning_content"] = "".join(others)
    return message if said and not (thoughts and others) else None
