"""Recognises errors that say that a request is too long, and reads the limits they name.

Pure, bytes to values; the caller acts on them. Upstreams have several wordings each. Rate limits count tokens, too, and
are told apart.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import NamedTuple

from proxy.core.model import Ask
from proxy.dialects.chat.profiles import statements

# 413: gateways, and GitHub Models. 429: Azure's Grok. 500: llama.cpp's older servers and forks. 200: LM Studio, SGLang,
# and routers whose model failed after they had answered.
STATUSES = frozenset((200, 400, 413, 422, 429, 500))
LEAST, MOST = 128, 100_000_000  # tokens: what a limit may be; other numbers are codes and counts
_LONGEST = 64 * 1024  # bytes of an error that is waited for
SHARE = 8  # of a limit that an answer is left as room for, where the request does not say how long it may be
LARGEST = 0.75  # of a limit: who asks for a longer answer asks for what no prompt leaves room for


class Kind(StrEnum):
    """What there is too much of."""

    TOKENS = "tokens"
    MESSAGES = "messages"
    IMAGES = "images"
    BYTES = "bytes"


class Overflow(NamedTuple):
    """`limit`: how much of its kind is taken; of tokens the answer's are part at most upstreams. `tokens`: what the
    prompt has, `answer`: what it was to leave room for. None where the error does not name it."""

    limit: int | None = None
    tokens: int | None = None
    kind: Kind = Kind.TOKENS
    answer: int | None = None


_CODES = re.compile(
    r"context_length_exceeded|exceed_context_size|too_many_prompt_tokens|context_window_exceeded|tokens_limit_reached"
    r"|ContextWindowExceeded|max_context_length|context_too_long|context_overflow|max_tokens_per_request"
)
_SAYS = re.compile(
    r"(?:maximum|max|available|model'?s?|total) (?:context|prompt|model|input|sequence) (?:length|size|window|limit)"
    r"|exceed\w* (?:the |max |its |model |limit )*(?:context|token limit|limit of \d+ tokens)"
    r"|exceed\w*[^.]{0,40}(?:context (?:length|size|window|limit)|number of tokens|total tokens limit|max length)"
    r"|context (?:length|size|window|limit)\w* (?:is |was |has been )?(?:exceed|full)|exceeds limit \(\d+\)"
    r"|context size has been|reached context length|max length exceeded|exceed\w* (?:the )?max(?:imum)? message tokens"
    r"|token count[^.]{0,30}exceed|tokens? exceed\w* (?:the )?(?:configured )?limit|token limit (?:reached|exceeded)"
    r"|token length \d+ exceeds|tokens? exceeds? the model'?s max|exceeds (?:the )?max(?:imum)? input"
    r"|token count is \d+ but|max_(?:seq_len|num_tokens|input_len)\b|size limit exceeded by \d+ tokens"
    r"|(?:prompt|input|conversation|messages?|request)\b[^.]{0,40} (?:is|are) too long|prompt too long"
    r"|too many (?:prompt |input )?tokens"
    r"|longer than the (?:model|maximum|context)|greater than the context|too large for model|context the overflows"
    r"|too large for [^ ]+ model\. max size: \d+ tokens|must have less than \d+ tokens"
    r"|reduce the length of (?:the|your) (?:messages|prompt|input)|input length should be"
    r"|inputs` tokens \+ `max_new_tokens`",
    re.IGNORECASE,
)
_RATES = re.compile(
    r"rate.?limit|per (?:minute|hour|day|second)|\b[RT]P[MD]\b|quota|credit|afford|throttl|please wait", re.IGNORECASE
)
_MESSAGES = (
    r"messages'?: array too long. expected an array with maximum length (\d+)",
    r"(?:too many messages|messages? (?:count|limit|array))[^.]{0,60}?(?:max\w*|at most|limit|exceeds?)\D{0,20}(\d+)",
    r"(?:at most|maximum (?:of|number of)|up to|more than) (\d+) messages",
    r"too many messages",
)
_IMAGES = (
    r"exceed\w* (?:the )?maximum of (\d+) (?:images?)? ?(?:allowed )?per request",
    r"at most (\d+) (?:image|audio|video)",
    r"(?:images?|media)\b[^.>]{0,60}> ?(\d+)",
    r"too many images[^.]{0,60}\. max is (\d+)",
    r"(?:maximum|max|limit|up to|more than)(?: number)?(?: of)?(?: is)? (\d+) images?",
    r"too (?:many images|much media)",
)
_BYTES = (
    r"(?:payload|body|request|message) size[^.]{0,40}(?:exceeds|exceeded)?[^.]{0,30}limit:? (\d+)",
    r"maximum request body size (\d+) exceeded",
    r"size \d+ exceeds limit (\d+)",
    r"request_too_large|(?:request|payload|body)[^.]{0,20} exceeds the maximum (?:allowed )?size"
    r"|(?:entity|payload|content|body) too large",
)
_LIMITS = (
    r"n_ctx\W{0,4}(\d+)",
    r"<= ?(\d+)",
    r"\[1, (\d+)\]",
    r"> ?(\d+)",
    r"(\d+) max",
    r"context (?:length|size|window)(?: of| is|:)?(?: only)?[ (]{1,3}(\d+)",
    r"maximum (?:prompt|model|input)(?: sequence)? (?:length|size|window)(?: of| is|:)?(?: only)?[ (]{1,3}(\d+)",
    r"allowed\D{0,3}(\d+)",
    r"max size: (\d+) tokens",
    r"max_seq_len \((\d+)\)",
    r"max_num_tokens \((\d+)\)",
    r"only supports up to (\d+)",
    r"exceeds the session length (\d+)",
    r"less than (\d+) tokens",
    r"cannot exceed (\d+)",
    r"(?:max|context length) of (\d+)",
    r"max length: ?(\d+)",
    r"context length of \S+ is (\d+)",
    r"(?:prompt|model) (?:length|size|window)(?: of| is|:)?(?: only)?[ (]{1,3}(\d+)",
    r"max (\d+) tokens",
    r"context window \w+ (\d+)",
    r"limit(?: of| is|:)? ?(\d+)",
)
_TOKENS = (
    r"n_prompt_tokens\W{0,4}(\d+)",
    r"prompt_tokens(?:=| \()(\d+)",
    r"(\d+) (?:in (?:the|your) (?:messages|prompt)|of text input|tokens from the input|input tokens|`inputs` tokens)",
    r"(?:resulted in|contains|you requested(?: about)?|input tokens|prompt tokens|keep the first|too long:) (\d+)",
    r"token count(?: is)?\D{0,5}(\d+)",
    r"token length (\d+)",
    r"(?:n_keep: |total length |(?<!context )length (?:is |\()?)(\d+)",
    r"\((\d+) tokens\) (?:exceeds|is longer)",
    r"requested tokens \((\d+)\)",
    r"\(requested: (\d+)\)",
    r"requested (\d+) tokens, max",
    r"received (\d+)",
    r"given: (\d+)",
    r"(\d+) tokens >",
)
_ANSWERS = (
    r"(\d+) (?:in the (?:completion|output)|for the completion|output tokens|tokens for the completion)",
    r"`max_tokens` exceed context limit: \d+ \+ (\d+)",
    r"(?:max_tokens|max_completion_tokens)'? is too large: (\d+)",
    r"and (\d+) `max_new_tokens`",
)
_TOOLS = re.compile(r"(\d+) of tool input", re.IGNORECASE)
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}\b)")
_ROOM = re.compile(rb'"max_(?:completion_)?tokens"\s*:\s*(\d{1,9})')
_COMMENTS = re.compile(rb"\s*(?:(?::[^\n]*)?\r?\n)*")  # of a stream, before its first event
_EVENT = re.compile(rb"\s*(?:(?::[^\n]*|event:[^\n]*|id:[^\n]*|retry:[^\n]*)?\r?\n)*")  # before its data
_NAMED = re.compile(rb"^event: ?error", re.MULTILINE)


def overflow(status: int, body: bytes) -> Overflow | None:
    """What an error says about a request that is too much; None where it says nothing of the kind."""
    if status not in STATUSES or (status == 200 and b'"error' not in body):
        return None
    said = [body.decode(errors="replace"), *statements(body)]
    rates = [_RATES.search(text) is not None for text in said]
    said = [_THOUSANDS.sub("", text) for text in said]
    if any([_CODES.search(text) or (_SAYS.search(text) and not rate) for text, rate in zip(said, rates, strict=True)]):
        return _of_tokens(said)
    if any(rates):
        return None
    for kind, patterns in ((Kind.MESSAGES, _MESSAGES), (Kind.IMAGES, _IMAGES), (Kind.BYTES, _BYTES)):
        found = [each for pattern in patterns for text in said for each in re.finditer(pattern, text, re.IGNORECASE)]
        if found:
            named = [int(each[1]) for each in found if each.groups() and each[1]]
            return Overflow(next(iter(named), None), kind=kind)
    return Overflow(kind=Kind.BYTES) if status == 413 else None


def _of_tokens(said: list[str]) -> Overflow:
    limit, tokens = _named(_LIMITS, said), _named(_TOKENS, said)
    tools = next((int(found[1]) for text in said if (found := _TOOLS.search(text))), 0)
    return Overflow(
        None if limit == tokens else limit, tokens + tools if tokens else None, answer=_named(_ANSWERS, said)
    )


def _named(patterns: tuple[str, ...], said: list[str]) -> int | None:
    """The number that the first of the patterns finds that finds one."""
    for pattern in patterns:
        for text in said:
            for number in re.findall(pattern, text, re.IGNORECASE):
                if LEAST <= int(number) <= MOST:
                    return int(number)
    return None


def room(ask: Ask, limit: int) -> int:
    """The part of a limit that a request leaves to its answer: what it asks for, if that is not nearly all of it."""
    wanted = _wanted(ask)
    return wanted if wanted is not None and wanted <= LARGEST * limit else limit // SHARE


def is_own(ask: Ask, found: Overflow, prompt: float) -> bool:
    """Whether it is the answer that a request asks for that does not fit, and not its prompt of about so many tokens:
    whatever is left out, there would be no room."""
    wanted = _wanted(ask) or found.answer
    if found.kind is not Kind.TOKENS or not found.limit or not wanted:
        return False
    return wanted > LARGEST * found.limit and (found.tokens or prompt) <= found.limit - found.limit // SHARE


def _wanted(ask: Ask) -> int | None:
    found = _ROOM.search(ask.body[: ask.start] + ask.body[ask.end :])
    return int(found[1]) if found else None


def begins(piece: bytes) -> bool:
    """Whether a piece of a stream says something: comments keep a connection alive."""
    return bool(_COMMENTS.sub(b"", piece, count=1))


def goes_on(piece: bytes) -> bool:
    """Whether the line that begins a stream is still on its way, and may be an error's."""
    line = _EVENT.sub(b"", piece, count=1)
    return len(line) < _LONGEST and b"\n" not in line and b"\r" not in line and b'"choices"' not in line


def within(piece: bytes) -> Overflow | None:
    """What the first event of a stream says about a prompt that does not fit."""
    line = _EVENT.sub(b"", piece, count=1)
    field, _, said = line.partition(b":")
    if field not in (b"data", b"error"):
        return None
    named = _NAMED.search(piece, 0, len(piece) - len(line)) and b'"choices"' not in said
    return overflow(400 if named or field == b"error" else 200, said.strip())
