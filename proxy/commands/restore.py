"""`restore`: replaces the database by a backup while the proxy is stopped, and keeps the replaced files."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from proxy.commands import db_location
from proxy.commands.progress import bar


def add(commands: Any) -> None:
    parser = commands.add_parser("restore", help="restore a backup; stop the proxy first")
    db_location.add_options(parser)
    parser.add_argument("folder", type=Path, metavar="BACKUP", help="a folder that the command backup wrote")
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    from proxy.stores.sqlite import backup

    database = db_location.database(options)
    aside = database.with_name("replaced-" + time.strftime(backup.STAMP, time.gmtime()))
    replaced = backup.restore(options.folder, database, aside, bar("restore"))
    print(f"Restored {database}.")
    if replaced:
        print(f"The previous files are in {aside}. Delete them when you no longer need them.")
    return 0
