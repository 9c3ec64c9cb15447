"""What two builds are compared by: the loads, and the figure that each row takes from one.

A new row is a line in ROWS; a new load is one in SCENARIOS. Knows no sockets, no processes and no clock.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median

from bench import wire
from bench.client import Kind
from bench.load import Visit

CPU, LATENCY, MEMORY = "cpu", "latency", "memory"
PACE = 5_000  # us between two events
QUICK = 2_000
US, MB = 1e6, 1e-6


@dataclass(frozen=True)
class Scenario:
    """A load. `turns` of each client at the least: a multiple of a session's life, so that every visit has the same
    requests. `direct`: how a client gets the same answers where there is no proxy in between."""

    kind: Kind
    connections: int
    turns: int
    spread: float = 0.0
    warm: int = 0  # turns before it
    direct: Kind | None = None


@dataclass(frozen=True)
class Seen:
    """A visit of a build, the same load without a proxy in the same pair, and the build's memory right after it."""

    visit: Visit
    direct: Visit = field(default_factory=Visit)
    memory: float = 0.0


@dataclass(frozen=True)
class Row:
    """A line of the comparison. `of`: its figure in `unit`; the lower, the better."""

    what: str
    scenario: str
    kind: str
    unit: str
    of: Callable[[Seen], float]


def per_request(seen: Seen) -> float:
    return US * seen.visit.cpu / seen.visit.done


def per_event(seen: Seen) -> float:
    return US * seen.visit.cpu / seen.visit.events


def answer_added(seen: Seen) -> float:
    return US * (median(seen.visit.latencies) - median(seen.direct.latencies))


def first_added(seen: Seen) -> float:
    return US * (median(seen.visit.firsts) - median(seen.direct.firsts))


def memory(seen: Seen) -> float:
    return MB * seen.memory


def stream(pace: int) -> float:
    """Seconds of a whole one."""
    return pace * (wire.DELTAS + 1) / US


PLAIN, RECORDED = Kind(), Kind(session=True, life=20)
SCENARIOS = {
    "turn": Scenario(RECORDED, 16, turns=20, warm=20),
    "pass": Scenario(PLAIN, 16, turns=50, warm=50),
    "event": Scenario(Kind(session=True, life=20, pace=PACE), 100, turns=2, spread=stream(PACE)),
    "resend": Scenario(Kind(session=True, resend=True, before=98, life=20), 8, turns=20, warm=20),
    "turn alone": Scenario(RECORDED, 1, turns=160, warm=20, direct=Kind(resend=True, life=20)),
    "pass alone": Scenario(PLAIN, 1, turns=400, warm=50, direct=PLAIN),
    "first": Scenario(
        Kind(session=True, life=20, pace=QUICK), 8, turns=3, spread=stream(QUICK), direct=Kind(pace=QUICK)
    ),
}
ROWS = {
    "turn": Row("CPU of a recorded turn", "turn", CPU, "us", per_request),
    "pass": Row("CPU of a pass-through", "pass", CPU, "us", per_request),
    "event": Row("CPU of a recorded event", "event", CPU, "us", per_event),
    "resend": Row("CPU of a recorded turn whose client resends 100 to 140 messages", "resend", CPU, "us", per_request),
    "turn-added": Row("time added to a recorded turn, 1 connection", "turn alone", LATENCY, "us", answer_added),
    "pass-added": Row("time added to a pass-through, 1 connection", "pass alone", LATENCY, "us", answer_added),
    "first-added": Row("time added to the first recorded event, 8 streams", "first", LATENCY, "us", first_added),
    "memory": Row("resident memory after recorded streams, 100 at a time", "event", MEMORY, "MB", memory),
}
