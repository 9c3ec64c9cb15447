"""Is the working tree slower than a revision? Both builds are visited in the same minutes, in pairs.

A pair starts the revision twice and the working tree once, each as a process of its own on an empty database, and gives
all three the same loads, there and back: A B C, C B A. A ratio is taken within a pair; what the revision shows against
itself is the noise.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from functools import partial
from itertools import permutations
from math import ceil
from pathlib import Path
from statistics import mean, median

from bench import setting
from bench.bench import Bench
from bench.build import built, named, tree_named
from bench.figures import CPU, ROWS, SCENARIOS, Row, Scenario, Seen
from bench.interval import Interval, of_median, rank, spread
from bench.load import Run, Visit
from bench.machine import Machine, Target
from bench.table import told

PAIRS = 40
BAR = 1.02
ENOUGH = 0.3  # seconds of CPU in each of the two visits that a CPU row is taken from
BASE, AGAIN, TREE = "revision", "revision again", "working tree"
LEGEND = (
    "Medians over {pairs} pairs. Ratios are taken within a pair; in brackets the 95 % interval of their median (order "
    "statistics). Revision is the mean of its two processes; revision / revision is one over the other: the noise. "
    "Of single pairs: where the middle nine tenths of those ratios lie."
)

Start = Callable[[], AbstractContextManager[Target]]
Pair = dict[str, dict[str, Seen]]  # by scenario and build


def run(revision: str, command: str, pairs: int, names: Sequence[str], bar: float | None) -> int:
    """Build both, compare, print; the exit status: 1 for a wrong answer, or for a CPU row above a bar if asked for."""
    commit, tree = named(revision), tree_named()
    with tempfile.TemporaryDirectory(prefix="bench-builds-") as folder:
        print("building ...", file=sys.stderr, flush=True)
        base, ours = built(Path(folder, "revision"), commit), built(Path(folder, "tree"), None)
        with Machine() as machine:
            print(setting.told(machine, command))
            print(f"Revision: {commit}. Working tree: {tree}.\n", flush=True)
            binaries = {BASE: base, AGAIN: base, TREE: ours}
            starts = {name: partial(machine.passing, binary, name) for name, binary in binaries.items()}
            return compare(Bench(machine, machine.direct, None), starts, pairs, [ROWS[name] for name in names], bar)


def compare(
    bench: Bench,
    starts: Mapping[str, Start],
    pairs: int,
    rows: Sequence[Row],
    bar: float | None = None,
    enough: float = ENOUGH,
) -> int:
    times = lengths(bench, starts[BASE], rows, enough)
    found: list[Pair] = []
    while len(found) < pairs and not bench.faults:
        print(f"\rpair {len(found) + 1} of {pairs} ...", end="", file=sys.stderr, flush=True)
        found.append(pair(bench, starts, times, len(found)))
    print(file=sys.stderr)
    if bench.faults:
        print(f"failed, and so no figures: {told(bench.faults)}", flush=True)
        return 1
    slower = report(found, rows, bar or BAR)
    print(f"\n{bench.noise}", flush=True)
    return 1 if bar and slower else 0


def lengths(bench: Bench, base: Start, rows: Sequence[Row], enough: float) -> dict[str, int]:
    """How many times the turns of each scenario a visit has, so that its CPU is worth dividing: the same for all."""
    times = {row.scenario: 1 for row in rows}
    with base() as target:
        for name in dict.fromkeys(row.scenario for row in rows if row.kind == CPU):
            cpu = visited(bench, target, SCENARIOS[name]).cpu
            times[name] = max(1, ceil(enough / cpu)) if cpu else 1
    return times


def pair(bench: Bench, starts: Mapping[str, Start], times: Mapping[str, int], number: int) -> Pair:
    """Start each build, and visit them one after the other, and back again, with each load."""
    names = order(list(starts), number)
    found: Pair = {}
    with ExitStack() as stack:
        targets = {name: stack.enter_context(starts[name]()) for name in names}
        for scenario, count in times.items():
            load = SCENARIOS[scenario]
            direct = visited(bench, bench.direct, replace(load, kind=load.direct), count) if load.direct else Visit()
            there = {name: visited(bench, targets[name], load, count) for name in names}
            back = {name: visited(bench, targets[name], replace(load, warm=0), count) for name in names[::-1]}
            found[scenario] = {
                name: Seen(there[name].plus(back[name]), direct, target.memory if target.pid else 0.0)
                for name, target in targets.items()
            }
    return found


def visited(bench: Bench, target: Target, load: Scenario, times: int = 1) -> Visit:
    run = Run(turns=times * load.turns, spread=load.spread)
    return bench.visit(target, load.kind, load.connections, run, Run(turns=load.warm) if load.warm else None)


def order(names: Sequence[str], number: int) -> Sequence[str]:
    """Who comes when in a pair: each order in turn, and behind each one its mirror image."""
    half = [one for one in permutations(names) if one <= one[::-1]]
    one = half[number // 2 % len(half)]
    return one[::-1] if number % 2 else one


def report(found: Sequence[Pair], rows: Sequence[Row], bar: float) -> list[str]:
    """Print the table, and what follows from it; the CPU rows that are slower for certain."""
    print("| what | revision | working tree | working tree / revision | revision / revision | of single pairs |")
    print("|---|---|---|---|---|---|")
    slower, unsure, unfit, outside = [], [], [], []
    for row in rows:
        values = {name: [row.of(one[row.scenario][name]) for one in found] for name in (BASE, AGAIN, TREE)}
        both = [mean(one) for one in zip(values[BASE], values[AGAIN], strict=True)]
        ours, noise = ratios(values[TREE], both), ratios(values[AGAIN], values[BASE])
        low, high = spread(noise)
        middles = [f"{median(of):.1f} {row.unit}" for of in (both, values[TREE])]
        cells = [row.what, *middles, str(of_median(ours)), str(of_median(noise)), f"{low:.3f} to {high:.3f}"]
        print(f"| {' | '.join(cells)} |")
        if row.kind == CPU:
            slower += [row.what] * (of_median(ours).low > bar)
            unsure += [row.what] * (of_median(ours).low <= bar < of_median(ours).high)
            unfit += [row.what] * beyond(of_median(noise), bar)
        else:
            outside += [row.what] * (not low <= median(ours) <= high)
    print(f"\n{LEGEND.format(pairs=len(found))}\n")
    if not rank(len(found)):
        print("Too few pairs to tell anything.")
        return slower
    print(f"CPU rows whose interval lies wholly above {bar:g}: {'; '.join(slower) or 'none'}.")
    if unsure:
        print(f"CPU rows whose interval has {bar:g} in it, take more pairs: {'; '.join(unsure)}.")
    print(f"Other rows whose ratio lies outside of the noise of single pairs: {'; '.join(outside) or 'none'}.")
    if unfit:
        print(f"Run again: the revision differs from itself by more than that in: {'; '.join(unfit)}.")
    return slower


def beyond(noise: Interval, bar: float) -> bool:
    return noise.low > bar or noise.high < 1 / bar


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    return [one / other for one, other in zip(ours, theirs, strict=True)]
