"""Checks the machine for `doctor`: permissions, disk, database, limits. Changes nothing and uses no network."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import resource
import shutil
import socket
import sqlite3
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from proxy.commands.finding import Finding
from proxy.config.model import Config, address, examine
from proxy.errors import StoreUnavailable
from proxy.foundation.self_test import unfit
from proxy.service import control_socket as control
from proxy.stores.secret import load_secret, refuse_foreign, secret_path
from proxy.stores.sqlite.inspection import refuse_older, seal, stats
from proxy.stores.sqlite.snapshot import snapshot

LITTLE, ENOUGH = 64 << 20, 1 << 30  # bytes of free disk
FILES = 4096  # open files: a streamed answer holds two
FIXED = (3, 51, 3)  # the version from which SQLite bears two writers


def config_file(file: Path, config: Config) -> Iterator[Finding]:
    """Check the configuration file: its warnings, and who can change it or read a key in it."""
    yield Finding("ok", f"configuration: {file} is valid")
    for doubt in examine(file, os.environ)[1]:
        yield Finding("warn", f"configuration: {doubt.replace(' warning:', '', 1)}")
    mode = file.stat().st_mode
    if mode & 0o022:
        yield Finding("fail", f"configuration: other users can change {file}; chmod go-w {file}")
    text = file.read_text(errors="replace")
    keys = [upstream.api_key.get_secret_value() for upstream in config.upstreams if upstream.api_key]
    if mode & 0o044 and any([key in text for key in keys]):
        yield Finding("fail", f"configuration: other users can read the key in {file}; chmod 600 {file}")


def state(database: Path) -> Iterator[Finding]:
    """Check the state folder: permissions, free disk space, database and secret."""
    folder = database.parent
    if not folder.is_dir():
        yield Finding("warn", f"state: {folder} does not exist yet; the first start creates it")
        return
    yield from _rights(database)
    free, size = shutil.disk_usage(folder).free, database.stat().st_size if database.is_file() else 0
    said = f"disk: {free >> 20} MiB are free at {folder}"
    if free < LITTLE:
        yield Finding("fail", f"{said}; free some space, or no turn can be recorded")
    else:
        yield Finding("warn" if free < max(ENOUGH, size) else "ok", said)
    if database.is_file():
        yield from _database(database)
    else:
        yield Finding("warn", f"state: {database} does not exist yet; the first start creates it")
    if not database.is_file() and secret_path(database).exists():
        yield from _secret(database)


def _secret(database: Path) -> Iterator[Finding]:
    """Check a secret that has no database yet: the first start uses it, or refuses it."""
    try:
        load_secret(database, None)
    except (ValueError, OSError) as error:
        yield Finding("fail", f"secret: {error}")


def _rights(database: Path) -> Iterator[Finding]:
    owner = database.parent.stat().st_uid
    files = [database, secret_path(database), *[database.with_name(database.name + n) for n in ("-wal", ".lock")]]
    found = []
    for file in [file for file in files if file.exists()]:
        if file.stat().st_mode & 0o077:
            found.append(Finding("fail", f"rights: other users can open {file}; chmod 600 {file}"))
        if file.stat().st_uid != owner:
            found.append(Finding("fail", f"rights: {file} and its folder have different owners; chown the file"))
    yield from found or [Finding("ok", f"rights: only the owner can open the files in {database.parent}")]


def _database(database: Path) -> Iterator[Finding]:
    try:
        with snapshot(database) as connection:
            refuse_older(connection)
            ((said, *_), *_) = connection.execute("PRAGMA quick_check(1)").fetchall()
            holds, known = stats(connection, database), seal(connection)
        if said != "ok":
            raise StoreUnavailable(f"The database is damaged: {said}. Restore a backup.")
        yield Finding("ok", f"database: whole, {holds.sessions} sessions with {holds.turns} turns")
        if holds.turns:
            refuse_foreign(database, load_secret(database, None), known)
            yield Finding("ok", "secret: it is there")
    except (StoreUnavailable, ValueError, OSError) as error:
        yield Finding("fail", f"database: {error}")


def listener(config: Config, database: Path | None) -> Iterator[Finding]:
    """Check that `serve` could listen at the configured address, unless this database's proxy already does."""
    place = address(config.listen)
    if database and _runs(database):
        return
    if isinstance(place, str):
        with socket.socket(socket.AF_UNIX) as probe:
            used = probe.connect_ex(place) == 0
    else:
        used = _is_used(*place)
    if used:
        yield Finding(
            "fail",
            f"listen: another process listens on {config.listen}; stop it, or choose another address (a socket that"
            " systemd holds for this proxy is right)",
        )


def _runs(database: Path) -> bool:
    try:
        control.connected(database, 1.0).close()
    except OSError:
        return False
    return True


def _is_used(host: str, port: int) -> bool:
    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
            return False
    except OSError as error:  # another one, such as a right that is missing, `serve` tells as well
        return error.errno == errno.EADDRINUSE


def sqlite() -> Iterator[Finding]:
    """Report the version of SQLite, and what must be avoided with an old one."""
    said = f"SQLite: version {sqlite3.sqlite_version}"
    if sqlite3.sqlite_version_info < FIXED:
        said += "; before 3.51.3 no other program may write to the database while the proxy runs"
    yield Finding("ok", said)


def http() -> Iterator[Finding]:
    """The test that `serve` makes at its start."""
    with asyncio.Runner() as runner:
        why = unfit(runner.get_loop(), os.environ)
    if why:
        yield Finding("fail", f"HTTP: {why}")
    else:
        yield Finding("ok", f"HTTP: aiohttp {metadata.version('aiohttp')} is as the proxy needs it")


def open_files(database: Path | None) -> Iterator[Finding]:
    """Check the limit of open files: of the running proxy if it can be read, else of this shell."""
    holder = _holder(database) if database else None
    whose, limit = f"of process {holder}", _limit_of(holder) if holder else None
    if limit is None:
        whose, limit = "from here", resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    said = f"open files: {limit} {whose}"
    if limit < FILES:
        yield Finding("warn", f"{said}; a streamed answer needs two; raise LimitNOFILE= or ulimit -n")
    else:
        yield Finding("ok", said)


def _holder(database: Path) -> int | None:
    """Return the process ID in the lock file, of its last holder."""
    try:
        found = re.search("process ([0-9]+)", database.with_name(database.name + ".lock").read_text())
    except OSError:
        return None
    return int(found[1]) if found else None


def _limit_of(process: int) -> int | None:
    try:
        found = re.search("Max open files +([0-9]+)", Path(f"/proc/{process}/limits").read_text())
    except OSError:
        return None
    return int(found[1]) if found else None
