"""Clients that send again what is stored, each with a habit of its own, over many turns: nothing is lost, nothing
goes twice, our originals go upstream, and the database grows with what is new."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.support.fakes import Received, Reply, ScriptedUpstream, completion
from tests.support.serving import Serve
from tests.support.talk import (
    Json,
    ask,
    assistant,
    bytes_kept,
    calling,
    contents,
    history,
    old_part,
    result,
    sent,
    system,
    user,
    warm_store,
)

TURNS = 100
NOTE = "Stay in character. " * 20
PREFILL = "Sure, "
PADDING = " and so on" * 20  # beside it the numbers of turns and places take no room


def question(turn: int) -> Json:
    return user(f"question {turn}{PADDING}")


def thought(turn: int) -> list[Json]:
    """Reasoning that only its signature makes worth sending back."""
    return [
        {
            "type": "reasoning.text",
            "text": f"thought {turn}",
            "signature": f"signature {turn}",
            "format": None,
            "index": 0,
        }
    ]


def reasoning(request: Received) -> Reply:
    """The answer of an upstream that counts the questions in a request, and thinks."""
    turn = sum(1 for message in request.messages if "question" in str(message["content"]))
    said = {"reasoning": f"thought {turn}", "reasoning_details": thought(turn)}
    return completion(f"answer {turn}{PADDING}", message=said)


def kept(reply: Json) -> Json:
    """What most clients keep of a reply."""
    return assistant(reply["content"])


def joined(reply: Json) -> Json:
    """What a client keeps that shows its prefill and the reply as one message."""
    return assistant(PREFILL + reply["content"])


# What a client puts behind the user's message without keeping it, what it keeps of the reply, and how its lists
# read from the second turn on.
INJECTED: list[Any] = [
    pytest.param(system(NOTE), kept, "rewrite", id="system-note"),
    pytest.param(user(NOTE), kept, "rewrite", id="user-note"),
    pytest.param(assistant(PREFILL), kept, "rewrite", id="prefill"),
    pytest.param(assistant(PREFILL), joined, "resend", id="prefill-joined"),
]


@pytest.mark.parametrize(("injected", "keep", "decision"), INJECTED)
async def test_a_message_injected_after_the_users_is_recognised_each_turn(
    serve: Serve, tmp_path: Path, injected: Json, keep: Callable[[Json], Json], decision: str
) -> None:
    shown, grown = list[Json](), [0]
    async with warm_store(tmp_path) as store, ScriptedUpstream(reasoning) as upstream:
        proxy = await serve(upstream.base_url, store=store, upstream={"profile": "openrouter"})
        for turn in range(1, TURNS + 1):
            answer = await ask(proxy.port, [system("You are a pirate."), *shown, question(turn), injected])
            assert answer.decision == ("append" if turn == 1 else decision)
            shown += [question(turn), keep(answer.message)]
            if turn % 50 == 0:
                grown.append(bytes_kept(tmp_path))
        for turn, request in enumerate(upstream.requests, 1):
            questions = [message for message in request.messages if "question" in str(message["content"])]
            assert questions == [question(n) for n in range(1, turn + 1)]
            answers = [message for message in request.messages if "reasoning_details" in message]
            assert answers == [assistant(f"answer {n}{PADDING}", **said(n)) for n in range(1, turn)]
            assert request.messages[-1] == injected and request.messages[0] == system("You are a pirate.")
        injections = [message for message in upstream.requests[-1].messages if message == injected]
        assert len(injections) == (TURNS if keep is joined else 1)
        stored = await history(proxy)
        assert sum(len(turn.asked) for turn in stored.turns) == 2 * TURNS
    assert_linear(grown)


def said(turn: int) -> Json:
    return {"reasoning": f"thought {turn}", "reasoning_details": thought(turn)}


def assert_linear(grown: list[int]) -> None:
    """Given the size after equal numbers of turns: each part of the way cost as much as the one before."""
    steps = [after - before for before, after in pairwise(grown)]
    assert max(steps) < 1.1 * min(steps)


async def test_examples_before_each_message_go_upstream_once(serve: Serve, tmp_path: Path) -> None:
    examples = [user("2+2?"), assistant("4"), user("3+3?"), assistant("6")]
    grown = [0]
    async with warm_store(tmp_path) as store, ScriptedUpstream(reasoning) as upstream:
        proxy = await serve(upstream.base_url, store=store)
        for turn in range(1, 41):
            answer = await ask(proxy.port, [system("Calculate."), *examples, question(turn)])
            assert answer.decision == ("adopt" if turn == 1 else "append")
            if turn % 20 == 0:
                grown.append(bytes_kept(tmp_path))
        for turn, request in enumerate(upstream.requests, 1):
            expected = [system("Calculate.")["content"], *[each["content"] for each in examples]]
            for n in range(1, turn):
                expected += [question(n)["content"], f"answer {n}{PADDING}"]
            assert [message["content"] for message in request.messages] == [*expected, question(turn)["content"]]
    assert_linear(grown)


async def test_a_one_message_client_with_a_tool_loop_of_its_own(serve: Serve) -> None:
    """It keeps no history, but within a turn it sends its message, the calls and their results again."""
    script = [
        completion("hello"),
        completion(None, message=calling("c1", "c2"), finish="tool_calls"),
        completion(None, message=calling("c3"), finish="tool_calls"),
        completion("found"),
        completion("bye"),
    ]
    first, second = [user("u1"), assistant("hello")], [user("u2"), calling("c1", "c2"), result("c1"), result("c2")]
    third = [calling("c3"), result("c3")]
    sends: list[tuple[list[Json], str, list[Json]]] = [
        ([user("u1")], "append", [user("u1")]),
        ([user("u2")], "append", [*first, user("u2")]),
        (second, "resend", [*first, *second]),
        ([*second, *third], "resend", [*first, *second, *third]),
        ([user("u3")], "append", [*first, *second, *third, assistant("found"), user("u3")]),
    ]
    async with ScriptedUpstream(script) as upstream:
        proxy = await serve(upstream.base_url)
        for messages, decision, received in sends:
            answer = await ask(proxy.port, messages)
            assert (answer.status, answer.decision) == (200, decision)
            assert upstream.requests[-1].messages == received


def picture(data: str) -> Json:
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
    return user([{"type": "text", "text": "What is this?"}, image])


async def test_the_same_text_with_another_image_is_another_message(serve: Serve) -> None:
    async with ScriptedUpstream() as upstream:
        proxy = await serve(upstream.base_url)
        await ask(proxy.port, [picture("AAAA")], session="one message")
        await ask(proxy.port, [picture("BBBB")], session="one message")
        assert upstream.requests[-1].messages == [picture("AAAA"), assistant("answer 1"), picture("BBBB")]
        shown = [user("hi"), assistant("answer 3")]
        await ask(proxy.port, shown[:1])
        await ask(proxy.port, [*shown, picture("AAAA")])
        # Its first image goes as it came, then the user takes another one instead.
        again = await ask(proxy.port, [*shown, picture("AAAA"), assistant("answer 4"), user("and?")])
        edited = await ask(proxy.port, [*shown, picture("BBBB"), assistant("answer 4"), user("and?")])
        assert (again.decision, edited.decision) == ("resend", "rewrite")
        assert [request.messages[2] for request in upstream.requests[-2:]] == [picture("AAAA"), picture("BBBB")]


def rewritten(turn: int, message: Json) -> Json:
    """Each message as one text part, or as a string, by turns, with its keys in another order; and no reasoning."""
    text = message["content"]
    content = [{"text": text, "type": "text"}] if turn % 2 else f"{text}\n"
    return {"content": content, "role": message["role"]}


@pytest.mark.parametrize("rewrites", [False, True], ids=["as-it-was", "rewritten-each-time"])
async def test_two_hundred_turns_of_a_client_that_resends_everything(
    serve: Serve, tmp_path: Path, rewrites: bool
) -> None:
    shown, grown = list[Json](), [0]
    async with warm_store(tmp_path) as store, ScriptedUpstream(reasoning) as upstream:
        proxy = await serve(upstream.base_url, store=store)
        for turn in range(1, 2 * TURNS + 1):
            old = [rewritten(turn, message) if rewrites else message for message in shown]
            answer = await ask(proxy.port, [system("Be brief."), *old, question(turn)])
            assert answer.decision == ("append" if turn == 1 else "resend")
            shown += [question(turn), kept(answer.message)]
            if turn % 50 == 0:
                grown.append(bytes_kept(tmp_path))
        for earlier, later in pairwise(upstream.requests):
            assert later.body.startswith(old_part(earlier))
            assert len(sent(later)) == len(sent(earlier)) + 2
            assert json.loads(sent(later)[-2])["reasoning_details"] == thought(len(sent(later)) // 2)
        assert contents(await history(proxy)) == [message["content"] for message in shown]
    assert_linear(grown)
