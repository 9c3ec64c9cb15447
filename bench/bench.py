"""The targets of a run, how they are visited, and all that went wrong with any of them.

Targets are visited in rounds, in an order that turns by one each time, so that a slow drift of the machine hits all
alike. Knows no scenario.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial

from bench.client import Client, Kind
from bench.load import FAILED, Load, Run, Visit
from bench.machine import Machine, Target, busy, get
from bench.table import told

Cast = Mapping[str, tuple[Target | None, Kind]]  # who is visited, and by which clients; None: is not installed
Rounds = dict[str, list[Visit]]

COUNTED = "messages too few or too many at the upstream"
ALTERED = "lists altered on their way to the upstream"
PROBE = 3  # turns, after which the list that the upstream got is compared message by message


@dataclass
class Bench:
    """`seconds`: of a visit, where the scenario has no other reason for its length."""

    machine: Machine
    proxy: Target
    nginx: Target | None
    rounds: int = 3
    seconds: float = 1.2
    faults: Counter[str] = field(default_factory=Counter)
    rates: list[float] = field(default_factory=list)  # requests/s of direct; how far they lie apart is the noise
    strangers: float = 0.0  # seconds of CPU that others used
    machine_time: float = 0.0  # seconds of CPU that there were

    @property
    def direct(self) -> Target:
        return self.machine.direct

    def in_rounds(self, cast: Cast, connections: int, run: Run, warm: Run | None = None, *, times: int = 1) -> Rounds:
        """Visit each of the cast once a round; `times` as many rounds for short visits."""
        visits = {
            name: partial(self.visit, target, kind, connections, run, warm)
            for name, (target, kind) in cast.items()
            if target
        }
        found: Rounds = {name: [] for name in visits}
        for n in range(times * self.rounds):
            names = deque(visits)
            names.rotate(-n)
            for name in names:
                found[name].append(visits[name]())
        return found

    def visit(self, target: Target, kind: Kind, connections: int, run: Run, warm: Run | None = None) -> Visit:
        """Load a target, after a `warm` run of the same clients that is not counted but for its faults."""
        stats = self.machine.stats()["messages"]
        try:
            with self._place(target), Load(target.port, kind, connections) as load:
                warmed = load.run(warm) if warm else Visit()
                visit = self._measured(target, lambda: load.run(run))
        except OSError:  # it does not even listen
            warmed, visit = Visit(), Visit(faults=Counter({FAILED: 1}))
        visit.faults += warmed.faults
        off = self.machine.stats()["messages"] - stats - visit.messages - warmed.messages
        if off and not visit.faults:
            visit.faults[COUNTED] += abs(off)
        if kind.pace is None and not visit.faults:
            visit.faults += self._probe(target, kind)
        self.faults += visit.faults
        if visit.faults:
            example = visit.example.decode(errors="replace")
            print(f"{target.name}: {told(visit.faults)}. {example}", file=sys.stderr, flush=True)
        return visit

    def _place(self, target: Target) -> AbstractContextManager[None]:
        """Where the load runs."""
        return self.machine.second_core() if target.apart else nullcontext()

    def _measured(self, target: Target, load: Callable[[], Visit]) -> Visit:
        """A visit with the target's CPU; what nobody here used was used by strangers."""
        ours = (target, self.machine.upstream, Target("load", 0, os.getpid()))
        begun, before, all_before = time.perf_counter(), [one.cpu for one in ours], busy()
        visit = load()
        spent = [one.cpu - was for one, was in zip(ours, before, strict=True)]
        self.strangers += busy() - all_before - sum(spent)
        self.machine_time += (time.perf_counter() - begun) * (os.cpu_count() or 1)
        visit.cpu = spent[0]
        return visit

    @property
    def noise(self) -> str:
        known = [f"direct made {min(self.rates):,.0f} to {max(self.rates):,.0f} requests/s"] if self.rates else []
        if self.machine_time > 1:  # /proc/stat counts in hundredths of a second
            known.append(f"others used {100 * max(0.0, self.strangers) / self.machine_time:.0f} % of the machine")
        return f"Noise: {'; '.join(known) or 'not measured'}."

    def _probe(self, target: Target, kind: Kind) -> Counter[str]:
        """Does the upstream get each message as it was said? A twin of the client sends the whole list itself."""
        client = Client(replace(kind, life=0))
        twin = Client(replace(kind, life=0, session=False, resend=kind.session or kind.resend), client.session)
        turns = [twin.next() for _ in range(PROBE)]
        try:
            with Load(target.port, kind, clients=[client]) as load:
                faults = load.run(Run(turns=PROBE)).faults
        except OSError:
            return Counter({FAILED: 1})
        right = turns[-1].request.partition(b"\r\n\r\n")[2]
        got = get(self.machine.upstream.port, "/__last")[1]
        same = got == right or (kind.session and _messages(got) == _messages(right))
        return faults if same or faults else Counter({ALTERED: 1})


def _messages(body: bytes) -> object:
    """The messages of a request's body; the body where it has none."""
    try:
        return json.loads(body)["messages"]
    except (ValueError, KeyError, TypeError):
        return body
