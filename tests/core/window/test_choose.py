"""Where the window begins: a suffix, deep and rarely moved, that splits no tool group, the same after a restart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from proxy.core.history import History
from proxy.core.model import Layout, Message, TrimPoint, Turn
from proxy.core.plan import Decision, Plan
from proxy.core.window.choose import DEPTH, Bound, begin, in_force, is_trimmed, last, legal_starts, reaching, settled
from proxy.core.window.token_estimate import GRID

ROLES = {"u": "user", "a": "assistant", "c": "assistant", "r": "tool", "s": "system"}


class Ids:
    """Messages by name: `u` a user's, `a` a reply, `c12` a reply that calls 1 and 2, `r1` the result of 1."""

    def made(self, role: str, raw: bytes) -> Sequence[str]:
        return list(raw[1:].decode()) if raw[:1] == b"c" else []

    def answered(self, role: str, raw: bytes) -> str | None:
        return raw[1:].decode() if role == "tool" else None


IDS = Ids()


def message(name: str) -> Message:
    return Message(ROLES[name[0]], name.encode())


def turn(id: str, said: str, parent: str | None, **more: Any) -> Turn:
    *asked, reply = [message(name) for name in said.split()]
    return Turn(id, None, tuple(asked), reply.raw, reply, parent, **more)


def history(*said: str, **more: Any) -> History:
    """A session of these turns, each as the names of its messages."""
    told = History()
    for n, text in enumerate(said):
        told = told.plus(turn(f"t{n}", text, told.tip, **(more if n + 1 == len(said) else {})))
    return told


def append(told: History, asked: str = "u", **more: Any) -> Plan:
    messages = tuple([message(name) for name in asked.split()])
    line = told.path
    members: dict[str, Any] = {"path": line, "injected": len(line), "parent": told.tip, **more}
    return Plan(Decision.APPEND, "", messages=messages, asked=messages, system=None, **members)


# Places


@pytest.mark.parametrize(
    ("line", "asked", "wanted"),
    [
        ("u a u a u a", "u", [2, 4, 6]),
        ("u a u a", "a", [2]),
        ("u a u a", "", [2]),
        ("u c1 r1 a u a", "u", [4, 6]),
        ("u c1 u a r1 a u a", "u", [6, 8]),
        ("u c12 r2 u a r1 a u a", "u", [7, 9]),
        ("u c1 u a u a", "u", [2, 4, 6]),
        ("u c1 u a u a", "r1", []),
        ("u a u c1 u a", "r1 u", [2]),
        ("u c1 r1 a u c1 r1 a u a", "u", [4, 8, 10]),
        ("u c1 r1 a u a", "r9", []),
        ("r9 a u a", "u", [2, 4]),
        ("u c1 c2 r r2 u a", "u", [5, 7]),
    ],
)
def test_a_window_begins_before_a_user_message_that_no_call_spans(line: str, asked: str, wanted: list[int]) -> None:
    told = history(line)
    new = [message(name) for name in asked.split()]
    assert legal_starts(told.path, new, 0, len(told.path), IDS) == wanted


def test_places_lie_behind_where_the_window_begins_so_far() -> None:
    told = history("u a u a u a")
    assert legal_starts(told.path, [message("u")], 2, 6, IDS) == [4, 6]
    assert legal_starts(told.path, [message("u")], 6, 6, IDS) == []


@pytest.mark.parametrize(
    ("line", "asked", "start", "wanted"),
    [
        ("u a u a u a", "u", 4, 4),
        ("u a u c1 u a", "r1", 4, 2),
        ("u a u c1 u a", "u r1", 4, 2),
        ("u a u c1 u a", "r1", 2, 2),
        ("u c1 u c1 u a", "r1", 2, 2),
        ("u c2 r2 c1 u a", "r1", 4, 0),
        ("c1 u a", "r1", 1, 0),
        ("u c1 u c2 u a", "r2 r1", 4, 0),
        ("u a u c1 u a", "r9", 4, 4),
        ("u a u c1 u a", "r9 r1", 4, 2),
        ("u a u c1 u a", "r", 4, 4),
    ],
)
def test_a_window_holds_the_call_of_a_late_result(line: str, asked: str, start: int, wanted: int) -> None:
    told = history(line)
    assert reaching(told.path, [message(name) for name in asked.split()], start, len(told.path), IDS) == wanted


def test_only_what_is_injected_is_trimmed() -> None:
    plan = append(history("u a"))
    assert is_trimmed(plan)
    assert not is_trimmed(replace(plan, injected=0))
    assert not is_trimmed(replace(plan, resends=True))
    assert not is_trimmed(replace(plan, decision=Decision.ASIDE))


# Beginnings


def line_of(size: int, limit: float, own: float = 0.0) -> Bound:
    """A limit on `size` messages of weight 1, beside what is new."""
    return Bound(limit, lambda start: size - start + own)


def test_what_fits_is_left_alone_and_costs_no_look_at_it() -> None:
    def unwanted() -> list[int]:
        raise AssertionError("looked at")

    assert begin([line_of(10, 10)], 0, 10, unwanted) == 0
    assert begin([], 4, 10, unwanted) == 4


@pytest.mark.parametrize(
    ("size", "limit", "own", "start", "wanted"),
    [
        (100, 99, 0, 0, 48),  # 60 of them would do: the grid
        (100, 50, 0, 0, 72),
        (100, 10, 0, 0, 96),  # the grid would leave 4 of the 6 that it may
        (100, 4, 0, 0, 98),  # it would leave nothing
        (100, 40, 30, 0, 96),  # 6 of the 10 that are left
        (100, 30, 30, 0, 100),
        (100, 20, 30, 0, 100),  # not even what is new fits
        (100, 50, 0, 60, 60),
        (100, 39, 0, 60, 80),
    ],
)
def test_a_new_window_begins_well_below_the_limit_and_on_the_grid(
    size: int, limit: float, own: float, start: int, wanted: int
) -> None:
    legal = range(start + 2, size + 1, 2)
    assert begin([line_of(size, limit, own)], start, size, lambda: legal) == wanted


def test_a_bound_that_is_kept_need_not_be_kept_deeply() -> None:
    bounds = [line_of(100, 99), Bound(60, lambda start: 100 - start)]
    assert begin(bounds, 0, 100, lambda: range(2, 101, 2)) == 64
    easy = [line_of(100, 99), Bound(1000, lambda start: 900)]
    assert begin(easy, 0, 100, lambda: range(2, 101, 2)) == 48


def test_where_no_place_is_deep_enough_one_that_fits_will_do() -> None:
    assert begin([line_of(100, 90)], 0, 100, lambda: [20]) == 20
    assert begin([line_of(100, 90)], 0, 100, lambda: [4, 8]) == 8
    assert begin([line_of(100, 90)], 0, 100, lambda: []) == 0


def test_a_window_moves_rarely() -> None:
    start, moves = 0, 0
    for size in range(2, 2000, 2):
        legal = range(start + 2, size + 1, 2)
        trim_point = begin([line_of(size, 80)], start, size, lambda legal=legal: legal)  # type: ignore[misc]
        moves, start = moves + (trim_point != start), trim_point
    assert moves <= 999 * 2 / (80 * (1 - DEPTH) - GRID)


# What is in force


def test_a_trim_point_holds_until_the_next_one() -> None:
    told = history("u a", "u a", "u a", trim_point=TrimPoint(2))
    assert in_force(told, append(told)) == TrimPoint(2)
    more = told.plus(turn("n", "u a", told.tip))
    assert in_force(more, append(more)) == TrimPoint(2)
    last = more.plus(turn("m", "u a", more.tip, trim_point=TrimPoint(4, b"s")))
    assert in_force(last, append(last)) == TrimPoint(4, b"s")


def test_a_trim_point_holds_for_the_limit_and_model_it_was_made_for() -> None:
    told = history("u a", "u a", "u a", trim_point=TrimPoint(4)).plus(
        turn("n", "u a", "t2", trim_point=TrimPoint(2), trimmed_for="3000 h large")
    )
    small = told.plus(turn("m", "u a", "n", trim_point=TrimPoint(6), trimmed_for="700 h small"))
    plan = append(small)
    assert [in_force(small, plan, limit, "h large") for limit in (3000, 700)] == [TrimPoint(4), TrimPoint(6)]
    assert [last(small, plan, model) for model in ("h large", "h small", "h third")] == [
        TrimPoint(2),
        TrimPoint(6),
        TrimPoint(4),
    ]


def test_a_trim_point_holds_on_the_branches_that_contain_it_and_no_others() -> None:
    told = history("u a", "u a", "u a", trim_point=TrimPoint(2)).plus(turn("n", "u a", "t2"), turn("b", "u a", "t1"))
    assert told.trim_point == TrimPoint()
    assert in_force(told, append(told)) == TrimPoint()
    other = told.path_of("n")
    assert in_force(told, append(told, path=other, injected=8, parent="n")) == TrimPoint(2)


def test_a_client_that_carries_the_end_itself_moves_the_cut_before_it() -> None:
    told = history("u a", "u a", "u a", trim_point=TrimPoint(4))
    assert in_force(told, append(told, injected=3)) == TrimPoint(3)
    assert in_force(told, append(told, injected=0)) == TrimPoint(0)
    told = history("u a", "u a", "u a", trim_point=TrimPoint(4, b"s", 2))
    assert in_force(told, append(told, injected=4)) == TrimPoint(4, b"s", 2)
    assert in_force(told, append(told, injected=2)) == TrimPoint(2, b"s")


def test_what_a_branch_has_lost_behind_a_cut_no_summary_tells_of() -> None:
    told = history("u a", "u a", "u a")
    assert settled(TrimPoint(2, b"s"), append(told)) == TrimPoint(2, b"s")
    assert settled(TrimPoint(3, b"s"), append(told)) == TrimPoint(4, b"s", 3)
    assert settled(TrimPoint(3), append(told)) == TrimPoint(4)


@pytest.mark.parametrize(
    ("layout", "wanted"),
    [
        (((0, 8),), TrimPoint(4)),
        ((1, (2, 8)), TrimPoint(3)),
        ((1, (5, 8), 1), TrimPoint(2)),
        (((5, 8), 1), TrimPoint(0)),
        (((0, 3), 1), TrimPoint(0)),
    ],
)
def test_a_turn_tried_again_lays_its_line_out_once_more(layout: Layout, wanted: TrimPoint) -> None:
    told = history("u a", "u a", "u a", "u a", trim_point=TrimPoint(4))
    told = told.plus(turn("e", "u a", told.tip, layout=layout))
    line = told.path_of("e")[:-1]
    plan = Plan(Decision.RETRY, "", "t3", (), (), None, path=line, injected=len(line), layout=layout)
    assert in_force(told, plan) == wanted


# Every history

NAMES = st.sampled_from(["u a", "u c1 r1 a", "u c12 r1 r2 a", "u c1 u a r1 a", "u c3 u a", "u u a", "r3 a"])


@given(
    st.lists(st.tuples(NAMES, st.integers(1, 90)), max_size=20),
    st.sampled_from(["u", "r3", "u u"]),
    st.integers(1, 400),
    st.integers(0, 300),
)
def test_every_window(said: list[tuple[str, int]], asked: str, limit: int, own: int) -> None:
    told = history(*[text for text, _ in said])
    weights = [weight for text, weight in said for _ in text.split()]
    line, end = told.path, len(told.path)
    new = [message(name) for name in asked.split()]

    def cost(start: int) -> int:
        return sum(weights[start:]) + own

    legal = legal_starts(line, new, 0, end, IDS)
    start = begin([Bound(limit, cost)], 0, end, lambda: legal)
    # A suffix, of what can stand at the front.
    assert start == 0 or (line[start].message if start < end else new[0]).role == "user"
    # Within the limit, where a cut could do it.
    assert cost(start) <= limit or all([cost(place) > limit for place in legal])
    assert start == 0 or cost(0) > limit
    # No result without its call, were it not so before.
    whole = [*[entry.message for entry in line], *new]
    assert _orphans(whole[start:]) <= _orphans(whole)
    # The same after a restart.
    restarted = History(told.turns, told.tip)
    again = begin([Bound(limit, cost)], 0, end, lambda: legal_starts(restarted.path, new, 0, end, IDS))
    assert again == start


def _orphans(messages: Sequence[Message]) -> int:
    """How many results have no call before them."""
    made: set[str] = set()
    orphans = 0
    for each in messages:
        made.update(IDS.made(each.role, each.raw))
        id = IDS.answered(each.role, each.raw)
        orphans += id is not None and id not in made
    return orphans


@given(st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60)), min_size=1, max_size=40), st.integers(150, 400))
def test_a_session_sends_the_same_prefix_until_its_next_cut_on_every_branch_and_after_a_restart(
    sizes: list[tuple[int, int]], limit: int
) -> None:
    told = History()
    weights: list[int] = []
    for n, (question, reply) in enumerate(sizes):
        plan = append(told)
        before = in_force(told, plan)
        end = len(plan.path)

        def cost(start: int, held: list[int] = weights, own: int = question) -> int:
            return sum(held[start:]) + own

        def legal(start: int = before.at, plan: Plan = plan) -> list[int]:
            return legal_starts(plan.path, plan.messages, start, len(plan.path), IDS)

        start = begin([Bound(limit, cost)], before.at, end, legal)
        assert cost(start) <= limit
        assert start >= before.at
        told = told.plus(turn(f"t{n}", "u a", told.tip, trim_point=TrimPoint(start) if start > before.at else None))
        weights += [question, reply]
        restarted = History(told.turns, told.tip)
        assert restarted.trim_point == told.trim_point == TrimPoint(start)
        branched = told.plus(turn("b", "u a", told.tip))
        assert in_force(branched, append(branched)) == TrimPoint(start)
