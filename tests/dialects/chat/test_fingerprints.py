"""Marks: the same message has the same mark whatever a client does to it, another one has another."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core import sse
from proxy.core.json_bytes import dumps
from proxy.dialects.chat import fingerprints
from proxy.dialects.chat.fingerprints import answered, bare, fingerprint, is_loose, joined, made, says_nothing
from proxy.dialects.chat.stream import deltas
from tests.support.fakes import Recording, recordings

Json = dict[str, Any]

PNG = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "iVBORw0KGgo" * 40}}
LONE = "\ud83d"


def raw(message: Any) -> bytes:
    return message if isinstance(message, bytes) else json.dumps(message).encode()


def user(content: Any = "hi", **more: Any) -> Json:
    return {"role": "user", "content": content, **more}


def reply(content: Any = "ho", **more: Any) -> Json:
    return {"role": "assistant", "content": content, **more}


def tool(content: Any = "22", **more: Any) -> Json:
    return {"role": "tool", "tool_call_id": "c1", "content": content, **more}


def text(value: Any, **more: Any) -> Json:
    return {"type": "text", "text": value, **more}


def call(arguments: Any = '{"a": 1, "b": [true, null]}', id: Any = "c1", name: Any = "f", **more: Any) -> Json:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}, **more}


def calls(*each: Any, content: Any = None, **more: Any) -> Json:
    return reply(content, tool_calls=list(each), **more)


def custom(input: str, **more: Any) -> Json:
    return {"id": "c1", "type": "custom", "custom": {"name": "g", "input": input}, **more}


SAME: dict[str, tuple[Any, Any]] = {
    "printed in another way": (b'{"role":"user","content":"\\u0068i"}', b'{ "content" : "hi", "role":"user" }'),
    "developer for system": ({"role": "developer", "content": "S"}, {"role": "system", "content": "S"}),
    "a text as a part": (user(), user([text("hi")])),
    "a text as a string in a list": (reply(), reply(["ho"])),
    "a text in small parts": (reply("one two"), reply([text("one "), "t", text("wo")])),
    "a single part without its list": (user(text("hi")), user([text("hi")])),
    "marks on a text part": (
        user([text("hi")]),
        user([text("hi", cache_control={"type": "ephemeral"}, annotations=[])]),
    ),
    "outer white space": (reply("ho"), reply("\n ho \n")),
    "outer white space across parts": (reply("ho"), reply([text(" \n"), text(" ho"), text(" ")])),
    "outer white space beside an image": (user([text("see "), PNG]), user([text("see"), PNG, text("\n")])),
    "content null": (calls(call()), calls(call(), content="")),
    "content absent": (calls(call()), {"role": "assistant", "tool_calls": [call()]}),
    "content an empty list": (calls(call()), calls(call(), content=[])),
    "content of empty parts": (calls(call()), calls(call(), content=[text(""), None, text(None)])),
    "white space for content": (calls(call()), calls(call(), content=" \n")),
    "reasoning dropped": (reply(reasoning="r", reasoning_content="r", reasoning_details=[{"a": 1}]), reply()),
    "reasoning as think tags": (reply(reasoning="r"), reply("<think>\nr\n</think>\n\nho")),
    "think tags as a part": (reply("<think>r</think>ho"), reply([text("\n<think>r"), text("</think>ho")])),
    "think tags alone": (reply("<think>r</think>"), reply(None)),
    "thinking parts": (reply([{"type": "thinking", "thinking": [text("t")]}, text("ho")]), reply()),
    "reasoning parts amid text": (reply(["a", {"type": "reasoning"}, "b", {"type": "redacted_thinking"}]), reply("ab")),
    "a refusal as text": (reply(None, refusal="no "), reply("no")),
    "a refusal beside text": (reply(refusal="no"), reply()),
    "an empty refusal": (reply(None, refusal=" "), reply("")),
    "a refusal that is none": (reply(None, refusal=7), reply(None)),
    "a refusal of a user": (user("", refusal="no"), user("")),
    "fillers": (
        reply(),
        reply(refusal=None, annotations=[], audio=None, function_call=None, tool_calls=[], parsed=None),
    ),
    "empty fillers": (reply(), reply(function_call={"name": "", "arguments": ""}, audio={"id": ""}, tool_calls=None)),
    "calls that are no list": (reply(), reply(tool_calls={"id": "c1"})),
    "calls that are none": (reply(), reply(tool_calls=[None, 7])),
    "unknown members": (user(), user(timestamp=1, id="m1", prefix=True, cache_control={"type": "ephemeral"})),
    "an agent signs": (reply(), reply(name="agent-7")),
    "the name of a tool": (tool(), tool(name="f")),
    "an empty name": (user(), user(name="")),
    "a tool's text as a part": (tool(), tool([text("22")])),
    "an image's passing marks": (user([PNG]), user([{**PNG, "cache_control": {}, "index": 0, "detail": None}])),
    "an image's keys": (user([PNG]), user([dict(reversed(PNG.items()))])),
    "arguments printed again": (calls(call()), calls(call('{"b":[true,null],"a":1}'))),
    "arguments with escapes": (calls(call('{"a":"\\u00e9"}')), calls(call('{"a":"é"}'))),
    "arguments as an object": (calls(call()), calls(call({"b": [True, None], "a": 1}))),
    "numbers as JavaScript prints them": (calls(call('{"a":1.0,"b":[-0.0]}')), calls(call('{"a":1,"b":[0]}'))),
    "no arguments: empty": (calls(call("{}")), calls(call(" "))),
    "no arguments: null": (calls(call("{}")), calls(call(None))),
    "no arguments: null as text": (calls(call("{}")), calls(call("null"))),
    "no arguments: absent": (calls(call("{}")), calls({"id": "c1", "function": {"name": "f"}})),
    "cut arguments": (calls(call('{"a": 1')), calls(call(' {"a": 1\n'))),
    "arguments with half a character": (calls(call('{"a":"' + LONE)), calls(call('{"a":"' + LONE + " "))),
    "a call's stamps": (calls(call()), calls(call(index=0, extra_content={"google": {}}))),
    "a call without a type": (calls(call()), calls({"id": "c1", "function": call()["function"]})),
    "a call's empty function": (calls(custom("x")), calls(custom("x", function={"name": "", "arguments": ""}))),
    "a call's empty custom": (calls(call()), calls(call(custom={"name": "", "input": ""}))),
    "an id that is null, or empty": (calls(call(id="")), calls(call(id=None))),
    "one id is missing": (calls(call(), call(id="")), calls(call(id="x"), call(id=None))),
    "a function_call's arguments": (
        reply(None, function_call={"name": "f", "arguments": '{"a": 1}'}),
        reply("", function_call={"name": "f", "arguments": '{"a":1}'}),
    ),
    "audio": (reply(None, audio={"id": "a1", "data": "UklGRg==", "transcript": "ho"}), reply(None, audio={"id": "a1"})),
    "half a character escaped": (b'{"role":"user","content":"\\ud83d"}', user([text(LONE)])),
    "a character in two halves": (b'{"role":"user","content":"\\ud83d\\ude00"}', user("😀")),
    "no role, or null": ({"content": "hi"}, {"role": None, "content": "hi"}),
    "no message: formatting": (b'[ 1, {"b":2,"a":1.0} ]', b'[1,{"a":1,"b":2}]'),
}

OTHER: dict[str, tuple[Any, Any]] = {
    "text": (user("hi"), user("ho")),
    "letter case": (user("hi"), user("Hi")),
    "inner white space": (user("a b"), user("a  b")),
    "white space between parts": (user([text("a"), text("b")]), user([text("a"), text(" b")])),
    "role": (user("hi"), reply("hi")),
    "role that is no string": ({"role": 1, "content": "hi"}, {"role": "1", "content": "hi"}),
    "name of a user": (user(name="ann"), user(name="bob")),
    "name of a user or none": (user(name="ann"), user()),
    "name of a function": ({"role": "function", "name": "f"}, {"role": "function", "name": "g"}),
    "tool_call_id": (tool(), tool(tool_call_id="c2")),
    "tool_call_id or none": (tool(), {"role": "tool", "content": "22"}),
    "think tags of a user": (user("<think>r</think>hi"), user("hi")),
    "think tags that do not close": (reply("<think>r ho"), reply("ho")),
    "think tags twice": (reply("<think>r</think><think>r</think>ho"), reply("ho")),
    "think tags further on": (reply("so <think>r</think>ho"), reply("so ho")),
    "an end of thoughts without a begin": (reply("r</think>ho"), reply("ho")),
    "thinking of a user": (user([{"type": "thinking", "thinking": "t"}, text("hi")]), user()),
    "image": (user([PNG]), user([{**PNG, "image_url": {"url": PNG["image_url"]["url"] + "A"}}])),  # type: ignore[index]
    "an image or none": (user([text("hi"), PNG]), user("hi")),
    "detail of an image": (user([PNG]), user([{**PNG, "detail": "low"}])),
    "order of parts": (user([text("hi"), PNG]), user([PNG, text("hi")])),
    "place of text": (user([PNG, text("hi"), PNG]), user([PNG, PNG, text("hi")])),
    "a text that is a number": (user([text(7)]), user([text("7")])),
    "content that is a number": (user(7), user("7")),
    "content false": (user(False), user("")),
    "a call or none": (calls(call()), reply(None)),
    "call id": (calls(call()), calls(call(id="c2"))),
    "call id of another kind": (calls(call(id="1")), calls(call(id=1))),
    "a call with an id, or without": (calls(call()), calls(call(id=""))),
    "name of a call": (calls(call()), calls(call(name="g"))),
    "type of a call": (calls(call()), calls(call(type="server"))),
    "an argument's value": (calls(call('{"a":1}')), calls(call('{"a":2}'))),
    "an argument's kind": (calls(call('{"a":1}')), calls(call('{"a":"1"}'))),
    "an argument's inner white space": (calls(call('{"a":" x"}')), calls(call('{"a":"x"}'))),
    "long numbers": (calls(call('{"a":9007199254740993}')), calls(call('{"a":9007199254740992}'))),
    "arguments false": (calls(call(False)), calls(call("{}"))),
    "arguments that are text": (calls(call("x")), calls(call('"x"'))),
    "order of calls": (calls(call(), call(id="c2", name="g")), calls(call(id="c2", name="g"), call())),
    "number of calls": (calls(call(id="")), calls(call(id=""), call(id=""))),
    "input of a custom call": (calls(custom("x")), calls(custom("x "))),
    "a custom call's type": (calls(custom("x")), calls(custom("x", type=None))),
    "a call or a function_call": (calls(call(id="")), reply(None, function_call=call()["function"])),
    "a function_call's name": (reply(None, function_call={"name": "f"}), reply(None, function_call={"name": "g"})),
    "a function_call's argument": (
        reply(None, function_call={"name": "f", "arguments": '{"a":1}'}),
        reply(None, function_call={"name": "f", "arguments": '{"a":2}'}),
    ),
    "audio id": (reply(None, audio={"id": "a1"}), reply(None, audio={"id": "a2"})),
    "audio or none": (reply(None, audio={"id": "a1"}), reply(None)),
    "a refusal": (reply(None, refusal="no"), reply(None, refusal="never")),
    "no message: value": (b"[1]", b"[2]"),
    "no message: its form": (b'["user",["hi"]]', user("hi")),
    "no JSON": (b"{", b"{ "),
}


@pytest.mark.parametrize(("one", "another"), SAME.values(), ids=SAME)
def test_the_same_message_has_the_same_fingerprint(one: Any, another: Any) -> None:
    assert raw(one) != raw(another)
    assert fingerprint(raw(one)) == fingerprint(raw(another))
    assert fingerprint(raw(one), ids=False) == fingerprint(raw(another), ids=False)


@pytest.mark.parametrize(("one", "another"), OTHER.values(), ids=OTHER)
def test_another_message_has_another_fingerprint(one: Any, another: Any) -> None:
    assert fingerprint(raw(one)) != fingerprint(raw(another))


@pytest.mark.parametrize("message", [user(), reply(), calls(call()), b"{", b""])
def test_a_fingerprint_has_sixteen_bytes(message: Any) -> None:
    assert len(fingerprint(raw(message))) == len(fingerprint(raw(message), ids=False)) == 16


# Ids


@pytest.mark.parametrize(
    ("message", "loose"),
    [
        (user(), False),
        (reply(tool_calls=[]), False),
        (calls(call()), False),
        (calls(call(), custom("x")), False),
        (calls(call(id="")), True),
        (calls(call(id=None)), True),
        (calls({"function": {"name": "f"}}), True),
        (calls(call(), call(id="")), True),
    ],
)
def test_a_fingerprint_tells_whether_ids_were_left_out(message: Json, loose: bool) -> None:
    assert is_loose(fingerprint(raw(message))) is loose
    assert is_loose(fingerprint(raw(message), ids=False)) is bool(message.get("tool_calls"))


@pytest.mark.parametrize("ids", [("", ""), ("x", ""), (None, "y")])
def test_ids_that_a_client_invented_are_overlooked_on_demand(ids: tuple[Any, Any]) -> None:
    stored = raw(calls(call(id=ids[0]), call(id=ids[1], name="g")))
    theirs = raw(calls(call(id="invented1"), call(id="invented2", name="g")))
    assert fingerprint(theirs, ids=False) == fingerprint(stored) != fingerprint(theirs)
    assert fingerprint(raw(calls(call(id="i1"), call(id="i2", name="h"))), ids=False) != fingerprint(stored)


def test_a_message_without_calls_has_one_fingerprint() -> None:
    for message in (user(), tool(), reply([text("a"), PNG]), reply(None, function_call={"name": "f"})):
        assert fingerprint(raw(message), ids=False) == fingerprint(raw(message))


# A prefill and its continuation


@pytest.mark.parametrize(
    ("prefill", "continued", "whole"),
    [
        (reply("The answer is"), reply(" 42."), reply("The answer is 42.")),
        (reply("The answer is ", prefix=True), reply("42.", reasoning="r"), reply("The answer is 42.")),
        (reply("{"), reply([text('"a":1}')]), reply('{"a":1}')),
        (reply([text("one "), text("two ")]), reply("three"), reply("one two three")),
        (reply("<think>"), reply("hm</think>ho"), reply("ho")),
        (reply("so"), calls(call()), calls(call(), content="so")),
        (reply("so"), {"content": None}, reply("so")),
        (reply([PNG]), reply("ho"), reply([PNG, text("ho")])),
        (reply("a"), reply(7), reply(["a", 7])),
        (reply(b"\xf0".decode(errors="surrogateescape")), reply("x"), reply("\udcf0x")),
        ([], reply(), reply()),
        (reply("a"), [1], [1]),
        (b"{", reply(), reply()),
        (reply("a"), b"{", b"{"),
    ],
)
def test_a_prefill_and_the_reply_to_it_are_one_message(prefill: Any, continued: Any, whole: Any) -> None:
    assert joined(raw(prefill), raw(continued)) == fingerprint(raw(whole))


# What clients do to any message

WORDS = st.text("ab é\n<>", min_size=1, max_size=8).map(lambda word: f"x{word}x")
SCALARS = st.none() | st.booleans() | st.integers(-5, 5) | WORDS | st.just(LONE)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3))
ARGUMENTS = st.dictionaries(WORDS, VALUES, max_size=3).map(json.dumps)
CALLS = st.lists(st.builds(call, ARGUMENTS, WORDS, WORDS), min_size=1, max_size=3)
CONTENTS = WORDS | st.lists(st.builds(text, WORDS) | st.just(PNG), min_size=1, max_size=3)
MESSAGES = (
    st.builds(user, CONTENTS)
    | st.builds(reply, CONTENTS)
    | st.builds(reply, CONTENTS, tool_calls=CALLS)
    | st.builds(reply, st.none(), tool_calls=CALLS)
    | st.builds(tool, WORDS, tool_call_id=WORDS)
    | st.builds(lambda content: {"role": "system", "content": content}, WORDS)
)


def _other_shape(message: Json) -> None:
    content = message["content"]
    if isinstance(content, str):
        message["content"] = [text(content[:1]), text(content[1:])]
    elif content and len(content) == 1 and content[0]["type"] == "text":
        message["content"] = content[0]["text"]


def _other_order(message: Json) -> None:
    pairs = list(message.items())
    message.clear()
    message.update(reversed(pairs))


def _arguments_printed_again(message: Json) -> None:
    for each in message.get("tool_calls") or []:
        arguments = json.loads(each["function"]["arguments"])
        each["function"]["arguments"] = json.dumps(dict(reversed(arguments.items())), indent=1)


def _reasoning(message: Json) -> None:
    message["reasoning_content"] = "so I think"
    message["reasoning_details"] = [{"type": "reasoning.text", "text": "so", "signature": "s"}]


def _nulls(message: Json) -> None:
    message.update(refusal=None, annotations=[], audio=None, function_call=None)
    message.setdefault("tool_calls", None)


def _cache_control(message: Json) -> None:
    message["cache_control"] = {"type": "ephemeral"}
    for part in message["content"] if isinstance(message["content"], list) else []:
        part["cache_control"] = {"type": "ephemeral"}


def _white_space(message: Json) -> None:
    if isinstance(message["content"], str):
        message["content"] = f"\n {message['content']}\n"


def _stamps(message: Json) -> None:
    for place, each in enumerate(message.get("tool_calls") or []):
        each["index"] = place


def _think_tags(message: Json) -> None:
    if message["role"] == "assistant" and isinstance(message["content"], str):
        message["content"] = f"<think>\nso\n</think>\n\n{message['content']}"


HABITS: list[Callable[[Json], None]] = [
    _other_shape,
    _other_order,
    _arguments_printed_again,
    _reasoning,
    _nulls,
    _cache_control,
    _white_space,
    _stamps,
    _think_tags,
]


@given(MESSAGES, st.lists(st.sampled_from(HABITS), max_size=6, unique=True), st.booleans())
def test_what_clients_change_keeps_the_fingerprint(
    message: Json, habits: list[Callable[[Json], None]], ids: bool
) -> None:
    theirs = copy.deepcopy(message)
    habits.sort(key=lambda habit: habit is _other_shape)  # others work on what a message is at first
    for habit in habits:
        habit(theirs)
    assert fingerprint(raw(theirs), ids) == fingerprint(raw(message), ids)


def _leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where the words of a message stand."""
    if isinstance(value, str):
        return [path]
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [leaf for key, each in items for leaf in _leaves(each, (*path, key))]


@given(MESSAGES, st.randoms(use_true_random=False))
def test_a_changed_word_changes_the_fingerprint(message: Json, choice: random.Random) -> None:
    theirs = copy.deepcopy(message)
    *path, last = choice.choice(_leaves(message))
    place: Any = theirs
    for key in path:
        place = place[key]
    # An argument's JSON is still JSON with a word more.
    place[last] = f"[{place[last]}]" if last == "arguments" else place[last] + "y"
    assert fingerprint(raw(theirs)) != fingerprint(raw(message))


# Never fails

KEYS = st.sampled_from(
    ["role", "content", "type", "text", "name", "tool_call_id", "tool_calls", "function", "function_call", "custom"]
    + ["arguments", "input", "id", "audio", "refusal", "cache_control", "index", "thinking", LONE]
)
LEAVES = (
    SCALARS
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.integers()
    | KEYS
    | st.sampled_from(["assistant", "user", "tool", "developer", ""])
)
ANYTHING = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=6))


@pytest.mark.parametrize("echo", [None, "", " \n", []])
def test_a_call_is_known_without_what_was_said_beside_it(echo: Any) -> None:
    stored = raw(calls(call(), content="Let me look."))
    assert fingerprint(raw(calls(call(), content=echo))) == bare(stored) != fingerprint(stored)
    assert fingerprint(raw(calls(call(id="c2"), content=echo))) != bare(stored)
    assert bare(raw(calls(call(id=None), content="Let me look."))) == bare(raw(reply('"tool_calls"'))) == b""
    assert bare(b'["tool_calls"') == bare(b'["tool_calls"]') == b""


@given(ANYTHING, ANYTHING, st.booleans())
def test_any_json_has_a_fingerprint(one: Any, another: Any, ids: bool) -> None:
    assert len(bare(raw(one))) in (0, 16)
    assert len(fingerprint(raw(one), ids)) == len(joined(raw(one), raw(another))) == 16
    assert fingerprint(json.dumps(one, indent=2).encode(), ids) == fingerprint(raw(one), ids)


@given(st.binary() | st.text('{}[]",:\\01 anul.e-', max_size=12).map(str.encode), st.binary(max_size=4))
def test_any_bytes_have_a_fingerprint(one: bytes, another: bytes) -> None:
    assert len(fingerprint(one)) == len(joined(one, another)) == 16


def nested(depth: int, leaf: str = "") -> str:
    return "[" * depth + leaf + "]" * depth


@pytest.mark.parametrize("depth", [65, 500, 1010, 5000, 100000])
@pytest.mark.parametrize("shape", ["%s", '{"role":%s}', '{"content":[{"type":"x","x":%s}]}', '{"x":%s,"content":"hi"}'])
def test_deep_values_have_a_fingerprint(depth: int, shape: str) -> None:
    one = (shape % nested(depth)).encode()
    assert len(fingerprint(one)) == len(joined(one, one)) == len(joined(raw(reply()), one)) == 16


def test_deep_values_are_compared_by_their_bytes() -> None:
    one, another = (user([{"type": "x", "x": json.loads(nested(500, n))}]) for n in "12")
    assert fingerprint(raw(one)) != fingerprint(raw(another))
    one, another = (calls(call(nested(500, n))) for n in "12")
    assert fingerprint(raw(one)) != fingerprint(raw(another))
    assert fingerprint(raw(one)) == fingerprint(json.dumps(one, indent=2).encode())


@pytest.mark.parametrize("number", ["1e400", "-1e400", "1" * 30, "1" * 5000, "1e300", "-0", "0.1e-7"])
def test_numbers_of_any_size_are_compared(number: str) -> None:
    for form in ('{"role":"user","content":[{"type":"x","x":[%s]}]}', '{"role":"user","content":%s}', "[%s]"):
        assert fingerprint((form % number).encode()) != fingerprint((form % "null").encode())
    assert fingerprint(raw(calls(call(f'{{"a": {number}}}')))) != fingerprint(raw(calls(call('{"a":null}'))))
    assert len(fingerprint(raw(calls(call(f'{{"a":"\\ud83d","b":{number}}}'))))) == 16


# Real clients

ECHOES = [recording for recording in recordings() if recording.meta.get("echo")]
BY_TURN = {(recording.group, recording.turn): recording for recording in recordings()}
# pydantic-ai made a reply of an error event: its own reading of `failed_generation`.
NO_REPLY = {("groq--pydantic-ai--03", 1)}


def _stored(recording: Recording) -> bytes | None:
    """The reply of a recorded answer, with all that the upstream put into it."""
    if "event-stream" not in (recording.meta["response_content_type"] or ""):
        return raw(json.loads(recording.response)["choices"][0]["message"])
    fold = deltas.Fold()
    for event in sse.events(recording.response):
        if not event.data.startswith(b"[DONE]"):
            fold.chunk(json.loads(event.data))
    message = fold.message()
    return raw(message) if message else None


@pytest.mark.skipif(not ECHOES, reason="no recorded traffic beside the project")
@pytest.mark.parametrize("recording", ECHOES, ids=lambda recording: recording.id)
def test_what_a_real_client_sent_back_has_the_mark_of_the_reply(recording: Recording) -> None:
    echo = recording.meta["echo"]
    answered = (recording.group, int(echo["of"]))
    stored = _stored(BY_TURN[answered])
    theirs = raw(json.loads(recording.request or b"")["messages"][echo["message_index"]])
    if answered in NO_REPLY:
        assert stored is None or fingerprint(stored) != fingerprint(theirs)
        return
    assert stored is not None
    assert fingerprint(theirs, ids=not is_loose(fingerprint(stored))) == fingerprint(stored)
    assert is_loose(fingerprint(stored)) == ("tool id" in echo["differences"])


@pytest.mark.skipif(not ECHOES, reason="no recorded traffic beside the project")
def test_the_messages_of_real_requests_are_told_apart() -> None:
    """Within a list, equal marks are of messages that are equal but for what does not count."""
    for recording in BY_TURN.values():
        messages = json.loads(recording.request or b"{}").get("messages", [])
        said = {json.dumps([m["role"], m.get("content"), m.get("tool_calls"), m.get("tool_call_id")]) for m in messages}
        assert len({fingerprint(raw(message)) for message in messages}) == len(said), recording.id


@pytest.mark.parametrize("value", [{"title": "T", "n": [1.5, None]}, 5, False])
def test_a_value_as_content_is_what_goes_back_of_it(value: Any) -> None:
    as_text = dumps({"role": "assistant", "content": dumps(value).decode()})
    assert fingerprint(dumps({"role": "assistant", "content": value})) == fingerprint(as_text)
    assert fingerprint(dumps({"role": "user", "content": value})) != fingerprint(
        dumps({"role": "user", "content": "x"})
    )


# What a message says ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ({"role": "user", "content": " hello \n"}, "hello"),
        ({"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": " two"}]}, "one two"),
        (
            {"role": "user", "content": [{"type": "text", "text": "one"}, PNG, {"type": "text", "text": "two"}]},
            "one\ntwo",
        ),
        ({"role": "user", "content": None}, ""),
        ({"role": "assistant", "content": "<think>so</think>then"}, "then"),
        (7, ""),
        (b"{", ""),
        (b'{"role":"system","content":' + b"[" * 90 + b"]" * 90 + b"}", ""),
    ],
)
def test_what_a_message_says(message: Any, said: str) -> None:
    assert fingerprints.text(raw(message)) == said


@pytest.mark.parametrize(
    ("message", "nothing"),
    [
        ({"role": "assistant", "content": ""}, True),
        ({"role": "assistant", "content": None, "reasoning_content": "hm", "tool_calls": []}, True),
        ({"role": "assistant"}, True),
        ({"role": "assistant", "content": "x"}, False),
        ({"role": "assistant", "content": None, "tool_calls": [{"id": "c1", "function": {"name": "f"}}]}, False),
        ({"role": "user", "content": ""}, False),
        (b"{", False),
    ],
)
def test_which_copy_of_a_reply_says_nothing(message: Any, nothing: bool) -> None:
    assert says_nothing(raw(message)) is nothing


def test_calls_and_what_answers_them() -> None:
    calls = raw({"role": "assistant", "tool_calls": [{"id": "c1", "function": {"name": "f"}}, {"function": {}}]})
    assert (made("assistant", calls), made("user", calls)) == (["c1", ""], [])
    assert answered("tool", raw({"role": "tool", "tool_call_id": "c1"})) == "c1"
    assert answered("user", raw({"role": "user"})) is None
