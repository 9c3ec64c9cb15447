"""The session API on real sockets: every route and method, whose sessions they show, and what they do to
turns in flight and to what is on disk."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from proxy.stores.cache import CachedStore
from proxy.stores.memory import MemoryStore
from proxy.stores.sqlite.store import SQLiteStore
from tests.support.fakes import Head, RawClient, Received, Reply, ScriptedUpstream, completion, eventually, sse
from tests.support.serving import Serve
from tests.turns.test_relay import ask, assistant, user

TTL = 24 * 3600 * 1000
MINE, THEIRS = [("Authorization", "Bearer mine")], [("Authorization", "Bearer theirs")]


async def call(port: int, method: str, path: str, headers: Any = (), body: bytes = b"") -> tuple[Head, bytes]:
    async with RawClient(port) as client:
        await client.request(method, path, headers, body)
        return await client.head(), await client.body()


async def get(port: int, path: str, headers: Any = ()) -> Any:
    head, body = await call(port, "GET", path, headers)
    assert head.status == 200, body
    return json.loads(body)


async def kept(port: int, session: str = "s1") -> list[tuple[str, str, str]]:
    """What a session holds: role, content and state of the turn, by message; empty where there is no session."""
    head, body = await call(port, "GET", f"/sessions/{quote(session, safe='')}/messages")
    listed = json.loads(body)["data"] if head.status == 200 else []
    return [(each["message"]["role"], each["message"]["content"], each["state"]) for each in listed]


def code(body: bytes) -> str:
    found: str = json.loads(body)["error"]["code"]
    return found


class Held:
    """An upstream whose answers wait at a piece until it is let go: by what was asked, at which piece."""

    def __init__(self, **at: int) -> None:
        self.at = at
        self.reached = {text: asyncio.Event() for text in at}
        self.go = {text: asyncio.Event() for text in at}

    def __call__(self, request: Received) -> Reply:
        text = request.messages[-1]["content"]
        reply = sse("re ", text) if request.json.get("stream") else completion("re " + text)

        async def gate(index: int) -> None:
            if index == self.at.get(text):
                self.reached[text].set()
                await self.go[text].wait()

        reply.gate = gate
        return reply


async def asking(held: Held, port: int, text: str, *before: Any, **more: Any) -> asyncio.Task[Any]:
    """A streamed request that has come to where its answer waits."""
    task = asyncio.create_task(ask(port, *before, user(text), stream=True, **more))
    await asyncio.wait_for(held.reached[text].wait(), 5)
    return task


# What they show ----------------------------------------------------------------------------


async def test_get_session_shows_tip_counts_and_usage(serve: Serve) -> None:
    usage = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9, "cost": 0.5}
    async with ScriptedUpstream([completion("a"), completion("b", usage=usage)]) as upstream:
        proxy = await serve(upstream.base_url)
        await ask(proxy.port, user("1"))
        await ask(proxy.port, user("2"))
        shown = await get(proxy.port, "/sessions/s1")
    assert 0 <= shown.pop("updated_at") - shown["created_at"] < 60
    assert abs(shown.pop("created_at") - proxy.runtime.now() / 1000) < 60
    assert shown == {
        "id": "s1",
        "object": "session",
        "turn": "turn_2",
        "turns": 2,
        "messages": 4,
        "model": "fake-1",
        "usage": usage,
        "totals": {"prompt_tokens": 10, "cached_tokens": 0, "completion_tokens": 4},
        "tokens": 9,
        "cached_tokens": 0,
        "limit": None,
        "cut": 0,
        "summary": None,
        "summarized": 0,
        "in_flight": [],
    }


async def test_a_session_exists_from_its_first_turn_in_flight(serve: Serve) -> None:
    held = Held(x=2)
    async with ScriptedUpstream(held) as upstream:
        proxy = await serve(upstream.base_url)
        asked = await asking(held, proxy.port, "x")
        shown, listed = await get(proxy.port, "/sessions/s1"), await get(proxy.port, "/sessions/s1/messages")
        held.go["x"].set()
        await asked
        after = await get(proxy.port, "/sessions/s1")
    assert (shown["turn"], shown["turns"], shown["messages"], shown["created_at"]) == (None, 0, 0, None)
    assert shown["in_flight"] == [{"turn": "turn_1", "decision": "append"}]
    assert (listed["data"], listed["has_more"]) == ([], False)
    assert (after["turn"], after["in_flight"]) == ("turn_1", [])


async def test_messages_are_returned_byte_for_byte(serve: Serve) -> None:
    asked = b'{ "role":"user", "content": "\\u0061", "n" : 1.0 }'
    said = b'{ "role":"assistant","content":"b\\u00e9","reasoning" : "hm", "big":1e400, "n": 1.50,"refusal":null }'
    body = b'{"model":"fake-1","choices":[{"index":0,"finish_reason":"stop","message":%b}]}' % said
    system = {"role": "system", "content": "S"}
    async with ScriptedUpstream([completion("", pieces=[body]), completion("c")]) as upstream:
        proxy = await serve(upstream.base_url)
        asking = b'{"messages":[{"role":"system","content":"S"},%b]}' % asked
        await call(proxy.port, "POST", "/v1", [("sessionId", "s1")], asking)
        await ask(proxy.port, user("2"))
        _, raw = await call(proxy.port, "GET", "/sessions/s1/messages")
    assert b'"message":' + asked + b"}" in raw and b'"message":' + said + b"}" in raw
    listed = json.loads(raw)
    assert listed["object"] == "list" and listed["system"] == [system]
    about = [(each["position"], each["turn"], each["state"]) for each in listed["data"]]
    assert about == [(0, "turn_1", "complete"), (1, "turn_1", "complete")] + [
        (2, "turn_2", "complete"),
        (3, "turn_2", "complete"),
    ]


@pytest.mark.parametrize("size", [1, 3, 4, 100])
async def test_pages_of_messages_add_up_to_the_whole(serve: Serve, size: int) -> None:
    async with ScriptedUpstream() as upstream:
        proxy = await serve(upstream.base_url)
        for n in range(5):
            await ask(proxy.port, user(str(n)))
        found: list[int] = []
        after, more = 0, True
        while more:
            page = await get(proxy.port, f"/sessions/s1/messages?after={after}&limit={size}")
            found += [each["position"] for each in page["data"]]
            assert len(page["data"]) <= size
            after, more = page["next"], page["has_more"]
    assert found == list(range(10))


async def test_a_page_past_the_end_is_empty_and_page_size_is_bounded(serve: Serve) -> None:
    messages = [part for n in range(600) for part in (user(str(n)), assistant(f"a{n}"))]
    async with ScriptedUpstream() as upstream:
        proxy = await serve(upstream.base_url)
        await ask(proxy.port, *messages, user("x"))  # adopted
        usual = await get(proxy.port, "/sessions/s1/messages")
        most = await get(proxy.port, "/sessions/s1/messages?limit=999999")
        beyond = await get(proxy.port, "/sessions/s1/messages?after=5000")
    assert (len(usual["data"]), usual["next"], usual["has_more"]) == (100, 100, True)
    assert (len(most["data"]), most["next"], most["has_more"]) == (1000, 1000, True)
    assert (beyond["data"], beyond["next"], beyond["has_more"]) == ([], 5000, False)


@pytest.mark.parametrize("query", ["after=-1", "after=", "limit=1.5", "limit=x", "after=%D9%A1", "limit=9999999999"])
async def test_a_non_numeric_after_or_limit_is_a_400_that_names_it(serve: Serve, query: str) -> None:
    async with ScriptedUpstream() as upstream:
        proxy = await serve(upstream.base_url)
        await ask(proxy.port, user("1"))
        head, body = await call(proxy.port, "GET", f"/sessions/s1/messages?{query}")
    assert (head.status, code(body)) == (400, "invalid_request")
    assert json.loads(body)["error"]["param"] == query.partition("=")[0]


# Which paths, which methods, whose sessions --------------------------------------------------

ROUTES = {"": ("GET", "DELETE"), "/messages": ("GET",), "/stop": ("POST",), "/stream": ("GET",)}
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
ALLOWED = [(method, route) for route, methods in ROUTES.items() for method in methods]


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("method", METHODS)
async def test_a_wrong_method_is_a_405(serve: Serve, route: str, method: str) -> None:
    async with ScriptedUpstream() as upstream:
        proxy = await serve(upstream.base_url)
        head, body = await call(proxy.port, method, "/sessions/none" + route)
        assert not upstream.requests
    assert head.status == (404 if method in ROUTES[route] else 405)
    if method not in ROUTES[route] and method != "HEAD":
        assert code(body) == "method_not_allowed" and ROUTES[route][0] in json.loads(body)["error"]["message"]


@pytest.mark.parametrize("path", ["/sessions", "/sessionsx/s1", "/sessions/s1/turns", "/sessions/s1//stop"])
async def test_an_unknown_session_path_is_a_404(serve: Serve, path: str) -> None:
    async with ScriptedUpstream() as upstream:
        proxy = await serve(upstream.base_url)
        await ask(proxy.port, user("1"))
        head, body = await call(proxy.port, "GET", path)
        assert len(upstream.requests) == 1
    assert (head.status, code(body)) == (404, "not_found")


def undated(answer: tuple[Head, bytes]) -> tuple[int, list[tuple[str, str]], bytes]:
    head, body = answer
    return head.status, [pair for pair in head.headers if pair[0] not in ("Date", "x-request-id")], body


@pytest.mark.parametrize("in_flight", [False, True], ids=["done", "in-flight"])
@pytest.mark.parametrize(("method", "route"), ALLOWED)
async def test_a_foreign_session_looks_like_a_missing_one(
    serve: Serve, method: str, route: str, in_flight: bool
) -> None:
    held = Held(x=2)
    async with ScriptedUpstream(held) as upstream:
        proxy = await serve(upstream.base_url)
        await ask(proxy.port, user("1"), headers=MINE)
        asked = await asking(held, proxy.port, "x", headers=MINE) if in_flight else None
        foreign = await call(proxy.port, method, "/sessions/s1" + route, THEIRS)
        nobody = await call(proxy.port, method, "/sessions/s1" + route)
        unknown = await call(proxy.port, method, "/sessions/s2" + route, THEIRS)
        held.go["x"].set()
        if asked:
            assert (await asked).ended == "complete"
        mine = await get(proxy.port, "/sessions/s1", MINE)
    assert undated(foreign) == undated(unknown) == undated(nobody) and foreign[0].status == 404
    assert mine["turns"] == 1 + in_flight


@pytest.mark.parametrize(
    "id",
    ["a b", "a/b", "a%b", "a+b", "a?b#c", "ünïcode 日本", "..", "%2F", "messages", "x" * 256, "🙂" * 128],
)
async def test_a_session_id_in_the_path_is_percent_decoded(serve: Serve, id: str) -> None:
    name = id.encode().decode("latin-1")  # as the bytes of a header
    async with ScriptedUpstream() as upstream:
        proxy = await serve(upstream.base_url)
        await ask(proxy.port, user("1"), session=name)
        shown = await get(proxy.port, "/sessions/" + quote(id, safe=""))
        head, _ = await call(proxy.port, "DELETE", "/sessions/" + quote(id, safe=""))
        gone, _ = await call(proxy.port, "GET", "/sessions/" + quote(id, safe=""))
    assert (shown["id"], shown["turns"], head.status, gone.status) == (id, 1, 200, 404)


@pytest.mark.parametrize(
    ("path", "what"),
    [
        ("/sessions/", "invalid_session_id"),
        ("/sessions//messages", "invalid_session_id"),
        ("/sessions/" + "x" * 257, "invalid_session_id"),
        ("/sessions/a%00b", "invalid_session_id"),
        ("/sessions/a%0Ab/messages", "invalid_session_id"),
        ("/sessions/%FF", "invalid_request"),
        ("/sessions/%ED%A0%80", "invalid_request"),  # a surrogate
        ("/sessions/%C3/stream", "invalid_request"),
    ],
)
async def test_an_invalid_session_id_in_the_path_is_a_400(serve: Serve, path: str, what: str) -> None:
    async with ScriptedUpstream() as upstream:
        proxy = await serve(upstream.base_url)
        head, body = await call(proxy.port, "GET", path)
    assert (head.status, code(body)) == (400, what)


@pytest.mark.parametrize("session", ["s1", "none"])
async def test_every_session_api_answer_has_no_store(serve: Serve, session: str) -> None:
    async with ScriptedUpstream([completion("a", headers=[("Cache-Control", "max-age=60")])]) as upstream:
        proxy = await serve(upstream.base_url)
        await ask(proxy.port, user("1"))
        for method, route in sorted(ALLOWED, reverse=True):  # DELETE last
            head, _ = await call(proxy.port, method, f"/sessions/{session}{route}")
            values = [value for name, value in head.headers if name.lower() == "cache-control"]
            assert values == ["no-store"], (method, route, head.status)
            if method == "GET" and session == "s1":
                assert head.status == 200


async def test_the_stream_of_a_turn_in_flight_has_no_store(serve: Serve) -> None:
    held = Held(x=2)
    async with ScriptedUpstream(held) as upstream:
        proxy = await serve(upstream.base_url)
        asked = await asking(held, proxy.port, "x")
        async with RawClient(proxy.port) as client:
            await client.request("GET", "/sessions/s1/stream")
            head = await client.head()
        held.go["x"].set()
        await asked
    assert head.header("cache-control") == "no-store"


@pytest.mark.parametrize(("method", "route"), ALLOWED)
async def test_an_allowed_origin_may_use_the_session_api(serve: Serve, method: str, route: str) -> None:
    origin, asks = ("Origin", "https://app.test"), ("Access-Control-Request-Method", method)
    async with ScriptedUpstream() as upstream:
        proxy = await serve(upstream.base_url, cors={"allow_origins": ["https://app.test"]})
        await ask(proxy.port, user("1"))
        before, _ = await call(proxy.port, "OPTIONS", "/sessions/s1" + route, [origin, asks])
        other, _ = await call(proxy.port, "OPTIONS", "/sessions/s1" + route, [("Origin", "https://b.test"), asks])
        answer, _ = await call(proxy.port, method, "/sessions/s1" + route, [origin])
        assert len(upstream.requests) == 1
    assert (before.status, before.header("access-control-allow-methods")) == (204, method)
    assert other.status == 405 and other.header("access-control-allow-origin") is None
    assert before.header("access-control-allow-origin") == answer.header("access-control-allow-origin") == origin[1]


# Stop --------------------------------------------------------------------------------------


async def test_a_stop_returns_once_the_interrupted_turn_is_recorded(serve: Serve) -> None:
    held = Held(x=2)
    async with ScriptedUpstream(held) as upstream:
        proxy = await serve(upstream.base_url)
        asked = await asking(held, proxy.port, "x")
        head, body = await call(proxy.port, "POST", "/sessions/s1/stop")
        found = await kept(proxy.port)
        cut = await asked
        again, again_body = await call(proxy.port, "POST", "/sessions/s1/stop")
        await eventually(lambda: not upstream.connections, 1)
    assert head.status == 200
    assert json.loads(body) == {
        "object": "session.stopped",
        "id": "s1",
        "turns": [{"turn": "turn_1", "recorded": True}],
    }
    assert found == [("user", "x", "cut"), ("assistant", "re ", "cut")]
    assert cut.ended == "reset"
    assert (again.status, code(again_body)) == (404, "turn_not_found")
    assert "nothing to stop" in again_body.decode()


class SlowStore(MemoryStore):
    """A store whose disk takes as long as the test wants."""

    def __init__(self) -> None:
        super().__init__(TTL)
        self.reached, self.go = asyncio.Event(), asyncio.Event()

    async def append(self, *arguments: Any) -> None:
        self.reached.set()
        await self.go.wait()
        await super().append(*arguments)


@pytest.mark.parametrize(("method", "path"), [("POST", "/sessions/s1/stop"), ("DELETE", "/sessions/s1")])
async def test_a_stop_waits_for_the_commit(serve: Serve, method: str, path: str) -> None:
    held, store = Held(x=2), SlowStore()
    async with ScriptedUpstream(held) as upstream:
        proxy = await serve(upstream.base_url, store=store)
        asked = await asking(held, proxy.port, "x")
        stopping = asyncio.create_task(call(proxy.port, method, path))
        await asyncio.wait_for(store.reached.wait(), 5)
        done, _ = await asyncio.wait([stopping], timeout=0.1)
        assert not done
        store.go.set()
        head, _ = await stopping
        await asked
    assert head.status == 200


async def test_a_stop_before_the_head_records_nothing_and_says_so(serve: Serve) -> None:
    held = Held()
    wait = asyncio.Event()

    async def script(request: Received) -> Reply:
        if request.messages[-1]["content"] == "slow":
            await wait.wait()
        return held(request)

    async with ScriptedUpstream(script) as upstream:
        proxy = await serve(upstream.base_url)
        asked = asyncio.create_task(ask(proxy.port, user("slow")))
        await eventually(lambda: upstream.requests)
        _, body = await call(proxy.port, "POST", "/sessions/s1/stop")
        told: Any = await asked
        await ask(proxy.port, user("next"))
        assert upstream.requests[1].messages == [user("next")]
    assert json.loads(body)["turns"] == [{"turn": "turn_1", "recorded": False}]
    assert (told.answer.status, code(told.data)) == (409, "turn_stopped")
    assert told.answer.header("x-should-retry") == "false"


async def test_a_stop_lets_a_reply_with_a_finish_reason_end(serve: Serve) -> None:
    held = Held(x=4)  # behind its finish_reason, before [DONE]
    async with ScriptedUpstream(held) as upstream:
        proxy = await serve(upstream.base_url)
        asked = await asking(held, proxy.port, "x")
        stopping = asyncio.create_task(call(proxy.port, "POST", "/sessions/s1/stop"))
        done, _ = await asyncio.wait([stopping], timeout=0.1)
        assert not done
        held.go["x"].set()
        _, body = await stopping
        whole = await asked
    assert json.loads(body)["turns"] == [{"turn": "turn_1", "recorded": True}]
    assert whole.ended == "complete"


async def test_a_stop_ends_all_concurrent_turns(serve: Serve) -> None:
    held = Held(x=2, y=2)
    async with ScriptedUpstream(held) as upstream:
        proxy = await serve(upstream.base_url)
        await ask(proxy.port, user("1"))
        beside = [await asking(held, proxy.port, "x")]
        beside.append(await asking(held, proxy.port, "y", user("1"), assistant("re 1")))
        shown = await get(proxy.port, "/sessions/s1")
        _, body = await call(proxy.port, "POST", "/sessions/s1/stop")
        cut = await asyncio.gather(*beside)
        states = {state for _, _, state in await kept(proxy.port)}
    assert [turn["turn"] for turn in shown["in_flight"]] == ["turn_2", "turn_3"]
    assert json.loads(body)["turns"] == [{"turn": f"turn_{n}", "recorded": True} for n in (2, 3)]
    assert [client.ended for client in cut] == ["reset", "reset"]
    assert states == {"complete", "cut"}


async def test_a_stop_leaves_queued_requests_alone(serve: Serve) -> None:
    held = Held(x=2)
    async with ScriptedUpstream(held) as upstream:
        proxy = await serve(upstream.base_url)
        asked = await asking(held, proxy.port, "x")
        waiting = asyncio.create_task(ask(proxy.port, user("next")))
        await proxy.in_line()
        await call(proxy.port, "POST", "/sessions/s1/stop")
        after: Any = await waiting
        await asked
        assert upstream.requests[1].messages == [user("x"), assistant("re "), user("next")]
    assert after.answer.status == 200 and after.ended == "complete"


# Delete ------------------------------------------------------------------------------------


@pytest.fixture
async def disk(tmp_path: Path) -> AsyncIterator[CachedStore]:
    store = CachedStore(await SQLiteStore.open(tmp_path / "sessions.db", TTL), TTL, 16 << 20)
    yield store
    await store.close()


def on_disk(folder: Path, *secrets: bytes) -> list[tuple[str, bytes]]:
    """Which of the secrets stand in which of the files, read as bare bytes."""
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    return [(name, secret) for name, data in files.items() for secret in secrets if secret in data]


async def test_a_deleted_session_is_gone_from_the_files(serve: Serve, disk: CachedStore, tmp_path: Path) -> None:
    system = {"role": "system", "content": "SYSTEM-CANARY"}
    reply = completion("REPLY-CANARY", message={"reasoning": "REASON-CANARY"})
    secrets = (b"SYSTEM-CANARY", b"USER-CANARY", b"REPLY-CANARY", b"REASON-CANARY", b"ID-CANARY")
    async with ScriptedUpstream([reply, completion("b"), reply]) as upstream:
        proxy = await serve(upstream.base_url, store=disk)
        await ask(proxy.port, system, user("USER-CANARY"), session="ID-CANARY")
        await ask(proxy.port, user("another's"), session="other")
        assert {secret for _, secret in on_disk(tmp_path, *secrets)} == set(secrets)
        head, body = await call(proxy.port, "DELETE", "/sessions/ID-CANARY")
        assert on_disk(tmp_path, *secrets) == []
        gone, _ = await call(proxy.port, "GET", "/sessions/ID-CANARY")
        other = await kept(proxy.port, "other")
        fresh: Any = await ask(proxy.port, user("again"), session="ID-CANARY")
        assert upstream.requests[2].messages == [user("again")]
    assert (head.status, json.loads(body)) == (
        200,
        {"id": "ID-CANARY", "object": "session.deleted", "deleted": True},
    )
    assert gone.status == 404 and len(other) == 2
    assert fresh.answer.header("x-session-state") == "new"


async def test_a_delete_stops_and_removes_the_turn_in_flight(serve: Serve, disk: CachedStore, tmp_path: Path) -> None:
    held = Held(CANARY=2)
    async with ScriptedUpstream(held) as upstream:
        proxy = await serve(upstream.base_url, store=disk)
        await ask(proxy.port, user("1"))
        asked = await asking(held, proxy.port, "CANARY")
        head, _ = await call(proxy.port, "DELETE", "/sessions/s1")
        assert on_disk(tmp_path, b"CANARY") == []
        cut = await asked
        await eventually(lambda: upstream.connections <= 1, 1)  # the first turn's is kept alive
        gone, _ = await call(proxy.port, "GET", "/sessions/s1")
    assert (head.status, gone.status, cut.ended) == (200, 404, "reset")
    assert not proxy.runtime.registry.in_use


async def test_a_delete_waits_in_the_queue(serve: Serve, disk: CachedStore, tmp_path: Path) -> None:
    held = Held(first=2, CANARY=0)
    async with ScriptedUpstream(held) as upstream:
        proxy = await serve(upstream.base_url, store=disk)
        first = await asking(held, proxy.port, "first")
        before = asyncio.create_task(ask(proxy.port, user("CANARY")))
        await proxy.in_line()
        deleting = asyncio.create_task(call(proxy.port, "DELETE", "/sessions/s1"))
        await asyncio.wait_for(held.reached["CANARY"].wait(), 5)  # the first was stopped, the second has its place
        after = asyncio.create_task(ask(proxy.port, user("after")))
        done, _ = await asyncio.wait([deleting, after], timeout=0.1)
        assert not done
        held.go["CANARY"].set()
        answers: tuple[Any, Any, Any] = await asyncio.gather(first, before, after)
        head, _ = await deleting
        assert [request.messages[-1] for request in upstream.requests] == [
            user(t) for t in ("first", "CANARY", "after")
        ]
        assert upstream.requests[2].messages == [user("after")]
        found = await kept(proxy.port)
        assert on_disk(tmp_path, b"CANARY") == []
    assert head.status == 200
    assert [client.ended for client in answers] == ["reset", "complete", "complete"]
    assert answers[2].answer.header("x-session-state") == "new"
    assert [content for _, content, _ in found] == ["after", "re after"]


async def test_a_turn_beside_the_queue_does_not_survive_a_waiting_delete(serve: Serve) -> None:
    held = Held(first=2, second=0, beside=2)
    async with ScriptedUpstream(held) as upstream:
        proxy = await serve(upstream.base_url)
        await ask(proxy.port, user("1"))
        first = await asking(held, proxy.port, "first")
        second = asyncio.create_task(ask(proxy.port, user("second")))
        await proxy.in_line()
        deleting = asyncio.create_task(call(proxy.port, "DELETE", "/sessions/s1"))
        await asyncio.wait_for(held.reached["second"].wait(), 5)
        beside = await asking(held, proxy.port, "beside", user("1"), assistant("re 1"))
        held.go["second"].set()
        head, _ = await deleting
        held.go["beside"].set()
        await asyncio.gather(first, second, beside)
        gone, _ = await call(proxy.port, "GET", "/sessions/s1")
    assert (head.status, gone.status) == (200, 404)


async def test_a_delete_whose_caller_disconnects_leaves_the_queue(serve: Serve) -> None:
    held = Held(first=4)  # a stop waits for it
    async with ScriptedUpstream(held) as upstream:
        proxy = await serve(upstream.base_url)
        first = await asking(held, proxy.port, "first")
        async with RawClient(proxy.port) as client:
            await client.request("DELETE", "/sessions/s1")
            await asyncio.sleep(0.05)  # it waits for the turn that it has stopped, which nothing shows
            client.abort()
        held.go["first"].set()
        await first
        await eventually(lambda: not proxy.runtime.registry.in_use)
        after: Any = await ask(proxy.port, user("after"))
    assert after.ended == "complete"


async def test_a_delete_is_refused_when_the_queue_is_full(serve: Serve) -> None:
    held = Held(first=4, second=0)
    async with ScriptedUpstream(held) as upstream:
        proxy = await serve(upstream.base_url, sessions={"queue_limit": 1})
        first = await asking(held, proxy.port, "first")
        second = asyncio.create_task(ask(proxy.port, user("second")))
        await proxy.in_line()
        third = asyncio.create_task(ask(proxy.port, user("third")))
        deleting = asyncio.create_task(call(proxy.port, "DELETE", "/sessions/s1"))
        full: Any = await third
        held.go["first"].set()
        await asyncio.wait_for(held.reached["second"].wait(), 5)
        held.go["second"].set()
        await asyncio.gather(first, second)
        head, _ = await deleting
    assert full.answer.status == 429 and head.status == 200
