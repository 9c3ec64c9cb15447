"""Writes the request for a summary, and reads the summary from its answer.

Pure. The caller decides which messages are summarized, and when.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from proxy.core.json_bytes import Malformed, dumps, loads
from proxy.core.model import Message, Reply
from proxy.core.usage import counts
from proxy.core.window.chain import GAP, LEAST, SHORT, bytes_of, shortened, size_of
from proxy.dialects.chat import wire
from proxy.dialects.chat.images import PLACEHOLDERS
from proxy.dialects.chat.profiles import Profile
from proxy.dialects.chat.stream import surrogates

_COMPLETION_TOKENS = ("openai", "azure")  # their newer models refuse `max_tokens`
_EVENTS = (b"data:", b"event:", b":")  # of a stream, which some send unasked
_TAGS = "think|thinking|thought|reasoning"
_CLOSED = re.compile(rf"<({_TAGS})>.*?</\1>|\[THINK\].*?\[/THINK\]|◁think▷.*?◁/think▷", re.S | re.I)
_ENDED = re.compile(rf"\A.*(?:</(?:{_TAGS})>|\[/THINK\]|◁/think▷)", re.S | re.I)  # begun by the template
_BEGUN = re.compile(rf"\A\s*(?:<(?:{_TAGS})>|\[THINK\]|◁think▷).*", re.S | re.I)
_REFUSAL = re.compile(
    r"\W*(?:(?:i am|i['\u2019]m)\s+(?:\w+\s+)?sorry\b|(?:sorry|apologies)\b|i apologi[sz]e\b|as an ai\b"
    r"|(?:i am|i['\u2019]m|we are) (?:not able|unable)\b|(?:i|we) (?:must|have to) decline\b"
    r"|(?:i|we) (?:can(?:not|['\u2019]t| not)|won['\u2019]t)\b"
    r"|(?:es )?tut mir leid|(?:je suis )?désolé|lo siento|mi dispiace|desculpe|很?抱歉|对不起|申し訳)",
    re.I,
)
_REFUSED = 400  # characters: what is longer says more than that it does not
_TOOLS = frozenset(("tool_calls", "function_call"))


class Summary(NamedTuple):
    """What an upstream wrote. `truncated`: it did not come to its end, or says more than was asked for."""

    text: str
    truncated: bool
    usage: bytes | None


def texts(messages: Iterable[Message]) -> list[str]:
    """What messages say, each with who says it; empty for one that says nothing."""
    said = [(message.role, text(message.raw)) for message in messages]
    return [f"{role}: {words}" if words.strip() else "" for role, words in said]


def request(
    prompt: str, model: str | None, most: int, profile: Profile, told: str, before: bytes | None = None
) -> bytes:
    """A request for a summary of at most `most` tokens: the operator's `prompt`, and what is `told`. `before` is the
    message with the summary of what precedes it."""
    name = "max_completion_tokens" if profile.name in _COMPLETION_TOKENS else "max_tokens"
    words = GAP.join([*([text(before)] if before else []), told])
    asked = [{"role": "system", "content": prompt}, {"role": "user", "content": words}]
    return surrogates.whole(dumps({**({"model": model} if model else {}), "messages": asked, name: most}))


def message(heading: str | None, summary: str) -> bytes:
    """The message that goes upstream in the place of what was summarized; its first line says what it is."""
    words = summary if heading is None else f"{heading}{GAP}{summary}"
    return surrogates.whole(dumps({"role": "user", "content": words}))


def within(summary: bytes, limit: int) -> bytes:
    """A summary's message as a prompt of at most so many tokens has it: a long one is shortened."""
    size = max(LEAST, limit)  # a quarter, at four bytes a token
    if len(summary) <= size:
        return summary
    return surrogates.whole(dumps({"role": "user", "content": shortened(text(summary), size)}))


def written(body: bytes, most: int, heading: str | None = None) -> Summary | str:
    """The summary in an answer, of at most `most` tokens; else why there is none."""
    try:
        reply = wire.fold_stream(body) if body.lstrip().startswith(_EVENTS) else wire.fold_body(body)
        said = loads(reply.message) if reply.message and not reply.error else None
    except Malformed:
        return "it is no answer of a chat"
    if not isinstance(said, dict):
        return "it has no message"
    if said.get("tool_calls") or said.get("function_call") or reply.finish_reason in _TOOLS:
        return "it is a tool call"
    words = _without_thoughts(_reply_text(said.get("content"))).strip()
    if heading and words.startswith(heading):  # copied from the one before
        words = words[len(heading) :].strip()
    refused = reply.finish_reason == "content_filter" or said.get("refusal")
    if refused or (len(words) < _REFUSED and _REFUSAL.match(words)):
        return "it is a refusal"
    if not words:
        short = reply.finish_reason == "length"
        return "all its tokens went into thoughts; raise history.summary.max_tokens" if short else "it is empty"
    return _bounded(words, reply, most)


def _bounded(words: str, reply: Reply, most: int) -> Summary:
    told = counts(reply.usage) if reply.usage else None
    kept = shortened(words, bytes_of(most, size_of(words), told.reply - told.thoughts if told else 0))
    truncated = kept != words or reply.finish_reason == "length" or not reply.finished
    return Summary(kept if kept.endswith(SHORT) or not truncated else kept + SHORT, truncated, reply.usage)


def _without_thoughts(words: str) -> str:
    return _BEGUN.sub("", _ENDED.sub("", _CLOSED.sub("", words)))


def _reply_text(content: Any) -> str:
    """The text of a reply: of parts those that are text, not its thoughts."""
    if isinstance(content, str):
        return content
    parts = [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []
    said = [part.get("text") for part in parts if part.get("type") == "text"]
    return "\n".join([each for each in said if isinstance(each, str)])


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
