"""The command line. Parses words, picks a command, turns faults into exit codes.

Heavy modules are imported by the command that needs them, so that `check` and `--version`
answer at once. Exit codes: 0, 1 failure, 2 usage, 78 configuration.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from proxy import __version__
from proxy.commands import backup, completion, db, doctor, restore
from proxy.errors import CannotListen, ConfigError, ProxyError, StoreLocked

if TYPE_CHECKING:
    from proxy.config import Config

FAILURE, CONFIGURATION = 1, 78
_HELLO = """\
Listening on http://{address}. Try in another shell:

curl -s http://{address}/v1/chat/completions -H 'Content-Type: application/json' -H 'sessionId: try-1' \
-d '{{"model": "{model}", "messages": [{{"role": "user", "content": "My name is Alice"}}]}}'

curl -s http://{address}/v1/chat/completions -H 'Content-Type: application/json' -H 'sessionId: try-1' \
-d '{{"model": "{model}", "messages": [{{"role": "user", "content": "What is my name?"}}]}}'

The second one sends only its question. Leave the sessionId header out and the answer is not known.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        return command(options)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return CONFIGURATION
    except (CannotListen, StoreLocked, ProxyError, ValueError) as error:
        print(f"session-proxy: {error}", file=sys.stderr)
        return FAILURE
    except KeyboardInterrupt:
        print("session-proxy: interrupted", file=sys.stderr)
        return FAILURE
    except OSError as error:
        said = f"{error.strerror or error}: {error.filename or ''}".rstrip(": ")
        if isinstance(error, PermissionError) and error.filename:
            said += ". Run this as the user of the proxy, or correct its rights."
        print(f"session-proxy: {said}", file=sys.stderr)
        return FAILURE


def greeting(address: str, model: str) -> str:
    """The two calls to try, ready to paste into any shell."""
    return _HELLO.format(address=address, model=model)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="session-proxy", description="Gives any OpenAI-compatible API a memory.")
    parser.add_argument("--version", action="version", version=f"session-proxy {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    serve = commands.add_parser("serve", help="run the proxy")
    serve.add_argument("--config", type=Path, required=True, metavar="FILE")
    serve.add_argument("--listen", metavar="ADDR", help="instead of the file's: HOST:PORT or unix:PATH")
    serve.add_argument("--demo", action="store_true", help="in front of the embedded demo upstream")
    serve.set_defaults(command=_serve)
    check = commands.add_parser("check", help="check a configuration file")
    check.add_argument("file", type=Path, metavar="FILE")
    check.set_defaults(command=_check)
    schema = commands.add_parser("schema", help="print the configuration's JSON schema, for editors")
    schema.set_defaults(command=_schema)
    demo = commands.add_parser("demo", help="run the demo upstream alone")
    demo.add_argument("--listen", default="127.0.0.1:8485", metavar="HOST:PORT")
    demo.set_defaults(command=_demo)
    for each in (backup, restore, db, doctor):
        each.add(commands)
    completion.add(commands, parser)
    return parser


def _serve(options: argparse.Namespace) -> int:
    from proxy import daemon

    def load() -> Config:
        return _load(options.config, options.listen)

    config = load()
    lines = daemon.configure_logging(config, os.environ)
    if options.demo or sys.stdout.isatty():
        model = "demo" if options.demo else "the upstream's model"
        print(greeting(options.listen or config.listen, model), flush=True)
    _run(daemon.serve(load, options.listen, options.demo, os.environ, lines))
    return 0


def _load(file: Path, listen: str | None) -> Config:
    from proxy import config

    loaded = config.load(file, os.environ)
    if listen and (problem := config.unsafe(loaded, listen)):
        raise ConfigError([problem])
    return loaded


def _check(options: argparse.Namespace) -> int:
    _load(options.file, None)
    print(f"{options.file}: ok")
    return 0


def _schema(options: argparse.Namespace) -> int:
    from proxy import config

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
    """Run a coroutine on uvloop where it is there, else on asyncio's own loop."""
    try:
        import uvloop
    except ImportError:
        factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    else:
        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main)
