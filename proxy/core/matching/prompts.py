"""Compares texts that may differ and still say the same: system prompts with a clock in them, and quotes.

Pure. Texts are compared with each other, never with a list of words.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

QUOTE = 13  # characters from which on a text inside another is a quote: shorter ones are said twice by chance
OWN_WORDS = 6  # the same for words of the user's, where there is other evidence
LONG = 160  # characters of a text of which a part is a quote, too
PART = 80  # characters of that part
PROBES = 64  # stretches of a text, at most, that are looked for
_XML = (("&lt;", "<"), ("&gt;", ">"), ("&quot;", '"'), ("&#39;", "'"), ("&#x27;", "'"), ("&amp;", "&"))
_JSON = (("\\n", "\n"), ("\\t", "\t"), ("\\r", "\r"), ('\\"', '"'), ("\\/", "/"), ("\0", "\\"))
_CODE = re.compile(r"\\u([0-9a-fA-F]{4})")
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
    """Whether `within` contains `text` and says more; a text shorter than `least` never counts. Of a long text its
    beginning or its end is enough, because clients shorten what they quote."""
    if len(text) < least or text == within:
        return False
    return text in within or (len(text) >= LONG and (text[:PART] in within or text[-PART:] in within))


def is_told(text: str, within: str) -> bool:
    """Whether a text stands within another one, or a stretch of it does: a client may take a summary out of the tags or
    the JSON that it was given in."""
    if is_quoted(text, within):
        return True
    step = max(PART // 2, len(text) // PROBES)
    return any([text[at : at + PART] in within for at in range(0, len(text) - PART + 1, step)])


def parts(text: str) -> list[str]:
    """The paragraphs of a text, where it has more than one, that are long enough to be quoted: a client may put a
    reminder behind the words of its user."""
    found = [part.strip() for part in text.split("\n\n")]
    return [part for part in found if len(part) >= QUOTE] if len(found) > 1 else []


def is_framed(text: str, within: str) -> bool:
    """Whether a text of any length stands within another as a quote does: long enough, on lines of its own, or in
    quotation marks."""
    if not text or text == within:
        return False
    if is_quoted(text, within):
        return True
    if f"\n{text}\n" in f"\n{within}\n":
        return True
    return any([f"{first}{text}{last}" in within for first in _MARKS for last in _MARKS])


def quoted_in(texts: Iterable[str], within: Iterable[str], least: int = QUOTE) -> str | None:
    """The first of the messages `within` that quotes one of the texts."""
    known = [text for text in texts if len(text) >= least]
    for message in within:
        forms = _unescaped(message)
        if any([is_quoted(text, form, least) for form in forms for text in known]):
            return message
    return None


def _unescaped(message: str) -> list[str]:
    """A message as it is, and as it was before its client escaped what it quotes: as XML, as JSON."""
    forms = [message]
    if "&" in message:
        forms.append(_replaced(message, _XML))
    if "\\" in message:
        plain = message.replace("\\\\", "\0")  # one that stands for itself
        plain = _CODE.sub(lambda found: chr(int(found[1], 16)), plain) if "\\u" in plain else plain
        forms.append(_replaced(plain, _JSON))
    return forms


def _replaced(text: str, escapes: Iterable[tuple[str, str]]) -> str:
    for escape, meant in escapes:
        text = text.replace(escape, meant)
    return text
