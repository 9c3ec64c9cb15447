"""Migrates a database to the newest schema: numbered SQL files, applied in order, never edited."""

from __future__ import annotations

from importlib import resources

import aiosqlite

from proxy.errors import StoreUnavailable


async def migrate(connection: aiosqlite.Connection) -> None:
    """Bring a database to the newest schema, one numbered file per transaction; refuse a newer one."""
    async with connection.execute("PRAGMA user_version") as cursor:
        (version,) = await cursor.fetchone() or (0,)
    refuse_newer(version)
    road = steps()
    for number in range(version + 1, len(road) + 1):
        script = f"BEGIN IMMEDIATE;\n{road[number - 1]}\nPRAGMA user_version={number};\nCOMMIT;"
        await connection.executescript(script)


def refuse_newer(version: int) -> None:
    """Raise StoreUnavailable for a schema of a later version of this program."""
    if version > (known := len(steps())):
        raise StoreUnavailable(
            f"The database has schema {version}; this program knows up to {known}. Install a newer version."
        )


def steps() -> list[str]:
    """Return the SQL of each migration, oldest first; schema N is reached after N of them."""
    folder = resources.files("proxy.stores") / "schema" / "sqlite"
    return [file.read_text() for file in sorted(folder.iterdir(), key=lambda file: file.name) if file.name[0].isdigit()]
