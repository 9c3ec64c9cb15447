"""CORS where origins are allowed, and the upstream has an opinion of its own."""

from __future__ import annotations

from tests.support.fakes import Head, RawClient, Reply, ScriptedUpstream
from tests.support.serving import Serve

THEIRS = [("Access-Control-Allow-Origin", "*"), ("access-control-allow-credentials", "true"), ("Vary", "Accept")]


async def asked(port: int, method: str, origin: str, *headers: tuple[str, str]) -> Head:
    async with RawClient(port) as client:
        await client.request(method, "/v1/models", [("Origin", origin), *headers])
        return await client.head()


async def test_the_upstreams_cors_headers_are_replaced_for_every_origin(serve: Serve) -> None:
    replies = [Reply(headers=list(THEIRS), framing="length") for _ in range(2)]
    async with ScriptedUpstream(replies) as upstream:
        proxy = await serve(upstream.base_url, cors={"allow_origins": ["https://app.test"]})
        ours, others = [await asked(proxy.port, "GET", origin) for origin in ("https://app.test", "https://b.test")]
    assert ours.header("access-control-allow-origin") == "https://app.test"
    assert ours.header("access-control-allow-credentials") is None
    assert [value for name, value in ours.headers if name == "Vary"] == ["Accept", "Origin"]
    assert not [name for name, _ in others.headers if name.lower().startswith("access-control-")]


async def test_a_preflight_of_another_origin_goes_to_the_upstream(serve: Serve) -> None:
    preflight = ("Access-Control-Request-Method", "POST")
    async with ScriptedUpstream([Reply(status=403, headers=list(THEIRS), framing="length")]) as upstream:
        proxy = await serve(upstream.base_url, cors={"allow_origins": ["https://app.test"]})
        refused = await asked(proxy.port, "OPTIONS", "https://b.test", preflight)
        allowed = await asked(proxy.port, "OPTIONS", "https://app.test", preflight)
        assert len(upstream.requests) == 1
    assert refused.status == 403 and refused.header("access-control-allow-origin") is None
    assert (allowed.status, allowed.header("access-control-allow-methods")) == (204, "POST")
    assert allowed.header("access-control-allow-headers") is None  # none were asked for


async def test_a_star_allows_every_origin(serve: Serve) -> None:
    async with ScriptedUpstream([Reply(framing="length")]) as upstream:
        proxy = await serve(upstream.base_url, cors={"allow_origins": "*"})
        head = await asked(proxy.port, "GET", "https://any.test")
    assert head.header("access-control-allow-origin") == "https://any.test"
