"""The tree of turns: which messages lead to the tip, what a branch keeps, what may go."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.history import (
    LEFT,
    SIDE_TURNS,
    SPARE_BYTES,
    SPARE_TURNS,
    Entry,
    History,
    Session,
    followed,
    fresh,
    laid_out,
    own_entries,
)
from proxy.core.model import CARRIES, SIDE, HistoryCache, Layout, Message, SessionState, TrimPoint, Turn, TurnState
from proxy.core.window.cuts import Trim

ROLES = {"u": "user", "a": "assistant", "t": "tool", "p": "assistant"}


def message(text: str) -> Message:
    """A message by its name: `u1` of the user, `a1` a reply, `t1` a tool's result, `p1` a prefill."""
    return Message(ROLES[text[0]], text.encode())


def turn(id: str, parent: str | None, said: str, layout: Layout | None = None, **more: Any) -> Turn:
    """A turn from what it asked and, last, its reply; the reply `-` says nothing."""
    *asked, reply = [None if text == "-" else message(text) for text in said.split()]
    told = tuple([one for one in asked if one])
    return Turn(id, None, told, b"" if reply is None else reply.raw, reply, parent, layout, **more)


def texts(line: Any) -> str:
    return " ".join([entry.message.raw.decode() for entry in line])


# 1 - 2 - 3 with branches off 1 and 2
ONE = turn("1", None, "u1 a1")
TWO = turn("2", "1", "u2 p2 a2")
THREE = turn("3", "2", "u3 a3")
OTHER = turn("o", "1", "u4 a4")
EDITED = turn("e", "2", "u5 a5", ((0, 2), 1))
TREE = (ONE, TWO, OTHER, EDITED, THREE)


@pytest.mark.parametrize(
    ("tip", "wanted"),
    [
        (None, ""),
        ("gone", ""),
        ("1", "u1 a1"),
        ("2", "u1 a1 u2 p2 a2"),
        ("3", "u1 a1 u2 p2 a2 u3 a3"),
        ("o", "u1 a1 u4 a4"),
        ("e", "u1 a1 u5 a5"),
    ],
)
def test_the_path_goes_from_the_first_turn_to_the_tip(tip: str | None, wanted: str) -> None:
    history = History(TREE, tip)
    assert texts(history.path) == wanted
    assert history.path == history.path_of(tip) == History(TREE).path_of(tip)


def test_an_entry_tells_its_turn_and_whether_an_upstream_said_it() -> None:
    adopted = turn("0", None, "u0 p0 a0", state=TurnState.ADOPTED)
    trim_point = turn("1", "0", "u1 p1 a1", state=TurnState.INTERRUPTED)
    line = History((adopted, trim_point), "1").path
    assert [(entry.message.raw, entry.turn.id, entry.ours) for entry in line] == [
        (b"u0", "0", False),
        (b"p0", "0", False),
        (b"a0", "0", False),
        (b"u1", "1", False),
        (b"p1", "1", False),
        (b"a1", "1", True),
    ]


@pytest.mark.parametrize(
    ("layout", "said", "wanted"),
    [
        (None, "u9 a9", "u1 a1 u2 a2 u9 a9"),
        (((0, 4), 1), "u9 a9", "u1 a1 u2 a2 u9 a9"),
        (((0, 2), 1), "u9 a9", "u1 a1 u9 a9"),
        (((0, 2),), "a9", "u1 a1 a9"),
        ((1,), "u9 a9", "u9 a9"),
        ((2, (1, 2), 1, (3, 4)), "u7 u8 u9 a9", "u7 u8 a1 u9 a2 a9"),
        ((), "a9", "a9"),
        (None, "u9 -", "u1 a1 u2 a2 u9"),
        (((0, 1), 1), "u9 -", "u1 u9"),
    ],
    ids=repr,
)
def test_a_turn_keeps_what_its_layout_says(layout: Layout | None, said: str, wanted: str) -> None:
    before = History((ONE, turn("2", "1", "u2 a2")), "2")
    new = turn("9", "2", said, layout)
    assert texts(followed(before.path, new)) == wanted
    assert texts(before.plus(new).path) == wanted


def test_a_reply_that_says_nothing_leaves_its_question() -> None:
    assert [entry.message.raw for entry in own_entries(turn("1", None, "u1 -"))] == [b"u1"]
    history = History((ONE, turn("2", "1", "u2 -"), turn("3", "2", "u3 a3")), "3")
    assert texts(history.path) == "u1 a1 u2 u3 a3"


def test_a_path_begins_behind_a_turn_that_is_gone() -> None:
    assert texts(History((TWO, THREE), "3").path) == "u2 p2 a2 u3 a3"


def test_ancestors_go_back_to_the_first_or_to_what_is_known() -> None:
    history = History(TREE, "3")
    assert [one.id for one in history.ancestors("3")] == ["3", "2", "1"]
    assert [one.id for one in history.ancestors("3", {"1"})] == ["3", "2"]
    assert history.ancestors("3", {"3"}) == history.ancestors(None) == history.ancestors("gone") == []


@pytest.mark.parametrize(
    ("history", "last"),
    [
        (History(), None),
        (History(TREE), None),
        (History(TREE, "gone"), None),
        (History(TREE, "3"), THREE),
        (History(TREE, "o"), OTHER),
    ],
)
def test_the_last_turn_is_the_one_at_the_tip(history: History, last: Turn | None) -> None:
    assert history.last == last
    assert not history.resends


def test_a_client_resends_if_its_latest_request_did() -> None:
    resent, appended = turn("1", None, "u1 a1", resends=True), turn("2", "1", "u2 a2")
    assert History((resent,), "1").resends
    assert not History((resent, appended), "2").resends
    assert History((resent, appended), "1").resends


# The system block -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("blocks", "wanted"),
    [
        ([], None),
        ([None], None),
        ([b"old"], b"old"),
        ([b"old", b"new", None], b"new"),
        ([None, b"late"], b"late"),
        ([b"old", b"", None], None),
        ([b"old", b"", b"again"], b"again"),
    ],
)
@pytest.mark.parametrize("silent", [False, True])
def test_the_system_block_in_force_is_the_newest_and_may_be_none(
    blocks: list[bytes | None], wanted: bytes | None, silent: bool
) -> None:
    history = grown = History()
    for n, block in enumerate(blocks):
        one = Turn(str(n), block, (), b"", None if silent else message("a1"), str(n - 1) if n else None)
        history = History((*history.turns, one), one.id)
        grown = grown.plus(one)
        assert grown.system == history.system
    assert history.system == grown.system == wanted


def test_each_branch_has_its_own_system_block() -> None:
    first = Turn("1", b"first", (), b"", message("a1"))
    left, right = (Turn(id, id.encode(), (), b"", message("a2"), "1") for id in ("left", "right"))
    history = History((first, left, right), "left")
    assert (history.system, history.system_of("right"), history.system_of("1")) == (b"left", b"right", b"first")
    back = history.plus(Turn("2", None, (), b"", message("a3"), "1"))
    assert back.system == b"first"


# Preamble and branches ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("turns", "wanted"),
    [
        ([], 0),
        ([("u1 a1", False)], 0),
        ([("u1 p1 a1", False)], 0),
        ([("u1 p1 u2 p2 u3 a1", False)], 4),
        ([("u1 u2 a1", False)], 1),
        ([("u1 p1 u2 t2 a1", False), ("u3 u4 a2", False)], 2),
        ([("p1 a1", False), ("u1 u2 a2", False)], 0),
        ([("u1 p1", True), ("u2 p2", True), ("u3 a1", False), ("u4 a2", False)], 4),
        ([("u1 p1", True)], 0),
    ],
)
def test_the_preamble_is_what_the_first_list_carried_before_its_last_user_message(
    turns: list[tuple[str, bool]], wanted: int
) -> None:
    history = History()
    for n, (said, adopted) in enumerate(turns):
        state = TurnState.ADOPTED if adopted else TurnState.COMPLETE
        history = history.plus(turn(str(n), history.tip, said, state=state))
    assert history.preamble == wanted


def test_the_other_branches_come_newest_first() -> None:
    assert [(id, texts(line)) for id, line in History(TREE, "3").other_paths] == [
        ("e", "u1 a1 u5 a5"),
        ("o", "u1 a1 u4 a4"),
    ]
    back = [(id, texts(line)) for id, line in History(TREE, "2").other_paths]
    assert [id for id, _ in back] == ["3", "e", "o"]
    assert History(TREE[:2], "2").other_paths == History().other_paths == []


@pytest.mark.parametrize(
    ("layout", "traits", "wanted"),
    [
        (((4, 6), 1), 0, ["u1 a1 u2 a2"]),  # a list that was begun with u3
        (((0, 2), (4, 6), 1), 0, ["u1 a1 u2 a2"]),  # and what others said before it stays
        (((4, 6), 1), CARRIES, []),  # a window that slides on
        (((2, 6), 1), 0, ["u1 a1"]),
        (((3, 6), 1), 0, []),  # no turn ends there
        (((0, 6), 1), 0, []),
    ],
)
def test_a_list_that_was_left_for_another_is_a_branch(layout: Layout, traits: int, wanted: list[str]) -> None:
    three = turn("3", "2", "u3 a3", traits=traits)
    history = History((ONE, turn("2", "1", "u2 a2"), three, turn("4", "3", "u4 a4", layout)), "4")
    assert [texts(line) for _, line in history.other_paths] == wanted


def test_the_newest_lists_that_were_left_are_branches() -> None:
    history = History((ONE,), "1")
    for n in range(2, 3 * LEFT, 2):
        history = history.plus(turn(f"{n}", history.tip, f"u{n} a{n}"))
        size = len(history.path)
        history = history.plus(turn(f"{n + 1}", history.tip, f"u{n + 1} a{n + 1}", ((size - 2, size), 1)))
    assert len(history.other_paths) == LEFT


# Growing --------------------------------------------------------------------------------------


def test_a_history_grows_by_turns_and_stays_what_it_was() -> None:
    history = History((ONE,), "1")
    longer = history.plus(TWO, THREE)
    assert (longer.turns, longer.tip) == ((ONE, TWO, THREE), "3")
    assert (history.turns, history.tip) == ((ONE,), "1")
    assert history.plus() is history


def test_the_cache_is_handed_on_while_the_path_only_grows() -> None:
    history = History((ONE,), "1")
    history.cache.renderings["key"] = "rendered"
    assert history.plus(TWO).cache is history.cache
    assert history.plus(TWO, OTHER).cache == HistoryCache()
    assert history.plus(turn("2", "1", "u2 a2", ((0, 2), 1))).cache == HistoryCache()


def test_turns_that_go_are_gone() -> None:
    history = History(TREE, "3")
    assert history.without(["o", "e", "x"]) == History((ONE, TWO, THREE), "3")
    assert history.without([]) is history


@st.composite
def trees(draw: st.DrawFn, most: int = 12) -> list[Turn]:
    """Turns, each behind any earlier one or none, some with a layout, a system block or nothing to say."""
    turns: list[Turn] = []
    lengths: dict[str | None, int] = {None: 0}
    for n in range(draw(st.integers(0, most))):
        parent = draw(st.sampled_from([turns[-1].id if turns else None, *lengths]))
        own = draw(st.integers(0, 2))
        layout = draw(st.none() | layouts(lengths[parent], own))
        asked = tuple([message(f"u{n}.{k}") for k in range(own)])
        echo = draw(st.sampled_from([message(f"a{n}")] * 3 + [None]))
        state = draw(st.sampled_from(TurnState))
        system = draw(st.sampled_from([None, None, b"", b"S%d" % n]))
        turns.append(Turn(str(n), system, asked, b"r" * n, echo, parent, layout, state))
        lengths[str(n)] = len(History(tuple(turns)).path_of(str(n)))
    return turns


@st.composite
def layouts(draw: st.DrawFn, length: int, own: int) -> Layout:
    """Some of the parent's messages in order, and `own` of the turn's own in between."""
    kept = sorted(draw(st.sets(st.integers(0, length - 1)))) if length else []
    parts: list[tuple[int, int] | int] = [(at, at + 1) for at in kept]
    for _ in range(own):
        parts.insert(draw(st.integers(0, len(parts))), 1)
    return tuple(parts)


@given(trees(), st.data())
def test_what_grew_step_by_step_is_what_the_turns_say(turns: list[Turn], data: st.DataObject) -> None:
    grown = History()
    for n, one in enumerate(turns):
        for name in data.draw(st.sets(st.sampled_from(["path", "size", "system", "cache"]))):
            getattr(grown, name)  # what was looked at is carried on, what was not is made afresh
        grown = grown.plus(one)
        afresh = History(tuple(turns[: n + 1]), one.id)
        assert grown == afresh
        assert [grown.path, grown.size, grown.system] == [afresh.path, afresh.size, afresh.system]
        assert grown.path == afresh.path_of(one.id)
        assert grown.last is afresh.last is one


@given(trees())
def test_a_branch_says_the_same_whatever_stands_beside_it(turns: list[Turn]) -> None:
    history = History(tuple(turns))
    for one in turns:
        alone = History(tuple(reversed(history.ancestors(one.id))), one.id)
        assert alone.path == history.path_of(one.id)
        assert alone.system == history.system_of(one.id)


def test_spans_and_own_messages_are_laid_out_in_turn() -> None:
    line = [Entry(message(f"u{n}"), ONE, False) for n in range(4)]
    own = [Entry(message(f"p{n}"), TWO, False) for n in range(3)]
    assert texts(laid_out(line, (1, (1, 3), 2), own)) == "p0 u1 u2 p1 p2"


# What may go ----------------------------------------------------------------------------------


def fan(tips: int) -> History:
    """One first turn with so many branches of one turn each; the tip is the last."""
    branches = [turn(str(n), "first", f"u{n} a{n}") for n in range(tips)]
    return History((turn("first", None, "u a"), *branches), str(tips - 1))


def test_the_oldest_branches_go() -> None:
    assert fan(5).turns_to_drop(turns=2) == ["0", "1"]
    assert fan(5).turns_to_drop(turns=0) == ["0", "1", "2", "3"]
    assert fan(5).turns_to_drop(turns=4) == History().turns_to_drop(turns=0) == []
    size = fan(5).turns[1].size
    assert fan(5).turns_to_drop(size=2 * size) == ["0", "1"]
    assert fan(5).turns_to_drop(size=2 * size - 1) == ["0", "1", "2"]
    assert fan(5).turns_to_drop(["0"], turns=1) == ["1", "2"]
    assert fan(5).turns_to_drop(["gone"], turns=1) == ["0", "1", "2"]


def test_branches_are_bounded_unless_told_otherwise() -> None:
    assert fan(SPARE_TURNS + 1).turns_to_drop() == []
    assert fan(SPARE_TURNS + 3).turns_to_drop() == ["0", "1"]
    large = Turn("large", None, (), b"x" * SPARE_BYTES, message("a1"), "first")
    history = fan(3)
    assert History((history.turns[0], large, *history.turns[1:]), history.tip).turns_to_drop() == ["large"]


def test_a_branch_that_is_worked_on_stays_and_what_it_follows() -> None:
    history = History(TREE, "o")
    assert history.turns_to_drop(turns=0) == ["2", "e", "3"]
    assert history.turns_to_drop(["3"], turns=0) == ["e"]
    assert history.turns_to_drop(turns=1) == ["2", "e", "3"]  # the newest needs two
    assert history.turns_to_drop(turns=2) == ["e"]


@given(trees(), st.data(), st.integers(0, 8), st.integers(0, 12_000))
def test_what_goes_is_no_ones_past_and_what_stays_is_bounded(
    turns: list[Turn], data: st.DataObject, most: int, size: int
) -> None:
    ids = [one.id for one in turns]
    tip = data.draw(st.sampled_from([*ids, None]))
    needed = data.draw(st.sets(st.sampled_from([*ids, "gone"])))
    history = History(tuple(turns), tip)
    gone = set(history.turns_to_drop(needed, most, size))
    held = {one.id for end in (tip, *needed) for one in history.ancestors(end)}
    assert not gone & held
    rest = [one for one in turns if one.id not in gone | held]
    assert len(rest) <= most
    assert sum([one.size for one in rest]) <= size
    left = history.without(gone)
    assert all(one.parent is None or one.parent in left.by_id for one in left.turns)
    assert left.path == history.path
    for end in [one.id for one in left.turns]:
        assert left.path_of(end) == history.path_of(end)


def test_a_fresh_session_has_no_history() -> None:
    assert fresh() == Session(SessionState.NEW, History())
    assert fresh(SessionState.EXPIRED).state == "expired"
    assert (History().path, History().size, History().system, History().resends) == ((), 0, None, False)


def test_a_cut_is_kept_with_its_turn_and_holds_on_the_branches_that_contain_it() -> None:
    trim_point = turn("4", "3", "u4 a4", trim_point=TrimPoint(2, b"s"))
    told = History(TREE, "3").plus(trim_point)
    assert told.trim_point == told.trim_point_of("4") == History(told.turns, "4").trim_point == TrimPoint(2, b"s")
    assert told.plus(turn("5", "4", "u5 a5")).trim_point == TrimPoint(2, b"s")
    assert told.plus(turn("5", "4", "u5 a5", trim_point=TrimPoint(4))).trim_point == TrimPoint(4)
    assert told.plus(turn("b", "3", "u5 a5")).trim_point == TrimPoint()
    assert told.plus(turn("b", "4", "u5 a5", ((0, 1), 1, (3, 8)))).trim_point == TrimPoint(2, b"s")
    assert told.plus(turn("b", "4", "u5 -", ((0, 1),))).trim_point == TrimPoint()


def test_each_model_has_its_own_trim_points() -> None:
    small = turn("4", "3", "u4 a4", trim_point=TrimPoint(4), trimmed_for="700 h small")
    large = turn("5", "4", "u5 a5", trim_point=TrimPoint(2), trimmed_for="3000 h large")
    told = History(TREE, "3").plus(small, large, turn("6", "5", "u6 a6"))
    both = (Trim(TrimPoint(4), 700, "h small"), Trim(TrimPoint(2), 3000, "h large"))
    assert told.trim_points == told.trim_points_of("6") == History(told.turns, "6").trim_points == both
    assert told.trim_points_of("4") == both[:1] and told.trim_points_of("3") == ()
    assert [each.trim_point for each in told.plus(turn("b", "6", "u5 a5", ((1, 12), 1))).trim_points] == [
        TrimPoint(3),
        TrimPoint(1),
    ]
    beside = turn("s", "6", "u5 a5", traits=SIDE)
    assert told.plus(beside).trim_points == both


def test_what_clients_did_is_known_and_handed_on() -> None:
    carried = turn("2", "1", "u2 a2", client=b"softwareTHE LIST", traits=CARRIES)
    silent = turn("3", "2", "u3 -", client=b"software", traits=CARRIES)
    side = turn("s", None, "u9 a9", traits=SIDE)
    history = History((turn("1", None, "u1 a1"),), "1")
    assert (history.carriers, history.side_requests, history.has_silent) == (frozenset(), (), False)
    for added, known in [(carried, (1, 0, False)), (side, (1, 1, False)), (silent, (1, 1, True))]:
        history = history.plus(added)
        anew = History(history.turns, history.tip)
        for each in (history, anew):
            assert (len(each.carriers), len(each.side_requests), each.has_silent) == known
    assert (history.tip, texts(history.path)) == ("3", "u1 a1 u2 a2 u3")
    assert (carried.carries_history, carried.is_side_request, side.is_side_request, side.is_spliced) == (
        True,
        False,
        True,
        False,
    )
    assert texts(history.before(silent).path) == "u1 a1 u2 a2"


def test_side_requests_push_no_branch_out() -> None:
    """They have bounds of their own, and the newest stay."""
    side_requests = [turn(f"s{n}", None, "u9 a9", traits=SIDE) for n in range(SIDE_TURNS + 3)]
    history = History((turn("1", None, "u1 a1"), turn("b", None, "u2 a2"), *side_requests), "1")
    assert history.turns_to_drop() == ["s0", "s1", "s2"]
    assert history.turns_to_drop(turns=0) == ["b", "s0", "s1", "s2"]
