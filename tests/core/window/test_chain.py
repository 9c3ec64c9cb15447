"""What is to be summarized, and in which parts."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.history import History
from proxy.core.model import Message, TrimPoint, Turn
from proxy.core.window.chain import (
    BYTES,
    GAP,
    LEAST,
    ROOMS,
    SHORT,
    SIZE,
    Leaving,
    Position,
    abridged,
    bytes_of,
    digest,
    due,
    furthest,
    head,
    most_of,
    part,
    room,
    shortened,
    size_of,
    taken,
)
from proxy.core.window.token_estimate import RATIO
from proxy.dialects.chat import tool_groups

SUMMARY = b'{"role":"user","content":"in short"}'
words = st.text(st.sampled_from("ab é🙂.\n\ud800"), max_size=60)


def history(turns: int, *, size: int = 100, at: dict[int, TrimPoint] | None = None) -> History:
    """Turns of a question and an answer of so many bytes each."""
    told = History()
    for n in range(turns):
        asked = Message("user", json.dumps({"role": "user", "content": f"{n}".ljust(size)}).encode())
        echo = Message("assistant", json.dumps({"role": "assistant", "content": "a" * size}).encode())
        trim_point = (at or {}).get(n)
        told = told.plus(
            Turn(f"t{n}", None, (asked,), echo.raw, echo, f"t{n - 1}" if n else None, trim_point=trim_point)
        )
    return told


def leaving(told: History, base: TrimPoint | None = None, limit: int | None = None) -> Leaving | None:
    return due(told, told.trim_point, base or told.trim_point, limit, 0, lambda turn: True, tool_groups)[0]


# What is due


def test_nothing_is_due_of_what_fits_or_where_no_limit_is_known() -> None:
    told = history(10)
    assert leaving(told) is None
    assert leaving(told, limit=10_000) is None
    assert due(told, told.trim_point, told.trim_point, None, 0, lambda turn: True, tool_groups)[1] == RATIO


def test_what_a_turn_over_the_limit_would_cut_is_due_before() -> None:
    found = leaving(history(20), limit=1000)
    assert found is not None
    assert (found.start, found.before) == (0, None)
    assert 0 < found.at < 40 and found.at % 2 == 0


def test_what_was_cut_and_is_told_by_none_is_due_however_many_cuts_ago() -> None:
    told = history(30, at={5: TrimPoint(4, SUMMARY), 10: TrimPoint(12, SUMMARY, 4), 20: TrimPoint(24, SUMMARY, 4)})
    assert leaving(told) == Leaving(4, 24, SUMMARY)
    assert leaving(history(30, at={5: TrimPoint(4), 20: TrimPoint(24)})) == Leaving(0, 24, None)
    assert leaving(history(30, at={5: TrimPoint(4, SUMMARY)})) is None


def test_the_next_one_begins_where_the_last_one_ended() -> None:
    told = history(30, at={5: TrimPoint(4, SUMMARY), 20: TrimPoint(24, SUMMARY, 4)})
    newer = b'{"role":"user","content":"shorter"}'
    assert leaving(told, TrimPoint(0, newer, 10)) == Leaving(10, 24, newer)
    assert leaving(told, TrimPoint(16, newer)) == Leaving(16, 24, newer)


def test_nothing_is_due_while_a_ready_summary_waits_for_the_next_turn() -> None:
    told = history(30, at={5: TrimPoint(4, SUMMARY)})
    assert leaving(told, TrimPoint(20, SUMMARY), limit=700) is None
    assert leaving(told, TrimPoint(0, SUMMARY, 20), limit=700) is not None  # it does not tell of all that leaves
    gap = history(30, at={5: TrimPoint(4, SUMMARY), 20: TrimPoint(24, SUMMARY, 4)})
    assert leaving(gap, TrimPoint(24, SUMMARY)) is None


# What is taken


@pytest.mark.parametrize(
    ("found", "now", "deepens", "wanted"),
    [
        (TrimPoint(8, b"new"), TrimPoint(), True, TrimPoint(8, b"new")),
        (TrimPoint(8, b"new"), TrimPoint(4, b"old"), True, TrimPoint(8, b"new")),
        (TrimPoint(8, b"new"), TrimPoint(16), True, TrimPoint(16, b"new", 8)),  # late
        (TrimPoint(8, b"new"), TrimPoint(16, b"old", 4), True, TrimPoint(16, b"new", 8)),
        (TrimPoint(8, b"new"), TrimPoint(16, b"old", 8), True, None),
        (TrimPoint(8, b"new"), TrimPoint(8, b"old"), True, None),
        (TrimPoint(0, b"new", 8), TrimPoint(16, b"old", 4), True, TrimPoint(16, b"new", 8)),  # a part of a chain
        (TrimPoint(0, b"new", 8), TrimPoint(4), True, TrimPoint(4, b"new")),
        (TrimPoint(0, b"new", 8), TrimPoint(), True, None),
        (TrimPoint(8, b"new"), TrimPoint(), False, None),  # for another model, whose window holds more
        (TrimPoint(8, b"new"), TrimPoint(4), False, TrimPoint(4, b"new")),
        (TrimPoint(8, b"new"), TrimPoint(16), False, TrimPoint(16, b"new", 8)),
    ],
)
def test_what_a_turn_takes_along(found: TrimPoint, now: TrimPoint, deepens: bool, wanted: TrimPoint | None) -> None:
    assert taken(found, now, deepens) == wanted


@given(
    st.builds(lambda at, told: TrimPoint(at, b"n", min(at, told)), st.integers(0, 20), st.integers(0, 20)),
    st.builds(lambda at, told: TrimPoint(at, b"o", min(at, told)), st.integers(0, 20), st.integers(0, 20)),
)
def test_what_is_taken_never_brings_back_nor_tells_less(found: TrimPoint, now: TrimPoint) -> None:
    for deepens in (True, False):
        if (trim_point := taken(found, now, deepens)) is not None:
            assert trim_point.at >= now.at and trim_point.covered > now.covered
            assert trim_point.covered <= min(trim_point.at, max(found.covered, found.at))
            assert deepens or trim_point.at == now.at


def test_the_furthest_summary_is_the_one_to_go_on_from() -> None:
    assert furthest([]) == TrimPoint()
    assert furthest([TrimPoint(9), TrimPoint(8, b"a", 3), TrimPoint(4, b"b"), TrimPoint(6, b"c", 4)]) == TrimPoint(
        4, b"b"
    )


def test_a_beginning_is_recognised_wherever_it_is_a_beginning() -> None:
    one, other = history(4), history(6)
    assert digest(one.path, 6) == digest(other.path, 6) != digest(one.path, 4)
    assert digest(history(4, size=101).path, 6) != digest(one.path, 6)


# Sizes


@pytest.mark.parametrize(
    ("limit", "size", "wanted"),
    [(None, None, 1024), (8000, None, 1000), (9000, None, 1024), (None, 3200, 100), (1, 1, 1)],
)
def test_a_summary_has_a_share_of_the_limit(limit: int | None, size: int | None, wanted: int) -> None:
    assert most_of(1024, limit, size) == wanted


def test_a_request_for_one_fits_its_model() -> None:
    assert room(None, RATIO, 100, 50) == SIZE
    for limit in (1000, 8000, 128_000):
        most = most_of(1024, limit)
        text = room(limit, RATIO, most, 500)
        assert text > LEAST and (text + 500) * RATIO + most <= limit


@pytest.mark.parametrize(
    ("size", "counted", "wanted"),
    [
        (900, 0, 400),
        (900, 90, 400),  # ten bytes a token: that is no count of this
        (900, 225, 400),
        (300, 100, 300),
        (300, 109, 300),
        (400, 200, 200),
    ],
)
def test_how_many_bytes_of_it_are_taken(size: int, counted: int, wanted: int) -> None:
    assert bytes_of(100, size, counted) == wanted
    assert BYTES * 100 == 400


# Parts


@given(st.lists(words, max_size=8), st.integers(1, 80))
def test_the_parts_are_all_of_it_in_order(texts: list[str], size: int) -> None:
    position, parts = Position(), []
    while position.message < len(texts):
        found = part(texts, position, size)
        assert found.after > position
        parts.append(found.text)
        assert size_of(found.text) <= max(size, 4)
        position = found.after
    assert "".join(parts).replace(GAP, "") == "".join(texts).replace(GAP, "")
    assert part(texts, position, size) == ("", position)


def test_a_message_is_whole_in_a_part_where_one_can_hold_it() -> None:
    texts = ["a" * 6, "b" * 6, "", "c" * 25]
    assert part(texts, Position(), 14) == ("aaaaaa\n\nbbbbbb", Position(3, 0))
    assert part(texts, Position(), 13) == ("aaaaaa", Position(1, 0))
    assert part(texts, Position(3), 10) == ("c" * 10, Position(3, 10))
    assert part(["a", "é\ud800"], Position(), 4) == ("a", Position(1, 0))  # a byte is left, and é has two
    assert part(texts, Position(1), 11) == ("bbbbbb\n\nccc", Position(3, 3))
    assert part(texts, Position(1), 6) == ("bbbbbb", Position(3, 0))
    assert part(texts, Position(3, 20), 10) == ("c" * 5, Position(4, 0))


def test_of_a_very_long_message_the_middle_is_left_out() -> None:
    assert abridged("short", 5) == "short"
    long = "a" * 500 + "b" * 500
    found = abridged(long, 100)
    assert found == "a" * 50 + "\n[900 characters are left out here]\n" + "b" * 50
    assert ROOMS > 1


@given(st.text(max_size=40), st.integers(1, 60))
def test_a_head_is_a_beginning_that_fits(text: str, size: int) -> None:
    kept = head(text, size)
    assert text.startswith(kept)
    assert size_of(kept) <= size or len(kept) == 1
    assert kept or not text


@pytest.mark.parametrize(
    ("text", "size", "wanted"),
    [
        ("Ann lives in Rome.", 18, "Ann lives in Rome."),
        ("Ann lives in Rome. She has a cat.", 32, "Ann lives in Rome." + SHORT),
        ("Ann lives in Rome.\nShe has a cat.", 30, "Ann lives in Rome." + SHORT),
        ("One. Ann lives in Rome and has a cat", 30, "One. Ann lives in Rome" + SHORT),
        ("安住在罗马。她有一只猫。她很好", 40, "安住在罗马。" + SHORT),
        ("x" * 50, 20, "x" * 14 + SHORT),
        ("3.14159265358979 and more", 22, "3.14159265358979" + SHORT),
    ],
)
def test_what_is_too_long_ends_with_a_sentence_or_a_word(text: str, size: int, wanted: str) -> None:
    assert shortened(text, size) == wanted


@given(st.text(max_size=80), st.integers(10, 60))
def test_what_is_shortened_is_short(text: str, size: int) -> None:
    kept = shortened(text, size)
    assert kept == text or (kept.endswith(SHORT) and size_of(kept) <= max(size, 4 + size_of(SHORT)))
