"""The scenarios of the benchmark: who is loaded how, and the rows that come of it.

Figures are medians over rounds; what is a ratio or a difference is taken within a round.
"""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from statistics import median

from bench import wire
from bench.bench import Bench, Cast, Rounds
from bench.client import Client, Kind
from bench.load import FAILED, Run, Visit
from bench.table import GOALS, Row, Unclear, added, over, row

PLAIN = Kind()
RECORDED = Kind(session=True, life=20)  # 20 messages a request, as they come, on the average
PACE = 10_000  # us between two events
STREAM = PACE * (wire.DELTAS + 1) / 1e6  # seconds of a whole one
LENGTHS = {1: (10, 3), 500: (1, 30), 5_000: (1, 30)}  # messages: sessions in a visit, turns timed in each
HELD = 200  # streams
FOREVER = 3_600_000_000  # us
STARTS = 7


def unary(bench: Bench) -> list[Row]:
    """Requests and turns as fast as they go, 16 at a time."""
    cast: Cast = {
        "direct": (bench.direct, PLAIN),
        "nginx": (bench.nginx, PLAIN),
        "pass-through": (bench.proxy, PLAIN),
        "recorded": (bench.proxy, RECORDED),
    }
    found = bench.in_rounds(cast, 16, Run(seconds=bench.seconds), warm=Run(seconds=bench.seconds / 5))
    bench.rates += [per_second(visit) for visit in found["direct"]]
    return [
        rate_row("pass", found, "pass-through"),
        rate_row("turn", found, "recorded"),
        row(
            GOALS["cpu"],
            only(found, "recorded", "pass-through"),
            lambda: [1000 * median(map(per_request, found[name])) for name in ("recorded", "pass-through")],
        ),
    ]


def rate_row(goal: str, found: Rounds, name: str) -> Row:
    """How much comes out per second, over nginx: the lower one of what the clock says and what the CPU says. The first
    flatters us where the load is not fast enough to keep nginx busy, the second where we wait for the disk."""

    def ratios() -> tuple[float, float]:
        return over(found[name], found["nginx"], per_second), over(found[name], found["nginx"], per_cpu)

    return row(
        GOALS[goal],
        only(found, name, "nginx"),
        lambda: [min(ratios())],
        lambda: " ({:.2f} by the clock, {:.2f} by CPU)".format(*ratios()),
    )


def history(bench: Bench) -> list[Row]:
    """One client; what a turn takes longer than when the client sends the same list, straight to the upstream."""
    found: Rounds = {}
    for messages, (sessions, turns) in LENGTHS.items():
        life = turns + 1
        ours = Kind(session=True, before=max(0, messages - 2), life=life)
        theirs = Kind(resend=True, before=ours.before, life=life)
        cast: Cast = {f"client at {messages}": (bench.direct, theirs), f"recorded at {messages}": (bench.proxy, ours)}
        found |= bench.in_rounds(cast, 1, Run(turns=sessions * life), times=3)

    def cost(messages: int) -> float:
        """ms; the first turn of a session, which brings the messages along, is not timed."""
        life = LENGTHS[messages][1] + 1

        def timed(visit: Visit) -> float:
            return median([seconds for n, seconds in enumerate(visit.latencies) if n % life])

        return 1000 * added(found[f"recorded at {messages}"], found[f"client at {messages}"], timed)

    return [
        row(GOALS["history"], found, lambda: [cost(messages) for messages in LENGTHS]),
        row(GOALS["length"], found, lambda: [cost(5_000) / cost(1)]),
    ]


def events(bench: Bench) -> list[Row]:
    """200 streams, an event each 10 ms. Beside nothing in between, where load and upstream have a core each: on one
    they get in each other's way more than nginx does."""
    cast: Cast = {**streaming(bench), "direct": (replace(bench.direct, apart=True), Kind(pace=PACE))}
    found = bench.in_rounds(cast, 200, Run(seconds=bench.seconds, spread=STREAM))
    names = ("recorded", "pass-through")

    def delays() -> list[float]:
        direct = [delay(visit) for visit in found["direct"]]
        floor = added(found["nginx"], found["direct"], delay)
        if floor <= max(direct) - min(direct):
            raise Unclear("what nginx adds lies within the noise")
        return [added(found[name], found["direct"], delay) / floor for name in names]

    def told() -> str:
        return ", ".join([f"{name} {1000 * median(map(delay, found[name])):.2f}" for name in found])

    return [
        row(GOALS["events"], found, delays, lambda: f" ({told()} ms)"),
        row(
            GOALS["event-cpu"],
            only(found, *names, "nginx"),
            lambda: [over(found[name], found["nginx"], per_event) for name in names],
            lambda: f" (nginx {1e6 * median(map(per_event, found['nginx'])):.0f} us)",
        ),
    ]


def first(bench: Bench) -> list[Row]:
    """16 streams: from the request to the first event."""
    found = bench.in_rounds(streaming(bench), 16, Run(seconds=bench.seconds, spread=STREAM))

    def late(name: str) -> float:
        """ms added."""
        return 1000 * added(found[name], found["direct"], lambda visit: median(visit.firsts))

    return [row(GOALS["first"], found, lambda: [late(name) for name in ("recorded", "pass-through")])]


def streaming(bench: Bench) -> Cast:
    plain, recorded = Kind(pace=PACE), Kind(session=True, life=20, pace=PACE)
    return {
        "direct": (bench.direct, plain),
        "nginx": (bench.nginx, plain),
        "pass-through": (bench.proxy, plain),
        "recorded": (bench.proxy, recorded),
    }


def resend(bench: Bench) -> list[Row]:
    """Clients that carry 400 to 600 messages themselves, with a session ID and without. Nothing goes to a disk, as the
    commit is a price of its own."""
    proxy = bench.machine.proxy({"store": {"path": "memory:"}}, name="proxy without a disk")
    without, recorded = Kind(resend=True, before=398), Kind(resend=True, before=398, session=True)
    cast: Cast = {"pass-through": (proxy, without), "recorded": (proxy, recorded)}
    found = bench.in_rounds(cast, 4, Run(turns=100), warm=Run(turns=1))
    bench.machine.stop(proxy)

    def note() -> str:
        return f" ({1000 * median(map(per_request, found['pass-through'])):.2f} ms)"

    return [row(GOALS["resend"], found, lambda: [over(found["recorded"], found["pass-through"], per_request)], note)]


def tls(bench: Bench) -> list[Row]:
    """What every hosted upstream asks for besides: the same turns, requests and streams with an upstream behind TLS."""
    secured = bench.machine.behind_tls()
    if not secured:
        return [Row(GOALS["tls"], "not measured: no nginx, or no openssl", Counter())]
    cast: Cast = {
        "recorded": (bench.proxy, RECORDED),
        "pass-through": (bench.proxy, PLAIN),
        "recorded over TLS": (secured, RECORDED),
        "pass-through over TLS": (secured, PLAIN),
    }
    found = bench.in_rounds(cast, 16, Run(seconds=bench.seconds), warm=Run(seconds=bench.seconds / 5))
    paced: Cast = {name: (target, replace(kind, pace=PACE)) for name, (target, kind) in cast.items()}
    streams = bench.in_rounds({name: paced[name] for name in paced if "pass" in name}, 100, Run(turns=1, spread=STREAM))
    bench.machine.stop(secured)

    def turns(*names: str) -> list[float]:
        return [1000 * median(map(per_request, found[name])) for name in names]

    def event(name: str) -> float:
        return 1e6 * median(map(per_event, streams[name]))

    def note() -> str:
        recorded, passed = turns("recorded", "pass-through")
        return f" (without: {recorded:.2f} / {passed:.3f} ms / {event('pass-through'):.0f} us)"

    def values() -> list[float]:
        return [*turns("recorded over TLS", "pass-through over TLS"), event("pass-through over TLS")]

    return [row(GOALS["tls"], found | {f"streams, {name}": visits for name, visits in streams.items()}, values, note)]


def start(bench: Bench) -> list[Row]:
    """How long the proxy takes to be ready, what it needs when idle, and for each of 200 streams that it holds."""
    times, sizes = [], []
    for _ in range(STARTS + 1):
        begun = time.perf_counter()
        proxy = bench.machine.proxy(state="start")
        times.append(time.perf_counter() - begun)
        sizes.append(proxy.memory)
        bench.machine.stop(proxy)
    held, faults = hold(bench)
    return [
        row(GOALS["memory"], {"recorded": [faults]}, lambda: [median(sizes[1:]) / 1e6, held / 1e3]),
        row(GOALS["start"], {}, lambda: [median(times[1:])]),  # the first one reads from a cold disk
    ]


def hold(bench: Bench) -> tuple[float, Visit]:
    """Bytes of memory for each recorded stream that is open and silent, and what went wrong."""
    proxy = bench.machine.proxy(name="proxy that holds")
    visit = Visit()
    bench.visit(proxy, RECORDED, 1, Run(turns=1))
    before = proxy.memory
    sockets = [socket.create_connection(("127.0.0.1", proxy.port), timeout=20) for _ in range(HELD)]
    for sock in sockets:
        sock.sendall(Client(Kind(session=True, pace=FOREVER)).next().request)
    for sock in sockets:
        if not begins(sock.recv):
            visit.faults[FAILED] += 1
    held = (proxy.memory - before) / HELD
    for sock in sockets:
        sock.close()
    bench.machine.stop(proxy)
    bench.faults += visit.faults
    return held, visit


def begins(receive: Callable[[int], bytes]) -> bool:
    """Whether the first delta of a stream comes."""
    data = b""
    while not wire.STAMP.search(data):
        if not (more := receive(65536)):
            return False
        data += more
    return True


def only(found: Rounds, *names: str) -> Rounds:
    return {name: visits for name, visits in found.items() if name in names}


def per_second(visit: Visit) -> float:
    return visit.done / visit.seconds


def per_cpu(visit: Visit) -> float:
    return visit.done / visit.cpu


def delay(visit: Visit) -> float:
    return median(visit.delays)


def per_event(visit: Visit) -> float:
    return visit.cpu / visit.events


def per_request(visit: Visit) -> float:
    return visit.cpu / visit.done


SCENARIOS: dict[str, Callable[[Bench], list[Row]]] = {
    "unary": unary,
    "history": history,
    "events": events,
    "first": first,
    "resend": resend,
    "tls": tls,
    "start": start,
}
