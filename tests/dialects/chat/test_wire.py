"""Chat completions: what a request says, and what a reply says once it is whole."""

from __future__ import annotations

import json
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.json_bytes import Malformed
from proxy.core.model import Message
from proxy.dialects.chat import wire
from proxy.errors import BadRequest

SYSTEM = b'{"role":"system","content":"S"}'
DEVELOPER = b'{ "role":"developer", "content":"D" }'
USER = b'{"content": "hi", "role": "user", "x": 1.0}'
REPLY = b'{"role":"assistant","content":"ho"}'


def request(*messages: bytes) -> bytes:
    return b'{"messages":[' + b",".join(messages) + b"]}"


# Reading a request


def test_a_request_is_read_as_bytes() -> None:
    body = b' {"model":"m\\u00e9", "stream":true, "messages" : [ ' + SYSTEM + b" ,\n" + USER + b" ] } "
    ask = wire.read(body)
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
    ask = wire.read(request(*head, USER, SYSTEM))
    assert ask.system == system
    assert [message.raw for message in ask.messages] == [USER, SYSTEM]


def test_a_request_of_system_messages_alone_has_no_other() -> None:
    assert wire.read(request(SYSTEM)).messages == ()
    assert wire.read(request()).system is None


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
    [message] = wire.read(request(raw)).messages
    assert message == Message(role, raw)


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
    ask = wire.read(b"{" + member + b',"messages":[]}')
    assert (ask.model, ask.stream) == (model, stream)


@pytest.mark.parametrize(
    ("member", "tools"),
    [
        (b'"n":1', b""),
        (b'"tools":[]', b"[]"),
        (b'"tools": [ {"type":"function", "n":1.0} ]', b'[ {"type":"function", "n":1.0} ]'),
        (b'"tools":null', b"null"),
    ],
)
def test_tools_are_kept_as_sent(member: bytes, tools: bytes) -> None:
    assert wire.read(b"{" + member + b',"messages":[]}').tools == tools


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
        wire.read(body)
    assert refused.value.status == 400
    assert "Correct it" in refused.value.message or refused.value.param == "messages"


@given(
    st.binary(max_size=30)
    | st.text('{}[]",:\\u01 messagrol', max_size=40).map(lambda s: b'{"messages":[' + s.encode() + b"]}")
)
def test_no_body_makes_reading_fail_otherwise(body: bytes) -> None:
    try:
        ask = wire.read(body)
    except BadRequest:
        return
    raws = [*json.loads(b"[" + (ask.system or b"") + b"]"), *[json.loads(message.raw) for message in ask.messages]]
    assert json.loads(body[ask.start : ask.end]) == raws


# Folding a reply


def stream(*chunks: Any) -> bytes:
    return b"".join(
        [b"data: " + (chunk if isinstance(chunk, bytes) else json.dumps(chunk).encode()) + b"\n\n" for chunk in chunks]
    )


def text(content: str, **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": content}, **more}]}


def test_a_stream_folds_to_its_message_model_usage_and_finish() -> None:
    reply = wire.fold_stream(
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
        # vLLM's older servers and Mistral; gateways in front of Anthropic; MiniMax.
        (stream(text("a"), {"object": "error", "message": "x", "code": 500}, b"[DONE]"), False, True),
        (stream(text("a"), {"type": "error", "message": "x"}, b"[DONE]"), False, True),
        (stream(text("a"), {"choices": None, "base_resp": {"status_code": 1002}}), False, True),
        (stream(text("a"), {"choices": None, "base_resp": {"status_code": 0}}, b"[DONE]"), False, False),
        (stream({"object": "error"} | text("a"), {"type": "error"} | text("")), False, False),
    ],
)
def test_an_error_anywhere_makes_the_reply_an_error(body: bytes, finished: bool, error: bool) -> None:
    reply = wire.fold_stream(body)
    assert (reply.finished, reply.error) == (finished, error)
    assert reply.message == b'{"role":"assistant","content":"a"}'


def test_a_stream_without_a_delta_has_no_message() -> None:
    reply = wire.fold_stream(stream({"choices": [], "model": 5}, b"[DONE]"))
    assert (reply.message, reply.model) == (None, None)


def completion(message: bytes, **choice: Any) -> bytes:
    rest = json.dumps({"finish_reason": "stop", **choice})[1:-1]
    return b'{"model":"m","choices":[{"index":0,"message": ' + message + b" ," + rest.encode() + b"}]}"


def test_a_json_reply_keeps_its_message_as_bytes() -> None:
    raw = b'{"content":"\\u0068o", "role":"assistant","n":1.0,"tool_calls":[]}'
    reply = wire.fold_body(b"\n \n" + completion(raw)[:-1] + b',"usage":{"total_tokens":5}}\n')
    assert reply.message == raw
    assert (reply.model, reply.finish_reason, reply.usage) == ("m", "stop", b'{"total_tokens":5}')
    assert (reply.finished, reply.error) == (True, False)


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
    reply = wire.fold_body(body)
    assert (reply.message, reply.finished, reply.error) == (None, False, error)


@pytest.mark.parametrize("reason", ["", None, 5])
def test_a_json_reply_is_finished_whatever_its_finish_reason(reason: Any) -> None:
    reply = wire.fold_body(completion(REPLY, finish_reason=reason))
    assert (reply.finished, reply.finish_reason) == (True, None)


def test_choice_0_is_recorded_wherever_it_stands() -> None:
    other = b'{"index":1,"message":{"role":"assistant","content":"other"}}'
    body = b'{"choices":[' + other + b',{"index":0,"message":' + REPLY + b"}]}"
    assert wire.fold_body(body).message == REPLY


@pytest.mark.parametrize("body", [b"", b"{", b"<html>", b'{"choices":[]}x', b'{"a":"\t"}'])
def test_a_body_that_is_no_json_is_malformed(body: bytes) -> None:
    with pytest.raises(Malformed):
        wire.fold_body(body)


@pytest.mark.parametrize("odd", [b'"x":NaN', b'"x":[-Infinity,1e400]', b'"x":"\xff"'])
@pytest.mark.parametrize(("reason", "finished"), [(b'"stop"', True), (b"null", False)])
def test_a_body_that_only_a_clients_library_reads_is_whole_where_it_says_so(
    odd: bytes, reason: bytes, finished: bool
) -> None:
    reply = wire.fold_body(b'{"choices":[{"message":%b,"finish_reason":%b}],%b}' % (REPLY, reason, odd))
    assert json.loads(reply.message or b"") == json.loads(REPLY)
    assert reply.finished is finished


def test_what_an_odd_body_says_can_be_sent_again() -> None:
    message = b'{"role":"assistant","content":"\xff","n":NaN,"m":[1e400]}'
    reply = wire.fold_body(b'{"choices":[{"message":%b,"finish_reason":"stop"}]}' % message)
    assert json.loads(reply.message or b"") == {"role": "assistant", "content": "\ufffd", "n": None, "m": [None]}


CHUNK = b'{"choices":[{"index":0,"delta":{"content":"%b"}}]}'


@pytest.mark.parametrize(
    "body",
    [
        b"data: " + CHUNK % b"a" + b"\ndata: " + CHUNK % b"b" + b"\n\n",
        b"data: " + CHUNK % b"a" + b"\ndata: " + CHUNK % b"b" + b"\ndata: [DONE]\ndata: " + CHUNK % b"c" + b"\n\n",
        b"data: no\ndata: " + CHUNK % b"a" + b"\ndata: {\ndata:\n\ndata: " + CHUNK % b"b" + b"\n\n",
        b"data: " + CHUNK.replace(b'"index":0', b'"x":NaN') % b"a" + b"\n\ndata: " + CHUNK % b"b" + b"\n\n",
        b"event: error\ndata: " + CHUNK % b"ab" + b"\n\n",
    ],
)
def test_events_that_some_library_reads_are_read(body: bytes) -> None:
    reply = wire.fold_stream(body)
    assert json.loads(reply.message or b"")["content"] == "ab"
    assert not reply.error


def test_an_event_whose_bytes_are_no_utf8_keeps_the_rest_of_its_text() -> None:
    body = b"".join([b"data: " + CHUNK % text + b"\n\n" for text in (b"well \xf0\x9f", b"\x98\x80 done")])
    assert json.loads(wire.fold_stream(body).message or b"")["content"] == "well \ufffd\ufffd\ufffd done"


@pytest.mark.parametrize("data", [b"[1]", b'{"message":"x"}', b"no\ndata: JSON", b"no JSON"])
def test_what_an_event_named_error_says_beside_a_chunk_is_an_error(data: bytes) -> None:
    assert wire.fold_stream(b"event: error\ndata: " + data + b"\n\n").error


def test_plain_text_is_a_reply_that_nothing_calls_whole() -> None:
    reply = wire.fold_text(b"Hello.", "text/plain")
    assert (reply.message, reply.finished) == (b'{"role":"assistant","content":"Hello."}', False)
    assert wire.is_torn(b'{"a') and not wire.is_torn(b"{}")


SURROGATE = b'"model":"\\ud83d",'  # only the standard library reads it
SAID = b'{"role":"assistant", "content":"a"}'


@pytest.mark.parametrize(
    ("body", "message", "failed"),
    [
        (b"{" + SURROGATE + b'"choices":[{"index":1},{"message":' + SAID + b'}],"usage":{"n":5}}', SAID, False),
        (b'{"choices":[5,{"message":' + SAID + b"}]}", SAID, False),
        (b"{" + SURROGATE + b'"model":"m","choices":[{"message":' + SAID + b"}]}", SAID.replace(b", ", b","), False),
        (b"{" + SURROGATE + b'"choices":[]}', None, False),
        (b"{" + SURROGATE + b'"error":{"code":502}}', None, True),
        (b"{" + SURROGATE + b'"choices":[{"message":' + SAID + b',"finish_reason":"error"}]}', None, True),
        (b"{" + SURROGATE + b'"choices":[{"message":5}]}', None, True),
        (b"5", None, True),
    ],
)
def test_an_odd_envelope_is_read_as_a_plain_one_is(body: bytes, message: bytes | None, failed: bool) -> None:
    reply = wire.fold_body(body)
    assert (reply.message, reply.error) == (message, failed)


def test_a_reply_whose_envelope_names_a_member_twice_is_a_reply() -> None:
    reply = wire.fold_body(b'{"id":1,"id":2,"choices":[{"message":{"role":"assistant","content":"a"}}]}')
    assert reply.finished and reply.message == b'{"role":"assistant","content":"a"}'


# A list that was seen -----------------------------------------------------------------------

S, U, A, V = (
    b'{"role":"system","content":"s"}',
    b'{"role":"user","content":"u"}',
    REPLY,
    b'{"role":"user","content":"v"}',
)


def listed(*messages: bytes, between: bytes = b",") -> bytes:
    return b'{"messages":[' + between.join(messages) + b'],"model":"m"}'


@pytest.mark.parametrize("head", [[], [S]])
def test_of_a_list_that_was_seen_only_what_is_new_is_read(head: list[bytes]) -> None:
    first = wire.read(listed(*head, U))
    seen = wire.seen_in(first, 1)
    ask, plain = wire.read(listed(*head, U, A, V), seen), wire.read(listed(*head, U, A, V))
    assert [message.raw for message in ask.tail] == [A, V] and ask.seen == seen
    assert (ask.system, ask.messages, ask.count) == (plain.system, plain.messages, plain.count)
    further = wire.read(listed(*head, U, A, V, A, U), wire.seen_in(ask, 3))
    assert [message.raw for message in further.tail] == [A, U] and further.count == 5


@given(st.lists(st.sampled_from([U, A, V, S]), min_size=1, max_size=6), st.data())
def test_a_body_has_one_digest_however_it_was_read(messages: list[bytes], data: st.DataObject) -> None:
    seen = None
    for end in sorted(data.draw(st.sets(st.integers(1, len(messages))))):
        body = listed(*messages[:end], between=b",")
        ask = wire.read(body, seen)
        assert wire.digest_of(ask) == sha256(body).digest()[:16]
        seen = wire.seen_in(ask, end)


@pytest.mark.parametrize("rest", [b",]}", b",,{}]}", b",{}", b",{}],}", b',{}],"messages":[]}', b",\xff]}"])
def test_what_is_no_json_behind_a_list_that_was_seen_is_none(rest: bytes) -> None:
    first = listed(U)
    seen = wire.seen_in(wire.read(first), 1)
    body = first[: first.index(b"]")] + rest
    for known in (seen, None):
        with pytest.raises(BadRequest):
            wire.read(body, known)


def test_a_system_message_among_what_is_new_is_one_of_the_messages() -> None:
    seen = wire.seen_in(wire.read(listed(S, U)), 1)
    ask, plain = wire.read(listed(S, U, S, A), seen), wire.read(listed(S, U, S, A))
    assert ask.seen == seen and (ask.system, ask.messages) == (plain.system, plain.messages)
    assert [message.raw for message in ask.tail] == [S, A]


def test_a_list_with_cache_marks_is_not_kept_to_be_known_again() -> None:
    marked = V.replace(b"}", b',"cache_control":{}}')
    seen = wire.seen_in(wire.read(listed(U)), 1)
    assert wire.seen_in(wire.read(listed(U, marked)), 1) is None
    assert wire.seen_in(wire.read(listed(U, A, V), seen), 1) is not None


@pytest.mark.parametrize(
    "body",
    [
        listed(U),  # no more than that
        listed(V, A, U),
        listed(U + b" ", A),
        listed(U, A, V.replace(b"}", b',"cache_control":{}}')),  # marks move about in what is the same otherwise
        listed(),
    ],
)
def test_a_list_that_begins_otherwise_is_read_whole(body: bytes) -> None:
    ask = wire.read(body, wire.seen_in(wire.read(listed(U)), 1))
    assert ask.seen is None and ask == wire.read(body)
