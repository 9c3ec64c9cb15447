"""Two builds compared: the arithmetic of the intervals, what the table says of them, and runs of real processes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from math import comb, inf
from pathlib import Path
from statistics import median

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.__main__ import parsed
from bench.against import AGAIN, BASE, TREE, Pair, beyond, compare, order, report
from bench.bench import Bench
from bench.build import built, named
from bench.figures import ROWS, Seen
from bench.interval import Interval, of_median, rank, spread
from bench.load import Visit
from bench.machine import ROOT, CannotStart, Machine, Target
from tests.bench.test_bench import Spoil, proxy

VALUES = st.lists(st.integers(512, 2048).map(lambda n: n / 1024), min_size=1, max_size=60)  # no rounding
PICTURE = re.compile(r"\| CPU of a recorded turn \| [\d.]+ us \| [\d.]+ us \| [\d.]+ \(too few for an interval\) \|")
in_git = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a checkout: there is no revision to build")


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    with Machine(pin=False) as machine:
        yield machine


# The interval ------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "place"), [(1, 0), (5, 0), (6, 1), (8, 1), (9, 2), (20, 6), (40, 14), (100, 40)])
def test_the_interval_ends_where_the_tables_say(count: int, place: int) -> None:
    assert rank(count) == place


@given(st.integers(1, 400))
def test_the_interval_holds_the_median_in_95_of_100_runs_and_no_narrower_one_does(count: int) -> None:
    def outside(place: int) -> float:
        """The chance that the true median lies outside of the values at this rank from either end."""
        return sum([comb(count, heads) for heads in range(place)]) / float(2 ** (count - 1))

    assert outside(rank(count)) <= 0.05 < outside(rank(count) + 1)


@given(VALUES)
def test_an_interval_is_about_the_median_whatever_the_order(values: list[float]) -> None:
    found = of_median(values)
    assert found == of_median(sorted(values, reverse=True))
    assert found.middle == median(values)
    assert found.low <= found.middle <= found.high
    assert (found.low == -inf) == (found.high == inf) == (len(values) < 6)
    low, high = spread(values)
    assert min(values) <= low <= high <= max(values)


def test_an_interval_of_forty() -> None:
    values = [1 + n / 1000 for n in range(1, 41)]
    assert str(of_median(values)) == "1.020 (1.014 to 1.027)"
    assert of_median([*values[:-1], 90.0]) == of_median(values)  # one wild pair
    assert str(of_median(values[:5])) == "1.003 (too few for an interval)"


def test_nine_tenths_of_single_values() -> None:
    assert spread([1 + n / 100 for n in range(21)]) == pytest.approx((1.01, 1.19))
    assert spread([1.5]) == (1.5, 1.5)


# The order ---------------------------------------------------------------------------------


@given(st.integers(0, 100))
def test_each_build_comes_before_each_other_one_as_often_as_behind_it(start: int) -> None:
    six = [order("abc", start * 2 + n) for n in range(6)]
    assert len({*map(tuple, six)}) == 6
    assert all(one[::-1] == other for one, other in zip(six[::2], six[1::2], strict=True))


# What is said ------------------------------------------------------------------------------


def found(tree: Sequence[float], again: Sequence[float], seconds: float = 1.0) -> list[Pair]:
    """Pairs in which the builds took so much more than the revision."""

    def seen(ratio: float) -> Seen:
        visit = Visit(done=1000, cpu=ratio * seconds, latencies=[ratio + 0.5])
        return Seen(visit, Visit(latencies=[0.5]))

    builds = [{BASE: seen(1.0), TREE: seen(one), AGAIN: seen(other)} for one, other in zip(tree, again, strict=True)]
    return [{"turn": one, "turn alone": one} for one in builds]


EVEN = [1 + n / 1000 for n in range(-20, 21)]
SLOWER = [one + 0.035 for one in EVEN]


@pytest.mark.parametrize(
    ("tree", "again", "slower", "said"),
    [
        (EVEN, EVEN, [], "above 1.02: none."),
        (SLOWER, EVEN, [ROWS["turn"].what], "above 1.02: CPU of a recorded turn."),
        ([one + 0.022 for one in EVEN], EVEN, [], "above 1.02: none."),  # by its middle, but not for certain
        ([one + 0.022 for one in EVEN], EVEN, [], "has 1.02 in it, take more pairs: CPU of a recorded turn."),
        (SLOWER[:5], EVEN[:5], [], "Too few pairs to tell anything."),
        (EVEN, SLOWER, [], "Run again: the revision differs from itself by more than that in: CPU of a recorded turn"),
    ],
)
def test_a_row_is_slower_where_its_whole_interval_is(
    capsys: pytest.CaptureFixture[str], tree: Sequence[float], again: Sequence[float], slower: list[str], said: str
) -> None:
    assert report(found(tree, again), [ROWS["turn"]], 1.02) == slower
    assert said in capsys.readouterr().out


def test_a_run_that_tells_is_not_called_open(capsys: pytest.CaptureFixture[str]) -> None:
    report(found(EVEN, EVEN), [ROWS["turn"]], 1.02)
    report(found(SLOWER, EVEN), [ROWS["turn"]], 1.02)
    said = capsys.readouterr().out
    assert "more pairs" not in said
    assert "Run again" not in said


def test_a_line_of_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    report(found(SLOWER, EVEN), [ROWS["turn"]], 1.02)
    line = "| CPU of a recorded turn | 1000.0 us | 1035.0 us | 1.035 (1.032 to 1.038) | 1.000 (0.993 to 1.007) | "
    assert capsys.readouterr().out.splitlines()[2].startswith(line)


@pytest.mark.parametrize(("more", "said"), [(0.015, "none"), (0.05, ROWS["turn-added"].what)])
def test_time_added_is_held_against_the_noise_of_single_pairs(
    capsys: pytest.CaptureFixture[str], more: float, said: str
) -> None:
    assert report(found([one + more for one in EVEN], EVEN), [ROWS["turn-added"]], 1.02) == []
    assert f"outside of the noise of single pairs: {said}." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("low", "high", "unfit"), [(0.97, 1.03, False), (1.021, 1.03, True), (0.9, 0.97, True), (-inf, inf, False)]
)
def test_noise_that_is_no_noise(low: float, high: float, unfit: bool) -> None:
    assert beyond(Interval(low, 1, high), 1.02) == unfit


# Runs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [BASE, TREE])
def test_a_wrong_answer_leaves_no_figure(machine: Machine, capsys: pytest.CaptureFixture[str], bad: str) -> None:
    with proxy(machine.direct.port, Spoil(answer=lambda data: data.replace(b"ipsum", b"IPSUM"))) as spoilt:

        def start(name: str) -> AbstractContextManager[Target]:
            return nullcontext(spoilt if name == bad else machine.direct)

        starts = {name: partial(start, name) for name in (BASE, AGAIN, TREE)}
        status = compare(Bench(machine, machine.direct, None), starts, 2, [ROWS["pass"]], enough=0)
    said = capsys.readouterr().out
    assert status == 1
    assert re.fullmatch(r"failed, and so no figures: \d+ answers changed\n", said)


def test_the_same_build_three_times(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    starts = {name: partial(machine.passing, name=name) for name in (BASE, AGAIN, TREE)}
    rows = [ROWS["turn"], ROWS["turn-added"]]
    assert compare(Bench(machine, machine.direct, None), starts, 2, rows, enough=0) == 0
    said = capsys.readouterr().out
    assert PICTURE.search(said)
    assert "Medians over 2 pairs" in said
    assert not [one for one in machine.folder.iterdir() if one.name.startswith((BASE, TREE))]  # databases are gone


@pytest.mark.parametrize(("bar", "status"), [(None, 0), (1e-9, 1), (1e9, 0)])
def test_a_bar_that_was_asked_for_decides_the_status(machine: Machine, bar: float | None, status: int) -> None:
    """The upstream stands for all three builds: it has a process, and passes its own answers through."""

    def start() -> AbstractContextManager[Target]:
        return nullcontext(machine.upstream)

    starts = dict.fromkeys((BASE, AGAIN, TREE), start)
    assert compare(Bench(machine, machine.direct, None), starts, 6, [ROWS["pass"]], bar, enough=0) == status


@in_git
def test_a_revision_is_built_apart(tmp_path: Path) -> None:
    """Its own modules run, not those of the checkout; libraries have the versions of this environment."""
    binary = built(tmp_path, named("HEAD"))
    ask = "import proxy, aiohttp; print(proxy.__file__, aiohttp.__version__)"
    command = [str(binary.with_name("python")), "-c", ask]
    file, version = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.split()
    assert (Path(file).is_relative_to(tmp_path), version) == (True, aiohttp.__version__)
    with Machine(pin=False) as machine, machine.passing(binary) as target:
        assert str(tmp_path) in Path(f"/proc/{target.pid}/cmdline").read_text()


@in_git
def test_an_unknown_revision_is_told() -> None:
    with pytest.raises(CannotStart, match=r"git .*rev-parse"):
        named("no-such-revision")


@in_git
@pytest.mark.soak
@pytest.mark.skipif(not os.environ.get("SOAK"), reason="half a minute: SOAK=1")
def test_the_working_tree_against_its_own_commit(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench", "--against", "HEAD", "--pairs", "2", "--only", "turn,pass"]
    environ = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert PICTURE.search(done.stdout)
    assert "| CPU of a pass-through |" in done.stdout
    assert "recorded event" not in done.stdout
    assert list(tmp_path.iterdir()) == []


# The command line --------------------------------------------------------------------------


def test_what_is_asked_for() -> None:
    asked = parsed(["--against", "HEAD"])
    assert (asked.pairs, asked.only, asked.bar) == (40, list(ROWS), None)
    asked = parsed(["--against", "HEAD", "--pairs", "3", "--only", "turn,event", "--bar"])
    assert (asked.pairs, asked.only, asked.bar) == (3, ["turn", "event"], 1.02)
    assert parsed(["--only", "unary"]).only == ["unary"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--against", "HEAD", "--only", "unary"], "unknown: unary; there are turn, pass, event"),
        (["--only", "turn"], "unknown: turn; there are unary, history"),
        (["--against", "HEAD", "--pairs", "0"], "--pairs: at least 1"),
        (["--pairs", "3"], "--pairs and --bar go with --against"),
        (["--bar"], "--pairs and --bar go with --against"),
    ],
)
def test_what_cannot_be_asked_for(capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    with pytest.raises(SystemExit) as ended:
        parsed(arguments)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
