"""Halves of surrogate pairs: none in what goes upstream, and all else as it was."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.dialects.chat.stream.surrogates import whole


@pytest.mark.parametrize(
    ("message", "wanted"),
    [
        (b'{"content":"hi \\ud83d"}', b'{"content":"hi \\ufffd"}'),
        (b'{"content":"\\ud83d\\uDE00"}', None),
        (b'{"content":"\\uD83D\\ud83d\\ude00\\ude00"}', b'{"content":"\\ufffd\\ud83d\\ude00\\ufffd"}'),
        (b'{"content":"\\\\ud83d"}', None),  # a backslash, and a word
        (b'{"content":"\\\\\\ud83d"}', b'{"content":"\\\\\\ufffd"}'),
        (b'{"content":"\\u00e9\\n"}', None),
        (b'{"\\ude00":[1.0]}', b'{"\\ufffd":[1.0]}'),
        (b'{"content":"\xf0\x9f\x98\x80"}', None),
    ],
)
def test_a_half_becomes_a_replacement_character_and_nothing_else_changes(message: bytes, wanted: bytes | None) -> None:
    assert whole(message) == (wanted or message)


def calling(arguments: str, **more: Any) -> bytes:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
    return json.dumps({"role": "assistant", "content": None, "tool_calls": [call], **more}).encode()


def arguments_of(message: bytes) -> str:
    arguments: str = json.loads(message)["tool_calls"][0]["function"]["arguments"]
    return arguments


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ('{"t":"\\ud83d"}', '{"t":"\\ufffd"}'),
        ('{"t":"\\ud83d\\ude00"}', '{"t":"\\ud83d\\ude00"}'),
        ('{"t":"\ud83d"}', '{"t":"\ufffd"}'),
        ('{"t":"\\ud83d\ude00"}', '{"t":"\\ufffd\ufffd"}'),
        ('{"t":"\\\\ud83d"}', '{"t":"\\\\ud83d"}'),
        ('{"t":"\\ud83', '{"t":"\\ud83'),
    ],
)
def test_arguments_are_json_within_json(arguments: str, wanted: str) -> None:
    assert arguments_of(whole(calling(arguments))) == wanted
    old = json.dumps({"function_call": {"name": "f", "arguments": arguments}}).encode()
    assert json.loads(whole(old))["function_call"] == {"name": "f", "arguments": wanted}


def test_what_stands_beside_such_arguments_keeps_its_bytes() -> None:
    message = b'{"role":"assistant", "content":"\\u00e9","n":1.0,"tool_calls":[{"function":{"arguments":"\\\\ud83d"}}]}'
    assert whole(message) == (
        b'{"role":"assistant","content":"\\u00e9","n":1.0,"tool_calls":[{"function":{"arguments":"\\\\ufffd"}}]}'
    )


@pytest.mark.parametrize(
    "message",
    [
        b'{"tool_calls":[1,{"function":1},{"function":{"arguments":{"t":"\\\\ud83d"}}}]}',
        b'{"tool_calls":[{"custom":{"name":"f","input":"\\\\ud83d"}}]}',  # free text
        b'{"tool_calls":[{"function":{"arguments":"\\\\ud83d"}}],"tool_calls":1}',
        b'[{"arguments":"\\\\ud83d"}]',
        b"\\\\ud83d",
    ],
)
def test_what_cannot_be_read_so_is_the_upstreams_to_judge(message: bytes) -> None:
    assert whole(message) == message


_said = st.lists(
    st.sampled_from(["a", "\\", "\ud83d", "\ude00", '"', "é", "\\ud83d", "\\ude00", "\\u0041"]), max_size=6
)


@given(_said.map("".join), _said.map("".join), st.booleans())
def test_a_strict_reader_takes_what_goes_upstream(content: str, inner: str, escaped: bool) -> None:
    arguments = json.dumps({"t": inner}, ensure_ascii=escaped)
    message = json.loads(whole(calling(arguments, content=content)))
    message["content"].encode()  # raises for a half
    said = message["tool_calls"][0]["function"]["arguments"]
    said.encode()
    json.loads(said)["t"].encode()
    again = json.dumps(message).encode()
    assert json.loads(whole(again)) == message


@given(st.text(), st.text())
def test_a_message_without_halves_stays(content: str, inner: str) -> None:
    message = calling(json.dumps({"t": inner}), content=content)
    assert whole(message) == message
