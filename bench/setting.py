"""What a run was made with: its command, the versions, the machine's class. No names, no paths."""

from __future__ import annotations

import os
import platform
import re
import sqlite3
import subprocess
from importlib.metadata import version
from pathlib import Path

from bench.machine import Machine, nginx_binary


def told(machine: Machine, command: str) -> str:
    """A paragraph of Markdown."""
    cores = len(machine.cores)
    shared = (
        "load and upstream on one core, each target alone on the other"
        if machine.pinned
        else "load, upstream and targets share what there is: no figure is that of a core of its own"
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    release = ".".join(platform.release().split(".")[:2])
    return (
        f"`{command}`: Python {platform.python_version()}, aiohttp {version('aiohttp')}, uvloop {version('uvloop')}, "
        f"SQLite {sqlite3.sqlite_version}, {_nginx()}. {cores} core{'s' if cores > 1 else ''} ({platform.machine()}, "
        f"{memory:.0f} GB, Linux {release}), database on {_file_system(machine.folder)}; {shared}.\n"
    )


def _nginx() -> str:
    if not (binary := nginx_binary()):
        return "no nginx (Debian: nginx-light), and no ratio to it"
    said = subprocess.run([binary, "-v"], capture_output=True, text=True, check=False).stderr
    found = re.search(r"nginx/([\d.]+)", said)
    return f"nginx {found[1] if found else 'of an unknown version'}"


def _file_system(folder: Path) -> str:
    """The kind of the one that a folder lies on: on a tmpfs a commit costs nothing."""
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    over = [(len(point), kind) for point, kind in mounts if folder.is_relative_to(point)]
    return max(over)[1] if over else "an unknown file system"
