"""Messages, histories and bodies to compose requests of."""

from __future__ import annotations

import json
from typing import Any

from msgspec.structs import replace

from proxy.core.history import History
from proxy.core.json_bytes import dumps
from proxy.core.matching.reconcile import decide
from proxy.core.model import Message, Turn, TurnState
from proxy.core.plan import Mode
from proxy.core.window.choose import Window
from proxy.dialects.chat import compose as sending
from proxy.dialects.chat import fingerprints, wire
from proxy.dialects.chat.compose import Rendering, _Known, render_reply_of, rendering_of

SYSTEM = b'{"role":"system","content":"S"}'
DEVELOPER = b'{ "role":"developer", "content":"D" }'
USER = b'{"content": "hi", "role": "user", "x": 1.0}'
OLD = b'{"role":"user","content":"before"}'
REPLY = b'{"role":"assistant","content":"ho"}'
ECHO = rendering_of("echo", "host", "gpt-5")
MARK = {"cache_control": {"type": "ephemeral"}}


def form(profile: str, *refused: str, host: str = "host", model: str = "gpt-5") -> Rendering:
    return rendering_of(profile, host, model, frozenset(refused))


def message(raw: bytes) -> Message:
    return Message(json.loads(raw).get("role", ""), raw)


def turn(id: str, asked: list[bytes], reply: bytes = REPLY, **more: Any) -> Turn:
    """A turn as it was recorded under the form ECHO."""
    told = {"rendering_key": ECHO.key, "finish_reason": "stop", "system": None} | more
    one = Turn(id=id, asked=tuple(map(message, asked)), reply=reply, rendered=None, **told)
    raw = reply if one.state is TurnState.ADOPTED else render_reply_of(reply, one, ECHO)
    return one if raw is None else replace(one, rendered=Message("assistant", raw, fingerprints.fingerprint(raw)))


def history(*turns: Turn) -> History:
    past = History()
    for one in turns:
        past = past.plus(replace(one, parent=past.tip))
    return past


def stored(past: History) -> _Known:
    """What is kept of a history in the form ECHO."""
    kept = past.cache.renderings[ECHO.key]
    assert isinstance(kept, _Known)
    return kept


def systems(*blocks: bytes | None, silent: bool = False) -> History:
    """A history of one turn per system block; `silent`: the replies said nothing."""
    reply = b"null" if silent else REPLY
    return history(*[turn(str(n), [OLD], reply, system=block) for n, block in enumerate(blocks)])


def request(*messages: bytes, **members: Any) -> bytes:
    rest = b"".join([b',"%b":' % name.encode() + dumps(value) for name, value in members.items()])
    return b'{"messages":[' + b",".join(messages) + b"]" + rest + b"}"


def compose(*told: Any) -> tuple[bytes, int]:
    """What `sending.compose` gives, its pieces in one."""
    pieces, injected = sending.compose(*told)
    return b"".join(pieces), injected


def sent(body: bytes, past: History, under: Rendering = ECHO, mode: Mode = Mode.APPEND) -> tuple[list[Any], int]:
    ask = wire.read(body)
    new, injected = compose(ask, decide(ask, past, fingerprints, mode), past, under)
    return json.loads(new)["messages"], injected


def raws(body: bytes, past: History, under: Rendering = ECHO, mode: Mode = Mode.AUTO) -> list[bytes]:
    """The messages sent upstream, as bytes."""
    ask = wire.read(body)
    sent = wire.read(compose(ask, decide(ask, past, fingerprints, mode), past, under)[0])
    return [*([sent.system] if sent.system else []), *[message.raw for message in sent.messages]]


def loaded(*messages: bytes) -> list[Any]:
    return [json.loads(message) for message in messages]


REASONED = b'{"role":"assistant","content":"ho","reasoning_content":"r"}'
CALLS = [{"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
ACTED = dumps({"role": "assistant", "content": None, "tool_calls": CALLS})
SIGNED = dumps({"role": "assistant", "content": None, "tool_calls": [{**CALLS[0], "extra_content": {"google": "s"}}]})
RESULT = b'{"role":"tool","tool_call_id":"call_1","content":"r"}'


def windowed(past: History, window: Window, *own: bytes, mode: Mode = Mode.APPEND, under: Rendering = ECHO) -> Any:
    ask = wire.read(request(*own))
    body, injected = compose(ask, decide(ask, past, fingerprints, mode), past, under, window)
    return json.loads(body)["messages"], injected
