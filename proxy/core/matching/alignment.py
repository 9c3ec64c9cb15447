"""Finds where a client's list and a path of stored messages agree: by position and in order, never as sets.

Pure. Compares messages by the fingerprints that a dialect takes of them; does not decide what an agreement means.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from typing import Protocol

from proxy.core.history import Entry
from proxy.core.model import Layout, Message, Span

STARTS = 32  # places tried for the beginning of a window: "yes" may stand in a history ten thousand times

Entries = Sequence[Entry]
Pairs = list[tuple[int, int]]  # where in the list, and which message of the line it repeats


class Fingerprinter(Protocol):
    """How a dialect takes fingerprints of messages. Each is 16 bytes."""

    def fingerprint(self, raw: bytes, ids: bool = True) -> bytes: ...

    def is_loose(self, fingerprint: bytes) -> bool:
        """Whether a fingerprint leaves out the IDs of tool calls, because the message has none."""

    def bare(self, raw: bytes) -> bytes:
        """The fingerprint of a reply's tool calls alone, without its text; empty where it has no call with an ID."""

    def joined(self, first: bytes, second: bytes) -> bytes:
        """The fingerprint of a prefill and the reply that continued it, joined as clients do."""


class MessageReader(Fingerprinter, Protocol):
    """How a dialect reads what a message says."""

    def text(self, raw: bytes) -> str:
        """What a message says, without the white space around it."""

    def made(self, role: str, raw: bytes) -> Sequence[str]:
        """The IDs of the calls in a message, empty where one has none."""

    def answered(self, role: str, raw: bytes) -> str | None:
        """The ID of the call that a message is the result of, empty where it names none; None: it is no result."""

    def says_nothing(self, raw: bytes) -> bool:
        """Whether an assistant's message has neither content nor calls."""


class Alignment:
    """Compares one list of messages with paths of stored ones."""

    def __init__(self, messages: Sequence[Message], dialect: Fingerprinter) -> None:
        self.messages = messages
        self._dialect = dialect
        self._taken: dict[tuple[int, bool], bytes] = {}

    def run(self, path: Entries, n: int = 0, at: int = 0) -> Pairs:
        """The pairs for which the list from `n` and the path from `at` agree without a gap."""
        pairs: Pairs = []
        while n < len(self.messages) and at < len(path) and (step := self._step(n, path, at)):
            pairs += [(n, at + more) for more in range(step)]
            n, at = n + 1, at + step
        return pairs

    def window(self, path: Entries, to_the_tip: bool) -> Pairs:
        """The longest stretch of the path that the list begins with and that holds a reply of ours; of several of
        equal length the newest."""
        best: Pairs = []
        starts = [at for at in range(len(path) - 1, 0, -1) if self.messages and self.same(0, path[at])]
        for start in starts[:STARTS]:
            pairs = self.run(path, 0, start)
            reaches = pairs[-1][1] + 1 == len(path)
            if len(pairs) > len(best) and (reaches or not to_the_tip) and has_ours(pairs, path):
                best = pairs
        return best

    def in_order(self, path: Entries, n: int = 0, at: int = 0) -> Pairs:
        """The messages of the list from `n` that are on the path from `at`, in order: those that occur once in each, as
        a patience diff takes them, and what follows each of them."""
        jumps = [*self._anchors(path, n, at), (len(self.messages), len(path))]
        pairs: Pairs = []
        for index in range(n, len(self.messages)):
            if index == jumps[0][0]:
                at = jumps.pop(0)[1]
            step = self._step(index, path, at) if at < len(path) else 0
            if step and at + step <= jumps[0][1]:
                pairs += [(index, at + more) for more in range(step)]
                at += step
            elif at + 1 < jumps[0][1] and index + 1 < len(self.messages) and self.same(index + 1, path[at + 1]):
                at += 1  # one message in the place of another
        return pairs

    def same(self, n: int, entry: Entry) -> bool:
        mine, stored = self.messages[n], entry.message
        if mine.raw == stored.raw:
            return True
        if mine.role != stored.role and "assistant" in (mine.role, stored.role):
            return False
        fingerprint = self._fingerprint_of(entry)
        if fingerprint == self._fingerprint(n, not self._dialect.is_loose(fingerprint)):
            return True
        return mine.role == "assistant" and self._fingerprint(n) == self._dialect.bare(stored.raw)

    def head(self) -> bytes:
        """The fingerprint of the list's first message; empty for an empty list."""
        return self._fingerprint(0) if self.messages else b""

    def begins(self, n: int, others: Sequence[Message]) -> bool:
        """Whether the list from `n` begins with these messages, which are on no path yet."""
        ours = [other.fingerprint or self._dialect.fingerprint(other.raw) for other in others]
        return len(self.messages) >= n + len(ours) and ours == [
            self._fingerprint(n + more) for more in range(len(ours))
        ]

    def begins_as(self, others: Sequence[Message], entries: Entries) -> int:
        """How many `entries` the messages of `others` begin with, where these have more, and the list begins with
        all of them and has more again; 0 where it is not so."""
        if not 0 < len(entries) < len(others) < len(self.messages) or not self.begins(0, others):
            return 0
        ours = [other.fingerprint or self._dialect.fingerprint(other.raw) for other in others]
        return len(entries) if all([self._fingerprint_of(e) == m for e, m in zip(entries, ours, strict=False)]) else 0

    def _anchors(self, path: Entries, n: int, at: int) -> Pairs:
        indexes: dict[bytes, list[int]] = {}
        for index in range(at, len(path)):
            indexes.setdefault(self._fingerprint_of(path[index]), []).append(index)
        unique = {fingerprint: found[0] for fingerprint, found in indexes.items() if len(found) == 1}
        loose = any([self._dialect.is_loose(fingerprint) for fingerprint in unique])
        once: dict[bytes, list[int]] = {}
        for index in range(n, len(self.messages)):
            for fingerprint in {self._fingerprint(index), self._fingerprint(index, not loose)} & unique.keys():
                once.setdefault(fingerprint, []).append(index)
        anchors = [(found[0], unique[fingerprint]) for fingerprint, found in once.items() if len(found) == 1]
        # With its ids and without them a call may be two of the line: falling, so that a run has one of them.
        anchors.sort(key=lambda anchor: (anchor[0], -anchor[1]))
        # Replies of ours first: what a client puts behind its newest message moves on in each list, and they do not.
        ours = rising([anchor for anchor in anchors if path[anchor[1]].ours])
        return self._behind_questions(rising([anchor for anchor in anchors if _fits(anchor, ours)]), path, n, at)

    def _behind_questions(self, anchors: Pairs, path: Entries, n: int, at: int) -> Pairs:
        """With what a reply of ours answered, where the list has it before the reply: it may be said twice."""
        found: Pairs = []
        for anchor in anchors:
            before = [anchor]
            index, stored = anchor[0] - 1, anchor[1] - 1
            while index >= n and stored >= at and path[anchor[1]].ours and path[stored].turn is path[anchor[1]].turn:
                if (found and (index <= found[-1][0] or stored <= found[-1][1])) or not self.same(index, path[stored]):
                    break
                before.append((index, stored))
                index, stored = index - 1, stored - 1
            found += before[::-1]
        return found

    def _step(self, n: int, path: Entries, at: int) -> int:
        """How many messages of the line the list's message `n` repeats: two where a client has joined its
        prefill and the reply that continued it."""
        if self.same(n, path[at]):
            return 1
        prefill = path[at].message
        if prefill.role != "assistant" or path[at].ours or at + 1 == len(path) or not path[at + 1].ours:
            return 0
        return 2 if self._fingerprint(n) == self._dialect.joined(prefill.raw, path[at + 1].message.raw) else 0

    def _fingerprint(self, n: int, ids: bool = True) -> bytes:
        if (taken := self._taken.get((n, ids))) is None:
            taken = self._taken[n, ids] = self._dialect.fingerprint(self.messages[n].raw, ids)
        return taken

    def _fingerprint_of(self, entry: Entry) -> bytes:
        return entry.message.fingerprint or self._dialect.fingerprint(entry.message.raw)


def has_ours(pairs: Pairs, path: Entries) -> bool:
    """Whether one of the pairs is a reply of ours."""
    return any([path[at].ours for _, at in pairs])


def rising(anchors: Pairs) -> Pairs:
    """The longest run of anchors, given in the order of the list, that is in the order of the line too."""
    tops: list[int] = []
    ends: list[int] = []
    before: list[int] = []
    for here, (_, at) in enumerate(anchors):
        size = bisect_left(tops, at)
        before.append(ends[size - 1] if size else -1)
        tops[size : size + 1], ends[size : size + 1] = [at], [here]
    run: Pairs = []
    here = ends[-1] if ends else -1
    while here >= 0:
        run.append(anchors[here])
        here = before[here]
    return run[::-1]


def _fits(anchor: tuple[int, int], run: Pairs) -> bool:
    """Whether an anchor is in a rising run, or could be."""
    index = bisect_left(run, anchor)
    before, behind = run[index - 1 : index], run[index : index + 1]
    return all([at < anchor[1] for _, at in before]) and all([at >= anchor[1] for _, at in behind])


def layout(pairs: Pairs, size: int, before: int, stays: Sequence[int] = ()) -> Layout:
    """The layout of a turn: which spans of the path it keeps, and how many messages of its list stand between them.

    The first `before` messages of the path are kept in any case, and those at `stays` although the list does not show
    them, before what is repeated behind them and before what is new. `size`: messages of the list."""
    parts: list[Span | int] = [(0, before)] if before else []
    repeated: dict[int, list[int]] = {}
    for n, at in pairs:
        repeated.setdefault(n, []).append(at)
    waiting = deque([at for at in stays if at >= before])
    behind = pairs[-1][0] if pairs else -1
    for n in range(size):
        for at in repeated.get(n, []):
            while waiting and waiting[0] < at:
                _keep(parts, waiting.popleft())
            _keep(parts, at)
        if n not in repeated:
            while waiting and n > behind:
                _keep(parts, waiting.popleft())
            if parts and isinstance(last := parts[-1], int):
                parts[-1] = last + 1
            else:
                parts.append(1)
    for at in waiting:
        _keep(parts, at)
    return tuple(parts)


def _keep(parts: list[Span | int], at: int) -> None:
    """One more message of the line."""
    if parts and not isinstance(last := parts[-1], int) and last[1] == at:
        parts[-1] = (last[0], at + 1)
    else:
        parts.append((at, at + 1))
