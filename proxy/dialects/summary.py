"""A summary of messages: how an upstream is asked for one, and what its answer becomes.

Pure. Which messages, and when, is not known here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from proxy.core.members import Malformed, dumps, loads
from proxy.core.model import Message
from proxy.dialects import chat, halves
from proxy.dialects.images import PLACEHOLDERS
from proxy.dialects.profiles import Profile

_COMPLETION_TOKENS = ("openai", "azure")  # their newer models refuse `max_tokens`


def request(
    prompt: str,
    model: str | None,
    most: int,
    profile: Profile,
    messages: Sequence[Message],
    size: int,
    before: bytes | None = None,
) -> bytes:
    """A request for a summary of at most `most` tokens: the operator's `prompt`, and as much of the messages' text, the
    newest of it, as `size` bytes hold. `before` is the message with the summary of what precedes them."""
    name = "max_completion_tokens" if profile.name in _COMPLETION_TOKENS else "max_tokens"
    first = [text(before)] if before else []
    told = [*first, *_newest([f"{message.role}: {text(message.raw)}" for message in messages], size)]
    asked = [{"role": "system", "content": prompt}, {"role": "user", "content": "\n\n".join(told)}]
    return halves.whole(dumps({**({"model": model} if model else {}), "messages": asked, name: most}))


def message_of(body: bytes) -> bytes | None:
    """The summary in an answer, as the message that will be sent; None where there is none, or not all of it."""
    try:
        reply = chat.fold_body(body)
        said = loads(reply.message) if reply.message and reply.finish_reason == "stop" else None
    except Malformed:
        return None
    content = said.get("content") if isinstance(said, dict) else None
    if not isinstance(content, str) or not content.strip():
        return None
    return halves.whole(dumps({"role": "user", "content": content.strip()}))


def text(raw: bytes) -> str:
    """What a message says, with a word for what is no text."""
    try:
        message = loads(raw)
    except Malformed:
        return ""
    if not isinstance(message, dict):
        return ""
    content = message.get("content")
    parts = content if isinstance(content, list) else [content]
    calls = message.get("tool_calls")
    return "\n".join([*filter(None, map(_part, parts)), *_calls(calls if isinstance(calls, list) else [])])


def _part(part: Any) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        return ""
    kind, said = part.get("type"), part.get("text")
    return said if isinstance(said, str) else PLACEHOLDERS.get(kind, "") if isinstance(kind, str) else ""


def _calls(calls: Iterable[Any]) -> list[str]:
    functions = [call.get("function") for call in calls if isinstance(call, dict)]
    named = [function for function in functions if isinstance(function, dict)]
    return [f"{function.get('name')}({function.get('arguments')})" for function in named]


def _newest(texts: Sequence[str], size: int) -> list[str]:
    kept: list[str] = []
    for said in reversed(texts):
        size -= len(said.encode(errors="replace"))
        if size < 0:
            break
        kept.append(said)
    return kept[::-1]
