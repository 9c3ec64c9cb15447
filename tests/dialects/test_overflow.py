"""A prompt that does not fit the model, as upstreams say it, and what is another error."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.dialects import chat
from proxy.dialects.overflow import STATUSES, Overflow, overflow, room
from tests.fakes import recordings

OPENAI = "This model's maximum context length is 8192 tokens. However, your messages resulted in 8545 tokens. Please"
OPENAI += " reduce the length of the messages."


def openai(message: str, **more: Any) -> Any:
    return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None, **more}}


def routed(message: str) -> Any:
    """OpenRouter: the provider's own body is a string."""
    raw = json.dumps(openai(message))
    return {"error": {"code": 400, "message": "Provider returned error", "metadata": {"raw": raw}}, "user_id": "u"}


SAYS: list[tuple[Any, int | None, int | None]] = [
    # OpenAI, old and new; DeepSeek, vLLM, Together and Azure say the same
    (openai(OPENAI, param="messages", code="context_length_exceeded"), 8192, 8545),
    (
        openai(
            "This model's maximum context length is 131072 tokens. However, you requested 141072 tokens (131000 in the"
            " messages, 10072 in the completion). Please reduce the length of the messages or completion."
        ),
        131072,
        131000,
    ),
    (
        openai(
            "This model's maximum context length is 4097 tokens, however you requested 4322 tokens (4066 in your"
            " prompt; 256 for the completion). Please reduce your prompt; or completion length."
        ),
        4097,
        4066,
    ),
    (
        openai("Your input exceeds the context window of this model. Please adjust it and try again."),
        None,
        None,
    ),
    (openai("Input tokens exceed the configured limit of 272,000 tokens."), 272000, None),
    (openai("x", code="context_length_exceeded"), None, None),
    (openai("The maximum context length is 7 of something."), None, None),
    # vLLM: the older envelope, and other sentences
    ({"object": "error", "message": OPENAI, "type": "BadRequestError", "param": None, "code": 400}, 8192, 8545),
    (
        openai(
            "'max_tokens' or 'max_completion_tokens' is too large: 2000. This model's maximum context length is 4096"
            " tokens and your request has 2104 input tokens (2000 > 4096 - 2104)."
        ),
        4096,
        2104,
    ),
    (
        openai("The prompt (total length 25938) is too long to fit into the model (context length 4096)."),
        4096,
        25938,
    ),
    (openai("The decoder prompt (length 5000) is longer than the maximum model length of 4096."), 4096, 5000),
    # SGLang
    (openai("The input (5000 tokens) is longer than the model's context length (4096 tokens)."), 4096, 5000),
    (
        openai(
            "Requested token count exceeds the model's maximum context length of 4096 tokens. You requested a total of"
            " 5000 tokens: 4500 tokens from the input messages and 500 tokens for the completion."
        ),
        4096,
        4500,
    ),
    # llama.cpp: its server, an older one (status 500), its Python
    (
        {
            "error": {
                "code": 400,
                "message": "request (14429 tokens) exceeds the available context size (8192 tokens), try increasing it",
                "type": "exceed_context_size_error",
                "n_prompt_tokens": 14429,
                "n_ctx": 8192,
            }
        },
        8192,
        14429,
    ),
    (
        {"error": {"code": 500, "message": "the request exceeds the available context size", "type": "server_error"}},
        None,
        None,
    ),
    ({"error": {"message": "Requested tokens (2285) exceed context window of 2048"}}, 2048, 2285),
    # LM Studio: the error is a string, also in a 200
    (
        {
            "error": "Trying to keep the first 15857 tokens when context the overflows. However, the model is loaded"
            " with context length of only 4096 tokens, which is not enough."
        },
        4096,
        15857,
    ),
    (
        {
            "error": "The number of tokens to keep from the initial prompt is greater than the context length"
            " (n_keep: 13055>= n_ctx: 4096)."
        },
        4096,
        13055,
    ),
    # Ollama
    (openai("prompt too long; exceeded max context length by 3 tokens"), None, None),
    (openai("input length exceeds the context length"), None, None),
    # OpenRouter, its own and a provider's
    (
        {
            "error": {
                "code": 400,
                "message": "This endpoint's maximum context length is 131072 tokens. However, you requested about"
                " 140000 tokens (130000 of text input, 10000 in the output).",
            },
            "user_id": "u",
        },
        131072,
        130000,
    ),
    (routed(OPENAI), 8192, 8545),
    # xAI: the error is a string
    (
        {
            "code": "Client specified an invalid argument",
            "error": "This model's maximum prompt length is 131072 but the request contains 136973 tokens.",
        },
        131072,
        136973,
    ),
    # Claude behind an adapter
    (openai("prompt is too long: 206640 tokens > 200000 maximum"), 200000, 206640),
    (openai("input length and `max_tokens` exceed context limit: 190000 + 20000 > 200000"), 200000, None),
    (openai("Input is too long for requested model."), None, None),
    # Gemini: an array
    (
        [
            {
                "error": {
                    "code": 400,
                    "message": "The input token count (1196265) exceeds the maximum number of tokens allowed"
                    " (1048575).",
                    "status": "INVALID_ARGUMENT",
                }
            }
        ],
        1048575,
        1196265,
    ),
    # Mistral, flat and nested
    (
        {
            "object": "error",
            "message": "Prompt contains 40000 tokens and 0 draft tokens, too large for model with 32768 maximum"
            " context length",
            "type": "invalid_request_error",
        },
        32768,
        40000,
    ),
    ({"object": "error", "message": {"detail": [{"msg": OPENAI}]}, "type": "x"}, 8192, 8545),
    ({"detail": OPENAI}, 8192, 8545),
    # Cerebras: no envelope
    (
        {
            "message": "Please reduce the length of the messages or completion. Current length is 9000 while limit is"
            " 8192",
            "type": "invalid_request_error",
            "code": "context_length_exceeded",
        },
        8192,
        9000,
    ),
    (openai("Please reduce the length of the messages or completion."), None, None),
    # Perplexity, Moonshot, MiniMax, DashScope, Together, watsonx, Copilot, Fireworks, Z.ai
    ({"error": {"message": "Too long.", "type": "too_many_prompt_tokens", "code": 400}}, None, None),
    (openai("Invalid request: Your request exceeded model token limit: 131072"), 131072, None),
    (openai("invalid params, context window exceeds limit (2013)"), None, None),
    ({"error": {"code": 400, "message": "Token limit reached"}}, None, None),
    (openai("Range of input length should be [1, 30720]"), 30720, None),
    (
        openai(
            "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 8193. Given: 8000 `inputs` tokens"
            " and 512 `max_new_tokens`"
        ),
        8193,
        8000,
    ),
    (
        openai("the number of input tokens 5000 cannot exceed the total tokens limit 4096 for this model"),
        4096,
        5000,
    ),
    (openai("prompt token count of 55059 exceeds the limit of 12288"), 12288, 55059),
    (openai("The prompt is too long: 9000, model maximum context length: 8192"), 8192, 9000),
    (openai("Prompt exceeds max length", code="1261"), None, None),
]


@pytest.mark.parametrize(("said", "limit", "tokens"), SAYS)
def test_every_way_to_say_it(said: Any, limit: int | None, tokens: int | None) -> None:
    for status in STATUSES:
        if status != 200 or b'"error"' in json.dumps(said).encode():
            assert overflow(status, json.dumps(said).encode()) == Overflow(limit, tokens)


def test_plain_text_says_it_too() -> None:
    assert overflow(400, OPENAI.encode()) == Overflow(8192, 8545)


OTHER: list[tuple[int, Any]] = [
    (401, openai(OPENAI)),
    (503, openai(OPENAI)),
    (200, {"choices": [{"message": {"role": "assistant", "content": OPENAI}}]}),
    (400, openai("Unknown parameter: 'x'.")),
    (400, openai("max_tokens is too large: 5000. This model supports at most 4096 completion tokens.")),
    (400, openai("The response was filtered due to the prompt triggering content management policy.")),
    (400, openai("Invalid value for 'max_tokens': the maximum value is 4096.")),
    (413, openai("Request Entity Too Large")),
    (429, openai("You exceeded your current quota, please check your plan and billing details.")),
    (
        429,
        openai(
            "Request too large for gpt-4o on tokens per min (TPM): Limit 30000, Requested 45000. The input or output"
            " tokens must be reduced in order to run successfully: please reduce the length of the messages."
        ),
    ),
    (429, openai("Rate limit reached: your input exceeds the context window of this minute.")),
    (413, openai("Request too large for model on tokens per minute (TPM): too many prompt tokens")),
    (400, openai("This request requires more credits, or a prompt that is not too long.")),
    (500, openai("The server had an error while processing your request.")),
    (400, b"<html><body>Bad Request</body></html>"),
    (400, b""),
]


@pytest.mark.parametrize(("status", "said"), OTHER)
def test_another_error_is_another_error(status: int, said: Any) -> None:
    assert overflow(status, said if isinstance(said, bytes) else json.dumps(said).encode()) is None


@pytest.mark.parametrize("recording", recordings(), ids=lambda recording: recording.id)
def test_no_recorded_answer_is_taken_for_one(recording: Any) -> None:
    found = overflow(recording.meta["status"], recording.response)
    reported = "openrouter-minimax" in recording.id  # "Token limit reached", within a stream
    assert (found is not None) == reported


@given(st.sampled_from(sorted(STATUSES)), st.binary(max_size=200))
def test_anything_may_come(status: int, body: bytes) -> None:
    found = overflow(status, body)
    assert found is None or isinstance(found, Overflow)


@pytest.mark.parametrize(
    ("more", "wanted"),
    [
        ("", 256),
        (',"max_tokens":100', 100),
        (',"max_completion_tokens" : 300', 300),
        (',"max_tokens":5000', 1024),
        (',"max_tokens":null', 256),
    ],
)
def test_an_answer_needs_room_too(more: str, wanted: int) -> None:
    body = '{"model":"m","messages":[{"role":"user","content":"\\"max_tokens\\":7"}]' + more + "}"
    assert room(chat.read(body.encode()), 2048) == wanted
