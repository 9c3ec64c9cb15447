"""Chooses which of a branch's trim points is in force for a request. Pure.

A trim point that a small model needed does not hold for a larger one: the window is chosen by the limit of the model
that is asked. Each model keeps its own trim point, and with it the prefix that its upstream has cached.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from proxy.core.model import Layout, TrimPoint

GROWN = 1.25  # a limit that is larger by less does not bring back what was left out: the prefix would change for little
KEPT = 16  # cuts of a branch that are remembered


class Trim(NamedTuple):
    """A trim point, and what it was made for: the tokens that a prompt may have (0: not known), and the model with its
    upstream (empty: any)."""

    trim_point: TrimPoint
    limit: int = 0
    model: str = ""

    def holds(self, limit: float | None, model: str) -> bool:
        """Whether it is in force for a prompt of that model that may have so many tokens (None: nobody knows)."""
        if not self.limit:
            return self.model in ("", model)
        return limit is not None and limit <= GROWN * self.limit

    def covers(self, other: Trim) -> bool:
        """Whether it holds wherever the other does, and leaves out as much."""
        if bool(self.limit) is not bool(other.limit) or self.trim_point.at < other.trim_point.at:
            return False
        return self.limit >= other.limit if self.limit else self.model in ("", other.model)


def purpose(limit: float, model: str) -> str:
    """What a cut was made for, as it is kept with its turn."""
    return f"{int(limit)} {model}"


def made(trim_point: TrimPoint, purpose: str) -> Trim:
    """A cut as its turn keeps it."""
    limit, _, model = purpose.partition(" ")
    return Trim(trim_point, int(limit or 0), model)


def joined(trim_points: Sequence[Trim], new: Trim) -> tuple[Trim, ...]:
    """With one more, without those that it makes superfluous."""
    return (*[each for each in trim_points if not new.covers(each)][1 - KEPT :], new)


def newest(trim_points: Sequence[Trim], model: str) -> TrimPoint:
    """Where the window began that a model had last."""
    return next((each.trim_point for each in reversed(trim_points) if each.model in ("", model)), TrimPoint())


def holding(trim_points: Sequence[Trim], limit: float | None, model: str) -> TrimPoint:
    """The deepest cut that holds, of equal ones the newest."""
    best = TrimPoint()
    for each in trim_points:
        if each.trim_point.at >= best.at and each.holds(limit, model):
            best = each.trim_point
    return best


def moved(trim_point: TrimPoint, layout: Layout | None) -> TrimPoint:
    """A trim point moved to the path that `layout` makes of its own; none where the new path keeps nothing of the
    window, as it went back to before it."""
    if not trim_point.at or layout is None:
        return trim_point
    at = _placed(trim_point.at, layout)
    if at is None:
        return TrimPoint()
    return TrimPoint(at, trim_point.summary, None if trim_point.told is None else _placed(trim_point.told, layout))


def _placed(at: int, layout: Layout) -> int | None:
    """The new position of the first message from `at` on that the layout keeps; None where it keeps none."""
    place = 0
    for part in layout:
        if isinstance(part, int):
            place += part
        elif part[1] <= at:
            place += part[1] - part[0]
        else:
            return place + max(0, at - part[0])
    return None
