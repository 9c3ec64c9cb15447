"""Real replies, folded, are the messages that the clients of the time sent back as history.

Where a client sent back something else, its habit stands in a table here by name, and the
comparison holds once the habit is applied to our form.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import pytest

from proxy.core.exchange import Exchange, Outcome, Verdict
from proxy.dialects.chat import profiles, reply_form, wire
from tests.support.fakes import Recording, recordings

RECORDINGS = recordings()
BY_TURN = {(recording.group, recording.turn): recording for recording in RECORDINGS}
BY_ID = {recording.id: recording for recording in RECORDINGS}
ECHOES = [recording for recording in RECORDINGS if recording.meta.get("echo")]

pytestmark = pytest.mark.skipif(not RECORDINGS, reason="no recorded traffic beside the project")

# What is not recorded, and why. Everything else is a whole reply.
NOT_RECORDED = {
    "chat/azure-grok--ruby-llm--02/01": "status 429",
    "chat/openai--opentelemetry-python-contrib--01/01": "status 404",
    "chat/groq--pydantic-ai--03/01": "an error event in a 200 stream",
    "chat/groq--req-llm--01/01": "an error event in a 200 stream",
    "chat/openrouter-minimax--pydantic-ai--01/01": "a chunk with an error, after a finish_reason and before [DONE]",
    "chat/demo-endpoints.pydantic.workers.dev--pydantic-ai--01/01": "JSON that is no completion",
}

Json = dict[str, Any]


def outcome(recording: Recording, size: int | None = None) -> tuple[Outcome, bytes]:
    """What remains of a recorded answer, and the bytes that went on, in the recorded pieces or in such of a size."""
    exchange = Exchange(wire, 1 << 30)
    exchange.begin(recording.meta["status"], recording.meta["response_content_type"], None)
    body, out = recording.response, b""
    sizes = recording.pieces or [len(body)]
    for length in [size] * (len(body) // size + 1) if size else sizes:
        out += exchange.receive(body[exchange.size : exchange.size + length])
    return exchange.finish(clean=True), out + exchange.release()


@pytest.mark.parametrize("recording", RECORDINGS, ids=lambda recording: recording.id)
def test_a_whole_answer_is_recorded_and_an_error_is_not(recording: Recording) -> None:
    result, out = outcome(recording)
    assert out == recording.response
    assert result.verdict is (Verdict.NOTHING if recording.id in NOT_RECORDED else Verdict.COMPLETE)
    if recording.meta["status"] >= 400:
        assert result.reply.message is None
    assert result.reply.error == (recording.id in NOT_RECORDED and "error" in NOT_RECORDED[recording.id])


@pytest.mark.parametrize("recording", RECORDINGS, ids=lambda recording: recording.id)
def test_the_pieces_of_a_recorded_answer_do_not_matter(recording: Recording) -> None:
    assert outcome(recording, 61) == outcome(recording)


def test_every_answer_that_is_not_recorded_is_among_the_recordings() -> None:
    assert set(NOT_RECORDED) <= set(BY_ID)


@pytest.mark.parametrize(
    "recording", [recording for recording in RECORDINGS if recording.request], ids=lambda recording: recording.id
)
def test_a_recorded_request_is_read_as_it_is(recording: Recording) -> None:
    assert recording.request is not None
    sent, ask = json.loads(recording.request), wire.read(recording.request)
    system = json.loads(b"[" + (ask.system or b"") + b"]")
    assert [*system, *[json.loads(message.raw) for message in ask.messages]] == sent["messages"]
    assert [message.role for message in ask.messages] == [each["role"] for each in sent["messages"][len(system) :]]
    assert (ask.model, ask.stream) == (sent.get("model"), sent.get("stream") is True)


# The clients' habits


def canonical(message: Json) -> Json:
    """A message without what says nothing: a list of one text is that text; a content that is
    null or empty beside tool calls is as good as none; index stamps, nulls, empty lists."""
    kept = {key: value for key, value in message.items() if value not in (None, [])}
    content = kept.get("content")
    if isinstance(content, list) and len(content) == 1 and content[0].keys() == {"type", "text"}:
        kept["content"] = content[0]["text"]
    if "tool_calls" in kept:
        kept["tool_calls"] = [{k: v for k, v in call.items() if k != "index"} for call in kept["tool_calls"]]
        if not kept.get("content"):
            kept.pop("content", None)
    return kept


def _without(key: str) -> Callable[[Json], None]:
    return lambda message: message.pop(key, None)


def _text_without_outer_space(message: Json) -> None:
    message["content"] = message["content"].strip()


def _arguments_as_values(message: Json) -> None:
    for call in message["tool_calls"]:
        call["function"]["arguments"] = json.loads(call["function"]["arguments"])


def _calls_without_ids(message: Json) -> None:
    for call in message["tool_calls"]:
        del call["id"]


def _reasoning_as_think_tags(message: Json) -> None:
    if reasoning := message.get("reasoning"):
        message["content"] = f"<think>\n{reasoning}\n</think>" + message.get("content", "")


# By the client's name in the recording's group: what it adds to or takes from every reply.
CLIENTS: dict[str, list[Callable[[Json], None]]] = {
    "ruby-llm": [_without("reasoning")],  # sends DeepSeek's reasoning_content a second time as `reasoning`
    "openinference": [_without("name")],  # names the agent that spoke
    "pydantic-ai": [_without("extra_content")],  # does not know Gemini's thought signatures
}

# By the difference's name in meta.json: what makes our form and the client's the same again.
DIFFERENCES: dict[str, Callable[[Json], None]] = {
    "content-whitespace": _text_without_outer_space,
    "reasoning_details dropped by client": _without("reasoning_details"),
    "arguments reformatted": _arguments_as_values,
    "tool id": _calls_without_ids,
    "content": _reasoning_as_think_tags,
    "reasoning dropped by client": _without("reasoning"),
}

# Whose client hands reasoning back as text, while the profile of the upstream leaves it out.
REASONING_LEFT_OUT = {"chat/groq--pydantic-ai--03/03"}


def compared(message: Json, recording: Recording) -> Json:
    message = canonical(message)
    habits = CLIENTS.get(recording.group.split("--")[1], [])
    for habit in [*habits, *[DIFFERENCES[name] for name in recording.meta["echo"]["differences"]]]:
        habit(message)
    return message


@pytest.mark.parametrize("setting", ["auto", "echo"])
@pytest.mark.parametrize("recording", ECHOES, ids=lambda recording: recording.id)
def test_the_echo_is_what_the_client_sent_back(recording: Recording, setting: str) -> None:
    echo = recording.meta["echo"]
    answered = BY_TURN[recording.group, int(echo["of"])]
    reply = outcome(answered)[0].reply
    if answered.id in NOT_RECORDED:
        # pydantic-ai made a reply of an error event: its own reading of `failed_generation`.
        assert (echo["check"], reply.error) == ("differs", True)
        return
    host = urlsplit(recording.meta["url"]).hostname
    ours = reply_form.reply_form(reply.message or b"", profiles.choose(setting, host or ""))
    assert ours is not None
    sent = wire.read(recording.request or b"")
    system = json.loads(b"[" + (sent.system or b"") + b"]")
    theirs = sent.messages[echo["message_index"] - len(system)]
    assert theirs.role == "assistant"
    wanted = compared(json.loads(theirs.raw), recording)
    if setting == "auto" and recording.id in REASONING_LEFT_OUT:
        assert wanted.pop("content").endswith("</think>")
    assert compared(json.loads(ours), recording) == wanted


def test_every_habit_is_needed_somewhere() -> None:
    assert {name for recording in ECHOES for name in recording.meta["echo"]["differences"]} >= set(DIFFERENCES)
    assert {recording.group.split("--")[1] for recording in ECHOES} >= set(CLIENTS)
