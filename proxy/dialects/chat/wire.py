"""Reads requests and replies of `/chat/completions`.

The one module that knows the members of both. `stream.deltas` adds up deltas, `compose` builds what goes upstream.
Pure; knows no session, no upstream and no limits.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import msgspec

from proxy.core import sse
from proxy.core.json_bytes import UNDECODED, Malformed, dumps, elements, is_utf8, lenient, loads, members
from proxy.core.model import Ask, Message, Reply, SeenPrefix
from proxy.dialects.chat.stream import deltas, text_stream
from proxy.dialects.chat.stream import lenient as odd
from proxy.dialects.json_values import as_list
from proxy.errors import BadRequest

CACHE_CONTROL = b'"cache_control"'
SYSTEM_ROLES = frozenset(("system", "developer"))


class _Role(msgspec.Struct):
    role: Any = None


_ROLE = msgspec.json.Decoder(_Role)


def read(body: bytes, seen: SeenPrefix | None = None) -> Ask:
    """A request. `seen`: the list of an earlier one, whose messages need not be read again where this one's list
    begins with the same bytes. Raises BadRequest."""
    try:
        return (seen and _read_on(body, seen)) or _read(body)
    except Malformed as error:
        raise BadRequest(f"The request body must be one JSON object: {error}. Correct it and send it again.") from error


def _read(body: bytes) -> Ask:
    found = members(body)
    if "messages" not in found:
        raise BadRequest("The request has no `messages`. Send a list with the new message.", param="messages")
    array = found["messages"]
    if not array.raw.startswith(b"["):
        raise BadRequest("`messages` must be a list. Send a list with the new message.", param="messages")
    model = _scalar(found["model"].raw) if "model" in found else None
    tools = found["tools"].raw if "tools" in found else b""
    stream = "stream" in found and found["stream"].raw == b"true"
    system, messages = _messages(array.raw)
    return Ask(body, array.start, array.end, system, messages, model, stream, tools)


def _messages(array: bytes) -> tuple[bytes | None, tuple[Message, ...]]:
    """The leading system block, and what follows it."""
    messages = tuple([Message(_role(raw), raw) for raw in elements(array)])
    head = next((n for n, message in enumerate(messages) if message.role not in SYSTEM_ROLES), len(messages))
    return b",".join([message.raw for message in messages[:head]]) or None, messages[head:]


def _read_on(body: bytes, seen: SeenPrefix) -> Ask | None:
    """A request that begins with the same bytes as one that was seen, up to the end of its messages, and goes on with
    others: read without those. None of any other, and where a message that it adds has cache marks."""
    prefix_size = len(seen.prefix)
    if not body.startswith(seen.prefix) or body[prefix_size : prefix_size + 1] != b",":
        return None
    skipped = prefix_size - seen.start  # the messages, and the comma behind them
    try:
        ask = _read(body[: seen.start + 1] + body[prefix_size + 1 :])
    except Malformed:
        return None
    system = [Message(_role(raw), raw) for raw in elements(b"[" + ask.system + b"]")] if ask.system else []
    tail = (*system, *ask.messages)
    end = ask.end + skipped
    if not tail or body.find(CACHE_CONTROL, prefix_size, end) >= 0:
        return None
    again = lambda: _messages(body[ask.start : end])[1]  # noqa: E731
    return Ask(body, ask.start, end, seen.system, tail, ask.model, ask.stream, ask.tools, seen, again)


def seen_in(ask: Ask, covered: int, client: bytes = b"") -> SeenPrefix | None:
    """What to keep of a list that carries its history, so that the next one is read faster; nothing of one with cache
    marks, which move about in what is the same otherwise. `covered`: how many messages of the history's line it is;
    `client`: who sent it."""
    known = len(ask.seen.prefix) if ask.seen else ask.start  # to look there again would cost as much as all the rest
    if ask.body.find(CACHE_CONTROL, known, ask.end) >= 0:
        return None
    prefix_size = ask.body[: ask.end - 1].rstrip()
    return SeenPrefix(prefix_size, ask.start, ask.system, ask.count, covered, _hashed(prefix_size, ask.seen), client)


def digest_of(ask: Ask) -> bytes:
    """By which a body is recognised when it comes again; 16 bytes."""
    return bytes(_hashed(ask.body, ask.seen).digest()[:16])


def _hashed(body: bytes, seen: SeenPrefix | None) -> Any:
    """The SHA-256 of bytes, of which those that were seen are hashed already: for a long list that took a fifth of the
    turn, although processors help with it and BLAKE2 would take twice the time."""
    if not seen:
        return sha256(body)
    hashed = seen.hashed.copy()
    hashed.update(body[len(seen.prefix) :])
    return hashed


def fold_stream(body: bytes) -> Reply:
    """A finished stream. An event that is no JSON to any official client is passed over; an error anywhere makes the
    reply an error."""
    return text_stream.folded(body) or _fold(body)


def _fold(body: bytes) -> Reply:
    fold = deltas.Fold()
    error = False
    model = usage = None
    for name, data in sse.events(body):
        if data.startswith(b"[DONE]"):
            break
        ended = False
        try:
            chunks = [lenient(data)]
        except Malformed:
            chunks, ended = odd.chunks(data)
        for chunk in chunks:
            if not isinstance(chunk, dict):
                error = error or name == "error"
            elif deltas.fails(chunk) or (name == "error" and not isinstance(chunk.get("choices"), list)):
                error = True
            else:
                model = model or chunk.get("model")
                usage = chunk.get("usage") or usage
                fold.chunk(chunk)
        if ended:
            break
    message = fold.message()
    return Reply(
        message=dumps(message) if message is not None else None,
        model=_string(model),
        finish_reason=fold.finish_reason,
        usage=dumps(usage) if usage else None,
        finished=fold.finish_reason is not None,
        error=error or fold.error,
    )


class _Choice(msgspec.Struct):
    index: Any = None
    message: msgspec.Raw = msgspec.Raw()
    finish_reason: Any = None
    error: Any = None


class _Completion(msgspec.Struct):
    choices: list[_Choice] = []
    model: Any = None
    usage: msgspec.Raw = msgspec.Raw()
    error: Any = None


_COMPLETION = msgspec.json.Decoder(_Completion)


def fold_body(body: bytes) -> Reply:
    """A finished JSON body. The message is kept as the bytes it came in."""
    try:
        document = _COMPLETION.decode(body) if is_utf8(body) else None  # msgspec does not look into what it leaves out
    except UNDECODED:
        document = None
    if document is None:
        return _slow_fold(body)  # no completion; or one that only the standard library reads
    choice = next((choice for choice in document.choices if not choice.index), None)
    if document.error or choice is None:
        return Reply(error=bool(document.error))
    message, usage = bytes(choice.message), bytes(document.usage)
    if choice.error or choice.finish_reason == "error" or not message.startswith(b"{"):
        return Reply(error=True)
    return Reply(
        message=message,
        model=_string(document.model),
        finish_reason=_string(choice.finish_reason),
        usage=usage if usage.startswith(b"{") else None,
        finished=True,
    )


def _slow_fold(body: bytes) -> Reply:
    document = odd.document(body)
    if not isinstance(document, dict) or document.get("error"):
        return Reply(error=True)
    choices = as_list(document.get("choices"))
    recorded = _first(choices)
    if recorded is None:
        return Reply()
    choice: dict[str, Any] = choices[recorded]
    message = choice.get("message")
    if choice.get("error") or choice.get("finish_reason") == "error" or not isinstance(message, dict):
        return Reply(error=True)
    try:
        raw = members(elements(members(body)["choices"].raw)[recorded])["message"].raw
        strict = True
    except Malformed:  # an envelope that names a member twice, or is odd; the message in it is still the one
        raw, strict = dumps(message), False
    reason = _string(choice.get("finish_reason"))
    return Reply(
        message=raw,
        model=_string(document.get("model")),
        finish_reason=reason,
        usage=dumps(document["usage"]) if document.get("usage") else None,
        finished=strict or reason is not None,  # its closing bracket says that it is whole, where it is JSON
    )


def fold_text(body: bytes, content_type: str) -> Reply:
    """A whole body that is neither; see `lenient`."""
    return odd.fold_text(body, content_type)


def is_torn(body: bytes) -> bool:
    """Whether a body that is not JSON would be, with more behind it."""
    return odd.is_torn(body)


def _first(choices: list[Any]) -> int | None:
    """Where choice 0 stands, the one that enters the history; an index may be missing."""
    for place, choice in enumerate(choices):
        if isinstance(choice, dict) and not choice.get("index"):
            return place
    return None


def _role(raw: bytes) -> str:
    """A message's role; empty where it has none we can name (the upstream is to judge it)."""
    if not raw.startswith(b"{"):
        return ""
    try:
        return _string(_ROLE.decode(raw).role) or ""
    except UNDECODED:
        return _string(loads(raw).get("role")) or ""


def _string(value: Any) -> str | None:
    """Text that a store can hold: lone surrogates are replaced."""
    return value.encode(errors="replace").decode() if isinstance(value, str) and value else None


def _scalar(raw: bytes) -> Any:
    value = loads(raw) if raw[:1] == b'"' else None
    return _string(value)
