"""The members of a JSON object, found in its bytes: as the standard library reads them, and never otherwise."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.core.json_bytes import (
    Malformed,
    _slow_elements,
    _slow_members,
    dumps,
    elements,
    joined,
    lenient,
    loads,
    members,
    with_default,
)

SPACE = st.text(" \t\r\n", max_size=3)
NUMBERS = ["1.0", "1e400", "-0", "1" * 30, "1" * 5000, "1E+2", "0.1e-7"]
SURROGATES = ['"\\ud83d"', '"\\ude00 \\ud83d"']
TEXT = st.text(max_size=8) | st.sampled_from(["", '"', "\\", "\0", "\x7f", "é", "\u2028", "😀", "},{", "[DONE]"])
LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4))


@st.composite
def written(draw: st.DrawFn, value: Any) -> str:
    """A value as JSON text, with white space, escapes and separators as a client may choose them."""
    if draw(st.integers(0, 30)) == 0:
        return draw(st.sampled_from(NUMBERS + SURROGATES))
    if isinstance(value, dict):
        pairs = [f"{draw(key(name))}{draw(SPACE)}:{draw(padded(member))}" for name, member in value.items()]
        return "{" + (",".join(draw(SPACE) + pair for pair in pairs) or draw(SPACE)) + "}"
    if isinstance(value, list):
        return "[" + (",".join([draw(padded(element)) for element in value]) or draw(SPACE)) + "]"
    return json.dumps(value, ensure_ascii=draw(st.booleans()))


@st.composite
def key(draw: st.DrawFn, name: str) -> str:
    if draw(st.booleans()) and name.isascii():
        return '"' + "".join(f"\\u{ord(character):04X}" for character in name) + '"'
    return json.dumps(name, ensure_ascii=draw(st.booleans()))


@st.composite
def padded(draw: st.DrawFn, value: Any) -> str:
    return draw(SPACE) + draw(written(value)) + draw(SPACE)


@st.composite
def objects(draw: st.DrawFn) -> bytes:
    value = draw(st.dictionaries(TEXT, VALUES, max_size=5))
    pairs = [f"{draw(key(name))}:{draw(padded(member))}" for name, member in value.items()]
    return (draw(SPACE) + "{" + ",".join(pairs) + draw(SPACE) + "}" + draw(SPACE)).encode()


def plain(text: bytes) -> Any:
    """The standard library's reading, with numbers left as they stand."""
    return json.loads(text, parse_int=str, parse_float=str)


@given(objects())
def test_members_are_the_bytes_of_the_values_the_object_has(body: bytes) -> None:
    found = members(body)
    assert {name: plain(member.raw) for name, member in found.items()} == plain(body)
    assert list(found) == list(plain(body))
    assert all(body[member.start : member.end] == member.raw == member.raw.strip() for member in found.values())
    assert _slow_members(body) == found


@given(st.lists(VALUES, max_size=5).flatmap(padded))
def test_elements_are_the_bytes_of_the_values_the_array_has(text: str) -> None:
    raw = text.encode()
    if not raw.strip().startswith(b"["):
        with pytest.raises(Malformed):
            elements(raw)
        return
    assert [plain(element) for element in elements(raw)] == plain(raw)
    assert _slow_elements(raw) == elements(raw)


@given(st.text('{}[]",:\\01 anul.e-\n', max_size=12).map(str.encode) | st.binary(max_size=12))
@example(b'{"a":12,"a":1}')
def test_both_ways_to_read_accept_and_refuse_the_same(body: bytes) -> None:
    def answer(read: Any) -> Any:
        try:
            return read(body)
        except Malformed:
            return Malformed

    assert answer(members) == answer(_slow_members)
    if answer(members) is not Malformed:
        assert list(members(body)) == list(plain(body))


@given(objects())
@example(b'{"\\ud83d" : 1.0, "" : [ ]}')
def test_what_is_joined_has_the_members_it_was_made_of(body: bytes) -> None:
    raws = {name: member.raw for name, member in members(body).items()}
    found = members(joined(raws))
    assert [(name, member.raw) for name, member in found.items()] == list(raws.items())


@pytest.mark.parametrize("value", NUMBERS + SURROGATES + ['"\\/\\u00e9"', "[ 1 ,2 ]", '{"a":1,"a":2}'])
@pytest.mark.parametrize("also", ["1", '"\\ud83d"'])
def test_a_value_keeps_its_spelling(value: str, also: str) -> None:
    body = f'{{"x":{also}, "v" : {value} }}'.encode()
    assert members(body)["v"].raw == value.encode()


@pytest.mark.parametrize("name", ['"messages"', '"\\u006dessages"', '"\\u006Dessa\\u0067es"'])
def test_an_escaped_key_is_the_name_it_spells(name: str) -> None:
    assert members(f"{{{name}:[]}}".encode())["messages"].raw == b"[]"


@pytest.mark.parametrize("name", ['"a"', '"\\u0061"'])
@pytest.mark.parametrize("other", ["", '"b":0,'])
@pytest.mark.parametrize(
    "values", [("1", "1"), ("1", "2"), ("1", "12"), ("12", "1"), ("[1]", "[]"), ('"\\ud83d"', "1")]
)
@pytest.mark.parametrize("read", [members, _slow_members])
def test_a_member_that_occurs_twice_is_refused(read: Any, name: str, other: str, values: tuple[str, str]) -> None:
    first, second = values
    for text in (
        f'{{"a":{first},{other}{name}:{second}}}',
        f'{{{other}"a":{first},{name}:{second}}}',
        f'{{"a":{first},{name}:{second},"c":0}}',
        f'{{"a":{first}, {name} : {second} }} ',
    ):
        with pytest.raises(Malformed):
            read(text.encode())


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{",
        b"[]",
        b"null",
        b'"a"',
        b"{}x",
        b"{} {}",
        b"{,}",
        b'{"a":1,}',
        b'{"a":}',
        b'{"a" 1}',
        b'{"a":1 "b":2}',
        b'{"a":01}',
        b'{"a":[1,]}',
        b'{"a":NaN}',
        b'{"a":-Infinity}',
        b'{"a":"\\ud83d","b":NaN}',
        b'{"a":"\\x"}',
        b'{"a":"\n"}',
        b"{'a':1}",
        b"{1:2}",
        b'\xef\xbb\xbf{"a":1}',
        b'\x0b{"a":1}',
        b'{"a":1}\0',
        b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"a":' * 100_000,
        '{"a":1}'.encode("utf-16"),
    ],
    ids=lambda body: repr(body[:24]),
)
def test_what_is_no_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(Malformed):
        members(body)


@pytest.mark.parametrize(
    "body",
    [b'{"a\xff":1}', b'{"a":"\xff"}', b'{"a":[["\xed\xa0\xbd"]]}', b'{"a":"\xc3\xa9","b":"\xc0\xaf"}', b'{"a":1}\xff'],
)
def test_a_body_that_is_not_utf_8_is_refused_wherever_the_bytes_stand(body: bytes) -> None:
    with pytest.raises(Malformed):
        members(body)


@pytest.mark.parametrize(
    "raw", [b"", b"{}", b"[", b"[1,]", b"[1 2]", b"[]]", b'["\\ud83d",]', b"[NaN]", b"[\xff]", b"[" * 100_000]
)
def test_what_is_no_json_array_has_no_elements(raw: bytes) -> None:
    with pytest.raises(Malformed):
        elements(raw)


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        (b"{}", b"{}"),
        (b' { "a" : 1.0 } ', b' {"model":"m", "a" : 1.0 } '),
        (b'{"model":null}', b'{"model":null}'),
        (b'{"\\u006dodel":1}', b'{"\\u006dodel":1}'),
    ],
)
def test_a_default_is_added_where_the_member_is_missing(body: bytes, wanted: bytes) -> None:
    assert with_default(body, "model", "m") == wanted


@given(VALUES | st.recursive(st.text(st.characters()), st.lists, max_leaves=3))
def test_values_survive_writing_and_reading(value: Any) -> None:
    assert json.loads(dumps(value)) == value
    assert loads(dumps(value)) == value or any(abs(number) >= 2**64 for number in _integers(value))


def _integers(value: Any) -> list[int]:
    """orjson reads an integer beyond 64 bits as a float."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [number for inner in value for number in _integers(inner)]
    return [value] if isinstance(value, int) else []


@pytest.mark.parametrize("value", [{"a": "\ud83d"}, ["\udc00é"], {"\ud83d": 2**70}])
def test_lone_surrogates_become_escapes(value: Any) -> None:
    assert dumps(value).isascii()
    assert loads(dumps(value)) == value


@pytest.mark.parametrize("raw", [b"", b"NaN", b"[1,]", b"\xff", b'"\\ud83d', b"1" * 5000, b"[" * 100_000])
def test_what_is_no_value_cannot_be_loaded(raw: bytes) -> None:
    with pytest.raises(Malformed):
        loads(raw)


@pytest.mark.parametrize("value", [["\ud83d", float("inf")], loads(b"[" * 1000 + b"]" * 1000)], ids=["inf", "deep"])
def test_what_json_has_no_form_for_cannot_be_dumped(value: Any) -> None:
    with pytest.raises(Malformed):
        dumps(value)


@pytest.mark.parametrize(
    ("raw", "wanted"),
    [
        (b'[NaN,Infinity,-Infinity,1e400,1.5,7,"\\ud83d"]', [None, None, None, None, 1.5, 7, "\ud83d"]),
        (b'"\xff \xf0\x9f"', "\ufffd \ufffd"),
        ('"\ud83d"', "\ud83d"),
        (b"[" + b"9" * 5000 + b"]", [None]),
        (b"[0." + b"9" * 5000 + b"]", [1.0]),
    ],
)
def test_what_some_clients_library_reads_is_read(raw: bytes | str, wanted: Any) -> None:
    assert lenient(raw) == wanted
    assert loads(dumps(lenient(raw))) == wanted


@pytest.mark.parametrize("raw", [b"", b"{", b"nan", b'"\t"', b"{} x", b"\xef\xbb\xbf{}", "[" * 100_000])
def test_what_no_clients_library_reads_is_malformed(raw: bytes | str) -> None:
    with pytest.raises(Malformed):
        lenient(raw)


@given(VALUES)
def test_what_is_json_is_read_as_it_is(value: Any) -> None:
    assert lenient(dumps(value)) == value
