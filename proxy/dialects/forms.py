"""The form in which one stored reply goes back upstream.

A reply is kept as it came; what of it goes back depends on the upstream's profile and on whether it came from
there. Pure, bytes to bytes, message by message: the order of messages is not known here, and what a client asked
stands in `asked`. What cannot be read (no JSON object, nested too deep) goes as it is, for the upstream to judge.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from proxy.core.members import Malformed, dumps, joined, loads, members
from proxy.dialects import pieces
from proxy.dialects.profiles import Profile

Json = dict[str, Any]

_UNBOUND = frozenset(("name", "function_call"))  # mean the same to every upstream
# After these a call may be torn; after none at all (Snowflake's streams, aborted ones) nobody knows.
_TORN = ("", "length", "max_tokens", "content_filter", "sensitive", "insufficient_system_resource")
_THOUGHTS = ("thinking", "redacted_thinking", "reasoning")
_CLAUDE = "anthropic-claude-v1"  # what OpenRouter takes a detail without a format for


class _Plain(msgspec.Struct, forbid_unknown_fields=True):
    """Most replies: text, and fillers that go back to nobody."""

    role: Literal["assistant"]
    content: msgspec.Raw
    refusal: None = None
    annotations: tuple[()] | None = None
    audio: None = None
    function_call: None = None
    tool_calls: tuple[()] | None = None


_PLAIN = msgspec.json.Decoder(_Plain)


def reply_form(
    raw: bytes,
    profile: Profile,
    *,
    bound: bool = True,
    without: frozenset[str] = frozenset(),
    finish_reason: str | None = "stop",
    cut: bool = False,
) -> bytes | None:
    """A reply's message as it goes back upstream: `raw` itself where nothing has to change, None where nothing
    is left to say.

    `bound`: the reply came from this upstream and model family; else all that holds only there is left out.
    `without`: members that the upstream was seen to refuse. `cut`: the reply was broken off.
    """
    if (plain := _plain(raw)) is not None:
        return plain
    try:
        message = loads(raw)
        if not isinstance(message, dict):
            return None
        form = _kept(message, (profile.keep if bound else profile.keep & _UNBOUND) - without)
        if profile.signed:
            _leave_out_unsigned(form)
        if "function_call" in form and not _is_whole(form["function_call"], finish_reason, cut):
            del form["function_call"]
        named = [call for call in pieces.whole(message.get("tool_calls")) if _kind(call)]
        if calls := [call for call in named if _is_whole(call[_kind(call)], finish_reason, cut)]:
            form["tool_calls"] = [_call(call, profile, bound, without) for call in calls]
        form |= {"role": "assistant"} | _content(message, form, profile.content_parts and bound)
        return _written(raw, message, form) if _says(form) else None
    except Malformed:
        return raw


def _plain(raw: bytes) -> bytes | None:
    """The form of a reply that is text alone, the same for every upstream; None of any other."""
    if not raw.startswith(b'{"role":"assistant","content":"'):
        return None
    try:
        content = bytes(_PLAIN.decode(raw).content)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    if content == b'""':
        return None
    form = b'{"role":"assistant","content":' + content + b"}"
    return raw if len(form) == len(raw) else form


def _kept(message: Json, names: frozenset[str]) -> Json:
    """The members of those names that say something, as they go back."""
    kept = {name: value for name, value in message.items() if name in names and _goes_back(name, value)}
    if "audio" in kept:
        kept["audio"] = {"id": kept["audio"]["id"]}
    if "annotations" in kept:
        kept["annotations"] = [each for each in kept["annotations"] if _is(each, "type", "file")]
    if "function_call" in kept:
        kept["function_call"] = pieces.whole([{"function": kept["function_call"]}])[0]["function"]
    return kept


def _goes_back(name: str, value: Any) -> bool:
    """Whether a member says something. Fillers do not: null, "" and [] stand on every reply of several upstreams,
    at Snowflake a function_call and an audio without a name, and others refuse what they see of these."""
    match name:
        case "reasoning_content" | "reasoning_details":  # DeepSeek wants the empty one back too
            return isinstance(value, str if name == "reasoning_content" else list)
        case "function_call":
            return _is_text(_dict(value).get("name"))
        case "audio":
            return _is_text(_dict(value).get("id"))
        case "annotations":  # OpenRouter wants its parsed files back, and nothing else
            return any(_is(each, "type", "file") for each in pieces.as_list(value))
        case "refusal" | "reasoning" | "name":
            return _is_text(value)
    return value not in (None, [], {}, "")


def _leave_out_unsigned(form: Json) -> None:
    """OpenRouter makes Claude's thinking of what it gets, and Claude refuses thinking without a signature: a text
    detail that was cut before it came, or `reasoning` without details. Details that came empty go back, for
    DeepSeek expects them; that they became empty here means nothing to anybody."""
    if details := form.get("reasoning_details"):
        form["reasoning_details"] = [each for each in details if _is_signed(each)]
        if not form["reasoning_details"]:
            del form["reasoning_details"]
    if not form.get("reasoning_details"):
        form.pop("reasoning", None)


def _is_signed(detail: Any) -> bool:
    text = _is(detail, "type", "reasoning.text") and (detail.get("format") or _CLAUDE) == _CLAUDE
    return not text or bool(detail.get("signature"))


def _kind(call: Json) -> str:
    """Where a call has its name; empty where it has none, and nobody can have carried it out."""
    return next((kind for kind in ("function", "custom") if _is_text(_dict(call.get(kind)).get("name"))), "")


def _is_whole(function: Json, finish_reason: str | None, cut: bool) -> bool:
    """Whether a call came to its end. Arguments that do not parse are the model's mistake in a whole reply, and
    the end of them is missing in any other. The input of a custom tool is free text and tells nothing."""
    if cut and not finish_reason:
        return False
    torn = (finish_reason or "") in _TORN
    if "arguments" not in function:
        return not torn
    return not (torn or cut) or _parses(function["arguments"])


def _parses(arguments: str) -> bool:
    try:
        loads(arguments.encode(errors="replace"))
    except Malformed:
        return False
    return True


def _call(call: Json, profile: Profile, bound: bool, without: frozenset[str]) -> Json:
    """A call with a name, as it goes back. An ID that is no string is as good as none."""
    kind = _kind(call)
    if profile.parses and not _parses(call[kind].get("arguments", "{}")):
        call = call | {kind: call[kind] | {"arguments": "{}"}}  # the model's mistake, and its upstream's to refuse
    if not (profile.call_extras and bound):
        function = {name: value for name, value in call[kind].items() if name in ("name", "arguments", "input")}
        call = {"id": call["id"], "type": call["type"], kind: function}
    fixed = {
        "id": call["id"] if isinstance(call["id"], str) else "",
        "type": call["type"] if isinstance(call["type"], str) else kind,
    }
    return {name: value for name, value in (call | fixed).items() if name not in without}


def _content(message: Json, form: Json, parts: bool) -> Json:
    """The content that goes with the rest of a form, as the member it is, or none. A refusal or a voice that does
    not go back as such is said in words. Beside calls content stays as it came, null included; alone never null."""
    content = message.get("content") if isinstance(message.get("content"), str | list) else None
    if isinstance(content, list) and not parts:
        content = "".join([_text(part) for part in content])
    if not _has_words(content):
        said = [("refusal", message.get("refusal")), ("audio", _dict(message.get("audio")).get("transcript"))]
        content = next((text for name, text in said if name not in form and _is_text(text)), content)
    acts = "tool_calls" in form or "function_call" in form
    fits = acts and "content" in message and content != []
    return {"content": content} if fits or _has_words(content) else {}


def _text(part: Any) -> str:
    """The text of a content part; empty for thoughts, images and what else is no text."""
    if isinstance(part, dict):
        part = None if part.get("type") in _THOUGHTS else part.get("text") or part.get("refusal")
    return part if isinstance(part, str) else ""


def _says(message: Json) -> bool:
    others = any(_goes_back(name, message.get(name)) for name in ("function_call", "refusal", "audio"))
    return others or bool(pieces.as_list(message.get("tool_calls"))) or _has_words(message.get("content"))


def _has_words(content: Any) -> bool:
    """Whether content says something; thoughts alone do not."""
    if not isinstance(content, list):
        return bool(content)
    return any(
        part.get("type") not in _THOUGHTS and part.get("text") != "" if isinstance(part, dict) else bool(part)
        for part in content
    )


def _written(raw: bytes, message: Json, form: Json) -> bytes:
    """A form in the order of the message it was made of, with the bytes of every value that is the same."""
    if form == message:
        return raw
    form = {name: form[name] for name in [*message, *form] if name in form}
    try:
        found = members(raw)
    except Malformed:  # a member that occurs twice; the last counted
        return dumps(form)
    same = {name: found[name].raw for name in form if name in message and form[name] == message[name]}
    return joined({name: same.get(name) or dumps(value) for name, value in form.items()})


def _is(value: Any, name: str, wanted: str) -> bool:
    return isinstance(value, dict) and value.get(name) == wanted


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _dict(value: Any) -> Json:
    return value if isinstance(value, dict) else {}
