"""Serves the session API: a caller shows, reads, follows, stops and deletes its own sessions, with the key of the chat.

Another tenant's session gives the same answer as one that does not exist. Knows no upstream.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from urllib.parse import unquote

from aiohttp import web

from proxy.context import request_log, tenants
from proxy.context.runtime import Runtime
from proxy.core import headers
from proxy.core.history import Entry, History, own_entries
from proxy.core.json_bytes import dumps, elements, loads
from proxy.core.model import Message, SessionKey, SessionState, Turn, TurnState
from proxy.core.usage import TokenCounts, counts
from proxy.downstream.answers import json_answer
from proxy.downstream.broadcast import replay
from proxy.downstream.client_stream import CancelOnDisconnect, ClientStream, HandlerResult
from proxy.errors import BadRequest, MethodNotAllowed, NotFound, SessionNotFound, TurnNotFound
from proxy.turns.fit import limit_of
from proxy.turns.turn_task import GRACE, RecordedTurn

PAGE, MOST = 100, 1000  # messages in a page, and at most
_NO_STORE = [("cache-control", "no-store")]
Handler = Callable[[web.BaseRequest, Runtime, SessionKey], Awaitable[HandlerResult]]


async def answer(request: web.BaseRequest, runtime: Runtime) -> HandlerResult:
    """Route a request below /sessions/ to its handler."""
    _, _, id, *rest = request.raw_path.partition("?")[0].split("/")
    methods = _ROUTES.get("/".join(rest))
    if methods is None:
        raise NotFound("No such path. Use /sessions/ID, or messages, stream or stop below it.")
    if request.method not in methods:
        raise MethodNotAllowed(f"This path does not take this method. Use {' or '.join(methods)}.")
    try:
        name = headers.valid_id(unquote(id, errors="strict"))
    except UnicodeDecodeError:
        raise BadRequest("The session ID in the path is not valid UTF-8. Encode it as UTF-8.") from None
    tenant = tenants.tenant(runtime.config, request.headers, runtime.secret)
    key = request_log.of(request).key = SessionKey(tenant, name)
    return await methods[request.method](request, runtime, key)


async def _show(request: web.BaseRequest, runtime: Runtime, key: SessionKey) -> HandlerResult:
    history, turns = await _load(runtime, key)
    last = history.last
    branch = history.ancestors(history.tip)
    counted = counts(last.usage) if last and last.usage else TokenCounts()
    shown = {
        "id": key.id,
        "object": "session",
        "turn": history.tip,
        "turns": len(branch),
        "messages": len(history.path),
        "created_at": branch[-1].started // 1000 if branch else None,
        "updated_at": last.ended // 1000 if last else None,
        "model": last.model if last else None,
        "usage": loads(last.usage) if last and last.usage else None,
        "totals": _totals(branch),
        "tokens": counted.prompt + counted.reply or None,
        "cached_tokens": counted.cached if counted.prompt else None,
        "limit": limit_of(runtime, key.tenant, last) if last else None,
        "cut": history.trim_point.at,
        "summary": loads(history.trim_point.summary) if history.trim_point.summary else None,
        "summarized": history.trim_point.covered,
        "in_flight": [{"turn": turn.id, "decision": turn.plan.decision} for turn in turns],
    }
    return json_answer(dumps(shown))


def _totals(branch: Sequence[Turn]) -> dict[str, int]:
    """Sum up the tokens that the upstream counted over all turns; cached ones are part of the prompts'."""
    told = [counts(turn.usage) for turn in branch if turn.usage]
    return {
        "prompt_tokens": sum([each.prompt for each in told]),
        "cached_tokens": sum([each.cached for each in told]),
        "completion_tokens": sum([each.reply for each in told]),
    }


async def _messages(request: web.BaseRequest, runtime: Runtime, key: SessionKey) -> HandlerResult:
    history, _ = await _load(runtime, key)
    after, limit = _number(request, "after", 0), max(1, min(_number(request, "limit", PAGE), MOST))
    branch = request.query.get("branch", "main")
    if branch not in ("main", "side"):
        raise BadRequest("branch must be main or side. Correct it, or leave it out.", param="branch")
    side = branch == "side"
    path = [entry for turn in _beside(history) for entry in _said_beside(turn)] if side else history.path
    page = path[after : after + limit]
    end = after + len(page)
    data = b",".join([_message(after + n, entry) for n, entry in enumerate(page)])
    more = dumps({"has_more": end < len(path), "next": end})
    system = b"[" + (b"" if side else history.system or b"") + b"]"
    return json_answer(b'{"object":"list","system":' + system + b',"data":[' + data + b"]," + more[1:])


def _beside(history: History) -> list[Turn]:
    """Return the side requests, without those that a later list showed to belong to the conversation."""
    own = {turn.id for turn in history.ancestors(history.tip)}
    return [turn for turn in history.side_requests if turn.id not in own]


def _said_beside(turn: Turn) -> list[Entry]:
    """Return the messages of a side request: its system messages, those of its list that the history lacks, its
    reply."""
    blocks = elements(b"[" + turn.system + b"]") if turn.system else []
    return [*[Entry(Message("system", raw), turn, False) for raw in blocks], *own_entries(turn)]


def _message(at: int, entry: Entry) -> bytes:
    """Encode a message with the turn that brought it; a reply keeps the upstream's bytes."""
    raw = entry.turn.reply if entry.message is entry.turn.rendered else entry.message.raw
    about = dumps({"position": at, "turn": entry.turn.id, "state": entry.turn.state})
    return about[:-1] + b',"message":' + raw + b"}"


async def _stop(request: web.BaseRequest, runtime: Runtime, key: SessionKey) -> HandlerResult:
    stopped = await _stopped(runtime, key)
    if not stopped:
        raise TurnNotFound("This session has no turn in flight. There is nothing to stop.")
    return json_answer(dumps({"object": "session.stopped", "id": key.id, "turns": stopped}))


async def _stopped(runtime: Runtime, key: SessionKey) -> list[dict[str, Any]]:
    """Stop the turns in flight and wait until what came of each is recorded."""
    turns: list[RecordedTurn] = runtime.registry.turns(key)
    for limit in (GRACE, None):  # a reply that is whole has a moment to end as the upstream ends it
        for turn in turns:
            turn.stop(at_once=limit is None)
        if tasks := [turn.task for turn in turns if turn.task and not turn.task.done()]:
            await asyncio.wait(tasks, timeout=limit)
    return [{"turn": turn.id, "recorded": turn.committed} for turn in turns]


async def _stream(request: web.BaseRequest, runtime: Runtime, key: SessionKey) -> HandlerResult:
    history, turns = await _load(runtime, key)
    client = ClientStream(request, runtime.config, runtime.poller)
    if in_flight := [turn for turn in turns if not turn.plan.side]:
        await in_flight[-1].broadcast.resume(client, _NO_STORE)
        in_flight[-1].note_delivery()
        return client
    last = history.last
    kept = await runtime.store.answer(key, last.id) if last else None
    if last is None or kept is None:
        raise TurnNotFound("No turn is in flight, and the last answer is not stored. Read GET /sessions/ID/messages.")
    await replay(client, last, kept, [*_NO_STORE, (request_log.NAME, request_log.of(request).id)])
    if last.state is TurnState.COMPLETE and not client.disconnected:
        runtime.registry.delivered(key, last.id, True)
    return client


async def _delete(request: web.BaseRequest, runtime: Runtime, key: SessionKey) -> HandlerResult:
    sessions = runtime.config.sessions
    await _stopped(runtime, key)
    async with CancelOnDisconnect(request, runtime.poller, lambda: None):
        place = await runtime.registry.wait_for_slot(key, sessions.queue_limit, sessions.queue_timeout)
    try:
        await _stopped(runtime, key)  # those that began beside the line meanwhile
        await _load(runtime, key)
        await runtime.store.delete(key)
        runtime.summaries.forget(key)
    finally:
        place.leave()
    return json_answer(dumps({"id": key.id, "object": "session.deleted", "deleted": True}))


_ROUTES: dict[str, dict[str, Handler]] = {
    "": {"GET": _show, "DELETE": _delete},
    "messages": {"GET": _messages},
    "stop": {"POST": _stop},
    "stream": {"GET": _stream},
}


async def _load(runtime: Runtime, key: SessionKey) -> tuple[History, list[RecordedTurn]]:
    turns: list[RecordedTurn] = runtime.registry.turns(key)
    session = await runtime.store.load(key, runtime.now(), in_use=bool(turns))
    if session.state is not SessionState.CONTINUED and not turns:
        raise SessionNotFound("No such session; it may have expired. Check the ID and the key.")
    return session.history, turns


def _number(request: web.BaseRequest, name: str, default: int) -> int:
    text = request.query.get(name, str(default))
    if not text.isascii() or not text.isdecimal() or len(text) > 9:
        raise BadRequest(f"{name} must be a whole number. Correct it, or leave it out.", param=name)
    return int(text)
