"""Checks what each module's own tests reach of it, branch by branch. Run by `make coverage`.

A pure module is reached whole by its own test file and no other: `proxy/core/sse.py` by `tests/core/test_sse.py` (or
`test_sse_*.py`), so that its reader finds its proof in one place. A module of `stores` or `turns` is reached by the
tests of its folder, as far as it was when its bar was set. The tests of these folders run here and nowhere else in the
gate; which file's tests a line is reached by is what coverage calls a context.
"""

from __future__ import annotations

import importlib
import io
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from coverage import Coverage

ROOT = Path(__file__).resolve().parents[1]
PURE = ("core", "dialects")
# How a list is read is proven in one table and by the shapes of clients, whatever module says it.
READINGS = ("reconcile", "usual", "repeats", "starts", "side_requests", "planner", "retries")
TABLE = ("core/matching/test_reconcile*.py", "conversations/test_shapes_of_clients.py")
# What is run, and in how many processes; the longest first, because two run at a time.
JOBS = {"turns": ["turns"], "pure": [*PURE, "conversations/test_shapes_of_clients.py"], "stores": ["stores"]}
HALVED = ("turns",)

# Percent of lines and branches, as measured. It may rise and not sink; a module that is not listed begins with NEW.
NEW = 95.0
SLACK = 0.6  # what is reached in a race differs by a line or a branch between two runs
BARS = {
    "turns/admission": 97.4,
    "turns/attempts": 96.1,
    "turns/chat_request": 96.2,
    "turns/fit": 99.6,
    "turns/narrowing": 99.3,
    "turns/record": 100.0,
    "turns/summarize": 92.6,
    "turns/turn_task": 97.7,
    "stores/base": 100.0,
    "stores/cache": 100.0,
    "stores/memory": 97.5,
    "stores/rules": 100.0,
    "stores/secret": 100.0,
    "stores/sqlite/backup": 96.6,
    "stores/sqlite/files": 94.4,
    "stores/sqlite/inspection": 96.7,
    "stores/sqlite/lock": 100.0,
    "stores/sqlite/migration": 100.0,
    "stores/sqlite/remedy": 100.0,
    "stores/sqlite/rows": 100.0,
    "stores/sqlite/snapshot": 100.0,
    "stores/sqlite/sql": 100.0,
    "stores/sqlite/store": 99.2,
    "stores/sqlite/upgrade": 100.0,
    "stores/sqlite/write_queue": 96.5,
}


# In the process that runs the pure modules' tests: pytest -p tests.own_coverage


def pytest_sessionstart() -> None:
    """Reach what an import reaches before any test's context begins."""
    for file in pure_modules():
        importlib.import_module(".".join(file.relative_to(ROOT).with_suffix("").parts))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, Any, Any]:
    if isinstance(collector, pytest.Module):
        switch(collector.path)
    return (yield)


def pytest_runtest_logstart(location: tuple[str, int | None, str]) -> None:
    switch(ROOT / location[0])


def switch(file: Path) -> None:
    if measured := Coverage.current():
        measured.switch_context(file.relative_to(ROOT).as_posix())


# Around them


def pure_modules() -> Iterator[Path]:
    for folder in PURE:
        yield from sorted((ROOT / "proxy" / folder).rglob("[a-z]*.py"))


def own_tests(module: Path) -> list[str]:
    """The test files of a pure module, as contexts."""
    folder = module.parent.relative_to(ROOT / "proxy")
    own = (f"{folder}/test_{module.stem}.py", f"{folder}/test_{module.stem}_*.py")
    patterns = TABLE if module.stem in READINGS else own
    return [file.relative_to(ROOT).as_posix() for pattern in patterns for file in (ROOT / "tests").glob(pattern)]


def parts(job: str) -> list[list[str]]:
    """The tests of a job, as many lists as it has processes."""
    tests = [f"tests/{each}" for each in JOBS[job]]
    if job not in HALVED:
        return [tests]
    files = sorted([file.relative_to(ROOT).as_posix() for each in tests for file in (ROOT / each).rglob("test_*.py")])
    return [files[::2], files[1::2]]


def run(job: str, tests: list[str], data: Path) -> str | None:
    """Run tests of a job; what they said, where they failed."""
    folders = ["proxy/core", "proxy/dialects"] if job == "pure" else [f"proxy/{job}"]
    command = [sys.executable, "-m", "coverage", "run", "--branch", f"--source={','.join(folders)}", "-m", "pytest"]
    command += ["-q", "--durations=20", *(["-p", "tests.own_coverage"] if job == "pure" else [])]
    environ = {**os.environ, "COVERAGE_FILE": str(data)}
    start = time.monotonic()
    done = subprocess.run([*command, *tests], cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
    print(f"tests of {job}: {time.monotonic() - start:.0f} s\n{done.stdout[done.stdout.find('=====') :]}", flush=True)
    return None if done.returncode == 0 else f"the tests of {job} failed:\n{done.stdout}{done.stderr}"


def reached(measured: Coverage, module: Path, contexts: list[str] | None = None) -> tuple[float, str]:
    """How many percent of a module, and which lines are missing."""
    told = io.StringIO()
    share = measured.report(morfs=[str(module)], contexts=contexts, show_missing=True, file=told)
    return share, told.getvalue().splitlines()[2]


def problems_of(job: str, data: list[Path]) -> Iterator[str]:
    measured = Coverage(data_file=str(data[0].with_suffix(".all")), branch=True)
    measured.combine([str(file) for file in data])
    if job == "pure":
        for module in pure_modules():
            own = own_tests(module)
            share, told = reached(measured, module, ["^$", *[f"^{file}$" for file in own]])
            if share < 100:
                yield f"{told}: not covered by {', '.join(own) or 'a test file of its own'}"
        return
    for module in sorted((ROOT / "proxy" / job).rglob("[a-z]*.py")):
        name = module.relative_to(ROOT / "proxy").with_suffix("").as_posix()
        share, told = reached(measured, module)
        bar = BARS.get(name, NEW)
        print(f"{name}: {share:.1f} %, bar {bar} %")
        if share < bar - SLACK:
            yield f"{told}: below its bar of {bar} %"


def unlisted() -> Iterator[str]:
    """The gate leaves out what runs here, by a list of its own."""
    listed = re.findall(r"^COVERED := (.*)$", (ROOT / "Makefile").read_text(), re.M)[0].split()
    if sorted(listed) != sorted(test for tests in JOBS.values() for test in tests):
        yield "COVERED in the Makefile names other tests than JOBS: a test would run twice or not at all"


def main() -> int:
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(2) as pool:
        runs = [(job, part, Path(scratch, f"{job}-{n}")) for job in JOBS for n, part in enumerate(parts(job))]
        problems = [problem for problem in pool.map(lambda each: run(*each), runs) if problem]
        for job in JOBS if not problems else ():
            problems += problems_of(job, [data for name, _, data in runs if name == job])
        problems += unlisted()
    count = len(list(pure_modules()))
    print("\n".join(problems) or f"{count} pure modules, each covered by its own tests; the others above their bars")
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
