"""A group: which result answers which call, and under which ids the two go upstream."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.json_bytes import dumps
from proxy.dialects.chat.tool_groups import NO_RESULT, Group, StandIn, ToolCall, answered, calls, made, named, renamed

Json = dict[str, Any]
NINE = "[a-zA-Z0-9]{9}"
DEEP = b"[" * 5000 + b"]" * 5000
# Named twice, so that it must be written anew, and nested deeper than can be written.
UNWRITABLE = b'"x":1,"x":' + b"[" * 990 + b"]" * 990


def asks(*ids: Any, **more: Any) -> bytes:
    """An assistant message with a call for each id; `...` leaves the id out."""
    listed = [{"id": id, "type": "function", "function": {"name": "f", "arguments": "{}"}} for id in ids]
    for call in listed:
        if call["id"] is ...:
            del call["id"]
    return dumps({"role": "assistant", "content": "", "tool_calls": listed} | more)


def result(id: Any, content: str = "r") -> bytes:
    return dumps({"role": "tool", "tool_call_id": id, "content": content})


def short(id: str) -> str:
    return hashlib.sha256(id.encode()).hexdigest()[:9]


def group(raw: bytes, pattern: str | None = None) -> Group:
    return Group(raw, calls(raw), 7, pattern)


def takes(open: Group, role: str, raw: bytes) -> bool:
    id = named(role, raw)
    return open.answer(role, id, raw) or open.adopt(role, id, raw)


def closed(raw: bytes, *results: bytes, pattern: str | None = None) -> tuple[list[str], list[str], list[str]]:
    """The ids of the calls, of the results, and of what stands in."""
    open = group(raw, pattern)
    for one in results:
        takes(open, "tool", one)
    size = open.size
    (call, *answers), missing = open.close()
    assert size == 1 + len(answers) + len(missing)
    return (
        [one["id"] for one in json.loads(call)["tool_calls"]],
        [json.loads(one)["tool_call_id"] for one in answers],
        [json.loads(one.raw)["tool_call_id"] for one in missing],
    )


# Reading


@pytest.mark.parametrize(
    ("raw", "found"),
    [
        (b'{"role":"assistant","content":"hi"}', []),
        (b'{"role":"assistant","content":"\\"tool_calls\\""}', []),
        (asks("a", "b"), [ToolCall("tool", "a", 0), ToolCall("tool", "b", 1)]),
        (asks("", None, ..., 5), [ToolCall("tool", "", n) for n in range(4)]),
        (b'{"tool_calls":[null,"x",{"id":"a"}]}', [ToolCall("tool", "a", 2)]),
        (b'{"tool_calls":[]}', []),
        (b'{"tool_calls":null}', []),
        (b'{"tool_calls":{"id":"a"}}', []),
        (b'{"\\u0074ool_calls":[{"id":"a"}]}', [ToolCall("tool", "a")]),
        (b'{"tool\\u005fcalls":[{"id":"a"}]}', [ToolCall("tool", "a")]),
        (b'{"function_call":{"name":"f","arguments":"{}"}}', [ToolCall("function", "f", id="f")]),
        (
            b'{"tool_calls":[{"id":"a"}],"function_call":{"name":"f"}}',
            [ToolCall("tool", "a"), ToolCall("function", "f", id="f")],
        ),
        (b'{"function_call":{}}', []),
        (b'{"function_call":{"name":""}}', []),
        (b'{"function_call":null}', []),
        (b'{"tool_calls":[{"id":"\\ud83d"}]}', [ToolCall("tool", "\ud83d")]),
        (b'["tool_calls"]', []),
        (b'{"tool_calls":' + DEEP + b"}", []),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_the_calls_of_a_message(raw: bytes, found: list[ToolCall]) -> None:
    assert calls(raw) == found


@pytest.mark.parametrize(
    ("role", "raw", "id"),
    [
        ("tool", result("a"), "a"),
        ("tool", b'{"tool_call_id":"a","name":"f"}', "a"),
        ("function", b'{"tool_call_id":"a","name":"f"}', "f"),
        ("tool", b'{"tool_call_id":null}', ""),
        ("tool", b'{"tool_call_id":5}', ""),
        ("tool", b"{}", ""),
        ("tool", b'{"tool_call_id":"\\ud83d"}', "\ud83d"),
        ("tool", b'{"tool_call_id":["\\ud83d"]}', ""),
        ("tool", b'["tool_call_id"]', ""),
        ("tool", b"5", ""),
        ("tool", DEEP, ""),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_what_a_result_says_it_answers(role: str, raw: bytes, id: str) -> None:
    assert named(role, raw) == id


@pytest.mark.parametrize(
    ("raw", "wanted"),
    [
        (b'{"n":1.0, "tool_call_id" : "a"}', b'{"n":1.0, "tool_call_id" : "b"}'),
        (b'{"n":1.0, "tool_call_id" : "b"}', b'{"n":1.0, "tool_call_id" : "b"}'),
        (b' { "n":1e400}', b' {"tool_call_id":"b", "n":1e400}'),
        (b"{}", b'{"tool_call_id":"b"}'),
        (b'{"n":1,"n":2,"tool_call_id":"a"}', b'{"n":2,"tool_call_id":"b"}'),
        (b"[]", b"[]"),
        (DEEP, DEEP),
        (b'{"tool_call_id":"a",' + UNWRITABLE + b"}", b'{"tool_call_id":"a",' + UNWRITABLE + b"}"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_result_under_another_id_keeps_its_other_bytes(raw: bytes, wanted: bytes) -> None:
    assert renamed("tool", raw, "b") == wanted


# Calls and results


IDS: list[tuple[str, list[Any], list[Any], tuple[list[str], list[str], list[str]]]] = [
    ("in order", ["a", "b"], ["a", "b"], (["a", "b"], ["a", "b"], [])),
    ("in another order", ["a", "b"], ["b", "a"], (["a", "b"], ["b", "a"], [])),
    ("some", ["a", "b", "c"], ["b"], (["a", "b", "c"], ["b"], ["a", "c"])),
    ("none", ["a"], [], (["a"], [], ["a"])),
    ("one twice", ["a", "b"], ["a", "a", "b"], (["a", "b"], ["a", "b"], [])),
    ("one of no call", ["a"], ["x", "a"], (["a"], ["a"], [])),
    ("an id adopted", [""], ["x"], (["x"], ["x"], [])),
    ("ids adopted in order", ["", None, ...], ["x", "y"], (["x", "y", "call_7_2"], ["x", "y"], ["call_7_2"])),
    ("adopted beside a known one", ["a", ""], ["x", "a"], (["a", "x"], ["x", "a"], [])),
    ("an adopted one twice", ["", ""], ["x", "x", "y"], (["x", "y"], ["x", "y"], [])),
    ("a known one twice is not adopted", ["a", ""], ["a", "a"], (["a", "call_7_1"], ["a"], ["call_7_1"])),
    ("both without", ["", ""], ["", ""], (["call_7_0", "call_7_1"], ["call_7_0", "call_7_1"], [])),
    ("a result without", ["a", "b"], ["", None], (["a", "b"], ["a", "b"], [])),
    ("a result without, later", ["a", "b"], ["a", ""], (["a", "b"], ["a", "b"], [])),
    ("a result without, too many", ["a"], ["a", ""], (["a"], ["a"], [])),
    ("a result without, of a call without", ["a", ""], [""], (["a", "call_7_1"], ["call_7_1"], ["a"])),
    ("the same id twice", ["a", "a"], ["a", "a"], (["a", short("a 1")], ["a", short("a 1")], [])),
    ("the same id thrice, one result", ["a", "a", "a"], ["a"])
    + ((["a", short("a 1"), short("a 2")], ["a"], [short("a 1"), short("a 2")]),),
    (
        "an id that we would make",
        ["", "call_7_0"],
        [],
        ([short("call_7_0 0"), "call_7_0"], [], [short("call_7_0 0"), "call_7_0"]),
    ),
]


@pytest.mark.parametrize(("ids", "results", "wanted"), [row[1:] for row in IDS], ids=[row[0] for row in IDS])
def test_ids(ids: list[Any], results: list[Any], wanted: tuple[list[str], list[str], list[str]]) -> None:
    assert closed(asks(*ids), *map(result, results)) == wanted


def test_an_id_that_the_pattern_refuses_is_replaced_on_both_sides() -> None:
    long, fits = "toolu_1", "abcDEF123"
    assert closed(asks(long, fits, "", ""), result(long), result("x"), pattern=NINE) == (
        [short(long), fits, short("x"), short("call_7_3")],
        [short(long), short("x")],
        [fits, short("call_7_3")],
    )
    assert closed(asks("x" * 41, "y" * 40), pattern=".{1,40}")[0] == [short("x" * 41), "y" * 40]


def test_an_id_that_is_half_a_character_is_replaced_too() -> None:
    [id], [same], [] = closed(asks("\ud83d"), result("\ud83d"), pattern=NINE)
    assert id == same and len(id) == 9


def test_a_group_without_need_keeps_its_bytes() -> None:
    raw = b'{ "tool_calls":[{"id":"a" , "n":1e400}], "role":"assistant"}'
    open = group(raw)
    answer = b'{"role":"tool", "tool_call_id":"a"}'
    assert takes(open, "tool", answer)
    assert open.close() == ([raw, answer], [])


def test_a_call_that_gets_an_id_keeps_what_stands_around_its_calls() -> None:
    raw = b'{"n":1e400, "tool_calls":[null,{"id":"","x":1}] }'
    assert group(raw).close()[0] == [b'{"n":1e400, "tool_calls":[null,{"id":"call_7_0","x":1}] }']


def test_calls_that_cannot_be_written_stay_as_they_are() -> None:
    raw = b'{"tool_calls":[{"id":""}],' + UNWRITABLE + b"}"
    assert group(raw).close()[0] == [raw]


def test_a_legacy_function_call_is_answered_by_its_name() -> None:
    raw = b'{"role":"assistant","function_call":{"name":"f","arguments":"{}"}}'
    answer = b'{"role":"function","name":"f","content":"r"}'
    open = group(raw, NINE)
    assert not takes(open, "function", b'{"role":"function","name":"g"}')
    assert not takes(open, "tool", result("f"))
    assert takes(open, "function", answer)
    assert open.close() == ([raw, answer], [])
    stand_in = dumps({"role": "function", "name": "f", "content": NO_RESULT})
    assert group(raw).close() == ([raw], [StandIn("function", "f", "f", stand_in, nameless=False)])


def test_what_stands_in_says_how_a_late_result_will_call_itself() -> None:
    _, missing = group(asks("toolu_1", ""), NINE).close()
    assert [(one.name, one.id) for one in missing] == [("toolu_1", short("toolu_1")), (short("call_7_1"),) * 2]
    assert json.loads(missing[0].raw) == {"role": "tool", "tool_call_id": missing[0].id, "content": NO_RESULT}


def test_a_result_of_no_call_keeps_its_place() -> None:
    open = group(asks("a", "b"))
    for taken, one in ((True, result("b")), (False, result("x")), (True, result("a"))):
        assert takes(open, "tool", one) is taken
        if not taken:
            open.pass_on(one)
    assert open.close() == ([asks("a", "b"), result("b"), result("x"), result("a")], [])


def test_a_copy_that_is_closed_leaves_the_ids_open() -> None:
    open = group(asks(""))
    open.copy().close()
    assert takes(open, "tool", result("x"))
    assert open.close() == ([asks("x"), result("x")], [])


@given(st.lists(st.sampled_from(["a", "b", "", None]), max_size=4), st.lists(st.sampled_from(["a", "b", "x", ""])))
def test_a_copy_goes_its_own_way(ids: list[Any], results: list[str]) -> None:
    open = group(asks(*ids))
    for half in (results[: len(results) // 2], results[len(results) // 2 :]):
        before = open.copy().close()
        twin = open.copy()
        for id in half:
            assert takes(twin, "tool", result(id)) in (True, False)
        after = twin.copy().close()
        assert open.copy().close() == before
        for id in half:
            takes(open, "tool", result(id))
        assert open.copy().close() == after


@given(
    st.lists(st.sampled_from(["a", "b", "call_7_0", "", None, 5, "\ud83d"]), max_size=6),
    st.lists(st.sampled_from(["a", "b", "x", "y", "", None, "call_7_0"]), max_size=8),
    st.sampled_from([None, NINE, ".{1,40}"]),
)
def test_each_call_has_an_id_of_its_own_and_one_result(ids: list[Any], results: list[Any], pattern: str | None) -> None:
    made, answers, missing = closed(asks(*ids), *map(result, results), pattern=pattern)
    assert len(made) == len(ids) == len(set(made)) and all(made)
    assert sorted(answers + missing) == sorted(made)
    assert pattern != NINE or all(len(id) == 9 for id in made)


def test_which_result_is_of_which_call_is_told_by_ids() -> None:
    assert made("assistant", b'{"role":"assistant","tool_calls":[{"id":"a"},{"id":""},{}]}') == ["a", "", ""]
    assert made("user", b'{"role":"user","tool_calls":[{"id":"a"}]}') == []
    assert answered("tool", b'{"role":"tool","tool_call_id":"a"}') == "a"
    assert answered("tool", b'{"role":"tool"}') == ""
    assert answered("user", b'{"role":"user","tool_call_id":"a"}') is None
