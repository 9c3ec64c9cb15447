"""Which database a command is about: the options for it, and what they mean."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from proxy.errors import StoreUnavailable

if TYPE_CHECKING:
    from proxy.config.model import Config


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="the configuration of the proxy")
    parser.add_argument("--state", type=Path, metavar="FOLDER", help="where its state is, instead of $STATE_DIRECTORY")


def load(options: argparse.Namespace) -> tuple[Config, Path | None]:
    """The configuration, and where the database is; None for one that keeps nothing. Raises ConfigError."""
    from proxy.config import model as config
    from proxy.service import daemon

    environ = {**os.environ, **({"STATE_DIRECTORY": str(options.state.absolute())} if options.state else {})}
    loaded = config.load(options.config, os.environ)
    return loaded, daemon.database_path(loaded, environ)


def database(options: argparse.Namespace) -> Path:
    """Raises ConfigError; StoreUnavailable where there is none."""
    _, path = load(options)
    if path is None:
        raise StoreUnavailable("This proxy keeps nothing: store.path is memory:. There is no database to work on.")
    return path
