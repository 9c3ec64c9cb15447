"""Holds a session's turns as a tree, and computes the messages on the path to its tip.

Pure. Knows which turn follows which; not what a message means, who sent it, or where turns are stored.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

from msgspec import Struct

from proxy.core.model import (
    CARRIES,
    CLIENT,
    SIDE,
    HistoryCache,
    Layout,
    Message,
    SessionState,
    Span,
    TrimPoint,
    Turn,
    TurnState,
)
from proxy.core.window.cuts import Trim, joined, made, moved

# What stays of branches that the tip has left, until the session expires.
SPARE_TURNS = 64
SPARE_BYTES = 16 << 20
LEFT = 16  # lists that a client left for another one, and may come back to
SIDE_TURNS = 32  # and of side requests: a client compares a few of their replies with what comes later
SIDE_BYTES = 4 << 20


class Entry(Struct, frozen=True, gc=False):
    """A message on a path, and the turn that brought it. `ours`: a reply that an upstream gave in this session."""

    message: Message
    turn: Turn
    ours: bool


class History(Struct, frozen=True, dict=True):
    """A session's turns in the order of their commit. `tip`: the ID of the turn that the next one follows."""

    turns: tuple[Turn, ...] = ()
    tip: str | None = None

    @cached_property
    def by_id(self) -> dict[str, Turn]:
        return {turn.id: turn for turn in self.turns}

    @cached_property
    def path(self) -> tuple[Entry, ...]:
        """The messages from the first turn to the tip."""
        return self.path_of(self.tip)

    @cached_property
    def system(self) -> bytes | None:
        """The newest system block on the tip's branch; None where there is none."""
        return self.system_of(self.tip)

    @cached_property
    def trim_point(self) -> TrimPoint:
        """Where the window begins at the tip."""
        return self.trim_point_of(self.tip)

    @cached_property
    def trim_points(self) -> tuple[Trim, ...]:
        """All trim points at the tip; which of them is in force depends on the model that is asked."""
        return self.trim_points_of(self.tip)

    @cached_property
    def size(self) -> int:
        return sum([turn.size for turn in self.turns])

    @cached_property
    def cache(self) -> HistoryCache:
        """What was derived from the path to the tip; shared with later histories while that path only grows."""
        return HistoryCache()

    @property
    def last(self) -> Turn | None:
        """The turn at the tip."""
        if self.turns and self.turns[-1].id == self.tip:
            return self.turns[-1]
        return self.by_id.get(self.tip) if self.tip is not None else None

    @property
    def resends(self) -> bool:
        """Whether the latest request carried its history itself."""
        last = self.last
        return last is not None and last.resends

    def ancestors(self, tip: str | None, known: Container[str] = ()) -> list[Turn]:
        """The turns from `tip` back to the first, or until one that is `known`, which is left out."""
        found: list[Turn] = []
        while tip is not None and tip not in known:
            turn = self.by_id.get(tip)
            if turn is None:  # it went while its child was in flight
                break
            found.append(turn)
            tip = turn.parent
        return found

    def path_of(self, tip: str | None) -> tuple[Entry, ...]:
        """The messages from the first turn to the turn `tip`."""
        path: list[Entry] = []
        for turn in reversed(self.ancestors(tip)):
            path = followed(path, turn)
        return tuple(path)

    def system_of(self, tip: str | None) -> bytes | None:
        blocks = (turn.system for turn in self.ancestors(tip) if turn.system is not None)
        return next(blocks, None) or None

    def trim_point_of(self, tip: str | None) -> TrimPoint:
        """Where the window begins on the path to the turn `tip`, by the last turn of its branch that set it."""
        point = TrimPoint()
        for turn in reversed(self.ancestors(tip)):
            point = turn.trim_point or moved(point, turn.layout)
        return point

    def trim_points_of(self, tip: str | None) -> tuple[Trim, ...]:
        """The trim points on the path to the turn `tip`."""
        found: tuple[Trim, ...] = ()
        for turn in reversed(self.ancestors(tip)):
            if found and turn.layout is not None:
                found = tuple([each._replace(trim_point=moved(each.trim_point, turn.layout)) for each in found])
            if turn.trim_point is not None:
                found = joined(found, made(turn.trim_point, turn.trimmed_for))
        return found

    @cached_property
    def carriers(self) -> frozenset[bytes]:
        """The fingerprints of the software of clients that have resent their history."""
        return frozenset([turn.client[:CLIENT] for turn in self.turns if turn.carries_history])

    @cached_property
    def side_requests(self) -> tuple[Turn, ...]:
        """The side requests, in the order of their commit."""
        return tuple([turn for turn in self.turns if turn.is_side_request])

    @cached_property
    def has_silent(self) -> bool:
        """Whether any turn has a reply that says nothing."""
        return any([turn.rendered is None for turn in self.turns])

    @cached_property
    def preamble(self) -> int:
        """How many messages the first list carried before its last user message: examples that some
        clients send each time."""
        first = next((n for n, entry in enumerate(self.path) if entry.ours), 0)
        users = [n for n in range(first) if self.path[n].message.role == "user"]
        return users[-1] if users else 0

    @cached_property
    def other_paths(self) -> list[tuple[str, tuple[Entry, ...]]]:
        """The paths that end elsewhere than at the tip, with the turn each ends at, the newest first. A reply that was
        regenerated ends one: the turns behind it leave it out. So do the newest lists that a later one left."""
        inner: set[str | None] = {self.tip}
        left: list[str] = []
        lengths: dict[str | None, int] = {None: 0}
        for turn in self.turns:
            length = lengths.get(turn.parent, 0)
            whole = turn.layout is None
            kept = [(0, length)] if whole else [part for part in turn.layout or () if not isinstance(part, int)]
            if any([stop == length for _, stop in kept]):
                inner.add(turn.parent)
                left += [] if whole else self._left(turn, kept, lengths)
            lengths[turn.id] = sum([stop - start for start, stop in kept]) + len(own_entries(turn))
        inner.difference_update(left[-LEFT:])
        return [(turn.id, self.path_of(turn.id)) for turn in reversed(self.turns) if turn.id not in inner]

    def _left(self, turn: Turn, kept: Sequence[Span], lengths: dict[str | None, int]) -> Iterable[str]:
        """The turns with which what a turn leaves out ends, where the next one carried no list: one was begun there."""
        gaps = {start for (_, stop), (start, _) in pairwise([(0, 0), *kept]) if stop < start}
        child, before = turn, self.by_id.get(turn.parent or "")
        while gaps and before:
            if lengths[before.id] in gaps and not child.carries_history:
                yield before.id
            child, before = before, self.by_id.get(before.parent or "") if before.layout is None else None

    def plus(self, *turns: Turn) -> History:
        """This history with more turns; the last one is the new tip, unless it is a side request."""
        added = self
        for turn in turns:
            added = added._plus(turn)
        return added

    def _plus(self, turn: Turn) -> History:
        known, side = self.__dict__, turn.traits & SIDE
        added = History((*self.turns, turn), self.tip if side else turn.id)
        news = added.__dict__
        if "size" in known:
            news["size"] = self.size + turn.size
        if "carriers" in known:
            new = turn.traits & CARRIES and turn.client[:CLIENT] not in self.carriers
            news["carriers"] = self.carriers | {turn.client[:CLIENT]} if new else self.carriers
        if "has_silent" in known:
            news["has_silent"] = self.has_silent or turn.rendered is None
        if "side_requests" in known:
            news["side_requests"] = (*self.side_requests, turn) if side else self.side_requests
        if side:
            news.update(
                {
                    name: known[name]
                    for name in ("path", "system", "trim_point", "trim_points", "cache", "preamble")
                    if name in known
                }
            )
        elif turn.parent == self.tip and turn.layout is None:
            if "path" in known:
                news["path"] = (*self.path, *own_entries(turn))
            news["system"] = self.system if turn.system is None else turn.system or None
            news["trim_point"] = turn.trim_point or self.trim_point
            news["trim_points"] = (
                joined(self.trim_points, made(turn.trim_point, turn.trimmed_for))
                if turn.trim_point
                else self.trim_points
            )
            news["cache"] = self.cache
        return added

    def before(self, turn: Turn) -> History:
        """The history as it was before a turn: at its parent, with the turns committed by then."""
        return History(self.turns[: self.turns.index(turn)], turn.parent)

    def without(self, ids: Iterable[str]) -> History:
        gone = set(ids)
        return History(tuple([turn for turn in self.turns if turn.id not in gone]), self.tip) if gone else self

    def turns_to_drop(self, needed: Iterable[str] = (), turns: int = SPARE_TURNS, size: int = SPARE_BYTES) -> list[str]:
        """The turns to drop: those off the tip's branch beyond the newest `turns`, or beyond `size` bytes; of side
        requests those beyond bounds of their own, so that titles push no branch out.

        What a turn that stays follows, stays, and so do the `needed` ones.
        """
        kept: set[str] = set()
        for end in (self.tip, *needed):
            kept.update([turn.id for turn in self.ancestors(end, kept)])
        left = {False: [turns, size], True: [SIDE_TURNS, SIDE_BYTES]}
        for turn in reversed(self.turns):
            room = left[turn.is_side_request]
            branch = self.ancestors(turn.id, kept)
            room[0], room[1] = room[0] - len(branch), room[1] - sum([one.size for one in branch])
            if min(room) >= 0:
                kept.update([one.id for one in branch])
        return [turn.id for turn in self.turns if turn.id not in kept]


@dataclass(frozen=True, slots=True)
class Session:
    """A stored session: its state, its history, and when it was last used (ms since the epoch)."""

    state: SessionState
    history: History
    touched: int = field(default=0, compare=False)


def fresh(state: SessionState = SessionState.NEW) -> Session:
    return Session(state, History())


def own_entries(turn: Turn) -> list[Entry]:
    """The messages that a turn adds to its parent's path: what was asked, and the reply where it says something."""
    asked = [Entry(message, turn, False) for message in turn.asked]
    if turn.rendered is None:
        return asked
    return [*asked, Entry(turn.rendered, turn, turn.state is not TurnState.ADOPTED)]


def followed(path: Sequence[Entry], turn: Turn) -> list[Entry]:
    """The messages up to a turn, given those up to its parent."""
    own = own_entries(turn)
    if turn.layout is None:
        return [*path, *own]
    return [*laid_out(path, turn.layout, own), *own[len(turn.asked) :]]


def laid_out(path: Sequence[Entry], layout: Layout, own: Sequence[Entry]) -> list[Entry]:
    """Spans of `path`, and in between as many of `own` as the layout says."""
    made: list[Entry] = []
    taken = 0
    for part in layout:
        if isinstance(part, int):
            made += own[taken : taken + part]
            taken += part
        else:
            made += path[part[0] : part[1]]
    return made
