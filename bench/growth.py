"""Does a turn cost more when the database holds a million messages?

Built over HTTP, as clients would: 20,000 sessions, each begun with a list of 49 messages and answered once. Then the
proxy is started again, so that it remembers none of them, and is compared with one whose database is empty: in sessions
that are warm in both, and in cold ones that it must read first. What the operating system has cached stays cached.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from functools import reduce
from statistics import median

from bench.client import Client, Kind
from bench.load import Load, Run, Visit
from bench.machine import Machine, Target
from bench.table import Goal, Row, faults_of, over, row, table

SESSIONS = 20_000
HELD = 50  # messages of a session: those that its first request brings along, the question, the reply
KIND = Kind(session=True, before=HELD - 2, life=1)
CLIENTS = 100  # of a visit, each in a session of its own
ROUNDS = 5

WARM = Goal("a turn with a million messages stored, over one with an empty database: warm session", (1.2,), (1.2,))
COLD = Goal("the same: cold session", (3,), (3,))


def run(machine: Machine, sessions: int = SESSIONS, rounds: int = ROUNDS) -> int:
    """Print the rows; the exit status."""
    numbers, built = build(machine, sessions)
    empty, full = machine.proxy(name="empty"), machine.proxy(name="full", state="full")
    found: dict[str, list[Visit]] = {"empty": [], "warm": [], "cold": []}
    for n in range(rounds):
        found["empty"].append(warm(empty))
        found["warm"].append(warm(full))
        found["cold"].append(cold(full, numbers[n :: max(rounds, sessions // CLIENTS)][:CLIENTS]))
    rows = [compared(WARM, found, "warm"), compared(COLD, found, "cold")]
    faults = built.faults + sum((faults_of(visits) for visits in found.values()), Counter[str]())
    print(table(rows, faults))
    return 1 if faults else 0


def build(machine: Machine, sessions: int) -> tuple[range, Visit]:
    """The sessions' numbers, and how it went. The proxy that took them in is ended."""
    first = Client(KIND).session + 1
    proxy = machine.proxy(name="full", state="full")
    begun = time.perf_counter()
    with Load(proxy.port, KIND, 16) as load:
        visit = load.run(Run(turns=-(-sessions // 16)))
    print(f"{visit.messages + visit.done:,} messages in {visit.done:,} sessions", file=sys.stderr, end="")
    print(f" in {time.perf_counter() - begun:.0f} s", file=sys.stderr, flush=True)
    machine.stop(proxy)
    return range(first, first + visit.done), visit


def warm(target: Target) -> Visit:
    """Turns in sessions of as many messages that the target has in memory."""
    clients = [Client(Kind(session=True, before=HELD - 2)) for _ in range(CLIENTS)]
    one_by_one(target, clients)
    return one_by_one(target, clients)


def cold(target: Target, numbers: Sequence[int]) -> Visit:
    """Turns in sessions that nobody used since the target was started."""
    return one_by_one(target, [Client(Kind(session=True), number).continues(HELD, 1) for number in numbers])


def one_by_one(target: Target, clients: Sequence[Client]) -> Visit:
    """A turn of each client, never two at a time, on connections that are open before."""
    with ExitStack() as stack:
        loads = [stack.enter_context(Load(target.port, client.kind, clients=[client])) for client in clients]
        return reduce(Visit.plus, [load.run(Run(turns=1)) for load in loads])


def compared(goal: Goal, found: dict[str, list[Visit]], name: str) -> Row:
    both = {name: found[name], "empty": found["empty"]}

    def ms(of: str) -> float:
        return 1000 * median(map(latency, found[of]))

    return row(
        goal,
        both,
        lambda: [over(found[name], found["empty"], latency)],
        lambda: f" ({ms(name):.2f} against {ms('empty'):.2f} ms)",
    )


def latency(visit: Visit) -> float:
    return median(visit.latencies)
