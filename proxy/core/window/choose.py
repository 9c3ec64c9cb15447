"""Chooses where the window begins: the part of the history that is sent.

Pure. Knows positions and what each costs. The dialect tells which result answers which tool call; limits and sending
are the caller's.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from proxy.core.history import History
from proxy.core.matching.alignment import Entries
from proxy.core.model import Message, TrimPoint
from proxy.core.plan import Decision, Plan
from proxy.core.window.cuts import Trim, holding, moved, newest
from proxy.core.window.token_estimate import GRID

DEPTH = 0.6  # what a cut leaves, as a share of what the limit leaves to the history


class Window(NamedTuple):
    """The injected messages that are sent: those from `start` on, without the images of those before `blank`, and with
    the message `summary` in place of what precedes them."""

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
    """A limit, and the cost of a window that begins at a position; the cost falls as that rises."""

    limit: float
    cost: Callable[[int], float]


def begin(
    bounds: Sequence[Bound], start: int, end: int, legal_starts: Callable[[], Sequence[int]], depth: float = DEPTH
) -> int:
    """Where the window of a request begins that began at `start` so far, of a history up to `end`.

    There, as long as no bound is exceeded. Else at one of the `legal_starts`, in rising order and behind `start`: deep,
    so that it happens rarely, and on the grid where that leaves not much less. What fits no bound is cut as far as it
    can be, for the upstream to judge.
    """
    over = [bound for bound in bounds if bound.cost(start) > bound.limit]
    if not over:
        return start
    legal = legal_starts()
    fits = [index for index in legal if all([bound.cost(index) <= bound.limit for bound in bounds])]
    deep = [index for index in fits if all([bound.cost(index) <= _goal(bound, end, depth) for bound in over])]
    on_grid = [index for index in deep if _is_first(index, start, legal) and _is_enough(over, index, end, depth)]
    return next(iter(on_grid or deep or fits or legal[-1:]), start)


def _goal(bound: Bound, end: int, share: float) -> float:
    alone = bound.cost(end)
    return alone + share * (bound.limit - alone)


def _is_first(index: int, start: int, legal: Sequence[int]) -> bool:
    """Whether a place is the first legal one of its step of the grid."""
    before = legal[bisect_left(legal, index) - 1] if index > legal[0] else start
    return index // GRID != before // GRID


def _is_enough(over: Sequence[Bound], index: int, end: int, depth: float) -> bool:
    """Whether a place leaves at least half of what it might."""
    return all([bound.cost(index) >= _goal(bound, end, depth / 2) for bound in over])


def legal_starts(path: Entries, asked: Sequence[Message], start: int, end: int, groups: Groups) -> list[int]:
    """Where behind `start` the window may begin: before a user message that no call and its result span; `end` is
    before the `asked` messages. A result that names no call is one of the newest."""
    messages = [*[entry.message for entry in path[start:end]], *asked]
    reach = _reach(messages, groups)
    legal: list[int] = []
    until = 0
    for n, message in enumerate(messages[: end - start + 1]):
        if n > until and message.role == "user":
            legal.append(start + n)
        until = max(until, reach.get(n, 0))
    return legal


def reaching(path: Entries, asked: Sequence[Message], start: int, end: int, groups: Groups) -> int:
    """Move a window's `start` back far enough to include each call whose result is among the `asked` messages, and on
    to the user's message before it. `start` itself where that is so already: a late result may answer a call that the
    window has dropped."""
    told = [groups.answered(message.role, message.raw) for message in asked]
    wanted = {id for id in told if id}
    first = index = end
    while wanted and index:
        index -= 1
        made = wanted.intersection(groups.made(path[index].message.role, path[index].message.raw))
        wanted -= made
        first = index if made else first
    if first >= start:
        return start
    while first and path[first].message.role != "user":
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


def in_force(history: History, plan: Plan, limit: float | None = None, model: str = "") -> TrimPoint:
    """Where the window of a plan begins, as far as that was decided before for a prompt of that model that may have so
    many tokens: never within what its client carries itself."""
    return _on_branch(holding(_cuts(history, plan), limit, model), plan)


def last(history: History, plan: Plan, model: str) -> TrimPoint:
    """Where the window began that a model had last: what its turns were counted with."""
    return _on_branch(newest(_cuts(history, plan), model), plan)


def _cuts(history: History, plan: Plan) -> Sequence[Trim]:
    return history.trim_points if plan.path is history.path else history.trim_points_of(plan.parent)


def _on_branch(trim_point: TrimPoint, plan: Plan) -> TrimPoint:
    if not trim_point.at:
        return trim_point
    return settled(moved(trim_point, plan.layout) if plan.decision is Decision.RETRY else trim_point, plan)


def settled(trim_point: TrimPoint, plan: Plan) -> TrimPoint:
    """A cut where the window of this plan may begin: its branch may have lost the message that stood there."""
    at = min(trim_point.at, plan.injected)
    while 0 < at < plan.injected and plan.path[at].message.role != "user":
        at += 1
    return TrimPoint(
        at, trim_point.summary, trim_point.covered if trim_point.summary and trim_point.covered < at else None
    )
