"""`db check`, `db stats`, `db purge`: checks the database, shows how much it holds, deletes idle sessions."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

from proxy.commands import db_location
from proxy.commands.progress import bar

BATCH = 100  # sessions; a batch is one short transaction


def add(commands: Any) -> None:
    parser = commands.add_parser("db", help="check, measure or purge the database; the proxy may run")
    verbs = parser.add_subparsers(required=True, metavar="COMMAND")
    check = verbs.add_parser("check", help="check that the database is intact")
    db_location.add_options(check)
    check.set_defaults(command=_check)
    stats = verbs.add_parser("stats", help="show how much is in the database")
    db_location.add_options(stats)
    stats.add_argument("--json", action="store_true", help="print JSON, with bytes and ms since the epoch")
    stats.set_defaults(command=_stats)
    purge = verbs.add_parser("purge", help="delete sessions idle longer than TIME")
    db_location.add_options(purge)
    purge.add_argument("--older-than", type=_duration, required=True, metavar="TIME", help="such as 12h or 30d")
    purge.set_defaults(command=_purge)


def _check(options: argparse.Namespace) -> int:
    from proxy.stores import secret
    from proxy.stores.sqlite import inspection
    from proxy.stores.sqlite import snapshot as reading

    database = db_location.database(options)
    with reading.snapshot(database) as connection:
        found = inspection.problems(connection, bar("check"))
        if not found:
            holds = inspection.stats(connection, database)
            if holds.turns:
                secret.load_secret(database, None)
            print(f"{database}: ok, {holds.sessions} sessions with {holds.turns} turns")
            return 0
    for problem in found:
        print(f"{database}: {problem}")
    print("session-proxy: the database is damaged. Stop the proxy and restore a backup.", file=sys.stderr)
    return 1


def _stats(options: argparse.Namespace) -> int:
    from dataclasses import asdict

    from proxy.stores.sqlite import inspection
    from proxy.stores.sqlite import snapshot as reading

    database = db_location.database(options)
    with reading.snapshot(database) as connection:
        found = inspection.stats(connection, database)
    if options.json:
        print(json.dumps(asdict(found), indent=2))
        return 0
    print(f"database  {found.database}, schema {found.schema}")
    print(f"size      {_size(found.size)}, {_size(found.free)} of it free; log {_size(found.log)}")
    print(f"sessions  {found.sessions}, and {found.expired} expired")
    print(f"turns     {found.turns}, {found.cut} of them interrupted; {found.answers} answers stored")
    print(f"last use  {_time(found.newest)}, longest ago {_time(found.oldest)}")
    return 0


def _purge(options: argparse.Namespace) -> int:
    from proxy.stores.sqlite import inspection
    from proxy.stores.sqlite import snapshot as reading

    database = db_location.database(options)
    now = time.time_ns() // 1_000_000
    with reading.snapshot(database) as connection:
        inspection.refuse_older(connection)
        count = inspection.idle(connection, now - options.older_than)
    purged = _through_the_proxy(database, options.older_than, count)
    if purged is None:
        purged = asyncio.run(_directly(database, now, options.older_than, count))
    print(f"{purged} sessions purged")
    return 0


def _through_the_proxy(database: Path, idle: int, count: int) -> int | None:
    """Purge through the running proxy; return the number of sessions, or None if no proxy runs."""
    from proxy.commands import running_proxy as running

    draw, purged, more = bar("purge"), 0, True
    while more:
        try:
            said = running.ask(database, "POST", f"/purge?idle={idle}")
        except (ConnectionError, FileNotFoundError):
            return None
        purged, more = purged + said["purged"], said["has_more"]
        draw(min(purged, count) if more else count, count)
    return purged


async def _directly(database: Path, now: int, idle: int, count: int) -> int:
    """Purge under the lock while no proxy runs, and shrink the file."""
    from proxy.stores.sqlite.store import SQLiteStore

    draw, purged = bar("purge"), 0
    store = await SQLiteStore.open(database, idle)
    try:
        while gone := await store.sweep(now, frozenset(), BATCH, idle):
            purged += gone
            draw(min(purged, count - 1), count)
        await store.scrub(sys.maxsize)
        draw(count, count)
    finally:
        await store.close()
    return purged


def _duration(text: str) -> int:
    """Parse a duration into ms."""
    from proxy.config.value_types import DURATION

    try:
        return int(DURATION.read(text) * 1000)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be {error}") from None


def _size(count: int) -> str:
    size = float(count)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} GiB"


def _time(ms: int | None) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(ms / 1000)) if ms is not None else "never"
