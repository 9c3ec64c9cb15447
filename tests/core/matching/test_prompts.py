"""Whether two texts say the same although they are not equal."""

from __future__ import annotations

import json
from xml.sax.saxutils import escape

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.core.matching import prompts
from proxy.core.matching.prompts import QUOTE, is_alike, is_framed, is_quoted, is_told, parts, quoted_in

PLAIN = st.characters(codec="utf-8", max_codepoint=0xFFFF)
TEXTS = st.text(PLAIN, min_size=QUOTE).filter(str.isprintable)
LONG = "You are a helpful house assistant. It is Monday, 30 November 2026, 10:59 PM in Bern."


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        ("Be brief.", "Be brief.", True),
        ("Be brief.", "Be brief.\n\nA summary of what was said.", True),
        ("Be brief.\nRules", "Be brief.", True),
        ("", "", True),
        ("", "Be brief.", False),
        ("Be brief.", "Be long.", False),
        ("Time: 10:00:01", "Time: 10:00:20", True),
        ("Time: 9:59", "Time: 10:00", True),
        ("s1", "s2", False),
        ("Name this chat.", "Sum up what was said.", False),
        ("Agent A1", "Agent B2", False),
        (LONG, LONG.replace("Monday, 30", "Tuesday, 1").replace("10:59", "0:01"), True),
        (LONG, LONG.replace("Monday, 30", "Tuesday, 1").replace("10:59 PM", "0:01 AM"), True),
        (LONG, LONG.replace("Monday, 30", "Tuesday, 1").replace("November", "May").replace("PM", "AM"), False),
        (LONG, LONG.replace("helpful house", "useless garden"), False),
        ("It is Monday 10:00", "It is Tuesday 11:00", False),
    ],
)
def test_prompts_that_are_one(one: str, other: str, alike: bool) -> None:
    assert is_alike(one, other) is is_alike(other, one) is alike


@given(st.text(), st.lists(st.integers(0, 59), min_size=2, max_size=2))
def test_a_clock_behind_a_prompt_makes_no_other(text: str, times: list[int]) -> None:
    one, other = [f"You answer. The time is 10:{each:02} now. {text}" for each in times]
    assert is_alike(one, other)


@pytest.mark.parametrize(
    ("text", "within", "quoted", "framed"),
    [
        ("a" * QUOTE, "x" + "a" * QUOTE, True, True),
        ("a" * QUOTE, "a" * QUOTE, False, False),
        ("short", "a short one", False, False),
        ("short", "a\nshort\none", False, True),
        ("short", "short\none", False, True),
        ("short", 'about "short"', False, True),
        ("short", "about \u201eshort\u201c", False, True),
        ("", "anything", False, False),
    ],
)
def test_what_is_a_quote(text: str, within: str, quoted: bool, framed: bool) -> None:
    assert (is_quoted(text, within), is_framed(text, within)) == (quoted, framed)


def test_the_message_that_quotes() -> None:
    assert quoted_in(["b" * 20, "a" * 20], ["none", "says " + "a" * 20]) == "says " + "a" * 20
    assert quoted_in(["abc"], ["says abc"]) is None
    assert quoted_in(["abcdef"], ["says abcdef"], 6) == "says abcdef"


@example('a path: C:\\new\\table, <b> & "so" \u2014', "", "")
@given(TEXTS, st.text(max_size=5), st.text(min_size=1, max_size=5))
def test_a_quote_is_found_however_its_client_escapes_it(text: str, before: str, behind: str) -> None:
    for told in (text, escape(text), json.dumps(text), json.dumps(text, ensure_ascii=False)):
        message = f"<{before}\n{told}\n{behind}>"
        assert quoted_in([text], ["something else", message]) == message
    assert quoted_in([text], [text]) is None  # itself is no quote


def test_of_a_long_text_a_part_is_a_quote() -> None:
    text = "".join(map(str, range(prompts.LONG)))[: 4 * prompts.PART]
    assert is_quoted(text, f"Sum up: {text[: prompts.PART]} ...")
    assert is_quoted(text, f"Sum up: ... {text[-prompts.PART :]}")
    assert not is_quoted(text, f"Sum up: ... {text[prompts.PART : 2 * prompts.PART]} ...")
    short = text[: prompts.LONG - 1]
    assert not is_quoted(short, f"Sum up: {short[: prompts.PART]}")


@pytest.mark.parametrize("frame", ["<about>{}</about>\n<summary>{}</summary>", '{{"about": "{}", "summary": "{}"}}'])
@pytest.mark.parametrize("size", [2 * prompts.PART, 300 * prompts.PART])
def test_a_text_is_told_also_without_its_frame(frame: str, size: int) -> None:
    summary = " ".join(map(str, range(size)))[:size]
    reply = frame.format("What was asked for, step by step. " * 4, summary)
    assert is_told(reply, f"We talked before. {summary}") and not is_quoted(reply, f"We talked before. {summary}")
    assert is_told(reply, f"As you said: {reply}")
    assert not is_told(reply, "We talked before, but of something else. " * 9)
    assert not is_told("A name", "A name for it all: " + "A name")


def test_the_paragraphs_that_may_be_quoted() -> None:
    assert parts("Where should I stay?") == []
    assert parts("Where should I stay?\n\nBe brief.\n\nKeep to the rules.") == [
        "Where should I stay?",
        "Keep to the rules.",
    ]
