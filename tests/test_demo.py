"""The demo upstream: its answers as a pure function, its application over real sockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from proxy import demo
from tests.support.fakes import RawClient

CHAT = "/v1/chat/completions"


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


@pytest.mark.parametrize(
    ("told", "name"),
    [
        ("My name is Alice", "Alice"),
        ("my NAME is alice.", "alice"),
        ("  My name is Mary Ann O'Neil!! \n", "Mary Ann O'Neil"),
        ("My name is Dr. Zoë", "Dr. Zoë"),
    ],
)
def test_a_name_is_greeted_and_known_later(told: str, name: str) -> None:
    assert demo.answer([user(told)]) == f"Nice to meet you, {name}."
    assert demo.answer([user(told), user("What's my name?")]) == f"Your name is {name}."


@pytest.mark.parametrize(
    "asked",
    ["What's my name?", "what\u2019s my name", "WHAT IS MY NAME?", " What is my name ? ", "What is my name"],
)
def test_the_name_is_known_only_from_the_messages(asked: str) -> None:
    assert demo.answer([user("My name is Alice"), user(asked)]) == "Your name is Alice."
    assert demo.answer([user(asked)]) == "I don't have that information."


def test_the_newest_name_counts_and_only_from_users() -> None:
    told = [
        user("My name is Alice"),
        user("My name is Bob"),
        {"role": "assistant", "content": "My name is Eve"},
    ]
    assert demo.answer([*told, user("What's my name?")]) == "Your name is Bob."


def test_a_reply_after_the_question_does_not_hide_it() -> None:
    messages = [user("My name is Alice"), user("What's my name?"), {"role": "tool", "content": "x"}]
    assert demo.answer(messages) == "Your name is Alice."


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([], "I was sent 0 messages."),
        ([{"role": "system", "content": "s"}], "I was sent 1 message."),
        ([user("hello")], 'I was sent 1 message. The oldest says: "hello".'),
        (
            [{"role": "developer", "content": "d"}, {"role": "system", "content": "s"}, user("hello")],
            'I was sent 3 messages. The oldest says: "hello".',
        ),
        ([user("My name is"), user("x")], 'I was sent 2 messages. The oldest says: "My name is".'),
        ([user("My name is ???")], 'I was sent 1 message. The oldest says: "My name is ???".'),
        ([user(None), user("x")], "I was sent 2 messages. The oldest has no text."),
        (
            [user([{"type": "image_url", "image_url": {}}, "odd", {"text": 5}])],
            "I was sent 1 message. The oldest has no text.",
        ),
        ([7, "odd", None, user("x")], "I was sent 4 messages. The oldest has no text."),
        ([{"role": ["user"], "content": "x"}], 'I was sent 1 message. The oldest says: "x".'),
    ],
)
def test_anything_else_tells_what_was_sent(messages: list[Any], said: str) -> None:
    assert demo.answer(messages) == said


def test_text_parts_are_text() -> None:
    parts = [{"type": "text", "text": "My name"}, {"type": "image_url"}, {"type": "text", "text": "is Alice"}]
    assert demo.answer([user(parts)]) == "Nice to meet you, Alice."


@pytest.fixture
async def client() -> AsyncIterator[RawClient]:
    runner, port = await demo.start()
    try:
        async with RawClient(port) as client:
            yield client
    finally:
        await runner.cleanup()


async def _json(client: RawClient) -> tuple[int, Any]:
    head = await client.head()
    assert (head.header("content-type") or "").startswith("application/json")
    return head.status, json.loads(await client.body())


async def test_whole_answer(client: RawClient) -> None:
    await client.post(CHAT, {"messages": [user("My name is Zoë"), user("What's my name?")]})
    status, answer = await _json(client)
    assert (status, answer["object"], answer["model"]) == (200, "chat.completion", demo.MODEL)
    message = {"role": "assistant", "content": "Your name is Zoë."}
    assert answer["choices"] == [{"index": 0, "message": message, "finish_reason": "stop"}]
    assert answer["usage"] == {"prompt_tokens": 7, "completion_tokens": 4, "total_tokens": 11}


async def _stream(client: RawClient, **more: Any) -> list[Any]:
    """The events of a streamed answer, each of which must be a write of its own."""
    await client.post(CHAT, {"messages": [user("What's my name?")], "stream": True, **more})
    head = await client.head()
    assert (head.status, head.header("content-type")) == (200, "text/event-stream; charset=utf-8")
    pieces = []
    while (piece := await client.piece()) is not None:
        assert piece.startswith(b"data: ") and piece.endswith(b"\n\n") and piece.count(b"\n\n") == 1
        pieces.append(piece[6:-2])
    assert client.ended == "complete" and pieces.pop() == b"[DONE]"
    return [json.loads(piece) for piece in pieces]


ODD = [
    [],
    "x",
    None,
    7,
    [user("My name is Al"), user("what's my name?")],
    [{"role": "user"}],
    [user("   ")],
    [user("")],
]


@pytest.mark.parametrize("messages", [said if isinstance(said, list) and said else [said] for said in ODD])
@pytest.mark.parametrize("options", [{}, {"stream_options": {"include_usage": True}}])
async def test_whatever_it_says_says_that_it_is_whole(client: RawClient, messages: Any, options: Any) -> None:
    """To the AI SDK a stream without a finish_reason is an error, with its `[DONE]` too."""
    reasons = [
        c["choices"][0]["finish_reason"] for c in await _stream(client, messages=messages, **options) if c["choices"]
    ]
    assert reasons[-1] == "stop" and set(reasons[:-1]) == {None}


NO_USAGE = [{}, {"stream_options": None}, {"stream_options": {"include_usage": False}}]


@pytest.mark.parametrize("options", NO_USAGE)
async def test_streamed_answer(client: RawClient, options: dict[str, Any]) -> None:
    chunks = await _stream(client, **options)
    assert {(c["object"], c["model"]) for c in chunks} == {("chat.completion.chunk", demo.MODEL)}
    assert len({c["id"] for c in chunks}) == 1
    deltas = [c["choices"][0]["delta"] for c in chunks]
    assert deltas[0] == {"role": "assistant", "content": ""} and deltas[-1] == {}
    assert [d["content"] for d in deltas[1:-1]] == ["I ", "don't ", "have ", "that ", "information."]
    assert [c["choices"][0]["finish_reason"] for c in chunks] == [None] * 6 + ["stop"]
    assert not any("usage" in c for c in chunks)


async def test_streamed_usage_comes_last_and_once(client: RawClient) -> None:
    *chunks, last = await _stream(client, stream_options={"include_usage": True})
    assert last["choices"] == []
    assert last["usage"] == {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
    assert [c["usage"] for c in chunks] == [None] * 7


async def test_the_stream_is_paced(client: RawClient) -> None:
    clock = asyncio.get_running_loop().time
    began = clock()
    assert len(await _stream(client)) == 7  # five words, after the role and before the finish
    assert clock() - began >= 4.9 * demo.PACE


async def test_a_client_that_goes_hurts_nobody() -> None:
    runner, port = await demo.start()
    try:
        async with RawClient(port) as leaver, RawClient(port) as stayer:
            await leaver.post(CHAT, {"messages": [user("a b c")], "stream": True})
            await leaver.head()
            leaver.abort()
            assert len(await _stream(stayer)) == 7
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"", None),
        (b"{", None),
        (b"\xff", None),
        (b"[" * 100_000, None),
        (b"[]", None),
        (b"{}", "messages"),
        (b'{"messages": "hello"}', "messages"),
        (b'{"messages": []}', "messages"),
    ],
)
async def test_a_malformed_request_is_told_so(client: RawClient, body: bytes, param: str | None) -> None:
    await client.request("POST", CHAT, body=body)
    status, answer = await _json(client)
    assert status == 400 and set(answer) == {"error"}
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert (answer["error"]["type"], answer["error"]["param"]) == ("invalid_request_error", param)


async def test_a_lone_surrogate_comes_back_as_a_question_mark(client: RawClient) -> None:
    await client.request("POST", CHAT, body=b'{"messages": [{"role": "user", "content": "\\ud800"}]}')
    status, answer = await _json(client)
    assert (status, answer["choices"][0]["message"]["content"]) == (
        200,
        'I was sent 1 message. The oldest says: "?".',
    )


async def test_models(client: RawClient) -> None:
    await client.request("GET", "/v1/models")
    status, answer = await _json(client)
    assert (status, answer["object"], [m["id"] for m in answer["data"]]) == (200, "list", [demo.MODEL])


async def test_start_takes_the_port_it_is_given() -> None:
    runner, port = await demo.start()
    await runner.cleanup()
    again, same = await demo.start("127.0.0.1", port)
    assert same == port
    await again.cleanup()
