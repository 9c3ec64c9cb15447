"""What goes upstream of a plan: stored messages in this upstream's form, the client's own as sent."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from proxy.core.history import Entry, History
from proxy.core.json_bytes import dumps, loads, members
from proxy.core.matching.reconcile import decide
from proxy.core.model import Message
from proxy.core.plan import Decision, Mode, Plan
from proxy.dialects.chat import fingerprints, profiles, wire
from proxy.dialects.chat.compose import GO_ON, Rendering, render_reply_of, rendering_of, sent_members
from proxy.dialects.chat.tool_groups import NO_RESULT
from proxy.errors import BadRequest
from tests.support.composing import (
    ACTED,
    DEVELOPER,
    ECHO,
    MARK,
    OLD,
    REASONED,
    REPLY,
    RESULT,
    SYSTEM,
    USER,
    compose,
    form,
    history,
    loaded,
    raws,
    request,
    sent,
    stored,
    systems,
    turn,
)

# Putting a history in front -------------------------------------------------------------------


@pytest.mark.parametrize("mode", Mode)
def test_without_a_history_the_body_goes_as_it_came(mode: Mode) -> None:
    past = History()
    for body in (request(SYSTEM, USER), b' { "messages" : [ ] } ', request(USER, REPLY, USER, model="m")):
        ask = wire.read(body)
        assert compose(ask, decide(ask, past, fingerprints, mode), past, ECHO) == (body, 0)


@pytest.mark.parametrize(
    ("past", "own", "wanted", "injected"),
    [
        (systems(None), [USER], [OLD, REPLY, USER], 2),
        (systems(None, None), [USER], [OLD, REPLY, OLD, REPLY, USER], 4),
        (systems(None), [], [OLD, REPLY], 2),
        (systems(None), [SYSTEM, USER], [SYSTEM, OLD, REPLY, USER], 2),
        (systems(None), [SYSTEM, DEVELOPER, USER, SYSTEM], [SYSTEM, DEVELOPER, OLD, REPLY, USER, SYSTEM], 2),
        (systems(SYSTEM), [USER], [SYSTEM, OLD, REPLY, USER], 3),
        (systems(SYSTEM), [DEVELOPER, USER], [DEVELOPER, OLD, REPLY, USER], 2),
        (systems(SYSTEM, DEVELOPER, None), [USER], [DEVELOPER, *[OLD, REPLY] * 3, USER], 7),
        (systems(SYSTEM + b"," + DEVELOPER), [USER], [SYSTEM, DEVELOPER, OLD, REPLY, USER], 4),
        (systems(SYSTEM, silent=True), [USER], [SYSTEM, OLD, USER], 2),
        (systems(SYSTEM, silent=True), [DEVELOPER, USER], [DEVELOPER, OLD, USER], 1),
        (systems(SYSTEM, b""), [USER], [OLD, REPLY, OLD, REPLY, USER], 4),
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
    ),
    st.sampled_from(sorted(profiles.PROFILES)),
)
def test_every_other_member_keeps_its_bytes_and_its_place(others: list[bytes], profile: str) -> None:
    past = systems(SYSTEM)
    for place in range(len(others) + 1):
        body = b"{ " + b" ,".join([*others[:place], b'"messages":[' + USER + b"]", *others[place:]]) + b" }"
        ask = wire.read(body)
        new, _ = compose(ask, decide(ask, past, fingerprints), past, form(profile))
        assert new.startswith(body[: ask.start]) and new.endswith(body[ask.end :])
        assert [(name, member.raw) for name, member in members(new).items() if name != "messages"] == [
            (name, member.raw) for name, member in members(body).items() if name != "messages"
        ]
        assert members(new)["messages"].raw == b"[" + b",".join([SYSTEM, OLD, REPLY, USER]) + b"]"


# Messages as odd as JSON allows: the upstream is to judge them.
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.sampled_from(["", "x", "user", "assistant", "tool", "system"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["role", "content", "tool_calls", "id", "function", "name", "tool_call_id", "cache_control"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)


@given(
    st.lists(JUNK, max_size=5),
    st.lists(JUNK, max_size=4),
    st.sampled_from(sorted(profiles.PROFILES)),
    st.sampled_from(Mode),
)
def test_no_message_makes_composing_fail(stored: list[Any], listed: list[Any], profile: str, mode: Mode) -> None:
    ask = wire.read(request(*map(dumps, stored)))
    past = history(replace(turn("1", [], system=ask.system or b""), asked=ask.messages))
    body = request(*map(dumps, listed))
    try:
        messages, _ = sent(body, past, form(profile), mode)
    except BadRequest as refused:
        assert refused.param == "messages"
        return
    assert isinstance(messages, list)


@pytest.mark.parametrize("content", [5, True, {"a": 1}, None, [], [5], ["x"], ""], ids=repr)
@pytest.mark.parametrize("remembered", [False, True])
def test_odd_system_messages_are_the_upstreams_to_judge(content: Any, remembered: bool) -> None:
    odd = dumps({"role": "system", "content": content})
    past = systems(SYSTEM + b"," + odd) if remembered else systems(None)
    messages, _ = sent(request(*([] if remembered else [SYSTEM, odd]), USER), past, form("mistral"))
    assert messages[-3:] == loaded(OLD, REPLY, USER)
    assert json.dumps(messages).count('"S') == 1


@pytest.mark.parametrize("depth", range(900, 1100, 20))
def test_deep_system_messages_are_the_upstreams_to_judge(depth: int) -> None:
    deep = b'{"role":"system","content":' + b"[" * depth + b"]" * depth + b"}"
    try:
        ask = wire.read(request(SYSTEM, deep, USER))
    except BadRequest:
        return
    past = systems(None)
    assert compose(ask, decide(ask, past, fingerprints), past, form("mistral"))[0].endswith(USER + b"]}")


# The prefix ----------------------------------------------------------------------------------

TEXTS = st.text("ab \n", min_size=1, max_size=3).map(lambda text: f"x{text}")


@st.composite
def rounds(draw: st.DrawFn) -> list[tuple[list[bytes], bytes]]:
    """Requests of a client that sends what is new, each with the reply it got; tool loops come to their end."""
    made: list[tuple[list[bytes], bytes]] = []
    open_calls: list[str] = []
    for n in range(draw(st.integers(1, 6))):
        asked = [dumps({"role": "tool", "tool_call_id": id, "content": draw(TEXTS)}) for id in open_calls]
        if not asked:
            asked = [dumps({"role": "user", "content": draw(TEXTS)})]
        open_calls = [f"call{n}{k:04}" for k in range(draw(st.integers(0, 2)))]
        reply: dict[str, Any] = {"role": "assistant", "content": draw(TEXTS | st.none())}
        if open_calls:
            reply["tool_calls"] = [
                {"id": id, "type": "function", "function": {"name": "f", "arguments": "{}"}} for id in open_calls
            ]
        elif reply["content"] is None:
            reply["content"] = "so"
        reply |= draw(st.sampled_from([{}, {"reasoning_content": "r"}, {"reasoning": "r"}, {"refusal": None}]))
        made.append((asked, draw(st.sampled_from([dumps, json_with_spaces]))(reply)))
    return made


def json_with_spaces(value: Any) -> bytes:
    return json.dumps(value).encode()


def played(
    rounds: list[tuple[list[bytes], bytes]], under: Rendering, head: list[bytes], resends: bool
) -> list[tuple[bytes, list[bytes]]]:
    """The arrays that went upstream, brackets off, and what each request had that was new."""
    past, seen, made = History(), list[bytes](), list[tuple[bytes, list[bytes]]]()
    for n, (asked, reply) in enumerate(rounds):
        ask = wire.read(request(*head, *(seen if resends else []), *asked))
        body, _ = compose(ask, decide(ask, past, fingerprints), past, under)
        made.append((members(body)["messages"].raw[1:-1], asked))
        block = b",".join(head) if not n and head else None
        one = turn(str(n), asked, reply, parent=past.tip, rendering_key=under.key, system=block, resends=resends)
        raw = render_reply_of(reply, one, under)
        assert raw is not None
        past = past.plus(replace(one, rendered=Message("assistant", raw)))
        seen += [*asked, dumps(loads(reply))]
    return made


@given(rounds(), st.sampled_from(sorted(profiles.PROFILES)), st.sampled_from([[], [SYSTEM]]), st.booleans())
def test_what_was_sent_is_sent_again_byte_for_byte(
    told: list[tuple[list[bytes], bytes]], profile: str, head: list[bytes], resends: bool
) -> None:
    under = form(profile)
    arrays = played(told, under, head, resends)
    for (before, _), (now, asked), (_, reply) in zip(arrays, arrays[1:], told, strict=False):
        assert now.startswith(before + b",")
        one = turn("1", [], reply, rendering_key=under.key)
        assert now[len(before) + 1 :].startswith(render_reply_of(reply, one, under) or b"")
        assert now.endswith(b",".join(asked))


def test_a_history_is_rendered_once_and_then_only_grows() -> None:
    past = history(turn("1", [OLD]))
    first = sent(request(USER), past)
    kept = stored(past)
    assert sent(request(USER), past) == first
    assert stored(past).repair is kept.repair
    longer = past.plus(turn("2", [USER], parent="1"))
    assert sent(request(OLD), longer) == (loaded(OLD, REPLY, USER, REPLY, OLD), 4)
    assert stored(longer).repair is kept.repair
    assert sent(request(USER), past) == first  # which knows nothing of what came after it
    assert sent(request(OLD), longer)[1] == 4


def test_histories_that_grew_from_one_do_not_see_each_other() -> None:
    past = history(turn("1", [OLD]))
    left, right = (past.plus(turn(id, [dumps({"role": "user", "content": id})], parent="1")) for id in ("l", "r"))
    for grown, id in ((left, "l"), (right, "r"), (left, "l")):
        assert [each["content"] for each in sent(request(USER), grown)[0]] == ["before", "ho", id, "ho", "hi"]


def test_each_rendering_key_has_its_own_cache_entry() -> None:
    reasoned = b'{"role":"assistant","content":"ho","reasoning_content":"r"}'
    past = history(turn("1", [OLD], reasoned))
    for _ in range(2):
        assert sent(request(USER), past)[0][1] == json.loads(reasoned)
        assert sent(request(USER), past, form("openai"))[0][1] == json.loads(REPLY)
        assert sent(request(USER), past, form("echo", "reasoning_content"))[0][1] == json.loads(REPLY)


# The form of stored messages ------------------------------------------------------------------
# Lists that carry their history ---------------------------------------------------------------

TURNS = (turn("1", [OLD], REASONED, resends=True), turn("2", [USER], ACTED, resends=True))
COPY = dumps({"role": "assistant", "content": [{"type": "text", "text": "ho"}]})


@pytest.mark.parametrize(
    ("listed", "wanted"),
    [
        ([OLD, COPY, USER, ACTED, RESULT], [OLD, REASONED, USER, ACTED, RESULT]),  # all of it
        ([OLD, COPY, RESULT], [OLD, REASONED, RESULT]),  # departs from it
        ([OLD, COPY], [OLD, REASONED]),  # ends before the tip
        ([USER, ACTED, RESULT], [USER, ACTED, RESULT]),  # the end of it
        ([SYSTEM, OLD, COPY, USER, ACTED, RESULT], [SYSTEM, OLD, REASONED, USER, ACTED, RESULT]),
    ],
)
def test_ours_goes_in_the_place_of_a_clients_copy(listed: list[bytes], wanted: list[bytes]) -> None:
    assert raws(request(*listed), history(*TURNS)) == wanted


def test_a_window_of_a_client_that_does_not_resend_has_its_past_in_front() -> None:
    past = history(*[replace(one, resends=False) for one in TURNS])
    assert sent(request(USER, ACTED, RESULT), past, mode=Mode.AUTO) == (loaded(OLD, REASONED, USER, ACTED, RESULT), 2)


def test_another_branch_is_composed_of_its_own_messages() -> None:
    new = b'{"role":"user","content":"new"}'
    left = turn("left", [USER], b'{"role":"assistant","content":"left"}', parent="1")
    right = turn("right", [SYSTEM, new], b'{"role":"assistant","content":"right"}', parent="1")
    past = History((turn("1", [OLD]), left, right), "right")
    assert raws(request(OLD, REPLY, USER, left.reply, new), past) == [OLD, REPLY, USER, left.reply, new]
    assert raws(request(OLD), past) == [OLD, REPLY, SYSTEM, new, right.reply, OLD]


def test_cache_control_goes_where_the_clients_present_list_has_it() -> None:
    fingerprinted = [
        dumps({"role": "user", "content": [{"type": "text", "text": "before", **MARK}]}),
        dumps({"role": "assistant", "content": [{"type": "text", "text": "ho"}], **MARK}),
        USER,
    ]
    assert sent(request(*fingerprinted), history(TURNS[0]), mode=Mode.AUTO)[0] == [
        {"role": "user", "content": [{"type": "text", "text": "before", **MARK}]},
        {**json.loads(REASONED), **MARK},
        json.loads(USER),
    ]


def test_new_cache_control_leaves_the_history_alone() -> None:
    own = dumps({"role": "user", "content": "x", **MARK})
    assert raws(request(own), history(TURNS[0])) == [OLD, REASONED, own]


def test_a_prefill_and_its_reply_go_as_they_were_for_the_clients_one() -> None:
    prefill = b'{"role":"assistant","content":"Once "}'
    past = history(turn("1", [OLD, prefill], b'{"role":"assistant","content":"upon"}', resends=True))
    joined = dumps({"role": "assistant", "content": "Once upon", **MARK})
    assert sent(request(OLD, joined, USER), past, mode=Mode.AUTO)[0] == [
        *loaded(OLD, prefill),
        {"role": "assistant", "content": "upon"},
        json.loads(USER),
    ]


# Never stuck ----------------------------------------------------------------------------------


def test_a_call_that_was_abandoned_has_a_result() -> None:
    messages, injected = sent(request(USER), history(turn("1", [OLD], ACTED)))
    stand_in = {"role": "tool", "tool_call_id": "call_1", "content": NO_RESULT}
    assert (messages, injected) == ([*loaded(OLD, ACTED), stand_in, json.loads(USER)], 3)


def test_a_late_result_alone_is_followed_by_a_question_where_one_must_be_last() -> None:
    past = history(turn("1", [OLD], ACTED), turn("2", [USER]))
    for profile, more in (("perplexity", [json.loads(GO_ON)]), ("openai", [])):
        messages, _ = sent(request(RESULT), past, form(profile))
        assert messages[-1 - len(more) :] == [json.loads(REPLY), *more]
        assert [each["role"] for each in messages[:3]] == ["user", "assistant", "tool"]


@pytest.mark.parametrize("past", [History(), history(turn("1", [OLD])), history(turn("1", [OLD], ACTED))])
def test_the_result_of_a_call_that_nobody_made_is_refused_by_its_id(past: History) -> None:
    for head in ([], [SYSTEM]):
        with pytest.raises(BadRequest, match="call 'call_x' follows no such call") as refused:
            sent(request(*head, RESULT.replace(b"call_1", b"call_x")), past)
        assert (refused.value.status, refused.value.param) == (400, "messages")


def test_the_result_of_a_call_of_the_list_or_of_the_history_is_not_refused() -> None:
    assert sent(request(USER, ACTED, RESULT), History())[1] == 0
    assert sent(request(RESULT), history(turn("1", [OLD], ACTED)))[0] == loaded(OLD, ACTED, RESULT)


def test_a_list_that_carries_its_history_is_the_upstreams_to_judge() -> None:
    odd = RESULT.replace(b"call_1", b"call_x")
    past = history(turn("1", [OLD], resends=True))
    assert raws(request(OLD, REPLY, odd, USER), past) == [OLD, REPLY, odd, USER]
    assert raws(request(odd, REPLY, USER), History()) == [odd, REPLY, USER]  # adopted


def test_an_aside_goes_as_it_was_sent() -> None:
    past = history(turn("1", [OLD], system=SYSTEM, resends=True))
    ask = wire.read(body := request(DEVELOPER, RESULT))
    plan = decide(ask, past, fingerprints)
    assert plan.decision is Decision.ASIDE
    assert compose(ask, plan, past, form("mistral")) == (body, 0)


# Stored messages of no plan of ours -----------------------------------------------------------


def test_what_a_client_put_in_a_replys_place_is_sent_in_the_form_of_this_upstream_too() -> None:
    """An assistant's message in the middle of what was asked: kept as sent, for others as they take it."""
    prefill = b'{"role":"assistant","content":"p","reasoning_content":"r","refusal":null}'
    silent = b'{"role":"assistant","content":null,"annotations":[{"type":"x"}]}'
    past = history(turn("1", [OLD, prefill, USER, silent]))
    assert sent(request(USER), past)[0][1] == {"role": "assistant", "content": "p", "reasoning_content": "r"}
    for under in (form("openai"), form("echo", host="other")):
        assert sent(request(USER), past, under)[0] == [
            json.loads(OLD),
            {"role": "assistant", "content": "p"},
            *loaded(USER, REPLY, USER),
        ]


def test_a_plan_may_send_part_of_a_line_and_then_a_list() -> None:
    """By hand: `injected` stored messages, a copy with ours in its place, and what is new."""
    line = tuple([Entry(message, one, False) for one in TURNS[:1] for message in (*one.asked, one.rendered) if message])
    ask = wire.read(request(COPY, USER))
    plan = Plan(Decision.REWRITE, "", None, ask.messages, (), None, line, [(0, 1)], 1, layout=((0, 2), 1))
    body, injected = compose(ask, plan, History(), ECHO)
    assert (members(body)["messages"].raw, injected) == (b"[" + b",".join([OLD, REASONED, USER]) + b"]", 1)


# The name of a form ---------------------------------------------------------------------------


def test_renderings_with_equal_keys_send_equal_bytes() -> None:
    names = [
        form("echo"),
        form("openai"),
        form("echo", "a"),
        form("echo", "a", "b"),
        form("echo", host="h"),
        form("echo", model="claude"),
    ]
    assert len({one.key for one in names}) == len(names)
    assert form("echo", "a", "b").key == form("echo", "b", "a").key
    assert form("echo", model="gpt-4o").key == form("echo", model="openai/gpt-5").key
    assert rendering_of("auto", "api.openai.com", None).profile.name == "openai"
    assert rendering_of("auto", "api.openai.com", None).origin == "api.openai.com "


@pytest.mark.parametrize(
    ("body", "names"),
    [
        (request(USER), set()),
        (request(REASONED, USER), {"reasoning_content"}),
        (b'{"reasoning":1,"x":{"audio":null},"n":"refusal"}', {"reasoning", "audio", "refusal"}),
        (request(ACTED, RESULT), {profiles.NULL}),
        (request(dumps({"role": "assistant", "content": ""}), RESULT), {profiles.EMPTY}),
    ],
)
def test_which_optional_members_a_body_has(body: bytes, names: set[str]) -> None:
    assert {*sent_members(body)} == names
