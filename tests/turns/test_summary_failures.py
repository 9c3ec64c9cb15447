"""Summaries that fail, come late or say too much: the last good one is in every prompt, no turn waits for one or fails,
and what is paid for is bounded."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from proxy.core.window.chain import SHORT
from tests.server.test_sessions_api import call
from tests.support.fakes import Received, Reply, ScriptedUpstream, completion, error, eventually, sse
from tests.support.serving import Serve
from tests.support.talk import Json, ask, calling, history, user, warm_store
from tests.turns.test_long_sessions import TOKENS, WORDS, counted, dropped
from tests.turns.test_summaries import HEADING, LIMIT, OURS, asks_for_a_summary, idle

TIMED: Json = {**LIMIT, "summary": {**LIMIT["summary"], "timeout": "100ms"}}
DEEP = 40  # turns while it fails
PAUSE = 0.25 if os.environ.get("SOAK") else 0.05  # seconds between two turns
TURNS_OF_EIGHT = 32
PAID = 8  # requests that 40 failing turns may cost


class Failing:
    """An upstream whose summaries are good until `fails` has an answer for them."""

    def __init__(self) -> None:
        self.fails: Callable[[], Any] | None = None
        self.turns: list[Received] = []
        self.summaries: list[Received] = []
        self.delay = 0.0

    async def __call__(self, request: Received) -> Reply:
        if not asks_for_a_summary(request):
            self.turns.append(request)
            return counted(request)
        self.summaries.append(request)
        await asyncio.sleep(self.delay)
        reply: Reply = self.fails() if self.fails else completion(f"summary {len(self.summaries)}")
        return reply


def summary_of(request: Received) -> str | None:
    """The summary in a prompt, its first line left out."""
    heading, _, said = str(request.messages[0]["content"]).partition("\n\n")
    return said if heading == HEADING else None


async def talk(port: int, turns: int, start: int = 0, session: str = "s1") -> list[Any]:
    told = [await ask(port, [user(f"question {n}{WORDS}")], session=session) for n in range(start, start + turns)]
    assert [answer.status for answer in told] == [200] * turns
    return told


async def begun(proxy: Any, upstream: Failing, session: str = "s1") -> int:
    """Turns until a summary is in use; how many those were."""
    turns = 0
    while not upstream.turns or summary_of(upstream.turns[-1]) is None:
        await talk(proxy.port, 1, turns, session)
        await idle(proxy)
        turns += 1
        assert turns < 40
    return turns


def hung() -> Reply:
    return Reply(200, [("Content-Type", "application/json")], [], end="hang")


FAILURES: dict[str, Callable[[], Reply]] = {
    "500": lambda: error(500, {"error": {"message": "no"}}),
    "401": lambda: error(401, {"error": {"message": "who?", "code": "invalid_api_key"}}),
    "429": lambda: error(429, {"error": {"message": "slow down"}}),
    "hang": hung,
    "html": lambda: Reply(200, [("Content-Type", "text/html")], [b"<html>Sign in</html>"]),
    "empty": lambda: completion(""),
    "null": lambda: completion(None),
    "tool call": lambda: completion(None, message=calling("c1"), finish="tool_calls"),
    "refusal": lambda: completion("I'm sorry, but I can't help with that."),
    "refused": lambda: completion(None, message={"role": "assistant", "content": None, "refusal": "No."}),
    "filtered": lambda: completion("", finish="content_filter"),
    "thoughts": lambda: completion("<think>So much to", finish="length"),
    "torn": lambda: Reply(200, [("Content-Type", "application/json")], [b'{"choices":[{"mess'], end="rst"),
    "an error in a 200": lambda: Reply(200, [], [b'{"error":{"message":"overloaded"}}']),
}


@pytest.mark.parametrize("kind", FAILURES)
async def test_a_failed_summary_leaves_the_last_one_in_every_prompt(
    serve: Serve, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    upstream_of = Failing()
    async with ScriptedUpstream(upstream_of) as upstream:
        proxy = await serve(upstream.base_url, upstream=OURS, history=TIMED)
        turns = await begun(proxy, upstream_of)
        good, paid, seen = summary_of(upstream_of.turns[-1]), len(upstream_of.summaries), len(upstream_of.turns)
        upstream_of.fails = FAILURES[kind]
        took = 0.0
        for n in range(DEEP):
            begins = time.monotonic()
            told = await talk(proxy.port, 1, turns + n)
            took += time.monotonic() - begins
            await idle(proxy)
        asked = len(upstream_of.summaries) - paid
        during = upstream_of.turns[seen:]
        prompts = {summary_of(request) for request in during}
        # One that was asked for before is good, and newer.
        assert None not in prompts and good is not None
        assert all(each is not None and each.startswith("summary ") for each in prompts)
        assert 1 <= asked <= PAID
        assert took < 8
        sizes = [len(request.messages) for request in during]
        assert max(sizes) <= 20 and dropped(told[-1]) > 40
        # It works again: what left meanwhile is told, and nothing of it is missing.
        upstream_of.fails = None
        for n in range(20):
            await talk(proxy.port, 1, turns + DEEP + n)
            await idle(proxy)
        cut = (await history(proxy)).trim_point
        assert cut.covered == cut.at
        left = "\n".join([request.messages[1]["content"] for request in upstream_of.summaries])
        assert [n for n in range(cut.at // 2) if f"question {n} " not in left] == []
    with capsys.disabled():
        print(f"\n{kind}: {asked} requests for summaries in {DEEP} turns that fail, {took:.1f} s", end="")


def in_gzip(reply: Reply) -> Reply:
    headers = [*reply.headers, ("Content-Encoding", "gzip")]
    return Reply(200, headers, [gzip.compress(b"".join(reply.pieces))])


TAKEN: dict[str, tuple[Callable[[], Reply], str]] = {
    "length": (lambda: completion("Ann lives in Rome. She has", finish="length"), f"Ann lives in Rome. She has{SHORT}"),
    "sse": (lambda: sse("Ann lives ", "in Rome."), "Ann lives in Rome."),
    "thoughts": (lambda: completion("<think>Hm.</think>\nAnn lives in Rome."), "Ann lives in Rome."),
    "gzip": (lambda: in_gzip(completion("Ann lives in Rome.")), "Ann lives in Rome."),
    "a copied first line": (lambda: completion(f"{HEADING}\n\nAnn lives in Rome."), "Ann lives in Rome."),
}


@pytest.mark.parametrize("kind", TAKEN)
async def test_a_usable_summary_is_taken_from_an_imperfect_answer(serve: Serve, kind: str) -> None:
    upstream_of = Failing()
    said, wanted = TAKEN[kind]
    async with ScriptedUpstream(upstream_of) as upstream:
        proxy = await serve(upstream.base_url, upstream=OURS, history=TIMED)
        upstream_of.fails = said
        await begun(proxy, upstream_of)
    assert summary_of(upstream_of.turns[-1]) == wanted


@pytest.mark.parametrize("counts", [True, False])
async def test_too_long_a_summary_is_cut_and_counted(serve: Serve, counts: bool) -> None:
    """1,600 tokens where 250 were asked for, at four bytes each; its upstream would refuse a prompt over the limit."""
    upstream_of, limit, over = Failing(), 2000, []
    text = "This is one of the sentences of a summary. " * 150

    async def answer(request: Received) -> Reply:
        reply = await upstream_of(request)
        tokens = len(request.body) // 4
        over.append(tokens > limit)
        used = {"prompt_tokens": tokens, "completion_tokens": TOKENS}
        return reply if asks_for_a_summary(request) else completion(f"answer{WORDS}", usage=used)

    long = {"prompt_tokens": 500, "completion_tokens": 1600} if counts else None
    upstream_of.fails = lambda: completion(text, usage=long)
    async with ScriptedUpstream(answer) as upstream:
        proxy = await serve(upstream.base_url, upstream=OURS, history={**LIMIT, "max_tokens": limit})
        for n in range(60):
            await talk(proxy.port, 1, n)
            await idle(proxy)
    assert not any(over)
    told = [summary_of(request) for request in upstream_of.turns]
    first = next(n for n, each in enumerate(told) if each)
    assert all(each and len(each) <= 1100 and each.endswith(f".{SHORT}") for each in told[first:])
    assert len(upstream_of.summaries) <= 8
    assert min([len(request.messages) for request in upstream_of.turns[first:]]) > 4


async def test_eight_concurrent_sessions_use_their_late_summaries(serve: Serve) -> None:
    """A summary takes eight turns: it is late, and in use all the same."""
    upstream_of = Failing()
    upstream_of.delay = 8 * PAUSE

    async def session(port: int, name: str) -> None:
        for n in range(TURNS_OF_EIGHT):
            await talk(port, 1, n, name)
            await asyncio.sleep(PAUSE)

    async with ScriptedUpstream(upstream_of) as upstream:
        proxy = await serve(upstream.base_url, upstream=OURS, history=LIMIT)
        begins = time.monotonic()
        await asyncio.gather(*[session(proxy.port, f"s{n}") for n in range(1, 9)])
        took = time.monotonic() - begins
        cuts = [(await history(proxy, f"s{n}")).trim_point for n in range(1, 9)]
    assert all(cut.summary and cut.covered >= 16 for cut in cuts)
    assert took < TURNS_OF_EIGHT * PAUSE + 8
    assert 8 <= len(upstream_of.summaries) <= 8 * (took / upstream_of.delay + 1)  # one at a time
    assert len(upstream_of.summaries) <= 8 * TURNS_OF_EIGHT // 4


async def test_four_hanging_summaries_block_no_other_session(serve: Serve) -> None:
    upstream_of = Failing()
    upstream_of.fails = hung
    async with ScriptedUpstream(upstream_of) as upstream:
        proxy = await serve(upstream.base_url, upstream=OURS, history=LIMIT)
        for name in "abcd":
            await talk(proxy.port, 16, 0, name)
        await eventually(lambda: len(upstream_of.summaries) == 4)
        upstream_of.fails = None
        for n in range(16):
            await talk(proxy.port, 1, n)
            await idle(proxy)
        assert (await history(proxy)).trim_point.summary
        for name in "abcd":
            assert (await call(proxy.port, "DELETE", f"/sessions/{name}"))[0].status == 200


async def test_an_upstream_whose_context_shrinks_gets_less_of_the_summary(serve: Serve) -> None:
    """From 4,000 tokens to 600, with a summary that alone would take 500."""
    upstream_of, takes, refused = Failing(), 4000, 0
    upstream_of.fails = lambda: completion("This is one of the sentences of a summary. " * 46)

    async def answer(request: Received) -> Reply:
        nonlocal refused
        tokens = len(request.body) // 4
        if tokens > takes:
            refused += 1
            return error(400, {"error": {"message": f"maximum context length is {takes} tokens, got {tokens} tokens"}})
        reply = await upstream_of(request)
        used = {"prompt_tokens": tokens, "completion_tokens": TOKENS}
        return reply if asks_for_a_summary(request) else completion(f"answer{WORDS}", usage=used)

    async with ScriptedUpstream(answer) as upstream:
        history = {"overflow": "summarize", "max_tokens": 4000, "summary": LIMIT["summary"]}
        proxy = await serve(upstream.base_url, upstream=OURS, history=history)
        turns = await begun(proxy, upstream_of)
        assert len(summary_of(upstream_of.turns[-1]) or "") > 1900
        takes = 600
        for n in range(20):
            await talk(proxy.port, 1, turns + n)
            await idle(proxy)
    assert refused <= 2
    assert all([summary_of(request) for request in upstream_of.turns[turns:]])


@pytest.mark.parametrize("said", ["maximum context length is 1200 tokens", "Too many messages, at most 20", "no"])
async def test_the_summary_is_trimmed_last(serve: Serve, said: str) -> None:
    upstream_of = Failing()

    async def answer(request: Received) -> Reply:
        if len(request.messages) > 20:
            return error(400, {"error": {"message": said}})
        return await upstream_of(request)

    async with ScriptedUpstream(answer) as upstream:
        proxy = await serve(upstream.base_url, upstream=OURS, history=TIMED)
        turns = await begun(proxy, upstream_of)
        many = [user(f"part {n}{WORDS}") for n in range(19)]
        told = [(await ask(proxy.port, many)).status for _ in range(3)]
        assert told == ([200] * 3 if said != "no" else [400, 400, 200])
        assert summary_of(upstream_of.turns[-1]) is None
        await idle(proxy)
        await talk(proxy.port, 1, turns)
        assert summary_of(upstream_of.turns[-1])


async def test_a_summary_for_a_small_model_does_not_shorten_a_larger_models_window(serve: Serve) -> None:
    upstream_of, limits = Failing(), {"large": 3000, "small": 900}

    async def answer(request: Received) -> Reply:
        tokens, takes = len(request.body) // 4, limits[request.json["model"]]
        if tokens > takes:
            said = f"maximum context length is {takes} tokens, got {tokens} tokens"
            return error(400, {"error": {"message": said, "code": "context_length_exceeded"}})
        reply = await upstream_of(request)
        used = {"prompt_tokens": tokens, "completion_tokens": TOKENS}
        return reply if asks_for_a_summary(request) else completion(f"answer{WORDS}", usage=used)

    async with ScriptedUpstream(answer) as upstream:
        settings = {"overflow": "summarize", "summary": LIMIT["summary"]}
        proxy = await serve(upstream.base_url, upstream=OURS, history=settings)
        for n in range(40):
            model = "small" if n % 2 else "large"
            assert (await ask(proxy.port, [user(f"question {n}{WORDS}")], model=model)).status == 200
            await idle(proxy)
    turns = {model: [each for each in upstream_of.turns if each.json["model"] == model] for model in limits}
    # The large one has what fits it, and what has left there is in a summary, as at the small one.
    assert len(turns["large"][-1].messages) > 2 * len(turns["small"][-1].messages) > 4
    assert len(turns["large"][-1].body) > 4 * 1200
    for model, sent in turns.items():
        told = [n for n, each in enumerate(sent) if summary_of(each)]
        assert told, model
        assert all([summary_of(each) for each in sent[told[0] :]]), model


async def test_a_restart_keeps_the_last_summary_and_what_it_covers(serve: Serve, tmp_path: Path) -> None:
    upstream_of = Failing()
    async with ScriptedUpstream(upstream_of) as upstream:
        async with warm_store(tmp_path) as store:
            proxy = await serve(upstream.base_url, store=store, upstream=OURS, history=TIMED)
            turns = await begun(proxy, upstream_of)
            upstream_of.fails = FAILURES["500"]
            await talk(proxy.port, 12, turns)
            await idle(proxy)
            before = (await history(proxy)).trim_point
        assert before.summary and before.covered < before.at
        async with warm_store(tmp_path) as store:
            proxy = await serve(upstream.base_url, store=store, upstream=OURS, history=TIMED)
            proxy.runtime.turn_id = iter([f"again_{n}" for n in range(99)]).__next__
            assert (await history(proxy)).trim_point == before
            await talk(proxy.port, 1, turns + 12)
            assert summary_of(upstream_of.turns[-1]) is not None
            upstream_of.fails = None
            for n in range(6):
                await talk(proxy.port, 1, turns + 13 + n)
                await idle(proxy)
            cut = (await history(proxy)).trim_point
            assert cut.covered == cut.at
            asked = [request for request in upstream_of.summaries if f"question {before.covered // 2} " in str(request)]
            assert asked


async def test_a_branch_from_before_the_trim_point_has_its_messages_again(serve: Serve) -> None:
    upstream_of = Failing()
    async with ScriptedUpstream(upstream_of) as upstream:
        proxy = await serve(upstream.base_url, upstream=OURS, history=TIMED)
        await begun(proxy, upstream_of)
        line = [json.loads(entry.message.raw) for entry in (await history(proxy)).path]
        assert (await ask(proxy.port, [*line[:4], user("another question")])).decision == "rewrite"
        assert (await ask(proxy.port, [user("more")], headers=[("x-session-mode", "append")])).status == 200
        assert upstream_of.turns[-1].messages[:4] == line[:4]
        assert (await history(proxy)).trim_point.summary is None


async def test_no_summary_is_used_of_a_session_that_was_deleted(serve: Serve) -> None:
    upstream_of = Failing()
    async with ScriptedUpstream(upstream_of) as upstream:
        proxy = await serve(upstream.base_url, upstream=OURS, history=TIMED)
        await begun(proxy, upstream_of)
        assert (await call(proxy.port, "DELETE", "/sessions/s1"))[0].status == 200
        seen = len(upstream_of.turns)
        await talk(proxy.port, 6)
        assert all(summary_of(request) is None for request in upstream_of.turns[seen:])


async def test_strict_upstreams_take_a_prompt_with_a_summary(serve: Serve) -> None:
    """One that answers as llama.cpp does for the templates of Gemma and Mistral, under no profile of its own."""
    upstream_of = Failing()

    async def answer(request: Received) -> Reply:
        roles = [message["role"] for message in request.messages if message["role"] != "system"]
        if roles != [["user", "assistant"][n % 2] for n in range(len(roles))]:
            said = "Conversation roles must alternate user/assistant/user/assistant/..."
            return error(500, {"error": {"message": said}})
        return await upstream_of(request)

    async with ScriptedUpstream(answer) as upstream:
        proxy = await serve(upstream.base_url, upstream={**OURS, "profile": "auto"}, history=LIMIT)
        turns = await begun(proxy, upstream_of)
        for n in range(20):
            await talk(proxy.port, 1, turns + n)
            await idle(proxy)
    assert all([summary_of(request) for request in upstream_of.turns[turns:]])
