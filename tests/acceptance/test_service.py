"""The service on a machine with a real systemd, from the installation of its package to its removal.

The tests stand in the order of its life; the last one takes the package away. SOAK uses a clean Debian.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.acceptance.conftest import ROOT
from tests.acceptance.test_tls import certify, shown
from tests.support.fakes import RawClient, Received, Reply, ScriptedUpstream, completion, eventually, free_port, sse
from tests.support.machine import Machine, Unavailable, clean_debian

CONFIG = "/etc/session-proxy/session-proxy.yaml"
KEY = "sk-canary-of-the-service"
STATE = "/var/lib/private/session-proxy"
HANGING = """\
import signal, sys, time
from proxy import cli
signal.signal(signal.SIGUSR2, lambda *_: time.sleep(600))
sys.exit(cli.main())
"""


class Service:
    """The installed service, on a port of its own."""

    def __init__(self, machine: Machine, files: set[str]) -> None:
        self.machine, self.port, self.files = machine, free_port(), files

    def systemctl(self, *words: str, check: bool = True) -> str:
        return self.machine.run("systemctl", *words, check=check)

    def shows(self, name: str) -> str:
        """A property of the unit."""
        return self.systemctl("show", "--value", "--property", name, "session-proxy.service").strip()

    def configure(self, upstream: str, *, then: str = "reload", **keys: Any) -> None:
        lines = ["upstreams:", f"  - base_url: {upstream}", "    api_key: ${UPSTREAM_API_KEY:-}"]
        lines += [f"{key}: {json.dumps(value)}" for key, value in keys.items()]
        self.machine.write(CONFIG, "\n".join(lines))
        self.systemctl(then, "session-proxy")

    def drop_in(self, unit: str, text: str) -> None:
        self.machine.write(f"/etc/systemd/system/{unit}.d/test.conf", text)
        self.systemctl("daemon-reload")

    def journal(self) -> str:
        return self.machine.run("journalctl", "--unit", "session-proxy", "--output", "cat", "--no-pager")

    async def asked(self, session: str, text: str = "hello", timeout: float = 30.0) -> tuple[int, str | None]:
        """The status of a turn on a connection of its own, and how its answer ended."""
        async with RawClient(self.port, timeout=timeout) as client:
            body = {"model": "m", "messages": [{"role": "user", "content": text}]}
            await client.post("/v1/chat/completions", body, [("sessionId", session)])
            status = (await client.head()).status
            await client.body()
            return status, client.ended


def files(machine: Machine) -> set[str]:
    """All that is there where a package may put something."""
    hidden = [
        word
        for folder in (ROOT, "/var/log", "/var/cache", "/var/tmp")
        for word in ("-path", str(folder), "-prune", "-o")
    ]
    found = machine.run("find", "/etc", "/opt", "/usr", "/var", "-xdev", *hidden, "-print", check=False)
    return {path for path in found.splitlines() if path.startswith("/")}  # an empty /opt goes with the package


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("machine")
    if not shutil.which("dpkg-deb") or not Path("/usr/bin/python3").exists():
        pytest.skip("no Debian package can be built here")
    try:
        with Machine(folder, clean_debian(folder) if os.environ.get("SOAK") else Path("/")) as machine:
            (ROOT / "dist").mkdir(exist_ok=True)
            for old in (ROOT / "dist").glob("*.deb"):
                old.unlink()
            subprocess.run(["make", "deb"], cwd=ROOT, check=True, capture_output=True, timeout=300)
            service = Service(machine, files(machine))
            address = f"127.0.0.1:{service.port}"
            service.drop_in("session-proxy.socket", f"[Socket]\nListenStream=\nListenStream={address}\n")
            package = next((ROOT / "dist").glob("*.deb"))
            shutil.copy(package, machine.root / "opt")
            machine.run("dpkg", "--install", f"/opt/{package.name}")
            (machine.root / "opt" / package.name).unlink()
            yield service
    except Unavailable as missing:
        pytest.skip(str(missing))


async def test_the_installed_package_starts_and_serves(service: Service) -> None:
    assert (service.shows("ActiveState"), service.shows("StatusText")) == ("active", "serving, nothing in flight")
    async with RawClient(service.port) as client:
        await client.request("GET", "/readyz")
        assert (await client.head()).status == 200
    async with ScriptedUpstream() as upstream:
        service.configure(upstream.base_url)
        assert await service.asked("first") == (200, "complete")


async def test_sessions_survive_a_restart_and_only_the_service_can_read_them(service: Service) -> None:
    async with ScriptedUpstream() as upstream:
        service.configure(upstream.base_url)
        assert await service.asked("kept", "remember this") == (200, "complete")
        service.systemctl("restart", "session-proxy")
        assert await service.asked("kept", "and this") == (200, "complete")
        assert [message["content"] for message in upstream.requests[-1].messages][::2] == ["remember this", "and this"]
    found = service.machine.run("find", STATE, "-printf", "%M %f\n").splitlines()
    assert "drwx------ session-proxy" in found and "-rw------- sessions.db" in found
    assert all(line[4:10] == "------" for line in found)


async def test_the_journal_has_a_line_per_request_with_its_priority(service: Service) -> None:
    async with ScriptedUpstream() as upstream:
        service.configure(upstream.base_url)
        assert await service.asked("told") == (200, "complete")
    assert (await service.asked("told"))[0] == 502

    def said(*words: str) -> str:
        unit = ("--unit", "session-proxy", "--output", "cat", "--no-pager")
        return service.machine.run("journalctl", *unit, *words)

    await eventually(lambda: "request: POST /v1/chat/completions 502" in said("--priority", "4..4"))
    assert "request: POST /v1/chat/completions 200" in said("--priority", "6..6")
    assert " 200 " not in said("--priority", "warning")


async def test_only_the_service_can_read_the_key(service: Service) -> None:
    service.machine.write("/etc/session-proxy/upstream-api-key", KEY + "\n", 0o600)
    async with ScriptedUpstream() as upstream:
        service.configure(upstream.base_url, then="restart")
        assert await service.asked("key") == (200, "complete")
        assert upstream.requests[-1].header("authorization") == f"Bearer {KEY}"
    process = service.shows("MainPID")
    credential = "/run/credentials/session-proxy.service/UPSTREAM_API_KEY"
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    for path in (credential, "/etc/session-proxy/upstream-api-key", f"/proc/{process}/environ"):
        assert "Permission denied" in service.machine.run(*nobody, "cat", path, check=False)
    for path in ("environ", "cmdline"):
        assert KEY not in (service.machine.root / "proc" / process / path).read_text()
    assert KEY not in service.journal()
    service.machine.run("rm", "/etc/session-proxy/upstream-api-key")


async def test_no_request_is_refused_across_kills_and_restarts(service: Service) -> None:
    async with ScriptedUpstream() as upstream:
        service.configure(upstream.base_url, then="restart")
        answers = []
        for number in range(200):
            if number in (40, 120):
                await asyncio.to_thread(service.systemctl, "kill", "--signal=KILL", "session-proxy")
            if number in (80, 160):
                await asyncio.to_thread(service.systemctl, "restart", "--no-block", "session-proxy")
            answers.append(await service.asked(f"row-{number}"))
        assert answers == [(200, "complete")] * 200
    assert service.journal().count("code=killed, status=9/KILL") == 2


@pytest.mark.parametrize("verb", ["reload", "restart"])
async def test_no_request_fails_during_reloads_and_restarts_under_load(service: Service, verb: str) -> None:
    def thrice() -> None:
        for _ in range(3):
            service.systemctl(verb, "session-proxy")
            time.sleep(0.5)

    async with ScriptedUpstream() as upstream:
        service.configure(upstream.base_url)
        acting = asyncio.create_task(asyncio.to_thread(thrice))
        asking: list[asyncio.Task[Any]] = []
        while not acting.done():
            asking.append(asyncio.create_task(service.asked(f"load-{len(asking)}")))
            await asyncio.sleep(0.005)  # 200 a second
        assert await asyncio.gather(*asking) == [(200, "complete")] * len(asking)


async def test_a_reload_of_an_invalid_file_changes_nothing_and_logs_its_line(service: Service) -> None:
    async with ScriptedUpstream() as upstream:
        service.configure(upstream.base_url)
        with pytest.raises(AssertionError):
            service.configure("http://127.0.0.1:1/v1", log={"level": "loud"})
        assert f"{CONFIG}:4:" in service.journal()
        assert await service.asked("unchanged") == (200, "complete")


async def test_a_stream_finishes_during_a_restart_and_new_requests_wait(service: Service) -> None:
    let_go = asyncio.Event()

    def slow(request: Received) -> Reply:
        reply = sse("so ", "far", " and on") if request.json.get("stream") else completion("next")

        async def wait(index: int) -> None:
            if index == 3 and request.json.get("stream"):
                await let_go.wait()

        reply.gate = wait
        return reply

    async with ScriptedUpstream(slow) as upstream, RawClient(service.port) as client:
        service.configure(upstream.base_url)
        process = service.shows("MainPID")
        body = {"model": "m", "messages": [{"role": "user", "content": "hello"}], "stream": True}
        await client.post("/v1/chat/completions", body, [("sessionId", "stream")])
        assert (await client.head()).status == 200
        while b"far" not in client.raw:
            await client.piece()
        service.systemctl("restart", "--no-block", "session-proxy")
        await eventually(lambda: service.shows("StatusText") == "stopping, 1 in flight")
        waits = asyncio.create_task(service.asked("meanwhile"))
        await asyncio.sleep(0.5)
        assert not waits.done()
        let_go.set()
        assert (await client.body()).endswith(b"data: [DONE]\n\n") and client.ended == "complete"
        assert await waits == (200, "complete")
        assert service.shows("MainPID") != process


async def test_a_hanging_event_loop_is_restarted_by_the_watchdog(service: Service) -> None:
    service.machine.write("/opt/hanging.py", HANGING)
    command = f"/opt/session-proxy/bin/python3 /opt/hanging.py serve --config {CONFIG}"
    service.drop_in("session-proxy.service", f"[Service]\nWatchdogSec=1\nExecStart=\nExecStart={command}\n")
    async with ScriptedUpstream() as upstream:
        service.configure(upstream.base_url, then="restart")
        await asyncio.sleep(1.5)
        assert service.shows("NRestarts") == "0"  # it gives its signs of life
        service.systemctl("kill", "--signal=USR2", "session-proxy")
        await asyncio.sleep(0.2)  # hung: the next connection waits in the socket
        assert await service.asked("hung") == (200, "complete")
    assert service.shows("NRestarts") == "1"
    assert "Watchdog timeout" in service.machine.run("journalctl", "--no-pager", "--lines=100")
    service.machine.run("rm", "-r", "/opt/hanging.py", "/etc/systemd/system/session-proxy.service.d")
    service.systemctl("daemon-reload")


def test_the_backup_unit_runs_as_the_services_user(service: Service) -> None:
    if "backup" not in service.machine.run("session-proxy", "--help"):
        pytest.skip("this version has no command for it")
    assert service.systemctl("list-timers", "--no-legend", "session-proxy-backup.timer", check=False) == ""
    service.systemctl("start", "session-proxy-backup.timer", "session-proxy-backup.service")
    assert "session-proxy-backup.service" in service.systemctl("list-timers", "--no-legend")
    made = service.machine.run("find", f"{STATE}/backups", "-mindepth", "2", "-printf", "%M %U %f\n").splitlines()
    owner = service.machine.run("stat", "--format=%u", f"{STATE}/sessions.db").strip()
    assert sorted(made) == [f"-rw------- {owner} sessions.db", f"-rw------- {owner} sessions.db.secret"]
    assert service.shows("ActiveState") == "active"
    service.systemctl("stop", "session-proxy-backup.timer")


def test_an_invalid_file_at_start_is_not_restarted(service: Service) -> None:
    with pytest.raises(AssertionError):
        service.configure("http://127.0.0.1:1/v1", then="restart", log={"level": "loud"})
    time.sleep(2)
    assert (service.shows("ActiveState"), service.shows("NRestarts")) == ("failed", "0")
    assert service.shows("ExecMainStatus") == "78"


def test_an_instance_has_its_own_file_state_and_certificate(service: Service, tmp_path: Path) -> None:
    port, certificate = free_port(), certify(tmp_path)
    service.machine.run("groupadd", "--system", "certificates")
    for name in ("proxy.pem", "proxy.key"):
        service.machine.write(f"/etc/kitchen/{name}", (tmp_path / name).read_text(), 0o640)
        service.machine.run("chgrp", "certificates", f"/etc/kitchen/{name}")
    keys = ["certificate: /etc/kitchen/proxy.pem", "key: /etc/kitchen/proxy.key"]
    service.machine.write("/etc/session-proxy/kitchen.yaml", "\n  ".join([f"listen: 127.0.0.1:{port}\ntls:", *keys]))
    service.drop_in("session-proxy@.service", "[Service]\nSupplementaryGroups=certificates\n")
    service.systemctl("start", "session-proxy@kitchen")
    answer = requests.get(f"https://127.0.0.1:{port}/readyz", verify=str(certificate), timeout=10)
    assert answer.status_code == 200
    renewed = certify(tmp_path).read_text()
    service.machine.write("/etc/kitchen/proxy.key", (tmp_path / "proxy.key").read_text(), 0o640)
    service.machine.write("/etc/kitchen/proxy.pem", renewed, 0o640)
    service.systemctl("reload", "session-proxy@kitchen")
    assert shown(port) == ssl.PEM_cert_to_DER_cert(renewed)
    assert (service.machine.root / "var/lib/private/session-proxy-kitchen/sessions.db").exists()
    service.systemctl("stop", "session-proxy@kitchen")
    service.machine.run("rm", "-r", "/etc/kitchen", "/etc/systemd/system/session-proxy@.service.d")
    service.machine.run("rm", "-r", "/var/lib/private/session-proxy-kitchen", "/var/lib/session-proxy-kitchen")
    service.machine.run("groupdel", "certificates")


def test_a_state_folder_without_rights_logs_one_sentence(service: Service) -> None:
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "env", "STATE_DIRECTORY=/opt/closed"]
    service.machine.run("install", "-d", "-m", "0700", "/opt/closed")
    said = service.machine.run(*nobody, "session-proxy", "serve", "--config", "/dev/null", check=False)
    service.machine.run("rmdir", "/opt/closed")
    assert said == (
        "session-proxy: Cannot use /opt/closed/sessions.db: Permission denied."
        " Check that its folder belongs to the user of the proxy and is writable.\n"
    )


def test_purging_the_package_leaves_only_the_state(service: Service) -> None:
    service.configure("http://127.0.0.1:1/v1", then="restart")
    service.machine.run("session-proxy", "check", CONFIG)  # as root, who could write beside the program
    said = service.machine.run("dpkg", "--purge", "session-proxy")
    assert "/var/lib/session-proxy are kept" in said
    assert service.systemctl("list-units", "--all", "--plain", "--no-legend", "session-proxy*") == ""
    service.machine.run("rm", "-r", "/etc/systemd/system/session-proxy.socket.d")
    left = {path for path in files(service.machine) - service.files if not path.startswith(("/var/lib/dpkg/", STATE))}
    assert left - {"/var/lib/private", "/var/lib/systemd/timers"} == {"/var/lib/session-proxy"}
    assert (service.machine.root / STATE.lstrip("/") / "sessions.db").exists()
