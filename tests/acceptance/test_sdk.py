"""The official SDK for Python against the real application, streamed and not."""

from __future__ import annotations

from typing import Any

import openai
import pytest


def answer(client: openai.OpenAI, text: str, stream: bool) -> str:
    asked: Any = {"model": "demo", "messages": [{"role": "user", "content": text}], "stream": stream}
    answered: Any = client.chat.completions.create(**asked)
    if not stream:
        return str(answered.choices[0].message.content)
    return "".join(chunk.choices[0].delta.content or "" for chunk in answered if chunk.choices)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("header", ["sessionId", "session-id", "x-session-id", "session_id"])
@pytest.mark.parametrize("mount", ["/v1", "/api/publicLLM"])
def test_the_sdk_is_answered_from_memory(demo: str, mount: str, header: str, stream: bool) -> None:
    session = {header: f"sdk{mount}{header}{stream}"}
    with openai.OpenAI(base_url=f"http://{demo}{mount}", api_key="k", default_headers=session, max_retries=0) as client:
        assert "Alice" in answer(client, "My name is Alice", stream)
        assert answer(client, "What's my name?", stream) == "Your name is Alice."
        assert client.models.list().data


def test_without_a_session_id_there_is_no_memory(demo: str) -> None:
    with openai.OpenAI(base_url=f"http://{demo}/v1", api_key="k") as client:
        answer(client, "My name is Alice", False)
        assert answer(client, "What's my name?", True) == "I don't have that information."


def test_errors_reach_the_sdk_as_its_own_exceptions(demo: str) -> None:
    client = openai.OpenAI(base_url=f"http://{demo}/v1", api_key="k", default_headers={"sessionId": "x" * 300})
    with client, pytest.raises(openai.BadRequestError) as refused:
        answer(client, "hello", False)
    assert refused.value.code == "invalid_session_id"
