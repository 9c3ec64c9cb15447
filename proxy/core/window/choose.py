"""The window: the part of the history that is sent, and where it begins.

Pure. Knows places and what each costs; not what a message means (which call a result answers it asks the dialect),
which limits there are, nor how a window is sent.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from proxy.core.history import History, moved
from proxy.core.matching.alignment import Line
from proxy.core.model import Cut, Message
from proxy.core.plan import Decision, Plan
from proxy.core.window.cuts import Made, holding, newest
from proxy.core.window.token_estimate import GRID

DEPTH = 0.6  # what a cut leaves, as a share of what the limit leaves to the history


class Window(NamedTuple):
    """What of the injected messages is sent: those from `start` on, images left out before `blank`, and
    `summary`, a message, in the place of what precedes them."""

    start: int = 0
    blank: int = 0
    summary: bytes | None = None


class Groups(Protocol):
    """How a dialect tells which results belong to which call."""

    def made(self, role: str, raw: bytes) -> Sequence[str]:
        """The IDs of the calls in a message."""

    def answered(self, role: str, raw: bytes) -> str | None:
        """The ID of the call that a message is the result of, empty where it names none; None: it is no result."""


class Bound(NamedTuple):
    """A limit, and what counts against it where the window begins at a place: it falls as that moves on."""

    limit: float
    cost: Callable[[int], float]


def begin(
    bounds: Sequence[Bound], start: int, end: int, places: Callable[[], Sequence[int]], depth: float = DEPTH
) -> int:
    """Where the window of a request begins that began at `start` so far, of a history up to `end`.

    There, as long as no bound is exceeded. Else at one of the `places`, in rising order and behind `start`: deep, so
    that it happens rarely, and on the grid where that leaves not much less. What fits no bound is cut as far as it
    can be, for the upstream to judge.
    """
    over = [bound for bound in bounds if bound.cost(start) > bound.limit]
    if not over:
        return start
    legal = places()
    fits = [place for place in legal if all([bound.cost(place) <= bound.limit for bound in bounds])]
    deep = [place for place in fits if all([bound.cost(place) <= _goal(bound, end, depth) for bound in over])]
    on_grid = [place for place in deep if _is_first(place, start, legal) and _is_enough(over, place, end, depth)]
    return next(iter(on_grid or deep or fits or legal[-1:]), start)


def _goal(bound: Bound, end: int, share: float) -> float:
    alone = bound.cost(end)
    return alone + share * (bound.limit - alone)


def _is_first(place: int, start: int, legal: Sequence[int]) -> bool:
    """Whether a place is the first legal one of its step of the grid."""
    before = legal[bisect_left(legal, place) - 1] if place > legal[0] else start
    return place // GRID != before // GRID


def _is_enough(over: Sequence[Bound], place: int, end: int, depth: float) -> bool:
    """Whether a place leaves at least half of what it might."""
    return all([bound.cost(place) >= _goal(bound, end, depth / 2) for bound in over])


def places(line: Line, asked: Sequence[Message], start: int, end: int, groups: Groups) -> list[int]:
    """Where behind `start` the window may begin: before a user message that no call and its result span; `end` is
    before the `asked` messages. A result that names no call is one of the newest."""
    messages = [*[entry.message for entry in line[start:end]], *asked]
    reach = _reach(messages, groups)
    legal: list[int] = []
    until = 0
    for n, message in enumerate(messages[: end - start + 1]):
        if n > until and message.role == "user":
            legal.append(start + n)
        until = max(until, reach.get(n, 0))
    return legal


def reaching(line: Line, asked: Sequence[Message], start: int, end: int, groups: Groups) -> int:
    """`start`, or where a window has to begin that holds the calls whose results are among the `asked` messages: one
    may be late, and its call have left."""
    told = [groups.answered(message.role, message.raw) for message in asked]
    wanted = {id for id in told if id}
    first = place = end
    while wanted and place:
        place -= 1
        made = wanted.intersection(groups.made(line[place].message.role, line[place].message.raw))
        wanted -= made
        first = place if made else first
    if first >= start:
        return start
    while first and line[first].message.role != "user":
        first -= 1
    return first


def _reach(messages: Sequence[Message], groups: Groups) -> dict[int, int]:
    """By the place of a message with calls, that of their last result."""
    calls: dict[str, int] = {}
    reach: dict[int, int] = {}
    latest: int | None = None
    for n, message in enumerate(messages):
        if (id := groups.answered(message.role, message.raw)) is not None:
            if (call := calls.get(id, latest)) is not None:
                reach[call] = n
        elif made := groups.made(message.role, message.raw):
            latest = n
            calls.update(dict.fromkeys(made, n))
    return reach


def is_trimmed(plan: Plan) -> bool:
    """Whether messages may be left out: of what is injected, never of what a client carries itself."""
    return bool(plan.injected) and not plan.resends and plan.decision is not Decision.ASIDE


def in_force(history: History, plan: Plan, limit: float | None = None, model: str = "") -> Cut:
    """Where the window of a plan begins, as far as that was decided before for a prompt of that model that may have so
    many tokens: never within what its client carries itself."""
    return _on_branch(holding(_cuts(history, plan), limit, model), plan)


def last(history: History, plan: Plan, model: str) -> Cut:
    """Where the window began that a model had last: what its turns were counted with."""
    return _on_branch(newest(_cuts(history, plan), model), plan)


def _cuts(history: History, plan: Plan) -> Sequence[Made]:
    return history.cuts if plan.line is history.line else history.cuts_of(plan.parent)


def _on_branch(cut: Cut, plan: Plan) -> Cut:
    if not cut.at:
        return cut
    return settled(moved(cut, plan.layout) if plan.decision is Decision.RETRY else cut, plan)


def settled(cut: Cut, plan: Plan) -> Cut:
    """A cut where the window of this plan may begin: its branch may have lost the message that stood there."""
    at = min(cut.at, plan.injected)
    while 0 < at < plan.injected and plan.line[at].message.role != "user":
        at += 1
    return Cut(at, cut.summary, cut.covered if cut.summary and cut.covered < at else None)
