"""A title beside a chat, under the chat's session ID: forwarded as sent, never in line, never in the history."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.support.fakes import Received, Reply, ScriptedUpstream, completion, eventually
from tests.support.serving import RunningProxy, Serve
from tests.support.talk import Answer, Json, ask, assistant, contents, history, system, tell, user

NAMER = "Name the conversation in three words."
# Its spaces, its escapes and the order of its members are the client's.
TITLE = json.dumps(
    {
        "messages": [system(NAMER), user("The user wrote: \u00abquestion 1\u00bb")],
        "max_tokens": 12,
        "model": "small",
        "temperature": 1.0,
    },
    indent=1,
).encode()


def lists(turn: int) -> list[Json]:
    """What a client that resends everything sends in that turn."""
    shown = [system("Be brief.")]
    for earlier in range(1, turn):
        shown += [user(f"question {earlier}"), assistant(f"answer {earlier}")]
    return [*shown, user(f"question {turn}")]


class Upstream:
    """Answers titles at once, and questions too unless they are `held`."""

    def __init__(self) -> None:
        self.held = asyncio.Event()
        self.held.set()

    async def __call__(self, request: Received) -> Reply:
        if request.messages[0] == system(NAMER):
            return completion("Three little words")
        await self.held.wait()
        return completion(request.messages[-1]["content"].replace("question", "answer"))


@asynccontextmanager
async def chat(serve: Serve, turns: int) -> AsyncIterator[tuple[RunningProxy, ScriptedUpstream, Upstream]]:
    """A chat after some turns of a client that resends everything."""
    script = Upstream()
    async with ScriptedUpstream(script) as upstream:
        proxy = await serve(upstream.base_url)
        for turn in range(1, turns + 1):
            await ask(proxy.port, lists(turn))
        yield proxy, upstream, script


def assert_aside(answer: Answer, received: Received) -> None:
    assert (answer.status, answer.decision) == (200, "aside")
    assert answer.message["content"] == "Three little words"
    assert received.body == TITLE


@pytest.mark.parametrize("turns", [0, 1, 2, 3], ids=lambda turns: f"turn-{turns + 1}")
async def test_a_title_runs_concurrently_with_a_turn(serve: Serve, turns: int) -> None:
    async with chat(serve, turns) as (proxy, upstream, script):
        script.held.clear()
        async with asyncio.TaskGroup() as group:
            main = group.create_task(ask(proxy.port, lists(turns + 1)))
            await eventually(lambda: len(upstream.requests) == turns + 1)
            title = group.create_task(tell(proxy.port, TITLE))
            done, _ = await asyncio.wait([title], timeout=3)
            answered_beside = bool(done) and not main.done()
            script.held.set()
        assert answered_beside
        assert_aside(title.result(), upstream.requests[turns + 1])
        assert main.result().decision == ("resend" if turns else "append")
        await assert_the_chat_goes_on(proxy, upstream, turns + 2)


@pytest.mark.parametrize("turns", [2, 3])
async def test_a_title_after_a_turn_stays_out_of_the_history(serve: Serve, turns: int) -> None:
    async with chat(serve, turns) as (proxy, upstream, _):
        assert_aside(await tell(proxy.port, TITLE), upstream.requests[-1])
        await assert_the_chat_goes_on(proxy, upstream, turns + 1)


async def assert_the_chat_goes_on(proxy: RunningProxy, upstream: ScriptedUpstream, turn: int) -> None:
    """Neither the history nor the remembered system prompt has anything of the title."""
    kept = await history(proxy)
    assert contents(kept) == [message["content"] for message in lists(turn)[1:-1]]
    assert len([one for one in kept.turns if not one.is_side_request]) == turn - 1
    await ask(proxy.port, [user(f"question {turn}")])
    assert upstream.requests[-1].messages == lists(turn)


async def test_a_title_does_not_wait_in_the_queue(serve: Serve) -> None:
    """What waits for the turn in flight does not keep the title waiting."""
    async with chat(serve, 2) as (proxy, upstream, script):
        script.held.clear()
        async with asyncio.TaskGroup() as group:
            main = group.create_task(ask(proxy.port, [user("question 3")]))
            await eventually(lambda: len(upstream.requests) == 3)
            waiting = group.create_task(ask(proxy.port, [user("question 4")]))
            title = await asyncio.wait_for(tell(proxy.port, TITLE), 3)
            assert not main.done() and not waiting.done()
            script.held.set()
        assert_aside(title, upstream.requests[3])
        assert upstream.requests[-1].messages == lists(4)
        await assert_the_chat_goes_on(proxy, upstream, 5)


@pytest.mark.parametrize(
    "changed",
    [
        {"model": "another"},
        {"temperature": 0},
        {"tools": [{"type": "function", "function": {"name": "look"}}]},
        {"model": "another", "stream": False, "tools": []},
    ],
    ids=lambda changed: "-".join(changed),
)
async def test_regenerating_with_another_model_or_other_tools_is_a_rewrite(serve: Serve, changed: Json) -> None:
    async with chat(serve, 3) as (proxy, upstream, _):
        before = await history(proxy)
        answer = await ask(proxy.port, lists(3), **changed)
        after = await history(proxy)
        assert answer.decision == "rewrite"
        assert upstream.requests[-1].messages == lists(3)
    # A branch beside the answer that was not wanted; the question is stored once.
    assert after.turns[:-1] == before.turns and after.turns[-1].asked == ()
    assert contents(after) == contents(before)
