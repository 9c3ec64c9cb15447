"""The strict validators: each rule refuses its own bad example and takes the good one beside it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support import strict

Json = dict[str, Any]

USER: Json = {"role": "user", "content": "hi"}
SYSTEM: Json = {"role": "system", "content": "S"}
SAID: Json = {"role": "assistant", "content": "ho"}
CLAUDE = {"type": "reasoning.text", "format": "anthropic-claude-v1", "text": "t"}
PART = {"type": "text", "text": "x"}
MARKED = {**PART, "cache_control": {"type": "ephemeral"}}


def call(id: str = "abcdefghi", arguments: Any = "{}", **more: Any) -> Json:
    return {"id": id, "type": "function", "function": {"name": "f", "arguments": arguments}, **more}


def acted(*calls: Json, **more: Any) -> Json:
    return {"role": "assistant", "content": "", "tool_calls": list(calls or [call()]), **more}


def result(id: str = "abcdefghi") -> Json:
    return {"role": "tool", "tool_call_id": id, "content": "r"}


def turn(reply: Json) -> list[Json]:
    """A turn that ends in what any upstream answers."""
    results = [result(each["id"]) for each in reply.get("tool_calls") or [] if isinstance(each, dict)]
    return [USER, reply, *(results or [USER])]


def details(*details: Json, **more: Any) -> list[Json]:
    return turn({**SAID, "reasoning_details": list(details), **more})


# By the name of a rule: the profile, what it refuses, what it takes.
RULES: list[tuple[str, str, list[Any], list[Any]]] = [
    ("calls_are_a_list_with_something_in_it", "openai", turn({**SAID, "tool_calls": []}), turn(SAID)),
    ("calls_are_whole", "openai", turn(acted(call(""))), turn(acted())),
    ("calls_are_whole", "openai", turn(acted(call() | {"function": {"arguments": "{}"}})), turn(acted())),
    ("calls_are_whole", "openai", turn(acted(call(arguments={}))), turn(acted())),
    (
        "calls_are_whole",
        "openai",
        turn(acted({"id": "a", "type": "custom", "custom": {"name": "", "input": "x"}})),
        turn(acted({"id": "a", "type": "custom", "custom": {"name": "c", "input": "x"}})),
    ),
    ("arguments_parse", "gemini", turn(acted(call(arguments='{"a'))), turn(acted(call(arguments='{"a":1}')))),
    ("call_ids_match", "mistral", turn(acted(call("call_1"))), turn(acted())),
    ("call_ids_match", "openai", turn(acted(call("x" * 41))), turn(acted(call("x" * 40)))),
    ("calls_have_known_members", "groq", turn(acted(call(extra_content={}))), turn(acted())),
    ("calls_have_known_members", "openai", turn(acted(call(index=0))), turn(acted())),
    ("members_are_known", "mistral", turn({**SAID, "reasoning_content": "r"}), turn({**SAID, "prefix": False})),
    ("members_are_known", "groq", turn({**SAID, "reasoning": "r"}), turn(SAID)),
    ("members_are_known", "cerebras", turn({**SAID, "reasoning_content": "r"}), turn({**SAID, "reasoning": "r"})),
    ("members_are_known", "gemini", turn({**SAID, "reasoning": "r"}), turn({**SAID, "extra_content": {"google": 1}})),
    ("members_are_known", "openai", turn({**SAID, "annotations": []}), turn({**SAID, "refusal": "no"})),
    ("members_are_not_null", "openai", turn({**SAID, "refusal": None}), turn(SAID)),
    ("content_is_text_or_parts", "openai", turn({**SAID, "content": {"a": 1}}), turn({**SAID, "content": [PART]})),
    ("content_is_text_or_parts", "deepseek", turn({**SAID, "content": [PART]}), turn(SAID)),
    ("null_content_has_calls", "echo", turn({**SAID, "content": None, "refusal": "no"}), turn(acted(content=None))),
    ("assistant_says_something", "echo", turn({**SAID, "content": ""}), turn(acted(content=""))),
    (
        "function_call_has_a_name",
        "openai",
        turn({**SAID, "function_call": {"name": "", "arguments": ""}}),
        turn({"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": ""}}),
    ),
    (
        "audio_is_an_id",
        "openai",
        turn({**SAID, "audio": {"id": "a", "data": ""}}),
        turn({**SAID, "audio": {"id": "a"}}),
    ),
    ("reasoning_has_details", "openrouter", turn({**SAID, "reasoning": "r"}), details(CLAUDE | {"signature": "s"})),
    ("reasoning_has_details", "openrouter", details(CLAUDE), details(CLAUDE | {"format": "unknown"})),
    ("prefix_is_no_text", "mistral", turn({**SAID, "prefix": "x"}), turn({**SAID, "prefix": False})),
    ("role_is_known", "deepseek", [{"role": "developer", "content": "S"}, USER], [SYSTEM, USER]),
    ("result_names_a_call", "openai", [USER, acted(call("")), result("")], turn(acted())),
    ("every_call_is_answered_at_once", "openai", [USER, acted(), USER], [USER, acted(), result(), USER]),
    (
        "every_call_is_answered_at_once",
        "openai",
        [USER, acted(call("a"), call("b")), result("b")],
        [USER, acted(call("a"), call("b")), result("b"), result("a")],
    ),
    ("every_call_is_answered_at_once", "openai", [USER, acted(), USER, result()], turn(acted())),
    ("every_call_is_answered_at_once", "openai", [USER, acted(), result(), result()], turn(acted())),
    ("every_call_is_answered_at_once", "openai", [USER, result()], turn(acted())),
    ("system_comes_first_and_once", "vllm", [SYSTEM, SYSTEM, USER], [SYSTEM, USER]),
    ("system_comes_first_and_once", "vllm", [USER, SAID, SYSTEM, USER], [SYSTEM, USER]),
    ("system_comes_first_and_once", "perplexity", [USER, SAID, SYSTEM, USER], [SYSTEM, SYSTEM, USER]),
    ("turns_alternate", "vllm", [USER, USER], [USER, SAID, USER]),
    ("turns_alternate", "deepseek-r1", [USER, SAID, SAID, USER], [USER, SAID, USER]),
    ("no_user_after_tool", "mistral", [USER, acted(), result(), USER], [USER, acted(), result(), SAID, USER]),
    ("the_last_asks", "mistral", [USER, SAID], [USER, {**SAID, "prefix": True}]),
    ("the_last_asks", "perplexity", [USER, SAID], [USER]),
    ("prefix_is_last", "mistral", turn({**SAID, "prefix": True}), [USER, {**SAID, "prefix": True}]),
    (
        "few_marks",
        "openrouter",
        [{**USER, "content": [MARKED] * 3}, {**SAID, "cache_control": {}}, {**USER, "content": [MARKED]}],
        [{**USER, "content": [MARKED] * 3}, SAID, {**USER, "content": [MARKED]}],
    ),
    (
        "details_are_unique",
        "openrouter",
        details({"type": "reasoning.encrypted", "id": "a", "data": "x"}) * 2,
        details(*[{"type": "reasoning.encrypted", "id": id, "data": "x"} for id in "ab"]),
    ),
    (
        "details_are_unique",
        "openrouter",
        details({"type": "reasoning.summary", "summary": "s"}, {"type": "reasoning.summary", "summary": "s"}),
        details(
            {"type": "reasoning.summary", "summary": "s"}, {"type": "reasoning.summary"}, {"type": "x"}, {"type": "x"}
        ),
    ),
]


def request(messages: list[Any]) -> bytes:
    return json.dumps({"messages": messages}).encode()


@pytest.mark.parametrize(("rule", "profile", "bad", "good"), RULES, ids=[f"{n} {r[0]}" for n, r in enumerate(RULES)])
def test_a_rule_refuses_its_bad_example_and_takes_the_good_one(
    rule: str, profile: str, bad: list[Json], good: list[Json]
) -> None:
    assert refused_by(rule, bad, profile)
    assert strict.problems(request(bad), profile)
    assert strict.problems(request(good), profile) == []


def refused_by(rule: str, messages: list[Json], profile: str) -> list[str]:
    for each in strict.SEQUENCE:
        if each.__name__ == rule:
            return list(each(messages, profile))
    [alone] = [each for each in strict.MESSAGE if each.__name__ == rule]
    return [problem for message in messages for problem in alone(message, profile)]


def test_every_rule_has_an_example() -> None:
    assert {rule[0] for rule in RULES} == {rule.__name__ for rule in [*strict.MESSAGE, *strict.SEQUENCE]}


@pytest.mark.parametrize("reply", [acted(), acted(reasoning_content=None)])
def test_a_call_of_an_upstream_that_thinks_needs_its_reasoning(reply: Json) -> None:
    assert strict.problems(request(turn(reply)), "echo", thinking=True)
    assert strict.problems(request(turn({**reply, "reasoning_content": ""})), "echo", thinking=True) == []
    assert strict.problems(request(turn(SAID)), "echo", thinking=True) == []


@pytest.mark.parametrize(
    "body",
    [b"{}", b'{"messages":[]}', b'{"messages":{}}', *[request([odd]) for odd in (5, {}, {"role": 5}, {"role": "bot"})]],
)
def test_what_has_no_messages_is_refused(body: bytes) -> None:
    assert strict.problems(body, "echo")
