"""Repair: lists as sessions leave them, and what of them an upstream accepts."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.core.json_bytes import dumps
from proxy.dialects.chat.repair import BRIDGE, LOOSE, Repair
from proxy.dialects.chat.tool_groups import NO_RESULT

NINE = "[a-zA-Z0-9]{9}"
DEEP = b"[" * 5000 + b"]" * 5000


@dataclass(frozen=True)
class Habits:
    alternate: bool = False
    bridge: bool = False
    join_prefill: bool = False
    call_id: str | None = None


LENIENT = Habits()
STRICT = Habits(alternate=True, bridge=True, join_prefill=True, call_id=NINE)
ALL = [LENIENT, STRICT, Habits(alternate=True), Habits(bridge=True), Habits(join_prefill=True), Habits(call_id=NINE)]


def message(role: str, content: Any = ..., **more: Any) -> bytes:
    return dumps({"role": role} | ({} if content is ... else {"content": content}) | more)


def answer(role: str, name: str, id: Any, content: str) -> bytes:
    return dumps({"role": role, name: id, "content": content})


def u(content: Any = "u", **more: Any) -> bytes:
    return message("user", content, **more)


def a(content: Any = "a", **more: Any) -> bytes:
    return message("assistant", content, **more)


def asks(*ids: Any, content: Any = "") -> bytes:
    return a(content, tool_calls=[{"id": id, "type": "function", "function": {"name": "f"}} for id in ids])


def t(id: Any, content: str = "r") -> bytes:
    return answer("tool", "tool_call_id", id, content)


def none(id: str) -> bytes:
    return t(id, NO_RESULT)


def calls(name: str) -> bytes:
    return a(None, function_call={"name": name, "arguments": "{}"})


def f(name: str, content: str = "r") -> bytes:
    return answer("function", "name", name, content)


def short(id: str) -> str:
    return hashlib.sha256(id.encode()).hexdigest()[:9]


def role(raw: bytes) -> str:
    value = json.loads(raw) if raw is not DEEP else None
    return str(value["role"]) if isinstance(value, dict) and "role" in value else ""


def repair(*raws: bytes, rules: Habits = LENIENT, stored: bool = False) -> Repair:
    repaired = Repair(rules)
    for raw in raws:
        repaired.add(role(raw), raw, stored=stored)
    return repaired


def split(joined: bytes) -> list[bytes]:
    """Messages as our tests write them, that is without white space."""
    return [dumps(one) for one in json.loads(b"[" + joined + b"]")]


# A summary in front


@pytest.mark.parametrize("rules", ALL)
@pytest.mark.parametrize(
    ("raws", "wanted"),
    [
        ([], [u("s")]),
        ([u()], [u("s"), BRIDGE, u()]),
        ([a(), u()], [u("s"), a(), u()]),
        ([message("system", "x"), u()], [u("s"), message("system", "x"), u()]),
    ],
)
def test_a_summary_is_followed_by_no_users_message_and_joined_with_none(
    rules: Habits, raws: list[bytes], wanted: list[bytes]
) -> None:
    repaired = Repair(rules)
    repaired.summarized(u("s"))
    twin = repaired.fork()  # as each turn has it
    for raw in raws:
        twin.add(role(raw), raw)
    assert split(twin.finish()) == wanted
    assert twin.count == len(wanted)
    assert split(repaired.finish()) == [u("s")]


# Calls and results

SAME = [
    [],
    [u(), a(), u()],
    [u(), u(), a(), a(), b'{ "role":"user", "x":1e400 }'],
    [message("system", "s"), u(), asks("a", "b"), t("b"), t("a"), a(), u(), asks("a"), t("a")],
    [u(), calls("f"), f("f"), calls("f"), f("f"), u()],
    [b"5", b"null", b'{"role":5}', b"[]", b"{}", DEEP],
    [a(tool_calls=[]), u(), a(tool_calls=None), u(), a(function_call={}), a("")],
    [u(), t("x"), u(), f("g"), t("x")],
]


@pytest.mark.parametrize(
    ("raws", "ends"),
    [([], False), ([u()], False), ([u(), a()], True), ([u(), asks("a")], False), ([u(), asks("a"), t("a")], False)],
)
def test_whether_a_reply_is_last(raws: list[bytes], ends: bool) -> None:
    assert repair(*raws).ends_with_reply is ends


@pytest.mark.parametrize("raws", SAME)
def test_a_list_without_need_is_sent_byte_for_byte(raws: list[bytes]) -> None:
    repaired = repair(*raws)
    assert repaired.finish() == b",".join(raws)
    assert repaired.count == len(raws)


REPAIRS: list[tuple[str, list[bytes], list[bytes]]] = [
    ("no result at the end", [u(), asks("a")], [u(), asks("a"), none("a")]),
    ("no result in the middle", [asks("a"), u()], [asks("a"), none("a"), u()]),
    ("some results", [asks("a", "b"), t("b"), a()], [asks("a", "b"), t("b"), none("a"), a()]),
    ("a late result", [asks("a"), u(), t("a"), u("v")], [asks("a"), t("a"), u(), u("v")]),
    (
        "late results of one id, the newest first",
        [asks("a"), u(), asks("a"), u(), t("a", "1"), t("a", "2"), t("a", "3")],
        [asks("a"), t("a", "2"), u(), asks("a"), t("a", "1"), u()],
    ),
    (
        "an open group comes before a closed one",
        [asks("a"), u(), asks("a"), t("a", "1"), t("a", "2")],
        [asks("a"), t("a", "2"), u(), asks("a"), t("a", "1")],
    ),
    (
        "a late result amid others",
        [asks("a"), u(), asks("b"), t("a"), t("b"), t("b", "2")],
        [asks("a"), t("a"), u(), asks("b"), t("b")],
    ),
    (
        "a late result is not adopted",
        [asks("a"), u(), asks(""), t("a"), t("x")],
        [asks("a"), t("a"), u(), asks("x"), t("x")],
    ),
    ("a second result", [asks("a"), t("a", "1"), t("a", "2")], [asks("a"), t("a", "1")]),
    ("a second result, late", [asks("a"), t("a"), u(), t("a", "2"), u()], [asks("a"), t("a"), u(), u()]),
    ("a second result of an adopted id", [asks(""), t("x"), u(), t("x", "2")], [asks("x"), t("x"), u()]),
    ("an id that is used again is adopted again", [asks(""), t("x"), asks(""), t("x")], [asks("x"), t("x")] * 2),
    ("no result for an empty id", [u(), asks("")], [u(), asks("call_1_0"), none("call_1_0")]),
    (
        "a late result by the id we made",
        [asks(""), u(), t("call_0_0"), t("call_0_0", "2")],
        [asks("call_0_0"), t("call_0_0"), u()],
    ),
    ("a result without an id", [asks("a"), t(""), u()], [asks("a"), t("a"), u()]),
    ("a legacy call", [calls("f"), u()], [calls("f"), f("f", NO_RESULT), u()]),
    ("a legacy call, late", [calls("f"), u(), f("f"), f("f")], [calls("f"), f("f"), u()]),
]


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize(("raws", "wanted"), [row[1:] for row in REPAIRS], ids=[row[0] for row in REPAIRS])
def test_every_call_has_its_result(raws: list[bytes], wanted: list[bytes], stored: bool) -> None:
    repaired = repair(*raws, stored=stored)
    assert split(repaired.finish()) == wanted
    assert repaired.count == len(wanted)


LEFT_OUT: list[tuple[str, list[bytes], list[bytes]]] = [
    ("a result of no call", [u(), t("x"), u()], [u(), u()]),
    ("a result without an id of no call", [t(None), u()], [u()]),
    ("a legacy result of no call", [f("g"), u()], [u()]),
    ("a result of no call in a group", [asks("a"), t("x"), t("a")], [asks("a"), t("a")]),
    ("a reply that says nothing", [u(), a(""), u()], [u(), u()]),
    ("replies that say nothing", [a(None), a([]), a(...), a(None, tool_calls=[], refusal="", reasoning="r")], []),
    ("a reply that says nothing in a group", [asks("a"), a(""), t("a")], [asks("a"), t("a")]),
    ("half a character and nothing to say", [a("", x="\ud83d")], []),
]


@pytest.mark.parametrize(("raws", "wanted"), [row[1:] for row in LEFT_OUT], ids=[row[0] for row in LEFT_OUT])
def test_what_is_stored_and_of_no_use_is_left_out(raws: list[bytes], wanted: list[bytes]) -> None:
    assert split(repair(*raws, stored=True).finish()) == wanted
    sent = split(repair(*raws).finish())
    assert sorted(sent) == sorted(raws + [raw for raw in sent if NO_RESULT.encode() in raw])


@pytest.mark.parametrize(
    "raw",
    [
        a(" "),
        a(["x"]),
        a(None, refusal="no"),
        a(None, audio={"id": "x"}),
        a(None, x="\ud83d", refusal="no"),
        b'["assistant"]',
        b'["\\ud83d"]',
        DEEP,
    ],
    ids=lambda raw: repr(raw)[:30],
)
def test_what_says_something_is_kept(raw: bytes) -> None:
    repaired = Repair(LENIENT)
    repaired.add("assistant", raw, stored=True)
    assert repaired.finish() == raw


def test_ids_fit_the_pattern_in_calls_results_and_late_results() -> None:
    long, late = "toolu_1", "toolu_2"
    raws = [asks(long, late, "abcdefghi"), t(long), t("abcdefghi"), u(), t(late), t(late)]
    assert split(repair(*raws, rules=Habits(call_id=NINE)).finish()) == [
        asks(short(long), short(late), "abcdefghi"),
        t(short(long)),
        t("abcdefghi"),
        t(short(late)),
        u(),
    ]


# Roles


def parts(*texts: str) -> list[Any]:
    return [{"type": "text", "text": text} for text in texts]


USERS: list[tuple[list[bytes], list[bytes]]] = [
    ([u("1"), u("2"), u("3"), a(), u("4")], [u("1\n\n2\n\n3"), a(), u("4")]),
    ([u("1"), u(parts("2"))], [u(parts("1", "2"))]),
    ([u(parts("1")), u("2"), u(parts("3", "4"))], [u(parts("1", "2", "3", "4"))]),
    ([u(""), u("1"), u(None), u(...), u([])], [u("1")]),
    ([u("1", name="x", y=1), u("2", name="z")], [u("1\n\n2", name="z", y=1)]),
    ([u("1"), u(5)], [u("1"), u(5)]),
    ([u("1"), message("system", "s"), u("2")], [u("1"), message("system", "s"), u("2")]),
    ([u("\ud83d"), u("2")], [u("\ud83d\n\n2")]),
    ([u("1"), asks("a"), u("2"), t("a"), u("3")], [u("1"), asks("a"), t("a"), u("2\n\n3")]),
]


@pytest.mark.parametrize(("raws", "wanted"), USERS)
def test_users_in_a_row_are_one_where_roles_alternate(raws: list[bytes], wanted: list[bytes]) -> None:
    repaired = repair(*raws, rules=Habits(alternate=True))
    assert repaired.finish() == b",".join(wanted)
    assert repaired.count == len(wanted)


@pytest.mark.parametrize("raw", [b"5", DEEP, b"[" * 990 + b'"\\ud83d"' + b"]" * 990], ids=["number", "deep", "long"])
def test_what_calls_itself_a_user_and_cannot_be_joined_is_left_alone(raw: bytes) -> None:
    repaired = Repair(STRICT)
    for one in (u(), raw):
        repaired.add("user", one)
    assert (repaired.finish(), repaired.count) == (u() + b"," + raw, 2)


def test_a_reply_left_out_leaves_users_in_a_row() -> None:
    assert repair(u("1"), a(""), t("x"), u("2"), rules=STRICT, stored=True).finish() == u("1\n\n2")


PREFILLS: list[tuple[list[bytes], list[bytes]]] = [
    ([u(), a("Once", prefix=True), a(" upon", x=1)], [u(), a("Once upon", x=1)]),
    ([a("Once", prefix=True), a(" upon", prefix=True)], [a("Once upon", prefix=True)]),
    ([a(parts("Once")), a(" upon")], [a(parts("Once", " upon"))]),
    ([a("Let me see."), asks("b"), t("b")], [asks("b", content="Let me see."), t("b")]),
    ([a("Hm."), asks("", content=" So:"), t("x")], [asks("x", content="Hm. So:"), t("x")]),
    ([a(5), asks("b"), t("b"), a(), u()], [a(5), asks("b"), t("b"), a(), u()]),
    ([asks("b"), a("x"), a("y")], [asks("b"), none("b"), a("xy")]),
]


@pytest.mark.parametrize(("raws", "wanted"), PREFILLS)
def test_a_continued_prefill_is_one_message(raws: list[bytes], wanted: list[bytes]) -> None:
    repaired = repair(*raws, rules=Habits(join_prefill=True))
    assert repaired.finish() == b",".join(wanted)
    assert repaired.count == len(wanted)


BRIDGES: list[tuple[list[bytes], list[bytes]]] = [
    ([asks("a"), t("a"), u()], [asks("a"), t("a"), BRIDGE, u()]),
    ([asks("a"), u()], [asks("a"), none("a"), BRIDGE, u()]),
    ([calls("f"), f("f"), u()], [calls("f"), f("f"), BRIDGE, u()]),
    ([t("x"), u(), u()], [t("x"), BRIDGE, u(), u()]),
    ([asks("a"), t("a"), a(), u()], [asks("a"), t("a"), a(), u()]),
    ([u(), a(), u()], [u(), a(), u()]),
]


@pytest.mark.parametrize(("raws", "wanted"), BRIDGES)
def test_a_user_after_a_result_is_bridged(raws: list[bytes], wanted: list[bytes]) -> None:
    repaired = repair(*raws, rules=Habits(bridge=True))
    assert repaired.finish() == b",".join(wanted)
    assert repaired.count == len(wanted)


# Orphans


@pytest.mark.parametrize(
    ("past", "new", "orphan"),
    [
        ([], [u()], None),
        ([], [t("x")], "x"),
        ([], [t(None)], ""),
        ([u()], [u(), t("x"), t("y")], "x"),
        ([asks("a")], [t("a"), t("x")], "x"),
        ([asks("a")], [t("a"), t("a")], None),
        ([asks("a")], [u(), t("a")], None),
        ([asks("a"), t("a")], [t("a")], None),
        ([asks("")], [t("x"), t("x")], None),
        ([asks("")], [t("x"), t("y")], "y"),
        ([asks("")], [u(), t("x")], None),  # late, under an id of the client's
        ([asks("")], [u(), t("x"), t("x")], None),
        ([asks("")], [u(), t("x"), t("y")], "y"),
        ([asks("a")], [u(), t("x")], "x"),
        ([asks("a")], [t("")], None),
        ([asks("a")], [t("a"), t("")], ""),
        ([u()], [asks("a"), t("a"), asks(""), t("x")], None),
        ([calls("f")], [f("f")], None),
        ([calls("f")], [f("g")], "g"),
        ([calls("f")], [t("f")], "f"),
    ],
)
def test_the_first_result_whose_call_nobody_made(past: list[bytes], new: list[bytes], orphan: str | None) -> None:
    history = repair(*past, stored=True)
    before = history.finish(), history.count
    assert history.orphan([(role(raw), raw) for raw in new]) == orphan
    assert (history.finish(), history.count) == before


# Calls that were torn


def torn(role: str, id: str) -> bytes | None:
    """A list that left out the calls `torn` and `cut`."""
    return {("tool", "torn"): asks("torn"), ("tool", "cut"): asks("cut"), ("function", "torn"): calls("torn")}.get(
        (role, id)
    )


@pytest.mark.parametrize(
    ("past", "new", "wanted"),
    [
        ([u()], [t("torn")], [u(), asks("torn"), t("torn")]),
        ([u(), a()], [t("torn"), u()], [u(), a(), asks("torn"), t("torn"), u()]),
        ([u()], [t("torn"), t("cut"), t("torn", "2")], [u(), asks("torn"), t("torn"), asks("cut"), t("cut")]),
        ([asks("b")], [t("torn"), t("b")], [asks("b"), t("b"), asks("torn"), t("torn")]),
        ([asks("b")], [t("b"), t("torn")], [asks("b"), t("b"), asks("torn"), t("torn")]),
        ([asks("torn")], [t("torn")], [asks("torn"), t("torn")]),
        ([u()], [f("torn")], [u(), calls("torn"), f("torn")]),
    ],
)
@pytest.mark.parametrize("stored", [True, False])
def test_a_torn_call_is_made_good_in_front_of_its_result(
    past: list[bytes], new: list[bytes], wanted: list[bytes], stored: bool
) -> None:
    history = repair(*past, stored=True)
    assert history.orphan([(role(raw), raw) for raw in new], torn) is None
    for raw in new:
        history.add(role(raw), raw, stored=stored, torn=torn)
    assert history.finish() == b",".join(wanted)


def test_a_result_of_neither_is_refused_or_left_out() -> None:
    history = repair(u(), stored=True)
    assert history.orphan([("tool", t("torn")), ("tool", t("x"))], torn) == "x"
    history.add("tool", t("x"), stored=True, torn=torn)
    assert history.finish() == u()


def test_a_reply_of_images_says_something() -> None:
    drew = a("", images=[{"type": "image_url"}])
    assert repair(u(), drew, stored=True).finish() == u() + b"," + drew


# Rules that hold for every list

IDS = st.sampled_from(["a", "b", "x", "", "toolu_long", None])
CONTENT = st.sampled_from(["", "1", "2 ", None, [], parts("3"), 5])
PLAIN = st.builds(u, CONTENT) | st.builds(a, CONTENT) | st.just(message("system", "s")) | st.just(b"5")
TURNS = (
    PLAIN
    | st.lists(IDS, min_size=1, max_size=3).map(lambda ids: asks(*ids))
    | st.builds(t, IDS, st.sampled_from(["r", "q"]))
    | st.sampled_from([calls("f"), f("f"), f("g")])
)
LISTS = st.lists(TURNS, max_size=12)
RULES = st.sampled_from(ALL)


def answered(messages: list[Any]) -> bool:
    """Whether every call is followed directly by exactly one result, and every result follows its call."""
    waiting: list[tuple[str, str]] = []
    for one in messages:
        one = one if isinstance(one, dict) else {}
        if one.get("role") in ("tool", "function"):
            key = (one["role"], one["tool_call_id"] if one["role"] == "tool" else one["name"])
            if key not in waiting:
                return False
            waiting.remove(key)
            continue
        if waiting:
            return False
        waiting = [("tool", call["id"]) for call in one.get("tool_calls") or []]
        waiting += [("function", one["function_call"]["name"])] if one.get("function_call") else []
        if len(set(waiting)) != len(waiting) or not all(id for _, id in waiting):
            return False
    return not waiting


@pytest.mark.parametrize(
    "raws",
    [[asks("a")], [t("a")], [asks("a"), u(), t("a")], [asks("a"), t("a"), t("a")], [asks(""), t("")], [calls("f")]],
)
def test_the_judge_of_these_tests_refuses_broken_lists(raws: list[bytes]) -> None:
    assert not answered([json.loads(raw) for raw in raws])


@given(LISTS, RULES)
@example([asks("a", "a"), t("a"), u(), t("a"), asks("", "call_3_0")], STRICT)
def test_every_stored_list_becomes_one_that_is_accepted(raws: list[bytes], rules: Habits) -> None:
    repaired = repair(*raws, rules=rules, stored=True)
    messages = json.loads(b"[" + repaired.finish() + b"]")
    assert answered(messages)
    assert repaired.count == len(messages)
    roles = [one["role"] if isinstance(one, dict) else "" for one in messages]
    if rules.bridge:
        assert not any(pair in (("tool", "user"), ("function", "user")) for pair in pairwise(roles))
    odd = [one for one in messages if isinstance(one, dict) and one.get("content") == 5]
    for pair, refused in (("user", rules.alternate), ("assistant", rules.join_prefill)):
        assert not refused or odd or (pair, pair) not in pairwise(roles)


@given(LISTS)
def test_no_message_is_lost_but_those_that_are_meant(raws: list[bytes]) -> None:
    """Ids aside: all that is no result is sent in order, and no result is made up but by the constant."""
    sent = [json.loads(raw) for raw in split(repair(*raws).finish())]
    given = [json.loads(raw) for raw in raws]

    def others(messages: list[Any]) -> list[Any]:
        kept = [m for m in messages if not (isinstance(m, dict) and m["role"] in ("tool", "function"))]
        return [dict(m, tool_calls=len(m.get("tool_calls", []))) if isinstance(m, dict) else m for m in kept]

    def results(messages: list[Any]) -> list[str]:
        return [m["content"] for m in messages if isinstance(m, dict) and m["role"] in ("tool", "function")]

    assert others(sent) == others(given)
    real = [content for content in results(sent) if content != NO_RESULT]
    assert all(real.count(content) <= results(given).count(content) for content in real)
    calls_made = sum(m["tool_calls"] + ("function_call" in m) for m in others(given) if isinstance(m, dict))
    assert len(results(sent)) >= calls_made


@given(LISTS, LISTS, RULES, st.booleans())
def test_a_fork_goes_on_as_the_whole_list_would(
    past: list[bytes], new: list[bytes], rules: Habits, stored: bool
) -> None:
    history = repair(*past, rules=rules, stored=stored)
    before = history.finish(), history.count
    first, fork = history.fork(), history.fork()
    for raw in new:
        fork.add(role(raw), raw, stored=stored)
    whole = repair(*past, *new, rules=rules, stored=stored)
    assert (fork.finish(), fork.count) == (whole.finish(), whole.count)
    assert (history.finish(), history.count) == (first.finish(), first.count) == before
    assert repair(*past, rules=rules, stored=stored).finish() == before[0]
    for raw in new:
        history.add(role(raw), raw, stored=stored)
    assert history.finish() == whole.finish()


def test_what_a_fork_made_or_a_finish_closed_is_open_in_the_history() -> None:
    history = repair(asks(""))
    fork = history.fork()
    for raw in (t("y"), asks("a")):
        fork.add(role(raw), raw)
    assert split(history.finish()) == [asks("call_0_0"), none("call_0_0")]
    assert history.orphan([("tool", t("x")), ("tool", t("a"))]) == "a"
    history.add("tool", t("x"))
    assert split(history.finish()) == [asks("x"), t("x")]


def test_a_long_history_is_few_parts() -> None:
    """What makes a fork cheap: only where a late result may come is the history not one run of bytes."""
    repaired = repair(*[u(), a()] * 500, asks("a"), *[u(), a()] * 500)
    assert len(repaired.fork()._parts) == 3
    for _ in range(LOOSE):
        repaired.add("user", u())
        assert len(repaired.fork()._parts) <= LOOSE + 3


@given(LISTS, RULES, st.booleans())
def test_what_was_repaired_needs_no_repair(raws: list[bytes], rules: Habits, stored: bool) -> None:
    once = repair(*raws, rules=rules, stored=True).finish()
    assert repair(*split(once), rules=rules, stored=stored).finish() == once


@given(LISTS, RULES)
def test_a_history_keeps_its_bytes_when_a_user_goes_on(raws: list[bytes], rules: Habits) -> None:
    history = repair(*raws, rules=rules, stored=True)
    before, count = history.finish(), history.count
    last = split(before)[-1:]
    history.add("user", u("next"))
    assert history.finish().startswith(before) or (rules.alternate and role(last[0]) == "user")
    assert history.count <= count + 2


@given(LISTS, LISTS, RULES)
def test_new_messages_without_an_orphan_are_accepted_and_no_others(
    past: list[bytes], new: list[bytes], rules: Habits
) -> None:
    history = repair(*past, rules=rules, stored=True)
    orphan = history.orphan([(role(raw), raw) for raw in new])
    for raw in new:
        history.add(role(raw), raw)
    assert answered(json.loads(b"[" + history.finish() + b"]")) == (orphan is None)


@given(
    st.sampled_from(["user", "assistant", "tool", "function", "x", ""]),
    st.recursive(
        st.none() | st.integers() | st.sampled_from(["", "a", "\ud83d"]),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["id", "name", "content", "tool_calls", "function_call", "tool_call_id"]), inner
            )
        ),
    ),
    RULES,
    st.booleans(),
)
def test_no_json_value_makes_repairing_fail(name: str, value: Any, rules: Habits, stored: bool) -> None:
    repaired = repair(asks("", "a"), u(), asks(""), rules=rules, stored=stored)
    for _ in range(2):
        repaired.add(name, dumps(value), stored=stored)
        repaired.add("user", u(), stored=stored)
    assert repaired.count == len(json.loads(b"[" + repaired.finish() + b"]"))
