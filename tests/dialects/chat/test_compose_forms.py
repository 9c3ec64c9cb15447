"""The form in which stored messages go to each upstream."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from msgspec.structs import replace

from proxy.core.history import Entry, History
from proxy.core.json_bytes import dumps
from proxy.core.matching.reconcile import decide
from proxy.core.model import Message, TurnState
from proxy.core.plan import Decision, Mode, Plan
from proxy.core.window.choose import Window
from proxy.dialects.chat import fingerprints, wire
from proxy.dialects.chat.compose import Rendering
from tests.support.composing import (
    ACTED,
    DEVELOPER,
    ECHO,
    MARK,
    OLD,
    REASONED,
    REPLY,
    RESULT,
    SIGNED,
    SYSTEM,
    USER,
    compose,
    form,
    history,
    loaded,
    message,
    raws,
    request,
    sent,
    stored,
    systems,
    turn,
    windowed,
)


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
