"""A disk without space is one sentence, for whoever writes to it first."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.test_db_commands import say
from tests.support.fakes import ScriptedUpstream
from tests.support.process import Proxy, run


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """The root of a file system that has 16 KiB."""
    if os.geteuid() or not (mount := shutil.which("mount")):
        pytest.skip("only root can mount a file system (Debian: mount)")
    (folder := tmp_path / "full").mkdir()
    done = subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


async def test_a_full_disk_is_named_by_start_backup_and_restore(tmp_path: Path, full: Path) -> None:
    async with ScriptedUpstream() as upstream, Proxy(upstream.base_url, tmp_path) as proxy:
        await say(proxy.port, "s", "x" * 100_000)
        config = ("--config", str(proxy.config))
        code, output, _ = await run("backup", *config, str(tmp_path / "backups"), folder=tmp_path)
        assert code == 0
        for words in (
            ["serve", *config, "--listen", "127.0.0.1:0"],
            ["backup", *config, str(full / "backups"), "--state", str(proxy.database.parent)],
            ["restore", *config, output.strip()],
        ):
            where = full if words[0] != "backup" else tmp_path
            code, output_here, errors = await run(*words, folder=where)
            assert (code, output_here) == (1, "")
            (line,) = [line for line in errors.splitlines() if line.startswith("session-proxy: ")]
            assert "The disk is full: make space at " in line and "Traceback" not in errors
        assert list((full / "backups").iterdir()) == []
        assert await say(proxy.port, "s") == "continued"
