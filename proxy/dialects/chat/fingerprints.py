"""Takes fingerprints of chat messages, by which a client's copy is recognised although its bytes differ.

Clients write a list of one text as a string, parse and print arguments again, drop reasoning and signatures, add nulls,
move cache_control. A fingerprint is a hash of what is left without all that. Numbers are compared by value (JavaScript
prints 1.0 as 1), integers beyond 64 bits as doubles. Knows no history.
"""

from __future__ import annotations

import math
from hashlib import blake2b
from typing import Any, TypedDict

import msgspec

from proxy.core.json_bytes import UNDECODED, Malformed, dumps, loads
from proxy.dialects.chat import tool_groups
from proxy.dialects.chat.stream import surrogates
from proxy.dialects.json_values import as_dict, as_list

_LOOSE = 1  # of the first byte
# Deeper values are compared by their bytes: whether Python can walk them depends on who asks.
_DEPTH = 64
_THOUGHTS = ("thinking", "reasoning", "redacted_thinking")
# Marks for caching and stamps of streams are set anew in each request.
_PASSING = ("cache_control", "index")

Json = dict[str, Any]


class _Plain(TypedDict, total=False):
    """Most messages: text alone. Any other is refused by its first member that is more."""

    role: str
    content: str | None
    refusal: str | None
    name: str | None
    tool_call_id: str | None
    tool_calls: None
    function_call: None
    audio: None


_PLAIN = msgspec.json.Decoder(_Plain)


def fingerprint(raw: bytes, ids: bool = True) -> bytes:
    """Hash a message in its normal form to 16 bytes: equal for copies that clients spell otherwise. Never fails: bytes
    that are no message are hashed as they are.

    Without `ids` the ids of tool calls are left out, as they always are where a call has none:
    Gemini's come without, and each client invents its own. The fingerprint is then loose.
    """
    try:
        form, loose = _form(_read(raw), ids)
        return _hash(dumps(form), loose)
    except Malformed:
        return _hash(raw, False)


def bare(raw: bytes) -> bytes:
    """The fingerprint of a reply without the text beside its calls, for clients that keep the calls alone. Empty where
    it has no calls, or one without an ID."""
    try:
        form, loose = _form(_read(raw), True) if b'"tool_calls"' in raw else ([], False)
        return _hash(dumps([form[0], [], *form[2:]]), False) if len(form) > 2 and not loose else b""
    except Malformed:
        return b""


def is_loose(fingerprint: bytes) -> bool:
    """Whether the ids of tool calls were left out; only a fingerprint taken without ids can equal it then."""
    return bool(fingerprint[0] & _LOOSE)


def text(raw: bytes) -> str:
    """What a message says, without the white space around it and without thoughts; empty where it cannot be read."""
    try:
        message = _read(raw)
        runs = _content(message, message.get("role")) if isinstance(message, dict) else []
    except Malformed:
        return ""
    return "\n".join([run for run in runs if isinstance(run, str)])


def says_nothing(raw: bytes) -> bool:
    """Whether an assistant's message has neither content nor calls: what some clients keep of a silent reply."""
    try:
        form, _ = _form(_read(raw), True)
    except Malformed:
        return False
    return bool(form == ["assistant", []])


def made(role: str, raw: bytes) -> list[str]:
    """The IDs of the calls in a message, empty where one has none."""
    return tool_groups.made(role, raw)


def answered(role: str, raw: bytes) -> str | None:
    """The ID of the call that a message is the result of, empty where it names none; None: it is no result."""
    return tool_groups.answered(role, raw)


def joined(first: bytes, second: bytes) -> bytes:
    """The fingerprint of what a client makes of a prefill and the reply that continued it: one message
    with the texts in a row, and whatever else the reply has."""
    try:
        prefill, reply = loads(first), loads(second)
        if not isinstance(prefill, dict) or not isinstance(reply, dict):
            return fingerprint(second)
        content = _parts(prefill.get("content")) + _parts(reply.get("content"))
        return fingerprint(dumps({**reply, "role": "assistant", "content": content}))
    except Malformed:
        return fingerprint(second)


def _hash(canonical: bytes, loose: bool) -> bytes:
    digest = blake2b(canonical, digest_size=16).digest()
    return bytes((digest[0] & ~_LOOSE | loose,)) + digest[1:]


def _read(raw: bytes) -> Any:
    try:
        return _PLAIN.decode(raw)
    except UNDECODED:
        return loads(surrogates.whole(raw))  # of which a stored reply has none


def _form(message: Any, ids: bool) -> tuple[Any, bool]:
    """What counts of a message, and whether the ids of its calls do not."""
    if not isinstance(message, dict):
        return {"no message": _canonical(message)}, False
    role = message.get("role")
    form = [_canonical("system" if role == "developer" else role), _content(message, role)]
    if name := _name(message, role):
        form.append(name)
    if not (message.get("tool_calls") or message.get("function_call") or message.get("audio")):
        return form, False
    calls = [call for call in as_list(message.get("tool_calls")) if isinstance(call, dict)]
    loose = bool(calls) and not (ids and all(call.get("id") for call in calls))
    if calls:
        form.append({"calls": [_call(call, loose) for call in calls]})
    if function := _function(message.get("function_call")):
        form.append({"function": function})
    if audio := as_dict(message.get("audio")).get("id"):
        form.append({"audio": _canonical(audio)})
    return form, loose


def _name(message: Json, role: Any) -> Json | None:
    """What tells a message from its like. Agents sign the replies that they send back, and the
    names of tools come and go."""
    key = "tool_call_id" if role == "tool" else "name"
    name = None if role == "assistant" else message.get(key)
    return {"name": _canonical(name)} if name else None


# Content


def _content(message: Json, role: Any) -> list[Any]:
    """Runs of text without their outer white space, and between them the other parts in order."""
    content = message.get("content")
    if role == "assistant" and not isinstance(content, str | list | None):
        content = dumps(content).decode()  # a value that a schema asked for: it goes back as its JSON
    runs = [content] if isinstance(content, str) else _runs(content, role)
    if role == "assistant":
        runs[0] = _without_thoughts(runs[0])
    found = _stripped(runs)
    if not found and role == "assistant":
        # What a model declines with stands apart at OpenAI; a client may show it, and send it, as the text.
        refusal = message.get("refusal")
        return _stripped([refusal]) if isinstance(refusal, str) else []
    return found


def _stripped(runs: list[Any]) -> list[Any]:
    texts = [run.strip() if isinstance(run, str) else run for run in runs]
    return [run for run in texts if run != ""]


def _runs(content: Any, role: Any) -> list[Any]:
    """Text and other parts in turn: each other part stands between two runs of text, empty or not."""
    runs: list[Any] = []
    texts: list[str] = []
    for part in _parts(content):
        text = _part_text(part)
        if text is not None:
            texts.append(text)
        elif role != "assistant" or part.get("type") not in _THOUGHTS:
            runs += ["".join(texts), _part(part)]
            texts.clear()
    return [*runs, "".join(texts)]


def _parts(content: Any) -> list[Any]:
    """Content as parts; strings among them are texts (Mistral mixes both)."""
    parts = content if isinstance(content, list) else [content]
    return [part if isinstance(part, dict | str) else {"": part} for part in parts if part is not None]


def _part_text(part: Json | str) -> str | None:
    if isinstance(part, str):
        return part
    text = part.get("text", "") or ""
    return text if part.get("type") == "text" and isinstance(text, str) else None


def _part(part: Json) -> Json:
    kept = {key: value for key, value in part.items() if value is not None and key not in _PASSING}
    canonical: Json = _canonical(kept)
    return canonical


def _without_thoughts(text: str) -> str:
    """Some clients cut off what a model thought, others put it there from the reasoning field."""
    thoughts, end, rest = text.lstrip().partition("</think>")
    return rest if end and thoughts.startswith("<think>") else text


# Calls


def _call(call: Json, loose: bool) -> list[Any]:
    form = [_canonical(call.get("type") or "function"), _function(call.get("function"))]
    custom = as_dict(call.get("custom"))
    if name := custom.get("name"):
        form.append({"custom": _canonical([name, custom.get("input")])})
    return form if loose else [*form, _canonical(call["id"])]


def _function(function: Any) -> list[Any] | None:
    """Name and arguments. Snowflake sends a function_call without a name on every reply."""
    name = as_dict(function).get("name")
    return [_canonical(name), _arguments(function.get("arguments"))] if name else None


def _arguments(arguments: Any) -> Any:
    """Arguments as a value in a list; as text where they are none (cut short, or plainly wrong).

    No arguments come as "", null, nothing, or an object without members; Mistral's types allow
    an object in place of its JSON.
    """
    if not isinstance(arguments, str):
        return [{} if arguments is None else _canonical(arguments)]
    text = arguments.strip()
    try:
        value = loads(text.encode(errors="surrogatepass")) if text else None  # half a character is no JSON
        return [{} if value is None else _canonical(value)]
    except Malformed:
        return text


# Values


def _canonical(value: Any, depth: int = _DEPTH) -> Any:
    """A JSON value with its keys in order and one spelling for each number."""
    if isinstance(value, str):
        return value
    if not depth:
        raise Malformed("nested too deep")
    if isinstance(value, dict):
        return {key: _canonical(value[key], depth - 1) for key in sorted(value)}
    if isinstance(value, list):
        return [_canonical(each, depth - 1) for each in value]
    return _number(value) if isinstance(value, float) else value


def _number(value: float) -> float | int | str:
    if not math.isfinite(value):
        return repr(value)
    return int(value) if value.is_integer() else value
