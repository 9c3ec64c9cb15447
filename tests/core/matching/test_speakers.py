"""Whose turns a line holds, and where a turn goes that others overtook."""

from __future__ import annotations

import pytest

from proxy.core.history import History
from proxy.core.matching.reconcile import decide
from proxy.core.matching.speakers import Speakers, begins_with, client_of, is_of_another, moved_on
from proxy.core.model import CLIENT, Turn
from proxy.core.plan import Mode
from proxy.dialects.chat import fingerprints
from tests.core.notation import ask, line_of, played, recorded, software

NOBODY = bytes(CLIENT)


def client(words: str) -> bytes:
    return client_of(software(words), ask(words).messages, fingerprints)


@pytest.mark.parametrize(
    ("before", "list_", "matched", "unseen"),
    [
        ("u1 > a1; u1 a1 u2 > a2; u3 > a3", "u1 a1 u2 a2 u4", [0, 1, 2, 3], [4, 5]),
        ("u1 > a1; u2 > a2", "u1 a1 u3", [0, 1], []),  # nothing was resent yet: it may be its own
        ("u1 > a1; ^b u2 > a2", "u1 a1 u3", [0, 1], [2, 3]),
        ("^b u0 > a0; u1 > a1; u1 a1 u2 > a2", "u1 a1 u2 a2 u3", [2, 3, 4, 5], [0, 1]),
        ("u1 > a1; u1 a1 u2 > a2; u3 > a3", "u1 a1 u2 a2 u3 u9", [0, 1, 2, 3, 4], []),  # its turn was seen in part
        ("u1 > a1; u1 a1 u2 > a2; u3 > a3; u1 a1 u2 a2 u3 a3 u4 > a4", "u1 a1 u2 a2 u9", [0, 1, 2, 3], []),
        ("u1 > a1; u1 a1 u2 > a2", "u9", [], []),
        ("u1 > a1; u2 > a2; u1 a1 u2 > a3", "u2 a3 u4", [2, 3], []),  # a window of its own list
    ],
)
def test_what_others_said_and_a_list_lacks(before: str, list_: str, matched: list[int], unseen: list[int]) -> None:
    assert Speakers(played(before), client(list_), fingerprints).unseen(matched) == unseen


def test_a_list_begun_anew_leaves_what_the_same_software_said_before_it() -> None:
    history = played("^b w1 > x1; u1 > a1; u1 a1 u2 > a2; ^b w2 > x2; v1 > b1; ^b w3 > x3")
    speakers = Speakers(history, client("v1 b1 v2"), fingerprints)
    assert speakers.unseen([8, 9]) == [0, 1, 2, 3, 4, 5, 6, 7, 10, 11]
    assert speakers.unseen([8, 9], anew=True) == [0, 1, 6, 7, 10, 11]


def test_a_client_is_known_by_its_software_and_by_where_its_list_begins() -> None:
    head = fingerprints.fingerprint(ask("u1").messages[0].raw)[:CLIENT]
    assert client("u1 a1 u2") == NOBODY + head
    assert client_of(b"software", (), fingerprints) == b"software"
    first, second = played("u1 > a1; u1 a1 u2 > a2").turns
    assert begins_with(first, fingerprints) == begins_with(second, fingerprints) == head
    assert begins_with(Turn("1", None, (), b"", None), fingerprints) == b""


def test_of_turns_of_an_earlier_version_nobody_knows_the_software() -> None:
    turn = Turn("1", None, (), b"", None)
    assert not is_of_another(turn, NOBODY)
    assert is_of_another(Turn("1", None, (), b"", None, client=b"another!"), NOBODY)


def run(before: str, mine: str, meanwhile: str, reply: str = "a99") -> str:
    """The line after a list that was read before other turns were kept, and is kept behind them."""
    then = played(before)
    asked = ask(mine)
    plan = decide(asked, then, fingerprints, client=software(mine))
    latest = then
    for number, exchange in enumerate(filter(None, meanwhile.split(";")), 50):
        words, said = exchange.split(">")
        other = decide(ask(words), then, fingerprints, client=software(words))
        other = moved_on(other, ask(words).system, then, latest, fingerprints)
        latest = recorded(latest, other, ask(words), said.strip(), str(number))
    moved = moved_on(plan, asked.system, then, latest, fingerprints)
    return " ".join(line_of(recorded(latest, moved, asked, reply, "99").path))


@pytest.mark.parametrize(
    ("before", "mine", "meanwhile", "line"),
    [
        ("u1 > a1", "u1 a1 u2", "", "u1 a1 u2 a99"),
        ("u1 > a1", "u1 a1 u2", "u3 > a3", "u1 a1 u3 a3 u2 a99"),
        ("u1 > a1", "u3", "u1 a1 u2 > a2", "u1 a1 u2 a2 u3 a99"),
        ("u1 > a1", "u1 a1 u2", "u1 a1 u3 > a3", "u1 a1 u2 a99"),  # two lists of one client: branches
        ("u1 > a1", "u1 a1 u2", "^b u1 a1 u3 > a3", "u1 a1 u3 a3 u2 a99"),
        ("u1 > a1; u1 a1 u2 > a2", "u1 a1 u9", "u3 > a3", "u1 a1 u3 a3 u9 a99"),
        ("u1 > a1; u1 a1 u2 > a2", "u9 a1 u5", "u3 > a3", "u9 a1 u3 a3 u5 a99"),
        ("u1 > a1; u1 a1 u2 > a2", "u1 a1 u2", "u3 > a3", "u1 a1 u2 u3 a3 a99"),
        ("u1 > a1; u1 a1 u2 > a2", "u3", "u1 a1 u9 > a9", "u1 a1 u9 a9 u3 a99"),
        ("u1 > a1; u1 a1 u2 > a2", "u1 a1 u2 a2 u4", "u1 a1 u9 > a9", "u1 a1 u2 a2 u4 a99"),
        ("s1 u1 > a1; s1 u1 a1 u2 > a2", "s2 u9", "s1 u1 a1 u2 a2 u3 > a3", "u1 a1 u2 a2 u3 a3"),
    ],
)
def test_a_turn_that_others_overtook_follows_them(before: str, mine: str, meanwhile: str, line: str) -> None:
    assert run(before, mine, meanwhile) == line


@pytest.mark.parametrize("before", ["", "u1 > a1", "u1 > a1; u1 a1 u2 > a2"])
def test_with_mode_resend_what_others_say_meanwhile_is_left_on_its_branch(before: str) -> None:
    then = played(before)
    other = ask("u8 ^b")
    latest = recorded(then, decide(other, then, fingerprints, client=software("^b")), other, "a8", "50")
    mine = ask("u1 a1 u2 a2 u9")
    plan = decide(mine, then, fingerprints, Mode.RESEND)
    assert moved_on(plan, mine.system, then, latest, fingerprints) is plan
    assert line_of(recorded(latest, plan, mine, "a9", "99").path) == ["u1", "a1", "u2", "a2", "u9", "a9"]


def test_what_a_client_adds_takes_the_prompt_that_came_meanwhile() -> None:
    then = played("s1 u1 > a1")
    plan = decide(ask("u3"), then, fingerprints)
    latest = recorded(then, decide(ask("s2 u1 a1 u2"), then, fingerprints), ask("s2 u1 a1 u2"), "a2", "50")
    assert moved_on(plan, None, then, latest, fingerprints).system == latest.system != then.system
    own = ask("s3 u3")
    assert moved_on(decide(own, then, fingerprints), own.system, then, latest, fingerprints).system == own.system


def test_a_layout_that_keeps_nothing_drops_the_trim_point() -> None:
    history = History()
    plan = decide(ask("u1"), history, fingerprints)
    assert moved_on(plan, None, history, history, fingerprints) is plan
