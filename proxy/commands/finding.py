"""Defines a finding of `doctor`: a level and a sentence for the operator."""

from __future__ import annotations

from typing import Literal, NamedTuple


class Finding(NamedTuple):
    """`fail`: the proxy cannot work, or its data is at risk. `warn`: that may happen."""

    level: Literal["ok", "warn", "fail"]
    text: str
