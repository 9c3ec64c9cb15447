"""Measures a history in bytes and messages, and estimates its tokens.

Pure. Tokens are those that an upstream counted; what it has not seen is estimated by bytes, at the rate of that count.
There is no tokenizer, and no request of our own. The estimate follows from the history and the request alone, so it is
the same after a restart.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from proxy.core.history import History
from proxy.core.matching.alignment import Entries
from proxy.core.model import Message, Turn
from proxy.core.usage import counts

GRID = 8  # messages, and turns where it is about images: what is decided anew stays the same in between
IMAGE = 1000  # tokens: 85 to 1,600 are common
RATIO = 0.25  # tokens in a byte of JSON, where no upstream has counted yet
RATIOS = (0.125, 0.5)  # what calibration may make of it: a hidden prompt counts without a byte of ours
LOOK_BACK = 32  # messages in which a reply with a count is looked for
SHORT = 1024  # bytes of a message in which an image need not be looked for

_BINARY = re.compile(rb';base64,|"data"\s*:\s*"')  # a data: URL, or the sound of an input_audio


class Size(NamedTuple):
    """The size of messages: `text` bytes without images and sound, the number of `images` and sounds, `whole` bytes in
    all, and the number of `messages`."""

    text: int = 0
    images: int = 0
    whole: int = 0
    messages: int = 0


def size_of(raw: bytes) -> Size:
    """The size of a message."""
    images = binary = 0
    if len(raw) > SHORT:
        found = _BINARY.search(raw)
        while found:
            end = raw.find(b'"', found.end())
            end = len(raw) if end < 0 else end
            images, binary = images + 1, binary + end - found.end()
            found = _BINARY.search(raw, end)
    return Size(len(raw) - binary, images, len(raw), 1)


@dataclass
class Sizes:
    """Running sums over a path: item n is the size of its first n messages. They grow with the path, so that a turn
    costs only its own messages. `turns`: the position at which each turn begins."""

    text: list[int] = field(default_factory=lambda: [0])
    images: list[int] = field(default_factory=lambda: [0])
    whole: list[int] = field(default_factory=lambda: [0])
    turns: list[int] = field(default_factory=list)
    _last: Message | None = None
    _turn: str = ""

    def extended(self, path: Entries) -> Sizes:
        """These sums, with what the line has more; new ones where it went on otherwise."""
        done = len(self.text) - 1
        if done > len(path) or (done and path[done - 1].message is not self._last):
            return Sizes().extended(path)
        for entry in path[done:]:
            size = size_of(entry.message.raw)
            if entry.turn.id != self._turn:
                self.turns.append(len(self.text) - 1)
            self.text.append(self.text[-1] + size.text)
            self.images.append(self.images[-1] + size.images)
            self.whole.append(self.whole[-1] + size.whole)
            self._last, self._turn = entry.message, entry.turn.id
        return self

    def blank(self, keep: int) -> int:
        """Before which message images are left out, where those of the newest `keep` turns stay: it moves on only to
        what is there."""
        old = len(self.turns) - keep
        return bisect_left(self.images, self.images[self.turns[old]]) if old > 0 else 0

    def spared(self, most: int, end: int, own: int) -> int:
        """Before which message images are left out, where a request with so many of its `own` may have `most`: several
        leave at a time, so that what comes before them stays the same for a while."""
        over = self.images[end] + own - most
        if over <= 0:
            return 0
        step = max(1, most // 2)
        return bisect_left(self.images, min(-(-over // step) * step, self.images[end]))

    def tokens(self, ratio: float, start: int, stop: int, blank: int) -> float:
        """What a stretch of the line weighs, at so many tokens a byte, where images before `blank` are left out."""
        images = self.images[max(stop, blank)] - self.images[max(start, blank)]
        return ratio * (self.text[stop] - self.text[start]) + IMAGE * images


def sizes_of(history: History, path: Entries) -> Sizes:
    """The sums over a line, kept beside the history where it is the tip's."""
    if path is not history.path:
        return Sizes().extended(path)
    cache = history.cache
    cache.sizes = (cache.sizes or Sizes()).extended(path)
    return cache.sizes


@dataclass(frozen=True)
class Tokens:
    """An estimate of a prompt's tokens: `base` where its window begins at `at`, `ratio` for each byte more or less."""

    sizes: Sizes
    blank: int
    at: int
    base: float
    ratio: float

    def of(self, start: int) -> float:
        """The tokens of the prompt where its window begins at `start`."""
        return max(0.0, self.base - self.sizes.tokens(self.ratio, self.at, start, self.blank))

    def grown(self, size: int) -> Tokens:
        """With so many bytes more in the prompt; less than none where it has less."""
        return Tokens(self.sizes, self.blank, self.at, self.base + self.ratio * size, self.ratio)

    def corrected(self, start: int, counted: int) -> Tokens:
        """With what an upstream counted for a window that begins at `start`."""
        return Tokens(self.sizes, self.blank, start, counted, self.ratio * counted / max(1.0, self.of(start)))


def tokens(
    path: Entries, sizes: Sizes, at: tuple[int, int], end: int, own: Size, frame: int, same: Callable[[Turn], bool]
) -> Tokens:
    """The estimate for a request of `line[:end]` and its `own` messages. `at`: where the window in force begins, and
    where its images do; `frame`: the bytes of system block and tools.

    From the newest count that an upstream gave, since the window was cut, of a turn that is the `same` (its model
    counts as this one's); what came after it is estimated by its bytes, calibrated by that count.
    """
    start, blank = at
    counted = _counted(path, start, end, same)
    if counted is None:
        base = sizes.tokens(RATIO, start, end, blank) + RATIO * (own.text + frame) + IMAGE * own.images
        return Tokens(sizes, blank, start, base, RATIO)
    index, begin, prompt, said = counted
    images = sizes.tokens(0, begin, index, blank)
    low, high = RATIOS
    ratio = min(max((prompt - images) / max(1, frame + sizes.text[index] - sizes.text[begin]), low), high)
    news = sizes.tokens(ratio, index + 1, end, blank) + ratio * own.text + IMAGE * own.images
    return Tokens(sizes, blank, begin, prompt + said + news, ratio)


def _counted(path: Entries, start: int, end: int, same: Callable[[Turn], bool]) -> tuple[int, int, int, int] | None:
    """The newest reply with a count: its place, where the window began that its turn was asked with, the tokens of
    that prompt, and those of the reply without its thoughts, which few upstreams take back into the prompt."""
    for index in range(end - 1, max(start, end - LOOK_BACK) - 1, -1):
        entry, turn = path[index], path[index].turn
        if entry.ours and entry.message is turn.rendered and turn.usage and same(turn):
            prompt, said, thoughts = counts(turn.usage)[:3]
            if prompt:
                return index, 0 if turn.resends else start, prompt, max(0, said - thoughts)
        if turn.trim_point and (same(turn) or not turn.trimmed_for):  # before it the window was another
            break
    return None
