"""Chat completions: reading a request, putting a history in front of it, reading a reply.

The one place that knows the members of `/chat/completions`. How deltas add up stands in
`deltas.py`. Pure; knows no session, no upstream and no limits.
"""

from __future__ import annotations

from typing import Any

import msgspec

from proxy.core import sse
from proxy.core.members import Malformed, dumps, elements, loads, members
from proxy.core.model import Ask, History, Message, Reply
from proxy.dialects import deltas
from proxy.errors import BadRequest

SYSTEM_ROLES = frozenset(("system", "developer"))
# What of a reply's message may go back upstream; other keys are rejected somewhere
# (Mistral, Groq, Cerebras and Gemini refuse what they do not know).
_ECHOED = frozenset(
    [
        "role",
        "content",
        "name",
        "tool_calls",
        "function_call",
        "refusal",
        "audio",
        "reasoning",
        "reasoning_content",
        "reasoning_details",
        "extra_content",
        "prefix",
    ]
)


class _Role(msgspec.Struct):
    role: Any = None


_ROLE = msgspec.json.Decoder(_Role)


def read(body: bytes) -> Ask:
    try:
        return _read(body)
    except Malformed as error:
        raise BadRequest(f"The request body must be one JSON object: {error}. Correct it and send it again.") from error


def _read(body: bytes) -> Ask:
    found = members(body)
    if "messages" not in found:
        raise BadRequest("The request has no `messages`. Send a list with the new message.", param="messages")
    array = found["messages"]
    if not array.raw.startswith(b"["):
        raise BadRequest("`messages` must be a list. Send a list with the new message.", param="messages")
    messages = tuple(Message(_role(raw), raw) for raw in elements(array.raw))
    head = next((n for n, message in enumerate(messages) if message.role not in SYSTEM_ROLES), len(messages))
    model = _scalar(found["model"].raw) if "model" in found else None
    return Ask(
        body=body,
        start=array.start,
        end=array.end,
        system=b",".join([message.raw for message in messages[:head]]) or None,
        messages=messages[head:],
        model=model if isinstance(model, str) else None,
        stream="stream" in found and found["stream"].raw == b"true",
    )


def splice(ask: Ask, history: History) -> tuple[bytes, int]:
    """History in front of what the client sent, behind one leading system block: the request's
    own, else the remembered one. Every other byte of the body stays as it is."""
    remembered = history.system if ask.system is None else None
    if not history.joined and remembered is None:
        return ask.body, 0
    own = b",".join([message.raw for message in ask.messages])
    blocks = (ask.system, remembered, history.joined, own)
    array = b"[" + b",".join([block for block in blocks if block]) + b"]"
    injected = history.count + (len(elements(b"[" + remembered + b"]")) if remembered else 0)
    return ask.body[: ask.start] + array + ask.body[ask.end :], injected


def fold_stream(body: bytes) -> Reply:
    """A finished stream. An event that is no JSON is passed over, as the official clients cannot
    have read it either; an error anywhere makes the reply an error."""
    fold = deltas.Fold()
    error = False
    model = usage = None
    for event in sse.events(body):
        if event.data.startswith(b"[DONE]"):
            break
        try:
            chunk = loads(event.data)
        except Malformed:
            error = error or event.name == "error"
            continue
        if event.name == "error" or not isinstance(chunk, dict) or chunk.get("error"):
            error = error or event.name == "error" or isinstance(chunk, dict)
            continue
        model = model or chunk.get("model")
        usage = chunk.get("usage") or usage
        fold.chunk(chunk)
    message = fold.message()
    return Reply(
        message=dumps(message) if message is not None else None,
        echo=_echo(message, None) if message is not None else None,
        model=_string(model),
        finish_reason=fold.finish_reason,
        usage=dumps(usage) if usage else None,
        finished=fold.finish_reason is not None,
        error=error or fold.error,
    )


def fold_body(body: bytes) -> Reply:
    """A finished JSON body. The message is kept as the bytes it came in."""
    document = loads(body.strip())
    if not isinstance(document, dict) or document.get("error"):
        return Reply(error=True)
    choices = deltas.as_list(document.get("choices"))
    recorded = _first(choices)
    if recorded is None:
        return Reply()
    choice: dict[str, Any] = choices[recorded]
    message = choice.get("message")
    if choice.get("error") or choice.get("finish_reason") == "error" or not isinstance(message, dict):
        return Reply(error=True)
    try:
        raw = members(elements(members(body)["choices"].raw)[recorded])["message"].raw
    except Malformed:  # an envelope that names a member twice; the message in it is still the one
        raw = dumps(message)
    return Reply(
        message=raw,
        echo=_echo(message, raw),
        model=_string(document.get("model")),
        finish_reason=_string(choice.get("finish_reason")),
        usage=dumps(document["usage"]) if document.get("usage") else None,
        finished=True,
    )


def _first(choices: list[Any]) -> int | None:
    """Where choice 0 stands, the one that enters the history; an index may be missing."""
    for place, choice in enumerate(choices):
        if isinstance(choice, dict) and not choice.get("index"):
            return place
    return None


def _echo(message: dict[str, Any], raw: bytes | None) -> Message | None:
    """The form of a reply that goes back upstream; None where it says nothing.

    Empty fillers are left out: `tool_calls: []` is refused by OpenAI and returned by Together,
    vLLM and Hugging Face; Snowflake returns a function_call without a name on every reply.
    """
    whole = {**message, "tool_calls": deltas.whole(message.get("tool_calls"))}
    kept = {key: value for key, value in whole.items() if key in _ECHOED and _goes_back(key, value)}
    if isinstance(audio := kept.get("audio"), dict):
        del kept["audio"]
        if audio.get("id"):
            kept["audio"] = {"id": audio["id"]}
    calls = any(key in kept for key in ("tool_calls", "function_call", "audio", "refusal"))
    if not kept.get("content") and not calls:
        return None
    kept.setdefault("role", "assistant")
    return Message("assistant", raw if raw is not None and kept == message else dumps(kept))


def _goes_back(key: str, value: Any) -> bool:
    if key in ("reasoning_content", "reasoning_details"):  # DeepSeek wants the empty one back too
        return value is not None
    if key == "function_call":
        return isinstance(value, dict) and bool(value.get("name"))
    return value not in (None, [], "") or (key == "content" and value != [])


def _role(raw: bytes) -> str:
    """A message's role; empty where it has none we can name (the upstream is to judge it)."""
    if not raw.startswith(b"{"):
        return ""
    try:
        return _string(_ROLE.decode(raw).role) or ""
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _string(loads(raw).get("role")) or ""


def _string(value: Any) -> str | None:
    """Text that a store can hold: lone surrogates are replaced."""
    return value.encode(errors="replace").decode() if isinstance(value, str) and value else None


def _scalar(raw: bytes) -> Any:
    value = loads(raw) if raw[:1] == b'"' else None
    return _string(value)
