"""Decides which tool calls of a reply are whole and go back upstream, and what each keeps.

A call is torn where the reply was interrupted, or ended for another reason than its end. It stays behind until somebody
answers it (decision 53). Pure; reads tool calls only.
"""

from __future__ import annotations

from typing import Any

from proxy.core.json_bytes import Malformed, dumps, loads
from proxy.dialects.chat.profiles import Profile
from proxy.dialects.chat.stream import call_deltas
from proxy.dialects.json_values import as_dict, is_text

Json = dict[str, Any]

# After these a call may be torn; after none at all (Snowflake's streams, aborted ones) nobody knows.
# `model_length` is Mistral's word for a context that is full; some gateways hand on Gemini's in capitals.
_TORN = ("", "length", "max_tokens", "model_length", "content_filter", "sensitive", "insufficient_system_resource")
# What streams put on their pieces, and on whole replies too. Details of reasoning keep theirs: they go back unchanged.
_STAMPS = frozenset(("index", "channel", "padding", "obfuscation", "p"))


def unstamped(value: Any) -> Any:
    if not isinstance(value, dict) or _STAMPS.isdisjoint(value):
        return value
    return {name: each for name, each in value.items() if name not in _STAMPS}


def sent_calls(
    calls: Any, profile: Profile, bound: bool, without: frozenset[str], finish_reason: str | None, interrupted: bool
) -> list[Json]:
    """The whole calls of a reply, as they go back."""
    named = [call for call in call_deltas.whole(calls) if _kind(call)]
    return [
        _sent(call, profile, bound, without)
        for call in named
        if is_whole(call[_kind(call)], finish_reason, interrupted)
    ]


def _kind(call: Json) -> str:
    """Where a call has its name; empty where it has none, and nobody can have carried it out."""
    return next((kind for kind in ("function", "custom") if is_text(as_dict(call.get(kind)).get("name"))), "")


def is_whole(function: Json, finish_reason: str | None, interrupted: bool) -> bool:
    """Whether a call came to its end. Arguments that do not parse are the model's mistake in a whole reply, and
    the end of them is missing in any other. The input of a custom tool is free text and tells nothing."""
    if interrupted and not finish_reason:
        return False
    torn = (finish_reason or "").lower() in _TORN
    if "arguments" not in function:
        return not torn
    return not (torn or interrupted) or _parses(function["arguments"])


def _parses(arguments: str) -> bool:
    try:
        loads(arguments.encode(errors="replace"))
    except Malformed:
        return False
    return True


def _sent(call: Json, profile: Profile, bound: bool, without: frozenset[str]) -> Json:
    """A call with a name, as it goes back. An ID that is no string is as good as none."""
    kind = _kind(call)
    if profile.parses and not _parses(call[kind].get("arguments", "{}")):
        call = call | {kind: call[kind] | {"arguments": "{}"}}  # the model's mistake, and its upstream's to refuse
    if profile.call_extras and bound:
        call = unstamped(call) | {kind: unstamped(call[kind])}
    else:
        function = {name: value for name, value in call[kind].items() if name in ("name", "arguments", "input")}
        call = {"id": call["id"], "type": call["type"], kind: function}
    fixed = {
        "id": call["id"] if isinstance(call["id"], str) else "",
        "type": call["type"] if isinstance(call["type"], str) else kind,
    }
    return {name: value for name, value in (call | fixed).items() if name not in without}


def torn(
    raw: bytes, role: str, wanted: str, id: str, *, finish_reason: str | None = None, interrupted: bool = False
) -> bytes | None:
    """Build an assistant message with the torn call `wanted`, under the ID `id`. A call is torn where the reply broke
    off within it, or where it has no name. Incomplete arguments become `{}`. None where the reply has no such call."""
    if b"_call" not in raw:
        return None
    try:
        message = as_dict(loads(raw))
        for call in call_deltas.whole(message.get("tool_calls")) if role == "tool" else []:
            kind = _kind(call)
            said = as_dict(call.get(kind or "function"))
            if (call["id"] or "") == wanted and not (kind and is_whole(said, finish_reason, interrupted)):
                mended = call | {"id": id, kind or "function": _mended(said)}
                return dumps({"role": "assistant", "content": "", "tool_calls": [mended]})
        function = as_dict(message.get("function_call")) if role == "function" else {}
        if wanted and function.get("name") == wanted:
            return dumps({"role": "assistant", "content": "", "function_call": _mended(function)})
    except Malformed:
        pass
    return None


def begins(raw: bytes) -> bool:
    """Whether a reply began a call that a client may answer, torn or not."""
    if b"_call" not in raw:
        return False
    try:
        message = as_dict(loads(raw))
    except Malformed:
        return False
    begun = [_kind(call) or call["id"] for call in call_deltas.whole(message.get("tool_calls"))]
    return any(begun) or is_text(as_dict(message.get("function_call")).get("name"))


def _mended(said: Json) -> Json:
    arguments = said.get("arguments")
    whole = "input" in said or (isinstance(arguments, str) and _parses(arguments))
    return said | {"name": said.get("name") or "unknown"} | ({} if whole else {"arguments": "{}"})
