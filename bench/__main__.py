"""`make bench`: the proxy beside nginx and beside nothing, in one run, as a table.

    python -m bench [--only SCENARIO,...]     the table; LONG=1 for more and longer rounds
    python -m bench --against REV [--pairs N] [--only ROW,...] [--bar [RATIO]]
                                                    the working tree beside a revision, in pairs
    python -m bench --growth                  a database with a million messages against an empty one
    python -m bench --soak [TURNS]            memory and descriptors over many turns
    python -m bench --long [TURNS]            a conversation longer than a real model's context

Prints figures and asserts nothing about time. Exit status 1: a target failed, lost messages or changed bytes; or a soak
found a slope; or a build is slower than a bar that was asked for.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Iterable

from bench import against, figures, growth, long, setting, soak, table
from bench.bench import Bench
from bench.machine import CannotStart, Machine
from bench.scenarios import SCENARIOS

LONG = os.environ.get("LONG", "") not in ("", "0")


def main(arguments: list[str]) -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # and so past the end of every process it started
    try:
        asked, command = parsed(arguments), " ".join(["python -m bench", *arguments])
        if asked.against:
            return against.run(asked.against, command, asked.pairs, asked.only, asked.bar)
        return benched(asked, command)
    except CannotStart as why:
        print(f"failed: {why}", file=sys.stderr)
        return 1


def benched(asked: argparse.Namespace, command: str) -> int:
    with Machine() as machine:
        print(setting.told(machine, f"LONG=1 {command}" if LONG else command), flush=True)
        if asked.growth:
            return growth.run(machine)
        if asked.soak:
            return soak.run(machine, asked.soak)
        if asked.long:
            return long.run(machine, asked.long)
        bench = Bench(machine, machine.proxy(), machine.nginx(), *((9, 3.0) if LONG else (3, 1.2)))
        return run(bench, [SCENARIOS[name] for name in asked.only])


def run(bench: Bench, scenarios: Iterable[Callable[[Bench], list[table.Row]]]) -> int:
    """Print the table of some scenarios; the exit status."""
    rows = []
    for scenario in scenarios:
        print(f"{scenario.__name__} ...", file=sys.stderr, flush=True)
        rows += scenario(bench)
    print(table.table(rows, bench.faults), flush=True)
    print(f"\n{bench.noise}", flush=True)
    return 1 if bench.faults else 0


def parsed(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description="The proxy's own benchmark.")
    parser.add_argument("--only", type=lambda text: text.split(","), metavar="NAME,...", help="scenarios, or rows")
    parser.add_argument("--against", metavar="REV", help="the working tree beside the build of a git revision")
    parser.add_argument("--pairs", type=int, help=f"with --against; {against.PAIRS} by default")
    parser.add_argument(
        "--bar",
        type=float,
        nargs="?",
        const=against.BAR,
        metavar="RATIO",
        help=f"with --against: fail where a CPU row's interval lies wholly above it; {against.BAR} unless given",
    )
    parser.add_argument("--growth", action="store_true", help="a million messages in 20,000 sessions against none")
    parser.add_argument(
        "--soak", type=int, nargs="?", const=200_000, metavar="TURNS", help="turns; 200,000 unless given"
    )
    parser.add_argument("--long", type=int, nargs="?", const=long.TURNS, metavar="TURNS", help="turns; 300 by default")
    asked = parser.parse_args(arguments)
    known = list(figures.ROWS if asked.against else SCENARIOS)
    asked.only = asked.only or known
    if not asked.against and (asked.pairs is not None or asked.bar is not None):
        parser.error("--pairs and --bar go with --against")
    asked.pairs = against.PAIRS if asked.pairs is None else asked.pairs
    if unknown := [name for name in asked.only if name not in known]:
        parser.error(f"argument --only: unknown: {', '.join(unknown)}; there are {', '.join(known)}")
    if asked.pairs < 1:
        parser.error("argument --pairs: at least 1")
    return asked


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
