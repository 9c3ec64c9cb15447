"""Limits of upstreams: which error tells of one, whose it is, and that one which grew is found again."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from proxy.context.failures import PATIENCE, TRIED
from proxy.core.learned import PROBED
from tests.dialects.chat.test_context_errors import COUNTS, SAYS, VLLM
from tests.support.fakes import RawClient, Received, Reply, ScriptedUpstream, completion, error, event, sse
from tests.support.serving import RunningProxy, Serve
from tests.support.talk import Answer, ask, history, user
from tests.turns.test_long_sessions import TOKENS, WORDS, counted, dropped, is_prefix, talked, too_long

PICTURE = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{0:02000}"}}


def tokens_of(request: Received) -> int:
    return TOKENS * len(request.messages)


def refusing(said: Any, status: int = 400, takes: int = 16) -> Callable[[Received], Reply]:
    """An upstream that takes so many messages, and says `said` of more."""

    def answered(request: Received) -> Reply:
        if len(request.messages) <= takes:
            return counted(request)
        return error(status, said)

    return answered


def renamed(said: Any, limit: int | None) -> Any:
    """The same error with the limit of the upstream above."""
    return json.loads(json.dumps(said).replace(f"{limit}", f"{16 * TOKENS}")) if limit else said


# Show 3


@pytest.mark.parametrize("number", range(len(SAYS)))
async def test_a_session_recovers_from_every_known_context_error(serve: Serve, number: int) -> None:
    said, limit, _ = SAYS[number]
    async with ScriptedUpstream(refusing(renamed(said, limit))) as upstream:
        proxy = await serve(upstream.base_url)
        told = await talked(proxy, 20)
        assert dropped(told[-1]) > 0
        assert all(len(request.messages) <= 40 for request in upstream.requests)


@pytest.mark.parametrize("number", range(len(COUNTS)))
async def test_a_session_recovers_from_errors_about_messages_images_or_bytes(serve: Serve, number: int) -> None:
    status, said, kind, limit = COUNTS[number]

    def answered(request: Received) -> Reply:
        many = {
            "messages": len(request.messages) > 16,
            "images": request.body.count(b"base64") > min(limit or 5, 5),
            "bytes": len(request.body) > 8000,
        }
        page = said if isinstance(said, bytes) else json.dumps(said).replace(str(limit), str(min(limit or 5, 5)))
        if many[kind] and isinstance(page, bytes):
            return Reply(status, [("Content-Type", "text/html")], [page], "length")
        return error(status, json.loads(page)) if many[kind] else counted(request)

    async with ScriptedUpstream(answered) as upstream:
        proxy = await serve(upstream.base_url)
        asked = [user([PICTURE] if kind == "images" else f"question {n}{WORDS}") for n in range(24)]
        assert [(await ask(proxy.port, [message])).status for message in asked] == [200] * 24
    if kind == "images":
        assert len(upstream.requests) <= 26  # how many it takes is remembered
        assert all(request.messages[0] != user([PICTURE]) for request in upstream.requests[-4:])
        assert len(upstream.requests[-1].messages) == 47  # no message left


async def test_a_compressed_context_error_is_understood_and_forwarded_unchanged(serve: Serve) -> None:
    said = too_long(16)

    def answered(request: Received) -> Reply:
        reply = said(request)
        if reply.status != 200:
            reply.pieces = [gzip.compress(reply.pieces[0])]
            reply.headers += [("Content-Encoding", "gzip")]
        return reply

    async with ScriptedUpstream(answered) as upstream:
        proxy = await serve(upstream.base_url)
        told = await talked(proxy, 12)
        assert dropped(told[-1]) > 0
        answer = await ask(proxy.port, [user("question")] * 17)
        assert (answer.status, answer.head.header("content-encoding")) == (400, "gzip")
        assert b"available context size" in gzip.decompress(answer.data)


@pytest.mark.parametrize("encoding", ["none", "gzip", "x-unknown"])
async def test_a_context_error_with_a_wrong_encoding_header_is_read_as_plain(serve: Serve, encoding: str) -> None:
    said = too_long(16)

    def answered(request: Received) -> Reply:
        reply = said(request)
        if reply.status != 200:
            reply.headers += [("Content-Encoding", encoding)]
        return reply

    async with ScriptedUpstream(answered) as upstream:
        proxy = await serve(upstream.base_url)
        assert dropped((await talked(proxy, 12))[-1]) > 0


async def test_unreadable_errors_in_a_row_lead_to_a_careful_trim(serve: Serve) -> None:
    said = {"error": {"message": "Das ist zu viel.", "code": "E17"}}
    async with ScriptedUpstream(refusing(said)) as upstream:
        proxy = await serve(upstream.base_url)
        await talked(proxy, 8)
        refused = [await ask(proxy.port, [user(f"more {n}{WORDS}")]) for n in range(PATIENCE)]
        assert [(each.status, json.loads(each.data)) for each in refused] == [(400, said)] * PATIENCE
        told = await talked(proxy, 3, 8)
        assert 0 < dropped(told[0]) < 10
        assert len(upstream.requests) == 8 + PATIENCE + 2 + 2
        # What fails for another reason fails as before, and a success in between begins the count anew.
        upstream.script = lambda request: error(400, said)
        before = len(upstream.requests)
        told = [await ask(proxy.port, [user(f"bad {n}{WORDS}")]) for n in range(10)]
        assert [json.loads(each.data) for each in told] == [said] * 10
        assert len(upstream.requests) == before + 10 + TRIED
        upstream.script = counted
        assert dropped((await talked(proxy, 1, 20))[0]) < 16


@pytest.mark.parametrize("stream", [True, False])
async def test_unreadable_errors_within_a_200_lead_to_a_trim_too(serve: Serve, stream: bool) -> None:
    def answered(request: Received) -> Reply:
        if len(request.messages) <= 16:
            return counted(request)
        said = {"error": {"message": "Das ist zu viel."}}
        if stream:
            reply = sse("x")
            reply.pieces = [event(said)]
            return reply
        reply = completion("x", framing="length")
        reply.pieces = [json.dumps(said).encode()]
        return reply

    async with ScriptedUpstream(answered) as upstream:
        proxy = await serve(upstream.base_url)
        await talked(proxy, 8, stream=stream)
        for n in range(PATIENCE):
            assert b"zu viel" in (await ask(proxy.port, [user(f"more {n}{WORDS}")], stream=stream)).data
        answer = await ask(proxy.port, [user(f"more{WORDS}")], stream=stream)
        assert b"answer" in answer.data and b"zu viel" not in answer.data


async def test_an_answer_in_one_piece_to_a_request_for_a_stream_begins_the_count_of_failures_anew(serve: Serve) -> None:
    said = {"error": {"message": "Das ist zu viel."}}
    async with ScriptedUpstream(counted) as upstream:
        proxy = await serve(upstream.base_url)
        await talked(proxy, 8)
        for n in range(3):
            upstream.script = lambda request: error(400, said)
            for bad in range(PATIENCE):
                assert (await ask(proxy.port, [user(f"bad {n} {bad}{WORDS}")], stream=True)).status == 400
            upstream.script = lambda request: completion("fine", framing="length")
            assert dropped(await ask(proxy.port, [user(f"good {n}{WORDS}")], stream=True)) == 0
        assert len(upstream.requests) == 8 + 3 * (PATIENCE + 1)  # none was tried with less


async def test_too_large_max_tokens_trims_no_history(serve: Serve) -> None:
    """4,050 of 4,096 tokens: the error goes through, and the next turn has all of the history."""

    def vllm(request: Received) -> Reply:
        tokens, asked = tokens_of(request), request.json.get("max_tokens", 16)
        if tokens + asked <= 4096:
            return counted(request)
        return error(400, {"error": {"message": VLLM.format(asked, tokens), "type": "BadRequestError", "code": 400}})

    async with ScriptedUpstream(vllm) as upstream:
        proxy = await serve(upstream.base_url)
        for n in range(12):
            await talked(proxy, 2, 2 * n)
            answer = await ask(proxy.port, [user("more")], max_tokens=4050)
            assert (answer.status, "max_tokens" in answer.error["message"]) == (400, True)
        assert [dropped(each) for each in await talked(proxy, 3, 24)] == [0] * 3
        assert len(upstream.requests) == 39
        # An answer that there is room for is made room for, in that request alone.
        answer = await ask(proxy.port, [user("more")], max_tokens=2600)
        assert answer.status == 200 and dropped(answer) > 10
        assert [dropped(each) for each in await talked(proxy, 2, 30)] == [0, 0]
    assert len((await history(proxy)).path) == 60


# Streams


@pytest.mark.parametrize("comment", [b"", b": PROCESSING\n\n"])
@pytest.mark.parametrize("framing", ["chunked", "length", "close"])
async def test_a_context_error_that_begins_a_stream_leads_to_a_trim(serve: Serve, framing: Any, comment: bytes) -> None:
    def studio(request: Received) -> Reply:
        if len(request.messages) <= 16:
            return counted(request)
        reply = sse("x", framing=framing)
        reply.pieces = [
            *([comment] if comment else []),
            event({"error": {"message": "context length is 960 tokens only"}}),
        ]
        reply.pieces = [piece.replace(b"context length is", b"maximum context length is") for piece in reply.pieces]
        return reply

    async with ScriptedUpstream(studio) as upstream:
        proxy = await serve(upstream.base_url)
        told = await talked(proxy, 24, stream=True)
    assert all(answer.whole and b"answer" in answer.data and b"error" not in answer.data for answer in told)
    assert len(upstream.requests) <= 24 + 1 + 24 // PROBED
    assert len((await history(proxy)).path) == 48
    if comment and framing == "chunked":
        assert sum([answer.data.startswith(comment) for answer in told]) == len(upstream.requests) - 24


@pytest.mark.parametrize("cuts", [(4,), (13, 16), (14, 24), (27,), (34,), (36,), (40, 41), (60,)])
async def test_a_context_error_that_begins_a_stream_may_come_in_pieces(serve: Serve, cuts: tuple[int, ...]) -> None:
    said = {"error": {"message": "maximum context length is 960 tokens only"}}
    body = b": PROCESSING\n\n" + b"event: error\n" + event(said)

    def studio(request: Received) -> Reply:
        if len(request.messages) <= 16:
            return counted(request)
        places = [0, *cuts, len(body)]
        reply = sse("x", delay=0.02)
        reply.pieces = [body[begin:end] for begin, end in pairwise(places)]
        return reply

    async with ScriptedUpstream(studio) as upstream:
        proxy = await serve(upstream.base_url)
        told = await talked(proxy, 10, stream=True)
    assert all([b"answer" in answer.data and b"error" not in answer.data for answer in told])


async def test_the_first_event_of_an_answer_is_not_held_until_its_line_ends(serve: Serve) -> None:
    async with ScriptedUpstream(counted) as upstream:
        proxy = await serve(upstream.base_url)
        await talked(proxy, 10, stream=True)
        go = asyncio.Event()

        async def gate(index: int) -> None:
            if index:
                await go.wait()

        begun = event({"choices": [{"index": 0, "delta": {"content": "Hel"}}]})
        upstream.script = [sse("x", gate=gate)]
        upstream.script[0].pieces = [begun[:-2], begun[-2:] + b"data: [DONE]\n\n"]
        async with RawClient(proxy.port) as client:
            body = {"model": "m", "messages": [user("more" + WORDS)], "stream": True}
            await client.post("/v1/chat/completions", body, [("sessionId", "s1")])
            await client.head()
            assert await client.piece() == begun[:-2]
            go.set()
            assert await client.body() == begun[-2:] + b"data: [DONE]\n\n"


async def test_a_context_error_that_begins_a_stream_is_forwarded_where_no_trim_helps(serve: Serve) -> None:
    said = event({"error": {"message": "maximum context length is 960 tokens"}})

    def studio(request: Received) -> Reply:
        if len(request.messages) <= 16 and "huge" not in str(request.messages[-1]):
            return counted(request)
        if len(request.messages) < 9:
            return error(503, {"error": {"message": "overloaded"}})
        reply = sse("x")
        reply.pieces = [said, b"data: [DONE]\n\n"]
        return reply

    async with ScriptedUpstream(studio) as upstream:
        proxy = await serve(upstream.base_url)
        await talked(proxy, 8, stream=True)
        answer = await ask(proxy.port, [user("huge" + WORDS * 20)], stream=True)
        assert (answer.status, answer.data, answer.whole) == (200, said + b"data: [DONE]\n\n", True)
        assert len((await history(proxy)).path) == 16


async def test_a_context_error_later_in_a_stream_leads_to_no_trim(serve: Serve) -> None:
    def late(request: Received) -> Reply:
        if len(request.messages) <= 16:
            return counted(request)
        reply = sse("well")
        reply.pieces[-2:] = [event({"error": {"message": "maximum context length is 960 tokens"}})]
        return reply

    async with ScriptedUpstream(late) as upstream:
        proxy = await serve(upstream.base_url)
        await talked(proxy, 8, stream=True)
        answer = await ask(proxy.port, [user("more" + WORDS * 9)], stream=True)
        assert b"well" in answer.data and b"maximum context" in answer.data
        assert len(upstream.requests) == 9


# Show 4


def sized(limits: dict[str, int], each: int) -> Callable[[Received], Reply]:
    """An upstream with several models, to which each message is so many tokens."""

    def answered(request: Received) -> Reply:
        model, tokens = request.json["model"], each * len(request.messages)
        if tokens <= limits[model]:
            usage = {"prompt_tokens": tokens, "completion_tokens": each}
            reply = completion("answer" + WORDS, usage=usage)
            reply.pieces = [reply.pieces[0].replace(b"fake-1", model.encode() + b"-2026-11-30")]
            return reply
        said = f"This model's maximum context length is {limits[model]} tokens. However, your messages resulted in"
        return error(400, {"error": {"message": f"{said} {tokens} tokens.", "code": "context_length_exceeded"}})

    return answered


async def in_turn(proxy: RunningProxy, turns: int, *models: str) -> list[Answer]:
    told = []
    for n in range(turns):
        told.append(await ask(proxy.port, [user(f"question {n}{WORDS}")], model=models[n % len(models)]))
    assert [answer.status for answer in told] == [200] * turns
    return told


def taken(upstream: ScriptedUpstream, model: str, limit: float, each: int) -> list[Received]:
    """The requests of a model that it took."""
    of = [request for request in upstream.requests if request.json["model"] == model]
    return [request for request in of if each * len(request.messages) <= limit]


@pytest.mark.parametrize("each", [9, 30])
async def test_each_model_of_a_session_has_its_own_window(serve: Serve, each: int) -> None:
    limits = {"gpt-9": 3000, "gpt-9-small": 700}
    async with ScriptedUpstream(sized(limits, each)) as upstream:
        proxy = await serve(upstream.base_url)
        told = await in_turn(proxy, 40, "gpt-9", "gpt-9-small")
        shares = {}
        for model, limit in limits.items():
            requests = taken(upstream, model, limit, each)
            assert len(requests) == 20
            shares[model] = sum([is_prefix(*pair) for pair in pairwise(requests)]) / 19
        large = taken(upstream, "gpt-9", 3000, each)
    assert [len(request.messages) for request in large] == [1 + 4 * n for n in range(20)]  # all there is
    assert dropped(told[-2]) == 0 < dropped(told[-1])
    assert shares["gpt-9"] == 1.0
    # Of 700 tokens every other turn takes 120 where a message has 30: no cut can hold for ten.
    assert shares["gpt-9-small"] >= (0.9 if each == 9 else 0.5)
    print(f"{each} tokens a message: {shares}, {len(upstream.requests) - 40} refused")


async def test_a_larger_limit_is_found_within_ten_turns(serve: Serve) -> None:
    limits = {"m": 800}
    async with ScriptedUpstream(sized(limits, TOKENS)) as upstream:
        proxy = await serve(upstream.base_url)
        await in_turn(proxy, 30, "m")
        assert len(upstream.requests) <= 30 + 1 + 30 // PROBED
        assert dropped((await in_turn(proxy, 1, "m"))[0]) > 40
        limits["m"] = 2000
        told = await in_turn(proxy, 10, "m")
        assert max([TOKENS * len(request.messages) for request in upstream.requests[-3:]]) > 1000
        assert dropped(told[-1]) <= 64
        before = len(upstream.requests)
        await in_turn(proxy, 24, "m")
        sent = [TOKENS * len(request.messages) for request in taken(upstream, "m", 2000, TOKENS)[-20:]]
        assert max(sent) > 1600 and len(upstream.requests) <= before + 24 + 24 // PROBED + 2


async def test_a_failed_probe_is_invisible_to_the_client(serve: Serve) -> None:
    """Whatever the upstream says of more than it takes: what is usual is sent then, byte for byte."""
    said: list[Callable[[], Reply]] = [
        lambda: error(500, {"error": "out of memory"}),
        lambda: error(503, {"error": "busy"}),
        lambda: error(400, {"error": "no"}),
    ]

    def answered(request: Received) -> Reply:
        if tokens_of(request) <= 960:
            return counted(request)
        return said[len(upstream.requests) % 3]() if len(upstream.requests) > 12 else too_long(16)(request)

    async with ScriptedUpstream(answered) as upstream:
        proxy = await serve(upstream.base_url)
        await talked(proxy, 40)
        tried = [request for request in upstream.requests if tokens_of(request) > 960]
        assert 3 <= len(tried) <= 5
        sent = [request for request in upstream.requests if tokens_of(request) <= 960]
        assert sum([is_prefix(*pair) for pair in pairwise(sent)]) >= 0.7 * len(sent)


async def test_a_dry_run_sends_no_probe(serve: Serve) -> None:
    async with ScriptedUpstream(too_long(16)) as upstream:
        proxy = await serve(upstream.base_url)
        await talked(proxy, 14)
        for _ in range(2 * PROBED):
            answer = await ask(proxy.port, [user("more")], headers=[("x-session-dry-run", "yes")])
            assert json.loads(answer.data)["dropped"] >= 16


async def test_a_larger_configured_limit_brings_trimmed_messages_back(serve: Serve) -> None:
    async with ScriptedUpstream(counted) as upstream:
        proxy = await serve(upstream.base_url, history={"max_tokens": 600})
        assert dropped((await talked(proxy, 20))[-1]) > 20
        config = proxy.runtime.config
        history = config.history.model_copy(update={"max_tokens": 6000})
        proxy.runtime.config = config.model_copy(update={"history": history})
        assert dropped((await talked(proxy, 1, 20))[-1]) == 0
