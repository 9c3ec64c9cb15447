"""Where a request goes: the longest mount, the path as sent, and never a host that a request names."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.config.model import Upstream
from proxy.context.routing import find
from proxy.errors import BadRequest

OPENAI = Upstream(mount=("/v1", "/api/publicLLM"), base_url="https://openai.example/v1")
LOCAL = Upstream(mount=("/v1/local",), base_url="http://127.0.0.1:8080")
ROOT = Upstream(mount=("/",), base_url="http://root.example/base")


@pytest.mark.parametrize(
    ("target", "url"),
    [
        ("/v1", "https://openai.example/v1"),
        ("/v1/", "https://openai.example/v1/"),
        ("/v1/models", "https://openai.example/v1/models"),
        ("/v1/models?a=1&b=?&c=%2F", "https://openai.example/v1/models?a=1&b=?&c=%2F"),
        ("/v1?a", "https://openai.example/v1?a"),
        ("/v1/files/a%20b%2Fc//d", "https://openai.example/v1/files/a%20b%2Fc//d"),
        ("/v1/a..b/...", "https://openai.example/v1/a..b/..."),
        ("/v1/x?next=../..", "https://openai.example/v1/x?next=../.."),
        ("/v1/http://evil.example/", "https://openai.example/v1/http://evil.example/"),
        ("/v1@evil.example/", None),
        ("/v1.evil.example/", None),
        ("//evil.example/v1", None),
        ("/api/publicLLM/chat", "https://openai.example/v1/chat"),
        ("/api/publicllm/chat", None),
        ("/v1/local/models", "http://127.0.0.1:8080/models"),
        ("/v1/localhost", "https://openai.example/v1/localhost"),
        ("/v10", None),
        ("/", None),
        ("/healthz", None),
        ("/../etc", None),
    ],
)
def test_a_path_under_a_mount_is_joined_to_its_base_url(target: str, url: str | None) -> None:
    found = find(target, "GET", [OPENAI, LOCAL])
    assert (found.url if found else None) == url


@pytest.mark.parametrize("upstreams", [[OPENAI, LOCAL, ROOT], [ROOT, LOCAL, OPENAI]])
def test_the_longest_mount_wins_whatever_the_order(upstreams: list[Upstream]) -> None:
    found = [find(target, "GET", upstreams) for target in ("/v1/local/x", "/v1/x", "/x")]
    assert [target.upstream for target in found if target] == [LOCAL, OPENAI, ROOT]


@pytest.mark.parametrize(
    ("target", "url"),
    [("/x", "http://root.example/base/x"), ("/", "http://root.example/base/"), ("//a", "http://root.example/base//a")],
)
def test_an_upstream_at_the_root_takes_every_path(target: str, url: str) -> None:
    found = find(target, "GET", [ROOT])
    assert found is not None
    assert (found.url, found.is_chat) == (url, False)


@pytest.mark.parametrize(
    ("method", "target", "rest", "is_chat"),
    [
        ("POST", "/v1/chat/completions", "/chat/completions", True),
        ("POST", "/v1/openai/deployments/d/chat/completions?v=1", "/openai/deployments/d/chat/completions?v=1", True),
        ("POST", "/v1", "/chat/completions", True),
        ("POST", "/v1/", "/chat/completions", True),
        ("POST", "/v1/?a=1", "/chat/completions?a=1", True),
        ("GET", "/v1", "", False),
        ("POST", "/v1/chat/completions/", "/chat/completions/", True),
        ("POST", "/v1/chat/completions//?a=/", "/chat/completions//?a=/", True),
        ("POST", "/v1/chat/completions/x", "/chat/completions/x", False),
        ("POST", "/v1/x?/chat/completions", "/x?/chat/completions", False),
        ("POST", "/v1/responses", "/responses", False),
    ],
)
def test_a_post_to_the_chat_path_or_the_mount_is_chat(method: str, target: str, rest: str, is_chat: bool) -> None:
    found = find(target, method, [OPENAI])
    assert found is not None
    assert (found.url, found.is_chat) == ("https://openai.example/v1" + rest, is_chat)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/openai/deployments/d/chat/completions", "/v1"])
@pytest.mark.parametrize("query", ["", "?", "?a=1/"])
def test_a_recorded_turn_goes_up_without_the_slashes_behind_its_path(path: str, query: str) -> None:
    plain = find(path + query, "POST", [OPENAI])
    assert plain and plain.tidy is None
    for slashes in ("/", "//"):
        found = find(path + slashes + query, "POST", [OPENAI])
        assert found and found.is_chat and (found.tidy or found.url) == plain.url


@pytest.mark.parametrize(
    "climbing",
    ["..", ".", "%2e%2e", ".%2E", "%2e", "x/../y", "x%2F..%2fy", "..\\x", "x%5c..%5Cy", "chat/../../completions"],
)
def test_a_path_that_climbs_is_refused(climbing: str) -> None:
    for target in (f"/v1/{climbing}", f"/v1/{climbing}/chat/completions", f"/v1/a/{climbing}?x"):
        with pytest.raises(BadRequest):
            find(target, "POST", [OPENAI])


@pytest.mark.parametrize("target", ["", "*", "http://evil.example/v1", "evil.example:443", "v1/models"])
def test_a_target_without_a_leading_slash_is_refused(target: str) -> None:
    with pytest.raises(BadRequest):
        find(target, "GET", [OPENAI])


@given(st.text(max_size=30).map(lambda rest: "/v1" + rest), st.sampled_from(["GET", "POST"]))
def test_no_request_reaches_another_host_or_leaves_the_base_path(target: str, method: str) -> None:
    try:
        found = find(target, method, [OPENAI])
    except BadRequest:
        return
    assert found is None or found.url == OPENAI.base_url or found.url[len(OPENAI.base_url)] in "/?"
    assert found is None or found.url.startswith(OPENAI.base_url)
