"""Checks values that are valid alone and do not work together.

`value_types` has checked each alone. Knows no file; it names keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from proxy.config.value_types import rows
from proxy.config.yaml_source import KeyPath, Source
from proxy.core.window.chain import BYTES, LEAST, SHARE, most_of, room
from proxy.core.window.token_estimate import RATIO

MESSAGES = 3  # a summary, what stands behind it, and one message


def clashes(source: Source, data: dict[str, Any], mounts: list[str]) -> None:
    """Report mounts, client names and key hashes that are not unique. `mounts`: the default of an upstream."""
    first: dict[tuple[str, str], KeyPath] = {}
    unique = (("upstreams", "mount", mounts), ("clients", "name", None), ("clients", "key_hashes", None))
    for section, key, default in unique:
        for index, entry in enumerate(rows(data.get(section))):
            texts = entry.get(key, default) if isinstance(entry, dict) else None
            for at, text in enumerate(rows(texts)):
                place = source.find((section, index, key, at))
                claim = str(text).lower().removeprefix("sha256:") if key == "key_hashes" else str(text)
                if text and place != (other := first.setdefault((key, claim), place)):
                    there = f"{'.'.join(map(str, other))} on line {source.places[other].line + 1}"
                    source.problem(place, f"{key} is the same as at {there}; each must be unique")


def too_small(
    tokens: int | None, messages: int | None, size: int | None, prompt: str, most: int
) -> Iterator[tuple[str, str]]:
    """Yield each limit of `history` that is too small for a summary and a message, and why. `most`: the tokens that a
    summary may have; `prompt`: the prompt that requests one."""
    taken = len(prompt.encode(errors="replace"))

    def fits(limit: int) -> bool:
        share = most_of(most, limit)
        return room(limit, RATIO, share, taken + BYTES * share) >= LEAST

    beside = "a summary, the prompt that asks for it and a message"
    if tokens and not fits(tokens):
        least = next(limit for limit in range(tokens, tokens + 64 * (taken + 1000), 10) if fits(limit))
        yield (
            "max_tokens",
            f"cannot hold {beside}; write at least {least}, shorten summary.prompt, or set overflow to trim",
        )
    if messages and messages < MESSAGES:
        yield "max_messages", f"cannot hold a summary and a message; write at least {MESSAGES}, or set overflow to trim"
    if size and size // 2 - size // SHARE - taken < LEAST:
        least = -(-8 * (LEAST + taken) // 3) + 8
        yield (
            "max_bytes",
            f"cannot hold {beside}; write at least {least}B, shorten summary.prompt, or set overflow to trim",
        )


def unsummarized(keys: Sequence[bool], tokens: int | None, most: int | None) -> Iterator[tuple[KeyPath, str]]:
    """Yield warnings for `overflow: summarize`: upstreams without a configured key, and a summary of `most` tokens
    that is too large for the limit `tokens`."""
    without = "so its sessions are trimmed without a summary; set one, or set overflow to trim"
    if not any(keys):
        why = "no upstream has an api_key, so sessions are trimmed without a summary; set one, or write trim"
        yield ("history", "overflow"), f"summarize: {why}"
    else:
        for index, key in enumerate(keys):
            if not key:
                yield ("upstreams", index), f"has no api_key, {without}"
    if tokens and most and most > tokens // SHARE:
        part = f"one part in {SHARE} of history.max_tokens"
        yield ("history", "summary", "max_tokens"), f"a summary gets at most {part}; write at most {tokens // SHARE}"


def renamed(
    before: Iterable[tuple[str, Iterable[str]]], after: Iterable[tuple[str, Iterable[str]]]
) -> list[tuple[str, str]]:
    """Return the old and new name of each renamed client, found by its key hashes. Sessions belong to the name."""
    names = {each: name for name, hashes in before for each in hashes}
    now = list(after)
    found = {(names[each], name) for name, hashes in now for each in hashes if each in names}
    there = dict(now)
    return sorted([pair for pair in found if pair[0] not in there])
