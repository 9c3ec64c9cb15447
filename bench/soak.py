"""Does the proxy grow? Many turns, and the slopes of its memory, descriptors and threads.

The cache of warm sessions is made small, so that it is full before anything counts; what is known of deliveries has its
full number of sessions by then, too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from statistics import linear_regression

from bench.client import Kind
from bench.load import Load, Run
from bench.machine import Machine
from bench.table import told

CLIENTS = 16
SAMPLES = 100
WARM_UP = 0.55  # of the samples: 110,000 turns are 5,500 sessions
SETTINGS = {"limits": {"cache": "8MiB"}}
MOST = {"memory": 1024.0, "descriptors": 0.01, "threads": 0.01}  # per 1,000 turns; memory in bytes


def run(machine: Machine, turns: int) -> int:
    """Print the slopes; the exit status, 1 also where one is too steep."""
    proxy = machine.proxy(SETTINGS)
    measures: dict[str, Callable[[], float]] = {
        "memory": lambda: proxy.memory,
        "descriptors": lambda: proxy.descriptors,
        "threads": lambda: proxy.threads,
    }
    done: list[float] = []
    samples: dict[str, list[float]] = {name: [] for name in measures}
    faults: Counter[str] = Counter()
    with Load(proxy.port, Kind(session=True, life=20), CLIENTS) as load:
        for _ in range(SAMPLES):
            visit = load.run(Run(turns=max(1, turns // CLIENTS // SAMPLES)))
            faults += visit.faults
            done.append(visit.done + (done[-1] if done else 0))
            for name, measure in measures.items():
                samples[name].append(measure())
    return report(done, samples, faults)


def report(done: Sequence[float], samples: dict[str, list[float]], faults: Counter[str]) -> int:
    first = int(len(done) * WARM_UP)
    print(f"{done[-1]:,.0f} turns; slopes over the last {done[-1] - done[first]:,.0f}\n")
    print("| what | after warm-up | at the end | slope per 1,000 turns | at most |\n|---|---|---|---|---|")
    steep = False
    for name, values in samples.items():
        slope = 1000 * linear_regression(done[first:], values[first:]).slope
        steep = steep or slope > MOST[name]
        print(f"| {name} | {values[first]:,.0f} | {values[-1]:,.0f} | {slope:,.3f} | {MOST[name]:,} |")
    tenths = samples["memory"][len(done) // 10 - 1 :: len(done) // 10]
    print(f"\nMB of memory after each tenth of the run: {' '.join([f'{size / 1e6:.1f}' for size in tenths])}")
    print(f"failed: {told(faults)}" if faults else "no request failed, no answer changed", flush=True)
    return 1 if faults or steep else 0
