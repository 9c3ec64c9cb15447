"""Summaries of what leaves a window: written by the upstream, after a turn, and never in the way of one."""

from __future__ import annotations

import asyncio
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from multidict import CIMultiDict

from proxy.config.model import Config
from tests.server.test_sessions_api import call, get
from tests.support.fakes import Received, Reply, ScriptedUpstream, completion, error, eventually
from tests.support.serving import RunningProxy, Serve
from tests.support.talk import Json, ask, history, old_part, user, warm_store
from tests.turns.test_long_sessions import TOKENS, WORDS, counted, dropped, talked, too_long

OURS = {"api_key": "ours"}
PROMPT = "Sum it up."
HEADING = Config().history.summary.heading
LIMIT: Json = {"max_tokens": 20 * TOKENS, "overflow": "summarize", "summary": {"prompt": PROMPT}}


def asks_for_a_summary(request: Received) -> bool:
    return bool(request.messages[0]["content"] == PROMPT)


class Writing:
    """An upstream that writes summaries; `go` lets them end, `said` is what it answers."""

    def __init__(self, said: Any = None) -> None:
        self.go = asyncio.Event()
        self.go.set()
        self.said = said
        self.summaries: list[Received] = []
        self.turns: list[Received] = []

    async def __call__(self, request: Received) -> Reply:
        if not asks_for_a_summary(request):
            self.turns.append(request)
            return counted(request)
        self.summaries.append(request)
        await self.go.wait()
        reply: Reply = self.said or completion(f"summary {len(self.summaries)}")
        return reply


def first(request: Received) -> str:
    """The first message that goes upstream; of a summary what follows its first line."""
    said = str(request.messages[0]["content"])
    heading, gap, rest = said.partition("\n\n")
    return rest if gap and heading == HEADING else said


async def idle(proxy: RunningProxy) -> None:
    """Until no summary is being written."""
    await eventually(lambda: proxy.runtime.summaries.is_free(KEY(proxy)))


async def slowly(proxy: RunningProxy, writing: Writing, turns: int, start: int = 0) -> list[Any]:
    """Turns of a client that leaves a moment in between."""
    told = []
    for n in range(start, start + turns):
        told += await talked(proxy, 1, n)
        await idle(proxy)
    return told


def KEY(proxy: RunningProxy) -> Any:
    from proxy.context import tenants
    from proxy.core.model import SessionKey

    return SessionKey(tenants.tenant(proxy.runtime.config, CIMultiDict(), proxy.runtime.secret), "s1")


async def test_trimmed_messages_are_replaced_by_a_summary(serve: Serve, tmp_path: Path) -> None:
    writing = Writing()
    async with ScriptedUpstream(writing) as upstream, warm_store(tmp_path) as store:
        proxy = await serve(upstream.base_url, store=store, upstream=OURS, history=LIMIT)
        told = await slowly(proxy, writing, 30)
        shown = await get(proxy.port, "/sessions/s1")
        kept = await get(proxy.port, "/sessions/s1/messages?limit=1000")
    assert len(writing.summaries) >= 3
    assert all(len(request.messages) <= 20 for request in writing.turns)
    assert first(writing.turns[-1]).startswith("summary ")
    assert shown["summary"] == writing.turns[-1].messages[0]
    assert shown["cut"] == shown["summarized"] == dropped(told[-1]) > 30
    # The originals stay, and the summaries are no messages of the session.
    assert [each["message"]["content"][:10] for each in kept["data"][::2]] == [f"question {n}"[:10] for n in range(30)]
    assert "summary" not in json.dumps(kept)
    # The next summary has the one before it, and what left since; and all of it is in one of them.
    asked = [request.messages[1]["content"] for request in writing.summaries]
    assert all(f"summary {n}" in text for n, text in enumerate(asked) if n)
    assert [n for n in range(shown["cut"] // 2) if not any(f"question {n} " in text for text in asked)] == []
    assert writing.summaries[0].header("authorization") == "Bearer ours"
    assert writing.summaries[0].json["max_tokens"] == 20 * TOKENS // 8
    # Between two cuts the prefix stays.
    pairs = list(pairwise(writing.turns))
    assert sum([after.body.startswith(old_part(before)) for before, after in pairs]) >= 0.75 * len(pairs)
    async with warm_store(tmp_path) as store:  # after a restart, and where no more are asked for
        proxy = await serve(upstream.base_url, store=store, upstream=OURS)
        assert (await history(proxy)).trim_point.summary == json.dumps(shown["summary"], separators=(",", ":")).encode()


async def test_a_turn_never_waits_for_a_summary(serve: Serve) -> None:
    writing = Writing()
    writing.go.clear()
    async with ScriptedUpstream(writing) as upstream:
        proxy = await serve(upstream.base_url, upstream=OURS, history=LIMIT)
        told = await talked(proxy, 16)
        assert dropped(told[-1]) > 0 and len(writing.summaries) == 1
        assert "summary" not in first(writing.turns[-1])
        writing.go.set()
        await eventually(lambda: proxy.runtime.summaries.is_free(KEY(proxy)))
        await slowly(proxy, writing, 10, 16)
        assert first(writing.turns[-1]).startswith("summary ")


@pytest.mark.parametrize(
    "said",
    [
        error(500, {"error": {"message": "no"}}),
        completion("I'm sorry, but I can't help with that."),
        Reply(200, [], [b"x"], end="rst"),
    ],
)
async def test_a_failed_summary_is_a_trim_and_not_requested_at_each_turn(serve: Serve, said: Reply) -> None:
    writing = Writing(said)
    async with ScriptedUpstream(writing) as upstream:
        proxy = await serve(upstream.base_url, upstream=OURS, history=LIMIT)
        told = await slowly(proxy, writing, 30)
    assert dropped(told[-1]) > 20
    assert all("question" in first(request) for request in writing.turns)
    assert 2 <= len(writing.summaries) <= 8


async def test_messages_trimmed_after_an_upstream_error_are_summarized(serve: Serve) -> None:
    limited, writing = too_long(16), Writing()

    async def answer(request: Received) -> Reply:
        return await writing(request) if asks_for_a_summary(request) else limited(request)

    async with ScriptedUpstream(answer) as upstream:
        settings = {"overflow": "summarize", "summary": {"prompt": PROMPT, "model": "small", "max_tokens": 9}}
        proxy = await serve(upstream.base_url, upstream=OURS, history=settings)
        told = await slowly(proxy, writing, 10)
        assert dropped(told[-1]) > 0
        turns = [request for request in upstream.requests if not asks_for_a_summary(request)]
        assert first(turns[-1]).startswith("summary ")
        assert (writing.summaries[0].json["model"], writing.summaries[0].json["max_tokens"]) == ("small", 9)
        assert f"question 0{WORDS}" in writing.summaries[0].messages[1]["content"]


async def test_messages_trimmed_by_max_messages_are_summarized(serve: Serve) -> None:
    writing = Writing()
    async with ScriptedUpstream(writing) as upstream:
        limit = {"max_messages": 10, "overflow": "summarize", "summary": {"prompt": PROMPT}}
        proxy = await serve(upstream.base_url, upstream=OURS, history=limit)
        await slowly(proxy, writing, 20)
    assert first(writing.turns[-1]).startswith("summary ")


async def test_no_summary_is_requested_with_the_callers_key(serve: Serve) -> None:
    writing = Writing()
    async with ScriptedUpstream(writing) as upstream:
        proxy = await serve(upstream.base_url, history=LIMIT)
        told = await slowly(proxy, writing, 16)
        assert dropped(told[-1]) > 0 and writing.summaries == []


async def test_no_summary_is_requested_for_full_lists(serve: Serve) -> None:
    writing = Writing()
    async with ScriptedUpstream(writing) as upstream:
        proxy = await serve(upstream.base_url, upstream=OURS, history=LIMIT)
        told: list[Json] = []
        for n in range(20):
            told.append(user(f"question {n}{WORDS}"))
            told.append((await ask(proxy.port, told)).message)
        assert writing.summaries == []


async def test_a_delete_removes_the_summary(serve: Serve) -> None:
    writing = Writing()
    async with ScriptedUpstream(writing) as upstream:
        proxy = await serve(upstream.base_url, upstream=OURS, history=LIMIT)
        turns = 0
        while not writing.summaries:
            await slowly(proxy, writing, 1, turns)
            turns += 1
        assert proxy.runtime.summaries.ready(KEY(proxy), (await history(proxy)).path)
        writing.go.clear()
        assert (await call(proxy.port, "DELETE", "/sessions/s1"))[0].status == 200
        assert proxy.runtime.summaries._ready == {}
        await talked(proxy, 1)
        assert first(writing.turns[-1]).startswith("question 0")


async def test_a_delete_ends_a_summary_that_is_being_written(serve: Serve) -> None:
    writing = Writing()
    writing.go.clear()
    async with ScriptedUpstream(writing) as upstream:
        proxy = await serve(upstream.base_url, upstream=OURS, history=LIMIT)
        turns = 0
        while not writing.summaries:
            await talked(proxy, 1, turns)
            turns += 1
            await asyncio.sleep(0.02)
        assert (await call(proxy.port, "DELETE", "/sessions/s1"))[0].status == 200
        await eventually(lambda: proxy.runtime.summaries.is_free(KEY(proxy)))
        await eventually(lambda: upstream.connections <= 1)
        assert proxy.runtime.summaries._ready == {}


@pytest.mark.parametrize("kept", [True, False])
async def test_a_summary_holds_on_every_branch_that_contains_its_messages(serve: Serve, kept: bool) -> None:
    writing = Writing()
    async with ScriptedUpstream(writing) as upstream:
        proxy = await serve(upstream.base_url, upstream=OURS, history=LIMIT)
        turns = 0
        while not writing.summaries:
            await slowly(proxy, writing, 1, turns)
            turns += 1
        line = [json.loads(entry.message.raw) for entry in (await history(proxy)).path]
        branch = [*(line[:-2] if kept else line[:2]), user("another question")]
        assert (await ask(proxy.port, branch)).decision == "rewrite"
        assert (await ask(proxy.port, [user("more")], headers=[("x-session-mode", "append")])).status == 200
        assert first(writing.turns[-1]).startswith("summary 1" if kept else "question 0")


async def test_a_dry_run_and_the_session_api_show_the_summary(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "proxy.summary")
    writing = Writing()
    async with ScriptedUpstream(writing) as upstream:
        proxy = await serve(upstream.base_url, upstream=OURS, history=LIMIT)
        await slowly(proxy, writing, 20)
        answer = await ask(proxy.port, [user("more")], headers=[("x-session-dry-run", "yes")])
        told = json.loads(answer.data)
    sent = json.loads(told["body"])["messages"]
    assert [each["role"] for each in told["messages"]] == [each["role"] for each in sent]
    assert [each["from"] for each in told["messages"]][:2] == ["summary", "proxy"]
    assert {each["from"] for each in told["messages"][2:]} == {"history", "request"}
    numbers = proxy.runtime.counters
    assert numbers.summaries == {"made": len(writing.summaries)} and writing.summaries
    used = numbers.summary_prompt, numbers.summary_completion
    assert used == (3 * len(writing.summaries), 2 * len(writing.summaries))
    assert "are summarized in" in caplog.text


async def test_a_summary_that_fails_is_counted(serve: Serve) -> None:
    writing = Writing(error(500, {"error": "no"}))
    async with ScriptedUpstream(writing) as upstream:
        proxy = await serve(upstream.base_url, upstream=OURS, history=LIMIT)
        await slowly(proxy, writing, 12)
    assert proxy.runtime.counters.summaries == {"failed": len(writing.summaries)} and writing.summaries
