"""`backup`: a copy of all sessions, while the proxy runs."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from proxy.commands import db_location
from proxy.commands.progress import bar


def add(commands: Any) -> None:
    parser = commands.add_parser("backup", help="copy all sessions and their secret, also while the proxy runs")
    db_location.add_options(parser)
    parser.add_argument("--keep", type=_count, metavar="N", help="remove all but the newest N backups of the folder")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="gets a folder for each backup, named by its time")
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
        raise argparse.ArgumentTypeError("must be a number from 1 on")
    return int(text)
