"""Real answers of upstreams, served again in pieces: the client's bytes are the same, and as early."""

from __future__ import annotations

import asyncio
import hashlib
import random
import re
from typing import Any

import pytest

from tests.support.fakes import RECORDINGS, RawClient, Recording, Reply, ScriptedUpstream, completion, recordings
from tests.support.serving import Serve

SMALL = 1500  # bytes; smaller bodies are cut at every byte
SESSION = [("sessionId", "s1")]


ALL = recordings()
STREAMS = [recording for recording in ALL if recording.meta.get("stream") and recording.meta["status"] == 200]
ERRORS = [
    recording for recording in ALL if recording.meta["status"] >= 400 or "error-in-stream" in recording.meta["features"]
]


def present(found: list[Recording]) -> list[Any]:
    """The recordings as parameters; one skipped test with its reason where they are absent."""
    reason = f"no recorded traffic in {RECORDINGS}"
    return [*found] or [pytest.param(None, marks=pytest.mark.skip(reason=reason))]


def named(recording: Recording | None) -> str:
    return recording.id if recording else "absent"


def replay(recording: Recording, pieces: list[bytes]) -> Reply:
    headers = [("Content-Type", recording.meta.get("response_content_type") or "text/event-stream")]
    framing = "chunked" if recording.meta.get("stream") else "length"
    return Reply(status=recording.meta["status"], headers=headers, pieces=pieces, framing=framing)  # type: ignore[arg-type]


def cut(body: bytes, sizes: list[int]) -> list[bytes]:
    pieces, start = [], 0
    for size in sizes:
        pieces.append(body[start : start + size])
        start += size
    return [piece for piece in [*pieces, body[start:]] if piece]


def ways_to_cut(recording: Recording) -> list[list[bytes]]:
    body, chance = recording.response, random.Random(recording.id)
    ways = [[body]]
    if recording.pieces:
        ways.append(cut(body, recording.pieces))
    if len(body) <= SMALL:
        ways.append([body[n : n + 1] for n in range(len(body))])
    for _ in range(3):
        places = sorted(chance.sample(range(1, len(body)), min(len(body) - 1, 40)))
        ways.append([body[a:b] for a, b in zip([0, *places], [*places, len(body)], strict=True)])
    return ways


async def exchanged(port: int, recording: Recording, session: str) -> RawClient:
    async with RawClient(port) as client:
        body = {
            "model": "m",
            "messages": [{"role": "user", "content": "x"}],
            "stream": bool(recording.meta.get("stream")),
        }
        await client.post("/v1/chat/completions", body, [("sessionId", session)])
        client.status = (await client.head()).status  # type: ignore[attr-defined]
        client.digest = hashlib.sha256(await client.body()).hexdigest()  # type: ignore[attr-defined]
    return client


@pytest.mark.parametrize("recording", present(ALL), ids=named)
async def test_the_client_receives_the_recorded_bytes(serve: Serve, recording: Recording) -> None:
    ways = ways_to_cut(recording)
    async with ScriptedUpstream([replay(recording, way) for way in ways]) as upstream:
        proxy = await serve(upstream.base_url)
        for number in range(len(ways)):
            client = await exchanged(proxy.port, recording, f"s{number}")
            assert client.digest == hashlib.sha256(recording.response).hexdigest()  # type: ignore[attr-defined]
            assert client.status == recording.meta["status"]  # type: ignore[attr-defined]
            assert client.ended == "complete"


@pytest.mark.parametrize("recording", present(STREAMS), ids=named)
async def test_each_recorded_event_arrives_before_the_next_is_sent(serve: Serve, recording: Recording) -> None:
    """In lock step: the upstream sends an event only when the client has the one before."""
    events = [event for event in re.split(rb"(?<=\n\n)|(?<=\r\n\r\n)", recording.response) if event]
    received, arrived = 0, asyncio.Condition()

    async def gate(index: int) -> None:
        async with arrived:
            await asyncio.wait_for(arrived.wait_for(lambda: received >= len(b"".join(events[:index]))), 5)

    reply = replay(recording, events)
    reply.gate = gate
    if events[-1].startswith(b"data: [DONE]"):  # the end waits for the commit, and the commit for nothing
        assert len(events) > 1
    async with ScriptedUpstream([reply]) as upstream:
        proxy = await serve(upstream.base_url)
        async with RawClient(proxy.port) as client:
            await client.post("/v1/chat/completions", {"messages": [], "stream": True}, SESSION)
            await client.head()
            while (piece := await client.piece()) is not None:
                async with arrived:
                    received += len(piece)
                    arrived.notify_all()
    assert client.ended == "complete" and received == len(recording.response)


@pytest.mark.parametrize("recording", present(ERRORS), ids=named)
async def test_a_recorded_error_records_nothing(serve: Serve, recording: Recording) -> None:
    async with ScriptedUpstream([replay(recording, [recording.response]), completion("fine")]) as upstream:
        proxy = await serve(upstream.base_url)
        await exchanged(proxy.port, recording, "s1")
        after = await exchanged(proxy.port, recording, "s1")
        assert len(upstream.requests[1].messages) == 1
    assert after.ended == "complete"
