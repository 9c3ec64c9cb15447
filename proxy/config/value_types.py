"""Defines the types of single configuration values: address, duration, size, mount and so on.

Each has a pattern, a sentence for a value that does not match, and a function that converts the text.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Discriminator, Field, SecretStr, Tag
from pydantic_core import core_schema

from proxy.dialects.chat.profiles import PROFILES

_PORT = "([0-9]{1,4}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


@dataclass(frozen=True)
class Shape:
    """Validates a text by a pattern and converts it; `say` tells the operator what to write."""

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


def doubtful(base_url: str) -> str | None:
    """Return why a base URL is probably wrong; None if it is not."""
    found = re.search("/(chat/completions|completions|responses|messages|embeddings)$", base_url, re.IGNORECASE)
    return f"ends in {found[0]}, which each request adds itself; leave that off" if found else None


def rows(value: object) -> list[Any]:
    """Return a list or tuple as a list, and any other value as a list with that value."""
    return list(value) if isinstance(value, list | tuple) else [value]


ADDRESS = Shape(
    rf"unix:(/[^\x00]{{1,106}})|(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9][A-Za-z0-9.-]*):{_PORT}",
    "HOST:PORT, '[IPV6]:PORT' in quotes, or unix:/path, such as 127.0.0.1:8484",
    _address,
)
Listen = Annotated[str, Shape(ADDRESS.pattern, ADDRESS.say, lambda found: _address(found) and found[0])]
DURATION = Shape(
    r"(?=[0-9.]*[1-9])([0-9]{1,9}(?:\.[0-9]{1,9})?)(ms|s|m|h|d)",
    "a duration above zero with its unit, such as 500ms, 10s, 10m or 24h",
    lambda found: float(found[1]) * _SECONDS[found[2]],
)
Duration = Annotated[float, DURATION]
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
        "a path such as /v1, without a trailing /, and not the proxy's own /sessions, /healthz or /readyz",
    ),
]
BASE_URL = Shape(
    rf"https?://(?:\[[0-9A-Fa-f:.]+\]|[^\x00-\x20\x7f/?#@:\\\[\]]+)(?::{_PORT})?(?:/[^\x00-\x20\x7f?#]*)?",
    "an http or https URL without user, query or fragment, such as https://api.openai.com/v1",
    lambda found: urlsplit(found[0]).geturl().rstrip("/"),
)
BaseUrl = Annotated[str, BASE_URL]
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
Model = Annotated[str, Shape("[!-~]+", "the name of a model, as the upstream knows it")]
Text = Annotated[str, Shape(r"[\s\S]*\S[\s\S]*", "a text that is not blank")]
Origin = Annotated[str, Shape(r"\*|[a-z][a-z0-9+.-]*://[^\s/?#@]+", "'*' or a list of origins")]
_PROFILES = ["auto", *sorted(PROFILES)]
Profile = Annotated[str, Shape("|".join(_PROFILES), f"one of {', '.join(_PROFILES)}")]
File = Annotated[str, Shape(r"[^\x00]+", "the path of a file, or memory:")]
Pem = Annotated[str, Shape(r"[^\x00]+", "the path of a file in PEM format, or null")]
Count = Annotated[int, Field(ge=1), BeforeValidator(lambda value: None if isinstance(value, bool) else value)]
Mounts = Annotated[tuple[Mount, ...], Field(min_length=1), BeforeValidator(rows, Mount | tuple[Mount, ...])]
Affinity = Annotated[dict[Literal["header", "body"], Name], Field(max_length=1)]
FromHeader = Annotated[dict[Literal["header"], Name], Field(min_length=1)]
Tenant = Annotated[
    Annotated[Literal["credential", "one"], Tag("word")] | Annotated[FromHeader, Tag("header")],
    Discriminator(lambda value: "header" if isinstance(value, dict) else "word"),
]
Origins = Annotated[tuple[Origin, ...], BeforeValidator(rows, Origin | tuple[Origin, ...])]
