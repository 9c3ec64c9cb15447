"""Whether two texts say the same although they are not equal: system prompts with a clock in them, and quotes.

Pure. Wording is no evidence: texts are held against each other, never against a list of words.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

QUOTE = 13  # characters from which on a text inside another is a quote: shorter ones are said twice by chance
OWN_WORDS = 6  # the same for words of the user's, where there is other evidence
_HEAD = 80  # characters that a client leaves of a long text, at least
_WORDS = 8  # of a prompt of so many, two may change beside its numbers: a weekday, AM and PM
_NUMBER = re.compile(r"\d+")
_MARKS = "\"'\u201c\u201d\u201e\u00ab\u00bb`"


def is_alike(one: str, other: str) -> bool:
    """Whether two system prompts are one: equal, one the other with more behind it, or the same but for numbers,
    as a clock changes them; a long one with a clock may have more behind it, too."""
    if one == other:
        return True
    if not one or not other:
        return False
    return one.startswith(other) or other.startswith(one) or _differ_by_a_clock(one, other)


def _differ_by_a_clock(one: str, other: str) -> bool:
    mine, theirs = one.split(), other.split()
    size = min(len(mine), len(theirs))
    if len(mine) != len(theirs) and size < _WORDS:
        return False
    mine, theirs = mine[:size], theirs[:size]
    changed = [pair for pair in zip(mine, theirs, strict=True) if pair[0] != pair[1]]
    others = [pair for pair in changed if not _is_number(*pair)]
    few = len(others) <= (2 if len(mine) >= _WORDS and len(others) < len(changed) else 0)
    return few and 2 * len(changed) <= len(mine)


def _is_number(one: str, other: str) -> bool:
    """Whether two words differ in their digits alone."""
    return any(map(str.isdigit, one)) and _NUMBER.sub("0", one) == _NUMBER.sub("0", other)


def is_quoted(text: str, within: str, least: int = QUOTE) -> bool:
    """Whether a text stands within another one that says more: as it is, as a JSON string, or, where it is long, its
    beginning."""
    if len(text) < least or text == within:
        return False
    if len(text) < len(within) and text in within:
        return True
    if len(text) >= 2 * _HEAD and text[:_HEAD] in within:
        return True
    strings = [json.dumps(text, ensure_ascii=ascii)[1:-1] for ascii in (False, True)]
    return any([string != text and string in within for string in strings])


def parts(text: str) -> list[str]:
    """The paragraphs of a text, where it has more than one, that are long enough to be quoted: a client may put a
    reminder behind the words of its user."""
    found = [part.strip() for part in text.split("\n\n")]
    return [part for part in found if len(part) >= QUOTE] if len(found) > 1 else []


def is_framed(text: str, within: str) -> bool:
    """Whether a text of any length stands within another as a quote does: long enough, on lines of its own, or in
    quotation marks."""
    if not text or len(text) >= len(within):
        return False
    if is_quoted(text, within):
        return True
    if f"\n{text}\n" in f"\n{within}\n":
        return True
    return any([f"{first}{text}{last}" in within for first in _MARKS for last in _MARKS])


def quoted_in(texts: Iterable[str], within: Iterable[str], least: int = QUOTE) -> str | None:
    """The first of the messages `within` that quotes one of the texts."""
    known = [text for text in texts if len(text) >= least]
    return next((message for message in within if any([is_quoted(text, message, least) for text in known])), None)
