"""What becomes of a request whose session is busy: it waits, is refused, or interrupts; and what ends a wait."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from tests.support.fakes import RawClient, Received, Reply, ScriptedUpstream, completion, error, eventually, sse
from tests.support.serving import RunningProxy, Serve

PATH = "/v1/chat/completions"
Message = dict[str, Any]
Sent = tuple[RawClient, "asyncio.Task[Answer]"]


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


class Answer:
    """What a client was given, and how it ended."""

    status = 0
    data = b""
    ended: str | None = None

    def __init__(self, headers: list[tuple[str, str]]) -> None:
        self.headers = {name.lower(): value for name, value in headers}

    @property
    def code(self) -> str:
        code: str = json.loads(self.data)["error"]["code"]
        return code

    @property
    def outcome(self) -> tuple[int, str | None]:
        return self.status, self.code if self.status != 200 else self.ended


class Clients(AsyncExitStack):
    """Clients of one session, each on a connection of its own."""

    def __init__(self, proxy: RunningProxy) -> None:
        super().__init__()
        self.proxy = proxy

    async def send(self, *messages: Message, on_busy: str | None = None, **headers: str) -> Sent:
        """Send a request; the task ends with its answer."""
        client = await self.enter_async_context(RawClient(self.proxy.port))
        pairs = [("sessionId", "s"), *[(name.replace("_", "-"), value) for name, value in headers.items()]]
        pairs += [("x-session-on-busy", on_busy)] if on_busy is not None else []
        await client.post(PATH, {"messages": list(messages), "stream": True}, pairs)
        return client, asyncio.create_task(self._read(client))

    async def ask(self, *messages: Message, on_busy: str | None = None, **headers: str) -> Answer:
        return await (await self.send(*messages, on_busy=on_busy, **headers))[1]

    async def _read(self, client: RawClient) -> Answer:
        head = await client.head()
        answer = Answer(head.headers)
        answer.status, answer.data, answer.ended = head.status, await client.body(), client.ended
        return answer


class Paced(ScriptedUpstream):
    """An upstream whose N-th request (from 0) is answered with the text "aN", and waits at some piece until
    `go(N)`: piece 0 is the role, 1 the text, 2 the finish_reason, 3 the end. `waits` says where, by N."""

    def __init__(self, waits: dict[int, int]) -> None:
        super().__init__(self._paced)
        self._waits = waits
        self._gates: dict[int, asyncio.Event] = {}
        self.at: dict[int, int] = {}  # the piece that each answer has come to

    async def __aenter__(self) -> Paced:
        await super().__aenter__()
        return self

    def go(self, number: int) -> None:
        self._gates[number].set()

    async def reached(self, number: int) -> None:
        """Until answer N waits where it was to wait."""
        await eventually(lambda: self.at.get(number) == self._waits[number])
        await asyncio.sleep(0.05)  # what it has said is on its way through the proxy

    def texts(self, number: int) -> list[str]:
        return [message["content"] for message in self.requests[number].messages]

    def _paced(self, request: Received) -> Reply:
        number = len(self.requests) - 1
        opened = self._gates[number] = asyncio.Event()

        async def gate(index: int) -> None:
            self.at[number] = index
            if index == self._waits.get(number):
                await opened.wait()

        return sse(f"a{number}", gate=gate)


# The three ways ----------------------------------------------------------------------------

WAYS = ["queue", "reject", "interrupt"]


@pytest.mark.parametrize("header", [None, *WAYS, " Reject "])
@pytest.mark.parametrize("config", WAYS)
async def test_x_session_on_busy_overrides_the_configuration(serve: Serve, config: str, header: str | None) -> None:
    async with Paced({0: 2}) as upstream:
        proxy = await serve(upstream.base_url, sessions={"on_busy": config})
        async with Clients(proxy) as clients:
            _, first = await clients.send(user("u0"))
            await upstream.reached(0)
            _, second = await clients.send(user("u1"), on_busy=header)
            way = (header or config).strip().lower()
            if way == "queue":
                await proxy.in_line()
                assert not first.done() and not second.done() and len(upstream.requests) == 1
                upstream.go(0)
            refused = await second if way == "reject" else None
            if way == "reject":
                upstream.go(0)
            outcomes = [(await first).outcome, (await second).outcome]
            last = await clients.ask(user("u2"))
    told = {
        "queue": [(200, "complete"), (200, "complete")],
        "reject": [(200, "complete"), (409, "session_busy")],
        "interrupt": [(200, "reset"), (200, "complete")],
    }
    assert outcomes == told[way] and last.outcome == (200, "complete")
    before = ["u0", "a0"] if way == "reject" else ["u0", "a0", "u1", "a1"]
    assert upstream.texts(-1) == [*before, "u2"]
    assert refused is None or 0 < float(refused.headers["retry-after"]) <= 2


@pytest.mark.parametrize("word", ["", "wait", "queue,reject", "no"])
async def test_an_unknown_on_busy_value_is_a_400(serve: Serve, word: str) -> None:
    async with ScriptedUpstream() as upstream:
        async with Clients(await serve(upstream.base_url)) as clients:
            answer = await clients.ask(user("u"), on_busy=word)
        assert answer.outcome == (400, "invalid_request") and not upstream.requests
    told = json.loads(answer.data)["error"]
    assert told["param"] == "x-session-on-busy" and all(way in told["message"] for way in WAYS)


async def test_reject_refuses_only_requests_that_would_wait(serve: Serve) -> None:
    async with Paced({1: 1}) as upstream:
        proxy = await serve(upstream.base_url, sessions={"on_busy": "reject"})
        async with Clients(proxy) as clients:
            await clients.ask(user("u0"))
            _, running = await clients.send(user("u1"))
            await upstream.reached(1)
            carried = await clients.ask(user("u0"), assistant("a0"), user("v"))
            unrecorded = await clients.ask(user("title?"), x_session_store="no")
            refused = await clients.ask(user("u2"))
            upstream.go(1)
            await running
    assert [carried.status, unrecorded.status, refused.status] == [200, 200, 409]


# The line ----------------------------------------------------------------------------------


async def test_a_full_queue_is_a_429_and_keeps_its_requests(serve: Serve) -> None:
    async with Paced({0: 1}) as upstream:
        proxy = await serve(upstream.base_url, sessions={"queue_limit": 2})
        async with Clients(proxy) as clients:
            first = await clients.send(user("u0"))
            await upstream.reached(0)
            waiting = [await in_line(clients, text) for text in ("u1", "u2")]
            full = [await clients.ask(user("no"), on_busy=way) for way in ("queue", None)]
            upstream.go(0)
            answers = [await task for _, task in (first, *waiting)]
    assert [answer.outcome for answer in full] == [(429, "session_queue_full")] * 2
    assert all(0 < float(answer.headers["retry-after"]) <= 2 for answer in full)
    assert [answer.outcome for answer in answers] == [(200, "complete")] * 3
    assert upstream.texts(-1) == ["u0", "a0", "u1", "a1", "u2"]


async def in_line(clients: Clients, text: str, **more: Any) -> Sent:
    """A request that has come to its place in line."""
    before = clients.proxy.runtime.registry.waiting
    sent = await clients.send(user(text), **more)
    await clients.proxy.in_line(before + 1)
    assert not sent[1].done()
    return sent


async def test_a_queue_timeout_is_a_409(serve: Serve) -> None:
    async with Paced({0: 1}) as upstream:
        proxy = await serve(upstream.base_url, sessions={"queue_timeout": "400ms", "queue_limit": 1})
        async with Clients(proxy) as clients:
            first = await clients.send(user("u0"))
            await upstream.reached(0)
            late = await clients.ask(user("late"))
            _, second = await in_line(clients, "u1")  # there is room again
            upstream.go(0)
            answers = [await first[1], await second]
    assert late.outcome == (409, "session_busy") and 0 < float(late.headers["retry-after"]) <= 2
    assert [answer.outcome for answer in answers] == [(200, "complete")] * 2
    assert upstream.texts(-1) == ["u0", "a0", "u1"] and len(upstream.requests) == 2


async def close(client: RawClient) -> None:
    await client.__aexit__()


LEAVES: list[Callable[[RawClient], Any]] = [RawClient.abort, RawClient.half_close, close]


@pytest.mark.parametrize("leave", LEAVES)
async def test_a_queued_client_that_disconnects_leaves_the_queue_at_once(serve: Serve, leave: Any) -> None:
    async with Paced({0: 1}) as upstream:
        proxy = await serve(upstream.base_url, sessions={"queue_limit": 2})
        async with Clients(proxy) as clients:
            first = await clients.send(user("u0"))
            await upstream.reached(0)
            client, gone = await in_line(clients, "gone")
            behind = await in_line(clients, "u1")
            assert (await clients.ask(user("no"))).status == 429
            gone.cancel()
            await asyncio.wait([gone])
            if (left := leave(client)) is not None:
                await left
            await proxy.in_line(1)
            after = await in_line(clients, "u2")  # the place that it gave up
            upstream.go(0)
            answers = [await task for _, task in (first, behind, after)]
            assert not proxy.runtime.registry.in_use
    assert [answer.outcome for answer in answers] == [(200, "complete")] * 3
    assert upstream.texts(-1) == ["u0", "a0", "u1", "a1", "u2"] and len(upstream.requests) == 3


# The end of a place ------------------------------------------------------------------------


async def test_the_queue_moves_on_at_the_end_of_a_turn_not_of_its_transfer(serve: Serve) -> None:
    async with ScriptedUpstream([sse("a0", end="hang"), completion("a1")]) as upstream:
        async with Clients(await serve(upstream.base_url)) as clients:
            _, first = await clients.send(user("u0"))
            second = await clients.ask(user("u1"))
            assert not first.done(), "its upstream has not ended the transfer"
            first.cancel()
        assert second.status == 200
        assert [message["content"] for message in upstream.requests[1].messages] == ["u0", "a0", "u1"]


async def test_the_queue_waits_for_a_turn_whose_client_disconnected(serve: Serve) -> None:
    async with Paced({0: 3}) as upstream, Clients(await serve(upstream.base_url)) as clients:
        client, first = await clients.send(user("u0"))
        await upstream.reached(0)
        first.cancel()
        await asyncio.wait([first])
        client.abort()
        await clients.proxy.abandoned()
        refused = await clients.ask(user("no"), on_busy="reject")
        _, second = await in_line(clients, "u1")
        assert len(upstream.requests) == 1
        upstream.go(0)
        await second
    assert refused.outcome == (409, "session_busy")
    assert upstream.texts(1) == ["u0", "a0", "u1"]


FAILURES: list[tuple[list[Reply], Message]] = [
    ([error(500, {"error": {"message": "no"}})], user("u")),
    ([error(400, {"error": {"message": "no"}})], user("u")),
    ([sse("a", end="rst", done=False, finish=None)], user("u")),
    ([sse(done=False, finish=None)], user("u")),
    ([], {"role": "tool", "tool_call_id": "nobody", "content": "1"}),
]


@pytest.mark.parametrize(("replies", "message"), FAILURES)
async def test_a_failed_turn_frees_its_queue_slot(serve: Serve, replies: list[Reply], message: Message) -> None:
    async with ScriptedUpstream([*replies, completion("b")]) as upstream:
        proxy = await serve(upstream.base_url)
        async with Clients(proxy) as clients:
            await clients.ask(message)
            after = await clients.ask(user("works"), on_busy="reject")
            await eventually(lambda: not proxy.runtime.registry.in_use)
    assert after.outcome == (200, "complete")


# Beside the line ---------------------------------------------------------------------------


@pytest.mark.parametrize("list_first", [True, False])
async def test_a_full_list_runs_beside_an_append_and_both_are_kept_in_the_order_of_their_commit(
    serve: Serve, list_first: bool
) -> None:
    async with Paced({1: 1, 2: 1}) as upstream, Clients(await serve(upstream.base_url)) as clients:
        await clients.ask(user("u0"))
        _, appended = await clients.send(user("u1"))
        await upstream.reached(1)
        _, carried = await clients.send(user("u0"), assistant("a0"), user("v"))
        await upstream.reached(2)
        for number, task in [(2, carried), (1, appended)] if list_first else [(1, appended), (2, carried)]:
            upstream.go(number)
            assert (await task).outcome == (200, "complete")
        await clients.ask(user("u2"))
    assert upstream.texts(1) == ["u0", "a0", "u1"] and upstream.texts(2) == ["u0", "a0", "v"]
    both = ["v", "a2", "u1", "a1"] if list_first else ["u1", "a1", "v", "a2"]
    assert upstream.texts(3) == ["u0", "a0", *both, "u2"]


async def test_a_list_that_holds_the_answer_in_flight_waits_for_its_end(serve: Serve) -> None:
    async with Paced({1: 3}) as upstream, Clients(await serve(upstream.base_url)) as clients:
        await clients.ask(user("u0"))
        _, running = await clients.send(user("u1"))
        await upstream.reached(1)
        messages = [user("u0"), assistant("a0"), user("u1"), assistant("a1"), user("u2")]
        _, ahead = await clients.send(*messages)
        await clients.proxy.in_line()
        assert len(upstream.requests) == 2
        upstream.go(1)
        assert (await running).status == 200
        answer = await ahead
    assert upstream.texts(2) == ["u0", "a0", "u1", "a1", "u2"]
    assert answer.headers["x-session-decision"] == "resend"


async def test_a_queued_request_follows_the_newest_branch(serve: Serve) -> None:
    async with Paced({1: 1}) as upstream:
        proxy = await serve(upstream.base_url)
        async with Clients(proxy) as clients, RawClient(proxy.port) as other:
            await clients.ask(user("u0"))
            _, running = await clients.send(user("u1"))
            await upstream.reached(1)
            _, waiting = await in_line(clients, "u2")
            await clients.ask(user("u0"), assistant("a0"), user("v"))
            await other.request("POST", "/sessions/s/stop")  # it has said nothing: nothing of it is kept
            assert (await other.head()).status == 200
            outcomes = [(await running).outcome, (await waiting).outcome]
    assert outcomes == [(200, "reset"), (200, "complete")]
    assert upstream.texts(3) == ["u0", "a0", "v", "a2", "u2"]


# Interrupt ---------------------------------------------------------------------------------


async def test_interrupt_waits_for_a_turn_that_has_its_finish_reason(serve: Serve) -> None:
    async with Paced({0: 3}) as upstream, Clients(await serve(upstream.base_url)) as clients:
        _, first = await clients.send(user("u0"))
        await upstream.reached(0)
        _, second = await in_line(clients, "u1", on_busy="interrupt")
        assert len(upstream.requests) == 1 and not first.done()
        upstream.go(0)
        assert [(await first).outcome, (await second).outcome] == [(200, "complete")] * 2
    assert upstream.texts(1) == ["u0", "a0", "u1"]


async def test_interrupt_before_the_head_records_nothing_of_the_other_turn(serve: Serve) -> None:
    hold = asyncio.Event()

    async def script(request: Received) -> Reply:
        if len(upstream.requests) == 1:
            await hold.wait()
        return sse("b")

    async with ScriptedUpstream(script) as upstream:
        async with Clients(await serve(upstream.base_url)) as clients:
            _, first = await clients.send(user("u0"))
            await eventually(lambda: upstream.requests)
            second = await clients.ask(user("u1"), on_busy="interrupt")
            stopped = await first
            await eventually(lambda: upstream.connections == 1)
            await clients.ask(user("u2"))
        asked = [[message["content"] for message in request.messages] for request in upstream.requests]
    assert stopped.outcome == (409, "turn_stopped") and stopped.headers["x-should-retry"] == "false"
    assert second.outcome == (200, "complete")
    assert asked == [["u0"], ["u1"], ["u1", "b", "u2"]]


async def test_interrupt_closes_the_upstream_and_records_an_interrupted_turn(serve: Serve) -> None:
    async with Paced({0: 2}) as upstream:
        proxy = await serve(upstream.base_url)
        async with Clients(proxy) as clients:
            _, first = await clients.send(user("u0"))
            await upstream.reached(0)
            await clients.ask(user("u1"), on_busy="interrupt")
            await eventually(lambda: upstream.connections == 1, timeout=1)
            cut = await first
            async with RawClient(proxy.port) as client:
                await client.request("GET", "/sessions/s/messages")
                await client.head()
                page = json.loads(await client.body())
    assert cut.ended == "reset" and b"a0" in cut.data and b"[DONE]" not in cut.data
    assert [entry["state"] for entry in page["data"]] == ["cut", "cut", "complete", "complete"]


async def test_interrupt_queues_behind_waiting_requests(serve: Serve) -> None:
    async with Paced({0: 2}) as upstream, Clients(await serve(upstream.base_url)) as clients:
        _, first = await clients.send(user("u0"))
        await upstream.reached(0)
        _, waiting = await in_line(clients, "u1")
        last = await clients.ask(user("u2"), on_busy="interrupt")
        assert [(await first).outcome, (await waiting).outcome] == [(200, "reset"), (200, "complete")]
    assert last.status == 200 and upstream.texts(2) == ["u0", "a0", "u1", "a1", "u2"]


async def test_interrupt_does_not_stop_a_concurrent_full_list(serve: Serve) -> None:
    async with Paced({1: 2, 2: 1}) as upstream, Clients(await serve(upstream.base_url)) as clients:
        await clients.ask(user("u0"))
        _, running = await clients.send(user("u1"))
        await upstream.reached(1)
        _, carried = await clients.send(user("u0"), assistant("a0"), user("v"))
        await upstream.reached(2)
        await clients.ask(user("u2"), on_busy="interrupt")
        assert (await running).ended == "reset"
        upstream.go(2)
        assert (await carried).outcome == (200, "complete")
    assert upstream.texts(3) == ["u0", "a0", "u1", "a1", "u2"]


async def test_what_follows_a_full_list_in_flight_waits_for_it(serve: Serve) -> None:
    """It stands at the tip, and nobody was in line: what comes alone after it follows it."""
    async with Paced({1: 1}) as upstream, Clients(await serve(upstream.base_url)) as clients:
        await clients.ask(user("u0"))
        _, carried = await clients.send(user("u0"), assistant("a0"), user("v"))
        await upstream.reached(1)
        _, waiting = await clients.send(user("u1"))
        await clients.proxy.in_line()
        assert len(upstream.requests) == 2
        upstream.go(1)
        assert (await carried).outcome == (await waiting).outcome == (200, "complete")
    assert upstream.texts(2) == ["u0", "a0", "v", "a1", "u1"]
