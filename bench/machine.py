"""What the benchmark runs on: the upstream and the targets as processes, their cores, their CPU and memory.

Load and upstream share the first core, each target has the second to itself; where there is only one core they all
share it. The targets are used as anybody uses them: by their command line and over HTTP.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.fakes import free_port

ROOT = Path(__file__).resolve().parents[1]
NGINX = """
daemon off;
master_process off;
pid {folder}/pid;
error_log {folder}/error.log;
events {{ worker_connections 4096; multi_accept on; }}
http {{
    access_log off;
    client_max_body_size 64m;
    client_body_buffer_size 4m;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f;
    uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
    keepalive_requests 1000000000;
    upstream behind {{ server 127.0.0.1:{behind}; keepalive 1024; keepalive_requests 1000000000; }}
    server {{
        listen 127.0.0.1:{port} backlog=4096{tls};
        location / {{
            proxy_pass http://behind;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
        }}
    }}
}}
"""


TLS = """ ssl;
        ssl_certificate {folder}/cert.pem; ssl_certificate_key {folder}/key.pem"""
CERTIFICATE = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
NAMES = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]


class CannotStart(Exception):
    """A process that the benchmark needs ended before it was ready; the message has its log's end."""


@dataclass(frozen=True)
class Target:
    """Where the load goes. `pid` is None where no process lies in between. `apart`: the load takes the core that the
    target does not need, so that it does not get in the upstream's way."""

    name: str
    port: int
    pid: int | None = None
    apart: bool = False

    @property
    def cpu(self) -> float:
        """Seconds of CPU so far, all threads. /proc tells the same in hundredths of a second; this clock, which is
        Linux's name for the CPU time of a process, in nanoseconds."""
        return time.clock_gettime((~self.pid << 3) | 2) if self.pid else 0.0

    @property
    def memory(self) -> float:
        """Resident bytes."""
        return _status(self.pid, "VmRSS:") * 1024

    @property
    def threads(self) -> int:
        return _status(self.pid, "Threads:")

    @property
    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))


def _status(pid: int | None, name: str) -> int:
    return int(Path(f"/proc/{pid}/status").read_text().partition(name)[2].split()[0])


class Machine:
    """`with Machine() as machine`: the upstream runs; targets run from `proxy()` or `nginx()` to the end of the block,
    or until `stop`."""

    def __init__(self, pin: bool = True) -> None:
        self.cores = sorted(os.sched_getaffinity(0))
        self.pinned = pin and len(self.cores) > 1
        self._stack = ExitStack()
        self._processes: dict[int, subprocess.Popen[str]] = {}

    def __enter__(self) -> Machine:
        with self._stack:
            self.folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
            self._stack.callback(os.sched_setaffinity, 0, self.cores)
            self._stack.callback(self._stop_all)
            if self.pinned:
                os.sched_setaffinity(0, self.cores[:1])
            process = self._start([sys.executable, "-m", "bench.upstream"], stdout=subprocess.PIPE)
            assert process.stdout
            self.upstream = Target("direct", int(process.stdout.readline()), process.pid)
            self.direct = Target("direct", self.upstream.port)
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def proxy(
        self,
        settings: Mapping[str, Any] | None = None,
        name: str = "proxy",
        state: str | None = None,
        trusted: Path | None = None,
        binary: Path | None = None,
    ) -> Target:
        """The proxy, ready, with a fresh database, or that of an earlier one of the same `state`. `settings` are
        further keys of its configuration, `trusted` is a certificate that its upstream may have, `binary` is the
        command of another build than the one here."""
        folder = self.folder / (state or f"{name}-{len(self._processes)}")
        folder.mkdir(exist_ok=True)
        config = folder / "config.yaml"
        upstreams = [{"base_url": f"http://127.0.0.1:{self.upstream.port}/v1"}]
        config.write_text(json.dumps({"upstreams": upstreams, **(settings or {})}))
        port = free_port()
        command = [str(binary)] if binary else [sys.executable, "-m", "proxy"]
        command += ["serve", "--config", str(config), "--listen", f"127.0.0.1:{port}"]
        with (folder / "log").open("w+") as log, self.second_core():
            environ = {**os.environ, "STATE_DIRECTORY": str(folder)}
            environ |= {"SSL_CERT_FILE": str(trusted)} if trusted else {}
            if binary:
                environ.pop("PYTHONPATH", None)  # it would put this build's modules in front of that one's
            process = self._start(command, env=environ, stdout=log, stderr=log)
        return self._ready(Target(name, port, process.pid), "/readyz", folder / "log")

    @contextmanager
    def passing(self, binary: Path | None = None, name: str = "proxy") -> Iterator[Target]:
        """The proxy of a build, with its defaults. At the end of the block it and its database are gone."""
        state = f"{name}-{len(self._processes)}"
        target = self.proxy(name=name, state=state, binary=binary)
        try:
            yield target
        finally:
            self.stop(target)
            shutil.rmtree(self.folder / state)

    def nginx(self) -> Target | None:
        """A plain reverse proxy, one worker, nothing buffered; None where nginx is not installed."""
        return self._nginx("nginx")

    def behind_tls(self) -> Target | None:
        """The proxy with an upstream that is reached by TLS only: nginx ends it, on the upstream's core. None where
        nginx or openssl is not installed."""
        folder, openssl = self.folder / "tls", shutil.which("openssl")
        if not (openssl and nginx_binary()):
            return None
        folder.mkdir()
        files = ["-keyout", f"{folder}/key.pem", "-out", f"{folder}/cert.pem"]
        subprocess.run([openssl, *CERTIFICATE, *NAMES, *files], check=True, capture_output=True)
        front = self._nginx("tls", TLS.format(folder=folder))
        assert front
        upstreams = [{"base_url": f"https://127.0.0.1:{front.port}/v1"}]
        return self.proxy({"upstreams": upstreams}, name="proxy over TLS", trusted=folder / "cert.pem")

    def _nginx(self, name: str, tls: str = "") -> Target | None:
        if not (binary := nginx_binary()):
            return None
        folder, port = self.folder / name, free_port()
        folder.mkdir(exist_ok=True)
        file = folder / "nginx.conf"
        file.write_text(NGINX.format(folder=folder, port=port, behind=self.upstream.port, tls=tls))
        with nullcontext() if tls else self.second_core():
            process = self._start([binary, "-p", str(folder), "-c", str(file)], stderr=subprocess.DEVNULL)
        target = Target(name, port, process.pid)
        return target if tls else self._ready(target, "/__stats", folder / "error.log")

    def stop(self, target: Target) -> None:
        """End a target at once: what it keeps is not asked for again, or must be there all the same."""
        assert target.pid
        process = self._processes[target.pid]
        process.kill()
        process.wait()

    def stats(self) -> dict[str, int]:
        """What the upstream received so far: requests, messages, bytes."""
        counted: dict[str, int] = json.loads(get(self.upstream.port, "/__stats")[1])
        return counted

    def _start(self, command: list[str], **more: Any) -> subprocess.Popen[str]:
        process = subprocess.Popen(command, cwd=ROOT, text=True, **more)
        self._processes[process.pid] = process
        return process

    def _stop_all(self) -> None:
        for process in self._processes.values():
            process.kill()
            process.wait()
            if process.stdout:
                process.stdout.close()

    @contextmanager
    def second_core(self) -> Iterator[None]:
        """Be on the targets' core: what is started here stays there, from its first instruction on."""
        if self.pinned:
            os.sched_setaffinity(0, self.cores[1:2])
        try:
            yield
        finally:
            if self.pinned:
                os.sched_setaffinity(0, self.cores[:1])

    def _ready(self, target: Target, path: str, log: Path) -> Target:
        assert target.pid
        process = self._processes[target.pid]
        until = time.monotonic() + 30
        while not is_ready(target.port, path):
            if process.poll() is not None or time.monotonic() > until:
                raise CannotStart(f"{target.name} is not ready: {log.read_text()[-500:]}")
            time.sleep(0.002)
        return target


def get(port: int, path: str) -> tuple[int, bytes]:
    """Status and body."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def is_ready(port: int, path: str) -> bool:
    try:
        return get(port, path)[0] == 200
    except OSError:
        return False


def nginx_binary() -> str | None:
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")


def busy() -> float:
    """Seconds of CPU that the whole machine spent so far."""
    user, nice, system, _, _, *rest = map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9])
    return (user + nice + system + sum(rest)) / os.sysconf("SC_CLK_TCK")
