"""What goes upstream of a plan: stored messages in this upstream's form, the client's own as sent."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from proxy.core.history import Entry, History
from proxy.core.json_bytes import dumps, loads, members
from proxy.core.matching.reconcile import decide
from proxy.core.model import Message, Turn, TurnState
from proxy.core.plan import Decision, Mode, Plan
from proxy.core.window.choose import Window
from proxy.dialects.chat import compose as sending
from proxy.dialects.chat import fingerprints, profiles, wire
from proxy.dialects.chat.compose import GO_ON, Rendering, _Known, render_reply_of, rendering_of, sent_members
from proxy.dialects.chat.repair import BRIDGE
from proxy.dialects.chat.tool_groups import NO_RESULT
from proxy.errors import BadRequest

SYSTEM = b'{"role":"system","content":"S"}'
DEVELOPER = b'{ "role":"developer", "content":"D" }'
USER = b'{"content": "hi", "role": "user", "x": 1.0}'
OLD = b'{"role":"user","content":"before"}'
REPLY = b'{"role":"assistant","content":"ho"}'
ECHO = rendering_of("echo", "host", "gpt-5")
MARK = {"cache_control": {"type": "ephemeral"}}


def form(profile: str, *refused: str, host: str = "host", model: str = "gpt-5") -> Rendering:
    return rendering_of(profile, host, model, frozenset(refused))


def message(raw: bytes) -> Message:
    return Message(json.loads(raw).get("role", ""), raw)


def turn(id: str, asked: list[bytes], reply: bytes = REPLY, **more: Any) -> Turn:
    """A turn as it was recorded under the form ECHO."""
    told = {"rendering_key": ECHO.key, "finish_reason": "stop", "system": None} | more
    one = Turn(id=id, asked=tuple(map(message, asked)), reply=reply, rendered=None, **told)
    raw = reply if one.state is TurnState.ADOPTED else render_reply_of(reply, one, ECHO)
    return one if raw is None else replace(one, rendered=Message("assistant", raw, fingerprints.fingerprint(raw)))


def history(*turns: Turn) -> History:
    past = History()
    for one in turns:
        past = past.plus(replace(one, parent=past.tip))
    return past


def stored(past: History) -> _Known:
    """What is kept of a history in the form ECHO."""
    kept = past.cache.renderings[ECHO.key]
    assert isinstance(kept, _Known)
    return kept


def systems(*blocks: bytes | None, silent: bool = False) -> History:
    """A history of one turn per system block; `silent`: the replies said nothing."""
    reply = b"null" if silent else REPLY
    return history(*[turn(str(n), [OLD], reply, system=block) for n, block in enumerate(blocks)])


def request(*messages: bytes, **members: Any) -> bytes:
    rest = b"".join([b',"%b":' % name.encode() + dumps(value) for name, value in members.items()])
    return b'{"messages":[' + b",".join(messages) + b"]" + rest + b"}"


def compose(*told: Any) -> tuple[bytes, int]:
    """What `sending.compose` gives, its pieces in one."""
    pieces, injected = sending.compose(*told)
    return b"".join(pieces), injected


def sent(body: bytes, past: History, under: Rendering = ECHO, mode: Mode = Mode.APPEND) -> tuple[list[Any], int]:
    ask = wire.read(body)
    new, injected = compose(ask, decide(ask, past, fingerprints, mode), past, under)
    return json.loads(new)["messages"], injected


def raws(body: bytes, past: History, under: Rendering = ECHO, mode: Mode = Mode.AUTO) -> list[bytes]:
    """The messages sent upstream, as bytes."""
    ask = wire.read(body)
    sent = wire.read(compose(ask, decide(ask, past, fingerprints, mode), past, under)[0])
    return [*([sent.system] if sent.system else []), *[message.raw for message in sent.messages]]


def loaded(*messages: bytes) -> list[Any]:
    return [json.loads(message) for message in messages]


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

REASONED = b'{"role":"assistant","content":"ho","reasoning_content":"r"}'
CALLS = [{"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
ACTED = dumps({"role": "assistant", "content": None, "tool_calls": CALLS})
SIGNED = dumps({"role": "assistant", "content": None, "tool_calls": [{**CALLS[0], "extra_content": {"google": "s"}}]})
RESULT = b'{"role":"tool","tool_call_id":"call_1","content":"r"}'


@pytest.mark.parametrize(
    ("reply", "under", "wanted"),
    [
        (REASONED, ECHO, REASONED),
        (REASONED, form("deepseek"), REASONED),
        (REASONED, form("openai"), REPLY),
        (REASONED, form("echo", "reasoning_content"), REPLY),
        (REASONED, form("echo", host="other"), REPLY),  # what is bound to an upstream stays there
        (REASONED, form("echo", model="claude-5"), REPLY),
        (REASONED, form("echo", model="gpt-4o-mini"), REASONED),
        (REPLY, form("mistral", host="other"), REPLY),
        (SIGNED, ECHO, SIGNED),
        (SIGNED, form("echo", model="claude-5"), ACTED),
        (SIGNED, form("gemini"), SIGNED),
    ],
)
def test_a_reply_goes_back_in_the_form_that_this_upstream_takes(reply: bytes, under: Rendering, wanted: bytes) -> None:
    past = history(turn("1", [OLD], reply), turn("2", [RESULT if b"call_1" in reply else OLD], finish_reason="stop"))
    assert sent(request(USER), past, under)[0][1] == json.loads(wanted)


def test_a_form_that_was_kept_is_sent_as_it_is_and_derived_anew_for_others() -> None:
    one = replace(turn("1", [OLD], REASONED), rendered=Message("assistant", b'{"role":"assistant","content":"kept"}'))
    assert raws(request(USER), history(one))[1] == b'{"role":"assistant","content":"kept"}'
    assert raws(request(USER), history(one), form("openai"))[1] == REPLY


@pytest.mark.parametrize("under", [ECHO, form("openai")])
def test_a_torn_call_is_not_sent_on(under: Rendering) -> None:
    torn = ACTED.replace(b'"{}"', b'"{"').replace(b'"content":null', b'"content":"so"')
    past = history(turn("1", [OLD], torn, finish_reason=None, state=TurnState.INTERRUPTED))
    assert sent(request(USER), past, under)[0][1] == {"role": "assistant", "content": "so"}


def test_a_torn_call_is_made_good_where_it_is_answered_and_stays_so() -> None:
    torn = ACTED.replace(b'"{}"', b'"{"').replace(b'"content":null', b'"content":"so"')
    said, good = b'{"role":"assistant","content":"so"}', ACTED.replace(b"null", b'""')
    past = history(turn("1", [OLD], torn, finish_reason="length"))
    assert sent(request(RESULT, USER), past)[0] == loaded(OLD, said, good, RESULT, USER)
    later = past.plus(turn("2", [RESULT, USER], parent="1"))
    wanted = loaded(OLD, said, good, RESULT, USER, REPLY, OLD)
    assert sent(request(OLD), later)[0] == wanted
    kept = decide(wire.read(request(OLD)), later, fingerprints, Mode.APPEND)
    assert windowed(later, Window(2), OLD)[0] == wanted[2:]
    pieces, _ = compose(wire.read(request(OLD)), replace(kept, path=tuple(later.path)), later, ECHO)
    assert json.loads(pieces)["messages"] == wanted


def test_the_newest_torn_call_is_the_one_that_is_answered_and_one_without_an_id_is_any() -> None:
    torn = [ACTED.replace(b'"{}"', b'"{"').replace(b"null", b'"so"').replace(b"call_1", id) for id in (b"call_1", b"")]
    named = ACTED.replace(b'"f"', b'"g"').replace(b'"{}"', b'"{"').replace(b"null", b'"so"')
    past = history(
        *[turn(str(n), [OLD], raw, finish_reason="length") for n, raw in enumerate([torn[0], named, torn[1]])]
    )

    def told(id: bytes) -> Any:
        return sent(request(RESULT.replace(b"call_1", id)), past)[0][-2]["tool_calls"][0]

    assert told(b"call_1")["function"]["name"] == "g"
    assert (told(b"mine")["function"]["name"], told(b"mine")["id"]) == ("f", "mine")


@pytest.mark.parametrize("profile", ["echo", "openai", "mistral", "vllm", "deepseek-r1", "perplexity"])
def test_what_was_asked_and_not_answered_goes_on_and_keeps_its_bytes(profile: str) -> None:
    """Replies that said nothing: a question, and a result, behind which the next question comes."""
    under, one = form(profile), turn("1", [], rendering_key="")
    line: tuple[Entry, ...] = ()
    bodies: list[list[Any]] = []
    for asked, reply in ((OLD, None), (USER, ACTED), (RESULT, None), (USER, None), (OLD, REPLY), (USER, None)):
        plan = Plan(Decision.APPEND, "", "1", (message(asked),), (), None, line, injected=len(line))
        bodies.append(json.loads(compose(wire.read(request(asked)), plan, History(), under)[0])["messages"])
        line += tuple([Entry(message(raw), one, False) for raw in (asked, reply) if raw])
    for before, after in pairwise(bodies):
        assert after[: len(before) - 1] == before[:-1]  # but for a last question, with which the next may be joined
    said = json.dumps(bodies[-1])
    assert [said.count(text) for text in ("before", "hi", '"r"', "ho")] == [2, 3, 1, 1]
    for left, right in pairwise(bodies[-1]):
        assert not (under.profile.alternate and left["role"] == right["role"] == "user")
        assert not (under.profile.bridge and (left["role"], right["role"]) == ("tool", "user"))


def test_an_audio_id_goes_back_until_it_expires_and_then_its_words() -> None:
    voice = {"id": "a", "data": "QQ==", "transcript": "hi", "expires_at": 100}
    past = history(turn("1", [OLD], dumps({"role": "assistant", "content": None, "audio": voice})), turn("2", [USER]))
    ask = wire.read(request(USER))
    said: list[Any] = []
    for now in (0, 99_999, 99_999, 100_000, 100_000):
        body, _ = compose(ask, decide(ask, past, fingerprints, Mode.APPEND), past, ECHO, Window(), now)
        said.append(json.loads(body)["messages"][1])
        kept = stored(past).repair
    assert said[:3] == [{"role": "assistant", "audio": {"id": "a"}}] * 3
    assert said[3:] == [{"role": "assistant", "content": "hi"}] * 2
    assert stored(past).repair is kept


def test_a_name_that_an_upstream_gave_its_reply_does_not_go_back_and_a_clients_does() -> None:
    named = b'{"role":"assistant","content":"ho","name":"bot"}'
    for state, wanted in ((TurnState.COMPLETE, REPLY), (TurnState.ADOPTED, named)):
        for under in (ECHO, form("openai", host="other")):
            assert raws(request(USER), history(turn("1", [OLD], named, state=state)), under, Mode.APPEND)[1] == wanted


def test_a_reply_of_which_another_upstream_is_told_nothing_is_left_out() -> None:
    """It said something in its old form, so it has a place in the history; under the new one it would say nothing."""
    legacy = dumps({"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}})
    past = history(turn("1", [OLD], legacy))
    assert sent(request(USER), past)[0][1] == json.loads(legacy)
    assert sent(request(USER), past, form("together"))[0] == loaded(OLD, USER)


@pytest.mark.parametrize(
    "image",
    [
        {"role": "assistant", "content": [{"type": "image_url", "image_url": {"url": "data:;base64,x"}}]},
        {"role": "assistant", "content": "", "images": [{"type": "image_url", "image_url": {"url": "data:;base64,x"}}]},
    ],
)
def test_a_reply_of_images_goes_back_where_it_came_from_and_as_words_elsewhere(image: Any) -> None:
    past = history(turn("1", [OLD], dumps(image)))
    assert sent(request(USER), past)[0][1] == image
    for now in (sent(request(USER), past, form("openai"))[0], windowed(past, Window(0, 2), USER)[0]):
        assert [one for one in now if one["role"] == "assistant"] in (
            [{"role": "assistant", "content": "[image]"}],
            [{"role": "assistant", "content": [{"type": "text", "text": "[image]"}]}],
        )


@pytest.mark.parametrize("under", [ECHO, form("echo", host="other"), form("openai"), form("openrouter")])
@pytest.mark.parametrize("state", [TurnState.COMPLETE, TurnState.ADOPTED])
def test_stored_copies_go_without_cache_control(under: Rendering, state: TurnState) -> None:
    fingerprinted = [{"type": "text", "text": "say", **MARK}]
    asked = [
        dumps({"role": "user", "content": fingerprinted}),
        dumps({"role": "assistant", "content": fingerprinted, **MARK, "refusal": None}),
        dumps({"role": "user", "content": "u", **MARK}),
    ]
    reply = dumps({"role": "assistant", "content": fingerprinted, **MARK}) if state is TurnState.ADOPTED else REPLY
    system = dumps({"role": "system", "content": fingerprinted, **MARK})
    past = history(turn("1", asked, reply, system=system, state=state))
    body = b",".join(raws(request(USER), past, under, Mode.APPEND))
    assert b"cache_control" not in body
    assert body.count(b'"say"') == (4 if state is TurnState.ADOPTED else 3)


def test_a_clients_own_messages_keep_everything() -> None:
    own = dumps({"role": "user", "content": [{"type": "text", "text": "x", **MARK}], **MARK})
    assert raws(request(own), systems(None))[-1] == own


@pytest.mark.parametrize("profile", ["deepseek", "mistral"])
def test_a_developer_is_called_system_where_the_role_is_unknown(profile: str) -> None:
    late = b'{"content":"D", "role" : "developer" }'
    past = history(turn("1", [OLD, late], system=DEVELOPER))
    assert raws(request(USER), past)[0:3:2] == [DEVELOPER, late]
    renamed = [DEVELOPER.replace(b'"developer"', b'"system"'), late.replace(b'"developer"', b'"system"')]
    assert raws(request(USER), past, form(profile))[0:3:2] == renamed
    for before in (past, History()):  # brought or remembered, first or later: the same bytes
        own = raws(request(DEVELOPER, USER, late), before, form(profile))
        assert [own[0], own[-1]] == renamed


@pytest.mark.parametrize("raw", [b'{"role":"system","role":"developer"}', b'{"content":"x"}', b"7"])
def test_a_developer_that_cannot_be_renamed_goes_as_it_is(raw: bytes) -> None:
    past = history(replace(turn("1", [OLD]), asked=(Message("developer", raw),)))
    assert raws(request(USER), past, form("deepseek"))[0] == raw


def test_the_first_request_is_merged_as_every_later_one_is() -> None:
    body = request(SYSTEM, DEVELOPER, USER)
    first = raws(body, History(), form("mistral"))
    assert json.loads(first[0]) == {"role": "system", "content": "S\n\nD"} and first[1:] == [USER]
    assert raws(body, History(), form("openai")) == [SYSTEM + b"," + DEVELOPER, USER]


def test_system_messages_are_merged_where_one_is_all_that_is_taken() -> None:
    block = SYSTEM + b"," + DEVELOPER
    parts = b'{"role":"system","content":[{"type":"text","text":"P"}]}'
    texts = [{"type": "text", "text": text} for text in ("S", "P")]
    for past, head in ((systems(block), []), (systems(None), [SYSTEM, DEVELOPER])):
        messages, _ = sent(request(*head, USER), past, form("mistral"))
        assert messages == [{"role": "system", "content": "S\n\nD"}, *loaded(OLD, REPLY, USER)]
    for past, head in ((systems(SYSTEM + b"," + parts), []), (systems(None), [SYSTEM, parts])):
        assert sent(request(*head, USER), past, form("mistral"))[0][0] == {"role": "system", "content": texts}
    assert raws(request(SYSTEM, USER), systems(None), form("mistral"))[0] == SYSTEM
    assert sent(request(USER), systems(block), form("echo"))[0][:2] == loaded(SYSTEM, DEVELOPER)


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


# A part of a history ---------------------------------------------------------------------------

SUMMARY = b'{"role":"user","content":"in short"}'
PICTURE = b'{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:image/png;base64,AAAA"}}]}'
NO_PICTURE = b'{"role":"user","content":[{"type":"text","text":"[image]"}]}'


def numbered(*turns: list[bytes]) -> History:
    replies = [b'{"role":"assistant","content":"%d"}' % n for n in range(len(turns))]
    return history(*[turn(str(n), asked, replies[n]) for n, asked in enumerate(turns)])


def windowed(past: History, window: Window, *own: bytes, mode: Mode = Mode.APPEND, under: Rendering = ECHO) -> Any:
    ask = wire.read(request(*own))
    body, injected = compose(ask, decide(ask, past, fingerprints, mode), past, under, window)
    return json.loads(body)["messages"], injected


def reply(n: int) -> bytes:
    return b'{"role":"assistant","content":"%d"}' % n


def test_a_window_is_the_end_of_a_history_behind_its_system_block() -> None:
    past = numbered([OLD], [OLD], [OLD]).plus(turn("s", [OLD], parent="2", system=SYSTEM))
    assert windowed(past, Window(4), USER) == (loaded(SYSTEM, OLD, reply(2), OLD, REPLY, USER), 5)
    assert windowed(past, Window(8), USER) == (loaded(SYSTEM, USER), 1)
    assert windowed(past, Window(6), DEVELOPER, USER) == (loaded(DEVELOPER, OLD, REPLY, USER), 2)


def test_a_summary_stands_for_what_is_left_out() -> None:
    past = numbered([OLD], [OLD])
    for under in (ECHO, form("vllm"), form("openai")):
        sent = windowed(past, Window(2, 0, SUMMARY), USER, under=under)
        assert sent == (loaded(SUMMARY, BRIDGE, OLD, reply(1), USER), 4)
    assert windowed(past, Window(4, 0, SUMMARY), USER) == (loaded(SUMMARY, BRIDGE, USER), 2)


def test_a_window_is_rendered_once_and_then_only_grows_until_it_moves() -> None:
    past = numbered([OLD], [OLD], [OLD])
    windowed(past, Window(2), USER)
    kept = stored(past).repair
    longer = past.plus(turn("3", [USER], parent="2"))
    assert windowed(longer, Window(2), OLD)[0] == loaded(OLD, reply(1), OLD, reply(2), USER, REPLY, OLD)
    assert stored(longer).repair is kept
    assert windowed(longer, Window(4), OLD)[0] == loaded(OLD, reply(2), USER, REPLY, OLD)
    assert stored(longer).repair is not kept
    assert len(windowed(longer, Window(), OLD)[0]) == 9


def test_images_of_old_messages_are_left_out_and_only_theirs() -> None:
    past = numbered([PICTURE], [PICTURE], [PICTURE])
    wanted = loaded(NO_PICTURE, reply(0), NO_PICTURE, reply(1), PICTURE, reply(2), PICTURE)
    assert windowed(past, Window(0, 3), PICTURE) == (wanted, 6)
    assert windowed(past, Window(2, 3), PICTURE)[0] == wanted[2:]


def test_a_line_beside_the_tip_has_its_window_too() -> None:
    past = numbered([OLD], [PICTURE], [OLD])
    ask = wire.read(request(USER))
    plan = replace(decide(ask, past, fingerprints, Mode.APPEND), path=past.path_of("1"), injected=4)
    body, _ = compose(ask, plan, past, ECHO, Window(2, 3, SUMMARY))
    assert json.loads(body)["messages"] == loaded(SUMMARY, BRIDGE, NO_PICTURE, reply(1), USER)


def test_the_end_that_a_client_carries_itself_stays_whole() -> None:
    past = numbered([OLD], [PICTURE], [USER], [OLD])
    own = [USER, reply(2), OLD, reply(3), USER]
    assert windowed(past, Window(2, 3), *own, mode=Mode.AUTO) == (loaded(NO_PICTURE, reply(1), *own), 2)
    fingerprinted = json.dumps({"role": "user", "content": "hi", "x": 1.0, **MARK}).encode()
    told, injected = windowed(past, Window(2, 3), fingerprinted, *own[1:], mode=Mode.AUTO)
    assert (told[:2], injected) == (loaded(NO_PICTURE, reply(1)), 2)
    assert told[2:] == [json.loads(USER) | MARK, *loaded(*own[1:])]


@given(st.lists(st.sampled_from([OLD, USER, PICTURE]), min_size=1, max_size=8), st.integers(0, 8), st.integers(0, 16))
def test_every_window_is_what_the_whole_ends_with(asked: list[bytes], turns: int, blank: int) -> None:
    past = numbered(*[[each] for each in asked])
    start = 2 * min(turns, len(asked))
    whole, _ = windowed(past, Window(0, blank), USER)
    assert windowed(past, Window(start, blank), USER) == (whole[start:], len(past.path) - start)


def test_a_reply_that_was_kept_with_half_a_character_goes_back_without() -> None:
    """As older versions kept it: in the form that was sent."""
    half, mended = b'{"role":"assistant","content":"ho \\ud83d"}', b'{"role":"assistant","content":"ho \\ufffd"}'
    old = replace(turn("1", [OLD], half), rendered=Message("assistant", half))
    assert raws(request(USER), history(old)) == [OLD, mended, USER]
    assert raws(request(USER), history(turn("1", [OLD], half)), form("openai")) == [OLD, mended, USER]
    assert turn("1", [OLD], half).rendered == Message("assistant", mended, fingerprints.fingerprint(half))
