"""Whether two texts say the same although they are not equal."""

from __future__ import annotations

import pytest

from proxy.core.prompts import is_alike, is_framed, is_quoted, parts, quoted_in

CLOCK = "You help with plans of all kinds, and it is {} now."
REPLY = 'It says "no"\nto all of it, caf\u00e9 and all.'
LONG = "A long reply of the model, with many words in it. " * 5


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        ("You help.", "You help.", True),
        ("You help.", "", False),
        ("You help.", "You help.\nNow with a summary.", True),
        ("You help.\nNow with a summary.", "You help.", True),
        ("You help with plans.", "You name things well.", False),
        (CLOCK.format("10:30"), CLOCK.format("11:45"), True),
        (CLOCK.format("10:30"), CLOCK.format("half past ten"), False),
        (CLOCK.format("10:30 AM, Monday,"), CLOCK.format("1:45 PM, Tuesday,"), True),
        (CLOCK.format("Monday, 10:30,"), CLOCK.format("Tuesday, 11:45,"), True),
        (CLOCK.format("10:30"), CLOCK.format("11:45") + " And a summary.", True),
        ("Day 1 of it.", "Day 2 of it. And a summary.", False),
        ("Agent 1", "Agent 2", True),
        ("1 2 3", "4 5 6", False),
    ],
)
def test_which_prompts_are_one(one: str, other: str, alike: bool) -> None:
    assert is_alike(one, other) is alike


@pytest.mark.parametrize(
    ("text", "within", "quoted"),
    [
        ("It is twelve past two.", "He said: It is twelve past two.", True),
        ("It is twelve past two.", "It is twelve past two.", False),
        ("It is two.", "He said: It is two.", False),
        ("It is twelve past two.", "He said nothing of the kind.", False),
        (REPLY, '[{"said": "It says \\"no\\"\\nto all of it, caf\u00e9 and all."}]', True),
        (REPLY, '[{"said": "It says \\"no\\"\\nto all of it, caf\\u00e9 and all."}]', True),
        (LONG, f"Name it: {LONG[:120]}...", True),
        (LONG, f"Name it: {LONG[:60]}...", False),
    ],
)
def test_which_texts_are_quoted(text: str, within: str, quoted: bool) -> None:
    assert is_quoted(text, within) is quoted
    assert quoted_in([text], ["Nothing.", within]) == (within if quoted else None)


@pytest.mark.parametrize(
    ("text", "within", "framed"),
    [
        ("", "on", False),
        ("on", "on", False),
        ("It is twelve past two.", "He said: It is twelve past two.", True),
        ("on", "Name it:\non\n", True),
        ("on", 'Name "on" in a word', True),
        ("on", "Is this on?", False),
    ],
)
def test_which_texts_are_framed(text: str, within: str, framed: bool) -> None:
    assert is_framed(text, within) is framed


def test_the_paragraphs_that_may_be_quoted() -> None:
    assert parts("Where should I stay?") == []
    assert parts("Where should I stay?\n\nBe brief.\n\nKeep to the rules.") == [
        "Where should I stay?",
        "Keep to the rules.",
    ]
