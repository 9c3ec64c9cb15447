"""Sessions longer than what their model takes: what goes upstream, and what an upstream's refusal leads to."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from proxy.core.learned import PROBED
from proxy.turns.narrowing import TRIES
from tests.server.test_sessions_api import get
from tests.support.fakes import Received, Reply, ScriptedUpstream, completion, error, sse
from tests.support.serving import RunningProxy, Serve
from tests.support.talk import (
    Answer,
    Json,
    ask,
    assistant,
    calling,
    history,
    old_part,
    result,
    system,
    user,
    warm_store,
)

WORDS = " and so on" * 20  # 200 bytes
TOKENS = 60  # of a message, at the upstream


def counted(request: Received, text: str = "answer", **more: Any) -> Reply:
    """An answer of an upstream to which each message is some tokens."""
    prompt = TOKENS * len(request.messages)
    usage = {"prompt_tokens": prompt, "completion_tokens": TOKENS, "prompt_tokens_details": {"cached_tokens": 7}}
    if request.json.get("stream"):
        return sse(text, WORDS, usage=usage)
    return completion(f"{text}{WORDS}", usage=usage, **more)


def too_long(limit: int, counts: bool = True) -> Callable[[Received], Reply]:
    """An upstream whose model takes so many messages, and which says so as llama.cpp does."""

    def answered(request: Received) -> Reply:
        tokens = TOKENS * len(request.messages)
        if tokens <= TOKENS * limit:
            return counted(request)
        said: Json = {"code": 400, "message": "it exceeds the available context size", "type": "exceed_context_size"}
        return error(400, {"error": said | ({"n_prompt_tokens": tokens, "n_ctx": TOKENS * limit} if counts else {})})

    return answered


def dropped(answer: Answer) -> int:
    return int(answer.head.header("x-session-dropped") or -1)


async def talked(proxy: RunningProxy, turns: int, start: int = 0, **more: Any) -> list[Answer]:
    """So many turns of a client that sends its new message alone."""
    told = [await ask(proxy.port, [user(f"question {n}{WORDS}")], **more) for n in range(start, start + turns)]
    assert [answer.status for answer in told] == [200] * turns
    return told


def is_prefix(before: Received, after: Received) -> bool:
    return after.body.startswith(old_part(before))


def kept_prefixes(upstream: ScriptedUpstream) -> int:
    requests = upstream.requests
    return sum([is_prefix(*pair) for pair in pairwise(requests)])


@pytest.mark.parametrize("limits", [{"max_messages": 20}, {"max_tokens": 20 * TOKENS}, {"max_bytes": "5KB"}])
async def test_the_oldest_messages_are_trimmed_in_large_rare_steps(serve: Serve, limits: Json) -> None:
    async with ScriptedUpstream(counted) as upstream:
        proxy = await serve(upstream.base_url, history=limits)
        told = await talked(proxy, 60)
    sizes = [len(request.messages) for request in upstream.requests]
    assert max(sizes) <= 20
    assert kept_prefixes(upstream) >= 59 * 0.8
    left = [dropped(answer) for answer in told]
    assert left == sorted(left) and left[0] == 0 and left[-1] > 90
    assert [size + out for size, out in zip(sizes, left, strict=True)] == [2 * n + 1 for n in range(60)]
    assert all(request.messages[0]["role"] == "user" for request in upstream.requests)
    assert len((await history(proxy)).path) == 120


async def test_a_trim_point_holds_after_a_restart_and_on_its_branches(serve: Serve, tmp_path: Path) -> None:
    limits = {"max_messages": 20}
    async with ScriptedUpstream(counted) as upstream:
        async with warm_store(tmp_path) as store:
            await talked(await serve(upstream.base_url, store=store, history=limits), 14)
        before = upstream.requests[-1]
        async with warm_store(tmp_path) as store:
            proxy = await serve(upstream.base_url, store=store, history=limits)
            proxy.runtime.turn_id = lambda: "turn_of_another_process"
            (answer,) = await talked(proxy, 1, 14)
            assert dropped(answer) == (await history(proxy)).trim_point.at > 0
            assert is_prefix(before, upstream.requests[-1])
            shown = await get(proxy.port, "/sessions/s1")
            assert (shown["cut"], shown["messages"]) == (dropped(answer), 30)
        async with warm_store(tmp_path) as store:  # and without the limit
            proxy = await serve(upstream.base_url, store=store)
            proxy.runtime.turn_id = lambda: "turn_of_a_third_one"
            await talked(proxy, 1, 15)
            assert is_prefix(before, upstream.requests[-1])


async def test_the_system_prompt_stays_and_tool_groups_stay_whole(serve: Serve) -> None:
    def acting(request: Received) -> Reply:
        last = request.messages[-1]
        return completion(None, message=calling(last["content"])) if last["role"] == "user" else completion("done")

    async with ScriptedUpstream(acting) as upstream:
        proxy = await serve(upstream.base_url, history={"max_messages": 10})
        await ask(proxy.port, [system("Be kind."), user("a0")])
        for n in range(30):
            assert (await ask(proxy.port, [result(f"a{n}")])).status == 200
            assert (await ask(proxy.port, [user(f"a{n + 1}")])).status == 200
    for request in upstream.requests:
        first, *rest = request.messages
        assert first == system("Be kind.") and rest[0]["role"] == "user" and len(rest) <= 10
        made = [call["id"] for message in rest for call in message.get("tool_calls") or []]
        assert all(message["tool_call_id"] in made for message in rest if message["role"] == "tool")


async def test_a_late_tool_result_brings_back_its_trimmed_call(serve: Serve) -> None:
    async with ScriptedUpstream([completion(None, message=calling("c1"))]) as upstream:
        proxy = await serve(upstream.base_url, history={"max_messages": 10})
        await ask(proxy.port, [user("look")])
        upstream.script = counted
        told = await talked(proxy, 12)
        assert dropped(told[-1]) > 2
        late = await ask(proxy.port, [result("c1")])
        assert (late.status, dropped(late)) == (200, 0)
        assert upstream.requests[-1].messages[2]["content"] == "result of c1"
        assert dropped((await talked(proxy, 1, 12))[0]) >= dropped(told[-1])
        assert not any(message["role"] == "tool" for message in upstream.requests[-1].messages)


@pytest.mark.parametrize("counts", [True, False])
@pytest.mark.parametrize("stream", [True, False])
async def test_a_refused_request_is_trimmed_and_sent_again(serve: Serve, counts: bool, stream: bool) -> None:
    async with ScriptedUpstream(too_long(16, counts)) as upstream:
        proxy = await serve(upstream.base_url)
        told = await talked(proxy, 40, stream=stream, model="fake-1")
        shown = await get(proxy.port, "/sessions/s1")
    refused = len(upstream.requests) - 40
    # Without a number there is none to remember; one that is known is tried now and then.
    assert 0 < refused <= (1 + 40 // PROBED if counts else 10)
    assert dropped(told[-1]) > 40
    assert len((await history(proxy)).path) == 80
    assert shown["limit"] == (16 * TOKENS if counts else None)
    assert shown["tokens"] == TOKENS * (len(upstream.requests[-1].messages) + 1)
    assert (shown["cached_tokens"], shown["totals"]["cached_tokens"]) == (7, 7 * 40)
    taken = [request for request in upstream.requests if len(request.messages) <= 16]
    assert sum([is_prefix(*pair) for pair in pairwise(taken)]) >= 0.7 * len(taken)


async def test_the_token_count_in_an_error_corrects_the_estimate(serve: Serve) -> None:
    """A model whose tokens are long, at an upstream that tells no usage: the cut would be far too deep."""

    def sparse(request: Received) -> Reply:
        tokens = len(request.body) // 16
        if tokens <= 375:
            return sse("answer", WORDS)
        said = {"type": "exceed_context_size_error", "n_prompt_tokens": tokens, "n_ctx": 375}
        return error(400, {"error": said})

    async with ScriptedUpstream(sparse) as upstream:
        proxy = await serve(upstream.base_url)
        told = await talked(proxy, 40, stream=True)
        while dropped(told[0]) == 0:
            told.pop(0)
        first = upstream.requests[41 - len(told)]
        assert 1500 < len(first.body) < 3600


async def test_a_learned_limit_belongs_to_its_tenant_and_model(serve: Serve) -> None:
    async with ScriptedUpstream(too_long(9)) as upstream:
        proxy = await serve(upstream.base_url)
        await talked(proxy, 6)
        seen = len(upstream.requests)
        await talked(proxy, 6, session="s2")
        assert len(upstream.requests) == seen + 6
        await talked(proxy, 6, session="s2", headers=[("Authorization", "Bearer other")])
        assert len(upstream.requests) == seen + 6 + 7
        await talked(proxy, 6, session="s3", model="other")
        assert len(upstream.requests) == seen + 6 + 7 + 7


async def test_the_window_leaves_room_for_the_reply(serve: Serve) -> None:
    """What a model takes is prompt and answer: a request that wants half of it is cut to the other half."""
    async with ScriptedUpstream(too_long(16)) as upstream:
        proxy = await serve(upstream.base_url)
        await talked(proxy, 9)
        before = len(upstream.requests)
        await talked(proxy, 8, 9, max_tokens=8 * TOKENS)
        sent = [len(request.messages) for request in upstream.requests[before:]]
        assert len([size for size in sent if size <= 8]) == 8 and len(sent) <= 8 + 1  # one asks whether it still holds


async def test_a_message_that_never_fits_gets_the_upstreams_error(serve: Serve) -> None:
    refusal = {"error": {"message": "prompt is too long: 9000 tokens > 2000 maximum", "code": None}}

    def small(request: Received) -> Reply:
        return error(400, refusal) if "huge" in str(request.messages[-1]["content"]) else counted(request)

    async with ScriptedUpstream(small) as upstream:
        proxy = await serve(upstream.base_url)
        await talked(proxy, 8)
        answer = await ask(proxy.port, [user("huge" + WORDS * 90)])
        assert (answer.status, json.loads(answer.data)) == (400, refusal)
        assert answer.head.header("x-session-dropped") is None
        tries = [len(request.messages) for request in upstream.requests[8:]]
        assert tries == sorted(tries, reverse=True) and tries[0] == 17 and 1 < len(tries) <= 1 + TRIES
        assert len((await history(proxy)).path) == 16
        assert dropped((await talked(proxy, 1, 8))[0]) == 0


async def test_a_refused_request_is_sent_again_twice_at_most(serve: Serve) -> None:
    async with ScriptedUpstream(lambda request: error(413, {"detail": "too many input tokens"})) as upstream:
        proxy = await serve(upstream.base_url)
        upstream.script = counted
        await talked(proxy, 40)
        upstream.script = lambda request: error(413, {"detail": "too many input tokens"})
        assert (await ask(proxy.port, [user("more")])).status == 413
        whole, *tries = [len(request.messages) for request in upstream.requests[40:]]
    assert len(tries) == TRIES
    assert 0.5 * whole < tries[0] < 0.65 * whole
    assert 0.2 * tries[0] < tries[1] < 0.35 * tries[0]


async def test_a_limit_below_the_new_message_leaves_the_refusal_to_the_upstream(serve: Serve) -> None:
    async with ScriptedUpstream(counted) as upstream:
        proxy = await serve(upstream.base_url, history={"max_messages": 1, "max_tokens": 1})
        await talked(proxy, 3)
        assert [len(request.messages) for request in upstream.requests] == [1, 1, 1]
        upstream.script = lambda request: error(400, {"error": {"message": "no"}})
        assert (await ask(proxy.port, [user("q")])).status == 400
        upstream.script = counted
        await talked(proxy, 1)


async def test_a_full_list_is_never_trimmed_and_gets_the_upstreams_error(serve: Serve) -> None:
    refusal = {"error": {"message": "x", "type": "exceed_context_size_error", "n_prompt_tokens": 900, "n_ctx": 600}}
    async with ScriptedUpstream(counted) as upstream:
        proxy = await serve(upstream.base_url, history={"max_messages": 5, "max_tokens": 9, "image_turns": 1})
        told: list[Json] = []
        for n in range(12):
            told.append(user([{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{n:02000}"}}]))
            answer = await ask(proxy.port, told)
            assert answer.decision == ("append" if n == 0 else "resend") and dropped(answer) == 0
            assert upstream.requests[-1].messages == told
            told.append(assistant(answer.message["content"]))
        upstream.script = lambda request: error(400, refusal)
        answer = await ask(proxy.port, [*told, user("more")])
        assert (answer.status, json.loads(answer.data), len(upstream.requests)) == (400, refusal, 13)


async def test_only_injected_messages_are_trimmed_from_a_partial_list(serve: Serve) -> None:
    async with ScriptedUpstream(counted) as upstream:
        proxy = await serve(upstream.base_url)
        await talked(proxy, 10)
        end = (await history(proxy)).path[-4:]
        own = [*[json.loads(entry.message.raw) for entry in end], user("more")]
        upstream.script = too_long(9)
        answer = await ask(proxy.port, own)
        assert answer.status == 200 and 10 < dropped(answer) <= 16
        assert upstream.requests[-1].messages[-5:] == own


async def test_overflow_error_refuses_a_request_over_a_configured_limit(serve: Serve) -> None:
    async with ScriptedUpstream(counted) as upstream:
        proxy = await serve(upstream.base_url, history={"max_messages": 6, "overflow": "error"})
        await talked(proxy, 3)
        answer = await ask(proxy.port, [user("more")])
        assert (answer.status, answer.error["code"]) == (400, "context_length_exceeded")
        assert "new session" in answer.error["message"]
        assert answer.head.header("x-should-retry") == "false"
        assert len(upstream.requests) == 3


async def test_overflow_error_forwards_the_upstreams_refusal(serve: Serve) -> None:
    async with ScriptedUpstream(too_long(6)) as upstream:
        proxy = await serve(upstream.base_url, history={"overflow": "error"})
        await talked(proxy, 3)
        for _ in range(2):
            answer = await ask(proxy.port, [user("more")])
            assert (answer.status, answer.error["type"]) == (400, "exceed_context_size")
        assert len(upstream.requests) == 5


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_a_context_error_within_a_200_leads_to_a_trim(serve: Serve, framing: Any) -> None:
    said = {"error": "the model is loaded with context length of only 960 tokens; context the overflows"}

    def studio(request: Received) -> Reply:
        reply = completion("", framing=framing) if len(request.messages) > 16 else counted(request, framing=framing)
        if len(request.messages) > 16:
            reply.pieces = [json.dumps(said).encode()]
        return reply

    async with ScriptedUpstream(studio) as upstream:
        proxy = await serve(upstream.base_url)
        await talked(proxy, 8)
        answer = await ask(proxy.port, [user("more" + WORDS * 5)])
        seen = answer.status, json.loads(answer.data) == said, len(upstream.requests)
        assert seen == ((200, False, 10) if framing == "length" else (200, True, 9))


async def test_a_broken_error_answer_ends_in_a_reset(serve: Serve) -> None:
    async with ScriptedUpstream(counted) as upstream:
        proxy = await serve(upstream.base_url)
        await talked(proxy, 8)
        upstream.script = [Reply(400, [("Content-Type", "application/json")], [b'{"error": "context'], end="rst")]
        answer = await ask(proxy.port, [user("more")])
        assert (answer.status, answer.whole) == (400, False)


async def test_images_of_old_turns_become_a_word(serve: Serve) -> None:
    def look(n: int) -> Json:
        return user([{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{n:02000}"}}])

    async with ScriptedUpstream(counted) as upstream:
        proxy = await serve(upstream.base_url, history={"image_turns": 2})
        for n in range(40):
            assert (await ask(proxy.port, [look(n)])).status == 200
    images = [request.body.count(b"base64") for request in upstream.requests]
    assert images == [1, 2] + [3] * 38  # those of two turns, and its own
    assert upstream.requests[-1].messages[0] == user([{"type": "text", "text": "[image]"}])
    assert (await history(proxy)).path[0].message.raw == json.dumps(look(0), separators=(",", ":")).encode()


async def test_a_dry_run_shows_the_window(serve: Serve) -> None:
    async with ScriptedUpstream(counted) as upstream:
        proxy = await serve(upstream.base_url, history={"max_messages": 9})
        await talked(proxy, 6)
        answer = await ask(proxy.port, [user("more")], headers=[("x-session-dry-run", "yes")])
        told = json.loads(answer.data)
        await ask(proxy.port, [user("more")])
    assert told["body"].encode() == upstream.requests[-1].body
    assert told["dropped"] == 13 - len(upstream.requests[-1].messages) > 0
    assert len(told["messages"]) == len(upstream.requests[-1].messages)


async def test_an_unrecorded_request_gets_the_same_window(serve: Serve) -> None:
    async with ScriptedUpstream(counted) as upstream:
        proxy = await serve(upstream.base_url, history={"max_messages": 40})
        await talked(proxy, 20)
        for size in range(5):
            await ask(proxy.port, [user("x" * size)] * (1 + size), headers=[("x-session-store", "no")])
        beside = [old_part(request)[:2000] for request in upstream.requests[20:]]
        assert len(set(beside)) == 1 and len(upstream.requests[20].messages) < 30
        await talked(proxy, 1, 20)
        assert old_part(upstream.requests[-1])[:2000] == beside[0]


async def test_an_image_that_its_client_resends_is_stored_once(serve: Serve, tmp_path: Path) -> None:
    """4 MB, fifty times: 200 MB go upstream, and 4 MB to the disk."""
    url = "data:image/png;base64," + "iVBORw0KGgo=" * (4 * 2**20 // 12)
    told = [user([{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": url}}])]
    async with ScriptedUpstream() as upstream, warm_store(tmp_path) as store:
        proxy = await serve(upstream.base_url, store=store)
        for n in range(50):
            answer = await ask(proxy.port, told)
            assert answer.status == 200
            told += [assistant(answer.message["content"]), user(f"question {n}")]
            assert len(upstream.requests.pop().body) > 4 * 2**20
    files = [file.read_bytes() for file in tmp_path.iterdir()]
    assert sum(map(len, files)) < 10 * 2**20  # the log has what it had to take once
    database = (tmp_path / "sessions.db").read_bytes()
    assert 4 * 2**20 < len(database) < 4.5 * 2**20
    assert database.count(b"What is it?") == 1
