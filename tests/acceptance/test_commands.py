"""The command line as a shell sees it: what is printed, and the exit code."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GOOD = "config/session-proxy.yaml"


def session_proxy(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "proxy", *arguments]
    environ = {**os.environ, **environ}
    return subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=30, check=False)


def test_the_version_is_printed() -> None:
    done = session_proxy("--version")
    assert (done.returncode, done.stdout.split()[0]) == (0, "session-proxy")


@pytest.mark.parametrize("arguments", [(), ("fly",), ("serve", "x"), ("serve", "--confg", GOOD)])
def test_wrong_arguments_exit_2_with_the_usage(arguments: tuple[str, ...]) -> None:
    done = session_proxy(*arguments)
    assert done.returncode == 2 and "usage:" in done.stderr


def test_check_accepts_the_shipped_files() -> None:
    for name in (GOOD, "config/minimal.yaml"):
        done = session_proxy("check", name)
        assert (done.returncode, done.stderr) == (0, ""), name


def test_five_mistakes_are_five_lines_and_exit_78(tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text("listen: nowhere\nlog: {level: loud}\nsesions: {}\nsessions: {ttl: 5}\nlimits: {cache: big}\n")
    for arguments in (("check", str(file)), ("serve", "--config", str(file))):
        done = session_proxy(*arguments)
        lines = done.stderr.splitlines()
        assert (done.returncode, len(lines)) == (78, 5)
        assert all(line.startswith(f"{file}:") for line in lines) and "sessions" in done.stderr


def test_serve_refuses_to_lend_its_key_beyond_loopback() -> None:
    done = session_proxy("serve", "--config", GOOD, "--listen", "0.0.0.0:1", UPSTREAM_API_KEY="sk-canary")
    assert done.returncode == 78 and "clients" in done.stderr and "canary" not in done.stderr + done.stdout


def test_the_schema_is_json() -> None:
    done = session_proxy("schema")
    assert done.returncode == 0 and "listen" in json.loads(done.stdout)["properties"]


@pytest.mark.parametrize("arguments", [("--version",), ("check", GOOD)])
def test_quick_commands_import_neither_the_server_nor_the_store(arguments: tuple[str, ...]) -> None:
    program = "import sys, proxy.cli\ntry: proxy.cli.main(sys.argv[1:])\nexcept SystemExit: pass\nprint(*sys.modules)"
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=True)
    assert not {"aiohttp", "aiosqlite", "uvloop"} & set(done.stdout.split())


def test_a_port_in_use_prints_one_sentence_and_exits_1(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = session_proxy("serve", "--demo", "--listen", address, XDG_STATE_HOME=str(tmp_path))
    assert done.returncode == 1 and "in use" in done.stderr and "Traceback" not in done.stderr
    assert done.stdout == ""  # nobody is told to try what does not listen
    assert address in done.stderr


@pytest.mark.parametrize(
    ("command", "address"),
    [("serve", "nowhere"), ("serve", "8484"), ("serve", ":8484"), ("demo", "8484"), ("demo", "unix:/tmp/demo.sock")],
)
def test_an_invalid_address_exits_2(command: str, address: str) -> None:
    done = session_proxy(command, "--listen", address)
    assert done.returncode == 2 and "argument --listen: must be HOST:PORT" in done.stderr


def test_a_backup_without_a_database_prints_one_sentence_and_exits_1(tmp_path: Path) -> None:
    for words in (("backup",), ("restore",)):
        done = session_proxy(*words, "--config", GOOD, "--state", str(tmp_path / "state"), str(tmp_path / "made"))
        assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
        assert done.stderr.startswith("session-proxy: ") and str(tmp_path) in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_backup_of_a_memory_store_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "proxy.yaml"
    file.write_text('store: {path: "memory:"}\n')
    done = session_proxy("backup", "--config", str(file), str(tmp_path / "made"))
    assert done.returncode == 1 and "has no database" in done.stderr


@pytest.mark.parametrize("count", ["0", "-1", "many"])
def test_keep_0_is_refused(tmp_path: Path, count: str) -> None:
    done = session_proxy("backup", "--config", GOOD, "--keep", count, str(tmp_path))
    assert done.returncode == 2 and "at least 1" in done.stderr
