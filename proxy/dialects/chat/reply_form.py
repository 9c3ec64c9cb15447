"""Renders one stored reply for the upstream that it goes back to.

A reply is stored as it came; what goes back depends on the upstream's profile and on whether the reply came from there.
Pure, bytes to bytes, message by message (`client_form` does it for clients' messages). A reply that cannot be read goes
unchanged, for the upstream to judge.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import msgspec

from proxy.core.json_bytes import UNDECODED, Malformed, dumps, joined, loads, members
from proxy.dialects.chat.images import word
from proxy.dialects.chat.profiles import EMPTY, NULL, Profile
from proxy.dialects.chat.stream import call_deltas
from proxy.dialects.chat.torn_calls import is_whole, sent_calls, unstamped
from proxy.dialects.json_values import as_dict, as_list, is_text

Json = dict[str, Any]

_UNBOUND = frozenset(("name", "function_call"))  # mean the same to every upstream
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
    interrupted: bool = False,
    now: int = 0,
) -> bytes | None:
    """A reply's message as it goes back upstream: `raw` itself where nothing has to change, None where nothing
    is left to say.

    `bound`: the reply came from this upstream and model family; else all that holds only there is left out. `without`:
    members that the upstream was seen to refuse. `interrupted`: the reply was broken off. `now`: in ms since the epoch,
    for what goes back for a while only (see `expiry`).
    """
    if (plain := _plain(raw)) is not None:
        return plain
    try:
        message = loads(raw)
        if not isinstance(message, dict):
            return None
        form = _kept(message, (profile.keep if bound else profile.keep & _UNBOUND) - without)
        if now >= _expires(message):
            form.pop("audio", None)
        if profile.signed:
            _leave_out_unsigned(form)
        if "function_call" in form and not is_whole(form["function_call"], finish_reason, interrupted):
            del form["function_call"]
        if calls := sent_calls(message.get("tool_calls"), profile, bound, without, finish_reason, interrupted):
            form["tool_calls"] = calls
        content = _content(message, form, profile.content_parts and bound, _beside(profile, without))
        form |= {"role": "assistant"} | content
        return _written(raw, message, form) if _says(form) else None
    except Malformed:
        return raw


def expiry(raw: bytes) -> float:
    """From when on, in ms since the epoch, a reply goes back in another form: its audio is gone then, and its
    transcript goes instead. Never where it has none, or cannot be read."""
    if b'"audio"' not in raw:
        return math.inf
    try:
        return _expires(as_dict(loads(raw)))
    except Malformed:
        return math.inf


def _expires(message: Json) -> float:
    expires = as_dict(message.get("audio")).get("expires_at")
    return expires * 1000 if isinstance(expires, int | float) and expires > 0 else math.inf


def _plain(raw: bytes) -> bytes | None:
    """The form of a reply that is text alone, the same for every upstream; None of any other."""
    if not raw.startswith(b'{"role":"assistant","content":"'):
        return None
    try:
        content = bytes(_PLAIN.decode(raw).content)
    except UNDECODED:
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
    if "images" in kept:
        kept["images"] = [unstamped(each) for each in kept["images"]]
    if blocks := as_list(kept.pop("thinking_blocks", None)):
        signed = [each for each in blocks if not _is(each, "type", "thinking") or each.get("signature", True)]
        kept |= {"thinking_blocks": signed} if signed else {}  # Claude refuses a thought whose signature did not come
    if "annotations" in kept:
        kept["annotations"] = [each for each in kept["annotations"] if _is(each, "type", "file")]
    if "function_call" in kept:
        kept["function_call"] = call_deltas.whole([{"function": kept["function_call"]}])[0]["function"]
    return kept


def _goes_back(name: str, value: Any) -> bool:
    """Whether a member says something. Fillers do not: null, "" and [] stand on every reply of several upstreams,
    at Snowflake a function_call and an audio without a name, and others refuse what they see of these."""
    match name:
        case "reasoning_content" | "reasoning_details":  # DeepSeek wants the empty one back too
            return isinstance(value, str if name == "reasoning_content" else list)
        case "images":
            return bool(as_list(value))
        case "function_call":
            return is_text(as_dict(value).get("name"))
        case "audio":
            return is_text(as_dict(value).get("id"))
        case "annotations":  # OpenRouter wants its parsed files back, and nothing else
            return any(_is(each, "type", "file") for each in as_list(value))
        case "refusal" | "reasoning" | "name":
            return is_text(value)
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


def _beside(profile: Profile, without: frozenset[str]) -> str:
    """What content is beside calls where it says nothing: see `Profile.beside_calls`."""
    if EMPTY in without:
        return "null"
    return "text" if NULL in without else profile.beside_calls


def _content(message: Json, form: Json, parts: bool, beside: str) -> Json:
    """The content that goes with the rest of a form, as the member it is, or none. What does not go back as such (a
    refusal, a voice, images) is said in words, and a value that is no content as its JSON. Beside calls content that
    says nothing is what the upstream takes; alone it is never null."""
    content = message.get("content")
    if isinstance(content, list) and not _is_value(content):
        content = [unstamped(part) for part in content] if parts else "".join([_part_text(part) for part in content])
    elif not isinstance(content, str | None) and content != []:
        content = dumps(content).decode()
    if not _has_words(content):
        content = _in_words(message, form) or content
    acts = "tool_calls" in form or "function_call" in form
    if acts and beside != "kept" and content in (None, "", []):
        return {"content": "" if beside == "text" else None}
    if "images" in form and not acts and not _has_words(content):
        return {"content": ""}  # without calls most want a text, and these are no member that they know
    fits = acts and "content" in message and content != []
    return {"content": content} if fits or _has_words(content) else {}


def _is_value(content: list[Any]) -> bool:
    """Whether a list is one that a schema asked for (Cloudflare hands on what it parsed), and no content parts."""
    parts = [isinstance(each, str | None) or _has_any(each, "type", "text", "refusal") for each in content]
    return bool(parts) and not any(parts)


def _has_any(value: Any, *names: str) -> bool:
    return isinstance(value, dict) and not value.keys().isdisjoint(names)


def _in_words(message: Json, form: Json) -> str:
    """What a reply without text says; empty where it says nothing, or where that goes back as it is."""
    audio = as_dict(message.get("audio"))
    said = [("refusal", message.get("refusal")), ("audio", audio.get("transcript"))]
    if text := next((text for name, text in said if name not in form and is_text(text)), ""):
        return text
    words = [] if "images" in form else [word(part) for part in as_list(message.get("images"))]
    words += [word(part) for part in as_list(message.get("content"))]
    if "audio" not in form and any([is_text(audio.get(name)) for name in ("id", "data")]):
        words.append(word({"type": "input_audio"}))
    return " ".join([each for each in words if each])


def _part_text(part: Any) -> str:
    """The text of a content part; empty for thoughts, images and what else is no text."""
    if isinstance(part, dict):
        part = None if part.get("type") in _THOUGHTS else part.get("text") or part.get("refusal")
    return part if isinstance(part, str) else ""


def _says(message: Json) -> bool:
    others = any(_goes_back(name, message.get(name)) for name in ("function_call", "refusal", "audio", "images"))
    return others or bool(as_list(message.get("tool_calls"))) or _has_words(message.get("content"))


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
