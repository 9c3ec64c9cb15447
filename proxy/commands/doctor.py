"""`doctor`: checks the configuration, the machine, the upstreams and the front proxy, and prints what to do."""

from __future__ import annotations

import argparse
import asyncio
import os
from typing import TYPE_CHECKING, Any

from proxy.commands import db_location

if TYPE_CHECKING:
    from proxy.commands.finding import Finding
    from proxy.config.model import Config


def add(commands: Any) -> None:
    parser = commands.add_parser("doctor", help="check configuration, state, machine, upstreams and front proxy")
    db_location.add_options(parser)
    parser.add_argument(
        "--through", type=_url, metavar="URL", help="the clients' base URL: test which session headers reach the proxy"
    )
    parser.add_argument(
        "--key", metavar="NAME", help="the environment variable that holds a client's key, for --through"
    )
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    from proxy.commands import doctor_machine

    config, database = db_location.load(options)
    key = None
    if options.key and not (key := os.environ.get(options.key)):
        raise ValueError(f"The variable {options.key} is not set. Set it to a client's key, or leave --key out.")
    found = [*doctor_machine.config_file(options.config, config), *doctor_machine.sqlite(), *doctor_machine.http()]
    found += [*doctor_machine.open_files(database), *(doctor_machine.state(database) if database else [])]
    found += doctor_machine.listener(config, database)
    for finding in found:
        _show(finding)
    found += asyncio.run(_network(config, options.through, key))
    return 1 if any([finding.level == "fail" for finding in found]) else 0


async def _network(config: Config, url: str | None, key: str | None) -> list[Finding]:
    from proxy.commands import doctor_network

    found = []
    async for finding in doctor_network.upstreams(config):
        found.append(_show(finding))
    if url:
        async for finding in doctor_network.through(url, config.sessions.headers, key):
            found.append(_show(finding))
    return found


def _show(finding: Finding) -> Finding:
    print(f"{finding.level:5} {finding.text}", flush=True)
    return finding


def _url(text: str) -> str:
    if not text.startswith(("http://", "https://")):
        raise argparse.ArgumentTypeError("must be a URL such as https://example.org/v1")
    return text
