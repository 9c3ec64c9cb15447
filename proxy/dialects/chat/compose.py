"""Builds the request body from a plan: stored messages as this upstream takes them, then the client's own.

A history is joined once and then only grows, so that its bytes stay the same and upstreams can cache them. Pure; knows
no session, and decides nothing about who sent what.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial

from msgspec import Struct

from proxy.core.history import Entry, History
from proxy.core.json_bytes import Malformed, dumps, elements, loads, members
from proxy.core.model import Ask, Message, Turn, TurnState
from proxy.core.plan import Decision, Plan
from proxy.core.window.choose import Window
from proxy.dialects.chat import profiles, reply_form, torn_calls
from proxy.dialects.chat.client_form import asked_form, with_cache_control
from proxy.dialects.chat.images import without_images
from proxy.dialects.chat.profiles import Profile
from proxy.dialects.chat.repair import Repair, Torn
from proxy.dialects.chat.stream import surrogates
from proxy.dialects.chat.tool_groups import RESULTS
from proxy.errors import BadRequest

# Where all that is new is a late result, which goes to its call, a reply is last: Mistral and Perplexity refuse that.
GO_ON = b'{"role":"user","content":"Go on."}'
WHOLE = Window()
# Agents sign what they send with a name. Where an upstream puts one on a reply of its own, it wants none back.
_SIGNED = frozenset(("name",))


@dataclass(frozen=True)
class Rendering:
    """How replies are rendered: the upstream's profile, the `origin` within which signatures hold (its host and the
    model's family), and the members that it refused."""

    profile: Profile
    origin: str
    refused: frozenset[str] = frozenset()

    @cached_property
    def key(self) -> str:
        """The key that is stored with a rendered reply: equal keys, equal bytes."""
        return " ".join([self.origin, self.profile.name, *sorted(self.refused)])

    def binds(self, rendering: str) -> bool:
        """Whether a reply that was rendered under the key `rendering` comes from the same origin."""
        return rendering == self.key or rendering.startswith(self.origin + " ")


@lru_cache(1024)
def rendering_of(setting: str, host: str, model: str | None, refused: frozenset[str] = frozenset()) -> Rendering:
    """The rendering for an upstream's `profile` setting, its host, and the model that a request names."""
    return Rendering(profiles.choose(setting, host), f"{host} {profiles.family(model)}", refused)


def compose(
    ask: Ask, plan: Plan, history: History, rendering: Rendering, window: Window = WHOLE, now: int = 0
) -> tuple[Sequence[bytes], int]:
    """The body to send, in pieces, and how many messages in it the client did not send. Of what is injected the
    `window` goes; of what goes back for a while only (an audio ID), what does so `now`, in ms since the epoch.

    Every byte of the body outside of its messages stays as it is. Raises BadRequest for the result of
    a tool call that nobody made, where the history is ours to keep in order.
    """
    if plan.decision is Decision.ASIDE:
        return (ask.body,), 0
    tail = plan.tail
    has_cache_control = plan.pairs and not ask.seen and b'"cache_control"' in ask.body
    torn = partial(_torn, plan.path, rendering)
    if plan.whole and not has_cache_control:
        kept = plan.path is history.path
        repair = (
            _line(history, rendering, window, now).fork()
            if kept
            else _rendered(plan.path, rendering, window, now).repair
        )
        if plan.decision is Decision.APPEND:  # a list that carries its history is the upstream's to judge
            _refuse_orphan(repair, tail, torn)
        for message in tail:
            repair.add(message.role, _own(message, rendering), torn=torn)
    else:
        repair = _begun(rendering, window)
        for n, (entry, theirs) in enumerate(plan.sent):
            if n < window.start:
                continue
            if entry:
                raw = _stored(entry, rendering, n < window.blank, now)
                raw = with_cache_control(raw, theirs.raw) if theirs else raw
                repair.add(entry.message.role, raw, stored=True, torn=torn)
            else:
                assert theirs is not None  # one of the two is there
                repair.add(theirs.role, _own(theirs, rendering))
    if rendering.profile.asked_last and tail and tail[-1].role in RESULTS and repair.ends_with_reply:
        repair.add("user", GO_ON)
    system = _system(ask, plan, rendering)
    pieces = [*([system] if system else []), *repair.pieces()]
    if not plan.path and b",".join(pieces) == b",".join(elements(ask.body[ask.start : ask.end])):
        return (ask.body,), 0  # nothing in it is ours: as it was spaced
    blocks = _count(system) - _count(ask.system) if system != ask.system else 0
    injected = max(0, repair.count + blocks - ask.count)
    listed = [b","] * (2 * len(pieces) - 1)
    listed[::2] = pieces
    # Without a copy: a history may be megabytes.
    return (ask.body[: ask.start], b"[", *listed, b"]", ask.body[ask.end :]), injected


def sent_members(body: bytes) -> Collection[str]:
    """The optional members of messages that occur in a body, and the kinds of content that an upstream may refuse."""
    named = [name for name in profiles.OPTIONAL if b'"%b"' % name.encode() in body]
    return named + [name for name, content in profiles.CONTENTS.items() if content.search(body)]


def _refuse_orphan(repair: Repair, tail: Sequence[Message], torn: Torn) -> None:
    if not any([message.role in RESULTS for message in tail]):
        return
    orphan = repair.orphan([(message.role, message.raw) for message in tail], torn)
    if orphan is not None:
        raise BadRequest(
            f"The result of the tool call {orphan!r} follows no such call in this session. Send it to the session"
            " that made the call, or send the call with it.",
            param="messages",
        )


def _line(history: History, rendering: Rendering, window: Window, now: int) -> Repair:
    """The history's messages in this form, from the window's beginning on: kept beside it, so that each turn adds its
    own and no more."""
    path = history.path
    renderings = history.cache.renderings
    found = renderings.get(rendering.key)
    known = found if isinstance(found, _Known) and found.goes_on(path, window, now) else None
    renderings[rendering.key] = known = _rendered(path, rendering, window, now, known)
    return known.repair


class _Known(Struct, frozen=True, gc=False):
    """A path as it was rendered: how many of its messages are `done`, and the `last` of them. It holds `until` then,
    in ms since the epoch."""

    done: int
    repair: Repair
    last: Message | None
    window: Window
    until: float

    def goes_on(self, path: Sequence[Entry], window: Window, now: int) -> bool:
        """Whether a line, seen through a window, is this and perhaps more."""
        same = self.last is None or (self.done <= len(path) and path[self.done - 1].message is self.last)
        return same and self.window == window and now < self.until


def _rendered(
    path: Sequence[Entry], rendering: Rendering, window: Window, now: int, known: _Known | None = None
) -> _Known:
    """A line in this form, to go on with from what is `known` of it."""
    known = known or _Known(window.start, _begun(rendering, window), None, window, math.inf)
    repair, until = known.repair, known.until
    blank = window.blank
    for n, entry in enumerate(path[known.done :], known.done):
        raw, role = _stored(entry, rendering, n < blank, now), entry.message.role
        torn = partial(_torn, path[:n], rendering) if role in RESULTS else None
        repair.add(role, raw, stored=True, torn=torn)
        if entry.ours and b'"audio"' in raw:
            until = min(until, reply_form.expiry(entry.turn.reply))
    return _Known(len(path), repair, path[-1].message if path else None, window, until)


def _torn(path: Sequence[Entry], rendering: Rendering, role: str, id: str) -> bytes | None:
    """A message that makes the call `id`, where a reply of the line began it and it was torn: it was left out of that
    reply, but a client that saw it begin may answer it. Of calls without an ID any will do."""
    turns = {entry.turn.id: entry.turn for entry in path}
    for wanted in (id, ""):
        for turn in reversed(turns.values()):
            call = torn_calls.torn(
                turn.reply, role, wanted, id, finish_reason=turn.finish_reason, interrupted=_is_interrupted(turn.state)
            )
            if call is not None:
                return render_reply(
                    call, rendering, bound=rendering.binds(turn.rendering_key), state=TurnState.COMPLETE
                )
    return None


def _begun(rendering: Rendering, window: Window) -> Repair:
    repair = Repair(rendering.profile)
    if window.summary is not None:
        repair.summarized(window.summary)
    return repair


def _stored(entry: Entry, rendering: Rendering, blank: bool, now: int) -> bytes:
    """A stored message as it goes upstream; where it is `blank`, without its images."""
    message = entry.message
    if message.role != "assistant" or (not entry.ours and entry.turn.rendering_key == rendering.key):
        raw = asked_form(message.raw)
    else:
        raw = _of_assistant(entry, rendering, now)
    raw = without_images(raw) if blank else raw
    return _renamed(raw) if message.role == "developer" and not rendering.profile.developer else raw


def _of_assistant(entry: Entry, rendering: Rendering, now: int) -> bytes:
    message, turn = entry.message, entry.turn
    if turn.rendering_key == rendering.key and (b'"audio"' not in message.raw or now < reply_form.expiry(turn.reply)):
        return surrogates.whole(message.raw)
    if entry.ours:
        derived = render_reply_of(turn.reply, turn, rendering, now)
    else:
        bound = rendering.binds(turn.rendering_key)
        derived = reply_form.reply_form(
            asked_form(message.raw), rendering.profile, bound=bound, without=rendering.refused
        )
    return derived if derived is not None else b'{"role":"assistant","content":""}'


def _own(message: Message, rendering: Rendering) -> bytes:
    """A client's own message, as sent; but a role that the upstream refuses by name has the name that it will have in
    every later turn."""
    return message.raw if message.role != "developer" or rendering.profile.developer else _renamed(message.raw)


def render_reply_of(reply: bytes, turn: Turn, rendering: Rendering, now: int = 0) -> bytes | None:
    """Render a turn's stored reply for an upstream; None where it says nothing."""
    bound = rendering.binds(turn.rendering_key)
    return render_reply(reply, rendering, bound=bound, finish_reason=turn.finish_reason, state=turn.state, now=now)


def render_reply(
    reply: bytes,
    rendering: Rendering,
    *,
    bound: bool = True,
    finish_reason: str | None = "stop",
    state: TurnState,
    now: int = 0,
) -> bytes | None:
    """Render a reply for an upstream; None where it says nothing. `bound`: it came from the same origin."""
    said = reply_form.reply_form(
        reply,
        rendering.profile,
        bound=bound,
        without=rendering.refused | _SIGNED,
        finish_reason=finish_reason,
        interrupted=_is_interrupted(state),
        now=now,
    )
    return None if said is None else surrogates.whole(said)


def _is_interrupted(state: TurnState) -> bool:
    return state is TurnState.INTERRUPTED


def _renamed(raw: bytes) -> bytes:
    """A developer's message for an upstream that knows the role as `system` only."""
    try:
        role = members(raw)["role"]
    except (Malformed, KeyError):
        return raw
    return raw[: role.start] + b'"system"' + raw[role.end :]


def _system(ask: Ask, plan: Plan, rendering: Rendering) -> bytes | None:
    """The one leading block, under the same roles whether the request brings it or it is remembered: the request's own
    as sent, else the remembered one without its cache marks."""
    profile, own = rendering.profile, ask.system
    if own is not None and not profile.one_system and (profile.developer or b'"developer"' not in own):
        return own
    block = plan.system if own is None else own
    if not block:
        return None
    blocks = elements(b"[" + block + b"]")
    blocks = blocks if own is not None else [asked_form(raw) for raw in blocks]
    blocks = blocks if profile.developer else [_renamed(raw) for raw in blocks]
    return _merged(blocks) if profile.one_system and len(blocks) > 1 else b",".join(blocks)


def _merged(blocks: list[bytes]) -> bytes:
    """Several system messages as one, in order, for an upstream that takes only one."""
    contents = [loads(raw).get("content") for raw in blocks]
    if not all([isinstance(content, str | list | None) for content in contents]):
        return b",".join(blocks)  # which is the upstream's to judge
    if all([isinstance(content, str) for content in contents]):
        return dumps({"role": "system", "content": "\n\n".join(contents)})
    parts = [[{"type": "text", "text": each}] if isinstance(each, str) else each or [] for each in contents]
    return dumps({"role": "system", "content": [part for each in parts for part in each]})


def _count(block: bytes | None) -> int:
    return len(elements(b"[" + block + b"]")) if block else 0
