"""Defines the keys of the configuration with their defaults, validates a file, and explains what is wrong in it.

Also holds the rule that keeps the proxy from lending its keys to everybody. `value_types` defines single values,
`yaml_source` reads the file. Knows no aiohttp, event loop, store or socket: text comes in, values go out.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field
from pydantic import ValidationError as Invalid
from pydantic_core import ErrorDetails

from proxy.config.value_types import (
    ADDRESS,
    Affinity,
    BaseUrl,
    Count,
    Duration,
    File,
    FromHeader,
    KeyHash,
    Listen,
    Model,
    Mounts,
    Name,
    Origins,
    Pem,
    Profile,
    Secret,
    Size,
    Tenant,
    Text,
    doubtful,
)
from proxy.config.workable import clashes, too_small, unsummarized
from proxy.config.yaml_source import LOADER, KeyPath, Source
from proxy.errors import ConfigError

_MOUNTS = ["/v1", "/api/publicLLM"]
_SAY = {
    "bool": "must be true or false",
    "int": "must be a whole number, such as 16",
    "greater": "must be at least {ge}",
    "literal": "must be {expected}",
    "value": "must be {error}",
    "missing": "the key '{key}' is missing; write it here",
    "dict": "must be a mapping, such as {{header: x-user}}",
    "model": "must be a mapping of keys and values; leave it out to keep the defaults",
    "too": "has too few or too many entries; write one",
    "tuple": "must be a list; leave the key out to keep the default",
}


def _is(default: object) -> Any:
    """Declare a default as the file spells it, so that code, file and schema agree."""
    return Field(default=default)


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, hide_input_in_errors=True)


class Upstream(Section):
    mount: Mounts = _is(_MOUNTS)
    base_url: BaseUrl = "https://api.openai.com/v1"
    api_key: Secret | None = None
    profile: Profile = "auto"
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
    mode: Literal["auto", "append", "resend"] = "auto"
    on_busy: Literal["queue", "reject", "interrupt"] = "queue"
    queue_limit: Count = 16
    queue_timeout: Duration = _is("60s")
    on_disconnect: Literal["finish", "cancel"] = "finish"
    finish_limit: Duration = _is("10m")


class Summary(Section):
    model: Model | None = None
    prompt: Text = (
        "Summarize the conversation below for the assistant that will go on with it. Keep names, facts, numbers,"
        " decisions, preferences and open questions. Write the summary alone."
    )
    max_tokens: Count = 1024
    timeout: Duration = _is("120s")
    heading: Text | None = "Summary of the earlier messages of this conversation (not written by the user):"


class History(Section):
    max_tokens: Count | None = None
    max_messages: Count | None = None
    max_bytes: Size | None = None
    image_turns: Count | None = None
    overflow: Literal["trim", "error", "summarize"] = "trim"
    summary: Summary = _is({})

    @cached_property
    def is_free(self) -> bool:
        """Whether no setting limits how much history is sent."""
        bounds = (self.max_tokens, self.max_messages, self.max_bytes, self.image_turns)
        return self.overflow != "summarize" and not any(bounds)


class Tls(Section):
    certificate: Pem | None = None
    key: Pem | None = None


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
    listen: Listen | None = None
    token: Secret | None = None


class Log(Section):
    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "console", "logfmt", "json"] = "auto"


class Shutdown(Section):
    drain: Duration = _is("30s")


class Config(Section):
    listen: Listen = "127.0.0.1:8484"
    tls: Tls = _is({})
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
    def lends_key(self) -> bool:
        """Whether every caller that reaches the proxy uses its upstream key."""
        return not self.clients and any([upstream.api_key for upstream in self.upstreams])

    @property
    def tenant_rule(self) -> Literal["credential", "one"] | FromHeader:
        if self.lends_key and "tenant" not in self.model_fields_set and loopback(self.listen):
            return "one"
        return self.tenant


def address(listen: str) -> tuple[str, int] | str:
    """Parse a listen address into host and port, or the path of a Unix socket. ValueError says what to write."""
    return ADDRESS.read(listen)  # type: ignore[no-any-return]


def loopback(listen: str) -> bool:
    """Whether only this machine can reach an address: a loopback host or a Unix socket."""
    place = address(listen)
    return isinstance(place, str) or bool(re.fullmatch(r"localhost|::1|127\.[0-9.]+", place[0].lower()))


def unsafe(config: Config, listen: str) -> str | None:
    """Return why this configuration must not be served at this address; None if it may."""
    if not config.lends_key or loopback(listen):
        return None
    what = "lets everybody who reaches this address use your api_key"
    return f"{what}; listen on 127.0.0.1 or unix:/path, list the callers under clients, or remove api_key"


def _unguarded(config: Config) -> str | None:
    """Return why the admin listener cannot start; None if it can, or is not configured."""
    admin = config.admin
    if admin.listen is None:
        return None
    if admin.token is None:
        return "needs a token; write admin.token as well, such as ${file:admin-token}"
    return "is the same address as listen; choose another one" if admin.listen == config.listen else None


def _beside(file: Path, tls: Tls) -> Tls:
    """Make the paths of `tls` absolute, relative to the folder of the file."""
    return tls.model_copy(update={name: str(file.absolute().parent / path) for name, path in tls if path})


def schema() -> dict[str, Any]:
    """Build the JSON schema for editors; each value may also be a `${...}`, which editors see unexpanded."""
    made = Config.model_json_schema()
    for rule in [rule for part in (made, *made["$defs"].values()) for rule in part["properties"].values()]:
        if rule.get("type") in ("integer", "boolean") or "enum" in rule:
            moved = {key: rule.pop(key) for key in sorted(rule.keys() & {"type", "enum", "minimum"})}
            rule["anyOf"] = [moved, {"type": "string", "pattern": r"\$\{"}]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **made}


def _explain(source: Source, error: ErrorDetails) -> None:
    place, kind, context = source.find(error["loc"]), error["type"].partition("_")[0], error.get("ctx", {})
    expected, last = str(context.get("expected")), error["loc"][-1:]
    what = _SAY.get(kind, "is not a valid value for this key").format(key="".join(map(str, last)), **context)
    if kind == "extra" or last == ("[key]",):
        what = _unknown(place, re.findall(r"'(\w+)'", expected))
    # pydantic counts only the entries that are right
    hollow = error["type"] == "too_short" and error["input"]
    if place not in source.broken and not hollow:
        source.problem(place, what)


def _unknown(place: KeyPath, keys: list[str]) -> str:
    if not keys:
        model: Any = Config
        for step in place[:-1]:
            if isinstance(step, str):
                section = model.model_fields[step].annotation
                model = next(iter(get_args(section)), section)
        keys = list(model.model_fields)
    near = difflib.get_close_matches(str(place[-1]).lower(), keys, 1)
    hint = f"did you mean '{near[0]}'?" if near else f"write one of {', '.join(keys)}"
    return f"unknown key '{place[-1]}'; {hint}"


def load(path: str | Path, environ: Mapping[str, str], loader: Any = LOADER) -> Config:
    """Load the configuration from a file. ConfigError names every problem with its line and column."""
    return examine(path, environ, loader)[0]


def examine(path: str | Path, environ: Mapping[str, str], loader: Any = LOADER) -> tuple[Config, list[str]]:
    """Load the configuration, and collect warnings of what is valid but unlikely to be meant, one line each."""
    source, config = Source(Path(path), environ, loader), None
    data = source.read()
    try:
        config = Config.model_validate(data)
        config = config.model_copy(update={"tls": _beside(source.file, config.tls)})
        if why := unsafe(config, config.listen):
            source.problem(source.find(("listen",)), why)
        if why := _unguarded(config):
            source.problem(source.find(("admin", "listen")), why)
        if (history := config.history).overflow == "summarize":
            limits, words = (history.max_tokens, history.max_messages, history.max_bytes), history.summary
            for key, why in too_small(*limits, f"{words.prompt}{words.heading or ''}", words.max_tokens):
                source.problem(source.find(("history", key)), why)
        if any([path for _, path in config.tls]):
            from proxy.config.tls import unproven

            if why := unproven(config.tls.certificate, config.tls.key):
                source.problem(source.find(("tls", "certificate")), why)
    except Invalid as wrong:
        for error in wrong.errors(include_url=False):
            _explain(source, error)
    if isinstance(data, dict):
        clashes(source, data, _MOUNTS)
    if config is None or source.problems:
        raise ConfigError([f"{path}:{line}:{at}: {what}" for line, at, what in sorted(source.problems)])
    doubts = [source.told(source.find(place), why) for place, why in _doubts(config)]
    return config, [f"{path}:{line}:{at}: warning: {what}" for line, at, what in sorted(doubts)]


def _doubts(config: Config) -> Iterator[tuple[KeyPath, str]]:
    urls = [(("upstreams", index, "base_url"), each.base_url) for index, each in enumerate(config.upstreams)]
    yield from [(place, why) for place, url in urls if (why := doubtful(url))]
    history = config.history
    if history.overflow == "summarize":
        most = history.summary.max_tokens if "max_tokens" in history.summary.model_fields_set else None
        yield from unsummarized([bool(each.api_key) for each in config.upstreams], history.max_tokens, most)
