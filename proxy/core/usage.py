"""What an upstream counted of a turn: the tokens in its `usage`."""

from __future__ import annotations

from typing import NamedTuple

import msgspec
from msgspec import Struct

Number = int | float | None


class Counts(NamedTuple):
    """Tokens: of the prompt, of the reply and its thoughts, and how many of the prompt's the upstream had in its
    cache."""

    prompt: int = 0
    reply: int = 0
    thoughts: int = 0
    cached: int = 0


class _Details(Struct, frozen=True, gc=False):
    cached_tokens: Number = 0
    reasoning_tokens: Number = 0


_NO_DETAILS = _Details()


class _Usage(Struct, frozen=True, gc=False):
    prompt_tokens: Number = 0
    completion_tokens: Number = 0
    prompt_tokens_details: _Details | None = _NO_DETAILS
    completion_tokens_details: _Details | None = _NO_DETAILS
    prompt_cache_hit_tokens: Number = 0  # DeepSeek's


_USAGE = msgspec.json.Decoder(_Usage)


def counts(usage: bytes) -> Counts:
    """The counts in an upstream's `usage`; 0 for what it does not tell, and for all where it is of another form."""
    try:
        told = _USAGE.decode(usage)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return Counts()
    asked, said = told.prompt_tokens_details or _NO_DETAILS, told.completion_tokens_details or _NO_DETAILS
    return Counts(
        _whole(told.prompt_tokens),
        _whole(told.completion_tokens),
        _whole(said.reasoning_tokens),
        _whole(asked.cached_tokens or told.prompt_cache_hit_tokens),
    )


def _whole(number: Number) -> int:
    return int(number) if number and 0 < number < 1e15 else 0
