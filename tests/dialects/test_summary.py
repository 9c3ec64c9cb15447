"""How an upstream is asked for a summary, and what its answer becomes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given

from proxy.core.model import Message
from proxy.dialects.profiles import PROFILES
from proxy.dialects.summary import message_of, request, text
from tests.shapes import UNREADABLE, messages

ECHO = PROFILES["echo"]


def message(role: str, content: Any, **more: Any) -> Message:
    return Message(role, json.dumps({"role": role, "content": content, **more}).encode())


LIST = [message("user", "My name is Ann."), message("assistant", "Hello Ann.")]


def test_it_is_asked_for_with_the_operators_words() -> None:
    body = json.loads(request("Sum up.", "m", 99, ECHO, LIST, 1000))
    assert body == {
        "model": "m",
        "messages": [
            {"role": "system", "content": "Sum up."},
            {"role": "user", "content": "user: My name is Ann.\n\nassistant: Hello Ann."},
        ],
        "max_tokens": 99,
    }


def test_the_summary_of_what_came_before_stands_in_front() -> None:
    before = b'{"role":"user","content":"She lives in Rome."}'
    body = json.loads(request("p", None, 99, PROFILES["openai"], LIST, 1000, before))
    assert body["messages"][1]["content"].startswith("She lives in Rome.\n\nuser: My")
    assert (body.get("model"), body["max_completion_tokens"]) == (None, 99)


@pytest.mark.parametrize(("size", "wanted"), [(43, 2), (42, 2), (41, 1), (21, 1), (20, 0)])
def test_the_newest_messages_go_where_not_all_can(size: int, wanted: int) -> None:
    told = json.loads(request("p", "m", 9, ECHO, LIST, size))["messages"][1]["content"]
    assert told == "\n\n".join(["user: My name is Ann.", "assistant: Hello Ann."][2 - wanted :])


@pytest.mark.parametrize(
    ("content", "more", "wanted"),
    [
        ("hi", {}, "hi"),
        (None, {}, ""),
        (5, {}, ""),
        (
            [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "x"}}, "b", 5],
            {},
            "a\n[image]\nb",
        ),
        ([{"type": "unknown"}, {"type": ["x"]}, {}], {}, ""),
        (None, {"tool_calls": [{"function": {"name": "f", "arguments": "{}"}}, {}, 5]}, "f({})"),
        ("x", {"tool_calls": 5}, "x"),
    ],
)
def test_what_a_message_says(content: Any, more: Any, wanted: str) -> None:
    assert text(message("user", content, **more).raw) == wanted


@pytest.mark.parametrize("raw", [*UNREADABLE, b"5", b"[]"])
def test_what_cannot_be_read_says_nothing(raw: bytes) -> None:
    assert text(raw) == ""


@given(messages)
def test_any_message_says_something_or_nothing(told: Any) -> None:
    assert isinstance(text(json.dumps(told).encode()), str)


def answer(content: Any, finish_reason: str = "stop") -> bytes:
    said = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": finish_reason}
    return json.dumps({"choices": [said]}).encode()


def test_an_answer_becomes_a_message() -> None:
    assert message_of(answer(" Ann lives in Rome.\n")) == b'{"role":"user","content":"Ann lives in Rome."}'


@pytest.mark.parametrize(
    "body",
    [
        answer(""),
        answer(" "),
        answer(None),
        answer(["x"]),
        answer("Ann liv", "length"),
        b'{"choices":[{"message":[],"finish_reason":"stop"}]}',
        b'{"error":{"message":"x"}}',
        b"<html>",
        b"",
    ],
)
def test_what_is_no_summary_is_none(body: bytes) -> None:
    assert message_of(body) is None


def test_half_a_character_goes_into_no_request() -> None:
    asked = request("p", None, 99, ECHO, [message("assistant", "ho \ud83d")], 1000)
    assert json.loads(asked)["messages"][1]["content"] == "assistant: ho \ufffd"
    answer = {"choices": [{"message": {"content": "so \ud83d"}, "finish_reason": "stop"}]}
    assert json.loads(message_of(json.dumps(answer).encode()) or b"")["content"] == "so \ufffd"
