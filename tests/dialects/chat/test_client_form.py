"""A client's message: what of it goes upstream from the store, and where its cache marks go."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.json_bytes import dumps, loads
from proxy.dialects.chat.client_form import asked_form, with_cache_control
from tests.support.shapes import ACTED, MARK, SAID, THOUGHT, UNREADABLE, Json, anything, call, messages


def text(words: str, control: Any = None) -> Json:
    return {"type": "text", "text": words} | ({"cache_control": control} if control is not None else {})


IMAGE = {"type": "image_url", "image_url": {"url": "data:"}}

ASKED: list[tuple[str, Json, Json]] = [
    ("a mark on a message", {"role": "user", "content": "x", "cache_control": MARK}, {"role": "user", "content": "x"}),
    (
        "marks on parts",
        {"role": "user", "content": [text("a", MARK), {**IMAGE, "cache_control": MARK}, "b", text("c")]},
        {"role": "user", "content": [text("a"), IMAGE, "b", text("c")]},
    ),
    ("a mark on a call", {**ACTED, "tool_calls": [call(cache_control=MARK)]}, ACTED),
    (
        "a mark that is null",
        {"role": "user", "content": [text("a") | {"cache_control": None}]},
        {"role": "user", "content": [text("a")]},
    ),
    ("no calls", {**SAID, "tool_calls": []}, SAID),
    ("calls that are null", {**SAID, "tool_calls": None, "function_call": None, "refusal": None}, SAID),
    ("no annotations", {**SAID, "annotations": []}, SAID),
    # What stays
    (
        "text about marks",
        {"role": "user", "content": [text("cache_control")]},
        {"role": "user", "content": [text("cache_control")]},
    ),
    (
        "a user's null",
        {"role": "user", "content": "x", "tool_calls": []},
        {"role": "user", "content": "x", "tool_calls": []},
    ),
    ("null content", ACTED, ACTED),
    ("empty reasoning", {**ACTED, "reasoning_content": ""}, {**ACTED, "reasoning_content": ""}),
    ("empty details", {**ACTED, "reasoning_details": []}, {**ACTED, "reasoning_details": []}),
    ("an unknown role", {"role": ["assistant"], "tool_calls": []}, {"role": ["assistant"], "tool_calls": []}),
    ("no role", {"tool_calls": None}, {"tool_calls": None}),
]


@pytest.mark.parametrize(("message", "wanted"), [case[1:] for case in ASKED], ids=[case[0] for case in ASKED])
def test_a_stored_message_of_a_client_has_no_marks_and_no_fillers(message: Json, wanted: Json) -> None:
    raw = json.dumps(message).encode()
    assert json.loads(asked_form(raw)) == wanted
    assert (asked_form(raw) == raw) == (message == wanted)
    assert asked_form(asked_form(raw)) == asked_form(raw)


def test_the_bytes_beside_cache_control_stay() -> None:
    part = b'{ "type":"text", "text":"\\u0061", "n":1e400 }'
    raw = b'{"role" : "user","n":1.0,"cache_control":{},"content":[ %b , {"cache_control":1,"a": 1.0} ]}' % part
    assert asked_form(raw) == b'{"role":"user","n":1.0,"content":[%b,{"a":1.0}]}' % part
    assert asked_form(b'{"tool_calls":[ ] , "role":"assistant"}') == b'{"role":"assistant"}'


@pytest.mark.parametrize("raw", UNREADABLE, ids=range(4))
def test_what_cannot_be_read_goes_as_it_is(raw: bytes) -> None:
    assert asked_form(raw) == raw
    assert with_cache_control(raw, raw) == raw


def user(content: Any, **more: Any) -> Json:
    return {"role": "user", "content": content, **more}


MARKED: list[tuple[str, Any, Any, Any]] = [
    ("a mark on the message", user("x"), user("x", cache_control=MARK), user("x", cache_control=MARK)),
    (
        "a part for a part",
        user([text("a"), text("b")]),
        user([text("a", MARK), text("b")]),
        user([text("a", MARK), text("b")]),
    ),
    ("a text becomes its part", user("a"), user([text("a", MARK)]), user([text("a", MARK)])),
    ("counted from the end", user([THOUGHT, text("a")]), user([text("a", MARK)]), user([THOUGHT, text("a", MARK)])),
    ("of the same type", user([text("a"), IMAGE]), user([IMAGE, text("a", MARK)]), user([text("a", MARK), IMAGE])),
    ("further than ours goes", user([text("b")]), user([text("a", MARK), text("b")]), user([text("b", MARK)])),
    ("a text of several parts", user("ab"), user([text("a"), text("b", MARK)]), user([text("ab", MARK)])),
    (
        "a call",
        {**ACTED, "tool_calls": [call("a"), call("b")]},
        {**ACTED, "tool_calls": [call("a", cache_control=MARK), call("b")]},
        {**ACTED, "tool_calls": [call("a", cache_control=MARK), call("b")]},
    ),
    ("a newer mark", user([text("a", 1)]), user([text("a", 2)]), user([text("a", 2)])),
    # Nowhere to go
    ("an empty text", user(""), user([text("", MARK)]), user("")),
    ("another type", user("a"), user([{**IMAGE, "cache_control": MARK}]), user("a")),
    ("null", user([text("a")]), user([text("a") | {"cache_control": None}], cache_control=None), user([text("a")])),
    ("no mark", user([text("a")]), user([text("a")]), user([text("a")])),
    ("text about marks", user([text("cache_control")]), user([text("cache_control")]), user([text("cache_control")])),
    ("parts of no type", user(["a", 5]), user(["cache_control", {"cache_control": MARK}]), user(["a", 5])),
    ("no content of ours", {"role": "user"}, user([text("a", MARK)]), {"role": "user"}),
    ("content that is a text of theirs", user("a"), user("cache_control"), user("a")),
    ("ours is no object", 5, user([text("a", MARK)]), 5),
    ("theirs is no object", user("a"), ["cache_control"], user("a")),
]


@pytest.mark.parametrize(("ours", "theirs", "wanted"), [case[1:] for case in MARKED], ids=[case[0] for case in MARKED])
def test_cache_control_goes_where_the_client_has_it_now(ours: Any, theirs: Any, wanted: Any) -> None:
    raw, present = json.dumps(ours).encode(), json.dumps(theirs).encode()
    assert json.loads(with_cache_control(raw, present)) == wanted
    assert (with_cache_control(raw, present) == raw) == (ours == wanted)
    assert with_cache_control(with_cache_control(raw, present), present) == with_cache_control(raw, present)


@given(anything.map(dumps) | messages.map(dumps) | st.binary(max_size=30), anything.map(dumps) | messages.map(dumps))
def test_no_input_raises_another_error(raw: bytes, other: bytes) -> None:
    assert asked_form(asked_form(raw)) == asked_form(raw)
    wanted = with_cache_control(raw, other)
    assert with_cache_control(wanted, other) == wanted


@given(messages)
def test_a_stored_message_loses_its_cache_control_and_nothing_else(message: Json) -> None:
    raw = dumps({**message, "role": "user"})
    sent = loads(asked_form(raw))
    listed = [sent.get("content"), sent.get("tool_calls")]
    assert not any("cache_control" in each for each in [sent, *_objects(listed)])
    before = {k: v for k, v in loads(raw).items() if k not in ("cache_control", "content", "tool_calls")}
    assert {k: v for k, v in sent.items() if k not in ("content", "tool_calls")} == before


def _objects(lists: list[Any]) -> list[Json]:
    return [part for each in lists if isinstance(each, list) for part in each if isinstance(part, dict)]
