"""Which cut holds for a request: what was cut for less holds for no more."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from proxy.core.model import Cut
from proxy.core.window.cuts import GROWN, KEPT, Made, holding, joined, made, newest, purpose

LIMITS = st.one_of(st.just(0), st.integers(1, 4000))
MADES = st.builds(Made, st.builds(Cut, st.integers(0, 90)), LIMITS, st.sampled_from(["", "h a", "h b"]))


def test_a_cut_holds_for_what_takes_no_more_than_it_was_made_for() -> None:
    cut = Made(Cut(8), 700, "h small")
    assert [cut.holds(limit, "h large") for limit in (600, 700, 700 * GROWN, 701 * GROWN, 3000, None)] == [
        *[True] * 3,
        *[False] * 3,
    ]


def test_a_cut_of_no_number_holds_for_its_model() -> None:
    assert [Made(Cut(8), 0, "h a").holds(limit, "h a") for limit in (None, 700)] == [True, True]
    assert not Made(Cut(8), 0, "h a").holds(700, "h b")
    assert Made(Cut(8)).holds(700, "h b") and Made(Cut(8)).holds(None, "")


def test_what_it_was_made_for_is_kept_as_text() -> None:
    assert made(Cut(8), purpose(699.9, "host:1 a model")) == Made(Cut(8), 699, "host:1 a model")
    assert made(Cut(8), purpose(0, "host ")) == Made(Cut(8), 0, "host ")
    assert made(Cut(8), "") == Made(Cut(8))


def test_of_two_models_each_finds_its_own() -> None:
    small, large = Made(Cut(64), 612, "h small"), Made(Cut(20), 2625, "h large")
    cuts = joined(joined((), small), large)
    assert holding(cuts, 612, "h small") == Cut(64)
    assert holding(cuts, 2625, "h large") == Cut(20)
    assert holding(cuts, None, "h third") == Cut()
    assert [newest(cuts, model) for model in ("h small", "h large", "h third")] == [Cut(64), Cut(20), Cut()]
    assert newest(joined(cuts, Made(Cut(70))), "h small") == Cut(70)
    assert joined(cuts, Made(Cut(64), 2625, "h large")) == (Made(Cut(64), 2625, "h large"),)


def test_of_equal_cuts_the_newest_holds() -> None:
    cuts = joined(joined((), Made(Cut(8), 700)), Made(Cut(8, b"s"), 500))
    assert holding(cuts, 400, "") == Cut(8, b"s")
    assert holding(cuts, 700, "") == Cut(8)


@given(st.lists(MADES, max_size=12), LIMITS, st.sampled_from(["h a", "h b", "h c"]))
def test_what_is_forgotten_makes_no_difference(each: list[Made], limit: int, model: str) -> None:
    kept: tuple[Made, ...] = ()
    for one in each:
        kept = joined(kept, one)
    assert holding(kept, limit or None, model).at == holding(each, limit or None, model).at


def test_there_are_never_many() -> None:
    kept: tuple[Made, ...] = ()
    for n in range(100):
        kept = joined(kept, Made(Cut(100 - n), n + 1))
    assert len(kept) == KEPT and kept[-1].limit == 100
