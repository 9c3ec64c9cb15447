"""What a plan sends: the line or what it keeps of it, ours in the place of the client's copies, and what is new."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.core.history import Entry
from proxy.core.model import Message, Turn
from proxy.core.plan import Decision, Plan

ROLES = {"u": "user", "a": "assistant"}
TURN = Turn("1", None, (), b"", None)


def message(text: str) -> Message:
    return Message(ROLES[text[0].lower()], text.encode())


def plan(line: str, messages: str, **more: Any) -> Plan:
    """The plan of a list against a line. Small letters are stored, capitals the client's."""
    entries = tuple([Entry(message(text), TURN, text[0] == "a") for text in line.split()])
    listed = [message(text) for text in messages.split()]
    return Plan(Decision.RESEND, "", None, listed, (), None, entries, **more)


def sent(plan: Plan) -> str:
    """What goes upstream, in order: ours, and behind "=" the client's copy that it stands for."""
    places = [[place.entry and place.entry.message, place.theirs] for place in plan.sent]
    return " ".join(["=".join([each.raw.decode() for each in place if each]) for place in places])


@pytest.mark.parametrize(
    ("line", "messages", "how", "wanted", "tail"),
    [
        ("", "U1", {}, "U1", "U1"),
        ("u1 a1", "U2 U3", {"injected": 2}, "u1 a1 U2 U3", "U2 U3"),
        ("u1 a1", "U1 A1 U2", {"pairs": [(0, 0), (1, 1)]}, "u1=U1 a1=A1 U2", "U2"),
        ("u1 a1", "U1 A1", {"pairs": [(0, 0), (1, 1)]}, "u1=U1 a1=A1", ""),
        ("u1 a1 u2 a2", "U0 A1 U3 A2 U4", {"pairs": [(1, 1), (3, 3)]}, "U0 a1=A1 U3 a2=A2 U4", "U4"),
        ("u1 a1 u2 a2", "U2 A2 U3", {"injected": 2, "pairs": [(0, 2), (1, 3)]}, "u1 a1 u2=U2 a2=A2 U3", "U3"),
        ("u1 a1 a2", "U1 A12 U2", {"pairs": [(0, 0), (1, 1), (1, 2)]}, "u1=U1 a1 a2 U2", "U2"),
    ],
    ids=["nothing stored", "all before", "a copy", "no more", "in between", "the end of it", "two in one"],
)
def test_ours_goes_in_the_place_of_the_copy_and_the_rest_in_order(
    line: str, messages: str, how: dict[str, Any], wanted: str, tail: str
) -> None:
    made = plan(line, messages, **how)
    assert sent(made) == wanted
    assert " ".join([each.raw.decode() for each in made.tail]) == tail


def test_the_whole_line_goes_unless_a_layout_tells_what_is_kept() -> None:
    assert plan("u1 a1", "U2", injected=2).whole
    assert not plan("u1 a1", "U1 U2", pairs=[(0, 0)], layout=((0, 1), 1)).whole
