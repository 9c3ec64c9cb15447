"""What a caller, an operator and a prober see when something is wrong."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy import errors
from proxy.errors import ProxyError, StoreUnavailable
from proxy.stores.memory import MemoryStore
from tests.support.fakes import RawClient, Reply, ScriptedUpstream
from tests.support.fakes import error as refusal
from tests.support.serving import Serve

NO_HTTP = [
    Reply(headers=[("X-Odd", "a\x1bb")], framing="length"),
    Reply(status=101, framing="length"),
    Reply(headers=[("Content-Length", "1"), ("content-length", "2")], framing="close"),
]


async def error(client: RawClient) -> tuple[int, dict[str, Any]]:
    status = (await client.head()).status
    fault: dict[str, Any] = json.loads(await client.body())["error"]
    assert set(fault) == {"message", "type", "param", "code"} and "Traceback" not in fault["message"]
    return status, fault


@pytest.mark.parametrize("start", ["CONNECT elsewhere.test:443", "OPTIONS *", "GET http://elsewhere.test/v1/models"])
async def test_a_target_that_is_not_a_path_gets_a_json_error(serve: Serve, start: str) -> None:
    async with ScriptedUpstream() as upstream:
        proxy = await serve(upstream.base_url)
        async with RawClient(proxy.port) as client:
            await client.send(f"{start} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            status, fault = await error(client)
        assert (status, fault["code"]) == (400, "invalid_request") and not upstream.requests


async def test_a_connection_stays_open_after_an_error(serve: Serve) -> None:
    async with ScriptedUpstream() as upstream:
        proxy = await serve(upstream.base_url)
        async with RawClient(proxy.port) as client:
            for _ in range(2):
                await client.request("GET", "/nowhere")
                assert (await error(client))[0] == 404
            await client.send(b"POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 30\r\n\r\nGET /v1/models HT")
            head = await client.head()
            assert (head.status, head.header("connection")) == (404, "close")
        assert not upstream.requests


@pytest.mark.parametrize("reply", NO_HTTP)
async def test_an_upstream_that_does_not_speak_http_is_a_bad_gateway(serve: Serve, reply: Reply) -> None:
    async with ScriptedUpstream([reply]) as upstream:
        proxy = await serve(upstream.base_url)
        async with RawClient(proxy.port) as client:
            await client.request("GET", "/v1/models")
            status, fault = await error(client)
    assert (status, fault["code"]) == (502, "upstream_unreachable")


class Broken(MemoryStore):
    """A store that cannot be reached, and a bug."""

    async def ping(self) -> None:
        raise StoreUnavailable("The disk is full.")

    async def load(self, *_: object) -> Any:
        raise RuntimeError("sk-secret")


async def test_an_internal_error_shows_no_details_to_the_client(serve: Serve) -> None:
    proxy = await serve("http://127.0.0.1:1/v1", store=Broken(1000))
    async with RawClient(proxy.port) as client:
        await client.post("/v1", {"messages": [{"role": "user", "content": "x"}]}, [("sessionId", "s")])
        status, fault = await error(client)
    assert (status, fault["code"]) == (500, "internal_error") and "secret" not in str(fault)


def told_to_wait(seconds: float | None) -> ProxyError:
    fault = StoreUnavailable("The disk is full.")
    fault.retry_after = seconds
    return fault


@given(st.floats())
def test_retry_after_is_1_to_60_whole_seconds(seconds: float) -> None:
    delay = told_to_wait(seconds).delay
    assert delay is not None and 1 <= delay <= 60
    assert delay - 1 < seconds <= delay or seconds != seconds or not 1 <= seconds <= 60


@pytest.mark.parametrize(("seconds", "told"), [(None, None), (0, 1), (0.5, 1), (1, 1), (1.2, 2), (60, 60), (120, 60)])
async def test_an_error_sends_its_delay_as_retry_after(serve: Serve, seconds: float | None, told: int | None) -> None:
    class Full(MemoryStore):
        async def ping(self) -> None:
            raise told_to_wait(seconds)

    proxy = await serve("http://127.0.0.1:1/v1", store=Full(1000))
    async with RawClient(proxy.port) as client:
        await client.request("GET", "/readyz")
        head = await client.head()
    assert head.status == 503 and head.header("retry-after") == (None if told is None else str(told))


def test_every_error_class_has_a_delay_that_sdks_honour() -> None:
    faults = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, ProxyError)]
    named = [fault("x") for fault in faults if fault.retry_after is not None]
    assert named and all([fault.delay == fault.retry_after for fault in named])


@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize("value", ["0", "0.25", "61", "100000", "Wed, 21 Oct 2026 07:28:00 GMT", "soon"])
async def test_the_upstreams_retry_after_is_passed_through(serve: Serve, value: str, recorded: bool) -> None:
    told = refusal(429, {"error": {"message": "slow down"}}, headers=[("Retry-After", value)])
    async with ScriptedUpstream([told]) as upstream:
        proxy = await serve(upstream.base_url)
        async with RawClient(proxy.port) as client:
            headers = [("sessionId", "s")] if recorded else []
            await client.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}, headers)
            head = await client.head()
    assert (head.status, head.header("retry-after")) == (429, value)


async def test_healthz_checks_the_process_and_readyz_the_store_and_the_drain(serve: Serve) -> None:
    well, ill = await serve("http://127.0.0.1:1/v1"), await serve("http://127.0.0.1:1/v1", store=Broken(1000))
    stopping = await serve("http://127.0.0.1:1/v1")
    stopping.runtime.registry.draining = True
    seen = []
    for proxy in (well, ill, stopping):
        async with RawClient(proxy.port) as client:
            for path in ("/healthz", "/readyz"):
                await client.request("GET", path)
                seen.append((await client.head()).status)
                await client.body()
    assert seen == [200, 200, 200, 503, 200, 503]


@pytest.mark.parametrize(
    ("tenant", "shared"),
    [
        ("one", [True, True, True]),
        ("credential", [False, True, False]),
        ({"header": "x-user"}, [False, False, True]),
    ],
)
async def test_the_tenant_follows_the_configured_rule(serve: Serve, tenant: object, shared: list[bool]) -> None:
    """Whether a session is shared by callers who differ in key and user, in user only, in key only."""
    first = [("Authorization", "Bearer a"), ("X-User", "anna")]
    others = [("Bearer b", "bert"), ("Bearer a", "bert"), ("Bearer b", "anna")]
    for (key, user), expected in zip(others, shared, strict=True):
        assert await same_session(serve, first, [("Authorization", key), ("X-User", user)], tenant=tenant) is expected


async def test_all_keys_of_a_client_are_one_tenant(serve: Serve) -> None:
    hashes = [hashlib.sha256(key).hexdigest() for key in (b"old", b"new")]
    clients = [{"name": "kitchen", "key_hashes": hashes}]
    assert await same_session(serve, [("Authorization", "Bearer old")], [("x-api-key", "new")], clients=clients)


async def same_session(serve: Serve, *callers: list[tuple[str, str]], **sections: object) -> bool:
    async with ScriptedUpstream() as upstream:
        proxy = await serve(upstream.base_url, **sections)
        for headers in callers:
            async with RawClient(proxy.port) as client:
                body = {"messages": [{"role": "user", "content": "x"}]}
                await client.post("/v1/chat/completions", body, [*headers, ("sessionId", "s")])
                assert (await client.head()).status == 200
                await client.body()
        return len(upstream.requests[1].messages) > 1
