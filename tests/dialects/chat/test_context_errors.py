"""A prompt that does not fit the model, as upstreams say it, and what is another error."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.dialects.chat import wire
from proxy.dialects.chat.context_errors import STATUSES, Kind, Overflow, begins, goes_on, is_own, overflow, room, within
from tests.support.fakes import recordings

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
    # GitHub Models, status 413 (cline/cline 995 and 2115, evalstate/fast-agent 346)
    (
        openai("Request body too large for gpt-4o model. Max size: 8000 tokens.", code="tokens_limit_reached"),
        8000,
        None,
    ),
    (openai("Request body too large for o1-mini model. Max size: 4000 tokens."), 4000, None),
    # SiliconFlow (langgenius/dify 19394, BerriAI/litellm 10188)
    (
        {
            "code": 20015,
            "message": "length of prompt_tokens (57535) must be less than max_seq_len (32768).",
            "data": None,
        },
        32768,
        57535,
    ),
    # Cohere (ragna 351, sandbox-topically 4); openclaw/openclaw 58839
    (
        {"message": "too many tokens: total number of tokens in the prompt cannot exceed 2048 - received 6354."},
        2048,
        6354,
    ),
    (
        {"message": "too many tokens: size limit exceeded by 1502 tokens. Try using shorter or fewer inputs."},
        None,
        None,
    ),
    ({"message": "total tokens exceeds the model's max of 4096"}, 4096, None),
    # Bedrock (openclaw/openclaw 58839)
    ({"message": "ValidationException: Input exceeds the max input token limit"}, None, None),
    # Vertex and Gemini, with one number and none (warpdotdev/warp 15662, arkavo-org/arkavo-edge 371)
    (
        openai("Unable to submit request because the input token count is 33000 but model only supports up to 32768."),
        32768,
        33000,
    ),
    (openai("The input token count exceeds the maximum number of tokens allowed 1048576."), 1048576, None),
    (openai("The input token count exceeds the maximum number of tokens allowed (1048576)."), 1048576, None),
    # LMDeploy, TensorRT-LLM (NVIDIA/TensorRT-LLM 9277), TGI (huggingface/text-generation-inference 695)
    (openai("Input token length 9000 exceeds the session length 8192"), 8192, 9000),
    (
        openai("The sum of prompt length (9351.0), query length (0) should not exceed max_num_tokens (8192)"),
        8192,
        9351,
    ),
    (openai("Input validation error: `inputs` must have less than 1024 tokens. Given: 1168"), 1024, 1168),
    # LM Studio and MLX (lmstudio-ai/lmstudio-bug-tracker 2339)
    (
        {"error": "Reached context length of 4096 tokens with this model, which does not support context shifts."},
        4096,
        None,
    ),
    ({"error": "Context size has been exceeded."}, None, None),
    # Volcengine, Moonshot (MoonshotAI/kimi-cli 2011, MoonshotAI-Cookbook 18), SambaNova (OpenHands/OpenHands 9252)
    (openai("Total tokens of image and text exceed max message tokens. Request id: 0217"), None, None),
    (openai("Invalid request: Your request exceeded model token limit: 262144 (requested: 269030)"), 262144, 269030),
    (openai("model max length exceeded, max length:8192"), 8192, None),
    (
        openai(
            "The maximum context length of DeepSeek-V3-0324 is 32768. However, answering your request will take 39732"
            " tokens. Please reduce the length of the messages or the specified max_completion_tokens value."
        ),
        32768,
        None,
    ),
    # a count in front of the limit
    (openai("Input length (5000) exceeds model's maximum context length (4096)."), 4096, 5000),
    # vLLM of 2026 (earendil-works/pi 5929, 0xku/kon 91)
    (
        openai(
            "This model's maximum context length is 262144 tokens. However, you requested 0 output tokens and your"
            " prompt contains at least 262145 input tokens, for a total of at least 262145 tokens. Please reduce the"
            " length of the input prompt or the number of requested output tokens. (parameter=input_tokens,"
            " value=262145)"
        ),
        262144,
        262145,
    ),
    # NVIDIA NIM (Kilo-Org/kilocode 8698, anomalyco/opencode 17748)
    (
        openai(
            "You passed 170753 input tokens and requested 32000 output tokens. However, the model's context length is"
            " only 202752 tokens, resulting in a maximum input length of 170752 tokens. Please reduce the length of the"
            " input prompt. (parameter=input_tokens, value=170753)"
        ),
        202752,
        170753,
    ),
    # Tenstorrent (tenstorrent/tt-inference-server 4277)
    (
        {
            "message": "Prompt exceeds maximum input sequence length (51200 tokens): prompt_tokens=52113",
            "type": "Bad Request",
            "code": 400,
        },
        51200,
        52113,
    ),
    # DeepSeek behind a router (anomalyco/opencode 35991)
    (
        {
            "detail": "Invalid request. Please check the parameters and try again. Details: The input (514881 tokens)"
            " is longer than the model's context length (262144 tokens)."
        },
        262144,
        514881,
    ),
    # LiteLLM (anomalyco/opencode 44889)
    (
        openai(
            "litellm.BadRequestError: Context Window exceeded for given call. No models have context window large"
            " enough for this call."
        ),
        None,
        None,
    ),
    # OpenRouter counts tools apart (openclaw/openclaw 85921, MoonshotAI/kimi-code 476)
    (
        openai(
            "This endpoint's maximum context length is 262144 tokens. However, you requested about 284671 tokens (9351"
            " of text input, 13176 of tool input, 262144 in the output). Please reduce the length of either one, or use"
            " the context-compression plugin to compress your prompt automatically."
        ),
        262144,
        9351 + 13176,
    ),
    # Xinference (xorbitsai/inference 5473)
    (
        {
            "error": "[address=x.x.x.x:55469, pid=20175] request (33430 tokens) exceeds the available context size"
            " (32768 tokens), try increasing it"
        },
        32768,
        33430,
    ),
    # kronk (ardanlabs/kronk 862)
    (
        openai(
            "start-slot: imc decode: imc: failed to decode extension tokens at pos 16384: unable to process request:"
            " the context window is full. Please reduce the input size or increase the context window",
            code="server_error",
        ),
        None,
        None,
    ),
    # Agentforce (forcedotcom/Einstein-GPT-for-Developers 228), OpenAI's other sentence (ridgesai/ridges-old 75)
    (openai("Request input tokens exceed model token limit. Reduce the input size."), None, None),
    (openai("Requested 319487 tokens, max 300000 tokens per request", code="max_tokens_per_request"), 300000, 319487),
]

COUNTS: list[tuple[int, Any, Kind, int | None]] = [
    # OpenAI (obot-platform/obot 1009)
    (
        400,
        openai(
            "Invalid 'messages': array too long. Expected an array with maximum length 2048, but got an array with"
            " length 2051 instead.",
            code="array_above_max_length",
        ),
        Kind.MESSAGES,
        2048,
    ),
    (400, openai("Too many messages: at most 100 messages are allowed."), Kind.MESSAGES, 100),
    (400, openai("too many messages"), Kind.MESSAGES, None),
    # vLLM (vllm-project/vllm 17092), Azure (the-open-agent/openagent 874), Muse Spark (anomalyco/opencode 48647)
    (400, openai("At most 5 image(s) may be provided in one request."), Kind.IMAGES, 5),
    (400, openai("Too many images in request. Max is 10."), Kind.IMAGES, 10),
    (400, openai("request contains 52 images, exceeding the maximum of 50 allowed per request"), Kind.IMAGES, 50),
    # Claude (anthropics/claude-code 24541), Copilot (microsoft/vscode 306919)
    (400, openai("too many images and documents: 120 + 0 > 100"), Kind.IMAGES, 100),
    (400, openai("Too much media: 0 document pages + 107 images > 100"), Kind.IMAGES, 100),
    (
        400,
        openai("Too many images in request: 11 images provided, but the model supports a maximum of 10 images."),
        Kind.IMAGES,
        10,
    ),
    # Claude (anthropics/anthropic-sdk-python 938), Gemini and in front of it (google-gemini/gemini-cli 13776), nginx,
    # Cloudflare
    (413, {"error": {"type": "request_too_large", "message": "Request exceeds the maximum size"}}, Kind.BYTES, None),
    (400, openai("Request payload size exceeds the limit: 20971520 bytes."), Kind.BYTES, 20971520),
    (413, openai("Maximum request body size 1048576 exceeded, actual body size 1056562"), Kind.BYTES, 1048576),
    (413, b"<html>\r\n<head><title>413 Request Entity Too Large</title></head>\r\n<body>", Kind.BYTES, None),
    (413, b"<html><head><title>413 Payload Too Large</title></head><body>cloudflare</body></html>", Kind.BYTES, None),
    (413, b"", Kind.BYTES, None),
    (413, openai("failed to parse request"), Kind.BYTES, None),
    # Moonshot (MoonshotAI/kimi-code 476)
    (400, openai("total message size 10176584 exceeds limit 2097152"), Kind.BYTES, 2097152),
]


@pytest.mark.parametrize(("status", "said", "kind", "limit"), COUNTS)
def test_messages_images_and_bytes_may_be_too_many(status: int, said: Any, kind: Kind, limit: int | None) -> None:
    found = overflow(status, said if isinstance(said, bytes) else json.dumps(said).encode())
    assert found == Overflow(limit, kind=kind)


@pytest.mark.parametrize(("said", "limit", "tokens"), SAYS)
def test_every_wording_of_a_context_error_is_recognised(said: Any, limit: int | None, tokens: int | None) -> None:
    for status in STATUSES:
        if status != 200 or b'"error"' in json.dumps(said).encode():
            found = overflow(status, json.dumps(said).encode())
            assert found is not None and found[:3] == (limit, tokens, Kind.TOKENS)


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
    (400, openai("The maximum tokens you requested exceeds the model limit of 32768")),  # charmbracelet/crush 946
    # RooCodeInc/Roo-Code 5729
    (
        400,
        openai(
            "`max_tokens` must be less than or equal to `16384`, the maximum value for `max_tokens` is less than the"
            " `context_window` for this model"
        ),
    ),
    (400, openai("Too many tokens, please wait before trying again.")),  # jin-bo/agentao 88
    (413, openai("Request too large for model `kimi-k2` on tokens per minute (TPM): Limit 10000, Requested 15088")),
    (400, openai("At least one of the image dimensions exceed max allowed size for many-image requests: 2000 pixels")),
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
def test_no_answer_makes_reading_a_summary_fail(status: int, body: bytes) -> None:
    found = overflow(status, body)
    assert found is None or isinstance(found, Overflow)


@pytest.mark.parametrize(
    ("more", "wanted"),
    [
        ("", 256),
        (',"max_tokens":100', 100),
        (',"max_completion_tokens" : 300', 300),
        (',"max_tokens":1536', 1536),
        (',"max_tokens":1537', 256),
        (',"max_tokens":5000', 256),
        (',"max_tokens":null', 256),
    ],
)
def test_an_answer_needs_room_too(more: str, wanted: int) -> None:
    body = '{"model":"m","messages":[{"role":"user","content":"\\"max_tokens\\":7"}]' + more + "}"
    assert room(wire.read(body.encode()), 2048) == wanted


VLLM = (
    "'max_tokens' or 'max_completion_tokens' is too large: {0}. This model's maximum context length is 4096 tokens and"
)
VLLM += " your request has {1} input tokens ({0} > 4096 - {1})."


@pytest.mark.parametrize(
    ("asked", "tokens", "own"), [(4050, 150, True), (4050, 3584, True), (4050, 3585, False), (2000, 2500, False)]
)
def test_an_answer_that_no_prompt_leaves_room_for_is_the_requests_own_fault(asked: int, tokens: int, own: bool) -> None:
    ask = wire.read(b'{"messages":[],"max_tokens":%d}' % asked)
    named = overflow(400, json.dumps(openai(VLLM.format(asked, tokens))).encode())
    assert named == Overflow(4096, tokens, answer=asked)
    assert is_own(ask, named, 0) is own
    assert is_own(ask, Overflow(4096), tokens) is own  # told by the estimate
    assert is_own(wire.read(b'{"messages":[]}'), named, 0) is own  # told by the error
    assert not is_own(ask, Overflow(None, tokens), 0)
    assert not is_own(ask, Overflow(100, kind=Kind.IMAGES), 0)
    assert not is_own(wire.read(b'{"messages":[]}'), Overflow(4096, tokens), 0)


@pytest.mark.parametrize("head", [b"", b": PROCESSING\n\n", b"event: error\n", b"\r\n: a\r\nid: 1\r\n"])
def test_the_first_event_of_a_stream_may_say_it(head: bytes) -> None:
    said = head + b"data: " + json.dumps(openai(OPENAI)).encode() + b"\n\n"
    assert begins(said) and begins(head) is (b"event" in head or b"id" in head)
    assert goes_on(head) and not goes_on(said)
    assert within(said) == Overflow(8192, 8545)
    assert within(head + b'data: {"choices":[{"delta":{"content":"maximum context length"}}]}\n\n') is None
    assert within(head + b"{}") is None
    assert within(head + json.dumps(openai(OPENAI)).encode()) is None  # what its head says would not hold any more
    # llama.cpp's older servers have a field of their own; there is no `error` in what it says.
    llama = json.dumps({"code": 400, "message": "it exceeds the available context size", "n_ctx": 8192}).encode()
    assert within(head + b"error: " + llama + b"\n\n") == Overflow(8192)
    # vLLM's names the event alone (fms-guardrails-orchestrator 436)
    named = b"event: error" in head
    assert (within(head + b"data: " + llama + b"\n\n") == Overflow(8192)) is named
    # vLLM behind a gateway (NousResearch/hermes-agent 68451)
    venice = {"error_type": "context_length_exceeded", "error_message": "maximum context length is 163840 tokens"}
    assert within(head + b"data: " + json.dumps(venice).encode() + b"\n\n") == Overflow(163840)
