"""Starts that cannot be: one sentence with the fix on the last line, the right exit code, no traceback."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.test_commands import GOOD, session_proxy
from tests.support.fakes import free_port


def start(state: Path, config: str | Path = GOOD) -> tuple[int, str]:
    """The exit code and all that was said by a start that fails."""
    listen = f"127.0.0.1:{free_port()}"
    done = session_proxy("serve", "--config", str(config), "--listen", listen, STATE_DIRECTORY=str(state))
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"not a database\n" * 400, "file is not a database"),
        (b"SQLite format 3\0" + bytes(range(256)) * 32, ""),
    ],
)
def test_a_file_that_is_no_database_refuses_the_start(tmp_path: Path, content: bytes, fault: str) -> None:
    database = tmp_path / "sessions.db"
    database.write_bytes(content)
    code, said = start(tmp_path)
    assert code == 1 and said.startswith(f"session-proxy: Cannot open the database {database}: {fault}")
    assert said.endswith(
        "Restore a backup, move the file away to start with an empty one, or choose another store.path.\n"
    )
    assert database.read_bytes() == content


def test_aiohttp_without_its_compiled_extension_refuses_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIOHTTP_NO_EXTENSIONS", "1")
    code, said = start(tmp_path)
    assert code == 1 and len(said.splitlines()) == 1 and said.startswith("session-proxy: aiohttp ")
    assert said.endswith("Remove AIOHTTP_NO_EXTENSIONS from the environment.\n")
    assert list(tmp_path.iterdir()) == []  # nothing was begun


def test_an_unreadable_secret_refuses_the_start(tmp_path: Path) -> None:
    (tmp_path / "sessions.db.secret").mkdir()
    code, said = start(tmp_path)
    assert (code, said) == (
        1,
        f"session-proxy: Cannot use {tmp_path}/sessions.db.secret: Is a directory."
        " Check that its folder belongs to the user of the proxy and is writable.\n",
    )


def test_a_state_folder_that_cannot_be_created_refuses_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code, said = start(tmp_path / "file")
    assert (
        code == 1 and len(said.splitlines()) == 1 and "file/sessions.db: " in said and "Check that its folder" in said
    )


@pytest.mark.parametrize(
    ("path", "say"),
    [("missing", "the file missing cannot be read; create it"), ("/etc/passwd", "everybody can read the file")],
)
def test_an_unusable_key_file_refuses_the_start(tmp_path: Path, path: str, say: str) -> None:
    config = tmp_path / "proxy.yaml"
    config.write_text(f"upstreams:\n  - api_key: ${{file:{path}}}\n")
    code, said = start(tmp_path, config)
    assert code == 78 and len(said.splitlines()) == 1
    assert said.startswith(f"{config}:2:5: upstreams.0.api_key: ") and say in said


def test_a_missing_configuration_file_refuses_the_start(tmp_path: Path) -> None:
    code, said = start(tmp_path, tmp_path / "none.yaml")
    assert code == 78 and len(said.splitlines()) == 1 and "No such file or directory" in said


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A folder whose size can be set, in memory."""
    if os.geteuid() or not shutil.which("mount"):
        pytest.skip("only root can mount a file system")
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "none", folder], check=False, capture_output=True)
    if made.returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_full_disk_refuses_the_start(disk: Path) -> None:
    """Whatever it is that no longer fits."""
    faults = set()
    for size in ("4k", "8k", "16k", "32k", "64k"):
        for file in disk.iterdir():
            file.unlink()
        subprocess.run(["mount", "-o", f"remount,size={size}", disk], check=True)
        code, said = start(disk)
        assert code == 1 and len(said.splitlines()) == 1, said
        assert said.startswith("session-proxy: Cannot ") and "space" in said, said
        faults.add(said)
    assert len(faults) > 1
