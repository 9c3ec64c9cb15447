"""Calls that are cut, and what else of a reply goes back, through the real application and sockets."""

from __future__ import annotations

import json
from typing import Any

import pytest

from proxy.core.model import TurnState
from tests.support.fakes import Reply, ScriptedUpstream, completion, error, sse
from tests.support.serving import Serve
from tests.support.strict import problems
from tests.support.talk import Json, ask, assistant, calling, history, result, user

PROFILES = ["echo", "openai", "openrouter", "mistral", "vllm", "gemini"]
PIECE = {"index": 0, "id": "c1", "type": "function"}


def torn(*pieces: Json, text: str = "", finish: str | None = "length", end: str = "clean") -> Reply:
    deltas: list[Json] = [{"role": "assistant", "content": text}, *[{"tool_calls": [each]} for each in pieces]]
    choices: list[Json] = [{"index": 0, "delta": delta} for delta in deltas]
    if finish:
        choices.append({"index": 0, "delta": {}, "finish_reason": finish})
    events = [b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n" for choice in choices]
    return Reply(
        headers=[("Content-Type", "text/event-stream")],
        pieces=[*events, *([b"data: [DONE]\n\n"] if end == "clean" else [])],
        end=end,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize(
    "reply",
    [
        torn({**PIECE, "function": {"name": "look", "arguments": '{"at'}}, text="so"),
        torn({**PIECE, "function": {"name": "look", "arguments": ""}}, text="so", finish=None, end="rst"),
        torn({**PIECE, "function": {"name": "look", "arguments": '{"at'}}, text="so", finish=None, end="fin"),
        torn(PIECE, text="so", finish="tool_calls"),
    ],
    ids=["within-arguments", "before-arguments", "no-end", "before-its-name"],
)
async def test_the_result_of_an_incomplete_tool_call_is_accepted_and_stored(
    serve: Serve, reply: Reply, profile: str
) -> None:
    async with ScriptedUpstream([reply, completion("a2"), completion("a3")]) as upstream:
        proxy = await serve(upstream.base_url, upstream={"profile": profile})
        await ask(proxy.port, [user("u1")], stream=True)
        answers = [await ask(proxy.port, [result("c1")]), await ask(proxy.port, [user("u3")])]
        received = [request.messages for request in upstream.requests]
    assert [answer.status for answer in answers] == [200, 200]
    for request, messages in zip(upstream.requests[1:], received[1:], strict=True):
        assert [each["content"] for each in messages if each["role"] == "tool"] == ["result of c1"]
        assert problems(request.body, profile) == []
    assert received[2][: len(received[1])] == received[1]


async def test_a_broken_reply_of_a_tool_call_alone_is_recorded_as_interrupted(serve: Serve) -> None:
    begun = {**PIECE, "function": {"name": "look", "arguments": '{"at'}}
    for reply, kept in ((torn(begun, finish=None, end="rst"), 1), (torn(finish=None, end="rst"), 0)):
        async with ScriptedUpstream([reply]) as upstream:
            proxy = await serve(upstream.base_url)
            await ask(proxy.port, [user("u1")], stream=True)
            assert [turn.state for turn in (await history(proxy)).turns] == [TurnState.INTERRUPTED] * kept


async def test_null_content_beside_tool_calls_is_sent_as_empty_once_refused(serve: Serve) -> None:
    refusal = error(400, {"error": {"message": "Invalid value for 'content': expected a string, got null."}})
    said = [completion("", message=calling("c1")), refusal, completion("", message=calling("c2")), completion("a3")]
    async with ScriptedUpstream(said) as upstream:
        proxy = await serve(upstream.base_url)
        asked: list[list[Any]] = [[user("u1")], [result("c1")], [result("c2")]]
        answers = [await ask(proxy.port, each) for each in asked]
        received = [request.messages for request in upstream.requests]
    assert [answer.status for answer in answers] == [200, 200, 200]
    contents = [[each["content"] for each in messages if each["role"] == "assistant"] for messages in received]
    assert contents == [[], [None], [""], ["", ""]]


async def test_a_reply_of_images_alone_is_recorded(serve: Serve) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    drew = [completion("", message={"images": [image]}), sse({"images": [{**image, "index": 0}]}), completion("blue")]
    async with ScriptedUpstream(drew) as upstream:
        proxy = await serve(upstream.base_url)
        for n in range(3):
            await ask(proxy.port, [user(f"u{n}")], stream=n == 1)
        received, drawn = upstream.requests[-1].messages, assistant("", images=[image])
    assert received == [user("u0"), drawn, user("u1"), drawn, user("u2")]
