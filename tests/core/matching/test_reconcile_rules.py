"""What holds for every list, for retries, and beside turns in flight."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from proxy.core.history import History
from proxy.core.matching.reconcile import decide
from proxy.core.matching.retries import is_retry
from proxy.core.model import CLIENT, Ask, Turn
from proxy.core.plan import Decision, Flight, Mode, Plan
from proxy.dialects.chat import fingerprints
from tests.core.notation import (
    ask,
    held,
    in_flight,
    is_within,
    line_of,
    played,
    recorded,
    sent_word,
    software,
)

APPEND, REWRITE, ASIDE = Decision.APPEND, Decision.REWRITE, Decision.ASIDE


WORDS = ["u1", "u2", "u3", "yes", "a1", "a2", "ok", "p1", "p1a1", "n1", "c1", "r1", "u1@cat", "!"]
REPLIES = ["a1", "a2", "ok", "c1", "-"]
HEADS = ["", "", "s1", "s2", "d1"]


@st.composite
def lists(draw: st.DrawFn, history: History) -> str:
    """A list made of anything, or of stretches of a history."""
    line = line_of(history.path)
    places = st.integers(0, len(line))
    stretches = st.tuples(places, places).map(lambda ends: line[ends[0] : ends[1]])
    parts = draw(st.lists(stretches | st.sampled_from(WORDS).map(lambda one: [one]), max_size=5))
    return " ".join([draw(st.sampled_from(HEADS)), *[each for part in parts for each in part]])


@given(st.data())
def test_any_list_is_read_and_nothing_of_it_is_lost_or_stored_twice(data: st.DataObject) -> None:
    history = History()
    modes = st.sampled_from([Mode.AUTO, Mode.AUTO, Mode.AUTO, Mode.APPEND, Mode.RESEND])
    for number in range(data.draw(st.integers(1, 6))):
        asked = ask(data.draw(lists(history)))
        flights = in_flight(history, data.draw(st.just("") | lists(history)))
        plan = decide(asked, history, fingerprints, data.draw(modes), flights)
        before, reply = history, data.draw(st.sampled_from(REPLIES))
        history = recorded(history, plan, asked, reply, str(number))
        assert_whole(plan, asked, before)
        if plan.decision is not ASIDE and history.turns[-1].rendered:
            sent = [sent_word(sent) for sent in plan.sent]
            line = line_of(history.path)
            assert line == [*sent, reply] or (plan.spliced and is_within([*sent, reply], line))


def assert_whole(plan: Plan, asked: Ask, history: History) -> None:
    """All of the client's own messages go on, in order; what is not ours of them is what is new."""
    theirs = [n for n, _ in plan.pairs]
    assert theirs == sorted(theirs)
    assert tuple(plan.messages) == asked.messages[len(asked.messages) - len(plan.messages) :]
    new = tuple([message for n, message in enumerate(plan.messages) if n not in theirs])
    brought = sum([len(turn) for turn in plan.adopted])
    assert plan.asked == new[brought:]
    assert plan.parent is None or plan.parent in history.by_id
    ats = held(plan)
    assert ats == sorted(set(ats))


# Retries

LAST = Turn("1", None, (), b"null", None, request=b"the last")


@pytest.mark.parametrize(
    ("name", "request_", "counted", "delivered", "again"),
    [
        ("delivered, the body alone", b"the last", False, True, False),
        ("delivered, and counted: the last was another turn of the same words", b"the last", True, True, False),
        ("its end was never written", b"the last", False, False, True),
        ("its end was never written, and counted", b"the last", True, False, True),
        ("nobody knows, the body alone", b"the last", False, None, False),
        ("nobody knows, and counted", b"the last", True, None, True),
        ("another body, undelivered", b"new", False, False, False),
        ("another body, counted", b"new", True, None, False),
    ],
)
def test_what_is_tried_again(name: str, request_: bytes, counted: bool, delivered: bool | None, again: bool) -> None:
    assert is_retry(request_, LAST, counted, delivered) is again


def test_nothing_is_tried_again_in_an_empty_session() -> None:
    assert not is_retry(b"", None, True, None)


def test_a_part_of_a_cut_reply_behind_other_words_is_no_retry() -> None:
    for words in ("u2 u3", "u9 a2-the u3", "u2 a9 u3", "u2 - u3"):
        history = played("u1 > a1; u2 > a2-the-begi/")
        assert decide(ask(words), history, fingerprints).reason != "the last turn again, with what came of it"
    first = played("u2 > a2-the-begi/")
    assert decide(ask("u2 a2-the u3"), first, fingerprints).decision is REWRITE


def test_a_first_turn_of_other_software_is_waited_for() -> None:
    asked = ask("s1 u1 #f")
    for client, decision in [(b"another!", APPEND), (bytes(CLIENT), ASIDE), (b"", ASIDE)]:
        flight = Flight(asked.messages, asked.system, asked.tools, client=client)
        assert decide(ask("s2 u2"), History(), fingerprints, flights=[flight]).decision is decision


# Beside turns in flight


def flight_of(history: History, words: str, id: str = "9") -> Flight:
    asked = ask(words)
    plan = decide(asked, history, fingerprints, client=software(words))
    shown = plan.carries_history, plan.spliced
    return Flight(plan.asked, asked.system, asked.tools, plan.resends, id, plan.client, False, *shown, asked)


@pytest.mark.parametrize(
    ("flight", "demoted"),
    [
        ("u9:u1-hello:a1-first-reply", True),
        ("s9 u9:a1-first-reply", True),
        ("u9:u1-hello:a1-first-reply ~", True),  # of both
        ("u9", False),
        ("u9:a1-first-reply ~", False),
        ("u9:u1-hello:a1-first-reply ^b", False),
        ("u1-hello a1-first-reply u7 ~", False),
    ],
)
def test_what_is_in_flight_is_beside_a_list_that_its_client_shows(flight: str, demoted: bool) -> None:
    history = played("u1-hello ~ > a1-first-reply; u8:u1-hello:a1-first-reply > t1")
    beside = flight_of(history, flight)
    plan = decide(ask("u1-hello a1-first-reply u2 ~"), history, fingerprints, flights=[beside])
    assert (plan.decision, plan.demoted) == (REWRITE, ("9",) if demoted else ())
    mode = decide(ask("u1-hello a1-first-reply u2 ~"), history, fingerprints, Mode.RESEND, flights=[beside])
    assert mode.demoted == decide(ask("u3"), history, fingerprints, flights=[beside]).demoted == ()


def test_what_comes_beside_a_list_in_flight_is_held_against_it() -> None:
    history = played("u1-hello ~ > a1-first-reply; u8:u1-hello:a1-first-reply > t1")
    listed = flight_of(history, "u1-hello a1-first-reply u2 ~")
    for words, decision in [("u9:u1-hello:a1-first-reply", ASIDE), ("u9", APPEND)]:
        assert decide(ask(words), history, fingerprints, flights=[listed]).decision is decision
    assert decide(ask("u9:u1-hello:a1-first-reply"), history, fingerprints).decision is APPEND


@pytest.mark.parametrize(
    ("words", "model", "alone"),
    [("s1 u1", "b", True), ("s2 u1", "b", False), ("s1 u2", "b", False), ("s1 u1", "a", False)],
)
def test_the_same_first_question_to_another_model_goes_beside_it(words: str, model: str, alone: bool) -> None:
    first, second = [structs.replace(ask(each), model=name) for each, name in [("s1 u1", "a"), (words, model)]]
    flight = Flight(first.messages, first.system, first.tools, ask=first)
    plan = decide(second, History(), fingerprints, flights=[flight])
    assert plan.side or (plan.parent, plan.alone, plan.branches) == (None, alone, alone)
    gone = decide(second, History(), fingerprints, flights=[flight._replace(abandoned=True)])
    assert gone.alone is gone.side
