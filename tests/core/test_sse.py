"""Event streams: what they say once they are here, and where their end is held back while they come."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.core.sse import BOM, Event, Terminator, events

# The end of a stream as a client sees it: this text, with or without the space, at the start of a line.
END = re.compile(rb"(?:\A|(?<=[\r\n]))data: ?\[DONE\]")
TAILS = [line[:length] for line in (b"data: [DONE]", b"data:[DONE]") for length in range(1, len(line))]


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        (b"", []),
        (b"data: a\n\n", [("", b"a")]),
        (b"data: a\r\n\r\ndata: b\r\n\r\n", [("", b"a"), ("", b"b")]),
        (b"data: a\r\rdata: b\r\r", [("", b"a"), ("", b"b")]),
        (b"data: a\n\r\ndata: b\r\n\n", [("", b"a"), ("", b"b")]),
        (BOM + b"data: a\n\n", [("", b"a")]),
        (b"\n" + BOM + b"data: a\n\n" + BOM + b"data: b\n\n", [("", b"a"), ("", b"b")]),
        (BOM + BOM + b"data: a\n\n", []),
        (b"data: a\n" + BOM + b"\ndata: b\n\n", [("", b"a"), ("", b"b")]),
        (b": OPENROUTER PROCESSING\n\ndata: a\n\n", [("", b"a")]),
        (b"data: a\n: between\ndata: b\n\n", [("", b"a\nb")]),
        (b"data:a\ndata:  b\ndata\ndata:\n\n", [("", b"a\n b\n\n")]),
        (b"data:\n\n", [("", b"")]),
        (b"data: a\n\n\n\ndata: b\n\n", [("", b"a"), ("", b"b")]),
        (b"data: a\n\ndata: pending", [("", b"a"), ("", b"pending")]),
        (b"data: a\n\ndata: pending\n", [("", b"a"), ("", b"pending")]),
        (b"event: ping\n\ndata: a\n\n", [("", b"a")]),
        (b"event: error\ndata: a\n\ndata: b\n\n", [("error", b"a"), ("", b"b")]),
        (b"event: one\nevent: two\ndata: a\n\n", [("two", b"a")]),
        (b"event: \xff\ndata: a\n\n", [("\ufffd", b"a")]),
        (b'data: a\n\nerror: {"code":500}\n', [("", b"a"), ("error", b'{"code":500}')]),
        (b"error: x", [("error", b"x")]),
        (b"id: 1\nretry: 5\ndatum: x\ndata : y\nDATA: z\n data: w\n\n", []),
        ("data: a\u2028b\x0bc\x0cd\x85\n\n".encode(), [("", "a\u2028b\x0bc\x0cd\x85".encode())]),
    ],
)
def test_events_follow_the_text_of_the_standard(body: bytes, wanted: list[tuple[str, bytes]]) -> None:
    assert list(events(body)) == [Event(name, data) for name, data in wanted]


FRAGMENTS = st.sampled_from(
    [b"data: [DONE]", b"data:[DONE]", b"data: ", b"data:", b"[DONE]", b"data", b"\n", b"\r\n", b"\r", b" ", BOM]
    + [b'data: {"content":"[DONE]"}\n\n', b'data: {"content":"\\ndata: [DONE]"}\n\n', b": ping\n\n", b"x", b"d", b"[DO"]
)
BODIES = st.lists(FRAGMENTS | st.binary(max_size=4), max_size=8).map(b"".join)


LINES = st.lists(
    st.sampled_from([b"data: a", b"data:b", b"", b"event: x", b"error: y", b": c", BOM + b"data: d", b"z"])
)


@given(LINES, st.booleans())
def test_the_ends_of_lines_make_no_difference(lines: list[bytes], ends: bool) -> None:
    text = b"".join([line + b"\n" for line in lines])
    text = text if ends else text[:-1]
    assert list(events(text)) == list(events(text.replace(b"\n", b"\r\n")))


def pieces_of(body: bytes, cuts: list[int]) -> list[bytes]:
    at = sorted({cut % (len(body) + 1) for cut in cuts})
    return [body[start:end] for start, end in zip([0, *at], [*at, len(body)], strict=True)]


@given(BODIES, st.lists(st.integers(0, 200), max_size=12))
@example(b"data: [DONE]", list(range(1, 12)))
@example(b"x\r\ndata:[DONE]\r\n\r\n", list(range(1, 18)))
@example(b"x\rdata:[DONE]\r\r", [7])
@example(b'data: "[DONE]"\n\ndata: [DONE]\n\n', [])
def test_nothing_from_the_terminator_on_is_given_and_nothing_before_it_kept(body: bytes, cuts: list[int]) -> None:
    terminator = Terminator()
    found = END.search(body)
    end = found.start() if found else len(body)
    given = b""
    for piece in pieces_of(body, cuts):
        given += terminator.feed(piece)
        assert len(given) <= end
    assert given + terminator.held == body
    assert terminator.seen == bool(found)
    if found:
        assert given == body[:end]
    else:
        tail = re.split(rb"[\r\n]", body)[-1]
        assert terminator.held == (tail if tail in TAILS else b"")


@given(BODIES, st.lists(st.integers(0, 200), max_size=12))
@example(b"x\ndata:[DONE]\n", [2])
@example(b" data: [DONE]\nx\n", [1, 14])
def test_between_lines_the_terminator_need_not_see_whole_lines(body: bytes, cuts: list[int]) -> None:
    all_of_it, some = Terminator(), Terminator()
    for piece in pieces_of(body, cuts):
        unseen = some.rests and piece.endswith(b"\n") and b"[DONE]" not in piece
        assert all_of_it.feed(piece) == (piece if unseen else some.feed(piece))
        assert (all_of_it.rests, all_of_it.held, all_of_it.seen) == (some.rests, some.held, some.seen)


@given(st.binary(max_size=20))
def test_what_follows_the_terminator_stays_behind_it(rest: bytes) -> None:
    terminator = Terminator()
    assert terminator.feed(b"data: a\n\ndata: [DONE]") == b"data: a\n\n"
    assert terminator.feed(rest) == b""
    assert terminator.held == b"data: [DONE]" + rest


@pytest.mark.parametrize(
    "body",
    [b'data: {"content": "data: [DONE]"}\n\n', b" data: [DONE]\n", b"data:  [DONE]\n", b"data: DONE\n", b"x: [DONE]"],
)
def test_the_word_elsewhere_than_at_the_start_of_a_line_is_no_terminator(body: bytes) -> None:
    terminator = Terminator()
    assert terminator.feed(body) == body
    assert not terminator.seen
    assert terminator.held == b""
