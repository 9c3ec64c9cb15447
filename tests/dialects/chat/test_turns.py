"""What remains of an exchange: its turn, and those that its list brought along."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from proxy.core.history import Entry, History
from proxy.core.json_bytes import dumps
from proxy.core.matching.reconcile import decide
from proxy.core.model import CARRIES, FLAGS, SIDE, SPLICED, STREAM, TOOLS, Message, Reply, Turn, TurnState
from proxy.core.plan import Decision, Mode
from proxy.dialects.chat import fingerprints, wire
from proxy.dialects.chat.compose import Rendering, rendering_of
from proxy.dialects.chat.turns import fingerprinted, turns_of

ECHO = rendering_of("echo", "host", "gpt-5")
SYSTEM = b'{"role":"system","content":"S"}'
OTHER = b'{"role":"developer","content":"D"}'
SAID = b'{"role":"assistant","content":"ho"}'
REPLY = Reply(SAID, "gpt-5-2026", "stop", b'{"total_tokens":5}', finished=True)
MARKED = b'{"role":"assistant","content":[{"type":"text","text":"x","cache_control":{"type":"ephemeral"}}]}'


def user(text: str) -> bytes:
    return dumps({"role": "user", "content": text})


def said(text: str) -> bytes:
    return dumps({"role": "assistant", "content": text})


def request(*messages: bytes, **members: Any) -> bytes:
    rest = b"".join([b',"%b":' % name.encode() + dumps(value) for name, value in members.items()])
    return b'{"model":"gpt-5","messages":[' + b",".join(messages) + b"]" + rest + b"}"


def recorded(
    messages: list[bytes],
    past: History | None = None,
    reply: Reply = REPLY,
    under: Rendering = ECHO,
    mode: Mode = Mode.AUTO,
    **more: Any,
) -> list[Turn]:
    """The turns of a request with these messages behind a history."""
    past = past or History()
    ask = wire.read(request(*messages))
    plan = decide(ask, past, fingerprints, mode)
    names = (f"new{n}" for n in itertools.count())
    told: dict[str, Any] = {
        "id": "turn",
        "new_id": lambda: next(names),
        "remembered": past.system,
        "request": b"digest",
    } | more
    return turns_of(ask, plan, reply, under, **told)


def raws(turn: Turn) -> list[bytes]:
    return [message.raw for message in turn.asked]


def test_a_turn_is_what_was_asked_and_what_was_said() -> None:
    [turn] = recorded([SYSTEM, user("hi"), OTHER], started=1, ended=2)
    assert turn == Turn(
        id="turn",
        system=SYSTEM,
        asked=(Message("user", user("hi")), Message("developer", OTHER)),
        reply=SAID,
        rendered=Message("assistant", SAID),
        rendering_key=ECHO.key,
        request=b"digest",
        model="gpt-5-2026",
        finish_reason="stop",
        usage=b'{"total_tokens":5}',
        started=1,
        ended=2,
        client=bytes(8),
    )


def test_a_turn_follows_the_tip_and_adds_what_is_new() -> None:
    past = History().plus(*recorded([user("1")], id="1"))
    [turn] = recorded([user("2"), user("3")], past)
    assert (turn.parent, turn.layout, turn.resends, raws(turn)) == ("1", None, False, [user("2"), user("3")])
    [again] = recorded([user("1"), SAID, user("2")], past)
    assert (again.parent, again.layout, again.resends, raws(again)) == ("1", None, True, [user("2")])
    assert past.plus(again).path[:3] == (*past.path, Entry(again.asked[0], again, False))


def test_a_rewrite_keeps_by_its_layout_what_is_there_already() -> None:
    past = History().plus(*recorded([user("1")], id="1"))
    past = past.plus(*recorded([user("2")], past, Reply(said("two")), id="2"))
    past = past.plus(*recorded([user("3")], past, Reply(said("three")), id="3"))
    [edited] = recorded([user("1"), SAID, user("other"), said("two"), user("4")], past)
    assert (edited.parent, edited.layout) == ("2", ((0, 2), 1, (3, 4), 1))
    assert raws(edited) == [user("other"), user("4")]
    line = [entry.message.raw for entry in past.plus(edited).path]
    assert line == [user("1"), SAID, user("other"), said("two"), user("4"), SAID]


# The system block -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("remembered", "sent", "mode", "stored"),
    [
        (None, None, Mode.AUTO, None),
        (None, SYSTEM, Mode.AUTO, SYSTEM),
        (SYSTEM, None, Mode.AUTO, None),  # in what follows the tip the remembered one fills in
        (SYSTEM, SYSTEM, Mode.AUTO, None),
        (SYSTEM, OTHER, Mode.AUTO, OTHER),
        (SYSTEM, None, Mode.RESEND, b""),  # in a list that is everything its absence is meant
        (SYSTEM, SYSTEM, Mode.RESEND, None),
        (None, None, Mode.RESEND, None),
    ],
)
def test_a_system_block_is_stored_where_it_is_another_than_before(
    remembered: bytes | None, sent: bytes | None, mode: Mode, stored: bytes | None
) -> None:
    past = History().plus(*recorded([*([remembered] if remembered else []), user("1")], id="1"))
    assert past.system == remembered
    listed = [user("1"), SAID, user("2")] if mode is Mode.RESEND else [user("2")]
    [turn] = recorded([*([sent] if sent else []), *listed], past, mode=mode)
    assert turn.system == stored
    in_force = remembered if stored is None else stored or None
    assert past.plus(turn).system == in_force


# Adoption -------------------------------------------------------------------------------------


def test_what_a_first_list_brings_along_becomes_turns_of_its_own() -> None:
    call = dumps({"role": "assistant", "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f"}}]})
    result = b'{"role":"tool","tool_call_id":"c","content":"r"}'
    listed = [user("1"), said("a"), user("2"), call, result, said("b"), user("3"), OTHER]
    first, second, turn = recorded([SYSTEM, *listed])
    assert [one.id for one in (first, second, turn)] == ["new0", "new1", "turn"]
    assert [one.parent for one in (first, second, turn)] == [None, "new0", "new1"]
    assert [one.system for one in (first, second, turn)] == [SYSTEM, None, None]
    assert [raws(one) for one in (first, second, turn)] == [
        [user("1")],
        [user("2"), call, result],
        [user("3"), OTHER],
    ]
    assert [one.state for one in (first, second, turn)] == ["adopted", "adopted", "complete"]
    assert [one.reply for one in (first, second, turn)] == [said("a"), said("b"), SAID]
    assert [one.rendered and one.rendered.raw for one in (first, second, turn)] == [said("a"), said("b"), SAID]
    assert [one.request for one in (first, second, turn)] == [b"", b"", b"digest"]
    line = History().plus(first, second, turn).path
    assert [entry.message.raw for entry in line] == [*listed, SAID]
    assert [entry.ours for entry in line] == [False] * len(listed) + [True]


def test_adopted_turns_come_behind_what_has_nothing_to_say() -> None:
    """A session whose only turn said nothing and was asked nothing has no messages, but a system block and a tip."""
    past = History().plus(*recorded([SYSTEM], reply=Reply(b"null"), id="0"))
    assert past.path == ()
    first, turn = recorded([user("1"), said("a"), user("2")], past, started=3, ended=4)
    assert (first.parent, turn.parent) == ("0", "new0")
    assert (first.system, turn.system) == (b"", None)
    assert (first.started, first.ended, turn.started, turn.ended) == (3, 3, 3, 4)
    assert past.plus(first, turn).system is None


@pytest.mark.parametrize(
    ("members", "traits"),
    [
        ({}, 0),
        ({"tools": []}, 0),
        ({"tools": None}, 0),
        ({"tools": [{"x": 1}]}, TOOLS | len(b'[{"x":1}]') << FLAGS),
        ({"stream": True}, STREAM),
    ],
)
def test_how_a_turn_was_asked_for_is_kept(members: dict[str, Any], traits: int) -> None:
    ask = wire.read(request(user("hi"), **members))
    plan = decide(ask, History(), fingerprints, client=b"software")
    told: dict[str, Any] = {"id": "turn", "new_id": str, "remembered": None, "request": b""}
    [turn] = turns_of(ask, plan, REPLY, ECHO, **told)
    assert (turn.client, turn.traits) == (b"software", traits)
    beside = structs.replace(plan, side=True, carries_history=True, spliced=True)
    [turn] = turns_of(ask, beside, REPLY, ECHO, **told)
    assert turn.traits == traits | SIDE | CARRIES | SPLICED
    assert (turn.is_side_request, turn.carries_history, turn.is_spliced) == (True, True, True)


# The reply ------------------------------------------------------------------------------------


@pytest.mark.parametrize("message", [None, b"null", b'{"role":"assistant","content":""}', b'{"role":"assistant"}'])
def test_a_reply_that_says_nothing_is_stored_and_not_sent_on(message: bytes | None) -> None:
    [turn] = recorded([user("1")], reply=Reply(message, finished=True))
    assert (turn.reply, turn.rendered) == (message or b"null", None)
    assert [entry.message.raw for entry in History().plus(turn).path] == [user("1")]


def test_the_model_is_the_replys_else_the_requests() -> None:
    assert [recorded([user("1")], reply=Reply(SAID, model))[0].model for model in ("m", None)] == ["m", "gpt-5"]


def test_a_cut_turn_is_sent_on_without_the_calls_that_were_torn() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    raw = dumps({"role": "assistant", "content": "so", "tool_calls": [call]})
    for finish_reason, sent in ((None, b'{"role":"assistant","content":"so"}'), ("tool_calls", raw)):
        reply = Reply(raw, finish_reason=finish_reason)
        [turn] = recorded([user("1")], reply=reply, state=TurnState.INTERRUPTED)
        assert (turn.state, turn.reply, turn.rendered and turn.rendered.raw) == ("cut", raw, sent)


def test_an_echo_is_in_the_form_of_its_upstream_and_the_reply_is_whole() -> None:
    raw = b'{"role":"assistant","content":"ho","reasoning_content":"r"}'
    under = rendering_of("openai", "api.openai.com", "gpt-5")
    turn = recorded([user("0"), said("a"), user("1")], reply=Reply(raw), under=under)[-1]
    assert (turn.reply, turn.rendering_key, turn.rendered and turn.rendered.raw) == (raw, under.key, SAID)
    assert turn.rendered and turn.rendered.fingerprint == fingerprints.fingerprint(
        raw
    )  # however much of it a client sends back


@given(st.lists(st.sampled_from([user("1"), said("a"), SYSTEM, b"7", b'{"role":5}', b"[]", MARKED]), max_size=6))
def test_every_message_is_stored_once_and_marked_where_a_list_carries_a_history(messages: list[bytes]) -> None:
    made = recorded(messages)
    ask = wire.read(request(*messages))
    stored = [message for one in made for message in (*one.asked, *([one.rendered] if one.rendered else []))]
    assert [message.raw for message in stored] == [*[message.raw for message in ask.messages], SAID]
    taken = [fingerprints.fingerprint(message.raw) if len(made) > 1 else b"" for message in stored]
    assert [message.fingerprint for message in stored] == taken
    assert made[0].system == ask.system


def test_a_fingerprint_that_was_taken_is_kept() -> None:
    messages = [Message("user", user("1"), b"taken before"), Message("user", user("1"))]
    assert [message.fingerprint for message in fingerprinted(messages)] == [
        b"taken before",
        fingerprints.fingerprint(user("1")),
    ]


def test_a_list_that_brings_a_history_is_adopted() -> None:
    """What the tests above take for granted."""
    ask = wire.read(request(user("1"), said("a"), user("2")))
    assert decide(ask, History(), fingerprints).decision is Decision.ADOPT


# What of a reply goes back to an upstream that nobody named ------------------------------------

CALLS = [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
TEXT = {"role": "assistant", "content": "x"}
ACTED = {"role": "assistant", "content": None, "tool_calls": CALLS}

ECHOES: list[tuple[str, dict[str, Any], dict[str, Any] | None]] = [
    ("text", TEXT, TEXT),
    ("white space is text", {**TEXT, "content": " "}, {**TEXT, "content": " "}),
    (
        "parts",
        {**TEXT, "content": [{"type": "text", "text": "x"}]},
        {**TEXT, "content": [{"type": "text", "text": "x"}]},
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
    ("tool calls that are no list", {**TEXT, "tool_calls": "x"}, TEXT),
    ("empty fillers", {**TEXT, "tool_calls": [], "refusal": None, "name": "", "audio": None, "reasoning": ""}, TEXT),
    ("a function call without a name", {**TEXT, "function_call": {"name": "", "arguments": ""}}, TEXT),
    ("a function call that is null", {**TEXT, "function_call": None}, TEXT),
    (
        "a function call",
        {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
        {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
    ),
    ("unknown keys", {**TEXT, "annotations": [], "executed_tools": [1], "parsed": {}, "logprobs": None}, TEXT),
    ("no role", {"content": "x"}, TEXT),
    ("a role that is null", {"content": "x", "role": None}, TEXT),
    ("reasoning", {**TEXT, "reasoning": "r"}, {**TEXT, "reasoning": "r"}),
    ("an empty reasoning_content", {**ACTED, "reasoning_content": ""}, {**ACTED, "reasoning_content": ""}),
    ("a reasoning_content that is null", {**ACTED, "reasoning_content": None}, ACTED),
    ("empty reasoning_details", {**TEXT, "reasoning_details": []}, {**TEXT, "reasoning_details": []}),
    ("reasoning_details that are null", {**TEXT, "reasoning_details": None}, TEXT),
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
    ("audio without an ID", {**TEXT, "audio": {"id": "", "data": ""}}, TEXT),
    ("nothing", {"role": "assistant", "content": None}, None),
    ("nothing but reasoning", {"role": "assistant", "content": "", "reasoning": "r", "reasoning_content": "r"}, None),
    ("no content at all", {"role": "assistant"}, None),
    ("no parts", {"role": "assistant", "content": []}, None),
]


@pytest.mark.parametrize(("message", "wanted"), [case[1:] for case in ECHOES], ids=[case[0] for case in ECHOES])
@pytest.mark.parametrize("streamed", [False, True])
def test_what_goes_back_of_a_reply(message: dict[str, Any], wanted: dict[str, Any] | None, streamed: bool) -> None:
    if streamed:
        chunk = {"choices": [{"delta": message, "finish_reason": "stop"}]}
        reply = wire.fold_stream(b"data: " + json.dumps(chunk).encode() + b"\n\n")
    else:
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        reply = wire.fold_body(json.dumps({"choices": [choice]}).encode())
    [turn] = recorded([user("1")], reply=reply)
    if wanted is None:
        assert turn.rendered is None
        return
    assert turn.rendered is not None
    # A stream's fold writes the content even where no delta did.
    assert {"content": None, **json.loads(turn.rendered.raw)} == {"content": None, **wanted}
    assert turn.rendered.role == "assistant"


@pytest.mark.parametrize(
    "raw", [b'{"role":"assistant", "content":"\\u00e9"}', b'{"content":"\\u005c","role":"assistant","reasoning":"r" }']
)
def test_a_message_that_goes_back_unchanged_keeps_its_bytes(raw: bytes) -> None:
    reply = wire.fold_body(b'{"choices":[{"message": ' + raw + b' ,"finish_reason":"stop"}]}')
    [turn] = recorded([user("1")], reply=reply)
    assert turn.rendered and turn.rendered.raw == turn.reply == raw
