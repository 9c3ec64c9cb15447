"""Where a call of a stream begins: every shape that upstreams were seen to send, and any habits, split anywhere.

What the official clients make of pieces is written down here once more, slowly.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.dialects.chat.stream.call_deltas import Calls, whole
from proxy.dialects.json_values import as_dict

Json = dict[str, Any]


def added(*deltas: list[Any]) -> list[Json]:
    calls = Calls()
    for pieces in deltas:
        calls.add(copy.deepcopy(pieces))
    return calls.finished()


def piece(index: Any = None, id: Any = None, name: Any = None, arguments: Any = None, **more: Any) -> Json:
    """A piece of a tool call; what is None is left out."""
    function = {key: value for key, value in (("name", name), ("arguments", arguments)) if value is not None}
    parts = {"index": index, "id": id, "function": function or None}
    return {key: value for key, value in parts.items() if value is not None} | more


def call(id: Any, name: str, arguments: str = "{}", **more: Any) -> Json:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}} | more


def custom(index: Any, id: Any, name: Any, input: str) -> Json:
    return piece(index, id, custom={key: value for key, value in (("name", name), ("input", input)) if value})


A, B = '{"a":1}', '{"b":{"c":"}"}}'

CALLS: list[tuple[str, list[list[Any]], list[Json]]] = [
    (
        "5.1 pieces by index, interleaved",
        [
            [piece(0, "a", "f", "")],
            [piece(1, "b", "g", "")],
            [piece(0, arguments='{"x"')],
            [piece(1, arguments="[]")],
            [piece(0, arguments=":1}")],
        ],
        [call("a", "f", '{"x":1}'), call("b", "g", "[]")],
    ),
    ("5.2 whole calls", [[piece(0, "a", "f", "{}"), piece(1, "b", "g", "{}")]], [call("a", "f"), call("b", "g")]),
    (
        "5.3 no index, new ids",
        [[piece(None, "a", "f", "{}")], [piece(None, "b", "f", "{}")]],
        [call("a", "f"), call("b", "f")],
    ),
    (
        "5.3 no index, names alone",
        [[piece(None, None, "f", "{}"), piece(None, "", "f", "{}")]],
        [call("", "f"), call("", "f")],
    ),
    ("5.3 no index, a tail", [[piece(None, "a", "f", "{")], [piece(None, arguments="}")]], [call("a", "f")]),
    ("5.3 no index, the id again", [[piece(None, "a", "f", "{")], [piece(None, "a", "f", "}")]], [call("a", "f")]),
    (
        "5.4 always index 0, new ids",
        [[piece(0, "a", "f", "{}")], [piece(0, "b", "f", "{")], [piece(0, arguments="}")]],
        [call("a", "f"), call("b", "f")],
    ),
    (
        "5.4 always index 0, a new name after whole arguments",
        [[piece(0, None, "f", "{}")], [piece(0, None, "g", "{}")]],
        [call("", "f"), call("", "g")],
    ),
    (
        "5.4 a new name inside the arguments is no call",
        [[piece(0, None, "f", "{")], [piece(0, None, "g", "}")]],
        [call("", "f")],
    ),
    (
        "5.5 an index that does not start at 0",
        [[piece(3, "a", "f", "{}")], [piece(1, "b", "g", "{}")]],
        [call("a", "f"), call("b", "g")],
    ),
    (
        "5.6 the id again, null, empty",
        [
            [piece(0, "a", "f", "{")],
            [piece(0, "a", arguments='"x":')],
            [piece(0, "", arguments="1")],
            [piece(0, arguments="}", id=None)],
        ],
        [call("a", "f", '{"x":1}')],
    ),
    ("5.6 an id that comes late", [[piece(0, None, "f", "{")], [piece(0, "a", arguments="}")]], [call("a", "f")]),
    ("5.7 an empty id", [[piece(0, "", "f", "{}")]], [call("", "f")]),
    (
        "5.8 the name again",
        [[piece(0, "a", "f", "")], [piece(0, "a", "f", "{")], [piece(0, "a", "f", "}")]],
        [call("a", "f")],
    ),
    ("5.8 the name after it all", [[piece(0, "a", "f", "{}")], [piece(0, "", "f", "")]], [call("a", "f")]),
    ("5.8 a name in two pieces", [[piece(0, "a", "get_")], [piece(0, None, "time", "{}")]], [call("a", "get_time")]),
    ("5.8 a name after its arguments", [[piece(0, "a", None, "{")], [piece(0, None, "f", "}")]], [call("a", "f")]),
    ("5.8 a name that is no text", [[piece(0, "a", 5)], [piece(0, "a", "f")]], [call("a", "f")]),
    (
        "5.9 arguments null, then whole",
        [[{"index": 0, "id": "a", "function": {"name": "f", "arguments": None}}], [piece(0, arguments="{}")]],
        [call("a", "f")],
    ),
    ("5.9 arguments empty, then whole", [[piece(0, "a", "f", "")], [piece(0, arguments="{}")]], [call("a", "f")]),
    ("5.9 arguments never", [[piece(0, "a", "f")]], [call("a", "f")]),
    ("5.9 arguments empty", [[piece(0, "a", "f", "")]], [call("a", "f")]),
    ("5.9 arguments as an object", [[piece(0, "a", "f", {"x": [1, None]})]], [call("a", "f", '{"x":[1,null]}')]),
    ("5.10 arguments that are no JSON", [[piece(0, "a", "f", '{"x": tru')]], [call("a", "f", '{"x": tru')]),
    ("5.11 a type null or empty", [[piece(0, "a", "f", "{}", type=None)], [piece(0, type="")]], [call("a", "f")]),
    (
        "5.11 a custom call",
        [
            [{"index": 0, "id": "a", "type": "custom", "custom": {"name": "f", "input": "x"}}],
            [{"index": 0, "custom": {"input": "y"}}],
        ],
        [{"id": "a", "type": "custom", "custom": {"name": "f", "input": "xy"}}],
    ),
    (
        "3.14 the other kind as a filler",
        [
            [piece(0, "a", "f", "{}", custom={"name": "", "input": ""})],
            [{"index": 1, "id": "b", "custom": {"name": "g", "input": "x"}, "function": {"name": "", "arguments": ""}}],
        ],
        [call("a", "f"), {"id": "b", "type": "function", "custom": {"name": "g", "input": "x"}}],
    ),
    (
        "5.13 unknown keys stay",
        [[piece(0, "a", "f", "{}", extra_content={"google": {"thought_signature": "s"}})], [piece(0, new=None)]],
        [call("a", "f", extra_content={"google": {"thought_signature": "s"}})],
    ),
    (
        "5.14 ids verbatim",
        [[piece(0, "functions.f:0", "f", "{}"), piece(1, "call_-7", "g", "{}")]],
        [call("functions.f:0", "f"), call("call_-7", "g")],
    ),
    ("a piece that is no object", [["x", None, 5], [piece(0, "a", "f")]], [call("a", "f")]),
    (
        "a function that is no object",
        [[{"index": 0, "id": "a", "function": "x"}], [piece(0, None, "f", "{}")]],
        [call("a", "f")],
    ),
    ("an index that is no number", [[piece([], "a", "f", "{")], [piece({}, arguments="}")]], [call("a", "f")]),
    (
        "arguments nested too deep to read",
        [[piece(0, None, "f", "[" * 100_000)], [piece(0, None, "g", "]")]],
        [call("", "f", "[" * 100_000 + "]")],
    ),
    (
        "one ID for two calls, index 0",
        [[piece(0, "x", "f", A)], [piece(0, "x", "g", B)]],
        [call("x", "f", A), call("x", "g", B)],
    ),
    (
        "one ID for two calls, no index",
        [[piece(None, "x", "f", A)], [piece(None, "x", "g", B)]],
        [call("x", "f", A), call("x", "g", B)],
    ),
    (
        "one ID for two calls, one delta",
        [[piece(None, "x", "f", A), piece(None, "x", "f", B)]],
        [call("x", "f", A), call("x", "f", B)],
    ),
    (
        "one ID for two calls, an index each",
        [[piece(0, "x", "f", "")], [piece(1, "x", "f", "")], [piece(0, "x", None, A), piece(1, "x", None, B)]],
        [call("x", "f", A), call("x", "f", B)],
    ),
    (
        "one ID for two calls of a function, in pieces",
        [
            [piece(0, "x", "f", "")],
            [piece(0, "x", None, A)],
            [piece(0, "x", "f", "")],
            [piece(0, None, None, B[:3])],
            [piece(0, None, None, B[3:])],
        ],
        [call("x", "f", A), call("x", "f", B)],
    ),
    (
        "one ID for two calls, their names last",
        [
            [piece(0, "x", None, A)],
            [piece(0, "x", "f")],
            [piece(0, "x", None, "")],
            [piece(0, None, None, B)],
            [piece(0, None, "g")],
        ],
        [call("x", "f", A), call("x", "g", B)],
    ),
    (
        "one ID for two calls, the first without arguments",
        [[piece(0, "x", "f", "")], [piece(0, "x", "g", A)]],
        [call("x", "f"), call("x", "g", A)],
    ),
    (
        "one ID for a whole call and one without arguments",
        [[piece(0, "x", "f", A)], [piece(0, "x", "g", "")]],
        [call("x", "f", A), call("x", "g")],
    ),
    (
        "two calls of a function without IDs, index 0",
        [[piece(0, None, "f", A)], [piece(0, None, "f", B)]],
        [call("", "f", A), call("", "f", B)],
    ),
    (
        "two calls of a function without IDs, no index",
        [[piece(None, "", "f", A)], [piece(None, "", "f", B)]],
        [call("", "f", A), call("", "f", B)],
    ),
    (
        "two calls without IDs or arguments, no index",
        [[piece(None, None, "f")], [piece(None, None, "f")]],
        [call("", "f"), call("", "f")],
    ),
    (
        "two calls without IDs or arguments, with their types",
        [[piece(0, None, "f", type="function")], [piece(0, None, "g", type="function")]],
        [call("", "f"), call("", "g")],
    ),
    (
        "no index, a repeated name within the arguments",
        [[piece(None, None, "f", A[:3])], [piece(None, None, "f", A[3:])]],
        [call("", "f", A)],
    ),
    (
        "no index, IDs that take turns",
        [
            [piece(None, "x", "f", A[:3])],
            [piece(None, "y", "g", B[:3])],
            [piece(None, "x", None, A[3:])],
            [piece(None, "y", None, B[3:])],
        ],
        [call("x", "f", A), call("y", "g", B)],
    ),
    (
        "index 0, IDs that take turns",
        [
            [piece(0, "x", "f", A[:3])],
            [piece(0, "y", "g", B[:3])],
            [piece(0, "x", None, A[3:])],
            [piece(0, "y", None, B[3:])],
        ],
        [call("x", "f", A), call("y", "g", B)],
    ),
    (
        "no index and an ID that comes late",
        [[piece(None, None, "f", A[:3])], [piece(None, "x", None, A[3:])]],
        [call("x", "f", A)],
    ),
    (
        "the index that comes late",
        [[piece(None, "x", "f", A[:3])], [piece(0, None, None, A[3:])], [piece(1, "y", "g", B)]],
        [call("x", "f", A), call("y", "g", B)],
    ),
    ("the name behind ID and arguments", [[piece(0, "x", None, A)], [piece(0, None, "f")]], [call("x", "f", A)]),
    (
        "the name behind ID and arguments, no index",
        [[piece(None, "x", None, A)], [piece(None, None, "f")], [piece(None, "y", None, B)], [piece(None, None, "g")]],
        [call("x", "f", A), call("y", "g", B)],
    ),
    (
        "one ID, two indexes, and then none: the call that had the last piece",
        [
            [piece(0, "x", "f", A[:4])],
            [piece(1, "x", "g", B[:4])],
            [piece(0, "x", None, A[4:5])],
            [piece(None, "x", None, A[5:])],
        ],
        [call("x", "f", A), call("x", "g", B[:4])],
    ),
    (
        "an ID before its index, and then another call at that",
        [
            [piece(None, "x")],
            [piece(0, None, "f")],
            [piece(0, "x", None, "}")],
            [piece(0, None, "g", type="function"), piece(0, "x", None, "!")],
        ],
        [call("x", "f", "}!"), call("", "g")],
    ),
    (
        "an index as text",
        [
            [piece("0", "x", "f", A[:3]), piece("1", "y", "g", B[:3])],
            [piece("0", None, None, A[3:]), piece("1", None, None, B[3:])],
        ],
        [call("x", "f", A), call("y", "g", B)],
    ),
    (
        "an index below 0, or as a fraction",
        [[piece(-1, "x", "f", A[:3])], [piece(-1.0, None, None, A[3:])]],
        [call("x", "f", A)],
    ),
    (
        "the ID on every piece, and too much at the end",
        [[piece(0, "x", "f", A)], [piece(0, "x", "f", "}")], [piece(0, "x", None, "")]],
        [call("x", "f", A + "}")],
    ),
    (
        "arguments go on behind whole ones, as the official clients read them",
        [[piece(0, "x", "f", "{}")], [piece(0, None, None, A)]],
        [call("x", "f", "{}" + A)],
    ),
    (
        "half an escape at the end of a piece",
        [[piece(0, "x", "f", '{"a":"\\')], [piece(0, "x", "f", '"{"}')], [piece(0, "x", "f", A)]],
        [call("x", "f", '{"a":"\\"{"}'), call("x", "f", A)],
    ),
    (
        "an escape that waits for its character",
        [
            [piece(0, "x", "f", '{"a":"b\\')],
            [piece(0, "x", "f", "{")],
            [piece(0, "x", None, '"}')],
            [piece(0, "x", "f", A)],
        ],
        [call("x", "f", '{"a":"b\\{"}'), call("x", "f", A)],
    ),
    (
        "objects in a list of arguments",
        [[piece(0, "x", "f", "[")], [piece(0, "x", None, "{}")], [piece(0, "x", None, "]")]],
        [call("x", "f", "[{}]")],
    ),
    (
        "scalars for arguments",
        [[piece(0, None, "f", "null")], [piece(0, None, "g", "5")]],
        [call("", "f", "null"), call("", "g", "5")],
    ),
    (
        "custom calls without IDs",
        [[custom(0, None, "f", "a")], [custom(0, None, None, "b")], [custom(0, None, "g", "c")]],
        [
            {"id": "", "type": "function", "custom": {"name": "f", "input": "ab"}},
            {"id": "", "type": "function", "custom": {"name": "g", "input": "c"}},
        ],
    ),
    (
        "an ID that is no text",
        [[piece(0, ["x"], "f", A[:3])], [piece(0, ["x"], None, A[3:])], [piece(0, ["y"], "f", B)]],
        [call(["x"], "f", A), call(["y"], "f", B)],
    ),
]


@pytest.mark.parametrize(("pieces", "wanted"), [case[1:] for case in CALLS], ids=[case[0] for case in CALLS])
def test_pieces_add_up_to_tool_calls(pieces: list[list[Any]], wanted: list[Json]) -> None:
    assert added(*pieces) == wanted


@pytest.mark.parametrize(
    ("calls", "wanted"),
    [
        (None, []),
        ("x", []),
        ([5], []),
        ([call("a", "f", '{"x": 1}')], [call("a", "f", '{"x": 1}')]),
        ([piece(0, "a", "f", ""), piece(0, "a", "f", {})], [call("a", "f"), call("a", "f")]),
    ],
)
def test_calls_that_came_whole_take_the_form_in_which_they_go_back(calls: Any, wanted: list[Json]) -> None:
    assert whole(calls) == wanted


# Any habit, any split ------------------------------------------------------------------------

MORE = settings(max_examples=5 * settings().max_examples)  # 500 in the gate, 100,000 in `make fuzz`
NAMES = st.sampled_from(["f", "g", "lights", "get_time"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 99) | st.text('ab{}[]"\\ é', max_size=6),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text("ab}", max_size=2), inner, max_size=2),
)
ARGUMENTS = st.builds(json.dumps, st.dictionaries(st.text("abc", max_size=2), VALUES, max_size=3))


@dataclass(frozen=True)
class Habits:
    """How an upstream sends its calls."""

    ids: str  # own, one, none, empty
    again: bool  # the ID on each piece
    index: str  # own, zero, none, odd (own, but not from 0)
    name: str  # first, last, each, halves

    @property
    def parts_calls(self) -> bool:
        """Whether each piece tells whose it is."""
        return self.index in ("own", "odd") or (self.ids == "own" and self.again)

    @property
    def can_be_read(self) -> bool:
        named_late = self.name == "last" and self.ids in ("none", "empty") and self.index in ("zero", "none")
        halves = self.name == "halves" and not (self.index in ("own", "odd") and not self.again)
        return not named_late and not halves


HABITS = st.builds(
    Habits,
    st.sampled_from(["own", "one", "none", "empty"]),
    st.booleans(),
    st.sampled_from(["own", "zero", "none", "odd"]),
    st.sampled_from(["first", "last", "each", "halves"]),
).filter(lambda habits: habits.can_be_read)


@st.composite
def split(draw: st.DrawFn, text: str) -> list[str | None]:
    at = sorted(draw(st.sets(st.integers(0, len(text)), max_size=4)))
    return [text[start:end] for start, end in zip([0, *at], [*at, len(text)], strict=True)]


@st.composite
def pieces_of(draw: st.DrawFn, habits: Habits, n: int, name: str, arguments: str) -> list[Json]:
    """One call in pieces."""
    id = {"own": f"call_{n}", "one": "call_x", "none": None, "empty": ""}[habits.ids]
    index = {"own": n, "zero": 0, "none": None, "odd": 3 + 2 * n}[habits.index]
    texts = draw(split(arguments))
    if habits.index == "none" and habits.ids in ("none", "empty"):
        texts = [arguments]  # whoever numbers nothing and names nothing sends its calls whole
    names: list[str | None] = [None] * len(texts)
    if habits.name == "each":
        names = [name] * len(texts)
    elif habits.name == "halves" and len(name) > 1:
        texts, names = ["", "", *texts], [name[:1], name[1:], *names]
    elif habits.name == "last":
        texts, names = [*texts, draw(st.sampled_from(["", None]))], [*names, name]
    else:
        names[0] = name
    later = st.just(id) if habits.again else st.sampled_from([None, ""])
    made = [piece(index, id if not k else draw(later), names[k], text) for k, text in enumerate(texts)]
    if habits.name != "halves" and draw(st.booleans()):
        made[0]["type"] = "function"
    return made


@st.composite
def streams(draw: st.DrawFn) -> tuple[list[list[Json]], list[Json]]:
    """Deltas, and the calls that they say."""
    habits = draw(HABITS)
    calls = draw(st.lists(st.tuples(NAMES, ARGUMENTS), min_size=1, max_size=4))
    rows = [draw(pieces_of(habits, n, *each)) for n, each in enumerate(calls)]
    first, wanted = [], []
    for n, (name, arguments) in enumerate(calls):
        id = {"own": f"call_{n}", "one": "call_x"}.get(habits.ids, "")
        wanted.append(call(id, name, arguments))
    if habits.parts_calls and draw(st.booleans()):
        first = [row.pop(0) for row in rows]
        while rows := [row for row in rows if row]:
            first.append(draw(st.sampled_from(rows)).pop(0))
    flat = first or [each for row in rows for each in row]
    at = sorted(draw(st.sets(st.integers(1, len(flat)), max_size=len(flat))))
    return [flat[start:end] for start, end in zip([0, *at], [*at, len(flat)], strict=True)], wanted


@given(streams())
def test_calls_are_what_they_were_however_they_were_sent(case: tuple[list[list[Json]], list[Json]]) -> None:
    deltas, wanted = case
    assert added(*deltas) == wanted


# The official clients ------------------------------------------------------------------------


def by_index(pieces: list[Json], joins: bool) -> list[Json]:
    """By index and nothing else, text behind text. openai-python (`accumulate_delta`) joins what is said of ID and
    name, for openai-node (`ChatCompletionStream`) the newest counts."""
    calls: dict[int, Json] = {}
    for each in pieces:
        blank = {"id": "", "type": "function", "function": {"name": "", "arguments": ""}}
        found, said = calls.setdefault(each["index"], blank), as_dict(each.get("function"))
        for old, new, key in ((found, each, "id"), (found["function"], said, "name")):
            old[key] = old[key] + (new.get(key) or "") if joins else new.get(key) or old[key]
        found["function"]["arguments"] += said.get("arguments") or ""
    return list(calls.values())


def by_id(pieces: list[Json]) -> list[Json] | None:
    """The AI SDK (`StreamingToolCallTracker`): by ID, and where that is not enough by name and index. None where it
    raises, for a call begins without a name."""
    calls: list[Json] = []
    at: dict[int, Json] = {}
    for each in pieces:
        id, index = each.get("id") or None, each.get("index")
        name = as_dict(each.get("function")).get("name") or None
        found = at.get(index) if index is not None else None
        if id:
            same = [one for one in calls if one["id"] == id]
            if not (found in same and name in (None, found and found["function"]["name"])):
                named = [one for one in same if name in (None, one["function"]["name"])]
                found = None if index is not None and name else named[-1] if named else None
        elif name:
            found = None
        elif found is None:
            found = calls[-1] if len(calls) == 1 else None
        if found is None:
            if name is None:
                return None
            found = {"id": id or "", "type": "function", "function": {"name": name, "arguments": ""}}
            calls.append(found)
        found["function"]["arguments"] += as_dict(each.get("function")).get("arguments") or ""
        if index is not None:
            at[index] = found
    return calls


@given(streams())
def test_what_an_official_client_reads_whole_we_read_the_same(case: tuple[list[list[Json]], list[Json]]) -> None:
    pieces = [each for delta in case[0] for each in delta]
    numbered = all(["index" in each for each in pieces])
    readings = [by_index(pieces, True), by_index(pieces, False)] if numbered else []
    for reading in (*readings, by_id(pieces)):
        if reading is not None and makes_sense(reading, case[1]):
            assert added(*case[0]) == reading


def makes_sense(calls: list[Json], wanted: list[Json]) -> bool:
    """Whether a reading has as many calls as were said, each under an ID and a name that there are, and with arguments
    that are one object."""
    try:
        values = [json.loads(one["function"]["arguments"]) for one in calls]
    except ValueError:
        return False
    known = all([one["id"] in [each["id"] for each in wanted] for one in calls])
    named = all([one["function"]["name"] in [each["function"]["name"] for each in wanted] for one in calls])
    return len(calls) == len(wanted) and known and named and all([isinstance(value, dict) for value in values])


def slowly(pieces: list[Json]) -> list[tuple[str, str, str]]:
    """Our rule once more, as it is told: each time all calls are looked through and all arguments read again."""
    calls: list[Json] = []
    last: Json | None = None
    for each in pieces:
        index, id = each.get("index"), each.get("id") or ""
        function = as_dict(each.get("function"))
        name, text = function.get("name") or "", function.get("arguments") or ""
        newest = sorted(calls, key=lambda one: -one["touched"])
        if index is None:
            found = next((one for one in newest if id and one["touches"].get(("id", id))), None) or last
            if id:
                found = max(
                    [o for o in calls if ("id", id) in o["touches"]], key=lambda o: o["touches"]["id", id], default=last
                )
        else:
            both = [one for one in calls if ("both", index, id) in one["touches"]] if id else []
            here = [one for one in calls if ("index", index) in one["touches"]]
            key = ("both", index, id) if both else ("index", index)
            found = max(both or here, key=lambda one: one["touches"][key], default=None)
            if found is None and last is not None and last["index"] is None:
                found = last
        starts = text.lstrip()[:1] in ("{", "[")
        head = found["head"] if found and starts else None
        if found is None or head or another(found, index, id, name, each.get("type"), starts):
            found = {"id": "", "name": "", "text": "", "index": None, "head": None, "touches": {}}  # fmt: skip
            calls.append(found)
            for part in [head] if head else []:
                found["id"], found["name"], found["text"] = (part[0], "", "") if name else part
        elif (
            (id or name)
            and (found["id"] or not id)
            and (found["name"] or not name)
            and not text.strip()
            and ended(found["text"])
        ):
            found["head"] = (id, name, text)
        found["id"] = id or found["id"]
        if name and not found["name"]:
            found["name"] = name
        elif name and name != found["name"] and not found["text"]:
            found["name"] += name
        found["text"] += text
        found["index"] = index if found["index"] is None else found["index"]
        found["touched"] = clock = (
            sum([len(one["text"]) for one in calls]) + len(calls) + (last or {}).get("touched", 0) + 1
        )
        for key in (("id", id), ("index", index), ("both", index, id)):
            found["touches"][key] = clock
        last = found
    return [(one["id"], one["name"], one["text"] or "{}") for one in calls]


def another(found: Json, index: Any, id: str, name: str, type: Any, starts: bool) -> bool:
    if not id and not name:
        return False
    if id and found["id"] not in ("", id):
        return True
    if starts and ended(found["text"]):
        return True
    if not (name and found["name"]):
        return False
    if name != found["name"]:
        return ended(found["text"]) or index is None or bool(id or type)
    return index is None and not found["id"] and (not found["text"] or ended(found["text"]))


def ended(text: str) -> bool:
    depth, quoted, escaped, brackets = 0, False, False, False
    for letter in text:
        if escaped:
            escaped = False
        elif letter == "\\":
            escaped = True
        elif letter == '"':
            quoted = not quoted
        elif not quoted and letter in "{}[]":
            depth, brackets = depth + (1 if letter in "{[" else -1), True
    if brackets:
        return not depth
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


FRAGMENTS = st.sampled_from(["", " ", "{", "}", "{}", '{"a":', "1", '"', "\\", A, B, "[", "]", "null"])
ANY_PIECE = st.builds(
    piece,
    st.sampled_from([None, 0, 0, 1]),
    st.sampled_from([None, "", "x", "x", "y"]),
    st.sampled_from([None, None, "f", "g"]),
    st.none() | FRAGMENTS,
) | st.builds(piece, st.just(0), st.none(), NAMES, FRAGMENTS, type=st.just("function"))


@MORE
@given(st.lists(ANY_PIECE, max_size=7))
def test_pieces_of_no_sense_are_read_by_the_same_rule(pieces: list[Json]) -> None:
    read = [(one["id"], as_dict(one.get("function"))) for one in added(pieces)]
    assert [(id, said.get("name", ""), said.get("arguments", "{}")) for id, said in read] == slowly(pieces)
