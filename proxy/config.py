"""The configuration: its keys, their defaults, and what to say when a file is wrong.

Here live the models, the reading of the YAML file with the place of every value, the
`${...}` expansion, and the rule about listening that protects our keys. It never knows
aiohttp, an event loop, a store or a socket: text comes in, values go out.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, SecretStr, Tag
from pydantic import ValidationError as Invalid
from pydantic_core import ErrorDetails, core_schema

from .errors import ConfigError

Place = tuple[str | int, ...]

_MOUNTS = ["/v1", "/api/publicLLM"]
_PORT = "([0-9]{1,4}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_UNIQUE = (("upstreams", "mount", _MOUNTS), ("clients", "name", None), ("clients", "key_hashes", None))
_BYTES = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_VARIABLE = re.compile(r"\$\$\{|\$\{(?:([A-Za-z_]\w*)(?::-([^}]*))?\}|file:([^}]+)\}|)", re.ASCII)
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_START = yaml.Mark("", 0, 0, 0, None, 0)
_SAY = {
    "bool": "must be true or false",
    "int": "must be a whole number, such as 16",
    "greater": "must be at least {ge}",
    "literal": "must be {expected}",
    "value": "must be {error}",
    "missing": "the key '{key}' is missing; write it here",
    "dict": "must be a mapping, such as {{header: x-user}}",
    "model": "must be a mapping of keys and values; leave it out to keep the defaults",
    "none": "another value than null is not available in this version; leave the key out",
    "too": "has too few or too many entries; write one",
    "tuple": "must be a list; leave the key out to keep the default",
}


@dataclass(frozen=True)
class Shape:
    """A text of one form: the pattern it matches, what to say if not, what it becomes."""

    pattern: str
    say: str
    make: Callable[[re.Match[str]], Any] = lambda found: found[0]

    def read(self, value: object) -> Any:
        try:
            if isinstance(value, str) and (found := re.fullmatch(self.pattern, value)):
                return self.make(found)
        except ValueError:
            pass  # its own message may quote the value, which may be a secret
        raise ValueError(self.say)

    def __get_pydantic_core_schema__(self, source: object, handler: object) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(self.read)

    def __get_pydantic_json_schema__(self, core: object, handler: object) -> dict[str, Any]:
        return {"type": "string", "pattern": rf"^(?:{self.pattern})$|\$\{{"}


def _address(found: re.Match[str]) -> tuple[str, int] | str:
    path, host, port = found.groups()
    if path:
        return str(path)
    if host.startswith("[") or not re.search("[A-Za-z]", host):
        host = str(ipaddress.ip_address(host.strip("[]")))
    return host, int(port)


def _rows(value: object) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


_ADDRESS = Shape(
    rf"unix:(/[^\x00]{{1,106}})|(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9][A-Za-z0-9.-]*):{_PORT}",
    "HOST:PORT, '[IPV6]:PORT' in quotes, or unix:/path, such as 127.0.0.1:8484",
    _address,
)
Listen = Annotated[str, Shape(_ADDRESS.pattern, _ADDRESS.say, lambda found: _address(found) and found[0])]
Duration = Annotated[
    float,
    Shape(
        r"(?=[0-9.]*[1-9])([0-9]{1,9}(?:\.[0-9]{1,9})?)(ms|s|m|h|d)",
        "a duration above zero with its unit, such as 500ms, 10s, 10m or 24h",
        lambda found: float(found[1]) * _SECONDS[found[2]],
    ),
]
Size = Annotated[
    int,
    Shape(
        "([1-9][0-9]{0,11})(B|[KMG]i?B)",
        "a whole number above zero with its unit, such as 100B, 64KiB, 32MiB or 10MB",
        lambda found: int(found[1]) * _BYTES[found[2]],
    ),
]
Mount = Annotated[
    str,
    Shape(
        r"/|(?!/(?:sessions|healthz|readyz)(?:/|$))(?:/(?!\.\.?(?:/|$))[A-Za-z0-9._~!$&'()*+,;=:@%-]+)+",
        "a path such as /v1, without / at its end, and not our own /sessions, /healthz or /readyz",
    ),
]
BaseUrl = Annotated[
    str,
    Shape(
        rf"https?://(?:\[[0-9A-Fa-f:.]+\]|[^\x00-\x20\x7f/?#@:\\\[\]]+)(?::{_PORT})?(?:/[^\x00-\x20\x7f?#]*)?",
        "an http or https URL without user, query or fragment, such as https://api.openai.com/v1",
        lambda found: urlsplit(found[0]).geturl().rstrip("/"),
    ),
]
Secret = Annotated[
    SecretStr,
    Shape("[!-~]+", "the key alone, without spaces or 'Bearer', or null", lambda found: SecretStr(found[0])),
]
KeyHash = Annotated[
    str,
    Shape(
        "(?:sha256:)?([0-9A-Fa-f]{64})",
        "64 hexadecimal digits, the output of: printf %s KEY | sha256sum",
        lambda found: found[1].lower(),
    ),
]
Name = Annotated[str, Shape("[!#$%&'*+.^_`|~0-9A-Za-z-]+", "a name without spaces, such as x-session-id")]
Origin = Annotated[str, Shape(r"\*|[a-z][a-z0-9+.-]*://[^\s/?#@]+", "'*' or a list of origins")]
File = Annotated[str, Shape(r"[^\x00]+", "the path of a file, or memory:")]
Count = Annotated[int, Field(ge=1), BeforeValidator(lambda value: None if isinstance(value, bool) else value)]
Mounts = Annotated[tuple[Mount, ...], Field(min_length=1), BeforeValidator(_rows, Mount | tuple[Mount, ...])]
Affinity = Annotated[dict[Literal["header", "body"], Name], Field(max_length=1)]
FromHeader = Annotated[dict[Literal["header"], Name], Field(min_length=1)]
Tenant = Annotated[
    Annotated[Literal["credential", "one"], Tag("word")] | Annotated[FromHeader, Tag("header")],
    Discriminator(lambda value: "header" if isinstance(value, dict) else "word"),
]
Origins = Annotated[tuple[Origin, ...], BeforeValidator(_rows, Origin | tuple[Origin, ...])]


def _is(default: object) -> Any:
    """A default in the words of the file, so that code, file and schema say the same."""
    return Field(default=default)


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, hide_input_in_errors=True)


class Upstream(Section):
    mount: Mounts = _is(_MOUNTS)
    base_url: BaseUrl = "https://api.openai.com/v1"
    api_key: Secret | None = None
    profile: Literal["auto"] = "auto"
    forward: bool = False
    affinity: Affinity = _is({})
    connect_timeout: Duration = _is("10s")
    response_timeout: Duration = _is("900s")
    idle_timeout: Duration = _is("300s")


class Client(Section):
    name: Name
    key_hashes: Annotated[tuple[KeyHash, ...], Field(min_length=1)]


class Sessions(Section):
    headers: Annotated[tuple[Name, ...], Field(min_length=1)] = _is(
        ["sessionId", "session-id", "x-session-id", "session_id"]
    )
    ttl: Duration = _is("24h")
    mode: Literal["auto"] = "auto"
    on_busy: Literal["queue"] = "queue"
    queue_limit: Count = 16
    queue_timeout: Duration = _is("60s")
    on_disconnect: Literal["finish"] = "finish"
    finish_limit: Duration = _is("10m")


class History(Section):
    max_tokens: None = None
    max_messages: None = None
    overflow: Literal["trim"] = "trim"


class Store(Section):
    path: File = "sessions.db"


class Limits(Section):
    request_body: Size = _is("32MiB")
    recorded_reply: Size = _is("64MiB")
    body_timeout: Duration = _is("30s")
    write_timeout: Duration = _is("60s")
    header_timeout: Duration = _is("75s")
    cache: Size = _is("64MiB")


class Cors(Section):
    allow_origins: Origins = _is([])


class Admin(Section):
    listen: None = None
    token: None = None


class Log(Section):
    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto"] = "auto"


class Shutdown(Section):
    drain: Duration = _is("30s")


class Config(Section):
    listen: Listen = "127.0.0.1:8484"
    upstreams: Annotated[tuple[Upstream, ...], Field(min_length=1)] = _is([{}])
    tenant: Tenant = "credential"
    clients: tuple[Client, ...] = _is([])
    sessions: Sessions = _is({})
    history: History = _is({})
    store: Store = _is({})
    limits: Limits = _is({})
    cors: Cors = _is({})
    admin: Admin = _is({})
    log: Log = _is({})
    shutdown: Shutdown = _is({})

    @property
    def lends(self) -> bool:
        """Whether whoever reaches us uses a key of ours."""
        return not self.clients and any(upstream.api_key for upstream in self.upstreams)

    @property
    def tenant_rule(self) -> Literal["credential", "one"] | FromHeader:
        unset = "tenant" not in self.model_fields_set
        return "one" if unset and self.lends and loopback(self.listen) else self.tenant


def address(listen: str) -> tuple[str, int] | str:
    """Host and port, or the path of a Unix socket; its ValueError says what to write."""
    return _ADDRESS.read(listen)  # type: ignore[no-any-return]


def loopback(listen: str) -> bool:
    place = address(listen)
    return isinstance(place, str) or bool(re.fullmatch(r"localhost|::1|127\.[0-9.]+", place[0].lower()))


def unsafe(config: Config, listen: str) -> str | None:
    """Why this configuration must not be served at this address; None if it may."""
    say = (
        "would lend your api_key to everybody who reaches this address; listen on 127.0.0.1 or unix:/path,"
        " list the callers under clients, or remove api_key"
    )
    return say if config.lends and not loopback(listen) else None


def schema() -> dict[str, Any]:
    """The JSON schema for editors, which see `${...}` before it is expanded."""
    made = Config.model_json_schema()
    for rule in [rule for part in (made, *made["$defs"].values()) for rule in part["properties"].values()]:
        if rule.get("type") in ("integer", "boolean") or "enum" in rule:
            moved = {key: rule.pop(key) for key in sorted(rule.keys() & {"type", "enum", "minimum"})}
            rule["anyOf"] = [moved, {"type": "string", "pattern": r"\$\{"}]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **made}


@dataclass
class _Source:
    """One YAML file: its values, where each stands, and all that is wrong with it."""

    file: Path
    environ: Mapping[str, str]
    places: dict[Place, yaml.Mark] = field(default_factory=dict)
    broken: set[Place] = field(default_factory=set)
    problems: list[tuple[int, int, str]] = field(default_factory=list)

    def problem(self, place: Place, what: str, mark: yaml.Mark | None = None) -> None:
        at, path = mark or self.places.get(place, _START), ".".join(map(str, place))
        self.problems.append((at.line + 1, at.column + 1, f"{path}: {what}" if path else what))

    def read(self) -> object:
        try:
            root = yaml.compose(self.file.read_text("utf-8-sig"), _LOADER)
            made = self.value(root, ()) if root else None
            return {} if made is None else made
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as wrong:
            what = getattr(wrong, "strerror", None) or getattr(wrong, "problem", None) or "not YAML in UTF-8"
            what = re.sub(" '.*'", "", what)  # the pure Python loader quotes the file, and perhaps a secret
            self.problem((), f"cannot be read: {what}; correct this", getattr(wrong, "problem_mark", None))
            return {}

    def value(self, node: yaml.Node, place: Place) -> object:
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

    def mapping(self, node: yaml.MappingNode, place: Place) -> dict[str, object]:
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

    def refuse(self, place: Place, what: str) -> None:
        self.broken.add(place)  # pydantic then finds fault with what stands in its place: one line is enough
        self.problem(place, what)

    def expand(self, found: re.Match[str], place: Place) -> str:
        name, default, path = found.groups()
        if found[0] == "$${":
            return "${"
        if name and (default is not None or name in self.environ):
            return self.environ.get(name) or default or ""
        say = "write ${NAME}, ${NAME:-default} or ${file:PATH}, or $${ for a plain ${"
        try:
            if path:
                return (self.file.parent / path).read_text("utf-8").rstrip("\r\n")
        except (OSError, ValueError):
            say = f"the file {path} cannot be read; create it, readable and in UTF-8"
        self.refuse(place, f"{name} is not set; set it or write ${{{name}:-default}}" if name else say)
        return ""

    def find(self, steps: Place) -> Place:
        place: Place = ()
        for step in steps:  # pydantic also names its own steps, which stand nowhere in the file
            place = (*place, step) if (*place, step) in self.places else place
        return place

    def explain(self, error: ErrorDetails) -> None:
        place, kind, context = self.find(error["loc"]), error["type"].partition("_")[0], error.get("ctx", {})
        expected, last = str(context.get("expected")), error["loc"][-1:]
        what = _SAY.get(kind, "is not what this key takes").format(key="".join(map(str, last)), **context)
        if kind == "extra" or last == ("[key]",):
            what = _unknown(place, re.findall(r"'(\w+)'", expected))
        elif kind == "literal" and " or " not in expected:
            what += "; another value is not available in this version"
        # pydantic counts only the entries that are right
        hollow = error["type"] == "too_short" and error["input"]
        if place not in self.broken and not hollow:
            self.problem(place, what)

    def clashes(self, data: dict[str, Any]) -> None:
        first: dict[tuple[str, str], Place] = {}
        for section, key, default in _UNIQUE:
            for index, entry in enumerate(_rows(data.get(section))):
                texts = entry.get(key, default) if isinstance(entry, dict) else None
                for at, text in enumerate(_rows(texts)):
                    place = self.find((section, index, key, at))
                    claim = str(text).lower().removeprefix("sha256:") if key == "key_hashes" else str(text)
                    if text and place != (other := first.setdefault((key, claim), place)):
                        there = f"{'.'.join(map(str, other))} on line {self.places[other].line + 1}"
                        self.problem(place, f"{key} is the same as at {there}; each must be unique")


def _unknown(place: Place, keys: list[str]) -> str:
    if not keys:
        model: Any = Config.model_fields[str(place[0])].annotation if len(place) > 1 else Config
        keys = list(next(iter(get_args(model)), model).model_fields)
    near = difflib.get_close_matches(str(place[-1]).lower(), keys, 1)
    hint = f"did you mean '{near[0]}'?" if near else f"write one of {', '.join(keys)}"
    return f"unknown key '{place[-1]}'; {hint}"


def load(path: str | Path, environ: Mapping[str, str]) -> Config:
    """The configuration in a file; ConfigError names every problem with its line and column."""
    source, config = _Source(Path(path), environ), None
    data = source.read()
    try:
        config = Config.model_validate(data)
        if why := unsafe(config, config.listen):
            source.problem(source.find(("listen",)), why)
    except Invalid as wrong:
        for error in wrong.errors(include_url=False):
            source.explain(error)
    if isinstance(data, dict):
        source.clashes(data)
    if config is None or source.problems:
        raise ConfigError([f"{path}:{line}:{at}: {what}" for line, at, what in sorted(source.problems)])
    return config
