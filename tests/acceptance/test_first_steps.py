"""The first minutes with the program: no file, a written one, the words of `serve` pasted as they stand."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from proxy.commands.greeting import greeting
from proxy.commands.init import TEMPLATE
from proxy.config.model import Config, load
from tests.acceptance.test_commands import ROOT, session_proxy
from tests.support.fakes import RawClient, Received, Reply, ScriptedUpstream, completion, free_port

MODELS = b'{"object": "list", "data": [{"id": "first-one", "object": "model"}, {"id": "second", "object": "model"}]}'


def upstream_of() -> ScriptedUpstream:
    def answer(request: Received) -> Reply:
        if request.target.endswith("/models"):
            return Reply(pieces=[MODELS], framing="length")
        return completion(f"{len(request.messages)} of {request.json['model']}")

    return ScriptedUpstream(answer)


@asynccontextmanager
async def served(folder: Path, *arguments: str, **environ: str) -> AsyncIterator[str]:
    """`serve` in an empty folder, once it says that it listens; what it said to a person until then. It ends in good
    order."""
    known = {name: value for name, value in os.environ.items() if not name.startswith("UPSTREAM_")}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "proxy", "serve", *arguments),
        cwd=folder,
        env={**known, "PYTHONPATH": str(ROOT), "XDG_STATE_HOME": str(folder / "state"), **environ},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout and process.stderr
    try:
        log = b""
        async with asyncio.timeout(20):
            while b"listening on" not in log:
                log += (line := await process.stderr.readline())
                assert line, log
            said = b""
            while b"it cannot be answered" not in said:
                said += (line := await process.stdout.readline())
                assert line, said
        yield said.decode()
        process.terminate()
        async with asyncio.timeout(20):
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def pasted(said: str, **environ: str) -> list[str]:
    """What the calls answer, all that is to be pasted given to a shell at once."""
    if not shutil.which("curl"):
        pytest.skip("curl is not installed")
    lines = [line for line in said.splitlines() if line.startswith(("curl ", "export MODEL="))]
    known = {name: value for name, value in os.environ.items() if not name.endswith("_KEY")}
    shell = await asyncio.create_subprocess_exec(
        *("sh", "-c", "; echo;\n".join(lines)), stdout=asyncio.subprocess.PIPE, env={**known, **environ}
    )
    output, _ = await shell.communicate()
    answers = [json.loads(line) for line in output.decode().splitlines() if line]
    return [answer["choices"][0]["message"]["content"] for answer in answers]


async def test_serve_needs_no_file_for_the_demo(tmp_path: Path) -> None:
    port = free_port()
    async with served(tmp_path, "--demo", "--listen", f"127.0.0.1:{port}") as said:
        answers = await pasted(said)
    assert answers == ["Nice to meet you, Alice.", "Your name is Alice."]
    assert [file.name for file in tmp_path.iterdir()] == ["state"]


async def test_serve_needs_no_file_for_an_upstream(tmp_path: Path) -> None:
    """The command that it prints works as it stands: the key, and a model that the upstream has."""
    port = free_port()
    async with upstream_of() as upstream:
        arguments = ["--upstream", upstream.base_url, "--listen", f"127.0.0.1:{port}"]
        async with served(tmp_path, *arguments) as said:
            answers = await pasted(said, UPSTREAM_API_KEY="sk-mine")
    assert answers == ["1 of first-one", "3 of first-one"]
    assert [request.header("authorization") for request in upstream.requests] == ["Bearer sk-mine"] * 3
    assert upstream.base_url in said


async def test_with_api_key_set_the_greeting_asks_for_no_key_and_prints_none(tmp_path: Path) -> None:
    port = free_port()
    async with upstream_of() as upstream:
        environ = {"UPSTREAM_BASE_URL": upstream.base_url, "UPSTREAM_API_KEY": "sk-canary"}
        async with served(tmp_path, "--listen", f"127.0.0.1:{port}", **environ) as said:
            answers = await pasted(said)
    assert answers == ["1 of first-one", "3 of first-one"]
    assert upstream.requests[0].header("authorization") == "Bearer sk-canary"
    assert "canary" not in said and "Authorization" not in said


async def test_upstream_on_the_command_line_replaces_the_first_of_the_file(tmp_path: Path) -> None:
    file, port = tmp_path / "proxy.yaml", free_port()
    other = [{"base_url": "http://127.0.0.1:1/v1", "mount": "/a"}, {"base_url": "http://127.0.0.1:2/v1", "mount": "/b"}]
    file.write_text(json.dumps({"listen": f"127.0.0.1:{port}", "upstreams": other}))
    async with (
        upstream_of() as upstream,
        served(tmp_path, "--config", str(file), "--upstream", upstream.base_url) as said,
        RawClient(port) as client,
    ):
        answers = await pasted(said)
        await client.request("GET", "/b/models")
        assert (await client.head()).status == 502
    assert answers == ["1 of first-one", "3 of first-one"] and f":{port}/a/chat/completions" in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--upstream", "api.example.org/v1"], "must be an http or https URL"),
        (["--upstream", "https://key@example.org"], "must be an http or https URL"),
        (["--upstream", "http://127.0.0.1:1/v1", "--demo"], "not allowed with"),
    ],
)
def test_an_invalid_upstream_exits_2(arguments: list[str], words: str) -> None:
    done = session_proxy("serve", *arguments)
    assert done.returncode == 2 and words in done.stderr


def test_a_wrong_environment_variable_is_reported_without_a_file_name() -> None:
    done = session_proxy("serve", UPSTREAM_BASE_URL="nonsense")
    assert done.returncode == 78
    assert done.stderr.startswith("upstreams.0.base_url: must be an http or https URL")
    done = session_proxy("serve", "--listen", "0.0.0.0:1", UPSTREAM_API_KEY="sk-canary")
    assert done.returncode == 78 and "clients" in done.stderr and "canary" not in done.stderr + done.stdout


# init


@pytest.mark.parametrize("named", [[], ["mine.yaml"]])
def test_init_writes_a_file_that_explains_every_key_and_overwrites_none(tmp_path: Path, named: list[str]) -> None:
    command = [sys.executable, "-m", "proxy", "init", *named]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}

    def init() -> Any:
        return subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)

    done, file = init(), tmp_path / (named[0] if named else "session-proxy.yaml")
    assert (done.returncode, done.stderr) == (0, "") and f"serve --config {file.name}" in done.stdout
    text = file.read_text()
    assert load(file, {}) == Config() and text.count("#") > 50 and "$schema" not in text
    assert text in TEMPLATE.read_text() and stat.S_IMODE(file.stat().st_mode) == 0o600
    file.write_text("listen: 127.0.0.1:1\n")
    again = init()
    assert (again.returncode, file.read_text()) == (1, "listen: 127.0.0.1:1\n")
    assert again.stderr == f"session-proxy: {file.name} exists already and was not changed. Name another file.\n"


def test_init_names_a_folder_it_cannot_write_to(tmp_path: Path) -> None:
    done = session_proxy("init", str(tmp_path / "no" / "file.yaml"))
    assert done.returncode == 1 and "No such file or directory" in done.stderr and "Traceback" not in done.stderr


def test_init_writes_the_shipped_file() -> None:
    assert TEMPLATE.read_text() == (ROOT / "config" / "session-proxy.yaml").read_text()


# check


def test_check_warns_of_a_base_url_that_ends_in_an_endpoint(tmp_path: Path) -> None:
    file = tmp_path / "proxy.yaml"
    file.write_text("upstreams:\n  - base_url: https://api.example.org/v1/chat/completions\n")
    done = session_proxy("check", str(file))
    assert done.returncode == 0 and done.stdout == f"{file}: ok, but see the warning\n"
    assert done.stderr.startswith(f"{file}:2:5: warning: upstreams.0.base_url: ends in /chat/completions")
    assert len(done.stderr.splitlines()) == 1


async def test_serve_warns_of_a_base_url_that_ends_in_an_endpoint(tmp_path: Path) -> None:
    listen = f"127.0.0.1:{free_port()}"
    url = "http://127.0.0.1:1/v1/chat/completions/"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "proxy", "serve", "--upstream", url, "--listen", listen),
        cwd=ROOT,
        env={**os.environ, "XDG_STATE_HOME": str(tmp_path)},
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr
    try:
        async with asyncio.timeout(20):
            first = await process.stderr.readline()
    finally:
        process.kill()
        await process.wait()
    assert b"level=warning" in first and b"--upstream: ends in /chat/completions" in first


# What is printed


def said_of(listen: str = "127.0.0.1:8484", **keys: Any) -> str:
    return greeting(Config.model_validate({"listen": listen, **keys}), listen, False)


def test_the_greeting_offers_the_openai_key_to_openai_alone() -> None:
    openai = said_of()
    assert '-H "Authorization: Bearer $OPENAI_API_KEY"' in openai and 'MODEL="gpt' in openai
    other = said_of(upstreams=[{"base_url": "https://api.example.org/v1"}])
    assert "$UPSTREAM_API_KEY" in other and "OPENAI" not in other


def test_with_clients_the_greeting_asks_for_a_clients_key() -> None:
    clients = [{"name": "a", "key_hashes": ["0" * 64]}]
    said = said_of(upstreams=[{"base_url": "https://api.example.org/v1", "api_key": "sk-canary"}], clients=clients)
    assert "$CLIENT_KEY" in said and "canary" not in said


@pytest.mark.parametrize(
    ("listen", "url"),
    [
        ("0.0.0.0:80", "http://127.0.0.1:80/v1/chat/completions"),
        ("'[::]:80'", "http://[::1]:80/v1/chat/completions"),
        ("example.org:80", "http://example.org:80/v1/chat/completions"),
        ("unix:/run/a b", "--unix-socket '/run/a b' http://localhost/v1/chat/completions"),
    ],
)
def test_the_greeting_prints_an_address_that_this_machine_reaches(listen: str, url: str) -> None:
    calls = [line for line in said_of(listen.strip("'")).splitlines() if line.startswith("curl ")]
    assert len(calls) == 2 and all([url in call for call in calls])


def test_the_greeting_uses_the_configured_mount_and_header() -> None:
    said = said_of(upstreams=[{"mount": "/"}], sessions={"headers": ["x-chat"]})
    assert "8484/chat/completions" in said and "-H 'x-chat: try-1'" in said and "Without the x-chat header" in said


# make


def test_make_run_announces_its_setup_first() -> None:
    if not shutil.which("make"):
        pytest.skip("make is not installed")
    command = ["make", "--always-make", "--dry-run", "run"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=True)
    told, venv, pip = [done.stdout.find(words) for words in ("Setting up", "-m venv", "pip install")]
    assert 0 <= told < venv < pip
