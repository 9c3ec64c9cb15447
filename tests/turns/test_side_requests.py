"""Side requests and several clients, through the proxy: what reaches the upstream, and what is in the history."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.support.fakes import RawClient, Received, Reply, ScriptedUpstream, completion, eventually
from tests.support.serving import RunningProxy, Serve
from tests.support.talk import Json, ask, assistant, calling, contents, history, result, system, user

TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}]


async def said(request: Received) -> Reply:
    return completion(f"the answer to: {request.messages[-1]['content']}")


async def branch(proxy: RunningProxy, name: str) -> list[Json]:
    async with RawClient(proxy.port) as client:
        await client.request("GET", f"/sessions/s1/messages?branch={name}")
        head = await client.head()
        shown: dict[str, Any] = json.loads(await client.body())
        assert head.status == 200
        return [entry["message"] for entry in shown["data"]]


async def test_a_side_request_is_kept_on_a_branch_of_its_own(serve: Serve) -> None:
    async with ScriptedUpstream(said) as upstream:
        proxy = await serve(upstream.base_url)
        await ask(proxy.port, [user("hello there")], tools=TOOLS)
        quote = user("Name this chat: the answer to: hello there")
        chat = [user("hello there"), assistant("the answer to: hello there"), user("and now?")]
        await ask(proxy.port, chat, tools=TOOLS)
        answer = await ask(proxy.port, [system("You name chats."), quote])
        assert answer.decision == "aside"
        assert upstream.requests[-1].messages == [system("You name chats."), quote]
        assert contents(await history(proxy))[:3] == [each["content"] for each in chat]
        side = await branch(proxy, "side")
        main = await branch(proxy, "main")
    assert [each["content"] for each in side] == [
        "You name chats.",
        quote["content"],
        f"the answer to: {quote['content']}",
    ]
    assert [each["content"] for each in main] == [*[each["content"] for each in chat], "the answer to: and now?"]


async def test_a_list_that_continues_a_side_request_moves_it_to_the_history(serve: Serve) -> None:
    async with ScriptedUpstream(said) as upstream:
        proxy = await serve(upstream.base_url)
        await ask(proxy.port, [system("You bake."), user("one")], tools=TOOLS)
        first = [user("one"), assistant("the answer to: one"), user("two")]
        answer = await ask(proxy.port, [system("You cook."), *first])
        assert (answer.decision, len(await branch(proxy, "side"))) == ("aside", 3)
        more = [*first, assistant("the answer to: two"), user("three")]
        answer = await ask(proxy.port, [system("You cook."), *more])
        assert (answer.decision, await branch(proxy, "side")) == ("resend", [])
        assert [each["content"] for each in await branch(proxy, "main")][:5] == [each["content"] for each in more]


async def test_an_unknown_branch_parameter_is_refused(serve: Serve) -> None:
    async with ScriptedUpstream(said) as upstream:
        proxy = await serve(upstream.base_url)
        await ask(proxy.port, [user("hello")])
        async with RawClient(proxy.port) as client:
            await client.request("GET", "/sessions/s1/messages?branch=other")
            assert (await client.head()).status == 400
            assert json.loads(await client.body())["error"]["param"] == "branch"


class Held:
    """Answers a title only when it is `released`."""

    def __init__(self) -> None:
        self.released = asyncio.Event()

    async def __call__(self, request: Received) -> Reply:
        if request.messages[0]["role"] == "system" and "title" in request.messages[0]["content"]:
            await self.released.wait()
            return completion("A title")
        return await said(request)


@pytest.mark.parametrize("title_first", [True, False], ids=["title ends first", "chat ends first"])
async def test_a_title_in_flight_gives_its_queue_slot_to_the_chat(serve: Serve, title_first: bool) -> None:
    script = Held()
    async with ScriptedUpstream(script) as upstream:
        proxy = await serve(upstream.base_url)
        async with asyncio.TaskGroup() as group:
            title = group.create_task(
                ask(proxy.port, [system("Make a title."), user("For this:"), user("My bread is flat.")])
            )
            await eventually(lambda: len(upstream.requests) == 1)
            if title_first:
                script.released.set()
                await title
            chat = [system("Bake."), user("My bread is flat.")]
            answer = await ask(proxy.port, chat, tools=TOOLS)
            script.released.set()
        assert title.result().status == answer.status == 200
        assert upstream.requests[1].messages == chat
        more = [*chat, assistant("the answer to: My bread is flat."), user("Why?")]
        await ask(proxy.port, more, tools=TOOLS)
        assert upstream.requests[2].messages == more
        kept = await history(proxy)
    assert contents(kept) == [*[each["content"] for each in more[1:]], "the answer to: Why?"]


async def test_a_first_turn_tried_again_under_a_clock_is_a_retry(serve: Serve) -> None:
    held = asyncio.Event()

    async def slow(request: Received) -> Reply:
        if len(upstream.requests) == 1:
            await held.wait()
        return await said(request)

    async with ScriptedUpstream(slow) as upstream:
        proxy = await serve(upstream.base_url)
        async with RawClient(proxy.port) as gone:
            body = {"messages": [system("It is 10:00:01."), user("My name is Alice.")]}
            await gone.post("/v1/chat/completions", body, [("sessionId", "s1")])
            await eventually(lambda: len(upstream.requests) == 1)
            gone.abort()
        held.set()
        await eventually(lambda: proxy.runtime.registry.in_flight == 0)
        answer = await ask(proxy.port, [system("It is 10:00:09."), user("My name is Alice.")])
        assert answer.decision == "retry"
        await ask(proxy.port, [user("What is it?")])
        kept = await history(proxy)
    assert contents(kept)[:3] == ["My name is Alice.", "the answer to: My name is Alice.", "What is it?"]
    assert upstream.requests[2].messages[0] == system("It is 10:00:09.")


async def test_turns_of_other_software_stay(serve: Serve) -> None:
    one, other = [("User-Agent", "One/1.0")], [("User-Agent", "Other/2.0")]
    async with ScriptedUpstream(said) as upstream:
        proxy = await serve(upstream.base_url)
        await ask(proxy.port, [user("first")], headers=one)
        await ask(proxy.port, [user("between")], headers=other)
        mine = [user("first"), assistant("the answer to: first"), user("second")]
        answer = await ask(proxy.port, mine, headers=[("User-Agent", "One/1.1")])
        assert (answer.decision, upstream.requests[-1].messages) == ("resend", mine)
        await ask(proxy.port, [user("and all?")], headers=other)
    assert [each["content"] for each in upstream.requests[-1].messages] == [
        *("first", "the answer to: first", "between", "the answer to: between", "second", "the answer to: second"),
        "and all?",
    ]


class Slow:
    """Answers the request that asks for a name when it is `released`."""

    def __init__(self) -> None:
        self.released = asyncio.Event()

    async def __call__(self, request: Received) -> Reply:
        if "Name it" in request.messages[-1]["content"]:
            await self.released.wait()
            return completion("A name of some length")
        return await said(request)


@pytest.mark.parametrize("named_first", [True, False], ids=["name ends first", "chat ends first"])
@pytest.mark.parametrize("tagged", [True, False], ids=["tags before it", "alone"])
async def test_side_requests_leave_the_chat_once_its_client_resends_its_list(
    serve: Serve, named_first: bool, tagged: bool
) -> None:
    """Open WebUI: before anything was resent nothing tells its follow-ups, its title and its tags from the chat."""
    script = Slow()
    async with ScriptedUpstream(script) as upstream:
        proxy = await serve(upstream.base_url)
        await ask(proxy.port, [user("My bread is flat.")], stream=True)
        first = [user("My bread is flat."), assistant("the answer to: My bread is flat.")]
        told = "\n".join([each["content"] for each in first])
        if tagged:
            await ask(proxy.port, [user(f"Tag it:\n{told}")])
        async with asyncio.TaskGroup() as group:
            sent = len(upstream.requests)
            group.create_task(ask(proxy.port, [user(f"Name it:\n{told}")]))
            await eventually(lambda: len(upstream.requests) == sent + 1)
            more = [*first, user("Why?")]
            chat = group.create_task(ask(proxy.port, more, stream=True))
            await eventually(lambda: len(upstream.requests) == sent + 2)
            if not named_first:
                await chat
            script.released.set()
        assert upstream.requests[-1].messages == more
        kept = contents(await history(proxy))
        more = [*more, assistant("the answer to: Why?"), user("And now?")]
        await ask(proxy.port, more, stream=True)
        assert upstream.requests[-1].messages == more
        assert contents(await history(proxy)) == [*[each["content"] for each in more], "the answer to: And now?"]
    assert kept == [each["content"] for each in more[:-1]]


async def test_a_title_in_flight_leaves_a_chat_with_a_regenerated_first_answer(serve: Serve) -> None:
    script = Slow()
    async with ScriptedUpstream(script) as upstream:
        proxy = await serve(upstream.base_url)
        await ask(proxy.port, [user("My bread is flat.")], stream=True)
        first = [user("My bread is flat."), assistant("the answer to: My bread is flat.")]
        told = "\n".join([each["content"] for each in first])
        await ask(proxy.port, [user(f"Tag it:\n{told}")])
        upstream.script = lambda request: completion("Knead it for longer.")
        await ask(proxy.port, first[:1], stream=True)
        upstream.script = script
        async with asyncio.TaskGroup() as group:
            group.create_task(ask(proxy.port, [user(f"Name it:\n{told}\nKnead it for longer.")]))
            await eventually(lambda: len(upstream.requests) == 4)
            more = [first[0], assistant("Knead it for longer."), user("Why?")]
            await ask(proxy.port, more, stream=True)
            script.released.set()
        assert upstream.requests[-1].messages == more
        kept = contents(await history(proxy))
    assert kept == ["My bread is flat.", "Knead it for longer.", "Why?", "the answer to: Why?"]


async def test_an_unrecognised_side_request_stays_in_the_history(serve: Serve) -> None:
    script = Slow()
    async with ScriptedUpstream(script) as upstream:
        proxy = await serve(upstream.base_url)
        await ask(proxy.port, [user("My bread is flat.")])
        async with asyncio.TaskGroup() as group:
            group.create_task(ask(proxy.port, [user("Name it")]))
            await eventually(lambda: len(upstream.requests) == 2)
            first = [user("My bread is flat."), assistant("the answer to: My bread is flat."), user("Why?")]
            await ask(proxy.port, first)
            script.released.set()
        kept = contents(await history(proxy))
    assert kept == [*[each["content"] for each in first], "the answer to: Why?", "Name it", "A name of some length"]


@pytest.mark.parametrize("first", ["one", "other"])
async def test_two_models_asked_at_once_do_not_see_each_other(serve: Serve, first: str) -> None:
    """A chat application that shows the answers of two models side by side."""
    free = {"one": asyncio.Event(), "other": asyncio.Event()}

    async def of_both(request: Received) -> Reply:
        model = request.json["model"]
        if len(request.messages) == 1:
            await free[model].wait()
        return completion(f"{model} {len(request.messages)}")

    async with ScriptedUpstream(of_both) as upstream:
        proxy = await serve(upstream.base_url)
        async with asyncio.TaskGroup() as group:
            asked = {
                model: group.create_task(ask(proxy.port, [user("Why?")], model=model)) for model in ("one", "other")
            }
            await eventually(lambda: len(upstream.requests) == 2)
            free[first].set()
            await asked[first]
            for event in free.values():
                event.set()
        for model in ("one", "other"):
            assert asked[model].result().message == assistant(f"{model} 1")
            more = [user("Why?"), assistant(f"{model} 1"), user("And then?")]
            await ask(proxy.port, more, model=model)
            assert upstream.requests[-1].messages == more
            kept = contents(await history(proxy))
            assert kept == [*[each["content"] for each in more], f"{model} 3"]
    assert [request.messages for request in upstream.requests[:2]] == [[user("Why?")]] * 2


async def test_the_same_question_to_another_model_afterwards_follows_the_first(serve: Serve) -> None:
    async with ScriptedUpstream() as upstream:
        proxy = await serve(upstream.base_url)
        await ask(proxy.port, [user("Why?")], model="one")
        await ask(proxy.port, [user("Why?")], model="other")
    assert len(upstream.requests[-1].messages) == 3


async def test_a_tool_result_is_accepted_when_its_call_is_on_another_branch(serve: Serve) -> None:
    """Two programs with one library between them, in one session: they look like one client."""

    async def calls_once(request: Received) -> Reply:
        if request.messages[-1]["content"] == "Look.":
            return Reply(
                headers=[("Content-Type", "application/json")],
                pieces=[json.dumps({"choices": [{"message": calling("c1"), "finish_reason": "tool_calls"}]}).encode()],
                framing="length",
            )
        return await said(request)

    async with ScriptedUpstream(calls_once) as upstream:
        proxy = await serve(upstream.base_url)
        await ask(proxy.port, [user("one")])
        await ask(proxy.port, [user("Look.")], tools=TOOLS)
        await ask(proxy.port, [user("one"), assistant("the answer to: one"), user("two")])
        answer = await ask(proxy.port, [result("c1")], tools=TOOLS)
        assert answer.status == 200
        assert [each["role"] for each in upstream.requests[-1].messages] == [
            *("user", "assistant", "user", "assistant", "tool")
        ]
        refused = await ask(proxy.port, [result("c7")], tools=TOOLS)
    assert refused.error["code"] == "invalid_request"
