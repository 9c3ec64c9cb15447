"""A conversation longer than a real model's context, to its end: `make bench ARGS=--long` is the same with more turns,
and beside what most do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import long
from bench.machine import CannotStart
from tests.support.process import Proxy

TURNS = 60


@pytest.fixture(scope="module")
def model() -> Iterator[int]:
    try:
        with long.model() as port:
            yield port
    except CannotStart as why:
        pytest.skip(str(why))


async def test_a_long_conversation_never_fails_and_keeps_its_prefix(
    model: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with long.tap(model) as (port, seen):
        settings = {"upstreams": [{"base_url": f"http://127.0.0.1:{port}/v1", "profile": "llamacpp"}]}
        async with Proxy("", tmp_path, settings) as proxy:
            statuses = long.talk(proxy.port, TURNS)
    with capsys.disabled():
        print(f"\n{long.HEAD}\n{long.report('the proxy', seen, statuses)}")
    assert statuses == [200] * TURNS
    assert 1 <= seen.refused <= 1 + TURNS // 8  # the limit was learned by it, and is tried now and then
    assert max([usage["prompt_tokens"] for usage in seen.usages]) <= long.CONTEXT
    kept = seen.unchanged
    first = kept.index(False)
    assert sum(kept[first + 1 :]) >= 0.9 * len(kept[first + 1 :])
    assert seen.cached > 0.8
