"""A session of 2,000 turns and 10 MB: a turn costs what it sends, not what is stored, and memory stays bounded.

Counted, not timed: each call of a function that a turn makes, Python's and C's.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from proxy.config.model import Config
from proxy.context.request_log import AccessRecord
from proxy.context.routing import find
from proxy.context.runtime import Runtime
from proxy.core.history import History
from proxy.core.matching.reconcile import decide
from proxy.core.model import Message, Reply, SessionKey, Turn
from proxy.core.plan import Plan
from proxy.dialects.chat import compose, fingerprints, wire
from proxy.dialects.chat.turns import turns_of
from proxy.stores.cache import CachedStore
from proxy.stores.memory import MemoryStore
from proxy.stores.sqlite.store import SQLiteStore
from proxy.turns.chat_request import ChatRequest
from proxy.turns.fit import FittedWindow
from proxy.upstream.client import Client

KEY = SessionKey(b"t", "s")
WINDOW = 40  # messages
SIZE = 2500  # bytes of a message: 2,000 turns are 10 MB
FORM = compose.rendering_of("auto", "api.openai.com", "m")


def said(role: str, n: int) -> bytes:
    return json.dumps({"role": role, "content": f"{n} {'x' * SIZE}"}, separators=(",", ":")).encode()


def stored(turns: int) -> list[Turn]:
    """So many turns, as they were recorded."""
    made: list[Turn] = []
    for n in range(turns):
        asked, raw = said("user", n), said("assistant", n)
        reply = compose.render_reply(raw, FORM, state=Turn.state) or raw
        question, echo = (
            Message("user", asked, fingerprints.fingerprint(asked)),
            Message("assistant", reply, fingerprints.fingerprint(reply)),
        )
        parent = made[-1].id if made else None
        usage = b'{"prompt_tokens":%d,"completion_tokens":600}' % (600 * min(2 * n + 1, WINDOW))
        made.append(Turn(f"t{n}", None, (question,), raw, echo, parent, rendering_key=FORM.key, model="m", usage=usage))
    return made


@pytest.fixture
def runtime() -> Runtime:
    config = Config.model_validate({"history": {"max_messages": WINDOW, "max_tokens": 10**6}})
    return Runtime(config, MemoryStore(10**9), Client(), b"", lambda: 0, lambda: "")


class Session:
    """A warm session, and turns in it as the proxy makes them, but for the sockets."""

    def __init__(self, runtime: Runtime, history: History) -> None:
        self.history = history
        self._runtime = runtime
        self._target = find("/v1/chat/completions", "POST", runtime.config.upstreams)

    def turn(self, n: int) -> bytes:
        """One turn; the body that went upstream."""
        body = b'{"model":"m","messages":[' + said("user", n) + b"]}"
        ask = wire.read(body)
        plan: Plan = decide(ask, self.history, fingerprints)
        assert self._target
        call = ChatRequest(self._target, KEY, ask, [], b"", True, AccessRecord("", 0.0))
        fit = FittedWindow(self._runtime, call, plan, self.history, FORM)
        sent = b"".join(fit.body(FORM)[0])
        reply = Reply(message=said("assistant", n), finish_reason="stop", finished=True)
        turns = turns_of(
            ask, plan, reply, FORM, id=f"n{n}", new_id=str, remembered=None, request=b"", trim_point=fit.trim_point
        )
        self.history = self.history.plus(*turns)
        return sent


def calls(work: Any) -> tuple[int, bytes]:
    """How many functions some work calls, and what it gives."""
    count = 0

    def note(frame: Any, event: str, arg: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        result = work()
    finally:
        sys.setprofile(None)
    return count, result


def cost(runtime: Runtime, turns: int) -> tuple[list[int], list[int]]:
    """Of twenty turns behind so many: the calls, and the bytes sent."""
    session = Session(runtime, History().plus(*stored(turns)))
    session.turn(0)  # the first one reads all of the history
    done = [calls(lambda n=n: session.turn(n)) for n in range(1, 21)]
    return [count for count, _ in done], [len(body) for _, body in done]


async def test_a_turn_costs_what_it_sends_and_not_what_is_stored(
    runtime: Runtime, capsys: pytest.CaptureFixture[str]
) -> None:
    short, few = cost(runtime, 100)
    long, many = cost(runtime, 2000)
    with capsys.disabled():
        print(f"\ncalls of twenty turns behind 100 turns: {sum(short)}, behind 2,000: {sum(long)}; ", end="")
        print(f"bytes sent: {sum(few):,} and {sum(many):,}")
    assert max(many) <= (WINDOW + 1) * (SIZE + 100)
    assert sum(many) == pytest.approx(sum(few), rel=0.01)
    assert sum(long) <= 1.02 * sum(short)
    assert min(short) == pytest.approx(min(long), abs=5)


async def test_the_whole_of_it_stays_inside_the_cache(runtime: Runtime, tmp_path: Path) -> None:
    limit = 64 << 20
    inner = await SQLiteStore.open(tmp_path / "sessions.db", 10**9)
    store = CachedStore(inner, 10**9, limit)
    await store.append(KEY, stored(2000), 0)
    await store.touch(KEY, 0)
    gc.collect()
    tracemalloc.start()
    try:
        session = Session(runtime, (await store.load(KEY, 0)).history)
        for n in range(200):
            session.turn(n)
            gc.collect(0)
        history = session.history
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        await store.close()
    assert len(history.turns) == 2200
    # What is accounted is what is there, and more.
    assert 10 << 20 < held < history.size < limit


async def test_what_does_not_fit_the_cache_is_read_again_and_not_kept(runtime: Runtime, tmp_path: Path) -> None:
    store = CachedStore(await SQLiteStore.open(tmp_path / "sessions.db", 10**9), 10**9, 8 << 20)
    await store.append(KEY, stored(2000), 0)
    sent = []
    for n in range(3):
        session = Session(runtime, (await store.load(KEY, 0)).history)
        sent.append(session.turn(n))
        await store.append(KEY, session.history.turns[-1:], 0)
        assert store._size <= 8 << 20
        await asyncio.sleep(0)
    await store.close()
    assert all(len(body) <= (WINDOW + 1) * (SIZE + 100) for body in sent)
    assert sent[1].startswith(sent[0][: sent[0].rindex(b"}]") + 1])
