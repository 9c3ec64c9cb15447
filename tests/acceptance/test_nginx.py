"""An answer that breaks, seen through a stock nginx: an error each time, never a clean end.

Stock nginx speaks HTTP/1.0 to what is behind it and takes the end of a connection for the
end of the body: a mere close would look like success.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fakes import RawClient, Reply, ScriptedUpstream, completion, eventually, free_port, sse
from tests.support.serving import Serve, serve

__all__ = ["serve"]

CONFIG = """
daemon off;
master_process off;
pid {folder}/pid;
error_log {folder}/error.log;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f;
    uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
    server {{
        listen 127.0.0.1:{port};
        underscores_in_headers on;
        location / {{ proxy_pass http://127.0.0.1:{behind}; }}
    }}
}}
"""


class Nginx:
    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.process: subprocess.Popen[bytes] | None = None

    async def start(self, behind: int, underscores: str = "on") -> None:
        file = self.folder / "nginx.conf"
        config = CONFIG.replace("underscores_in_headers on", f"underscores_in_headers {underscores}")
        file.write_text(config.format(folder=self.folder, port=self.port, behind=behind))
        binary = shutil.which("nginx") or "/usr/sbin/nginx"
        self.process = subprocess.Popen([binary, "-p", str(self.folder), "-c", str(file)], stderr=subprocess.DEVNULL)
        await eventually(lambda: (self.folder / "pid").exists())


@pytest.fixture
def nginx(tmp_path: Path) -> Iterator[Nginx]:
    if not (shutil.which("nginx") or Path("/usr/sbin/nginx").exists()):
        pytest.skip("nginx is not installed (Debian: nginx-light)")
    front = Nginx(tmp_path)
    yield front
    if front.process:
        front.process.terminate()
        front.process.wait(10)


BROKEN = {
    "stream cut at a FIN": sse("a", "b", done=False, end="fin", delay=0.02),
    "stream cut by a reset": sse("a", "b", done=False, end="rst", delay=0.02),
    "stream that ends without its sign": sse("a", "b", done=False, finish=None, framing="close", delay=0.02),
    "body cut short": completion("a" * 500, end="fin"),
    "body cut by a close": completion("a", pieces=[b'{"choices": [{"mess'], framing="close"),
}


@pytest.mark.parametrize("reply", BROKEN.values(), ids=list(BROKEN))
async def test_a_broken_answer_is_an_error_behind_nginx(serve: Serve, nginx: Nginx, reply: Reply) -> None:
    async with ScriptedUpstream([reply, completion("fine")]) as upstream:
        proxy = await serve(upstream.base_url)
        await nginx.start(proxy.port)
        answers = []
        for _ in range(2):
            async with RawClient(nginx.port) as client:
                body = {"messages": [{"role": "user", "content": "x"}], "stream": True}
                await client.post("/v1/chat/completions", body, [("x-session-id", "s1")])
                status = (await client.head()).status
                await client.body()
                answers.append((status, client.ended))
        assert len(upstream.requests[1].messages) == 1
    broken, fine = answers
    assert broken[0] >= 500 or broken[1] in ("eof", "reset")
    assert fine == (200, "complete")
