"""What an examination finds, in words for the operator."""

from __future__ import annotations

from typing import Literal, NamedTuple


class Finding(NamedTuple):
    """`fail` keeps the proxy from its work or endangers what it keeps, `warn` may."""

    level: Literal["ok", "warn", "fail"]
    text: str
