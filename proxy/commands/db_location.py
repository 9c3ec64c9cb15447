"""Adds the options by which a command finds its database, and resolves them."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from proxy.errors import StoreUnavailable

if TYPE_CHECKING:
    from proxy.config.model import Config


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options --config and --state to a command."""
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="the proxy's configuration file")
    parser.add_argument(
        "--state", type=Path, metavar="FOLDER", help="the proxy's state folder; overrides $STATE_DIRECTORY"
    )


def load(options: argparse.Namespace) -> tuple[Config, Path | None]:
    """Load the configuration and find its database; None for `memory:`. Raises ConfigError."""
    from proxy.config import model as config
    from proxy.service import daemon

    environ = {**os.environ, **({"STATE_DIRECTORY": str(options.state.absolute())} if options.state else {})}
    loaded = config.load(options.config, os.environ)
    return loaded, daemon.database_path(loaded, environ)


def database(options: argparse.Namespace) -> Path:
    """Return the path of the database. Raises ConfigError, and StoreUnavailable for `memory:`."""
    _, path = load(options)
    if path is None:
        raise StoreUnavailable(
            "This proxy has no database: store.path is memory:. Name a file there to use this command."
        )
    return path
