"""What only some reader makes sense of: event data, bodies, and what is plain text."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.json_bytes import Malformed
from proxy.dialects.chat.stream import lenient as odd

BOM = b"\xef\xbb\xbf"


A, B = {"a": 1}, {"b": 2}


@pytest.mark.parametrize(
    ("data", "wanted", "ended"),
    [
        (b'{"a":1}\n{"b":2}', [A, B], False),
        (b'{"a":1}\n[DONE]\n{"b":2}', [A], True),
        (b'{"a":\n1}\n{"b":2}\n{\n}', [A, B, {}], False),
        (b'{"a":\n1}\n[DONE]', [A], True),
        (b' {"a":1}\n\n{"b":2}\n ', [A, B], False),
        (b"no\n{\nJSON", [None], False),
        (b'{"a":\n{"b":2}', [None, B], False),
        (b"no JSON", [None], False),
        (b"", [None], False),
        (b"\n", [], False),
    ],
)
def test_events_with_one_line_end_between_them_are_told_apart(data: bytes, wanted: list[object], ended: bool) -> None:
    assert odd.chunks(data) == (wanted, ended)


OBJECTS = st.dictionaries(st.text(max_size=3), st.integers() | st.text(max_size=3), max_size=3)


@given(st.lists(OBJECTS, min_size=2, max_size=6))
def test_no_write_is_lost(objects: list[dict[str, object]]) -> None:
    data = b"\n".join([json.dumps(each).encode() for each in objects])
    assert odd.chunks(data) == (objects, False)


@pytest.mark.parametrize(
    "body",
    [
        b'{"a":"\xc3\xa9"}',
        b' \n{"a":"\xc3\xa9"}\n',
        BOM + b'{"a":"\xc3\xa9"}',
        '{"a":"é"}'.encode("utf-16"),
        '{"a":"é"}'.encode("utf-16-be"),
        '{"a":"é"}'.encode("utf-32"),
    ],
)
def test_a_body_is_read_in_each_form_that_a_library_reads(body: bytes) -> None:
    assert odd.document(body) == {"a": "é"}


@pytest.mark.parametrize("begins", [b"", BOM])
def test_bytes_that_are_no_utf8_cost_no_more_than_themselves(begins: bytes) -> None:
    assert odd.document(begins + b'{"a":"\xff"}') == {"a": "\ufffd"}
    assert odd.document(begins + b'{"a":"\xed\xa0\xbd"}') == {"a": "\ud83d"}  # as Python takes it


@pytest.mark.parametrize("body", [b"", b"{} x", b'{"a":"\t"}', b'{"a":1}\n{"b":2}', b"<html>", b"{'a':1}"])
def test_a_body_that_no_library_reads_is_malformed(body: bytes) -> None:
    with pytest.raises(Malformed):
        odd.document(body)


JSON = json.dumps({"a": [1, {"b": 'x"]}\\'}], "c": "{["}).encode()


@pytest.mark.parametrize("length", range(1, len(JSON)))
def test_json_that_is_cut_anywhere_is_torn(length: int) -> None:
    assert odd.is_torn(JSON[:length])


@pytest.mark.parametrize("behind", [b"", b"\n\ndata: [DONE]\n\n", b"{}", b'"x"', b"}"])
def test_json_with_something_behind_it_is_not_torn(behind: bytes) -> None:
    assert not odd.is_torn(JSON + behind)


TEXT, STREAM = "text/plain; charset=utf-8", "text/event-stream"


@pytest.mark.parametrize("content_type", ["", "application/json", STREAM, TEXT])
@pytest.mark.parametrize("text", ["Hello.", "Grüße: 👋\n\nBye\n", "a\tb\r\n", "note: this\nid est\n"])
def test_plain_text_is_a_reply(text: str, content_type: str) -> None:
    for begins in (b"", BOM):
        reply = odd.fold_text(begins + text.encode(), content_type)
        assert json.loads(reply.message or b"") == {"role": "assistant", "content": text}
        assert (reply.finished, reply.error) == (False, False)


def test_text_in_another_charset_keeps_what_is_ascii() -> None:
    reply = odd.fold_text("Grüße".encode("latin-1"), TEXT)
    assert json.loads(reply.message or b"")["content"] == "Gr\ufffd\ufffde"


@pytest.mark.parametrize("body", [b":) and more", b"event: tomorrow, at eight", b"error: none", b" data: x"])
def test_text_that_says_what_it_is_may_look_like_a_stream(body: bytes) -> None:
    assert json.loads(odd.fold_text(body, TEXT).message or b"")["content"] == body.decode()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b": ping\n\n",
        b": ping\n\ndat",
        b"event: x\nid: 1\nretry: 5\n",
        b"d",
        b"data: x",
        b'data: {"a":1}\n\ndata: x\n\n',
        b"data: x\n\ndata: {",
    ],
)
def test_of_a_stream_that_lacks_its_sign_nothing_remains(body: bytes) -> None:
    assert odd.fold_text(body, STREAM).message is None


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"data: Hello\n\ndata: you\n\n", STREAM),
        (b"data: Hello\n\n", TEXT),
        (b" data: {}\n\n", STREAM),
        (b"error: gone\nHello\n", ""),
        (b"\x89PNG\r\n\x1a\n\0\0", "image/png"),
        (b"\0\1\2", TEXT),
    ],
)
def test_what_has_no_text_for_anybody_is_malformed(body: bytes, content_type: str) -> None:
    with pytest.raises(Malformed):
        odd.fold_text(body, content_type)
