"""What an upstream would refuse of a request: the rules of the strictest, one function each.

Independent of the product's own tables on purpose: a wrong line there must be seen here. The source of each
rule stands beside it: the upstream, and the issue or the client that shows it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

Json = dict[str, Any]

ROLES = frozenset(("system", "developer", "user", "assistant", "tool", "function"))
BASE = frozenset(("role", "content", "tool_calls"))
OPENAI = BASE | {"name", "refusal", "audio", "function_call"}

# The members of an assistant message that an upstream is known to take, by profile; what is not here takes any.
KNOWN: dict[str, frozenset[str]] = {
    "openai": OPENAI,
    "azure": OPENAI,
    "openrouter": OPENAI | {"reasoning", "reasoning_details", "annotations", "images", "cache_control"},
    "mistral": BASE | {"prefix"},  # 422 extra_forbidden (BerriAI/litellm#30835, #30882)
    "groq": BASE | {"name"},  # 400 property '...' is unsupported (janhq/jan#8136)
    "cerebras": BASE | {"name", "reasoning"},  # 400 wrong_api_format (Kilo-Org/kilocode#10375)
    "gemini": BASE | {"name", "extra_content"},  # 400 Unknown name "...": Cannot find field
    "deepseek-r1": BASE | {"name", "prefix"},  # R1 must not receive its reasoning (vercel/ai: packages/deepseek)
    "perplexity": BASE,
    "cloudflare": BASE,
    "together": BASE | {"name"},
    "dashscope": BASE | {"name"},
    "watsonx": BASE | {"name"},
    "databricks": BASE | {"name"},
    "deepseek": BASE | {"name", "prefix", "reasoning_content"},
    "moonshot": BASE | {"name", "reasoning_content", "partial"},
    "zai": BASE | {"name", "reasoning_content"},
    "xai": BASE | {"name", "reasoning_content"},
    "avian": BASE | {"name", "reasoning_content"},
    "sglang": BASE | {"name", "reasoning_content"},
    "llamacpp": OPENAI | {"reasoning", "reasoning_content"},
    "vllm": OPENAI | {"reasoning", "reasoning_content"},
    "ollama": OPENAI | {"reasoning", "reasoning_content"},
    "crusoe": BASE | {"name", "reasoning"},
    "vercel": BASE | {"name", "reasoning", "reasoning_details", "images", "cache_control"},
    "minimax": BASE | {"name", "reasoning", "reasoning_details"},
}
# Members of a tool call that the strict ones know; `index` is tolerated by some of them, but not by all.
STRICT_CALLS = frozenset(("openai", "azure", "mistral", "groq", "cerebras", "perplexity"))
CALL = frozenset(("id", "type", "function", "custom"))
# Content of an assistant as a list: Mistral and Databricks write it so themselves; OpenAI's schema has text parts.
LISTS = frozenset(("mistral", "databricks", "openai", "azure", "openrouter", "echo"))

# Templates that raise on a system message behind another message, or on two (Qwen3.5, Mistral, Gemma).
TEMPLATES = frozenset(("llamacpp", "sglang", "vllm", "mistral"))
# vllm-project/vllm#6862, perplexityai/api-discussion#265, and DeepSeek's first R1.
ALTERNATING = TEMPLATES | {"perplexity", "deepseek-r1"}
# Accepted in recordings; DeepSeek, DashScope, Z.ai and the templates name it in a 400 (diegosouzapw/OmniRoute#2281).
DEVELOPER = frozenset(("openai", "azure", "openrouter", "ollama", "echo"))
# Upstreams that parse arguments to rebuild the call in another format (Gemini's and Anthropic's).
PARSING = frozenset(("gemini", "openrouter", "databricks", "vercel"))
CALL_ID = {
    "mistral": r"[a-zA-Z0-9]{9}",  # jackmpcollins/magentic#279
    "openai": r"[\s\S]{1,40}",  # badlogic/pi-mono: openai-completions
    "azure": r"[\s\S]{1,40}",
}
MARKS = 4  # Anthropic, and what stands in front of it


def problems(body: bytes, profile_name: str, thinking: bool = False) -> list[str]:
    """What an upstream of that profile would refuse of a request's body; empty where it takes it.

    `thinking`: the upstream reasons and wants its reasoning back on every turn that called a tool.
    """
    messages = json.loads(body).get("messages")
    if not isinstance(messages, list) or not messages:
        return ["messages is no list with something in it"]
    odd = [f"{place}: no message of a known role" for place, each in enumerate(messages) if not _is_message(each)]
    if odd:
        return odd
    found = [
        f"{place}: {problem}"
        for place, message in enumerate(messages)
        for problem in message_problems(message, profile_name, thinking)
    ]
    return found + [problem for rule in SEQUENCE for problem in rule(messages, profile_name)]


def message_problems(message: Json, profile_name: str, thinking: bool = False) -> list[str]:
    """What an upstream would refuse of a message wherever it stands."""
    found = [problem for rule in MESSAGE for problem in rule(message, profile_name)]
    if thinking and message["role"] == "assistant":
        found += reasoning_is_back(message)
    return found


def _is_message(message: Any) -> bool:
    return isinstance(message, dict) and isinstance(message.get("role"), str) and message["role"] in ROLES


# One message -------------------------------------------------------------------------------


def calls_are_a_list_with_something_in_it(message: Json, profile: str) -> Iterator[str]:
    # OpenAI: 400 empty array, expected minimum length 1 (openai-node#1341). null: JSON schemas of several.
    if "tool_calls" in message and not (isinstance(message["tool_calls"], list) and message["tool_calls"]):
        yield "tool_calls is empty"


def calls_are_whole(message: Json, profile: str) -> Iterator[str]:
    # OpenAI's schema; Gemini's own replies have empty IDs, which no result can name.
    for call in _calls(message):
        kind = "custom" if isinstance(call.get("custom"), dict) else "function"
        function = call.get(kind)
        if not isinstance(call.get("id"), str) or not call["id"]:
            yield "a tool call without an ID"
        if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
            yield "a tool call without a name"
        elif not isinstance(function.get("input" if kind == "custom" else "arguments", ""), str):
            yield "arguments that are no string"


def arguments_parse(message: Json, profile: str) -> Iterator[str]:
    # Gemini's and Anthropic's formats hold arguments as an object; OpenAI takes any string.
    for call in _calls(message):
        if profile in PARSING and isinstance(function := call.get("function"), dict):
            try:
                json.loads(function.get("arguments", ""))
            except (TypeError, ValueError):
                yield "arguments that are no JSON"


def call_ids_match(message: Json, profile: str) -> Iterator[str]:
    if (pattern := CALL_ID.get(profile)) is not None:
        ids = [call.get("id") for call in _calls(message)] + [message.get("tool_call_id", None)]
        for id in ids:
            if isinstance(id, str) and not re.fullmatch(pattern, id):
                yield "a tool call ID in a form that is refused"


def calls_have_known_members(message: Json, profile: str) -> Iterator[str]:
    # OpenAI, Groq, Cerebras and Mistral validate what they are sent by a closed schema.
    if profile in STRICT_CALLS:
        for call in _calls(message):
            if unknown := call.keys() - CALL:
                yield f"a tool call with {sorted(unknown)}"


def members_are_known(message: Json, profile: str) -> Iterator[str]:
    if message["role"] == "assistant" and (known := KNOWN.get(profile)) is not None:
        for name in sorted(message.keys() - known):
            yield f"{name} is not known"


def members_are_not_null(message: Json, profile: str) -> Iterator[str]:
    # Strict servers check the type of what is optional: refusal, audio and function_call as null.
    if message["role"] == "assistant":
        for name, value in message.items():
            if value is None and name != "content":
                yield f"{name} is null"


def content_is_text_or_parts(message: Json, profile: str) -> Iterator[str]:
    content = message.get("content")
    if content is not None and not isinstance(content, str | list):
        yield "content is neither text nor parts"
    # Most take a string alone of an assistant, or imitate the parts (NVIDIA's DeepSeek, by badlogic/pi-mono).
    if isinstance(content, list) and message["role"] == "assistant" and profile not in LISTS:
        yield "an assistant's content is a list"


def null_content_has_calls(message: Json, profile: str) -> Iterator[str]:
    # OpenAI: 400 expected a string, got null.
    acts = "tool_calls" in message or "function_call" in message
    if "content" in message and message["content"] is None and not acts:
        yield "content is null without calls"


def assistant_says_something(message: Json, profile: str) -> Iterator[str]:
    # "Either content or tool_calls" (badlogic/pi-mono: such turns are skipped).
    said = [message.get(name) for name in ("content", "tool_calls", "function_call", "refusal", "audio", "images")]
    if message["role"] == "assistant" and not any(said):
        yield "an assistant that says nothing"


def function_call_has_a_name(message: Json, profile: str) -> Iterator[str]:
    # Snowflake returns it empty on every reply.
    call = message.get("function_call")
    if call is not None and not (isinstance(call, dict) and call.get("name")):
        yield "a function_call without a name"


def audio_is_an_id(message: Json, profile: str) -> Iterator[str]:
    # OpenAI's schema of the assistant message.
    if message.get("audio") is not None and (
        not isinstance(message["audio"], dict) or list(message["audio"]) != ["id"]
    ):
        yield "audio that is more than its ID"


def reasoning_has_details(message: Json, profile: str) -> Iterator[str]:
    # OpenRouter: "Invalid signature in thinking block" (its ai-sdk-provider, issues 418 and 423).
    if profile == "openrouter" and message["role"] == "assistant":
        details = message.get("reasoning_details")
        if message.get("reasoning") and not details:
            yield "reasoning without its details"
        for detail in details if isinstance(details, list) else []:
            if not isinstance(detail, dict) or detail.get("type") != "reasoning.text" or detail.get("signature"):
                continue
            if (detail.get("format") or "anthropic-claude-v1") == "anthropic-claude-v1":
                yield "a detail of Claude's without a signature"


def prefix_is_no_text(message: Json, profile: str) -> Iterator[str]:
    # Mistral types it; where it may be true is a matter of order.
    if message.get("prefix") is not None and not isinstance(message["prefix"], bool):
        yield "prefix is no boolean"


def role_is_known(message: Json, profile: str) -> Iterator[str]:
    if message["role"] == "developer" and profile not in DEVELOPER:
        yield "developer is no role"


def result_names_a_call(message: Json, profile: str) -> Iterator[str]:
    if message["role"] == "tool" and not (isinstance(message.get("tool_call_id"), str) and message["tool_call_id"]):
        yield "a tool message without an ID"


def reasoning_is_back(message: Json) -> Iterator[str]:
    # DeepSeek V4: must be passed back to the API; "" will do (deepseek-harness#739). Moonshot: is missing in
    # assistant tool call message (continuedev/continue#11600).
    if message.get("tool_calls") and not isinstance(message.get("reasoning_content"), str):
        yield "a call without its reasoning_content"


MESSAGE: list[Callable[[Json, str], Iterator[str]]] = [
    calls_are_a_list_with_something_in_it,
    calls_are_whole,
    arguments_parse,
    call_ids_match,
    calls_have_known_members,
    members_are_known,
    members_are_not_null,
    content_is_text_or_parts,
    null_content_has_calls,
    assistant_says_something,
    function_call_has_a_name,
    audio_is_an_id,
    reasoning_has_details,
    prefix_is_no_text,
    role_is_known,
    result_names_a_call,
]


# Their order -------------------------------------------------------------------------------


def every_call_is_answered_at_once(messages: list[Json], profile: str) -> Iterator[str]:
    # OpenAI, Azure, DeepSeek, Moonshot, DashScope: 400 must be followed by tool messages responding to each
    # tool_call_id (github/app#2249); a tool message without its call likewise (posit-dev/positron#15719).
    open: list[Any] = []
    for place, message in enumerate(messages):
        if message["role"] == "tool":
            id = message.get("tool_call_id")
            if id not in open:
                yield f"{place}: a tool message without its call"
            else:
                open.remove(id)
            continue
        if open:
            yield f"{place}: calls without their results before it"
        open = [call.get("id") for call in _calls(message)] if message["role"] == "assistant" else []
    if open:
        yield "calls without their results at the end"


def system_comes_first_and_once(messages: list[Json], profile: str) -> Iterator[str]:
    # Perplexity takes several at the head; the templates take one.
    late = [place for place, message in enumerate(messages) if message["role"] in ("system", "developer")]
    if profile in TEMPLATES and late not in ([], [0]):
        yield f"{late}: a system message that is not the first and only one"
    if profile == "perplexity" and late != list(range(len(late))):
        yield f"{late}: a system message behind another"


def turns_alternate(messages: list[Json], profile: str) -> Iterator[str]:
    if profile in ALTERNATING:
        roles = [message["role"] for message in messages]
        for place, pair in enumerate(pairwise(roles), 1):
            if pair in (("user", "user"), ("assistant", "assistant")):
                yield f"{place}: {pair[1]} after {pair[0]}"


def no_user_after_tool(messages: list[Json], profile: str) -> Iterator[str]:
    # Mistral: 400 Unexpected role 'user' after role 'tool', code 3230 (BerriAI/litellm#6323).
    if profile == "mistral":
        for place in range(1, len(messages)):
            if (messages[place - 1]["role"], messages[place]["role"]) == ("tool", "user"):
                yield f"{place}: user after tool"


def the_last_asks(messages: list[Json], profile: str) -> Iterator[str]:
    # Mistral, Perplexity: the last role must be user or tool, or an assistant's with prefix at Mistral.
    last = messages[-1]
    prefilled = profile == "mistral" and last["role"] == "assistant" and last.get("prefix") is True
    if profile in ("mistral", "perplexity") and last["role"] not in ("user", "tool") and not prefilled:
        yield f"the last role is {last['role']}"


def prefix_is_last(messages: list[Json], profile: str) -> Iterator[str]:
    # Mistral: prefix is for the message that the reply continues.
    if profile in ("mistral", "deepseek", "deepseek-r1"):
        for place, message in enumerate(messages[:-1]):
            if message.get("prefix"):
                yield f"{place}: prefix before the end"


def few_marks(messages: list[Json], profile: str) -> Iterator[str]:
    # Anthropic: 400 for more than four cache breakpoints.
    dialect = sum(_dialect(message) for message in messages)
    if dialect > MARKS:
        yield f"{dialect} cache marks"


def details_are_unique(messages: list[Json], profile: str) -> Iterator[str]:
    # OpenRouter: 400 Duplicate item found with id (its ai-sdk-provider, issue 254).
    seen: set[tuple[str, str]] = set()
    if profile == "openrouter":
        for place, message in enumerate(messages):
            details = message.get("reasoning_details")
            for detail in details if isinstance(details, list) else []:
                key = _detail_key(detail)
                if key in seen:
                    yield f"{place}: a reasoning detail that occurred before"
                seen |= {key} if key else set()


SEQUENCE: list[Callable[[list[Json], str], Iterator[str]]] = [
    every_call_is_answered_at_once,
    system_comes_first_and_once,
    turns_alternate,
    no_user_after_tool,
    the_last_asks,
    prefix_is_last,
    few_marks,
    details_are_unique,
]


def _calls(message: Json) -> list[Json]:
    calls = message.get("tool_calls")
    return [call for call in calls if isinstance(call, dict)] if isinstance(calls, list) else []


def _dialect(message: Json) -> int:
    content = message.get("content")
    parts = [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []
    return sum("cache_control" in each for each in [message, *parts, *_calls(message)])


def _detail_key(detail: Any) -> tuple[str, str] | None:
    """By what OpenRouter tells two details apart: a summary by its text, an encrypted one by its ID or else its
    data, a text by itself or else its signature."""
    if not isinstance(detail, dict):
        return None
    names = {
        "reasoning.summary": ("summary",),
        "reasoning.encrypted": ("id", "data"),
        "reasoning.text": ("text", "signature"),
    }.get(str(detail.get("type")), ())
    value = next((detail[name] for name in names if isinstance(detail.get(name), str) and detail[name]), None)
    return (str(detail["type"]), value) if value is not None else None
