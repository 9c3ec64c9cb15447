"""Profiles: which upstream is which, which models share signatures, which member an error refuses."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.dialects.chat.profiles import EMPTY, NULL, OPTIONAL, PROFILES, choose, family, refused
from tests.support import strict

HOSTS = [
    ("api.openai.com", "openai"),
    ("API.OpenAI.com.", "openai"),
    ("eu.api.openai.com", "openai"),
    ("test-openai.openai.azure.com", "azure"),
    ("rubyllm.services.ai.azure.com", "azure"),
    ("openrouter.ai", "openrouter"),
    ("ai-gateway.vercel.sh", "vercel"),
    ("api.minimax.io", "minimax"),
    ("api.deepseek.com", "deepseek"),
    ("api.moonshot.ai", "moonshot"),
    ("api.moonshot.cn", "moonshot"),
    ("api.z.ai", "zai"),
    ("open.bigmodel.cn", "zai"),
    ("api.x.ai", "xai"),
    ("api.avian.io", "avian"),
    ("ollama.com", "ollama"),
    ("api.cerebras.ai", "cerebras"),
    ("api.groq.com", "groq"),
    ("api.mistral.ai", "mistral"),
    ("generativelanguage.googleapis.com", "gemini"),
    ("us-central1-aiplatform.googleapis.com", "gemini"),
    ("adb-138962681435081.1.azuredatabricks.net", "databricks"),
    ("api.perplexity.ai", "perplexity"),
    ("api.cloudflare.com", "cloudflare"),
    ("api.together.xyz", "together"),
    ("dashscope-intl.aliyuncs.com", "dashscope"),
    ("us-south.ml.cloud.ibm.com", "watsonx"),
    # Nobody we know, however near the name
    ("localhost", "echo"),
    ("192.168.0.7", "echo"),
    ("::1", "echo"),
    ("", "echo"),
    ("openrouter.ai.example.org", "echo"),
    ("max.ai", "echo"),
    ("notopenrouter.ai", "echo"),
    ("gateway.ai.cloudflare.com", "echo"),
]


@pytest.mark.parametrize(("host", "name"), HOSTS)
def test_a_profile_is_chosen_by_the_host(host: str, name: str) -> None:
    assert choose("auto", host).name == name


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_that_is_named_counts_whatever_the_host(name: str) -> None:
    assert choose(name, "openrouter.ai") is PROFILES[name]
    assert PROFILES[name].name == name


def test_a_profile_that_nobody_knows_is_an_error() -> None:
    with pytest.raises(KeyError):
        choose("openia", "api.openai.com")


def test_no_host_belongs_to_two_profiles() -> None:
    hosts = [host for profile in PROFILES.values() for host in profile.hosts]
    assert len(hosts) == len(set(hosts))
    assert [choose("auto", host).name for host in hosts] == [p.name for p in PROFILES.values() for _ in p.hosts]


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_keeps_nothing_that_its_upstream_refuses(name: str) -> None:
    assert PROFILES[name].keep <= strict.KNOWN.get(name, PROFILES[name].keep)
    assert PROFILES[name].content_parts <= (name in strict.LISTS)
    assert not (PROFILES[name].call_extras and name in strict.STRICT_CALLS)
    assert PROFILES[name].developer == (name in strict.DEVELOPER)
    assert PROFILES[name].alternate == PROFILES[name].join_prefill == (name in strict.ALTERNATING)
    assert PROFILES[name].one_system >= (name in strict.TEMPLATES)


# Table 7.3 of what goes back, by the members in which reasoning comes.
KEPT = [
    ("openai azure deepseek-r1 groq mistral gemini databricks perplexity cloudflare together dashscope watsonx", ""),
    ("deepseek moonshot zai sglang xai avian", "reasoning_content"),
    ("llamacpp vllm ollama", "reasoning reasoning_content"),
    ("crusoe cerebras", "reasoning"),
    ("openrouter vercel minimax", "reasoning reasoning_details"),
    ("echo", "reasoning reasoning_content reasoning_details thinking_blocks"),
]


@pytest.mark.parametrize(("name", "kept"), [(name, kept) for names, kept in KEPT for name in names.split()])
def test_reasoning_goes_back_to_those_who_want_it(name: str, kept: str) -> None:
    every = {"reasoning", "reasoning_content", "reasoning_details", "thinking_blocks"}
    assert PROFILES[name].keep & every == set(kept.split())


def test_every_profile_has_its_reasoning_in_a_table() -> None:
    assert {name for names, _ in KEPT for name in names.split()} == set(PROFILES)


@pytest.mark.parametrize(
    ("name", "id", "fits"),
    [
        ("mistral", "abcDEF123", True),
        ("mistral", "call_1234", False),
        ("mistral", "abcDEF1234", False),
        ("mistral", "abcDEF123\n", False),
        ("openai", "call_" + "x" * 35, True),
        ("openai", "call_" + "x" * 36, False),
        ("openai", "functions.weather:0\n", True),
        ("azure", "x" * 41, False),
    ],
)
def test_the_ids_of_calls_have_a_form(name: str, id: str, fits: bool) -> None:
    assert bool(re.fullmatch(PROFILES[name].call_id or "", id)) == fits


FAMILIES = [
    (None, ""),
    ("", ""),
    ("anthropic/claude-haiku-4.5", "claude"),
    ("us.anthropic.claude-sonnet-4-5-v1:0", "claude"),
    ("databricks-claude-3-7-sonnet", "claude"),
    ("CLAUDE-3-OPUS", "claude"),
    ("gpt-4o-2024-08-06", "gpt"),
    ("gpt-5", "gpt"),
    ("chatgpt-4o-latest", "gpt"),
    ("openai/gpt-oss-120b", "gpt-oss"),
    ("openai.gpt-oss-20b-1:0", "gpt-oss"),
    ("google/gemini-3.1-flash-lite-preview", "gemini"),
    ("models/gemini-2.5-pro", "gemini"),
    ("x-ai/grok-4-1-fast", "grok"),
    ("deepseek-v4-flash", "deepseek"),
    ("deepseek-r1-distill-llama-70b", "deepseek"),
    ("moonshotai/kimi-k2.5", "kimi"),
    ("minimax/minimax-m2:free", "minimax"),
    ("@cf/meta/llama-3.3-70b-instruct", "llama"),
    ("o3-mini", "o"),
    ("4o", "o"),
    ("123", "123"),
]


@pytest.mark.parametrize(("model", "wanted"), FAMILIES)
def test_the_family_of_a_model(model: str | None, wanted: str) -> None:
    assert family(model) == wanted


@given(st.text(max_size=20))
def test_every_model_has_one_family_in_whatever_letters(model: str) -> None:
    assert family(model) == family(model.lower()) == family("vendor/" + model)


# What an error refuses

ALL = sorted(OPTIONAL)


def message(text: str, **more: Any) -> dict[str, Any]:
    return {"error": {"message": text, "type": "invalid_request_error", **more}}


GROQ = (
    "'messages.2' : for 'role:assistant' the following must be satisfied"
    "[('messages.2' : property 'reasoning_content' is unsupported)]"
)
MISTRAL = {"type": "extra_forbidden", "loc": ["body", "messages", 2, "assistant", "reasoning_content"]}
MISSED = {"type": "missing", "loc": ["body", "messages", 3, "tool", "content"], "msg": "Field required"}
GEMINI = "Invalid JSON payload received. Unknown name \"reasoning\" at 'messages[2]': Cannot find field."
RAW = json.dumps(message("property 'reasoning_details' is not supported"))

REFUSALS: list[tuple[str, Any, str | None]] = [
    ("Groq", message(GROQ), "reasoning_content"),
    ("Groq on a model that does not reason", message("reasoning is not supported with this model"), "reasoning"),
    ("Mistral", {"detail": [MISTRAL | {"msg": "Extra inputs are not permitted"}]}, "reasoning_content"),
    ("Mistral, message as an object", {"object": "error", "message": {"detail": [MISTRAL]}}, "reasoning_content"),
    ("Mistral beside something missing", {"detail": [MISSED, MISTRAL]}, "reasoning_content"),
    (
        "Cerebras",
        {"message": "property 'messages.2.assistant.reasoning_content' is unsupported", "code": "wrong_api_format"},
        "reasoning_content",
    ),
    ("Gemini", [{"error": {"code": 400, "message": GEMINI, "status": "INVALID_ARGUMENT"}}], "reasoning"),
    ("OpenAI", message("Unknown parameter: 'messages[1].extra_content'.", param="x"), "extra_content"),
    ("an index behind it", message("Invalid value: messages.1.reasoning_details.0"), "reasoning_details"),
    ("a list of texts", {"errors": ["bad request", "Unexpected field: thinking_blocks"]}, "thinking_blocks"),
    ("xAI", {"code": "Client error", "error": "unrecognized field `annotations`"}, "annotations"),
    ("OpenRouter", {"error": {"message": "Provider returned error", "metadata": {"raw": RAW}}}, "reasoning_details"),
    ("OpenRouter, cut", {"error": {"metadata": {"raw": RAW[:-3]}}}, "reasoning_details"),
    ("a JSON string", "refusal is not allowed here", "refusal"),
    ("plain text", b"unsupported: audio", "audio"),
    ("not UTF-8", b"\xff unsupported: audio", "audio"),
    ("the longest of two", message("reasoning, reasoning_content: extra fields not permitted"), "reasoning_content"),
    (
        "DeepSeek wants it",
        message("The reasoning_content in the thinking mode must be passed back to the API. Invalid request"),
        None,
    ),
    (
        "Moonshot wants it",
        message("thinking is enabled but reasoning_content is missing in assistant tool call message at index 2"),
        None,
    ),
    ("a required one", message("Invalid request: field reasoning_details is required"), None),
    ("a parameter of the request", message("Unsupported value: 'reasoning.effort' with this model"), None),
    ("a longer word", message("Unsupported parameter: 'reasoning_effort'"), None),
    ("a longer word before", message("Unsupported parameter: 'include_reasoning'"), None),
    ("no objection", message("too many tokens in reasoning"), None),
    ("no name", message("Unknown parameter: 'foo'"), None),
    ("what no message can lose", message("Unknown name: tool_calls, content, name, function_call"), None),
    ("a number", 5, None),
    ("nothing", b"", None),
    ("too deep", b"[" * 100_000, None),
]


@pytest.mark.parametrize(("body", "name"), [case[1:] for case in REFUSALS], ids=[case[0] for case in REFUSALS])
def test_an_error_names_the_member_that_is_refused(body: Any, name: str | None) -> None:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    everything = [*ALL, "content", "tool_calls", "name", "function_call"]
    assert refused(400, raw, everything) == refused(422, raw, everything) == name
    assert refused(500, raw, everything) is None
    if name is not None:
        assert refused(400, raw, [name]) == name
        assert refused(400, raw, set(everything) - {name, "reasoning"}) is None


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("Invalid value for 'content': expected a string, got null.", NULL),
        ("invalid message content type: <nil>", NULL),
        ("Invalid 'content': 'content' field must be a string or an array of objects.", NULL),
        ("Unsupported: messages[1].content is None", NULL),
        ("messages: text content blocks must be non-empty", EMPTY),
        ("Invalid request: the content of message 2 is empty", EMPTY),
        ("Invalid value for 'contentment': null", None),
        ("Type mismatch of '/messages/1/content', 'string' not in 'null'", NULL),
        ("Invalid temperature: null", None),
        ("this model does not support images", None),
        ("unexpected member 'images'", "images"),
        ("body messages 1 assistant images: extra inputs are not permitted", "images"),
    ],
)
def test_an_error_names_the_content_that_is_refused(said: str, kind: str | None) -> None:
    raw = json.dumps({"error": {"message": said}}).encode()
    assert refused(400, raw, [NULL, EMPTY, "images"]) == kind
    assert refused(400, raw, []) is None


def test_what_content_may_be_beside_calls() -> None:
    kept = {name for name, profile in PROFILES.items() if profile.beside_calls == "kept"}
    text = {name for name, profile in PROFILES.items() if profile.beside_calls == "text"}
    assert set(PROFILES) - kept - text == {"vercel", "databricks"}
    assert text == {"mistral", "ollama", "cloudflare"}


def test_a_member_that_was_not_sent_was_not_refused() -> None:
    raw = json.dumps(message(GROQ)).encode()
    assert refused(400, raw, ["reasoning", "reasoning_details"]) is None
    assert refused(400, raw, []) is None


def test_what_may_be_left_out() -> None:
    assert not OPTIONAL & {"role", "content", "tool_calls", "function_call", "name"}
    assert {"reasoning", "reasoning_content", "reasoning_details", "extra_content", "refusal", "audio"} <= OPTIONAL


json_values = st.recursive(
    st.none() | st.integers() | st.text() | st.sampled_from(["unsupported audio", '{"a":"unknown refusal"}', "[["]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
)


@given(json_values.map(json.dumps).map(str.encode) | st.binary(max_size=40), st.lists(st.sampled_from(ALL)))
def test_no_error_body_is_too_odd(body: bytes, sent: list[str]) -> None:
    assert refused(400, body, sent) in (None, *sent)
