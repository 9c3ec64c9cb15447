"""How an upstream is asked for a summary, and what its answer becomes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given

from proxy.core.model import Message
from proxy.dialects.chat.profiles import PROFILES
from proxy.dialects.chat.summary import message as summary_message
from proxy.dialects.chat.summary import request, text, texts, within, written
from tests.support.shapes import UNREADABLE, messages

ECHO = PROFILES["echo"]
HEADING = "In short:"


def message(role: str, content: Any, **more: Any) -> Message:
    return Message(role, json.dumps({"role": role, "content": content, **more}).encode())


LIST = [message("user", "My name is Ann."), message("assistant", "Hello Ann.")]


def test_it_is_asked_for_with_the_operators_words() -> None:
    body = json.loads(request("Sum up.", "m", 99, ECHO, "user: My name is Ann."))
    assert body == {
        "model": "m",
        "messages": [
            {"role": "system", "content": "Sum up."},
            {"role": "user", "content": "user: My name is Ann."},
        ],
        "max_tokens": 99,
    }


def test_the_summary_of_what_came_before_stands_in_front() -> None:
    before = b'{"role":"user","content":"She lives in Rome."}'
    body = json.loads(request("p", None, 99, PROFILES["openai"], "user: My", before))
    assert body["messages"][1]["content"] == "She lives in Rome.\n\nuser: My"
    assert (body.get("model"), body["max_completion_tokens"]) == (None, 99)


def test_what_is_told_says_who_says_it() -> None:
    assert texts([*LIST, message("user", " ")]) == ["user: My name is Ann.", "assistant: Hello Ann.", ""]


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


def answer(content: Any, finish_reason: str | None = "stop", usage: Any = None, **more: Any) -> bytes:
    said = {"index": 0, "message": {"role": "assistant", "content": content, **more}, "finish_reason": finish_reason}
    return json.dumps({"choices": [said], **({"usage": usage} if usage else {})}).encode()


def taken(body: bytes, most: int = 99) -> tuple[str, bool]:
    found = written(body, most, HEADING)
    assert not isinstance(found, str), found
    return found.text, found.truncated


def test_a_summary_becomes_a_message_whose_first_line_says_what_it_is() -> None:
    assert json.loads(summary_message(HEADING, "Ann.")) == {"role": "user", "content": f"{HEADING}\n\nAnn."}
    assert summary_message(None, "Ann.") == b'{"role":"user","content":"Ann."}'


PARTS = [{"type": "thinking", "text": "Who?"}, {"type": "text", "text": "Ann."}, "x", {"type": "text"}]
ONE = b'data: {"choices":[{"index":0,"delta":{"content":"Ann."},"finish_reason":"stop"}]}\n\n'


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        (answer(" Ann lives in Rome.\n"), "Ann lives in Rome."),
        (answer("Ann.", None), "Ann."),
        (answer(f"{HEADING}\n\nAnn."), "Ann."),
        (answer("<think>Who?\n</think>\nAnn."), "Ann."),
        (answer("Who?</think>Ann."), "Ann."),
        (answer("[THINK]Who?[/THINK]Ann."), "Ann."),
        (answer(PARTS), "Ann."),
        (answer("I'm sorry to say that Ann left. " + "She was kind. " * 40), None),
        (ONE + b"data: [DONE]\n\n", "Ann."),
        (b": wait\n\n" + ONE, "Ann."),
    ],
)
def test_which_part_of_an_answer_is_the_summary(body: bytes, wanted: str | None) -> None:
    text, cut = taken(body, 999)
    assert wanted in (None, text)
    assert not cut


TOLD = "Ann lives in Rome. She has a cat."


@pytest.mark.parametrize(
    ("body", "most", "wanted"),
    [
        (answer("Ann liv", "length"), 99, "Ann liv […]"),
        (b'data: {"choices":[{"index":0,"delta":{"content":"Ann liv"}}]}\n\n', 99, "Ann liv […]"),
        (answer(TOLD, "length"), 8, "Ann lives in Rome. […]"),
        (answer(TOLD), 8, "Ann lives in Rome. […]"),
        (answer(TOLD, usage={"completion_tokens": 16}), 13, "Ann lives in Rome. […]"),
    ],
)
def test_a_summary_that_is_truncated_says_so(body: bytes, most: int, wanted: str) -> None:
    assert taken(body, most) == (wanted, True)


def test_a_model_of_a_small_limit_gets_less_of_it() -> None:
    told = summary_message(HEADING, "Ann lives in Rome. " * 40)
    assert within(told, 1000) == told
    short = json.loads(within(told, 300))["content"]
    assert short.startswith(HEADING) and short.endswith("Rome. […]") and len(short) < 310
    assert within(told, 10) == within(told, 256)


def test_thoughts_are_no_part_of_its_size() -> None:
    used = {"completion_tokens": 500, "completion_tokens_details": {"reasoning_tokens": 492}}
    found = written(answer(TOLD, usage=used), 8)
    assert not isinstance(found, str)
    assert (found.text, found.truncated, json.loads(found.usage or b"")) == (TOLD, False, used)


CALL = [{"id": "a", "function": {"name": "f", "arguments": "{}"}}]


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (answer(""), "it is empty"),
        (answer(" "), "it is empty"),
        (answer(None), "it is empty"),
        (answer(5), "it is empty"),
        (answer(HEADING), "it is empty"),
        (answer("<think>Who", "length"), "all its tokens went into thoughts; raise history.summary.max_tokens"),
        (answer("<think>Who?</think>"), "it is empty"),
        (answer(None, tool_calls=CALL), "it is a tool call"),
        (answer("Ann.", "tool_calls"), "it is a tool call"),
        (answer("", function_call={"name": "f", "arguments": ""}), "it is a tool call"),
        (answer("I'm sorry, but I can't help with that."), "it is a refusal"),
        (answer("I\u2019m very sorry. No."), "it is a refusal"),
        (answer("As an AI language model, I"), "it is a refusal"),
        (answer("I cannot summarize this."), "it is a refusal"),
        (answer("Es tut mir leid."), "it is a refusal"),
        (answer("", refusal="No."), "it is a refusal"),
        (answer("", "content_filter"), "it is a refusal"),
        (b'{"choices":[{"message":[],"finish_reason":"stop"}]}', "it has no message"),
        (b'{"error":{"message":"x"}}', "it has no message"),
        (b'{"choices":[{"message":{"content":"x"},"error":{"message":"x"}}]}', "it has no message"),
        (b"<html>", "it is no answer of a chat"),
        (b"", "it is no answer of a chat"),
    ],
)
def test_what_is_no_summary_says_why(body: bytes, why: str) -> None:
    assert written(body, 99, HEADING) == why


def test_half_a_character_goes_into_no_request() -> None:
    asked = request("p", None, 99, ECHO, texts([message("assistant", "ho \ud83d")])[0])
    assert json.loads(asked)["messages"][1]["content"] == "assistant: ho \ufffd"
    text, _ = taken(json.dumps({"choices": [{"message": {"content": "so \ud83d"}, "finish_reason": "stop"}]}).encode())
    assert json.loads(summary_message(None, text))["content"] == "so \ufffd"
