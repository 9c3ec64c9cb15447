"""Forms: what of a stored reply goes back to which upstream."""

from __future__ import annotations

import json
from math import inf
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.json_bytes import Malformed, dumps, loads
from proxy.dialects.chat.profiles import EMPTY, NULL, OPTIONAL, PROFILES
from proxy.dialects.chat.reply_form import expiry, reply_form
from tests.support import strict
from tests.support.shapes import ACTED, FILE, SAID, THOUGHT, UNREADABLE, Json, anything, call, messages


def form(message: Any, name: str = "echo", **how: Any) -> Any:
    raw = reply_form(json.dumps(message).encode(), PROFILES[name], **how)
    return None if raw is None else json.loads(raw)


SIGNED = {"type": "reasoning.text", "text": "t", "signature": "s", "format": "anthropic-claude-v1", "index": 0}
UNSIGNED = {"type": "reasoning.text", "text": "t", "format": "anthropic-claude-v1", "index": 1}
SUMMARY = {"type": "reasoning.summary", "summary": "s", "format": "xai-responses-v1", "index": 0}
PARTS = [THOUGHT, {"type": "text", "text": "a"}, {"type": "text", "text": "b"}]


IMAGE: Json = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
STAMPED: Json = {**call(), "channel": "c", "function": {**call()["function"], "p": "x"}}

# Whatever the profile: what says nothing goes nowhere

FILLERS: list[tuple[str, Json, Json | None]] = [
    ("text", SAID, SAID),
    ("white space is text", {**SAID, "content": " "}, {**SAID, "content": " "}),
    (
        "parts",
        {**SAID, "content": [{"type": "text", "text": "x"}]},
        {**SAID, "content": [{"type": "text", "text": "x"}]},
    ),
    ("calls", ACTED, ACTED),
    ("calls with empty content", {**ACTED, "content": ""}, {**ACTED, "content": ""}),
    (
        "calls without content",
        {"role": "assistant", "tool_calls": [call()]},
        {"role": "assistant", "tool_calls": [call()]},
    ),
    ("calls with no parts", {**ACTED, "content": []}, {"role": "assistant", "tool_calls": [call()]}),
    ("calls with a value as content", {**ACTED, "content": 5}, {**ACTED, "content": "5"}),
    ("an index stamp", {**ACTED, "tool_calls": [{"index": 0, **call()}]}, ACTED),
    ("no type", {**ACTED, "tool_calls": [{k: v for k, v in call().items() if k != "type"}]}, ACTED),
    ("an odd type", {**ACTED, "tool_calls": [call() | {"type": 5}]}, ACTED),
    ("empty arguments", {**ACTED, "tool_calls": [call(arguments="")]}, ACTED),
    ("arguments as an object", {**ACTED, "tool_calls": [call(arguments={})]}, ACTED),
    ("an ID that is null", {**ACTED, "tool_calls": [call(None)]}, {**ACTED, "tool_calls": [call("")]}),
    ("an ID that is a number", {**ACTED, "tool_calls": [call(5)]}, {**ACTED, "tool_calls": [call("")]}),
    ("a call without a name", {**ACTED, "tool_calls": [{"id": "a"}, call(), {"function": {"name": ""}}, 5]}, ACTED),
    ("calls that are no list", {**SAID, "tool_calls": "x"}, SAID),
    ("fillers", {**SAID, "tool_calls": [], "refusal": None, "name": "", "audio": None, "reasoning": ""}, SAID),
    ("more fillers", {**SAID, "extra_content": {}, "thinking_blocks": [], "refusal": 5}, SAID),
    ("a function_call without a name", {**SAID, "function_call": {"name": "", "arguments": ""}}, SAID),
    ("a function_call that is null", {**SAID, "function_call": None}, SAID),
    (
        "a function_call",
        {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{"}},
        {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{"}},
    ),
    ("unknown members", {**SAID, "annotations": [], "executed_tools": [1], "parsed": {}, "logprobs": None}, SAID),
    ("no role", {"content": "x"}, SAID),
    ("another role", {"role": "model", "content": "x"}, SAID),
    ("an empty reasoning_content", {**ACTED, "reasoning_content": ""}, {**ACTED, "reasoning_content": ""}),
    ("a reasoning_content that is null", {**ACTED, "reasoning_content": None}, ACTED),
    ("empty reasoning_details", {**SAID, "reasoning_details": []}, {**SAID, "reasoning_details": []}),
    ("reasoning_details that are null", {**SAID, "reasoning_details": None}, SAID),
    ("a refusal", {"role": "assistant", "content": None, "refusal": "no"}, {"role": "assistant", "refusal": "no"}),
    ("a voice", {"content": None, "audio": {"id": "a", "data": "QQ=="}}, {"audio": {"id": "a"}, "role": "assistant"}),
    ("a voice without an ID", {"content": "", "audio": {"id": "", "transcript": "x"}}, SAID),
    ("a voice that says nothing", {"role": "assistant", "audio": {"id": None, "transcript": None}}, None),
    ("nothing", {"role": "assistant", "content": None}, None),
    ("nothing but reasoning", {"content": "", "reasoning": "r", "reasoning_content": "r"}, None),
    ("nothing but thoughts", {"content": [THOUGHT]}, None),
    ("nothing but an empty part", {"content": [{"type": "text", "text": ""}, None]}, None),
    ("no content", {"role": "assistant"}, None),
    ("no parts", {"role": "assistant", "content": []}, None),
    ("a number as content", {"role": "assistant", "content": 5}, {**SAID, "content": "5"}),
    ("an object as content", {"role": "assistant", "content": {"a": [1.5]}}, {**SAID, "content": '{"a":[1.5]}'}),
    ("an object without members", {"role": "assistant", "content": {}}, {**SAID, "content": "{}"}),
    ("a list that a schema asked for", {**SAID, "content": [{"a": 1}, [2], 3]}, {**SAID, "content": '[{"a":1},[2],3]'}),
    (
        "an image alone",
        {"role": "assistant", "content": None, "images": [{**IMAGE, "index": 0}, 5]},
        {"role": "assistant", "content": "", "images": [IMAGE, 5]},
    ),
    ("an image among parts", {**SAID, "content": [IMAGE]}, {**SAID, "content": [IMAGE]}),
    ("no images", {"role": "assistant", "content": None, "images": []}, None),
    (
        "stamps of streams",
        {**SAID, "channel": "final", "padding": "x", "index": 0, "tool_calls": [STAMPED]},
        {**SAID, "tool_calls": [call()]},
    ),
    (
        "stamps of parts",
        {**SAID, "content": [{"type": "text", "text": "x", "index": 0}, "y"]},
        {**SAID, "content": [{"type": "text", "text": "x"}, "y"]},
    ),
]


@pytest.mark.parametrize(("message", "wanted"), [case[1:] for case in FILLERS], ids=[case[0] for case in FILLERS])
def test_fillers_do_not_go_back(message: Json, wanted: Json | None) -> None:
    assert form(message) == wanted


@pytest.mark.parametrize(
    ("raw", "wanted"),
    [
        (b'{"role":"assistant","content":"a"}', b'{"role":"assistant","content":"a"}'),
        (b'{"role":"assistant","content":"a","refusal":null,"annotations":[]}', b'{"role":"assistant","content":"a"}'),
        (b'{"role":"assistant","content":"a\\u0301", "tool_calls":null}', b'{"role":"assistant","content":"a\\u0301"}'),
        (b'{"role":"assistant","content":"","refusal":null}', None),
    ],
)
def test_a_reply_of_text_alone_is_the_same_for_everybody(raw: bytes, wanted: bytes | None) -> None:
    for profile in PROFILES.values():
        assert reply_form(raw, profile) == wanted


@pytest.mark.parametrize("odd", [5, None, "x", [], [SAID], True])
def test_what_is_no_object_is_no_reply(odd: Any) -> None:
    assert form(odd) is None


# By profile

REASONED: Json = {**ACTED, "reasoning": "r", "reasoning_content": "r"}
DETAILED: Json = {**ACTED, "reasoning": "r", "reasoning_details": [SUMMARY]}
EXTRA = {"google": {"thought_signature": "sig"}}
SIGNED_CALL = call(extra_content=EXTRA)

WRONG: Json = {**SAID, "tool_calls": [call(arguments="{")]}

PROFILED: list[tuple[str, str, Json, Json | None]] = [
    ("every reasoning", "echo", {**REASONED, **DETAILED}, {**REASONED, **DETAILED}),
    (
        "LiteLLM's thinking that was cut",
        "echo",
        {
            **ACTED,
            "thinking_blocks": [THOUGHT, {**THOUGHT, "signature": ""}, {"type": "redacted_thinking", "data": "X"}],
        },
        {**ACTED, "thinking_blocks": [THOUGHT, {"type": "redacted_thinking", "data": "X"}]},
    ),
    ("and nothing else", "echo", {**ACTED, "thinking_blocks": [{**THOUGHT, "signature": ""}]}, ACTED),
    ("LiteLLM's thinking", "echo", {**ACTED, "thinking_blocks": [THOUGHT]}, {**ACTED, "thinking_blocks": [THOUGHT]}),
    ("no reasoning", "openai", REASONED | DETAILED, ACTED),
    ("a refusal", "openai", {**SAID, "refusal": "no"}, {**SAID, "refusal": "no"}),
    ("no signature of a call", "openai", {**ACTED, "tool_calls": [SIGNED_CALL]}, ACTED),
    ("parts as text", "openai", {**SAID, "content": PARTS}, {**SAID, "content": "ab"}),
    ("its reasoning", "deepseek", REASONED, {**ACTED, "reasoning_content": "r"}),
    ("the empty one", "deepseek", {**ACTED, "reasoning_content": ""}, {**ACTED, "reasoning_content": ""}),
    ("nothing", "deepseek-r1", {**SAID, "reasoning_content": "r"}, SAID),
    ("its reasoning", "moonshot", REASONED, {**ACTED, "reasoning_content": "r"}),
    ("its reasoning", "cerebras", REASONED, {**ACTED, "reasoning": "r"}),
    ("the name it came in", "vllm", {**SAID, "reasoning": "r"}, {**SAID, "reasoning": "r"}),
    ("nothing", "groq", {**REASONED, "executed_tools": [1]}, ACTED),
    ("parts", "mistral", {**SAID, "content": PARTS, "prefix": False}, {**SAID, "content": PARTS}),
    ("thoughts beside calls", "mistral", {**ACTED, "content": [THOUGHT]}, {**ACTED, "content": [THOUGHT]}),
    (
        "arguments that are no JSON",
        "openai",
        {**SAID, "tool_calls": [call(arguments="{")]},
        {**SAID, "tool_calls": [call(arguments="{")]},
    ),
    (
        "arguments that are no JSON",
        "gemini",
        {**SAID, "tool_calls": [call(arguments="{")]},
        {**SAID, "tool_calls": [call()]},
    ),
    ("a refusal in words", "mistral", {"content": None, "refusal": "no"}, {"content": "no", "role": "assistant"}),
    ("a signature", "gemini", {**ACTED, "tool_calls": [SIGNED_CALL]}, {**ACTED, "tool_calls": [SIGNED_CALL]}),
    (
        "a signature beside the text",
        "gemini",
        {**SAID, "extra_content": EXTRA, "thought_signature": "x"},
        {**SAID, "extra_content": EXTRA},
    ),
    ("parts", "databricks", {**SAID, "content": PARTS}, {**SAID, "content": PARTS}),
    ("thoughts beside calls", "together", {**ACTED, "content": [THOUGHT]}, {**ACTED, "content": ""}),
    (
        "text among odd parts",
        "together",
        {"content": ["a", 5, {"refusal": "b"}, {"text": 5}], "role": "assistant"},
        SAID | {"content": "ab"},
    ),
    ("a voice in words", "together", {**SAID, "content": None, "audio": {"id": "a", "transcript": "x"}}, SAID),
    ("no function_call", "together", {"content": None, "function_call": {"name": "f", "arguments": "{}"}}, None),
    ("details", "minimax", DETAILED, DETAILED),
    # OpenRouter's rules
    ("details", "openrouter", DETAILED, DETAILED),
    ("no reasoning alone", "openrouter", {**SAID, "reasoning": "r"}, SAID),
    (
        "empty details",
        "openrouter",
        {**SAID, "reasoning": "r", "reasoning_details": []},
        {**SAID, "reasoning_details": []},
    ),
    (
        "details with a signature",
        "openrouter",
        {**DETAILED, "reasoning_details": [SIGNED, UNSIGNED]},
        {**DETAILED, "reasoning_details": [SIGNED]},
    ),
    ("no details without one", "openrouter", {**DETAILED, "reasoning_details": [UNSIGNED]}, ACTED),
    (
        "no details of unknown format without one",
        "openrouter",
        {**DETAILED, "reasoning_details": [{"type": "reasoning.text", "text": "t"}]},
        ACTED,
    ),
    (
        "other details without one",
        "openrouter",
        {**DETAILED, "reasoning_details": [UNSIGNED | {"format": "unknown"}, 5]},
        {**DETAILED, "reasoning_details": [UNSIGNED | {"format": "unknown"}, 5]},
    ),
    (
        "parsed files",
        "openrouter",
        {**SAID, "annotations": [{"type": "url_citation"}, FILE, 5]},
        {**SAID, "annotations": [FILE]},
    ),
    ("no other annotations", "openrouter", {**SAID, "annotations": [{"type": "url_citation"}]}, SAID),
]


@pytest.mark.parametrize(
    ("name", "message", "wanted"), [case[1:] for case in PROFILED], ids=[f"{case[1]}: {case[0]}" for case in PROFILED]
)
def test_a_profile_gets_back(name: str, message: Json, wanted: Json | None) -> None:
    assert form(message, name) == wanted


UNBOUND: list[tuple[str, Json, Json | None]] = [
    ("reasoning", {**REASONED, **DETAILED, "thinking_blocks": [THOUGHT], "extra_content": EXTRA}, ACTED),
    ("a call's signature", {**ACTED, "tool_calls": [SIGNED_CALL]}, ACTED),
    (
        "a function's own",
        {**ACTED, "tool_calls": [call() | {"function": {"name": "f", "arguments": "{}", "thought_signature": "s"}}]},
        ACTED,
    ),
    ("thoughts", {**SAID, "content": PARTS}, {**SAID, "content": "ab"}),
    ("a refusal", {**SAID, "content": None, "refusal": "no"}, {**SAID, "content": "no"}),
    ("a refusal beside text", {**SAID, "refusal": "no"}, SAID),
    ("a voice", {**SAID, "content": None, "audio": {"id": "a", "transcript": "x"}}, SAID),
    ("a voice without words", {**SAID, "content": None, "audio": {"id": "a"}}, {**SAID, "content": "[audio]"}),
    ("an image", {**SAID, "content": "", "images": [IMAGE, IMAGE]}, {**SAID, "content": "[image] [image]"}),
    ("an image beside text", {**SAID, "images": [IMAGE]}, SAID),
    ("annotations", {**SAID, "annotations": [FILE]}, SAID),
    ("nothing of a legacy call", ACTED | {"function_call": {"name": "f", "arguments": "{}"}}, None),
]


@pytest.mark.parametrize(("message", "wanted"), [case[1:] for case in UNBOUND], ids=[case[0] for case in UNBOUND])
def test_what_holds_at_one_upstream_goes_to_no_other(message: Json, wanted: Json | None) -> None:
    for name in ("echo", "openrouter"):
        assert form(message, name, bound=False) == (message if "function_call" in message else wanted)


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content", "reasoning_details", "thinking_blocks"])
def test_a_member_that_was_refused_is_left_out(name: str) -> None:
    whole = {**REASONED, **DETAILED, "thinking_blocks": [THOUGHT]}
    assert form(whole, without=frozenset((name,))) == {key: value for key, value in whole.items() if key != name}


def test_a_refused_member_is_left_out_of_calls_and_said_in_words() -> None:
    signed = {**ACTED, "tool_calls": [SIGNED_CALL], "extra_content": EXTRA}
    assert form(signed, without=frozenset(("extra_content",))) == ACTED
    assert form({"content": None, "refusal": "no"}, without=frozenset(("refusal",)))["content"] == "no"
    assert (
        form({"content": "", "audio": {"id": "a", "transcript": "t"}}, without=frozenset(("audio",)))["content"] == "t"
    )


# Content beside calls


@pytest.mark.parametrize("content", [{}, {"content": None}, {"content": ""}, {"content": []}])
@pytest.mark.parametrize(
    ("name", "without", "wanted"),
    [("mistral", "", ""), ("ollama", "", ""), ("cloudflare", "", ""), ("databricks", "", None), ("vercel", "", None)]
    + [("echo", NULL, ""), ("echo", EMPTY, None), ("mistral", EMPTY, None), ("databricks", NULL, "")],
)
def test_content_that_says_nothing_is_what_the_upstream_takes(
    content: Json, name: str, without: str, wanted: str | None
) -> None:
    message = {"role": "assistant", **content, "tool_calls": [call()]}
    assert form(message, name, without=frozenset([without])) == {**ACTED, "content": wanted}


@pytest.mark.parametrize("name", ["mistral", "databricks", "openai", "echo"])
def test_content_beside_calls_that_says_something_stays(name: str) -> None:
    assert form({**ACTED, "content": " "}, name) == {**ACTED, "content": " "}
    assert form({**ACTED, "content": None, "images": [IMAGE]}, "mistral") == {**ACTED, "content": "[image]"}


# What goes back for a while only

VOICE: Json = {"role": "assistant", "content": None, "audio": {"id": "a", "data": "QQ==", "expires_at": 100}}


@pytest.mark.parametrize(
    ("audio", "now", "wanted"),
    [
        ({}, 99_999, {"role": "assistant", "audio": {"id": "a"}}),
        ({"transcript": "hi"}, 99_999, {"role": "assistant", "audio": {"id": "a"}}),
        ({"transcript": "hi"}, 100_000, {**SAID, "content": "hi"}),
        ({}, 100_000, {**SAID, "content": "[audio]"}),
        ({"expires_at": None}, 10**15, {"role": "assistant", "audio": {"id": "a"}}),
        ({"expires_at": 0}, 10**15, {"role": "assistant", "audio": {"id": "a"}}),
        ({"expires_at": "soon"}, 10**15, {"role": "assistant", "audio": {"id": "a"}}),
    ],
)
def test_an_audio_id_goes_back_before_it_expires(audio: Json, now: int, wanted: Json) -> None:
    message = {**VOICE, "audio": {**VOICE["audio"], **audio}}
    assert form(message, "openai", now=now) == wanted


@pytest.mark.parametrize(
    ("message", "wanted"),
    [(VOICE, 100_000), ({**VOICE, "audio": None}, inf), ([{"audio": 1}], inf), (SAID, inf), ({"audio": 5}, inf)],
)
def test_when_a_reply_goes_back_in_another_form(message: Any, wanted: float) -> None:
    assert expiry(json.dumps(message).encode()) == wanted
    assert expiry(b'{"audio"') == inf


# Calls that may be torn

TORN = call("b", '{"a')
CUSTOM = {"id": "c", "type": "custom", "custom": {"name": "g", "input": "free"}}
SURROGATE = call("d", '{"a":"\ud83d"}')


@pytest.mark.parametrize(
    ("finish_reason", "interrupted", "ids"),
    [
        ("stop", False, "abcd"),
        ("tool_calls", False, "abcd"),
        ("tool_calls", True, "acd"),
        ("length", False, "ad"),
        ("model_length", False, "ad"),
        ("MAX_TOKENS", False, "ad"),
        ("content_filter", False, "ad"),
        ("length", True, "ad"),
        (None, False, "ad"),
        ("", False, "ad"),
        (None, True, ""),
        ("", True, ""),
    ],
)
def test_a_call_that_may_be_torn_goes_back_if_it_is_whole(
    finish_reason: str | None, interrupted: bool, ids: str
) -> None:
    message = {**SAID, "tool_calls": [call("a"), TORN, CUSTOM, SURROGATE]}
    sent = form(message, finish_reason=finish_reason, interrupted=interrupted)
    assert "".join([each["id"] for each in sent.get("tool_calls", [])]) == ids
    legacy = {**SAID, "function_call": {"name": "f", "arguments": '{"a'}}
    assert ("function_call" in form(legacy, finish_reason=finish_reason, interrupted=interrupted)) == (ids == "abcd")


def test_a_reply_of_torn_calls_alone_says_nothing() -> None:
    assert form({**ACTED, "tool_calls": [TORN]}, finish_reason="length") is None
    assert form(ACTED, finish_reason=None, interrupted=True) is None


def test_a_custom_call_loses_what_a_strict_upstream_does_not_know() -> None:
    assert form({**ACTED, "tool_calls": [CUSTOM | {"x": 1}]}, "openai") == {**ACTED, "tool_calls": [CUSTOM]}


# Bytes

UNTOUCHED = [
    b'{"role":"assistant", "content":"\\u00e9"}',
    b'{"content":"\\ud83d","role":"assistant","reasoning":"r" }',
    b'{"role":"assistant","content":"","tool_calls":[ {"id":"a","type":"function","function":'
    b'{"arguments":"{ \\"n\\" : 1.0 }","name":"f"}} ]}',
]


@pytest.mark.parametrize("raw", UNTOUCHED)
def test_a_reply_that_needs_no_change_keeps_its_bytes(raw: bytes) -> None:
    assert reply_form(raw, PROFILES["echo"]) == raw


@pytest.mark.parametrize(
    ("raw", "wanted"),
    [
        (b'{"tool_calls":[], "content" : "\\u0068o"}', b'{"content":"\\u0068o","role":"assistant"}'),
        (
            b'{"content":"x","x":1,"reasoning_details":[ {"n":1.50, "m":123456789012345678901} ],"role":"assistant"}',
            b'{"content":"x","reasoning_details":[ {"n":1.50, "m":123456789012345678901} ],"role":"assistant"}',
        ),
        # A member that occurs twice has no place; the last value counts, as in every reader
        (b'{"content":"a","x":1,"content":"\\u0062"}', b'{"content":"b","role":"assistant"}'),
    ],
)
def test_a_change_leaves_the_bytes_of_all_else(raw: bytes, wanted: bytes) -> None:
    assert reply_form(raw, PROFILES["echo"]) == wanted


@pytest.mark.parametrize("raw", UNREADABLE, ids=range(4))
def test_what_cannot_be_read_goes_as_it_is(raw: bytes) -> None:
    assert reply_form(raw, PROFILES["openai"], bound=False) == raw


@pytest.mark.parametrize("depth", [100, 300, 900, 1010])
def test_arguments_nested_so_deep_that_they_cannot_be_written_stay(depth: int) -> None:
    nested = b"[" * depth + b"]" * depth
    raw = b'{"role":"assistant","tool_calls":[{"function":{"name":"f","arguments":' + nested + b"}}]}"
    sent = reply_form(raw, PROFILES["echo"])
    assert sent == raw or b'"arguments":"' + nested + b'"' in (sent or b"")


# Whether a message says something


@pytest.mark.parametrize(
    ("message", "wanted"),
    [(SAID, True), (ACTED, True), *[(message, wanted is not None) for _, message, wanted in FILLERS[:2]]]
    + [
        ({"content": None, "refusal": "no"}, True),
        ({"audio": {"id": "a"}}, True),
        ({"function_call": {"name": "f"}}, True),
        ({"content": [{"type": "image_url"}]}, True),
        ({"content": ["x"]}, True),
        ({"content": 5}, True),
        ({"content": [None]}, False),
        ({"images": [{"type": "image_url"}]}, True),
        ({}, False),
        ({"content": None, "tool_calls": [], "refusal": None, "audio": None, "function_call": None}, False),
        ({"content": "", "reasoning": "r"}, False),
        ({"content": [THOUGHT, ""]}, False),
        ({"function_call": {"name": ""}, "audio": {"id": ""}, "refusal": ""}, False),
        (5, False),
        ([SAID], False),
    ],
)
def test_what_says_nothing_does_not_go_back(message: Any, wanted: bool) -> None:
    assert (reply_form(json.dumps(message).encode(), PROFILES["echo"]) is not None) == wanted


# For all messages

hows = st.fixed_dictionaries(
    {
        "bound": st.booleans(),
        "without": st.frozensets(st.sampled_from(sorted(OPTIONAL)), max_size=3),
        "finish_reason": st.sampled_from([None, "", "stop", "length", "tool_calls"]),
        "interrupted": st.booleans(),
    }
)
# What the repair of a history sees to, and what is sent as the model said it.
ELSEWHERE = {"a tool call without an ID", "a tool call ID in a form that is refused", "arguments that are no JSON"}


@given(messages.map(dumps), st.sampled_from(sorted(PROFILES)), hows)
def test_every_form_is_one_that_the_strictest_take(raw: bytes, name: str, how: Json) -> None:
    sent = reply_form(raw, PROFILES[name], **how)
    if sent is None:
        return
    message = json.loads(sent)
    assert message["role"] == "assistant"
    assert not set(strict.message_problems(message, name)) - ELSEWHERE
    assert not message.keys() & how["without"]
    assert reply_form(sent, PROFILES[name], **how) == sent


@given(anything.map(dumps) | messages.map(dumps) | st.binary(max_size=30))
def test_no_input_raises_another_error(raw: bytes) -> None:
    for profile in PROFILES.values():
        assert reply_form(raw, profile) == reply_form(raw, profile)


def test_the_validators_see_what_is_wrong() -> None:
    """The property above can fail: the reply as it came is refused."""
    whole = {**REASONED, **DETAILED, "refusal": None, "tool_calls": [SIGNED_CALL]}
    assert {name for name in PROFILES if strict.message_problems(whole, name)} >= set(PROFILES) - {"echo"}
    with pytest.raises(Malformed):
        loads(UNREADABLE[1])
