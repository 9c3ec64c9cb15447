"""Makes a build of the proxy that can run beside another one: its source, and an environment of its own.

The working tree is built in the same way as a revision, so that the two differ in their source alone. Libraries have
the versions of the environment that the benchmark runs in.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

from bench.machine import ROOT, CannotStart

PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]


def named(revision: str) -> str:
    """The commit's short name; CannotStart where git knows none."""
    return _git("rev-parse", "--verify", "--short", "--end-of-options", f"{revision}^{{commit}}").decode().strip()


def tree_named() -> str:
    """The working tree's commit, and whether it differs from it."""
    return _git("describe", "--always", "--dirty=, changed", "--exclude=*").decode().strip()


def built(folder: Path, revision: str | None) -> Path:
    """The command `session-proxy` of a revision, or of the working tree; it needs `folder` and nothing else."""
    source, environment = folder / "source", folder / "environment"
    source.mkdir(parents=True)
    if revision:
        with tarfile.open(fileobj=io.BytesIO(_git("archive", "--format=tar", revision))) as archive:
            archive.extractall(source, filter="data")
    else:
        _copy_tree(source)
    # What is installed here without a version that an index has, the proxy itself above all, binds nobody.
    held = [*PIP, "list", "--format=freeze", "--exclude-editable", "--exclude=llm-session-proxy"]
    (folder / "held").write_bytes(_done(held))
    _done([sys.executable, "-m", "venv", "--without-pip", str(environment)])
    pip = [*PIP, "--python", str(environment / "bin/python"), "install", "--constraint", str(folder / "held")]
    _done([*pip, str(source)])
    return environment / "bin/session-proxy"


def _copy_tree(to: Path) -> None:
    """What git would take: its files as they are now, and new ones that it does not ignore."""
    for name in _git("ls-files", "-z", "--cached", "--others", "--exclude-standard").decode().split("\0"):
        if name and (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name)


def _git(*arguments: str) -> bytes:
    return _done(["git", "-C", str(ROOT), *arguments])


def _done(command: list[str]) -> bytes:
    """What it said; CannotStart where it failed."""
    try:
        done = subprocess.run(command, capture_output=True, check=False)
    except FileNotFoundError:
        raise CannotStart(f"{command[0]} is not installed") from None
    if done.returncode:
        raise CannotStart(f"{' '.join(command[:4])} ...: {done.stderr.decode(errors='replace').strip()[-500:]}")
    return done.stdout
