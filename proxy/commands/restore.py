"""`restore`: a backup in the place of what is there, while the proxy is stopped."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from proxy.commands import db_location
from proxy.commands.progress import bar


def add(commands: Any) -> None:
    parser = commands.add_parser("restore", help="bring a backup back, while the proxy is stopped")
    db_location.add_options(parser)
    parser.add_argument("folder", type=Path, metavar="BACKUP", help="a folder that a backup made")
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    from proxy.stores.sqlite import backup

    database = db_location.database(options)
    aside = database.with_name("replaced-" + time.strftime(backup.STAMP, time.gmtime()))
    replaced = backup.restore(options.folder, database, aside, bar("restore"))
    print(f"{database} is restored.")
    if replaced:
        print(f"What was there before is in {aside}. Remove it once you do not need it.")
    return 0
