"""Whose sessions a request reaches: by key, by client, by the header of a front."""

from __future__ import annotations

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from proxy.config.model import Config
from proxy.context import tenants
from tests.server.test_sessions_api import get
from tests.support.fakes import ScriptedUpstream, completion
from tests.support.serving import Serve
from tests.support.talk import ask, user

SECRET = b"s" * 32
HASHES = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("front", "other")}
CLIENTS = [{"name": name, "key_hashes": [digest]} for name, digest in HASHES.items()]
FRONT = {"clients": CLIENTS, "tenant": {"header": "x-user"}}


async def test_users_of_one_front_share_no_sessions(serve: Serve) -> None:
    async with ScriptedUpstream(lambda request: completion("well")) as upstream:
        proxy = await serve(upstream.base_url, upstream={"api_key": "ours"}, **FRONT)
        key = ("Authorization", "Bearer front")
        for name in ("alice", "bob", "alice"):
            await ask(proxy.port, [user(f"I am {name}")], headers=[key, ("x-user", name)])
        counts = [len(request.messages) for request in upstream.requests]
        shown = await get(proxy.port, "/sessions/s1/messages", [key, ("X-User", "bob")])
    assert counts == [1, 1, 3]
    assert "alice" not in json.dumps(shown)


def of(config: Config, *pairs: tuple[str, str]) -> bytes:
    return tenants.tenant(config, CIMultiDict(pairs), SECRET)


NAMES = st.one_of(st.none(), st.sampled_from(["", "front", "other", "alice", "client"]), st.text(max_size=5))


@given(st.lists(st.tuples(st.sampled_from(["front", "other", "stranger"]), NAMES), min_size=2, max_size=2))
def test_two_callers_share_a_tenant_only_where_key_and_header_are_the_same(
    callers: list[tuple[str, str | None]],
) -> None:
    config = Config.model_validate(FRONT)
    sent = [
        [("Authorization", f"Bearer {key}"), *([("x-user", name)] if name is not None else [])] for key, name in callers
    ]
    first, second = [of(config, *pairs) for pairs in sent]
    strangers = {key for key, _ in callers} == {"stranger"}
    assert (first == second) == (callers[0] == callers[1] or (strangers and callers[0][1] == callers[1][1]))


@pytest.mark.parametrize("rule", ["credential", "one", {"header": "x-user"}])
def test_a_client_without_a_users_name_is_a_tenant_of_its_own(rule: object) -> None:
    front, other = [of(Config.model_validate({"clients": CLIENTS, "tenant": rule}), ("api-key", key)) for key in HASHES]
    plain = of(Config.model_validate({"clients": CLIENTS}), ("api-key", "front"))
    assert front == plain != other
