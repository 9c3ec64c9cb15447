"""How long the proxy takes to be ready and what it needs when idle. Prints; asserts nothing.

Run by `make bench`. Medians of several starts from a warm disk, the database among them.
"""

from __future__ import annotations

import http.client
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.fakes import free_port

ROOT = Path(__file__).resolve().parents[2]
STARTS = 7


def start(state: str) -> tuple[float, float]:
    """Seconds until /readyz answers, and the resident memory in MB then."""
    port = free_port()
    command = [sys.executable, "-m", "proxy", "serve", "--config", "config/session-proxy.yaml"]
    begun = time.perf_counter()
    process = subprocess.Popen(
        [*command, "--listen", f"127.0.0.1:{port}"],
        cwd=ROOT,
        env={**os.environ, "XDG_STATE_HOME": state},
        stderr=subprocess.DEVNULL,
    )
    try:
        while not ready(port):
            time.sleep(0.002)
        taken = time.perf_counter() - begun
        status = Path(f"/proc/{process.pid}/status").read_text()
        return taken, int(status.partition("VmRSS:")[2].split()[0]) / 1000
    finally:
        process.terminate()
        process.wait()


def ready(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def main() -> None:
    with tempfile.TemporaryDirectory() as state:
        runs = [start(state) for _ in range(STARTS + 1)][1:]
    print(f"ready after start: {statistics.median(taken for taken, _ in runs):.2f} s (median of {STARTS})")
    print(f"memory when idle: {statistics.median(memory for _, memory in runs):.0f} MB (median of {STARTS})")


if __name__ == "__main__":
    main()
