"""Runs the embedded demo upstream, a small rule-based replacement of a model.

It answers chat completions from the messages of each request alone, so a user sees whether the history was sent.
`answer` holds all rules and is pure; an aiohttp application serves it. Knows nothing of sessions or of the proxy.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
import uuid
from typing import Any

from aiohttp import web

from proxy.errors import BadRequest

MODEL = "demo-no-model"
PACE = 0.02  # seconds before each word: slow enough to be seen as a stream

# A name is bounded so that a long run of punctuation cannot make the match quadratic.
_TELLS = re.compile(r"\s*my\s+name\s+is\s+(\w.{0,99}?)[\s.,;!?…]*", re.IGNORECASE)
_ASKS = re.compile(r"\s*what(?:['\u2019]s|\s+is)\s+my\s+name[\s.!?]*", re.IGNORECASE)


def answer(messages: list[Any]) -> str:
    """Return the demo's reply to a list of messages."""
    said = [_text(message) for message in messages if _role(message) == "user"]
    last = said[-1] if said else ""
    if told := _TELLS.fullmatch(last):
        return f"Nice to meet you, {told[1]}."
    if _ASKS.fullmatch(last):
        names = [told[1] for text in said if (told := _TELLS.fullmatch(text))]
        return f"Your name is {names[-1]}." if names else "I don't have that information."
    return _what_was_sent(messages)


def _what_was_sent(messages: list[Any]) -> str:
    count = "1 message" if len(messages) == 1 else f"{len(messages)} messages"
    spoken = [_text(message) for message in messages if _role(message) not in ("system", "developer")]
    if not spoken:
        return f"I was sent {count}."
    says = f'says: "{spoken[0]}"' if spoken[0] else "has no text"
    return f"I was sent {count}. The oldest {says}."


def _role(message: Any) -> Any:
    return message.get("role") if isinstance(message, dict) else None


def _text(message: Any) -> str:
    """Return the text of a message; its content may be a string, a list of parts, or anything else."""
    content = message.get("content") if isinstance(message, dict) else None
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    texts = [part.get("text") for part in parts if isinstance(part, dict)]
    return " ".join(text for text in texts if isinstance(text, str))


def application() -> web.Application:
    """Build the demo upstream as an aiohttp application."""
    app = web.Application(client_max_size=32 * 2**20)
    app.router.add_post("/v1/chat/completions", _chat)
    app.router.add_get("/v1/models", _models)
    return app


async def start(host: str = "127.0.0.1", port: int = 0) -> tuple[web.AppRunner, int]:
    """Start the demo upstream. Return the runner, which the caller must clean up, and the bound port."""
    runner = web.AppRunner(application(), access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    await web.TCPSite(runner, host, port).start()
    return runner, runner.addresses[0][1]


async def _models(request: web.Request) -> web.Response:
    model = {"id": MODEL, "object": "model", "created": 0, "owned_by": "demo"}
    return _json({"object": "list", "data": [model]})


async def _chat(request: web.Request) -> web.StreamResponse:
    try:
        body = _parsed(await request.read())
    except BadRequest as error:
        return _json(error.body(), status=error.status)
    text = answer(body["messages"])
    usage = _usage(body["messages"], text)
    if body.get("stream") is True:
        options = body.get("stream_options")
        asked = isinstance(options, dict) and options.get("include_usage") is True
        return await _stream(request, text, usage if asked else None)
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return _json(_completion("chat.completion") | {"choices": [choice], "usage": usage})


def _parsed(data: bytes) -> dict[str, Any]:
    """Parse the body of a chat request. Raises BadRequest if it is not JSON or has no messages."""
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        raise BadRequest("The body is not valid JSON. Correct it.") from None
    if not isinstance(body, dict):
        raise BadRequest("The body must be a JSON object. Send one with a list of messages.")
    if not isinstance(body.get("messages"), list) or not body["messages"]:
        raise BadRequest("'messages' must be a list with at least one message.", param="messages")
    return body


async def _stream(request: web.Request, text: str, usage: dict[str, int] | None) -> web.StreamResponse:
    """Stream the answer word by word, with one write for each event."""
    response = web.StreamResponse(
        headers={"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"}
    )
    await response.prepare(request)
    base = _completion("chat.completion.chunk")
    if usage is not None:
        base["usage"] = None  # as OpenAI does: null on every chunk but the last
    await response.write(_event(base | _choice({"role": "assistant", "content": ""})))
    for word in re.findall(r"\S+\s*", text):
        await asyncio.sleep(PACE)
        await response.write(_event(base | _choice({"content": word})))
    await response.write(_event(base | _choice({}, finish="stop")))
    if usage is not None:
        await response.write(_event(base | {"choices": [], "usage": usage}))
    await response.write(b"data: [DONE]\n\n")
    await response.write_eof()
    return response


def _completion(kind: str) -> dict[str, Any]:
    """Return the fields with which each chunk of a stream, or a whole answer, begins."""
    return {
        "id": f"chatcmpl-demo-{uuid.uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": MODEL,
    }


def _choice(delta: dict[str, str], finish: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


def _usage(messages: list[Any], text: str) -> dict[str, int]:
    """Return a usage that counts words as tokens."""
    asked = sum(len(_text(message).split()) for message in messages)
    said = len(text.split())
    return {"prompt_tokens": asked, "completion_tokens": said, "total_tokens": asked + said}


def _event(chunk: dict[str, Any]) -> bytes:
    return b"data: " + _dumped(chunk) + b"\n\n"


def _json(value: object, status: int = 200) -> web.Response:
    return web.Response(body=_dumped(value), status=status, content_type="application/json")


def _dumped(value: object) -> bytes:
    # A lone surrogate is legal in JSON escapes and has no UTF-8: it comes back as "?".
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")
