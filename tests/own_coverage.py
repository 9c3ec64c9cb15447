"""Checks that each pure module is covered branch by branch by its own test file and no other.

`proxy/core/sse.py` by `tests/core/test_sse.py`, and so on: a reader of the module finds its
proof in one place. Run by `make coverage`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PURE = ("core", "dialects")
# How a list is read is proven in one table and by the shapes of clients, whatever module says it.
READINGS = ("reconcile", "usual", "repeats", "starts", "side_requests", "planner", "retries")
TABLE = ("core/matching/test_reconcile.py", "conversations/test_shapes_of_clients.py")


def covered(module: Path) -> str | None:
    """What is wrong with the coverage of a module; None where it is whole."""
    folder = module.parent.relative_to(ROOT / "proxy")
    own = (f"{folder}/test_{module.stem}.py",)
    tests = [str(ROOT / "tests" / file) for file in (TABLE if module.stem in READINGS else own)]
    name = ".".join(["proxy", *folder.parts, module.stem])
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pytest", "-q", *tests, f"--cov={name}", "--cov-branch"]
        report = ["--cov-report=term-missing", "--cov-fail-under=100"]
        environ = {**os.environ, "COVERAGE_FILE": f"{scratch}/coverage"}
        done = subprocess.run([*command, *report], cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else f"{name}:\n{done.stdout[-2000:]}"


def main() -> int:
    modules = [file for folder in PURE for file in sorted((ROOT / "proxy" / folder).rglob("[a-z]*.py"))]
    with ThreadPoolExecutor(2) as pool:
        problems = [problem for problem in pool.map(covered, modules) if problem]
    print("\n".join(problems) or f"{len(modules)} pure modules, each covered by its own test file")
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
