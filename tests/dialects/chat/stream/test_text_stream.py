"""Streams of text alone: folded in one go, and to the same reply as any other stream."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.model import Reply
from proxy.dialects.chat import wire
from proxy.dialects.chat.stream import text_stream

END = b"data: [DONE]\n\n"


def stream(*chunks: Any) -> bytes:
    return b"".join([b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks]) + END


def said(finish: str | None = None, /, **delta: Any) -> dict[str, Any]:
    return {"model": "m", "choices": [{"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}]}


HI = said(content="hi")
REPLY = Reply(b'{"role":"assistant","content":"hi"}', "m")


def test_a_stream_of_text_is_folded() -> None:
    usage = {"choices": [], "usage": {"total_tokens": 2, "details": {"n": [1.0, None]}}}
    body = stream(said(role="assistant", content="", refusal=None), HI, said(content=" ho"), said("stop"), usage)
    assert text_stream.folded(body) == Reply(
        b'{"role":"assistant","content":"hi ho"}',
        "m",
        "stop",
        b'{"total_tokens":2,"details":{"n":[1.0,null]}}',
        finished=True,
    )


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
def test_thoughts_are_text(name: str) -> None:
    so: dict[str, Any] = {name: "so", "tool_calls": []}
    body = stream(said(**so), said(**{name: "!"}), said(content="x"))
    reply = text_stream.folded(body)
    assert reply and reply.message == b'{"role":"assistant","content":"x","%b":"so!"}' % name.encode()


@pytest.mark.parametrize("before", [b"", b": waiting\n\n", b": waiting\n\n: still\n\n"])
@pytest.mark.parametrize("behind", [b"", b"data: {\n\n", b"\r\n", b": \xff\n\n"])
def test_what_stands_before_and_behind_counts_for_nothing(before: bytes, behind: bytes) -> None:
    assert text_stream.folded(before + stream(HI) + behind) == REPLY


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b":",
        b": waiting\n\n",
        END,
        stream(),
        stream({"choices": []}),
        stream(HI)[: -len(END)],
        stream(HI).replace(b"\n", b"\r\n"),
        stream(HI).replace(b"\n\n", b"\n"),
        stream(HI).replace(b"data: ", b"data:"),
        stream(HI).replace(b"data: {", b"event: x\ndata: {"),
        b"\xef\xbb\xbf" + stream(HI),
        stream(HI, 5),
        stream(HI) * 2,
        stream(HI).replace(b"hi", b"\xff"),
        stream(HI).replace(b"null", b'{"x":"\xff"}'),
        stream(HI).replace(b"hi", b"\\ud800"),
        stream(said(tool_calls=[{"index": 0}])),
        stream(said(refusal="no")),
        stream(said(content=["hi"])),
        stream(said(content="hi", name="x")),
        stream(said(reasoning="a"), said(reasoning_content="b")),
        stream(HI, said("error")),
        stream(HI, said("null")),
        stream(HI, {**HI, "error": {"code": 502}}),
        stream({"choices": [*HI["choices"], *HI["choices"]]}),
        stream({"choices": [{"index": 1, "delta": {"content": "x"}}]}),
        stream({"choices": [{"index": 0, "finish_reason": "stop"}]}),
        stream({**HI, "usage": 5}),
        b'data: {"choices":' + b"[" * 100_000 + b"\n\n" + END,
    ],
)
def test_any_other_stream_is_left_to_who_reads_event_by_event(body: bytes) -> None:
    assert text_stream.folded(body) is None


_odd: st.SearchStrategy[Any] = st.sampled_from([None, "", "x", 0, 1, 2.5, 1 << 70, False, [], {}, {"a": 1}, "\ud800"])
_text = st.none() | st.text()
_plain_delta = st.fixed_dictionaries({}, optional={"role": _text, "content": _text, "reasoning": _text})
_delta = st.fixed_dictionaries(
    {},
    optional={
        "role": _odd,
        "content": _odd | st.text(),
        "reasoning": _odd,
        "reasoning_content": _odd,
        "refusal": _odd,
        "tool_calls": _odd,
        "name": _odd,
    },
)
_choice = st.fixed_dictionaries(
    {"delta": _plain_delta},
    optional={"index": st.just(0), "finish_reason": st.sampled_from([None, "", "stop", "length"])},
) | st.fixed_dictionaries(
    {}, optional={"index": _odd, "delta": _delta | _odd, "finish_reason": _odd, "error": _odd, "logprobs": _odd}
)
_chunk = st.fixed_dictionaries(
    {"choices": st.lists(_choice, max_size=1) | st.lists(_choice, max_size=2)},
    optional={"model": _odd, "usage": _odd | st.dictionaries(st.text(), _odd), "error": st.none() | _odd, "id": _odd},
)


@given(st.lists(_chunk, max_size=6))
def test_what_is_read_in_one_go_is_read_the_same(chunks: list[Any]) -> None:
    body = stream(*chunks)
    other = body.replace(b"\n", b"\r\n")  # which is not read in one go
    assert text_stream.folded(other) is None
    assert wire.fold_stream(body) == wire.fold_stream(other)


def written(shape: bytes, texts: list[bytes]) -> list[bytes]:
    return [shape.replace(b"TEXT", text) for text in texts]


PLAIN = b'{"id":1,"choices":[{"delta":{"content":"TEXT"},"finish_reason":null}]}'


def test_events_that_differ_in_their_text_become_one() -> None:
    first, last = b'{"choices":[{"delta":{"role":"assistant","content":""}}]}', b'{"choices":[{"delta":{}}]}'
    many = written(PLAIN, [b"a", b"", b"\\n", b'\\"', "é".encode(), b'"}'.replace(b'"', b'\\"'), b"z"])
    one = written(PLAIN, [b'a\\n\\"\xc3\xa9\\"}z'])
    assert text_stream.fewer([first, *many, last]) == [first, *one, last]
    assert text_stream.fewer(many) == one and text_stream.fewer(one) == one
    assert text_stream.fewer([]) == [] and text_stream.fewer([last]) == [last]


@pytest.mark.parametrize(
    "shape",
    [
        b'{"choices":[{"delta":{"content":"TEXT","content":"y"}}]}',
        b'{"choices":[{"delta":{"content":"y"}}],"x":{"delta":{"content":"TEXT"}}}',
        b'{"choices":[{"delta":{"content":"TEXT"}}],"x":{"delta":1}}',
        b'{"choices":[{"\\u0064elta":{"content":"y"}}],"x":{"delta":{"content":"TEXT"}}}',
        b'{"x":{"delta":{"content":"TEXT"}},"choices":[{"\\u0064elta":{"content":"y"}}]}',
        b'{"choices":[{"delta":{"content":"TEXT"',
    ],
)
def test_events_of_which_more_counts_than_one_text_stay(shape: bytes) -> None:
    events = written(shape, [b"a", b"b", b"c"])
    assert text_stream.fewer(events) == events


@pytest.mark.parametrize("text", [b"\\", b'"', b"\\ud83d", b"\\u0041", b"\n", b"\x01", b'x","role":"y', b'"}'])
def test_texts_that_could_mean_more_together_stay(text: bytes) -> None:
    events = written(PLAIN, [text, text, b"n", b"n", b"n"])
    for run in (events, events[::-1], [*events, PLAIN]):
        assert text_stream.fewer(run) == run


def test_what_lies_between_events_of_a_kind_stays() -> None:
    a, b, other = *written(PLAIN, [b"a", b"b"]), b'{"choices":[{"delta":{"reasoning":"so"}}]}'
    assert text_stream.fewer([a, other, b]) == [a, other, b]
    assert text_stream.fewer([a, b, b, other, a]) == [a, b, b, other, a]


SHAPES = [
    PLAIN,
    b'{"choices":[{"delta":{"role":"assistant","content":"TEXT"}}]}',
    b'{"choices":[{"delta":{"reasoning":"TEXT"}}]}',
    b'{"choices":[{"delta":{"content":"TEXT","content":"y"}}]}',
    b'{"x":{"delta":{"content":"TEXT"}},"choices":[{"delta":{"content":"y"}}]}',
    b'{"x":{"delta":{"content":"TEXT"}},"choices":[{"\\u0064elta":{"content":"y"}}]}',
    b'{"choices":[{"delta":{"content":"TEXT"},"finish_reason":"stop"}],"usage":{"n":1},"model":"m"}',
    b'{"choices":[{"delta":{"content":"TEXT"}}',
]
_piece = st.sampled_from(
    [b"a", b" ", b"\\n", b'\\"', b"\\\\", b"\\", b'"', b"\\ud83d", b"\\ude00", b"\\u0041", b"\xc3", b"\xa9"]
    + ["é".encode(), b"\n", b"\r", b"\x01", b'"}', b'\\"}', b'","role":"x', b'"},"delta":{"content":"', b"[DONE]"]
)


@given(
    st.lists(st.sampled_from(SHAPES), min_size=1, max_size=2).flatmap(
        lambda shapes: st.lists(st.tuples(st.sampled_from(shapes), st.lists(_piece, max_size=3)), max_size=8)
    )
)
def test_events_taken_together_mean_what_each_of_them_does(told: list[tuple[bytes, list[bytes]]]) -> None:
    events = [shape.replace(b"TEXT", b"".join(pieces)) for shape, pieces in told]
    body = b"".join([b"data: " + event + b"\n\n" for event in events]) + END
    assert wire.fold_stream(body) == wire.fold_stream(body.replace(b"\n", b"\r\n"))


@given(
    st.lists(
        st.tuples(st.sampled_from([b"data: ", b"data:", b": ", b"x"]), st.sampled_from([b"\n", b"\n\n", b"\n\n\n"]))
    )
)
def test_however_events_are_written_they_are_read_the_same(parts: list[tuple[bytes, bytes]]) -> None:
    event = json.dumps(HI).encode()
    body = b"".join([begin + event + end for begin, end in parts]) + END
    assert wire.fold_stream(body) == wire.fold_stream(body.replace(b"\n", b"\r\n"))
