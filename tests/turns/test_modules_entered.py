"""How many modules one recorded turn enters: what a reader has to open to follow it. The number may fall, not grow."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import proxy
from proxy.stores.cache import CachedStore
from proxy.stores.sqlite.store import SQLiteStore
from tests.support.fakes import ScriptedUpstream, completion, eventually, sse
from tests.support.serving import Serve
from tests.support.talk import ask, user

TTL = 24 * 3600 * 1000
PACKAGE = Path(proxy.__file__).parent
# On the thread of the loop: the store's own thread is not counted.
ENTERED = {"json": 57, "stream": 54}


@contextmanager
def watched(entered: set[str]) -> Iterator[None]:
    """Note the modules of ours that functions are called in, but for those that only build a class or a lambda."""

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(str(PACKAGE)):
            entered.add(Path(frame.f_code.co_filename).relative_to(PACKAGE).as_posix())

    sys.setprofile(note)
    try:
        yield
    finally:
        sys.setprofile(None)


@pytest.mark.parametrize("kind", ENTERED)
async def test_a_warm_recorded_turn_enters_no_more_modules_than_it_did(serve: Serve, tmp_path: Path, kind: str) -> None:
    store = CachedStore(await SQLiteStore.open(tmp_path / "sessions.db", TTL), TTL, 16 << 20)

    answer = completion("fine") if kind == "json" else sse(*"abcdefgh")
    async with ScriptedUpstream(lambda request: answer) as upstream:
        running = await serve(upstream.base_url, store=store)
        entered: set[str] = set()
        for n in range(3):
            assert (await ask(running.port, [user(str(n))], stream=kind == "stream")).status == 200
        with watched(entered):
            assert (await ask(running.port, [user("now")], stream=kind == "stream")).status == 200
            await eventually(lambda: not running.runtime.registry.in_use)
    await store.close()
    assert len(entered) <= ENTERED[kind]
