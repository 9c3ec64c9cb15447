"""How deltas add up: every shape that upstreams were seen to send, as a small stream."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.dialects.chat.stream.deltas import Fold, fails

Json = dict[str, Any]


def fold(*deltas: Any) -> Json | None:
    folded = Fold()
    for delta in deltas:
        folded.chunk({"choices": [{"index": 0, "delta": delta}]})
    return folded.message()


def piece(index: Any = None, id: Any = None, name: Any = None, arguments: Any = None, **more: Any) -> Json:
    """A piece of a tool call; what is None is left out."""
    function = {key: value for key, value in (("name", name), ("arguments", arguments)) if value is not None}
    parts = {"index": index, "id": id, "function": function or None}
    return {key: value for key, value in parts.items() if value is not None} | more


def call(id: str, name: str, arguments: str = "{}", **more: Any) -> Json:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}} | more


def said(content: Any = None, **more: Any) -> Json:
    return {"role": "assistant", "content": content} | more


MESSAGES: list[tuple[str, list[Any], Json | None]] = [
    # 3.1 to 3.6
    ("no delta at all", [], None),
    ("a role alone", [{"role": "assistant"}], said()),
    (
        "a role on every chunk",
        [{"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}],
        said("ab"),
    ),
    ("no role ever", [{"content": "a"}], said("a")),
    ("an odd role", [{"role": "", "content": "a"}, {"role": "model"}], said("a")),
    (
        "content null, empty, absent",
        [{"content": None}, {"content": ""}, {}, {"content": "a"}, {"content": None}],
        said("a"),
    ),
    ("empty content", [{"content": ""}], said("")),
    ("a delta that is null", [None, {"content": "a"}, None], said("a")),
    ("a delta that is no object", ["x", 5, []], None),
    # 3.9 to 3.12
    ("a refusal", [{"refusal": "I "}, {"refusal": "won't"}], said(refusal="I won't")),
    (
        "padding and stamps: the newest",
        [{"p": "ab", "token_id": 1}, {"p": "c", "token_id": 2}],
        said(p="c", token_id=2),
    ),
    ("annotations", [{"annotations": [1]}, {"annotations": [2]}], said(annotations=[1, 2])),
    ("other objects merge", [{"extra": {"a": 1, "b": 1}}, {"extra": {"b": 2}}], said(extra={"a": 1, "b": 2})),
    (
        "audio",
        [
            {"audio": {"id": "a1", "data": "QQ"}},
            {"audio": {"data": "==", "transcript": "h"}},
            {"audio": {"transcript": "i"}},
        ]
        + [{"audio": {"expires_at": 5, "id": None}}, {"audio": None}],
        said(audio={"id": "a1", "data": "QQ==", "transcript": "hi", "expires_at": 5}),
    ),
    # 4
    ("reasoning_content", [{"reasoning_content": "th"}, {"reasoning_content": "ink"}], said(reasoning_content="think")),
    ("an empty reasoning_content stays", [{"reasoning_content": ""}], said(reasoning_content="")),
    ("reasoning", [{"reasoning": "th"}, {"reasoning": "ink", "content": ""}], said("", reasoning="think")),
    # 4.6 Mistral
    (
        "thinking parts, then plain strings",
        [{"content": [{"type": "thinking", "thinking": [{"type": "text", "text": part}]}]} for part in ("a", "b")]
        + [{"content": [{"type": "thinking", "thinking": [], "closed": True}]}, {"content": "x"}, {"content": "y"}],
        said(
            [
                {"type": "thinking", "thinking": [{"type": "text", "text": "ab"}], "closed": True},
                {"type": "text", "text": "xy"},
            ]
        ),
    ),
    (
        "text, then parts",
        [{"content": "a"}, {"content": [{"type": "text", "text": "b"}]}],
        said([{"type": "text", "text": "ab"}]),
    ),
    (
        "an empty string before parts",
        [{"content": ""}, {"content": [{"type": "text", "text": "b"}]}],
        said([{"type": "text", "text": "b"}]),
    ),
    (
        "thinking as text",
        [{"content": [{"type": "thinking", "thinking": "a"}]}] * 2,
        said([{"type": "thinking", "thinking": [{"type": "text", "text": "aa"}]}]),
    ),
    (
        "parts without text stay apart",
        [{"content": [{"type": "reference", "ids": [1]}]}] * 2,
        said([{"type": "reference", "ids": [1]}] * 2),
    ),
    ("parts that are no objects", [{"content": ["a"]}, {"content": [5]}], said(["a", 5])),
    # 4.8 OpenRouter
    (
        "details by type and index, the signature last",
        [
            {"reasoning_details": [{"type": "reasoning.text", "text": "a", "index": 0, "signature": ""}]},
            {"reasoning_details": [{"type": "reasoning.text", "text": "b", "index": 0, "signature": ""}]},
            {
                "reasoning_details": [
                    {"type": "reasoning.text", "text": "", "index": 0, "signature": "S", "format": "f"}
                ]
            },
            {"reasoning_details": [{"type": "reasoning.text", "text": "c", "index": 1}]},
        ],
        said(
            reasoning_details=[
                {"type": "reasoning.text", "text": "ab", "index": 0, "signature": "S", "format": "f"},
                {"type": "reasoning.text", "text": "c", "index": 1},
            ]
        ),
    ),
    (
        "xAI numbers a summary and an encrypted detail 0",
        [
            {"reasoning_details": [{"type": "reasoning.summary", "summary": "a", "index": 0}]},
            {"reasoning_details": [{"type": "reasoning.summary", "summary": "b", "index": 0}]},
            {"reasoning_details": [{"type": "reasoning.encrypted", "data": "X", "id": "r", "index": 0}]},
            {"reasoning_details": [{"type": "reasoning.encrypted", "data": "Y", "id": "s", "index": 0}]},
        ],
        said(
            reasoning_details=[
                {"type": "reasoning.summary", "summary": "ab", "index": 0},
                {"type": "reasoning.encrypted", "data": "X", "id": "r", "index": 0},
                {"type": "reasoning.encrypted", "data": "Y", "id": "s", "index": 0},
            ]
        ),
    ),
    (
        "a summary after an encrypted detail of its index",
        [
            {"reasoning_details": [{"type": "reasoning.encrypted", "data": "X", "index": 0}]},
            {"reasoning_details": [{"type": "reasoning.summary", "summary": "a", "index": 0}]},
        ],
        said(
            reasoning_details=[
                {"type": "reasoning.encrypted", "data": "X", "index": 0},
                {"type": "reasoning.summary", "summary": "a", "index": 0},
            ]
        ),
    ),
    ("an empty list of details has a meaning", [{"reasoning_details": []}], said(reasoning_details=[])),
    (
        "details that are no objects",
        [{"reasoning_details": ["x", {"type": "t"}]}, {"reasoning_details": 5}],
        said(reasoning_details=["x", {"type": "t"}]),
    ),
    # 5.12
    (
        "a legacy function call",
        [
            {"function_call": {"name": "f", "arguments": ""}},
            {"function_call": {"arguments": '{"a":'}},
            {"function_call": {"arguments": "1}"}},
        ],
        said(function_call={"name": "f", "arguments": '{"a":1}'}),
    ),
]


@pytest.mark.parametrize(("deltas", "wanted"), [case[1:] for case in MESSAGES], ids=[case[0] for case in MESSAGES])
def test_deltas_add_up_to_a_message(deltas: list[Any], wanted: Json | None) -> None:
    assert fold(*deltas) == wanted


def thought(text: Any = "", signature: Any = "", **more: Any) -> Json:
    return {"type": "thinking", "thinking": text, "signature": signature, **more}


REDACTED = {"type": "redacted_thinking", "data": "X"}
BLOCKS: list[tuple[str, list[Any], list[Any]]] = [
    # BerriAI/litellm 29428: one for each event of Claude's
    ("the signature alone", [thought("a"), thought("b"), thought("", "s")], [thought("ab", "s")]),
    ("the whole text again", [thought("a"), thought("b"), thought("ab", "s")], [thought("ab", "s")]),
    ("the last of the text", [thought("a"), thought("b", "s")], [thought("ab", "s")]),
    ("a signature of no text", [thought("", "s")], [thought("", "s")]),
    ("nothing for a signature", [thought("a", None), thought(None, "s")], [thought("a", "s")]),
    ("one after another", [thought("a", "s"), thought("b"), thought("", "t")], [thought("a", "s"), thought("b", "t")]),
    (
        "a redacted one between",
        [thought("a", "s"), REDACTED, thought("b", "t")],
        [thought("a", "s"), REDACTED, thought("b", "t")],
    ),
    ("a redacted one first", [REDACTED, REDACTED, thought("b", "t")], [REDACTED, REDACTED, thought("b", "t")]),
    ("none signed", [thought("a"), thought("b", index=1)], [thought("ab", index=1)]),
    ("no blocks", ["a", 5, thought("a"), None], ["a", 5, thought("a"), None]),
]


@pytest.mark.parametrize(("pieces", "wanted"), [case[1:] for case in BLOCKS], ids=[case[0] for case in BLOCKS])
def test_a_thought_goes_on_until_its_signature(pieces: list[Any], wanted: list[Any]) -> None:
    assert fold(*[{"thinking_blocks": [each]} for each in pieces]) == said(thinking_blocks=wanted)
    assert fold({"thinking_blocks": pieces}) == said(thinking_blocks=wanted)


def test_content_and_tool_calls_stand_in_one_reply() -> None:
    message = fold({"content": " "}, {"content": "\n", "tool_calls": [piece(0, "a", "f")]}, {"tool_calls": None})
    assert message == said(" \n", tool_calls=[call("a", "f")])


WHOLE: list[tuple[str, list[Json], Json | None]] = [
    ("a whole message", [{"message": said("Hello")}], said("Hello")),
    ("no role", [{"message": {"content": "Hello"}}], said("Hello")),
    (
        "behind deltas that say nothing",
        [{"delta": {"role": "assistant", "content": ""}, "message": said("x")}],
        said("x"),
    ),
    ("a delta that is null", [{"delta": None, "message": said("x")}], said("x")),
    ("calls", [{"message": said(tool_calls=[call("a", "f")])}], said(tool_calls=[call("a", "f")])),
    (
        "text, and then calls",
        [{"message": said("x")}, {"message": said(tool_calls=[call("a", "f")])}],
        said("x", tool_calls=[call("a", "f")]),
    ),
    (
        "as much as there is by now",
        [{"message": said("a")}, {"message": said("ab")}, {"message": said("ab")}],
        said("ab"),
    ),
    ("pieces", [{"message": said("a")}, {"message": said("b")}, {"message": said("")}], said("ab")),
    (
        "beside deltas, as Perplexity",
        [{"delta": {"content": "a"}, "message": said("a")}, {"delta": {"content": "b"}, "message": said("ab")}],
        said("ab"),
    ),
    (
        "beside a call in deltas",
        [{"delta": {"tool_calls": [piece(0, "a", "f")]}}, {"message": said("x")}],
        said(tool_calls=[call("a", "f")]),
    ),
    ("one that says nothing", [{"message": {}}], said()),
    ("no object", [{"message": "x"}], None),
]


@pytest.mark.parametrize(("choices", "wanted"), [case[1:] for case in WHOLE], ids=[case[0] for case in WHOLE])
def test_a_message_in_the_place_of_a_delta_is_the_reply(choices: list[Json], wanted: Json | None) -> None:
    folded = Fold()
    for choice in choices:
        folded.chunk({"choices": [choice]})
    assert folded.message() == wanted


@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"choices": None},
        {"choices": []},
        {"choices": {}},
        {"choices": [None, 5, {"index": 1, "delta": {"content": "x"}}]},
    ],
)
def test_chunks_without_the_recorded_choice_say_nothing(shape: Json) -> None:
    folded = Fold()
    folded.chunk(shape)
    assert (folded.message(), folded.finish_reason, folded.error) == (None, None, False)


def test_choices_interleave_and_the_first_is_recorded() -> None:
    folded = Fold()
    for index, text in [(1, "no"), (0, "y"), (2, "no"), (None, "e"), (0, "s")]:
        folded.chunk({"choices": [{"index": index, "delta": {"content": text}}]})
    folded.chunk({"choices": [{"index": 1, "finish_reason": "length"}, {"delta": {}, "finish_reason": "stop"}]})
    assert folded.message() == said("yes")
    assert folded.finish_reason == "stop"


@pytest.mark.parametrize(
    ("reasons", "wanted", "error"),
    [
        ([None, ""], None, False),
        (["null", "null"], None, False),
        (["null", "stop"], "stop", False),
        (["stop"], "stop", False),
        (["stop", "stop", None], "stop", False),
        (["tool_calls", "stop"], "tool_calls", False),
        (["eos"], "eos", False),
        ([5, {}], None, False),
        (["error"], "error", True),
        (["length", "error"], "length", True),
    ],
)
def test_the_first_finish_reason_counts_and_an_error_is_one(
    reasons: list[Any], wanted: str | None, error: bool
) -> None:
    folded = Fold()
    for reason in reasons:
        folded.chunk({"choices": [{"delta": {}, "finish_reason": reason}]})
    assert (folded.finish_reason, folded.error) == (wanted, error)


@pytest.mark.parametrize(
    ("chunk", "wanted"),
    [
        ({"error": {"message": "x"}, "choices": []}, True),
        ({"object": "error", "message": "x"}, True),
        ({"type": "error", "message": "x"}, True),
        ({"choices": None, "base_resp": {"status_code": 1002}}, True),
        ({"choices": None, "base_resp": {"status_code": 0}}, False),
        ({"choices": [], "object": "error", "base_resp": {"status_code": 1002}}, False),
        ({"error": None, "base_resp": 5}, False),
        ({"usage": {"total_tokens": 2}}, False),
    ],
)
def test_a_chunk_fails_by_its_error_or_by_being_one_without_choices(chunk: dict[str, Any], wanted: bool) -> None:
    assert fails(chunk) is wanted


def test_a_finish_reason_may_share_the_chunk_with_text_and_an_error_with_either() -> None:
    folded = Fold()
    folded.chunk({"choices": [{"delta": {"content": "a"}, "finish_reason": "stop", "error": {"code": 502}}]})
    assert (folded.message(), folded.finish_reason, folded.error) == (said("a"), "stop", True)


TEXT = st.text(min_size=1, max_size=12)
CALL = st.builds(call, TEXT, TEXT, TEXT)


@st.composite
def streamed(draw: st.DrawFn) -> tuple[Json, list[Json]]:
    """A message, and deltas that say it in pieces."""
    calls = draw(st.lists(CALL, max_size=3, unique_by=lambda each: each["id"]))
    message = said(draw(TEXT), reasoning_content=draw(TEXT))
    deltas: list[Json] = [{"role": "assistant"}]
    for key in ("reasoning_content", "content"):
        deltas += [{key: part} for part in draw(split(message[key]))]
    for index, each in enumerate(calls):
        name, arguments = each["function"]["name"], draw(split(each["function"]["arguments"]))
        deltas.append({"tool_calls": [piece(index, each["id"], name, "", type="function")]})
        deltas += [
            {"tool_calls": [piece(index, draw(st.sampled_from([None, "", each["id"]])), None, part)]}
            for part in arguments
        ]
    return message | ({"tool_calls": calls} if calls else {}), deltas


@st.composite
def split(draw: st.DrawFn, text: str) -> list[str]:
    at = sorted(draw(st.sets(st.integers(0, len(text)))))
    return [text[start:end] for start, end in zip([0, *at], [*at, len(text)], strict=True)]


@given(streamed())
def test_a_message_in_pieces_folds_back_to_itself(case: tuple[Json, list[Json]]) -> None:
    message, deltas = case
    assert fold(*deltas) == message


KEYS = st.sampled_from(
    ["content", "tool_calls", "function_call", "audio", "reasoning_details", "refusal", "index", "id", "type", "text"]
    + ["function", "custom", "name", "arguments", "input", "data", "transcript", "summary", "thinking"]
)
ODD = st.recursive(
    st.none() | st.integers() | st.text(max_size=2) | st.sampled_from(["text", "thinking", "reasoning.text"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
)


@given(st.lists(st.dictionaries(KEYS, ODD, max_size=4), max_size=5))
def test_no_delta_makes_a_fold_raise(deltas: list[Json]) -> None:
    json.dumps(fold(*deltas))
