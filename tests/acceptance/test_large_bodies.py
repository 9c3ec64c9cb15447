"""200 MB up and 200 MB down through a process of its own: its memory must not follow."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
from aiohttp import web

from tests.acceptance.conftest import serve, started
from tests.support.fakes import free_port

SIZE, PIECE = 200 << 20, b"x" * (64 << 10)
GROWTH = 20_000  # kB


async def _upload(request: web.Request) -> web.Response:
    size = 0
    async for piece in request.content.iter_any():
        size += len(piece)
    return web.Response(text=str(size))


async def _download(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Length": str(SIZE)})
    await response.prepare(request)
    async for piece in _pieces():
        await response.write(piece)
    return response


async def _pieces() -> AsyncIterator[bytes]:
    for _ in range(SIZE // len(PIECE)):
        yield PIECE


def peak(pid: int) -> int:
    """The most memory a process ever had resident, in kB."""
    return int(Path(f"/proc/{pid}/status").read_text().partition("VmHWM:")[2].split()[0])


async def test_memory_does_not_grow_with_the_size_of_a_body(tmp_path: Path) -> None:
    app = web.Application()
    app.router.add_post("/v1/files", _upload)
    app.router.add_get("/v1/files", _download)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port, upstream = free_port(), f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    environ = {"UPSTREAM_BASE_URL": upstream, "XDG_STATE_HOME": str(tmp_path)}
    process = await asyncio.to_thread(started, serve("--listen", f"127.0.0.1:{port}"), environ)
    try:
        async with aiohttp.ClientSession() as client:
            url = f"http://127.0.0.1:{port}/v1/files"
            async with client.get(f"http://127.0.0.1:{port}/readyz") as ready:
                assert ready.status == 200
            before = peak(process.pid)
            async with client.post(url, data=_pieces()) as answer:
                assert await answer.text() == str(SIZE)
            async with client.get(url) as answer:
                assert sum([len(piece) async for piece in answer.content.iter_any()]) == SIZE
            assert peak(process.pid) - before < GROWTH
    finally:
        process.terminate()
        await asyncio.to_thread(process.communicate)
        await runner.cleanup()
