"""Which cut holds for a request: what was cut for less holds for no more."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.model import Layout, TrimPoint
from proxy.core.window.cuts import GROWN, KEPT, Trim, holding, joined, made, moved, newest, purpose

LIMITS = st.one_of(st.just(0), st.integers(1, 4000))
MADES = st.builds(Trim, st.builds(TrimPoint, st.integers(0, 90)), LIMITS, st.sampled_from(["", "h a", "h b"]))


def test_a_cut_holds_for_what_takes_no_more_than_it_was_made_for() -> None:
    trim_point = Trim(TrimPoint(8), 700, "h small")
    assert [trim_point.holds(limit, "h large") for limit in (600, 700, 700 * GROWN, 701 * GROWN, 3000, None)] == [
        *[True] * 3,
        *[False] * 3,
    ]


def test_a_trim_point_without_a_limit_holds_for_its_model() -> None:
    assert [Trim(TrimPoint(8), 0, "h a").holds(limit, "h a") for limit in (None, 700)] == [True, True]
    assert not Trim(TrimPoint(8), 0, "h a").holds(700, "h b")
    assert Trim(TrimPoint(8)).holds(700, "h b") and Trim(TrimPoint(8)).holds(None, "")


def test_what_it_was_made_for_is_kept_as_text() -> None:
    assert made(TrimPoint(8), purpose(699.9, "host:1 a model")) == Trim(TrimPoint(8), 699, "host:1 a model")
    assert made(TrimPoint(8), purpose(0, "host ")) == Trim(TrimPoint(8), 0, "host ")
    assert made(TrimPoint(8), "") == Trim(TrimPoint(8))


def test_of_two_models_each_finds_its_own() -> None:
    small, large = Trim(TrimPoint(64), 612, "h small"), Trim(TrimPoint(20), 2625, "h large")
    trim_points = joined(joined((), small), large)
    assert holding(trim_points, 612, "h small") == TrimPoint(64)
    assert holding(trim_points, 2625, "h large") == TrimPoint(20)
    assert holding(trim_points, None, "h third") == TrimPoint()
    assert [newest(trim_points, model) for model in ("h small", "h large", "h third")] == [
        TrimPoint(64),
        TrimPoint(20),
        TrimPoint(),
    ]
    assert newest(joined(trim_points, Trim(TrimPoint(70))), "h small") == TrimPoint(70)
    assert joined(trim_points, Trim(TrimPoint(64), 2625, "h large")) == (Trim(TrimPoint(64), 2625, "h large"),)


def test_of_equal_trim_points_the_newest_holds() -> None:
    trim_points = joined(joined((), Trim(TrimPoint(8), 700)), Trim(TrimPoint(8, b"s"), 500))
    assert holding(trim_points, 400, "") == TrimPoint(8, b"s")
    assert holding(trim_points, 700, "") == TrimPoint(8)


@given(st.lists(MADES, max_size=12), LIMITS, st.sampled_from(["h a", "h b", "h c"]))
def test_what_is_forgotten_makes_no_difference(each: list[Trim], limit: int, model: str) -> None:
    kept: tuple[Trim, ...] = ()
    for one in each:
        kept = joined(kept, one)
    assert holding(kept, limit or None, model).at == holding(each, limit or None, model).at


def test_the_trim_points_of_a_branch_are_bounded() -> None:
    kept: tuple[Trim, ...] = ()
    for n in range(100):
        kept = joined(kept, Trim(TrimPoint(100 - n), n + 1))
    assert len(kept) == KEPT and kept[-1].limit == 100


@pytest.mark.parametrize(
    ("layout", "wanted"),
    [
        (None, TrimPoint(4, b"s")),
        (((0, 8),), TrimPoint(4, b"s")),
        (((0, 3), 1, (4, 8)), TrimPoint(4, b"s")),
        (((0, 2), (6, 8), 1), TrimPoint(2, b"s")),
        ((2, (3, 8)), TrimPoint(3, b"s")),
        (((0, 4), 1), TrimPoint()),
        ((1,), TrimPoint()),
    ],
)
def test_a_cut_and_what_its_summary_tells_of_move_with_the_messages_behind_them(
    layout: Layout | None, wanted: TrimPoint
) -> None:
    assert moved(TrimPoint(4, b"s"), layout) == wanted
    partly = moved(TrimPoint(4, b"s", 2), layout)
    assert (partly.at, partly.summary) == (wanted.at, wanted.summary)
    assert partly.covered <= wanted.covered
    assert moved(TrimPoint(), layout) == TrimPoint()
