"""Clients of other people, each in a folder of its own, in the newest version there is when it is first asked for.

`make clean` removes them.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / ".venv" / "clients"
PATIENCE = 900  # seconds for one command of an installation
OFF = "real clients are installed where CLIENTS=1 says so (make clients)"


def python_with(name: str, *packages: str) -> Path:
    """A Python with packages from PyPI. Skips the test where they are not asked for, or cannot be installed."""
    home = FOLDER / name
    pip = [str(home / "bin" / "python"), "-m", "pip", "install", "--quiet", *packages]
    _install(home, packages, [sys.executable, "-m", "venv", str(home)], pip)
    return home / "bin" / "python"


def node_with(name: str, *packages: str) -> Path:
    """A folder `node_modules` with packages from npm. Skips as `python_with`."""
    home = FOLDER / name
    if os.environ.get("CLIENTS") and shutil.which("npm") is None:
        pytest.skip("no npm on this machine")
    npm = ["npm", "install", "--prefix", str(home), "--no-audit", "--no-fund", "--ignore-scripts", *packages]
    _install(home, packages, npm)
    return home / "node_modules"


def _install(home: Path, packages: Sequence[str], *commands: list[str]) -> None:
    if not os.environ.get("CLIENTS"):
        pytest.skip(OFF)
    done = home / "installed.json"
    if done.exists() and json.loads(done.read_text()) == list(packages):
        return
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    for command in commands:
        try:
            ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
        except subprocess.TimeoutExpired:
            pytest.skip(f"{' '.join(packages)}: not installed within {PATIENCE} s")
        if ended.returncode:
            said = (ended.stderr or ended.stdout).strip().splitlines()
            pytest.skip(f"{' '.join(packages)} cannot be installed: {said[-1] if said else ended.returncode}")
    done.write_text(json.dumps(list(packages)))
