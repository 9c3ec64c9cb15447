"""A tap between a client and the proxy: keeps each request as its client sent it, and numbers it, so that it can be
found again at the upstream."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import aiohttp
from aiohttp import web

NUMBER = "x-test-request"
HOPS = {"host", "connection", "transfer-encoding", "content-length", "keep-alive"}


@dataclass
class Sent:
    """A request as its client sent it, and what became of it."""

    headers: dict[str, str]
    json: Any
    decision: str = ""
    status: int = 0

    @property
    def messages(self) -> list[Any]:
        messages: list[Any] = self.json["messages"]
        return messages


class Tap:
    """Listens on 127.0.0.1, hands on to the proxy at `port`."""

    def __init__(self, port: int) -> None:
        self.sent: list[Sent] = []
        self.port = 0
        self._proxy = f"http://127.0.0.1:{port}"

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def __aenter__(self) -> Tap:
        self._session = aiohttp.ClientSession(auto_decompress=False)
        app = web.Application(client_max_size=1 << 26)
        app.router.add_route("*", "/{path:.*}", self._hand_on)
        self._runner = web.AppRunner(app, shutdown_timeout=1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()
        await self._session.close()

    async def _hand_on(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        headers = {name: value for name, value in request.headers.items() if name.lower() not in HOPS}
        sent = Sent(headers, json.loads(body) if body else None)
        if "chat/completions" in request.path:
            headers[NUMBER] = str(len(self.sent))
            self.sent.append(sent)
        url = self._proxy + request.path_qs
        async with self._session.request(request.method, url, headers=headers, data=body) as answer:
            sent.status, sent.decision = answer.status, answer.headers.get("x-session-decision", "")
            names = {name: value for name, value in answer.headers.items() if name.lower() not in HOPS}
            out = web.StreamResponse(status=answer.status, headers=names)
            await out.prepare(request)
            with suppress(ConnectionResetError):  # some clients go with [DONE]
                async for piece in answer.content.iter_any():
                    await out.write(piece)
                await out.write_eof()
        return out
