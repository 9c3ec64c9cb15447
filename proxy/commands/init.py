"""`init`: writes a configuration file that names every key with its default and its meaning."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

TEMPLATE = Path(__file__).parents[1] / "session-proxy.yaml"
FILE = Path("session-proxy.yaml")
_SCHEMA = "# yaml-language-server:"  # names a file that lies beside the template alone


def add(commands: Any) -> None:
    parser = commands.add_parser("init", help="write a configuration file that names and explains every key")
    parser.add_argument("file", type=Path, nargs="?", default=FILE, metavar="FILE", help=f"{FILE} if left out")
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    text = TEMPLATE.read_text("utf-8")
    if text.startswith(_SCHEMA):
        text = text.partition("\n#\n")[2]
    try:  # a key may come to stand in it: for its owner alone
        descriptor = os.open(options.file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise ValueError(f"{options.file} exists already and was not changed. Name another file.") from None
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    print(f"Wrote {options.file}. Edit it, then run: session-proxy serve --config {options.file}")
    return 0
