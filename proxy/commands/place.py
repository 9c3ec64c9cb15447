"""Which database a command is about: the options for it, and what they mean."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from proxy.errors import StoreUnavailable


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="the configuration of the proxy")
    parser.add_argument("--state", type=Path, metavar="FOLDER", help="where its state is, instead of $STATE_DIRECTORY")


def database(options: argparse.Namespace) -> Path:
    """Raises ConfigError; StoreUnavailable where there is none."""
    from proxy import config, daemon

    environ = {**os.environ, **({"STATE_DIRECTORY": str(options.state.absolute())} if options.state else {})}
    path = daemon.database_path(config.load(options.config, os.environ), environ)
    if path is None:
        raise StoreUnavailable("This proxy keeps nothing: store.path is memory:. There is no database to work on.")
    return path
