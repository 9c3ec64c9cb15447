"""Parses the command line, runs a command, and turns errors into exit codes.

Commands import heavy modules only when they run, so that `check` and `--version` answer at once. Exit codes: 0 success,
1 failure, 2 usage, 78 configuration.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import sys
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from proxy import __version__
from proxy.commands import backup, completion, db, doctor, init, restore
from proxy.errors import CannotListen, ConfigError, ProxyError, StoreLocked, UnfitLibrary

if TYPE_CHECKING:
    from proxy.config.model import Config
    from proxy.config.value_types import Shape

FAILURE, CONFIGURATION = 1, 78


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command. Return its exit code: 0, 1 failure, 2 wrong usage, 78 wrong configuration."""
    options = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        return command(options)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return CONFIGURATION
    except (CannotListen, StoreLocked, UnfitLibrary, ProxyError, ValueError) as error:
        print(f"session-proxy: {error}", file=sys.stderr)
        return FAILURE
    except KeyboardInterrupt:
        print("session-proxy: interrupted", file=sys.stderr)
        return FAILURE
    except OSError as error:
        said = f"{error.strerror or error}: {error.filename or ''}".rstrip(": ")
        if isinstance(error, PermissionError) and error.filename:
            said += ". Run this as the proxy's user, or correct the permissions."
        print(f"session-proxy: {said}", file=sys.stderr)
        return FAILURE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="session-proxy", description="Gives any OpenAI-compatible API a memory.")
    parser.add_argument("--version", action="version", version=f"session-proxy {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    serve = commands.add_parser("serve", help="run the proxy")
    serve.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="the configuration file; defaults apply without one (init writes one)",
    )
    help = "override listen: HOST:PORT or unix:PATH"
    serve.add_argument("--listen", type=_address, metavar="ADDR", help=help)
    upstream = serve.add_mutually_exclusive_group()
    upstream.add_argument("--upstream", type=_base_url, metavar="URL", help="override the first upstream's base_url")
    upstream.add_argument("--demo", action="store_true", help="forward to the embedded demo upstream")
    serve.set_defaults(command=_serve)
    check = commands.add_parser("check", help="check a configuration file")
    check.add_argument("file", type=Path, metavar="FILE")
    check.set_defaults(command=_check)
    schema = commands.add_parser("schema", help="print the configuration's JSON schema, for editors")
    schema.set_defaults(command=_schema)
    demo = commands.add_parser("demo", help="run the demo upstream alone")
    demo.add_argument("--listen", type=_host_and_port, default="127.0.0.1:8485", metavar="HOST:PORT")
    demo.set_defaults(command=_demo)
    for each in (init, backup, restore, db, doctor):
        each.add(commands)
    completion.add(commands, parser)
    return parser


def _serve(options: argparse.Namespace) -> int:
    from proxy.service import daemon

    def load() -> Config:
        return _load(options.config, options.listen, options.upstream)[0]

    config, doubts = _load(options.config, options.listen, options.upstream)
    lines = daemon.configure_logging(config, os.environ)
    for doubt in [] if options.demo else doubts:
        daemon.log.warning("%s", doubt)

    def greet() -> None:
        if options.demo or options.upstream or options.config is None or sys.stdout.isatty():
            from proxy.commands.greeting import greeting

            print(greeting(config, options.listen or config.listen, options.demo), flush=True)

    _run(daemon.serve(load, options.listen, options.demo, os.environ, lines, greet))
    return 0


def _load(file: Path | None, listen: str | None, upstream: str | None = None) -> tuple[Config, list[str]]:
    """Load the configuration of a file, else the defaults, and its warnings. `upstream` overrides the first base
    URL."""
    from proxy.config import model as config
    from proxy.config import value_types

    if file:
        loaded, doubts = config.examine(file, os.environ)
    else:
        loaded, doubts = _defaults()
    if upstream:
        first = loaded.upstreams[0].model_copy(update={"base_url": upstream})
        loaded = loaded.model_copy(update={"upstreams": (first, *loaded.upstreams[1:])})
        doubts = [f"--upstream: {why}"] if (why := value_types.doubtful(upstream)) else []
    if listen and (problem := config.unsafe(loaded, listen)):
        raise ConfigError([problem])
    return loaded, doubts


def _defaults() -> tuple[Config, list[str]]:
    """Load the template that `init` writes, with the environment; its problems and warnings have no file position."""
    from proxy.config import model as config

    def placeless(said: list[str]) -> list[str]:
        return [re.sub(r"^.*?:\d+:\d+: (warning: )?", "", line) for line in said]

    try:
        loaded, doubts = config.examine(init.TEMPLATE, os.environ)
    except ConfigError as error:
        raise ConfigError(placeless(error.problems)) from None
    return loaded, placeless(doubts)


def _base_url(text: str) -> str:
    from proxy.config.value_types import BASE_URL

    return str(_read(BASE_URL, text))


def _address(text: str) -> str:
    from proxy.config.value_types import ADDRESS

    _read(ADDRESS, text)
    return text


def _host_and_port(text: str) -> str:
    if text.startswith("unix:"):
        raise argparse.ArgumentTypeError("must be HOST:PORT, such as 127.0.0.1:8485")
    return _address(text)


def _read(shape: Shape, text: str) -> Any:
    try:
        return shape.read(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be {error}") from None


def _check(options: argparse.Namespace) -> int:
    _, doubts = _load(options.file, None)
    for doubt in doubts:
        print(doubt, file=sys.stderr)
    print(f"{options.file}: ok" + (", but see the warning" if doubts else ""))
    return 0


def _schema(options: argparse.Namespace) -> int:
    from proxy.config import model as config

    print(json.dumps(config.schema(), indent=2))
    return 0


def _demo(options: argparse.Namespace) -> int:
    from proxy import demo

    host, _, port = options.listen.rpartition(":")

    async def run() -> None:
        await demo.start(host, int(port))
        print(f"The demo upstream listens on http://{options.listen}/v1", flush=True)
        await asyncio.Event().wait()

    try:
        _run(run())
    except KeyboardInterrupt:
        pass
    return 0


def _run(main: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine on uvloop if it is installed, else on asyncio's own loop."""
    try:
        import uvloop
    except ImportError:
        factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    else:
        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main)
