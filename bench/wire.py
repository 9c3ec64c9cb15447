"""What the clients and the upstream of the benchmark say to each other, as bytes.

Every message of a session carries the session's tag, and the upstream's answer tells how many messages, and how many
tags of the newest one, it was sent: a message that is lost, doubled or another session's shows in the answer. All
numbers have a fixed width, so that the right answer to a request is known before it is sent. Knows no sockets.
"""

from __future__ import annotations

import re

LOREM = b"Lorem ipsum dolor sit amet, consectetur adipiscing elit, sed do eiusmod tempor incididunt ut labore. " * 2
STAMP = re.compile(rb"@(\d{19})@")  # monotonic ns at which a delta was handed to the kernel
HEARD = re.compile(rb"heard \d{6} of \d{6}")
COUNTS = re.compile(rb"heard \d{6} of \d{6}|_tokens\":\d{7}")
TAG = re.compile(rb"#\d{7}#")
PACE = re.compile(rb'"pace_us":(\d+),')
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)
CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked\r\n", re.IGNORECASE)
DELTAS = 64  # of a stream, between its first event and its end
LAST_CHUNK = b"0\r\n\r\n"


def tag(number: int) -> bytes:
    return b"#%07d#" % number


def message(role: bytes, session: bytes, number: int) -> bytes:
    """Message `number` of a session's client, some 240 bytes."""
    return b'{"role":"%b","content":"%b %04d %.180b"}' % (role, session, number, LOREM)


def reply(session: bytes, messages: int) -> bytes:
    """The upstream's message after that many."""
    return _reply(session, messages, messages)


def _reply(session: bytes, tags: int, messages: int) -> bytes:
    return b'{"role":"assistant","content":"%b heard %06d of %06d %.180b"}' % (session, tags, messages, LOREM)


# Requests ----------------------------------------------------------------------------------


def body(messages: bytes, pace: int | None) -> bytes:
    """A request's body. `messages`: objects joined by commas; `pace`: us between the deltas of a stream, None: no
    stream."""
    stream = b"" if pace is None else b'"stream":true,"pace_us":%d,' % pace
    return b'{"model":"bench",%b"messages":[%b]}' % (stream, messages)


def request(body: bytes, session: bytes | None) -> bytes:
    """The whole request; `session`: the tag that becomes its session ID."""
    header = b"sessionId: bench-%b\r\n" % session.strip(b"#") if session else b""
    return (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
        b"Authorization: Bearer sk-bench\r\nAccept: */*\r\n%bContent-Length: %d\r\n\r\n%b" % (header, len(body), body)
    )


# Answers -----------------------------------------------------------------------------------


def heard(body: bytes) -> tuple[bytes, int, int]:
    """The newest tag of a request's body, how often it is there, and how many messages there are."""
    tags = TAG.findall(body, max(0, len(body) - 400))
    return (tags[-1], body.count(tags[-1]), body.count(b'"role"')) if tags else (tag(0), 0, body.count(b'"role"'))


def answer(session: bytes, tags: int, messages: int) -> bytes:
    """The body of an answer in one piece, some 560 bytes."""
    return (
        b'{"id":"chatcmpl-bench","object":"chat.completion","created":1700000000,"model":"bench-2026-01-01",'
        b'"choices":[{"index":0,"message":%b,"logprobs":null,"finish_reason":"stop"}],'
        b'"usage":{"prompt_tokens":%d,"completion_tokens":48,"total_tokens":%d},'
        b'"service_tier":"default","system_fingerprint":"fp_0123456789"}'
        % (_reply(session, tags, messages), 1_000_000 + messages, 1_000_048 + messages)
    )


def first_event(session: bytes, tags: int, messages: int) -> bytes:
    return _event(b'{"role":"assistant","content":"%b heard %06d of %06d "}' % (session, tags, messages))


def delta(nanoseconds: int) -> bytes:
    return _DELTA % nanoseconds


def stream(session: bytes, messages: int) -> bytes:
    """The body of a whole stream, its stamps zero."""
    return first_event(session, messages, messages) + delta(0) * DELTAS + END


def _event(delta: bytes, finish: bytes = b"null") -> bytes:
    return (
        b'data: {"id":"chatcmpl-bench","object":"chat.completion.chunk","created":1700000000,'
        b'"model":"bench-2026-01-01","system_fingerprint":"fp_0123456789",'
        b'"choices":[{"index":0,"delta":%b,"logprobs":null,"finish_reason":%b}]}\n\n' % (delta, finish)
    )


_DELTA = _event(b'{"content":"@%019d@ lorem"}')
END = _event(b"{}", b'"stop"') + b"data: [DONE]\n\n"


# Framing -----------------------------------------------------------------------------------


def head(framing: bytes, kind: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\n%b\r\n\r\n" % (kind, framing)


def with_length(body: bytes, kind: bytes = b"application/json") -> bytes:
    return head(b"Content-Length: %d" % len(body), kind) + body


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def unchunked(data: bytes) -> bytes:
    """What chunks carry; ValueError where they are broken."""
    pieces, position = [], 0
    while size := int(data[position : (start := data.index(b"\r\n", position) + 2)], 16):
        pieces.append(data[start : start + size])
        position = start + size + 2
    return b"".join(pieces)
