"""A client of other people's in front of the proxy, with a scripted upstream behind: what each of them sent, what came
of it upstream, and what stands in the history."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from tests.clients.tap import NUMBER, Sent, Tap
from tests.support.fakes import Received, Reply, ScriptedUpstream, completion, sse
from tests.support.process import Proxy

PROGRAMS = Path(__file__).parent / "programs"
KEY = "k"
SESSION = "clients-1"
PATIENCE = 240  # seconds for one command of a client
Json = dict[str, Any]
Form = tuple[str, str, str, str]


Call = tuple[str, Json]  # the name of a tool, and its arguments


class Script:
    """Answers each request with a text of its own, and calls a tool where `calls` says so of a request with tools.
    Counts `tokens` for each message of a prompt."""

    def __init__(
        self,
        calls: Callable[[list[Any]], Call | None] = lambda messages: None,
        says: Callable[[int], str] = "This is what was said as number {}.".format,
        tokens: int = 10,
    ) -> None:
        self.replies: dict[int, Json] = {}  # by the number of the request
        self.says = says
        self._calls, self._tokens = calls, tokens

    def __call__(self, request: Received) -> Reply:
        number = int(request.header(NUMBER) or -1)
        streams = request.json.get("stream") is True
        prompt = self._tokens * len(request.messages)
        usage = {"prompt_tokens": prompt, "completion_tokens": 20, "total_tokens": prompt + 20}
        call = self._calls(request.messages) if request.json.get("tools") else None
        if call is None:
            text = self.says(number)
            self.replies[number] = {"role": "assistant", "content": text}
            return sse(text[:9], text[9:], usage=usage) if streams else completion(text, usage=usage)
        function = {"name": call[0], "arguments": json.dumps(call[1])}
        made = {"id": f"call_{number}", "type": "function", "function": function}
        self.replies[number] = {"role": "assistant", "content": None, "tool_calls": [made]}
        if streams:
            return sse({"tool_calls": [{"index": 0, **made}]}, finish="tool_calls", usage=usage)
        return completion(None, message={"tool_calls": [made]}, finish="tool_calls", usage=usage)


class Stage:
    """One run: all that was sent, that went upstream, that is kept."""

    def __init__(self, proxy: Proxy, tap: Tap, upstream: ScriptedUpstream, script: Script) -> None:
        self.proxy, self.tap, self.upstream, self.script = proxy, tap, upstream, script

    async def run(self, *command: str | Path, cwd: Path, **environ: str) -> str:
        """A command that ends by itself; its output."""
        plain = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        process = await asyncio.create_subprocess_exec(
            *map(str, command),
            cwd=cwd,
            env={**plain, "BASE_URL": self.tap.base_url, "SESSION": SESSION, "API_KEY": KEY, **environ},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            async with asyncio.timeout(PATIENCE):
                said, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        output = said.decode(errors="replace")
        assert process.returncode == 0, output[-4000:]
        return output

    def received(self, number: int) -> list[Any]:
        """The messages that reached the upstream for a request."""
        calls = [request for request in self.upstream.requests if request.header(NUMBER) == str(number)]
        assert len(calls) == 1, f"request {number} reached the upstream {len(calls)} times"
        return calls[0].messages

    async def history(self, session: str = SESSION) -> list[Any]:
        url = f"http://127.0.0.1:{self.proxy.port}/sessions/{session}/messages?limit=1000"
        headers = {"Authorization": f"Bearer {KEY}"}
        async with aiohttp.ClientSession() as client, client.get(url, headers=headers) as answer:
            assert answer.status == 200, await answer.text()
            return [entry["message"] for entry in (await answer.json())["data"]]

    async def check(self, is_side_request: Callable[[Sent], bool], session: str = SESSION) -> list[Sent]:
        """What must hold of every client that carries its own list; the side requests."""
        side_requests = [n for n, sent in enumerate(self.tap.sent) if is_side_request(sent)]
        assert len(side_requests) < len(self.tap.sent), "there is no chat"
        for number, sent in enumerate(self.tap.sent):
            assert sent.status == 200, f"request {number}: {sent.status}"
            got, want = forms(self.received(number)), forms(sent.messages)
            assert got == want, f"request {number}, read as {sent.decision}: {len(got)} messages for {len(want)}"
        last = max([n for n in range(len(self.tap.sent)) if n not in side_requests])
        shown = [*self.tap.sent[last].messages, self.script.replies[last]]
        want = [one for one in forms(shown) if one[0] != "system"]
        assert forms(await self.history(session)) == want, "the transcript is not what the client last showed"
        return [self.tap.sent[n] for n in side_requests]


@asynccontextmanager
async def stage(folder: Path, script: Script) -> AsyncIterator[Stage]:
    async with ScriptedUpstream(script) as upstream:
        settings = {"log": {"level": "debug"}}
        async with Proxy(upstream.base_url, folder, settings) as proxy, Tap(proxy.port) as tap:
            yield Stage(proxy, tap, upstream, script)


def text_of(content: Any) -> str:
    """A content's text, as one."""
    if isinstance(content, list):
        return "".join([part.get("text", "") for part in content if isinstance(part, dict)])
    return content or ""


def form(message: Json) -> Form:
    """What two messages have in common that are the same: role, text, calls, the call that is answered."""
    role = "system" if message["role"] == "developer" else message["role"]
    calls = [
        (call["id"], call["function"]["name"], json.loads(call["function"]["arguments"] or "{}"))
        for call in message.get("tool_calls") or []
    ]
    return role, text_of(message.get("content")).strip(), json.dumps(calls), message.get("tool_call_id") or ""


def forms(messages: list[Any]) -> list[Form]:
    return [form(message) for message in messages]
