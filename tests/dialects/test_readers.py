"""What a client library reads of a stream or a body is what the history has: random ones, against a slow reader that is
written from the libraries' behaviour. 100,000 in `make fuzz`."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from proxy.core.json_bytes import Malformed
from proxy.dialects.chat import wire
from tests.support import reader
from tests.support.reader import READERS, paired

MANY = settings(max_examples=100_000 if os.environ.get("PROFILE") == "fuzz" else 400)
BOM = b"\xef\xbb\xbf"
ENDS = [b"\n\n", b"\n\n", b"\n\n", b"\r\n\r\n", b"\r\r", b"\n", b"\r\n", b"\r", b"\n\r\n", b"\r\n\n", b"\n\n\n", b""]
SAID = ["a", " b", "é", "\U0001f600", "", '\\"', "\\n", "\\ud83d", "\\ude00", "[DONE]", "data: x", "\u2028", "\\u0000"]
SAID_RAW = [*[text.encode() for text in SAID], b"\xff", b"\xf0\x9f", b"\x98\x80", b"\xed\xa0\x80", b"\t"]
EXTRA = [
    b"",
    b"",
    b"",
    b',"logprobs":{"content":[{"logprob":-Infinity}]}',
    b',"logprobs":NaN',
    b',"x":1e400',
    b',"x":' + b"9" * 40,
    b',"x":' + b"9" * 5000,
    b',"finish_reason":"stop"',
    b',"finish_reason":null',
]
OTHER = [
    b'{"choices":[],"usage":{"total_tokens":3}}',
    b'{"choices":[],"usage":{"cost":NaN}}',
    b"[DONE]",
    b"[DONE] ",
    b"[1,2]",
    b"null",
    b"42",
    b"{}",
    b"",
    b"{",
    b"no JSON",
    b'{"error":null,"choices":[]}',
    b'{"error":{"message":"overloaded"}}',
    BOM + b"{}",
]
LINES = [b": ping", b":", b"retry: 3000", b"retry: x", b"id: 7", b"id", b"event: x", b"event", b"x: y", b"junk", BOM]


@st.composite
def chunks(draw: st.DrawFn) -> bytes:
    if draw(st.integers(0, 4)) == 0:
        return draw(st.sampled_from(OTHER))
    said = b"".join(draw(st.lists(st.sampled_from(SAID_RAW), max_size=3)))
    index = draw(st.sampled_from([b'"index":0,', b'"index":0,', b"", b'"index":1,']))
    return b'{"choices":[{%b"delta":{"content":"%b"}%b}]}' % (index, said, draw(st.sampled_from(EXTRA)))


@st.composite
def events(draw: st.DrawFn) -> bytes:
    kind, end = draw(st.integers(0, 9)), draw(st.sampled_from(ENDS))
    if kind == 0:
        return draw(st.sampled_from(LINES)) + end
    colon = draw(st.sampled_from([b"data: ", b"data: ", b"data:", b"data:  ", BOM + b"data: ", b"event: y\ndata: "]))
    data = draw(chunks())
    if kind == 1:  # in several lines
        one = draw(st.sampled_from([b"\n", b"\r\n", b"\r"]))
        data = data.replace(b'"choices":', b'"choices":' + one + b"data: ")
    return colon + data + end


STREAMS = st.tuples(st.sampled_from([b"", b"", b"", BOM, b"\n"]), st.lists(events(), max_size=7)).map(
    lambda drawn: drawn[0] + b"".join(drawn[1])
)


def text_of(message: bytes | None) -> str:
    content = json.loads(message)["content"] if message else None
    return paired(content or "")


def delta(text: bytes) -> bytes:
    return b'data: {"choices":[{"index":0,"delta":{"content":"%b"}}]}' % text


@MANY
@given(STREAMS)
@example(delta(b"a") + b"\n" + delta(b"b") + b"\n\n")
@example(BOM + delta(b"a") + b"\n\n" + delta(b"b"))
@example(delta(b"\\ud83d") + b"\n\n" + delta(b"\\ude00") + b"\n\ndata: [DONE]")
@example(delta(b"a") + b"\n" + BOM + b"\n" + delta(b"b") + b"\n\n")
@example(delta(b"\xf0\x9f") + b"\r\r" + delta(b"\x98\x80") + b"\r\r")
def test_a_stream_is_recorded_as_some_library_reads_it(body: bytes) -> None:
    reply = wire.fold_stream(body)
    # openai-node alone takes a byte order mark off each line; a line that the others pass over is in the history.
    readers = [reader.node] if BOM in body else READERS
    ours, reads = text_of(reply.message), [read(body) for read in readers]
    whole = [paired(read.text) for read in reads if read.whole]
    if any([read.failed for read in reads]):
        return  # and at least one of them has told its user
    if whole and reader.is_pending(body):  # of which they drop what they cannot read
        assert reply.error or begins(ours, whole[0])
    elif whole:
        assert not reply.error and ours == whole[0]
    else:  # nobody reads it to its end: what was read until then is there
        assert reply.error or begins(ours, max([read.text for read in reads], key=len))


def begins(ours: str, theirs: str) -> bool:
    """Also where theirs ends within a character."""
    return ours.encode("utf-16", "surrogatepass").startswith(theirs.encode("utf-16", "surrogatepass"))


@MANY
@given(STREAMS)
def test_the_slow_reader_reads_as_openai_python_does(body: bytes) -> None:
    streaming = pytest.importorskip("openai._streaming")

    def theirs() -> list[str] | None:
        found = []
        try:
            for event in streaming.SSEDecoder().iter_bytes(iter([body])):
                found.append(event.data)
        except UnicodeDecodeError:
            return None
        return found

    def ours() -> list[str] | None:
        try:
            return list(reader._python_events(body))
        except UnicodeDecodeError:
            return None

    known, told = theirs(), ours()
    assert (told is None) == (known is None)
    if known is not None and told is not None:
        assert told[: len(known)] == known and len(told) <= len(known) + 1  # one may be pending


COMPLETION = (
    b'{"id":"x","choices":[{"index":0,"message":{"role":"assistant","content":"TEXT"},"finish_reason":"stop"}]}'
)


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    said = b"".join(draw(st.lists(st.sampled_from(SAID_RAW), max_size=3)))
    body = COMPLETION.replace(b"TEXT", said)
    odd = draw(
        st.sampled_from([b"", b'"logprobs":NaN,', b'"a":-Infinity,', b'"a":1e999,', b'"a":' + b"1" * 5000 + b","])
    )
    body = body.replace(b'"finish_reason"', odd + b'"finish_reason"')
    before = draw(st.sampled_from([b"", b"", BOM, b"\n \n", b" " + BOM]))
    behind = draw(st.sampled_from([b"", b"", b"\n", b"\n\ndata: [DONE]\n\n", b"{}", b"x"]))
    body = before + body + behind
    if draw(st.integers(0, 9)) == 0:
        body = body.decode(errors="replace").encode(draw(st.sampled_from(["utf-16", "utf-16-le", "utf-32"])))
    return body


@MANY
@given(bodies())
def test_a_body_is_recorded_as_some_library_reads_it(body: bytes) -> None:
    reads = [text for text in (reader.whole_node(body), reader.whole_python(body)) if text is not None]
    try:
        reply: Any = wire.fold_body(body)
    except Malformed:
        reply = None
    if not reads:
        # One that needs both libraries to be read is read as well.
        assert reply is None or any([word in body.replace(b"\0", b"") for word in (b"NaN", b"Infinity")])
    else:
        assert reply is not None
        assert text_of(reply.message) in map(paired, reads)
