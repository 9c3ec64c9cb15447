"""Calls of a reply: which go back, what each keeps, and how one that was torn is made good when it is answered."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.json_bytes import dumps
from proxy.dialects.chat.profiles import PROFILES
from proxy.dialects.chat.torn_calls import begins, is_whole, sent_calls, torn, unstamped
from tests.support.shapes import ACTED, SAID, UNREADABLE, Json, anything, call, messages

INTERRUPTED = call("b", '{"a')
EXTRA = {"google": "s"}
CUSTOM = {"id": "c", "type": "custom", "custom": {"name": "g", "input": "free"}}


def sent(
    calls: Any, name: str = "echo", bound: bool = True, reason: str | None = "stop", interrupted: bool = False
) -> Any:
    return sent_calls(calls, PROFILES[name], bound, frozenset(), reason, interrupted)


def made_good(message: Any, id: str, wanted: str | None = None, role: str = "tool", **how: Any) -> Any:
    raw = torn(json.dumps(message).encode(), role, id if wanted is None else wanted, id, **how)
    return None if raw is None else json.loads(raw)


def test_a_call_keeps_what_its_upstream_knows_and_no_stamps() -> None:
    stamped = {**call(), "index": 0, "padding": "x", "extra_content": EXTRA}
    assert sent([stamped]) == [{**call(), "extra_content": EXTRA}]
    assert sent([stamped], "openai") == sent([stamped], bound=False) == [call()]
    assert sent([{**call(), "id": 5, "type": 5}]) == [call("")]
    assert sent([CUSTOM | {"type": 5}]) == [CUSTOM]
    assert unstamped({"channel": 1, "a": 1}) == {"a": 1} and unstamped("x") == "x"


def test_arguments_that_are_no_json_go_back_to_those_who_take_them() -> None:
    assert sent([INTERRUPTED]) == [INTERRUPTED]
    assert sent([INTERRUPTED], "gemini") == [call("b")]
    assert sent([CUSTOM], "gemini") == [CUSTOM]


def test_calls_without_a_name_or_an_end_do_not_go_back() -> None:
    nameless = {"id": "a", "function": {"arguments": "{}"}}
    assert sent([nameless, call(), INTERRUPTED], reason="length") == [call()]
    assert sent([call()], reason=None, interrupted=True) == sent("x") == []


@pytest.mark.parametrize(
    ("said", "reason", "interrupted", "whole"),
    [
        ({"arguments": "{}"}, None, True, False),
        ({"arguments": "{}"}, "length", False, True),
        ({"arguments": "{"}, "length", False, False),
        ({"arguments": "{"}, "stop", False, True),
        ({"arguments": "{"}, "tool_calls", True, False),
        ({"input": "x"}, "length", False, False),
        ({"input": "x"}, "stop", True, True),
    ],
)
def test_whether_a_call_came_to_its_end(said: Json, reason: str | None, interrupted: bool, whole: bool) -> None:
    assert is_whole(said, reason, interrupted) is whole


# Calls that were torn


def mended(one: Json) -> Json:
    return {"role": "assistant", "content": "", "tool_calls": [one]}


def test_a_torn_call_is_made_good_without_the_arguments_it_lacks() -> None:
    message = {**SAID, "tool_calls": [call("a"), INTERRUPTED]}
    assert made_good(message, "b", finish_reason="length") == mended(call("b"))
    assert made_good(message, "a", finish_reason="length") is None  # which is not torn
    assert made_good(message, "b", finish_reason="stop") is None  # it goes back as it is
    assert made_good(message, "a", interrupted=True) == mended(call("a"))
    assert made_good({**ACTED, "tool_calls": [CUSTOM]}, "c", finish_reason="length") == mended(CUSTOM)
    assert made_good({**ACTED, "tool_calls": [call("b", '{"n": 1.0}')]}, "b", interrupted=True) == mended(
        call("b", '{"n": 1.0}')
    )


@pytest.mark.parametrize("reason", ["length", "tool_calls"])
def test_a_call_that_was_cut_before_its_name_is_named(reason: str) -> None:
    for function in ({}, {"function": {"arguments": ""}}, {"function": {"name": ""}}):
        [one] = made_good({**ACTED, "tool_calls": [{"id": "b", **function}]}, "b", finish_reason=reason)["tool_calls"]
        assert one == {"id": "b", "type": "function", "function": {"name": "unknown", "arguments": "{}"}}


def test_a_torn_call_without_an_id_takes_that_of_its_result() -> None:
    message = {**ACTED, "tool_calls": [call(None, "{")]}
    assert made_good(message, "made up", "", finish_reason="length") == mended(call("made up"))
    assert made_good(message, "made up", finish_reason="length") is None


def test_a_torn_function_call_is_made_good_by_its_name() -> None:
    message = {**SAID, "function_call": {"name": "f", "arguments": "{"}}
    good = {"role": "assistant", "content": "", "function_call": {"name": "f", "arguments": "{}"}}
    assert made_good(message, "f", role="function") == good
    assert made_good(message, "g", role="function") is None
    assert made_good(message, "f") is None
    assert made_good({**SAID, "function_call": 5}, "f", role="function") is None


@pytest.mark.parametrize(
    ("message", "wanted"),
    [
        (SAID, False),
        (ACTED, True),
        ({"tool_calls": [{"id": "a"}]}, True),
        ({"tool_calls": [{"function": {"name": "f"}}]}, True),
        ({"tool_calls": [{}]}, False),
        ({"tool_calls": None, "function_call": None}, False),
        ({"function_call": {"name": "f"}}, True),
        ([{"tool_calls": 1}], False),
    ],
)
def test_whether_a_reply_began_a_call(message: Any, wanted: bool) -> None:
    assert begins(json.dumps(message).encode()) is wanted


@pytest.mark.parametrize("raw", [*UNREADABLE, b'{"tool_calls":[', b"null"])
def test_what_cannot_be_read_began_nothing(raw: bytes) -> None:
    assert torn(raw, "tool", "a", "a") is None
    assert not begins(raw)


@given(anything.map(dumps) | messages.map(dumps) | st.binary(max_size=30))
def test_no_input_raises_another_error(raw: bytes) -> None:
    torn(raw, "tool", "", "a", interrupted=True)
    torn(raw, "function", "f", "f")
    begins(raw)
