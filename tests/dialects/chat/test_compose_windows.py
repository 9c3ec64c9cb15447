"""A part of a history goes upstream: the window, what stands for the rest, and images."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from proxy.core.history import History
from proxy.core.matching.reconcile import decide
from proxy.core.model import Message
from proxy.core.plan import Mode
from proxy.core.window.choose import Window
from proxy.dialects.chat import fingerprints, wire
from proxy.dialects.chat.repair import BRIDGE
from tests.support.composing import (
    DEVELOPER,
    ECHO,
    MARK,
    OLD,
    REPLY,
    SYSTEM,
    USER,
    compose,
    form,
    history,
    loaded,
    raws,
    request,
    stored,
    turn,
    windowed,
)

SUMMARY = b'{"role":"user","content":"in short"}'
PICTURE = b'{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:image/png;base64,AAAA"}}]}'
NO_PICTURE = b'{"role":"user","content":[{"type":"text","text":"[image]"}]}'


def numbered(*turns: list[bytes]) -> History:
    replies = [b'{"role":"assistant","content":"%d"}' % n for n in range(len(turns))]
    return history(*[turn(str(n), asked, replies[n]) for n, asked in enumerate(turns)])


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
