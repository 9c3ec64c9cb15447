"""`backup`: copies all sessions and their secret; the proxy may run."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from proxy.commands import db_location
from proxy.commands.progress import bar


def add(commands: Any) -> None:
    parser = commands.add_parser("backup", help="back up all sessions and their secret; the proxy may run")
    db_location.add_options(parser)
    parser.add_argument("--keep", type=_count, metavar="N", help="delete all but the newest N backups in the folder")
    parser.add_argument(
        "folder", type=Path, metavar="FOLDER", help="where to write the backup, as a folder named by its time"
    )
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    from proxy.stores.sqlite import backup

    made = options.folder / time.strftime(backup.STAMP, time.gmtime())
    backup.back_up(db_location.database(options), made, bar("backup"))
    print(made)
    if options.keep:
        backup.prune(options.folder, options.keep)
    return 0


def _count(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError("must be a whole number of at least 1")
    return int(text)
