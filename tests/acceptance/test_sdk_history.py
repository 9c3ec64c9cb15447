"""The official SDK for Python with a history: calls of tools, calls left alone, messages changed; the proxy as a
process, in front of an upstream as strict as OpenAI's."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.support.fakes import Received, Reply, ScriptedUpstream, completion, error, sse
from tests.support.process import Proxy
from tests.support.strict import problems

TOOLS: Any = [
    {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}},
]
PLACES = {"call_paris": "Paris", "call_oslo": "Oslo"}
CALLS = [
    {"id": id, "type": "function", "function": {"name": "weather", "arguments": json.dumps({"place": place})}}
    for id, place in PLACES.items()
]


def strict(request: Received) -> Reply:
    """Calls two tools at once when asked for the weather, else says how much it was told; refuses what OpenAI would."""
    if found := problems(request.body, "openai"):
        return error(400, {"error": {"message": "; ".join(found)}})
    last, streams = request.messages[-1], request.json.get("stream") is True
    if last["role"] == "user" and "weather" in last["content"]:
        deltas = [{"tool_calls": [{"index": n, **call}]} for n, call in enumerate(CALLS)]
        message = {"tool_calls": CALLS}
        return sse(*deltas, finish="tool_calls") if streams else completion(None, message=message, finish="tool_calls")
    text = f"{len(request.messages)} messages, the last says {last['content']}"
    return sse(*text.partition(",")) if streams else completion(text)


class Chat:
    """A session through the SDK."""

    def __init__(self, client: openai.AsyncOpenAI, upstream: ScriptedUpstream, stream: bool) -> None:
        self.client, self.upstream, self.stream = client, upstream, stream
        self.decision: str | None = None

    @property
    def received(self) -> list[Any]:
        return self.upstream.requests[-1].messages

    async def say(self, *messages: Any) -> Any:
        """The reply's message, as the SDK gives it."""
        asked: Any = {"model": "gpt-4o", "messages": list(messages), "tools": TOOLS}
        if self.stream:
            async with self.client.chat.completions.stream(**asked) as events:
                self.decision = events._response.headers["x-session-decision"]
                return (await events.get_final_completion()).choices[0].message
        raw = await self.client.chat.completions.with_raw_response.create(**asked)
        self.decision = raw.headers["x-session-decision"]
        return raw.parse().choices[0].message


@asynccontextmanager
async def chatting(folder: Path, stream: bool) -> AsyncIterator[Chat]:
    async with ScriptedUpstream(strict) as upstream:
        settings = {"upstreams": [{"base_url": upstream.base_url, "profile": "openai"}]}
        async with (
            Proxy(upstream.base_url, folder, settings) as proxy,
            openai.AsyncOpenAI(
                base_url=proxy.base_url, api_key="k", default_headers={"sessionId": "s"}, max_retries=0
            ) as client,
        ):
            yield Chat(client, upstream, stream)


def user(text: str) -> Any:
    return {"role": "user", "content": text}


def results(message: Any) -> list[Any]:
    """What a program's tools give for the calls of a reply."""
    return [
        {"role": "tool", "tool_call_id": call.id, "content": f"sun in {place(call)}"} for call in message.tool_calls
    ]


def place(call: Any) -> str:
    return str(json.loads(call.function.arguments)["place"])


RESULTS = [{"role": "tool", "tool_call_id": id, "content": f"sun in {place}"} for id, place in PLACES.items()]
SAID = [user("How is the weather?"), {"role": "assistant", "content": None, "tool_calls": CALLS}]


def plain(messages: list[Any]) -> list[Any]:
    """Messages without an empty content beside calls, which may be there or not."""
    return [{name: value for name, value in each.items() if name != "content" or value} for each in messages]


pytestmark = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])


@pytest.mark.parametrize("resends", [False, True], ids=["new-messages-only", "full-lists"])
async def test_the_sdk_runs_a_tool_loop_with_two_calls_at_once(tmp_path: Path, resends: bool, stream: bool) -> None:
    shown = [user("How is the weather?")]
    async with chatting(tmp_path, stream) as chat:
        called = await chat.say(*shown)
        assert [place(call) for call in called.tool_calls] == ["Paris", "Oslo"]
        shown += [called, *results(called)]
        told = await chat.say(*(shown if resends else results(called)))
        assert chat.decision == ("resend" if resends else "append")
        assert plain(chat.received) == plain([*SAID, *RESULTS])
        assert told.content == "4 messages, the last says sun in Oslo"
        shown += [told, user("Thanks")]
        thanked = await chat.say(*(shown if resends else shown[-1:]))
        assert chat.decision == ("resend" if resends else "append")
        assert thanked.content == "6 messages, the last says Thanks"


async def test_a_session_left_inside_a_tool_call_goes_on_with_a_plain_question(tmp_path: Path, stream: bool) -> None:
    async with chatting(tmp_path, stream) as chat:
        await chat.say(user("How is the weather?"))
        asked = await chat.say(user("Never mind. Who are you?"))  # the upstream would have refused an open call
        assert "Who are you?" in asked.content
        assert plain(chat.received[:2]) == plain(SAID)
        assert [each.get("tool_call_id") for each in chat.received[2:]] == [*PLACES, None]
        # One of the results comes after all, and takes the place of what stood in for it.
        await chat.say(RESULTS[1], user("And now?"))
        assert [each["content"] for each in chat.received if each["role"] == "tool"][1] == "sun in Oslo"
        assert [each["role"] for each in chat.received] == ["user", "assistant", "tool", "tool", *TAIL]
        assert not problems(chat.upstream.requests[-1].body, "openai")


TAIL = ["user", "assistant", "user"]


async def test_a_session_left_between_two_results_goes_on_with_a_plain_question(tmp_path: Path, stream: bool) -> None:
    async with chatting(tmp_path, stream) as chat:
        called = await chat.say(user("How is the weather?"))
        asked = await chat.say(results(called)[0], user("Paris will do."))
        assert "Paris will do." in asked.content
        assert [each["role"] for each in chat.received] == ["user", "assistant", "tool", "tool", "user"]
        assert chat.received[2] == RESULTS[0]


async def test_a_history_edited_in_the_middle_is_a_rewrite(tmp_path: Path, stream: bool) -> None:
    shown: list[Any] = []
    async with chatting(tmp_path, stream) as chat:
        for text in ("one", "two", "three", "four"):
            shown += [user(text)]
            shown += [await chat.say(*shown)]
        edited = [*shown[:2], user("2"), *shown[3:], user("five")]
        reply = await chat.say(*edited)
        assert chat.decision == "rewrite" and reply.content == "9 messages, the last says five"
        assert [each["content"] for each in chat.received[2:5:2]] == ["2", "three"]
        cut = await chat.say(*edited[:2], user("II"))
        assert chat.decision == "rewrite" and cut.content == "3 messages, the last says II"
        await chat.say(user("and on"))
        assert chat.decision == "append"
        assert [each["content"] for each in chat.received if each["role"] == "user"] == ["one", "II", "and on"]
