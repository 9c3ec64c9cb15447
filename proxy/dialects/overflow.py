"""How upstreams say that a prompt does not fit the model, and the numbers they name.

Pure, bytes to values. What follows of it is not known here. Every upstream has words of its own, and some have
several; a rate limit counts tokens too, and is another thing.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from proxy.core.model import Ask
from proxy.dialects.profiles import statements

# 413: some gateways. 429: Azure's Grok. 500: llama.cpp's older servers and forks. 200: LM Studio, and routers whose
# model failed after they had answered.
STATUSES = frozenset((200, 400, 413, 422, 429, 500))
LEAST, MOST = 128, 100_000_000  # tokens: what a limit may be; other numbers are codes and counts
SHARE = 8  # of a limit that an answer is left as room for, where the request does not say how long it may be


class Overflow(NamedTuple):
    """`limit`: what the model takes, the answer included at most upstreams; `tokens`: what the prompt has. None
    where the error does not name it."""

    limit: int | None = None
    tokens: int | None = None


_CODES = re.compile(
    r"context_length_exceeded|exceed_context_size|too_many_prompt_tokens|context_window_exceeded"
    r"|ContextWindowExceeded|max_context_length|context_too_long|context_overflow"
)
_SAYS = re.compile(
    r"(?:maximum|max|available|model'?s?|total) (?:context|prompt|model|input|sequence) (?:length|size|window|limit)"
    r"|exceed\w* (?:the |max |its |model |limit )*(?:context|token limit|limit of \d+ tokens)"
    r"|exceed\w*[^.]{0,40}(?:context (?:length|size|window|limit)|number of tokens|total tokens limit|max length)"
    r"|context (?:length|size|window|limit)\w* (?:is |was |has been )?exceed|exceeds limit \(\d+\)"
    r"|token count[^.]{0,30}exceed|tokens? exceed\w* (?:the )?(?:configured )?limit|token limit (?:reached|exceeded)"
    r"|(?:prompt|input|conversation|messages?|request)\b[^.]{0,40} (?:is|are) too long|too many (?:prompt|input) tokens"
    r"|longer than the (?:model|maximum|context)|greater than the context|too large for model|context the overflows"
    r"|reduce the length of (?:the|your) (?:messages|prompt|input)|prompt too long|input length should be"
    r"|inputs` tokens \+ `max_new_tokens`",
    re.IGNORECASE,
)
_RATES = re.compile(r"rate.?limit|per (?:minute|hour|day|second)|\b[RT]P[MD]\b|quota|credit|afford", re.IGNORECASE)
_LIMITS = (
    r"n_ctx\W{0,4}(\d+)",
    r"<= ?(\d+)",
    r"\[1, (\d+)\]",
    r"> ?(\d+)",
    r"(\d+) max",
    r"allowed\D{0,3}(\d+)",
    r"(?:context|prompt|model|input) (?:length|size|window)(?: of| is|:)?(?: only)?[ (]{1,3}(\d+)",
    r"context window \w+ (\d+)",
    r"limit(?: of| is|:)? ?(\d+)",
)
_TOKENS = (
    r"n_prompt_tokens\W{0,4}(\d+)",
    r"(\d+) (?:in (?:the|your) (?:messages|prompt)|of text input|tokens from the input|input tokens|`inputs` tokens)",
    r"(?:resulted in|contains|you requested(?: about)?|input tokens|prompt tokens|keep the first|too long:) (\d+)",
    r"token count\D{0,5}(\d+)",
    r"(?:n_keep: |total length |length is |length )(\d+)",
    r"\((\d+) tokens\) (?:exceeds|is longer)",
    r"requested tokens \((\d+)\)",
    r"given: (\d+)",
    r"(\d+) tokens >",
)
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}\b)")
_ROOM = re.compile(rb'"max_(?:completion_)?tokens"\s*:\s*(\d{1,9})')


def overflow(status: int, body: bytes) -> Overflow | None:
    """What an error says about a prompt that does not fit; None where it says nothing of the kind."""
    if status not in STATUSES or (status == 200 and b'"error"' not in body):
        return None
    said = [body.decode(errors="replace"), *statements(body)]
    if not any([_CODES.search(text) or (_SAYS.search(text) and not _RATES.search(text)) for text in said]):
        return None
    said = [_THOUSANDS.sub("", text) for text in said]
    return Overflow(_named(_LIMITS, said), _named(_TOKENS, said))


def _named(patterns: tuple[str, ...], said: list[str]) -> int | None:
    """The number that the first of the patterns finds that finds one."""
    for pattern in patterns:
        for text in said:
            for number in re.findall(pattern, text, re.IGNORECASE):
                if LEAST <= int(number) <= MOST:
                    return int(number)
    return None


def room(ask: Ask, limit: int) -> int:
    """The part of a limit that a request leaves to its answer: as much as it asks for, up to the half."""
    found = _ROOM.search(ask.body[: ask.start] + ask.body[ask.end :])
    return min(int(found[1]) if found else limit // SHARE, limit // 2)
