"""Reads a YAML file into strings, lists and mappings, and records the position of each value and each problem.

Expands `${...}` in single values after parsing, so that a secret cannot change the structure. Does not know which
keys exist.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

KeyPath = tuple[str | int, ...]

_VARIABLE = re.compile(r"\$\$\{|\$\{(?:([A-Za-z_]\w*)(?::-([^}]*))?\}|file:([^}]+)\}|)", re.ASCII)
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the first one where PyYAML was built with libyaml
_START = yaml.Mark("", 0, 0, 0, None, 0)


@dataclass
class Source:
    """Holds one YAML file: its values, the position of each, and the problems found."""

    file: Path
    environ: Mapping[str, str]
    loader: Any = LOADER
    places: dict[KeyPath, yaml.Mark] = field(default_factory=dict)
    broken: set[KeyPath] = field(default_factory=set)
    problems: list[tuple[int, int, str]] = field(default_factory=list)

    def problem(self, place: KeyPath, what: str, mark: yaml.Mark | None = None) -> None:
        self.problems.append(self.told(place, what, mark))

    def told(self, place: KeyPath, what: str, mark: yaml.Mark | None = None) -> tuple[int, int, str]:
        """Return line, column and text of a problem at a key."""
        at, path = mark or self.places.get(place, _START), ".".join(map(str, place))
        return at.line + 1, at.column + 1, f"{path}: {what}" if path else what

    def read(self) -> object:
        try:
            root = yaml.compose(self.file.read_text("utf-8-sig"), self.loader)
            made = self.value(root, ()) if root else None
            return {} if made is None else made
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as wrong:
            what = getattr(wrong, "strerror", None) or getattr(wrong, "problem", None) or "not YAML in UTF-8"
            what = re.sub(" '.*'", "", what)  # the pure Python loader quotes the file, and perhaps a secret
            self.problem((), f"cannot be read: {what}; correct this", getattr(wrong, "problem_mark", None))
            return {}

    def value(self, node: yaml.Node, place: KeyPath) -> object:
        self.places.setdefault(place, node.start_mark)
        if len(place) > 8 or not node.tag.startswith("tag:yaml.org,2002:"):
            self.refuse(place, "has a YAML tag or is nested too deeply; write a plain value")
            return None
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, place)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, (*place, index)) for index, item in enumerate(node.value)]
        text = _VARIABLE.sub(lambda found: self.expand(found, place), node.value)
        if node.tag.endswith(":bool"):
            return text.lower() in ("true", "yes", "on")
        return None if node.tag.endswith(":null") or not (text or vars(node)["style"]) else text

    def mapping(self, node: yaml.MappingNode, place: KeyPath) -> dict[str, object]:
        made: dict[str, object] = {}
        for key, value in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else "?"
            if first := self.places.get(here := (*place, name)):
                say = f"duplicate key '{name}'; the first is on line {first.line + 1}; keep one of them"
                self.problem(here, say, key.start_mark)
            else:
                self.places[here] = key.start_mark
                made[name] = self.value(value, here)
        return made

    def refuse(self, place: KeyPath, what: str) -> None:
        self.broken.add(place)  # pydantic then finds fault with what stands in its place: one line is enough
        self.problem(place, what)

    def expand(self, found: re.Match[str], place: KeyPath) -> str:
        name, default, path = found.groups()
        if found[0] == "$${":
            return "${"
        value = self.variable(name) if name else None
        if value is not None or default is not None:
            return value or default or ""
        say = "write ${NAME}, ${NAME:-default} or ${file:PATH}, or $${ for a plain ${"
        try:
            if path and not readable_by_all(file := self.file.parent / path):
                return _text(file)
            say = f"everybody can read the file {path}; chmod 600 it" if path else say
        except (OSError, ValueError):
            say = f"the file {path} cannot be read; create it, readable and in UTF-8"
        self.refuse(place, f"{name} is not set; set it or write ${{{name}:-default}}" if name else say)
        return ""

    def variable(self, name: str) -> str | None:
        """Return a variable of the environment, else a systemd credential of that name."""
        value, folder = self.environ.get(name), self.environ.get("CREDENTIALS_DIRECTORY")
        try:
            return value or (_text(Path(folder, name)) if folder else value)
        except (OSError, ValueError):
            return value

    def find(self, steps: KeyPath) -> KeyPath:
        place: KeyPath = ()
        for step in steps:  # pydantic also names its own steps, which stand nowhere in the file
            place = (*place, step) if (*place, step) in self.places else place
        return place


def readable_by_all(file: Path) -> bool:
    """Whether every user of the machine can read a file. OSError if it does not exist."""
    found = file.resolve(strict=True)
    return bool(found.stat().st_mode & 0o004) and all(folder.stat().st_mode & 0o001 for folder in found.parents)


def _text(file: Path) -> str:
    return file.read_text("utf-8").rstrip("\r\n")
