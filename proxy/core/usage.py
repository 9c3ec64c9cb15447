"""Reads the token counts in an upstream's `usage`. Pure."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec
from msgspec import Struct

from proxy.core.json_bytes import UNDECODED


class TokenCounts(NamedTuple):
    """Tokens: of the prompt, of the reply and its thoughts, and how many of the prompt's the upstream had in its
    cache."""

    prompt: int = 0
    reply: int = 0
    thoughts: int = 0
    cached: int = 0


class _Usage(Struct, frozen=True, gc=False):
    prompt_tokens: Any = 0
    completion_tokens: Any = 0
    prompt_tokens_details: Any = None
    completion_tokens_details: Any = None
    prompt_cache_hit_tokens: Any = 0  # DeepSeek's


_USAGE = msgspec.json.Decoder(_Usage)


def counts(usage: bytes) -> TokenCounts:
    """The counts in an upstream's `usage`; 0 for what it does not tell."""
    try:
        told = _USAGE.decode(usage)
    except UNDECODED:
        return TokenCounts()
    asked, said = told.prompt_tokens_details, told.completion_tokens_details
    cached = _whole(asked.get("cached_tokens")) if type(asked) is dict else 0
    return TokenCounts(
        _whole(told.prompt_tokens),
        _whole(told.completion_tokens),
        _whole(said.get("reasoning_tokens")) if type(said) is dict else 0,
        cached or _whole(told.prompt_cache_hit_tokens),
    )


def _whole(number: object) -> int:
    if type(number) is int or type(number) is float:
        return int(number) if 0 < number < 1e15 else 0
    return 0
