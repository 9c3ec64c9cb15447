"""Splits what is to be summarized into parts: a chain of requests, each with the summary so far in front.

Pure. Counts messages, bytes and tokens; does not send a request or read a message.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b
from typing import NamedTuple

from proxy.core.history import History
from proxy.core.matching.alignment import Entries
from proxy.core.model import TrimPoint, Turn
from proxy.core.window.choose import Bound, Groups, begin, legal_starts
from proxy.core.window.token_estimate import RATIOS, Size, Tokens, sizes_of, tokens

FULL = 0.85  # of the limit: from there on the next turns are prepared for
SHARE = 8  # a summary may be so large a part of the limit
BYTES = 4  # of a token, where nothing tells
SAFE = 0.75  # of a limit that a request for a summary fills: its tokens are estimated
SIZE = 64 * 1024  # bytes of text in a request, where no limit is known
LEAST = 256  # bytes of text with which a request is worth it
ROOMS = 8  # parts that one message may fill; of a longer one the middle is left out
SHORT = " […]"  # at the end of a summary that was cut
GAP = "\n\n"
_SENTENCE = re.compile(r"[.!?…]['\")\]]*(?=\s)|[\u3002\uff01\uff1f]|\n")


class Leaving(NamedTuple):
    """What is to be summarized: the messages of the line from `start` to before `at`, where the window then begins.
    `before`: the message with the summary of what precedes them."""

    start: int
    at: int
    before: bytes | None


def due(
    history: History,
    trim_point: TrimPoint,
    base: TrimPoint,
    limit: int | None,
    frame: int,
    same: Callable[[Turn], bool],
    groups: Groups,
) -> tuple[Leaving | None, float]:
    """What is to be summarized of a session, and the tokens in a byte: what was cut and no summary tells of, and what a
    turn over the limit would cut next. `trim_point`: the one in force; `base`: how far summaries have come; `frame`,
    `same`: as `tokens` has them."""
    path = history.path
    whole = frame + len(trim_point.summary or b"")
    found = tokens(path, sizes_of(history, path), (trim_point.at, 0), len(path), Size(), whole, same)
    at = _next(found, limit, trim_point.at, path, groups) if limit else trim_point.at
    waits = base.at == base.covered > trim_point.covered and base.at >= trim_point.at  # the next turn takes it along
    if at <= base.covered or waits:
        return None, found.ratio
    return Leaving(base.covered, at, base.summary), found.ratio


def _next(found: Tokens, limit: int, start: int, path: Entries, groups: Groups) -> int:
    end = len(path)
    return begin([Bound(FULL * limit, found.of)], start, end, lambda: legal_starts(path, (), start, end, groups))


def taken(found: TrimPoint, now: TrimPoint, deepens: bool = True) -> TrimPoint | None:
    """The cut that a turn takes along, of a summary that was `found` and the cut in force; None where it tells nothing
    more of what is left out. It may be late: then the window begins where it began; or early, where it may not deepen
    the cut: then what it tells of is partly in the window, too."""
    at = max(found.at, now.at) if deepens else now.at
    covered = min(found.covered, at)
    if covered <= now.covered:
        return None
    return TrimPoint(at, found.summary, None if covered == at else covered)


def furthest(trim_points: Iterable[TrimPoint]) -> TrimPoint:
    """The summary that tells of most, of several cuts; the first of equal ones."""
    return max(trim_points, key=lambda trim_point: trim_point.covered, default=TrimPoint())


def digest(path: Entries, size: int) -> bytes:
    """By which the first messages of a line are recognised on any branch, and after whatever became of it."""
    hashed = blake2b(digest_size=16)
    for entry in path[:size]:
        hashed.update(b"%d:" % len(entry.message.raw))
        hashed.update(entry.message.raw)
    return hashed.digest()


# Sizes


def most_of(asked: int, limit: int | None, size: int | None = None) -> int:
    """The tokens that a summary may have: as asked, and no more than a share of the limit in tokens or in bytes."""
    shares = [limit // SHARE] if limit else []
    shares += [size // SHARE // BYTES] if size else []
    return max(1, min([asked, *shares]))


def room(limit: int | None, ratio: float, most: int, taken: int) -> int:
    """The bytes of text that a request for a summary of `most` tokens may carry beside what is `taken`."""
    return int(SAFE * (limit - most) / ratio) - taken if limit else SIZE


def bytes_of(most: int, size: int, counted: int) -> int:
    """The bytes that a summary may have, of `size` bytes in which an upstream `counted` tokens (0: it did not). A count
    that cannot be is none."""
    if size * RATIOS[0] > counted:
        return BYTES * most
    return size if counted <= 1.1 * most else size * most // counted


def size_of(text: str) -> int:
    return len(text.encode(errors="surrogatepass"))


# Parts


class Position(NamedTuple):
    """Where a part begins: at a message, and so many of its characters behind its start."""

    message: int = 0
    offset: int = 0


class Part(NamedTuple):
    text: str
    after: Position


def part(texts: Sequence[str], at: Position, room: int) -> Part:
    """As much of the texts from a place on as `room` bytes hold: whole ones, but for one that no room holds. Always
    something, where there is something."""
    told: list[str] = []
    message, offset = at
    while message < len(texts):
        text = texts[message][offset:]
        left = room - sum([size_of(each) + len(GAP) for each in told])
        if text and size_of(text) > left:
            if told and size_of(text) <= room:
                break
            piece = head(text, max(1, left)) if left > 0 or not told else ""
            if told and size_of(piece) > left:  # one character that takes several bytes
                piece = ""
            told += [piece] if piece else []
            offset += len(piece)
            break
        told += [text] if text else []
        message, offset = message + 1, 0
    return Part(GAP.join(told), Position(message, offset))


def abridged(text: str, size: int) -> str:
    """A text of at most about so many bytes: of a longer one the beginning and the end."""
    if size_of(text) <= size:
        return text
    begins, ends = head(text, size // 2), head(text[::-1], size // 2)[::-1]
    return f"{begins}\n[{len(text) - len(begins) - len(ends)} characters are left out here]\n{ends}"


def head(text: str, size: int) -> str:
    """The beginning of a text that has at most so many bytes, but one character at least."""
    kept = text[: max(1, size)]
    while len(kept) > 1 and (large := size_of(kept)) > size:
        kept = kept[: max(1, min(len(kept) - 1, len(kept) * size // large))]
    return kept


def shortened(text: str, size: int) -> str:
    """A text of at most about so many bytes: a longer one ends with a sentence, else with a word, and says so."""
    if size_of(text) <= size:
        return text
    kept = head(text, max(1, size - size_of(SHORT)))
    ends = [found.end() for found in _SENTENCE.finditer(kept)]
    end = ends[-1] if ends and ends[-1] > len(kept) // 2 else kept.rfind(" ")
    return (kept[:end] if end > 0 else kept).rstrip() + SHORT
