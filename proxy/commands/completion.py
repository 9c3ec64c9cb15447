"""`completion`: prints a shell's completion script, which shtab, an extra, makes from the parser."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

SHELLS = ("bash", "zsh", "fish")


def add(commands: Any, program: argparse.ArgumentParser) -> None:
    parser = commands.add_parser("completion", help="print the completion script of a shell")
    parser.add_argument(
        "shell", choices=SHELLS, help="for example: completion bash > /etc/bash_completion.d/session-proxy"
    )
    parser.set_defaults(command=partial(run, program))


def run(program: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    try:
        import shtab
    except ImportError:
        raise ValueError("Completion needs shtab. Install it: pip install 'llm-session-proxy[completion]'") from None
    for action in actions(program):
        if action.type is Path:
            folder = action.dest in ("folder", "state")
            vars(action)["complete"] = shtab.DIRECTORY if folder else shtab.FILE
    print(shtab.complete(program, shell=options.shell))
    return 0


def actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Yield every option and argument of a parser and of its commands."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                yield from actions(each)
