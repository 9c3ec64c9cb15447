"""What a client meets that was pointed at the proxy a minute ago: IDs that it did not choose, paths with a slash too
many, templates that nobody filled in."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

import pytest
from multidict import CIMultiDict

from proxy.context import tenants
from proxy.context.runtime import NOTES
from proxy.core.model import SessionKey
from proxy.turns.turn_task import RecordedTurn
from tests.support.fakes import Pairs, RawClient, ScriptedUpstream, completion, error, eventually, sse
from tests.support.serving import RunningProxy, Serve
from tests.support.talk import Answer, user

CHAT = "/v1/chat/completions"
MINE: Pairs = [("Authorization", "Bearer mine")]
BOTH: Pairs = [("sessionId", "chosen"), ("x-session-id", "ses_of_the_client")]
USED = "x-session-id"


async def post(port: int, headers: Pairs, *texts: str, path: str = CHAT, **more: Any) -> Answer:
    async with RawClient(port) as client:
        await client.post(path, {"model": "m", "messages": [user(text) for text in texts], **more}, headers)
        head = await client.head()
        data = await client.body()
    return Answer(head, data, client.ended == "complete")


def used(answer: Answer) -> list[str]:
    return [value for name, value in answer.head.headers if name.lower() == USED]


# Two IDs


async def test_sessionid_wins_over_another_header_under_the_callers_own_key(serve: Serve) -> None:
    async with ScriptedUpstream([completion("1", headers=[("X-Session-Id", "theirs")]), sse("2")]) as upstream:
        proxy = await serve(upstream.base_url)
        first = await post(proxy.port, [*MINE, *BOTH], "a")
        again = await post(proxy.port, [*MINE, ("sessionId", "chosen")], "b", stream=True)
    assert (first.status, used(first)) == (200, ["chosen"])
    assert again.head.header("x-session-state") == "continued" and used(again) == []
    assert [message["content"] for message in upstream.requests[1].messages] == ["a", "1", "b"]


@pytest.mark.parametrize("name", ["authorization", "api-key", "x-api-key"])
async def test_sessionid_wins_for_each_kind_of_credential(serve: Serve, name: str) -> None:
    async with ScriptedUpstream([completion("1"), completion("2")]) as upstream:
        proxy = await serve(upstream.base_url)
        answers = [await post(proxy.port, [(name, key), *BOTH], "a") for key in ("mine", "yours")]
    assert [(answer.status, used(answer)) for answer in answers] == [(200, ["chosen"])] * 2
    assert [answer.head.header("x-session-state") for answer in answers] == ["new", "new"]


async def test_sessionid_wins_for_a_listed_client(serve: Serve) -> None:
    hashed = hashlib.sha256(b"mine").hexdigest()
    async with ScriptedUpstream([completion("1")]) as upstream:
        clients = [{"name": "kitchen", "key_hashes": [hashed]}]
        proxy = await serve(upstream.base_url, upstream={"api_key": "sk-ours"}, clients=clients)
        answer = await post(proxy.port, [*MINE, *BOTH], "a")
    assert (answer.status, used(answer)) == (200, ["chosen"])


ANY: Pairs = [*MINE, ("x-user", "alice")]


@pytest.mark.parametrize(
    ("sections", "sent"),
    [
        ({"tenant": "one"}, [*ANY, *BOTH]),
        ({"tenant": {"header": "x-user"}}, [*ANY, *BOTH]),
        ({"upstream": {"api_key": "sk-ours"}}, [*ANY, *BOTH]),  # lent on loopback: everybody shares
        ({}, BOTH),  # nobody's own
        ({}, [*ANY, *BOTH, ("session-id", "third")]),
        ({}, [*ANY, *BOTH, ("x-session-id", "third")]),
        ({}, [*ANY, *BOTH, ("sessionId", "third")]),
        ({}, [*ANY, ("session-id", "chosen"), ("x-session-id", "other")]),
        ({"sessions": {"headers": ["x-chat", "x-session-id"]}}, [*ANY, ("x-chat", "a"), ("x-session-id", "b")]),
    ],
)
async def test_conflicting_session_ids_are_refused_and_their_headers_named(
    serve: Serve, sections: Any, sent: Pairs
) -> None:
    async with ScriptedUpstream() as upstream:
        proxy = await serve(upstream.base_url, **sections)
        answer = await post(proxy.port, sent, "a")
        assert not upstream.requests
    assert (answer.status, answer.error["code"]) == (400, "conflicting_session_id")
    names = {name for name, _ in sent} & {"sessionId", "x-session-id", "session-id", "x-chat"}
    assert all([name in answer.error["message"] for name in names])
    assert used(answer) == [] and not [value for _, value in BOTH if value in answer.error["message"]]


async def test_an_invalid_sessionid_does_not_win(serve: Serve) -> None:
    async with ScriptedUpstream() as upstream:
        proxy = await serve(upstream.base_url)
        answer = await post(proxy.port, [*MINE, ("sessionId", ""), ("x-session-id", "b")], "a")
        assert not upstream.requests
    assert (answer.status, answer.error["code"]) == (400, "invalid_session_id")


async def test_equal_session_headers_add_no_answer_header(serve: Serve) -> None:
    async with ScriptedUpstream([completion("1")]) as upstream:
        proxy = await serve(upstream.base_url)
        answer = await post(proxy.port, [*MINE, ("sessionId", "a"), ("x-session-id", "a")], "a")
    assert (answer.status, used(answer)) == (200, [])


async def test_the_proxys_own_answers_name_the_session_id_used(serve: Serve) -> None:
    """A dry run, a fault, an answer that is given again; in any letters that an ID may have."""
    id = "gewählt-日本".encode().decode("latin-1")  # as the bytes go
    both = [*MINE, ("sessionId", id), ("x-session-id", "b")]
    async with ScriptedUpstream([completion("1")]) as upstream:
        proxy = await serve(upstream.base_url, cors={"allow_origins": "*"})
        sent = [*both, ("Origin", "https://app.test"), ("Idempotency-Key", "k")]
        dry = await post(proxy.port, [*both, ("x-session-dry-run", "yes")], "a")
        missing = await post(proxy.port, [*both, ("x-session-must-exist", "yes")], "a")
        first, again = await post(proxy.port, sent, "a"), await post(proxy.port, sent, "a")
    assert [answer.status for answer in (dry, missing, first, again)] == [200, 404, 200, 200]
    assert again.head.header("x-session-state") == "replayed"
    assert [used(answer) for answer in (dry, missing, first, again)] == [[id]] * 4
    assert USED in (first.head.header("access-control-expose-headers") or "")


async def test_a_retry_with_two_session_ids_is_told_which_was_used(serve: Serve) -> None:
    goes_on = asyncio.Event()

    async def slow(_: object) -> Any:
        await goes_on.wait()
        return completion("1")

    async with ScriptedUpstream(slow) as upstream:
        proxy = await serve(upstream.base_url)
        key = ("Idempotency-Key", "k")
        first = asyncio.create_task(post(proxy.port, [*MINE, ("sessionId", "chosen"), key], "a"))
        await eventually(lambda: upstream.requests)
        second = asyncio.create_task(post(proxy.port, [*MINE, *BOTH, key], "a"))
        await eventually(lambda: len(_turn(proxy, "chosen").broadcast._followers) == 2)
        goes_on.set()
        answers = [await first, await second]
        assert len(upstream.requests) == 1
    assert [used(answer) for answer in answers] == [[], ["chosen"]]


def _turn(proxy: RunningProxy, session: str) -> RecordedTurn:
    tenant = tenants.tenant(proxy.runtime.config, CIMultiDict(MINE), proxy.runtime.secret)
    turn: RecordedTurn = proxy.runtime.registry.turns(SessionKey(tenant, session))[0]
    return turn


async def test_upstream_errors_and_pass_throughs_get_no_session_id_header(serve: Serve) -> None:
    async with ScriptedUpstream([error(400, {"error": {"message": "no"}}), completion("1")]) as upstream:
        proxy = await serve(upstream.base_url)
        refused = await post(proxy.port, [*MINE, *BOTH], "a")
        passed = await post(proxy.port, [*MINE, *BOTH], "a", path="/v1/responses")
    assert [answer.status for answer in (refused, passed)] == [400, 200]
    assert used(refused) == used(passed) == []
    assert upstream.requests[1].header("x-session-id") == "ses_of_the_client"


# A slash too many


@pytest.mark.parametrize("end", ["/", "//", "/?a=1/"])
@pytest.mark.parametrize("path", [CHAT, "/v1/openai/deployments/d/chat/completions", "/api/publicLLM"])
async def test_a_trailing_slash_is_still_a_recorded_turn(serve: Serve, path: str, end: str) -> None:
    slashed = path + end
    query = end.partition("?")[1] + end.partition("?")[2]
    async with ScriptedUpstream([completion("1"), completion("2")]) as upstream:
        proxy = await serve(upstream.base_url)
        answers = [await post(proxy.port, [("sessionId", "s")], text, path=slashed) for text in "ab"]
    assert [answer.head.header("x-session-state") for answer in answers] == ["new", "continued"]
    expected = path.replace("/api/publicLLM", CHAT) + query
    assert [request.target for request in upstream.requests] == [expected] * 2
    assert [message["content"] for message in upstream.requests[1].messages] == ["a", "1", "b"]


async def test_a_pass_through_keeps_its_trailing_slash(serve: Serve) -> None:
    async with ScriptedUpstream([completion("1")]) as upstream:
        proxy = await serve(upstream.base_url)
        await post(proxy.port, [], "a", path=CHAT + "/")
    assert upstream.requests[0].target == CHAT + "/"


# Templates


async def test_an_unfilled_template_as_session_id_is_served_and_logged_once(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    ids = ["undefined", "undefined", "{{chat.id}}", "alice-{{chat.id}}", "plain", '""', "[object Object]"]
    async with ScriptedUpstream(lambda _: completion("1")) as upstream:
        proxy = await serve(upstream.base_url)
        for id in ids:
            assert (await post(proxy.port, [("sessionId", id)], "a")).status == 200
        await post(proxy.port, [("sessionId", "null")], "a", path="/v1/responses")  # whose sessions are not ours
    told = [record.getMessage() for record in caplog.records if "template" in record.getMessage()]
    shown = ["'undefined'", "'{{chat.id}}'", "'\"\"'", "'[object Object]'"]
    assert [part for part, line in zip(shown, told, strict=True) if part not in line] == []
    assert {record.levelname for record in caplog.records} == {"WARNING"}
    assert "alice" not in caplog.text and "plain" not in caplog.text


async def test_the_number_of_one_time_warnings_is_bounded(serve: Serve) -> None:
    proxy = await serve("http://127.0.0.1:1/v1")
    told = [proxy.runtime.noted.is_first(f"{{{{{n}}}}}") for n in range(2 * NOTES)]
    assert told == [True] * NOTES + [False] * NOTES
    assert not proxy.runtime.noted.is_first("{{0}}")
