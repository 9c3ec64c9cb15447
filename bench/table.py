"""The table of the benchmark: what each row must show, what it got, and what went wrong with it.

Knows no sockets, no processes and no clock.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from bench.load import Visit


@dataclass(frozen=True)
class Goal:
    """What a row is about. `must` and `goal` have a limit for each of its values, upper ones unless `least`."""

    what: str
    must: tuple[float, ...]
    goal: tuple[float, ...]
    units: tuple[str, ...] = ("",)
    least: bool = False

    def verdict(self, values: Sequence[float]) -> str:
        if self._holds(values, self.goal):
            return "goal"
        return "must" if self._holds(values, self.must) else "**misses the must**"

    def _holds(self, values: Sequence[float], limits: tuple[float, ...]) -> bool:
        return all(
            [value >= limit if self.least else value <= limit for value, limit in zip(values, limits, strict=True)]
        )

    def limit(self, limits: tuple[float, ...]) -> str:
        if not limits:
            return ""
        shown = limits[:1] if len({*limits}) == 1 else limits
        return f"{'≥' if self.least else '≤'} {self._with_units([f'{limit:g}' for limit in shown])}"

    def told(self, values: Iterable[float]) -> str:
        return self._with_units([_number(value) for value in values])

    def _with_units(self, texts: Sequence[str]) -> str:
        if len(self.units) == 1:
            return f"{' / '.join(texts)} {self.units[0]}".strip()
        return " / ".join([f"{text} {unit}" for text, unit in zip(texts, self.units, strict=True)])


MS = ("ms",)
TLS_UNITS = ("ms", "ms", "us")
GOALS = {
    "pass": Goal("pass-through, 16 connections, requests/s over nginx", (0.12,), (0.30,), least=True),
    "turn": Goal(
        "recorded turn with 20 messages, 16 connections, FULL durability, turns/s over nginx pass-through",
        (0.06,),
        (0.18,),
        least=True,
    ),
    "cpu": Goal("CPU of a recorded turn / of a pass-through", (0.35, 0.20), (0.13, 0.07), MS),
    "history": Goal(
        "latency added to a recorded turn at 1 connection over a client that sends the history itself, "
        "at 1 / 500 / 5,000 messages",
        (0.9, 0.9, 1.2),
        (0.4, 0.4, 0.6),
        MS,
    ),
    "length": Goal("the same at 5,000 over at 1 message", (1.8,), (1.3,)),
    "events": Goal(
        "event delay added (median), 200 streams, an event each 10 ms, over nginx: recorded / passed through",
        (3, 3),
        (1, 1),
    ),
    "event-cpu": Goal("CPU per event over nginx: recorded / passed through", (2.4, 2.4), (1.3, 1.3)),
    "first": Goal("first event added (median), 16 streams: recorded / passed through", (1, 1), (0.5, 0.5), MS),
    "resend": Goal(
        "a client that resends 500 messages: CPU of the turn without its commit "
        "over plain pass-through of the same body",
        (2.5,),
        (1.5,),
    ),
    "tls": Goal(
        "over TLS to the upstream: CPU of a recorded turn / of a pass-through / of an event", (), (), TLS_UNITS
    ),
    "memory": Goal("memory idle / per held stream", (80, 60), (55, 30), ("MB", "KB")),
    "start": Goal("ready after start", (1.5,), (0.5,), ("s",)),
}


@dataclass(frozen=True)
class Row:
    """A line of the table. `faults` are all that went wrong with the answers it counts."""

    goal: Goal
    got: str
    faults: Counter[str]

    @property
    def line(self) -> str:
        goal = self.goal
        got = f"failed: {told(self.faults)}" if self.faults else self.got
        return f"| {goal.what} | {goal.limit(goal.must)} | {goal.limit(goal.goal)} | {got} |"


class Unclear(Exception):
    """A figure that cannot be told from noise."""


def row(
    goal: Goal,
    rounds: Mapping[str, list[Visit]],
    values: Callable[[], Sequence[float]],
    note: Callable[[], str] = str,
) -> Row:
    """The row of what `rounds` measured. A target with faults has no values: they would be of something else."""
    each = {name: faults_of(visits) for name, visits in rounds.items()}
    faults = Counter({f"{fault} ({name})": n for name, found in each.items() for fault, n in found.items()})
    if faults:
        return Row(goal, "", faults)
    try:
        got = values()
    except KeyError as missing:
        return Row(goal, f"not measured: no {missing.args[0]}", faults)
    except Unclear as why:
        return Row(goal, f"not measured: {why}{note()}", faults)
    verdict = f" · {goal.verdict(got)}" if goal.must else ""
    return Row(goal, f"{goal.told(got)}{note()}{verdict}", faults)


def table(rows: Sequence[Row], faults: Counter[str]) -> str:
    """Markdown. `faults` are those of the whole run, the rows' included."""
    wrong = told(faults) if faults else "0"
    return "\n".join(
        [
            "| what | must | goal | got |",
            "|---|---|---|---|",
            *[row.line for row in rows],
            f"| bytes changed, messages missing at the upstream, failed requests | 0 | 0 | {wrong} |",
        ]
    )


def told(faults: Counter[str]) -> str:
    return ", ".join([f"{n} {fault}" for fault, n in sorted(faults.items())])


def faults_of(visits: Iterable[Visit]) -> Counter[str]:
    return sum((visit.faults for visit in visits), Counter[str]())


def over(ours: list[Visit], theirs: list[Visit], value: Callable[[Visit], float]) -> float:
    """The median over rounds of the ratio in each."""
    return median([value(one) / value(other) for one, other in zip(ours, theirs, strict=True)])


def added(ours: list[Visit], theirs: list[Visit], value: Callable[[Visit], float]) -> float:
    """The median over rounds of the difference in each."""
    return median([value(one) - value(other) for one, other in zip(ours, theirs, strict=True)])


def _number(value: float) -> str:
    """Two or three digits that count."""
    if value >= 20 or value == int(value):
        return f"{value:.0f}"
    return f"{value:.{1 if value >= 2 else 2 if value >= 0.2 else 3}f}"
