"""Where lists and lines agree: by place, in order, and each message once."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.core.history import Entry, laid_out
from proxy.core.matching.alignment import STARTS, Alignment, Pairs, has_ours, layout, rising
from proxy.core.model import Layout, Message, Turn

ROLES = {"u": "user", "a": "assistant", "p": "assistant", "c": "assistant", "d": "developer", "s": "system"}
NAMES = st.sampled_from(["u1", "U1", "u2", "a1", "A1", "a2", "p1", "p1+a1", "c1#", "c1#7", "c1#8"])
TURN = Turn("1", None, (), b"", None)


class Fingerprinter:
    """Letter case is what clients change; `c1#7` is a call with an ID, `c1#` one without; in `c1+hi#7` words stand
    beside it."""

    def fingerprint(self, raw: bytes, ids: bool = True) -> bytes:
        name, sharp, id = raw.lower().partition(b"#")
        return name + b"#" + id if id and ids else name + b"#?" if sharp else name

    def is_loose(self, mark: bytes) -> bool:
        return mark.endswith(b"#?")

    def bare(self, raw: bytes) -> bytes:
        call, plus, rest = raw.partition(b"+")
        return self.fingerprint(call + rest[rest.index(b"#") :]) if plus and b"#" in rest else b""

    def joined(self, first: bytes, second: bytes) -> bytes:
        return self.fingerprint(first + b"+" + second)


def message(text: str, *, marked: bool = False) -> Message:
    raw = text.encode()
    return Message(ROLES[text[0].lower()], raw, Fingerprinter().fingerprint(raw) if marked else b"")


def line_of(text: str, *, marked: bool = True) -> list[Entry]:
    """A line by its messages' names: `a` and `c` are replies of ours, `p` is the client's own, a prefill."""
    return [Entry(message(name, marked=marked), TURN, name[0] in "ac") for name in text.split()]


def aligned(text: str) -> Alignment:
    return Alignment([message(name) for name in text.split()], Fingerprinter())


# One message ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mine", "stored", "same"),
    [
        ("u1", "u1", True),
        ("U1", "u1", True),
        ("u1", "u2", False),
        ("s1", "d1", False),
        ("c1#7", "c1#7", True),
        ("C1#7", "c1#7", True),
        ("c1#7", "c1#8", False),
        ("c1#", "c1#7", False),
        ("c1#7", "c1#", True),
        ("c2#7", "c1#", False),
        ("C1#7", "c1+hi#7", True),
        ("c1#8", "c1+hi#7", False),
        ("c1+ho#7", "c1+hi#7", False),
        ("c1+hi#7", "c1#7", False),
    ],
)
@pytest.mark.parametrize("marked", [False, True])
def test_a_message_is_the_same_by_its_bytes_or_by_its_fingerprint(
    mine: str, stored: str, same: bool, marked: bool
) -> None:
    [entry] = line_of(stored, marked=marked)
    assert aligned(mine).same(0, entry) is same


@pytest.mark.parametrize(
    ("mine", "stored", "same"),
    [("user", "assistant", False), ("assistant", "user", False), ("developer", "system", True), ("", "user", True)],
)
def test_a_reply_is_never_taken_for_what_somebody_else_said(mine: str, stored: str, same: bool) -> None:
    entry = Entry(Message(stored, b"X", b"x"), TURN, False)
    assert Alignment([Message(mine, b"x")], Fingerprinter()).same(0, entry) is same


def test_equal_bytes_are_the_same_without_a_fingerprint() -> None:
    entry = Entry(Message("user", b"u1", b"another mark"), TURN, False)
    assert aligned("u1").same(0, entry)


@pytest.mark.parametrize(
    ("listed", "n", "others", "begins"),
    [
        ("u1 a1", 0, "U1", True),
        ("u1 a1", 0, "u1 a1", True),
        ("u1 a1", 0, "u1 a1 u2", False),
        ("u1 a1", 0, "u2", False),
        ("u0 u1 a1", 1, "u1 a1", True),
        ("u0 u1", 1, "u1 a1", False),
        ("u0 u1", 2, "u1", False),
        ("u1", 1, "", True),
    ],
)
@pytest.mark.parametrize("marked", [False, True])
def test_a_list_may_begin_with_messages_of_no_line_yet(
    listed: str, n: int, others: str, begins: bool, marked: bool
) -> None:
    wanted = [message(name, marked=marked) for name in others.split()]
    assert aligned(listed).begins(n, wanted) is begins


# Without a gap --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("listed", "line", "pairs"),
    [
        ("", "u1 a1", []),
        ("u1", "", []),
        ("u1 a1 u2", "u1 a1", [(0, 0), (1, 1)]),
        ("u1 a1", "u1 a1 u2 a2", [(0, 0), (1, 1)]),
        ("U1 A1 u3 a2", "u1 a1 u2 a2", [(0, 0), (1, 1)]),
        ("u2 a1", "u1 a1", []),
        ("u1 p1+a1 u2", "u1 p1 a1", [(0, 0), (1, 1), (1, 2)]),
        ("u1 P1+A1 u2 a2", "u1 p1 a1 u2 a2", [(0, 0), (1, 1), (1, 2), (2, 3), (3, 4)]),
        ("u1 p1 a1", "u1 p1 a1", [(0, 0), (1, 1), (2, 2)]),
        ("u1 p1+a2", "u1 p1 a1", [(0, 0)]),
        ("u1 p1+p2", "u1 p1 p2", [(0, 0)]),
        ("u1 a1+a2", "u1 a1 a2", [(0, 0)]),
        ("u1+a1", "u1 a1", []),
        ("u1 p1+a1", "u1 p1", [(0, 0)]),
    ],
)
def test_a_run_is_what_agrees_without_a_gap(listed: str, line: str, pairs: Pairs) -> None:
    assert aligned(listed).run(line_of(line)) == pairs


def test_a_run_may_begin_anywhere() -> None:
    assert aligned("u0 u2 a2").run(line_of("u1 a1 u2 a2"), 1, 2) == [(1, 2), (2, 3)]


def test_a_run_has_a_reply_of_ours_or_not() -> None:
    line = line_of("u1 p1 a1")
    assert has_ours([(0, 0), (1, 2)], line)
    assert not has_ours([(0, 0), (1, 1)], line)
    assert not has_ours([], line)


@pytest.mark.parametrize(
    ("listed", "line", "to_the_tip", "pairs"),
    [
        ("u2 a2 u3", "u1 a1 u2 a2", True, [(0, 2), (1, 3)]),
        ("a1 u2 a2 u3", "u1 a1 u2 a2", True, [(0, 1), (1, 2), (2, 3)]),
        ("u2 a2 u4", "u1 a1 u2 a2 u3 a3", True, []),
        ("u2 a2 u4", "u1 a1 u2 a2 u3 a3", False, [(0, 2), (1, 3)]),
        ("u2 x", "u1 a1 u2 a2", False, []),  # no reply of ours in it
        ("u1 a1", "u1 a1 u2 a2", False, []),  # what is there from the start on is no window
        ("u1 a1 u2", "u0 a0 u1 a1 u1 a1", True, [(0, 4), (1, 5)]),
        ("u1 a1 u2", "u0 a0 u1 a1 u1 a1", False, [(0, 4), (1, 5)]),  # of two as long the newest
        ("u1 a1 u2", "u0 a0 u1 a1 u2 a2 u1 a1", False, [(0, 2), (1, 3), (2, 4)]),  # the longest
        ("u1 a1 u2", "u0 a0 u1 a1 u2 a2 u1 a1", True, [(0, 6), (1, 7)]),
        ("u1", "u1", False, []),
        ("u1 a1", "", False, []),
        ("", "u1 a1 u2 a2", True, []),
    ],
)
def test_a_window_is_the_longest_stretch_that_a_list_begins_with(
    listed: str, line: str, to_the_tip: bool, pairs: Pairs
) -> None:
    listed = listed.replace("x", "u9")
    assert aligned(listed).window(line_of(line), to_the_tip) == pairs


def test_a_window_is_looked_for_at_the_newest_places_only() -> None:
    late = "u0 a0 yes a1 " + "yes a2 " * (STARTS - 1)
    lost = "u0 a0 yes a1 " + "yes a2 " * STARTS
    assert aligned("u a1").window(line_of(late.replace("yes", "u")), to_the_tip=False) == [(0, 2), (1, 3)]
    assert aligned("u a1").window(line_of(lost.replace("yes", "u")), to_the_tip=False) == []


# With gaps ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("listed", "line", "pairs"),
    [
        ("u1 a1 u2", "u1 a1 u2", [(0, 0), (1, 1), (2, 2)]),
        ("u1 u2", "u1 a1 u2 a2", [(0, 0), (1, 2)]),
        ("u9 u1 a1 u8 u2 a2", "u1 a1 u2 a2", [(1, 0), (2, 1), (4, 2), (5, 3)]),
        ("u2 a2 u1 a1", "u1 a1 u2 a2", [(2, 0), (3, 1)]),
        ("u3 a3", "u1 a1", []),
        ("", "u1", []),
        ("u1", "", []),
        # What occurs more than once follows its neighbours.
        ("u a1 u a2", "u a1 u a2", [(0, 0), (1, 1), (2, 2), (3, 3)]),
        # A reply of ours comes with what it answered, which may be said more often.
        ("u a2", "u a1 u a2", [(0, 2), (1, 3)]),
        ("u a2 u", "u a1 u a2 u a3", [(0, 2), (1, 3), (2, 4)]),
        ("u1 a1 u a3", "u1 a1 u2 a2 u a3 u a4", [(0, 0), (1, 1), (2, 4), (3, 5)]),
        ("u u1 a1", "u u1 a1", [(0, 0), (1, 1), (2, 2)]),
        ("u u u", "u u", [(0, 0), (1, 1)]),
        ("u9 a u a", "u a u a", [(1, 1), (2, 2), (3, 3)]),  # one in the place of another
        # One message may stand for a prefill and the reply to it, but not for half of what another repeats.
        ("u9 p1+a1 u2", "u1 p1 a1 u2", [(2, 3)]),
        ("u1 p1+a1 u2", "u1 p1 a1 u2", [(0, 0), (1, 1), (1, 2), (2, 3)]),
        ("u1 p1+a1 a1", "u1 p1 a1", [(0, 0), (2, 2)]),
        # What moves on in each list gives way to a reply of ours, which does not.
        ("u1 a1 u2 u9", "u1 u9 a1", [(0, 0), (1, 2)]),
        ("u1 a1 u2 u8 u9", "u1 u8 u9 a1", [(0, 0), (1, 3)]),
        ("u1 a1 u8 u2", "u1 u8 a1 u2 a2", [(0, 0), (1, 2), (3, 3)]),
        # Calls whose IDs a client made up, and calls with their own.
        ("u1 c1#x u2 c1#y", "u1 c1# u2 c1#", [(0, 0), (1, 1), (2, 2), (3, 3)]),
        ("u9 c1#x u2", "u1 c1# u2", [(1, 1), (2, 2)]),
        ("u9 c1#7 u2", "u1 c1#8 u2", [(2, 2)]),
        ("c1#7 u9 c2#x", "c1#7 u2 c2#", [(0, 0), (2, 2)]),
    ],
)
def test_what_stands_in_order(listed: str, line: str, pairs: Pairs) -> None:
    assert aligned(listed).in_order(line_of(line)) == pairs


def test_what_stands_in_order_may_be_looked_for_behind_a_place() -> None:
    assert aligned("u1 a1 u9 u2 u1").in_order(line_of("u1 a1 u3 a3 u2 u1"), 2, 2) == [(3, 4), (4, 5)]


def test_a_call_that_could_be_either_of_two_costs_nothing_behind_it() -> None:
    """Stored are a call with its ID, and the like without one; the list has the first."""
    assert aligned("u9 c1#7 u2 a2").in_order(line_of("u1 c1#7 c1# u2 a2"))[-2:] == [(2, 3), (3, 4)]


@given(st.lists(NAMES, max_size=9), st.lists(NAMES, max_size=9))
def test_pairs_rise_in_both_and_agree(listed: list[str], stored: list[str]) -> None:
    line, found = line_of(" ".join(stored)), aligned(" ".join(listed))
    for pairs in (found.in_order(line), found.run(line), found.window(line, to_the_tip=False)):
        assert [at for _, at in pairs] == sorted({at for _, at in pairs})
        places = [n for n, _ in pairs]
        assert places == sorted(places)
        for n in set(places):
            here = [line[at] for m, at in pairs if m == n]
            prefilled = len(here) == 2 and not here[0].ours and here[1].ours
            assert (len(here) == 1 and found.same(n, here[0])) or prefilled


@given(st.lists(st.integers(0, 10**6), min_size=1, unique=True), st.data())
def test_of_texts_that_occur_once_nothing_is_missed(numbers: list[int], data: st.DataObject) -> None:
    """Messages left out and others put in between: everything else is found again."""
    names = [f"{'ua'[n % 2]}{number}" for n, number in enumerate(numbers)]
    kept = sorted(data.draw(st.sets(st.integers(0, len(names) - 1))))
    listed = [names[at] for at in kept]
    for n in range(data.draw(st.integers(0, 3))):
        listed.insert(data.draw(st.integers(0, len(listed))), f"u-{n}")
    pairs = aligned(" ".join(listed)).in_order(line_of(" ".join(names)))
    assert [at for _, at in pairs] == kept
    assert [listed[n] for n, _ in pairs] == [names[at] for at in kept]


# The longest run ------------------------------------------------------------------------------


def rises(anchors: Sequence[tuple[int, int]]) -> bool:
    return all(before[1] < after[1] for before, after in pairwise(anchors))


@given(st.permutations(range(8)), st.integers(0, 8))
@example([2, 0, 1, 3, 4, 5, 6, 7], 4)
def test_the_longest_run_that_rises_is_found(places: list[int], size: int) -> None:
    anchors = list(enumerate(places[:size]))
    run = rising(anchors)
    assert set(run) <= set(anchors)
    assert run == sorted(run)
    assert rises(run)
    longest = next(k for k in range(size, -1, -1) if any(map(rises, combinations(anchors, k))))
    assert len(run) == longest


def test_an_empty_list_of_anchors_has_no_rising_run() -> None:
    assert rising([]) == []


# The layout -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pairs", "size", "before", "wanted"),
    [
        ([], 0, 0, ()),
        ([], 2, 0, (2,)),
        ([], 1, 4, ((0, 4), 1)),
        ([(0, 0), (1, 1)], 2, 0, ((0, 2),)),
        ([(0, 0), (1, 1)], 4, 0, ((0, 2), 2)),
        ([(0, 2), (1, 3)], 3, 2, ((0, 4), 1)),
        ([(0, 2)], 2, 1, ((0, 1), (2, 3), 1)),
        ([(1, 0), (3, 1)], 5, 0, (1, (0, 1), 1, (1, 2), 1)),
        ([(0, 0), (1, 1), (1, 2)], 3, 0, ((0, 3), 1)),
        ([(0, 0), (2, 4)], 3, 0, ((0, 1), 1, (4, 5))),
    ],
)
def test_a_layout_is_spans_and_in_between_how_many_are_new(
    pairs: Pairs, size: int, before: int, wanted: Layout
) -> None:
    assert layout(pairs, size, before) == wanted


@st.composite
def agreements(draw: st.DrawFn) -> tuple[int, int, int, Pairs]:
    """How long a list and a line are, how many messages of the line stay in front, and what repeats what."""
    size, length = draw(st.integers(0, 8)), draw(st.integers(0, 10))
    before = draw(st.integers(0, length))
    left = sorted(draw(st.sets(st.integers(before, length - 1)))) if before < length else []
    places = sorted(draw(st.lists(st.integers(0, size - 1), max_size=len(left)))) if size else []
    return size, length, before, list(zip(places, left, strict=False))


@given(agreements())
def test_what_is_laid_out_by_a_layout_is_the_list_with_ours_in_the_place_of_copies(
    case: tuple[int, int, int, Pairs],
) -> None:
    size, length, before, pairs = case
    line = [Entry(Message("user", b"stored %d" % at), TURN, False) for at in range(length)]
    listed = [Entry(Message("user", b"listed %d" % n), TURN, False) for n in range(size)]
    repeated = {n for n, _ in pairs}
    own = [entry for n, entry in enumerate(listed) if n not in repeated]
    wanted = line[:before]
    for n, entry in enumerate(listed):
        wanted += [line[at] for m, at in pairs if m == n] or [entry]
    parts = layout(pairs, size, before)
    assert laid_out(line, parts, own) == wanted
    assert sum([part for part in parts if isinstance(part, int)]) == len(own)
    # It is as short as it can be: no two neighbours could be one.
    for left, right in pairwise(parts):
        assert isinstance(left, int) != isinstance(right, int) or (
            not isinstance(left, int) and not isinstance(right, int) and left[1] != right[0]
        )


@given(st.lists(NAMES, max_size=8), st.data())
def test_an_edited_copy_of_a_line_is_kept_by_what_it_repeats(stored: list[str], data: st.DataObject) -> None:
    line = line_of(" ".join(stored))
    listed = list(stored)
    for _ in range(data.draw(st.integers(0, 4))):
        place = data.draw(st.integers(0, len(listed)))
        listed[place : place + data.draw(st.integers(0, 2))] = data.draw(st.lists(NAMES, max_size=2))
    found = aligned(" ".join(listed))
    pairs = found.in_order(line)
    repeated = {n for n, _ in pairs}
    own = [Entry(message(name), TURN, False) for n, name in enumerate(listed) if n not in repeated]
    made = laid_out(line, layout(pairs, len(listed), 0), own)
    flat = [entry.message.raw.decode() for entry in made]
    # A copy of a prefill with its reply is two messages here.
    wanted = []
    for n, name in enumerate(listed):
        wanted += [line[at].message.raw.decode() for m, at in pairs if m == n] or [name]
    assert flat == wanted
    if listed == stored:
        assert [entry.message.raw for entry in made] == [entry.message.raw for entry in line]


def test_the_fingerprint_of_a_lists_first_message() -> None:
    assert (aligned("u1 a1").head(), aligned("").head()) == (b"u1", b"")


@pytest.mark.parametrize(
    ("listed", "others", "entries", "found"),
    [
        ("u1 u2 u3", "u1 u2", "u1", 1),
        ("u1 u2 u3", "u1 u2", "u9", 0),
        ("u1 u2", "u1 u2", "u1", 0),
        ("u9 u2 u3", "u1 u2", "u1", 0),
        ("u1 u2 u3", "u1 u2", "", 0),
    ],
)
def test_a_list_that_is_longer_than_one_that_was_longer(listed: str, others: str, entries: str, found: int) -> None:
    before = [message(text) for text in others.split()]
    assert aligned(listed).begins_as(before, line_of(entries)) == found


@pytest.mark.parametrize(
    ("pairs", "size", "before", "stays", "wanted"),
    [
        ([(0, 0), (1, 1)], 3, 0, [2, 3], ((0, 4), 1)),
        ([(0, 0), (2, 3)], 4, 0, [1, 2], ((0, 1), 1, (1, 4), 1)),
        ([(0, 0), (1, 3)], 2, 0, [1, 2, 4], ((0, 5),)),
        ([(0, 2)], 2, 2, [0, 1, 3], ((0, 4), 1)),
        ([], 1, 0, [0, 1], ((0, 2), 1)),
    ],
)
def test_what_stays_keeps_its_place(pairs: Pairs, size: int, before: int, stays: list[int], wanted: Layout) -> None:
    assert layout(pairs, size, before, stays) == wanted
