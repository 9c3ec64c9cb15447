"""Chat completions: what a request says, what goes upstream, what a reply leaves in the history."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.members import Malformed, members
from proxy.core.model import History, Message, Turn
from proxy.dialects import chat
from proxy.errors import BadRequest

SYSTEM = b'{"role":"system","content":"S"}'
DEVELOPER = b'{ "role":"developer", "content":"D" }'
USER = b'{"content": "hi", "role": "user", "x": 1.0}'
REPLY = b'{"role":"assistant","content":"ho"}'
OLD = b'{"role":"user","content":"before"}'


def history(*systems: bytes | None, silent: bool = False) -> History:
    """A history of one turn per system block; `silent`: the replies said nothing."""
    echo = None if silent else Message("assistant", REPLY)
    return History(
        tuple(Turn(str(n), system, (Message("user", OLD),), REPLY, echo) for n, system in enumerate(systems))
    )


def request(*messages: bytes) -> bytes:
    return b'{"messages":[' + b",".join(messages) + b"]}"


def sent(body: bytes, past: History) -> tuple[list[Any], int]:
    body, injected = chat.splice(chat.read(body), past)
    return json.loads(body)["messages"], injected


def loaded(*messages: bytes) -> list[Any]:
    return [json.loads(message) for message in messages]


# Reading a request


def test_a_request_is_read_as_bytes() -> None:
    body = b' {"model":"m\\u00e9", "stream":true, "messages" : [ ' + SYSTEM + b" ,\n" + USER + b" ] } "
    ask = chat.read(body)
    assert ask.body == body
    assert body[ask.start : ask.end].startswith(b"[") and body[ask.start : ask.end].endswith(b"]")
    assert (ask.system, ask.messages) == (SYSTEM, (Message("user", USER),))
    assert (ask.model, ask.stream) == ("mé", True)


@pytest.mark.parametrize(
    ("head", "system"),
    [
        ([], None),
        ([SYSTEM], SYSTEM),
        ([DEVELOPER], DEVELOPER),
        ([SYSTEM, DEVELOPER, SYSTEM], SYSTEM + b"," + DEVELOPER + b"," + SYSTEM),
    ],
)
def test_the_system_messages_at_the_head_are_one_block(head: list[bytes], system: bytes | None) -> None:
    ask = chat.read(request(*head, USER, SYSTEM))
    assert ask.system == system
    assert [message.raw for message in ask.messages] == [USER, SYSTEM]


def test_a_request_of_system_messages_alone_has_no_other() -> None:
    assert chat.read(request(SYSTEM)).messages == ()
    assert chat.read(request()).system is None


@pytest.mark.parametrize(
    ("raw", "role"),
    [
        (b'{"role":"tool"}', "tool"),
        (b'{"\\u0072ole":"us\\u0065r"}', "user"),
        (b'{"role":"\\ud83d"}', "?"),
        (b'{"content":"\\ud83d","role":"user"}', "user"),
        (b'{"role":null}', ""),
        (b'{"role":5}', ""),
        (b'{"role":["user"]}', ""),
        (b'{"role":{"a":"system"}}', ""),
        (b"{}", ""),
        (b'"system"', ""),
        (b"null", ""),
        (b"[1]", ""),
        (b"1e400", ""),
    ],
)
def test_a_message_without_a_role_we_can_name_is_the_upstreams_to_judge(raw: bytes, role: str) -> None:
    [message] = chat.read(request(raw)).messages
    assert message == Message(role, raw)
    assert sent(request(raw), history(None))[0][-1] == json.loads(raw)


@pytest.mark.parametrize(
    ("member", "model", "stream"),
    [
        (b'"model":"m"', "m", False),
        (b'"model":""', None, False),
        (b'"model":5', None, False),
        (b'"model":null,"stream":null', None, False),
        (b'"model":"\\ud83d"', "?", False),
        (b'"model":["m"],"stream":"true"', None, False),
        (b'"stream":false', None, False),
        (b'"\\u0073tream" : true', None, True),
    ],
)
def test_model_and_stream_are_what_their_members_say(member: bytes, model: str | None, stream: bool) -> None:
    ask = chat.read(b"{" + member + b',"messages":[]}')
    assert (ask.model, ask.stream) == (model, stream)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"hi",
        b"[]",
        b"{}",
        b'{"model":"m"}',
        b'{"messages":null}',
        b'{"messages":{}}',
        b'{"messages":"hi"}',
        b'{"messages":[],"messages":[]}',
        b'{"messages":[1,]}',
        b'{"messages":[{"role":"\\x"}]}',
        b'{"messages":[{"role":"user","content":"\xff"}]}',
        b'{"messages":[NaN]}',
        b'{"messages":' + b"[" * 100_000,
        request(b'{"role":"\\ud83d","n":' + b"1" * 5000 + b"}"),
        b'\xef\xbb\xbf{"messages":[]}',
    ],
    ids=lambda body: repr(body[:40]),
)
def test_what_is_no_chat_request_is_the_callers_mistake(body: bytes) -> None:
    with pytest.raises(BadRequest) as refused:
        chat.read(body)
    assert refused.value.status == 400
    assert "Correct it" in refused.value.message or refused.value.param == "messages"


@given(
    st.binary(max_size=30)
    | st.text('{}[]",:\\u01 messagrol', max_size=40).map(lambda s: b'{"messages":[' + s.encode() + b"]}")
)
def test_no_body_makes_reading_fail_otherwise(body: bytes) -> None:
    try:
        ask = chat.read(body)
    except BadRequest:
        return
    json.loads(chat.splice(ask, history(SYSTEM))[0])


# Putting a history in front


def test_without_a_history_the_body_goes_as_it_came() -> None:
    body = request(SYSTEM, USER)
    assert chat.splice(chat.read(body), History()) == (body, 0)
    assert chat.splice(chat.read(body), history(None, silent=True)) == (body, 0)


@pytest.mark.parametrize(
    ("past", "own", "wanted", "injected"),
    [
        (history(None), [USER], [OLD, REPLY, USER], 2),
        (history(None, None), [USER], [OLD, REPLY, OLD, REPLY, USER], 4),
        (history(None), [], [OLD, REPLY], 2),
        (history(None), [SYSTEM, USER], [SYSTEM, OLD, REPLY, USER], 2),
        (history(None), [SYSTEM, DEVELOPER, USER, SYSTEM], [SYSTEM, DEVELOPER, OLD, REPLY, USER, SYSTEM], 2),
        (history(SYSTEM), [USER], [SYSTEM, OLD, REPLY, USER], 3),
        (history(SYSTEM), [DEVELOPER, USER], [DEVELOPER, OLD, REPLY, USER], 2),
        (history(SYSTEM, DEVELOPER, None), [USER], [DEVELOPER, *[OLD, REPLY] * 3, USER], 7),
        (history(SYSTEM + b"," + DEVELOPER), [USER], [SYSTEM, DEVELOPER, OLD, REPLY, USER], 4),
        (history(SYSTEM, silent=True), [USER], [SYSTEM, USER], 1),
        (history(SYSTEM, silent=True), [DEVELOPER, USER], [DEVELOPER, USER], 0),
    ],
)
def test_one_system_block_leads_then_the_history_then_the_new(
    past: History, own: list[bytes], wanted: list[bytes], injected: int
) -> None:
    assert sent(request(*own), past) == (loaded(*wanted), injected)


@given(
    st.lists(
        st.sampled_from([b'"a":1.0', b'"b" : 1e400', b'"c":"\\ud83d"', b'"d":[ 1 ]', b'"e":{"messages":[]}']),
        unique=True,
    )
)
def test_every_other_member_keeps_its_bytes_and_its_place(others: list[bytes]) -> None:
    for place in range(len(others) + 1):
        body = b"{ " + b" ,".join([*others[:place], b'"messages":[' + USER + b"]", *others[place:]]) + b" }"
        ask = chat.read(body)
        new, _ = chat.splice(ask, history(SYSTEM))
        assert new.startswith(body[: ask.start]) and new.endswith(body[ask.end :])
        assert [(name, member.raw) for name, member in members(new).items() if name != "messages"] == [
            (name, member.raw) for name, member in members(body).items() if name != "messages"
        ]
        assert members(new)["messages"].raw == b"[" + b",".join([SYSTEM, OLD, REPLY, USER]) + b"]"


# Folding a reply


def stream(*chunks: Any) -> bytes:
    return b"".join(
        [b"data: " + (chunk if isinstance(chunk, bytes) else json.dumps(chunk).encode()) + b"\n\n" for chunk in chunks]
    )


def text(content: str, **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": content}, **more}]}


def test_a_stream_folds_to_its_message_model_usage_and_finish() -> None:
    reply = chat.fold_stream(
        stream(
            {"choices": [], "model": "", "prompt_filter_results": []},
            {"model": "m", "usage": {"total_tokens": 1}} | text("a"),
            {"model": "late", "usage": None} | text("b", finish_reason="stop"),
            {"choices": [], "usage": {"total_tokens": 2}},
            {"choices": [], "usage": None, "moderation": {}},
            b"[DONE]",
            text("after the end"),
            {"error": {"message": "after the end"}},
        )
    )
    assert reply.message == b'{"role":"assistant","content":"ab"}'
    assert reply.echo == Message("assistant", reply.message)
    assert (reply.model, reply.finish_reason, reply.usage) == ("m", "stop", b'{"total_tokens":2}')
    assert (reply.finished, reply.error) == (True, False)


@pytest.mark.parametrize(
    ("body", "finished", "error"),
    [
        (stream(text("a"), b"[DONE]"), False, False),
        (stream(text("a"), b"not json", b"", b"5", b"[]", b'"x"'), False, False),
        (stream(text("a", finish_reason="stop"), {"error": None} | text("")), True, False),
        (stream(text("a", finish_reason="stop"), {"error": {"message": "x"}} | text("b")), True, True),
        (stream(text("a"), {"error": "text"}), False, True),
        (stream(text("a"), text("", finish_reason="error")), True, True),
        (stream(text("a")) + b'event: error\ndata: {"message":"x"}\n\n', False, True),
        (stream(text("a")) + b"event: error\ndata: not json\n\n", False, True),
        (stream(text("a")) + b"event: error\ndata: []\n\n", False, True),
        (stream(text("a")) + b'error: {"code":500}\n', False, True),
    ],
)
def test_an_error_anywhere_makes_the_reply_an_error(body: bytes, finished: bool, error: bool) -> None:
    reply = chat.fold_stream(body)
    assert (reply.finished, reply.error) == (finished, error)
    assert reply.message == b'{"role":"assistant","content":"a"}'


def test_a_stream_without_a_delta_has_no_message() -> None:
    reply = chat.fold_stream(stream({"choices": [], "model": 5}, b"[DONE]"))
    assert (reply.message, reply.echo, reply.model) == (None, None, None)


def completion(message: bytes, **choice: Any) -> bytes:
    rest = json.dumps({"finish_reason": "stop", **choice})[1:-1]
    return b'{"model":"m","choices":[{"index":0,"message": ' + message + b" ," + rest.encode() + b"}]}"


def test_a_json_reply_keeps_its_message_as_bytes() -> None:
    raw = b'{"content":"\\u0068o", "role":"assistant","n":1.0,"tool_calls":[]}'
    reply = chat.fold_body(b"\n \n" + completion(raw)[:-1] + b',"usage":{"total_tokens":5}}\n')
    assert reply.message == raw
    assert reply.echo == Message("assistant", b'{"content":"ho","role":"assistant"}')
    assert (reply.model, reply.finish_reason, reply.usage) == ("m", "stop", b'{"total_tokens":5}')
    assert (reply.finished, reply.error) == (True, False)


@pytest.mark.parametrize(
    "raw", [b'{"role":"assistant", "content":"\\u00e9"}', b'{"content":"\\ud83d","role":"assistant","reasoning":"r" }']
)
def test_a_message_that_goes_back_unchanged_keeps_its_bytes(raw: bytes) -> None:
    reply = chat.fold_body(completion(raw))
    assert reply.echo == Message("assistant", raw)


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"[]", True),
        (b"42", True),
        (b'{"error":{"message":"x"}}', True),
        (b'{"error":"x","choices":[]}', True),
        (b"{}", False),
        (b'{"choices":null}', False),
        (b'{"choices":[]}', False),
        (b'{"choices":[5,{"index":1,"message":{}}]}', False),
        (b'{"choices":[{"text":"x"}]}', True),
        (completion(b'"x"'), True),
        (completion(REPLY, error={"code": 502}), True),
        (completion(REPLY, finish_reason="error"), True),
    ],
)
def test_a_json_body_without_a_message_is_no_reply(body: bytes, error: bool) -> None:
    reply = chat.fold_body(body)
    assert (reply.message, reply.echo, reply.finished, reply.error) == (None, None, False, error)


@pytest.mark.parametrize("reason", ["", None, 5])
def test_a_json_reply_is_finished_whatever_its_finish_reason(reason: Any) -> None:
    reply = chat.fold_body(completion(REPLY, finish_reason=reason))
    assert (reply.finished, reply.finish_reason) == (True, None)


def test_choice_0_is_recorded_wherever_it_stands() -> None:
    other = b'{"index":1,"message":{"role":"assistant","content":"other"}}'
    body = b'{"choices":[' + other + b',{"index":0,"message":' + REPLY + b"}]}"
    assert chat.fold_body(body).message == REPLY


@pytest.mark.parametrize("body", [b"", b"{", b"<html>", b'{"choices":[{"message":{"content":"\xff"}}]}'])
def test_a_body_that_is_no_json_is_malformed(body: bytes) -> None:
    with pytest.raises(Malformed):
        chat.fold_body(body)


# What of a reply goes back

CALLS = [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
SAID = {"role": "assistant", "content": "x"}
ACTED = {"role": "assistant", "content": None, "tool_calls": CALLS}

ECHOES: list[tuple[str, dict[str, Any], dict[str, Any] | None]] = [
    ("text", SAID, SAID),
    ("white space is text", {**SAID, "content": " "}, {**SAID, "content": " "}),
    (
        "parts",
        {**SAID, "content": [{"type": "text", "text": "x"}]},
        {**SAID, "content": [{"type": "text", "text": "x"}]},
    ),
    ("tool calls", ACTED, ACTED),
    ("tool calls with empty content", {**ACTED, "content": ""}, {**ACTED, "content": ""}),
    ("tool calls with no parts", {**ACTED, "content": []}, {"role": "assistant", "tool_calls": CALLS}),
    ("an index stamp", {**ACTED, "tool_calls": [{"index": 0, **CALLS[0]}]}, ACTED),
    ("empty arguments", {**ACTED, "tool_calls": [{**CALLS[0], "function": {"name": "f", "arguments": ""}}]}, ACTED),
    (
        "arguments as an object",
        {**ACTED, "tool_calls": [{**CALLS[0], "function": {"name": "f", "arguments": {}}}]},
        ACTED,
    ),
    ("tool calls that are no list", {**SAID, "tool_calls": "x"}, SAID),
    ("empty fillers", {**SAID, "tool_calls": [], "refusal": None, "name": "", "audio": None, "reasoning": ""}, SAID),
    ("a function call without a name", {**SAID, "function_call": {"name": "", "arguments": ""}}, SAID),
    ("a function call that is null", {**SAID, "function_call": None}, SAID),
    (
        "a function call",
        {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
        {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
    ),
    ("unknown keys", {**SAID, "annotations": [], "executed_tools": [1], "parsed": {}, "logprobs": None}, SAID),
    ("no role", {"content": "x"}, SAID),
    ("a role that is null", {"content": "x", "role": None}, SAID),
    ("reasoning", {**SAID, "reasoning": "r"}, {**SAID, "reasoning": "r"}),
    ("an empty reasoning_content", {**ACTED, "reasoning_content": ""}, {**ACTED, "reasoning_content": ""}),
    ("a reasoning_content that is null", {**ACTED, "reasoning_content": None}, ACTED),
    ("empty reasoning_details", {**SAID, "reasoning_details": []}, {**SAID, "reasoning_details": []}),
    ("reasoning_details that are null", {**SAID, "reasoning_details": None}, SAID),
    (
        "a refusal",
        {"role": "assistant", "content": None, "refusal": "no"},
        {"role": "assistant", "content": None, "refusal": "no"},
    ),
    (
        "audio by its ID",
        {"role": "assistant", "content": None, "audio": {"id": "a1", "data": "QQ==", "transcript": "hi"}},
        {"role": "assistant", "content": None, "audio": {"id": "a1"}},
    ),
    ("audio without an ID", {**SAID, "audio": {"id": "", "data": ""}}, SAID),
    ("nothing", {"role": "assistant", "content": None}, None),
    ("nothing but reasoning", {"role": "assistant", "content": "", "reasoning": "r", "reasoning_content": "r"}, None),
    ("no content at all", {"role": "assistant"}, None),
    ("no parts", {"role": "assistant", "content": []}, None),
]


@pytest.mark.parametrize(("message", "wanted"), [case[1:] for case in ECHOES], ids=[case[0] for case in ECHOES])
@pytest.mark.parametrize("streamed", [False, True])
def test_what_goes_back_of_a_reply(message: dict[str, Any], wanted: dict[str, Any] | None, streamed: bool) -> None:
    if streamed:
        reply = chat.fold_stream(stream({"choices": [{"delta": message, "finish_reason": "stop"}]}))
    else:
        reply = chat.fold_body(completion(json.dumps(message).encode()))
    if wanted is None:
        assert reply.echo is None
        return
    assert reply.echo is not None
    # A stream's fold writes the content even where no delta did.
    assert {"content": None, **json.loads(reply.echo.raw)} == {"content": None, **wanted}
    assert reply.echo.role == "assistant"


def test_a_reply_whose_envelope_names_a_member_twice_is_a_reply() -> None:
    reply = chat.fold_body(b'{"id":1,"id":2,"choices":[{"message":{"role":"assistant","content":"a"}}]}')
    assert reply.finished and reply.message == b'{"role":"assistant","content":"a"}'
