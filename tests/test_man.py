"""The manual page names what there is, and is one that formatters read."""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy.cli import _parser

PAGE = Path(__file__).parents[1] / "docs" / "session-proxy.1"


def commands(parser: argparse.ArgumentParser, name: str = "") -> Iterator[tuple[str, set[str]]]:
    """The commands that do something, and the options of each."""
    below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    for action in below:
        for word, each in action.choices.items():
            yield from commands(each, f"{name} {word}".strip())
    if not below:
        yield name, {option for action in parser._actions for option in action.option_strings} - {"-h", "--help"}


def plain(text: str) -> str:
    """The page without its marks."""
    lines = [re.sub(r"^\.[A-Z]+ ?", "", line) for line in text.replace("\\-", "-").splitlines()]
    return re.sub(r"\\f.|[\"]", "", "\n".join(lines))


def test_each_command_is_in_the_synopsis_with_its_options_and_no_other() -> None:
    synopsis = PAGE.read_text().partition(".SH SYNOPSIS")[2].partition(".SH DESCRIPTION")[0]
    told = {}
    for usage in synopsis.split(".br\n"):
        words = plain(usage).split()
        name = " ".join([word for word in words[1:3] if re.fullmatch("[a-z]+", word)])
        told[name] = set(re.findall(r"--[a-z-]+", plain(usage)))
    assert told.pop("") == {"--version", "--help"}
    assert told == dict(commands(_parser()))


def test_each_command_and_option_is_explained() -> None:
    told = plain(PAGE.read_text().partition(".SH COMMANDS")[2])
    for name, options in commands(_parser()):
        assert re.search(rf"^TP\n?.*\n?{name}$|^{name}$", told, re.MULTILINE), name
        for option in options:
            assert re.search(rf"^{option}\b", told, re.MULTILINE), option


FORMATTERS = {
    "mandoc": ["mandoc", "-T", "lint", "-W", "warning", str(PAGE)],
    "groff": ["groff", "-man", "-ww", "-z", str(PAGE)],
}


@pytest.mark.parametrize("name", FORMATTERS)
def test_a_formatter_finds_nothing_to_say(name: str) -> None:
    if not shutil.which(name):
        pytest.skip(f"{name} is not installed (Debian: {name})")
    done = subprocess.run(FORMATTERS[name], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
