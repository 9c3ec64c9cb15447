"""Reads and filters HTTP headers: hop-by-hop headers, the proxy's own, session IDs, credentials.

Takes lists of (name, value) pairs and case-insensitive mappings, as HTTP libraries give them (values decoded as UTF-8
with surrogate escapes). Knows no HTTP library and no configuration.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Protocol

from proxy.errors import BadRequest, ConflictingSessionId, InvalidSessionId

Pairs = list[tuple[str, str]]


class Fields(Protocol):
    """Headers by name, in any case, as multidict's CIMultiDict: a look-up takes a tenth of a walk through all."""

    def get(self, key: str, /) -> str | None: ...

    def getall(self, key: str, default: tuple[str, ...], /) -> Sequence[str]: ...

    def items(self) -> Iterable[tuple[str, str]]: ...


# RFC 9110 section 7.6.1, and Expect: aiohttp answers 100-continue at this hop.
HOP_BY_HOP = frozenset(
    [
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    ]
)
OURS = frozenset(
    [
        "x-session-mode",
        "x-session-store",
        "x-session-must-exist",
        "x-session-on-busy",
        "x-session-on-disconnect",
        "x-session-dry-run",
        "idempotency-key",
    ]
)
_CREDENTIALS = ("Authorization", "api-key", "x-api-key")
CREDENTIALS = tuple([name.lower() for name in _CREDENTIALS])
MAX_ID = 256
_PREFERRED = "sessionid"  # in lower case
_PLACEHOLDER = re.compile(
    # A variable that stands as it was written: {{ user }}, ${USER}, #{user}, {user_id}, <session-id>, <%= user %>.
    r"\{\{.*?\}\}|[$#]\{.*?\}|\{[A-Za-z_][\w.]*\}|<[A-Za-z%][^<>@]*>"
    # The same as the whole ID: $USER, %USER%, %s, %(user)s.
    r"|^(?:\$(?:[A-Z_][A-Z0-9_]*|[a-z_][a-z0-9_]{0,31})|%\w+%|%(?:\(\w+\))?[sd])$"
    # What a language writes for an object without a text of its own.
    r"|\[object [A-Za-z]+\]"
    # What it writes for no value, as the whole ID or behind a prefix of the client's: chat-undefined.
    r"|^[(\[\"'<]*(?i:undefined|null|none|nil|nan)[)\]\"'>]*$|(?<=[-_:/.])(?:undefined|null|None|NaN)$"
    # Nothing but quotes and white space.
    r"|^[\s\"']*$"
)
MAX_KEY = 255


def end_to_end(pairs: Iterable[tuple[str, str]], without: frozenset[str] = frozenset()) -> Pairs:
    """The pairs that go on to the next hop: neither hop-by-hop by the standard, nor named by
    `Connection`, nor in `without` (lower case)."""
    drop, kept, named = _dropped(without), [], ""
    for pair in pairs:
        if (name := pair[0].lower()) not in drop:
            kept.append(pair)
        elif name == "connection":
            named += "," + pair[1]
    if not named:
        return kept
    names = {token.strip().lower() for token in named.split(",")}
    return [pair for pair in kept if pair[0].lower() not in names]


@lru_cache(64)
def _dropped(without: frozenset[str]) -> frozenset[str]:
    return HOP_BY_HOP | without


def refuse_invalid_utf8(pairs: Iterable[tuple[str, str]]) -> None:
    """Raise BadRequest where a value has bytes that are not UTF-8 (they arrive as surrogates)."""
    for name, value in pairs:
        if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
            raise BadRequest(f"The header {name} is not valid UTF-8. Encode its value as UTF-8.", param=name)


def session_id(fields: Fields, names: Iterable[str]) -> str | None:
    """The session ID that the headers carry under any of `names`, or None without one.

    Raises InvalidSessionId (empty, over 256 characters, control characters, not UTF-8) and
    ConflictingSessionId (several that differ).
    """
    found: set[str] = set()
    for name in names:
        if values := fields.getall(name, ()):
            found.update([value.strip(" \t") for value in values])
    if not found:
        return None
    if len(found) > 1:
        raise ConflictingSessionId(_disagreement(fields.items(), names))
    return valid_id(found.pop())


def preferred_id(pairs: Iterable[tuple[str, str]], names: Iterable[str]) -> str | None:
    """The ID in `sessionId`, where one other header of `names` stands beside it and says another one; None where
    headers disagree in any other way. Raises InvalidSessionId."""
    wanted = _lower(tuple(names))
    said: dict[str, set[str]] = {}
    for name, value in pairs:
        if (lower := name.lower()) in wanted:
            said.setdefault(lower, set()).add(value.strip(" \t"))
    if _PREFERRED not in said or len(said) != 2 or any([len(ids) > 1 for ids in said.values()]):
        return None
    return valid_id(said[_PREFERRED].pop())


def _disagreement(pairs: Iterable[tuple[str, str]], names: Iterable[str]) -> str:
    """Which headers disagree, not what they say: an ID may be a front proxy's, which its client need not know."""
    spelled = {name.lower(): name for name in names}
    there = list(dict.fromkeys([spelled[lower] for name, _ in pairs if (lower := name.lower()) in spelled]))
    if len(there) == 1:
        return f"The header {there[0]} came more than once, with different session IDs. Send it once."
    listed = f"{', '.join(there[:-1])} and {there[-1]}"
    return f"The headers {listed} carry different session IDs. Send one of them, or the same ID in each."


@lru_cache(16)
def _lower(names: tuple[str, ...]) -> frozenset[str]:
    return frozenset([name.lower() for name in names])


@lru_cache(256)
def placeholder(session_id: str) -> str | None:
    """The part of a session ID that shows a template whose value was missing, such as `undefined` or `{{user}}`; an
    empty text where nothing was filled in at all. None for an ID that shows none."""
    found = _PLACEHOLDER.search(session_id)
    return found[0] if found else None


def valid_id(value: str) -> str:
    """A session ID as it is. Raises InvalidSessionId."""
    if not 1 <= len(value) <= MAX_ID:
        raise InvalidSessionId(f"A session ID has 1 to {MAX_ID} characters; this one has {len(value)}.")
    if not value.isprintable() and any(unicodedata.category(character) in ("Cc", "Cs") for character in value):
        raise InvalidSessionId("A session ID is valid UTF-8 without control characters. Choose another one.")
    return value


def credential(fields: Fields) -> str | None:
    """The caller's credential: `Authorization`, else `api-key`, else `x-api-key`."""
    for name in _CREDENTIALS:
        if value := fields.get(name):
            return value
    return None


def bare_key(credential: str) -> str:
    """The key in a credential: what follows `Bearer`, or all of it."""
    scheme, _, key = credential.partition(" ")
    return key.strip() if scheme.lower() == "bearer" and key else credential


def client_name(credential: str | None, clients: Sequence[tuple[str, Iterable[str]]]) -> str | None:
    """The name of the client whose list holds the SHA-256 of the caller's key, else None."""
    if credential is None or not clients:
        return None
    digest = hashlib.sha256(bare_key(credential).encode(errors="surrogateescape")).hexdigest()
    for name, hashes in clients:
        if any([hmac.compare_digest(digest, known) for known in hashes]):
            return name
    return None


@lru_cache(1024)
def tenant(kind: str, value: str | None, secret: bytes) -> bytes:
    """A tenant's opaque name: a keyed hash, so that the store holds no credential.

    `kind` keeps a client called like a key, a header and a key apart from each other.
    """
    text = f"{kind}\0{value}" if value is not None else kind
    return hmac.digest(secret, text.encode(errors="surrogateescape"), "sha256")


def choice(headers: Mapping[str, str], name: str, words: Collection[str]) -> str | None:
    """Which of `words` an optional header of ours says; None without it. Another one is the caller's mistake."""
    value = headers.get(name)
    if value is None:
        return None
    word = value.strip().lower()
    if word not in words:
        known = " or ".join([f"'{word}'" for word in words])
        raise BadRequest(f"The header {name} can be {known}. Send that, or leave it out.", param=name)
    return word


def idempotency_key(headers: Mapping[str, str]) -> str | None:
    """The key by which a request is recognised when it comes again; None without one. Raises BadRequest."""
    key = headers.get("Idempotency-Key")
    if key is None:
        return None
    if not 1 <= len(key) <= MAX_KEY or any(unicodedata.category(character) == "Cc" for character in key):
        raise BadRequest(
            f"An Idempotency-Key has 1 to {MAX_KEY} characters, none of them a control character. Choose another one.",
            param="Idempotency-Key",
        )
    return key
