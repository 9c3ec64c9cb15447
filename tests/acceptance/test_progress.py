"""Long work shows how far it is, at a terminal and nowhere else."""

from __future__ import annotations

import asyncio
import os
import pty
from pathlib import Path

import pytest

from tests.acceptance.test_db_commands import say
from tests.support.fakes import ScriptedUpstream
from tests.support.process import Proxy, command


@pytest.mark.parametrize("terminal", [True, False])
async def test_the_progress_bar_is_drawn_at_a_terminal_only(tmp_path: Path, terminal: bool) -> None:
    async with ScriptedUpstream() as upstream, Proxy(upstream.base_url, tmp_path) as proxy:
        await say(proxy.port, "s", "x" * 5_000_000)
        ours, theirs = pty.openpty() if terminal else os.pipe()
        process = await command(
            *("backup", "--config", str(proxy.config), str(tmp_path / "made")),
            folder=tmp_path,
            stdout=asyncio.subprocess.PIPE,
            stderr=theirs,
        )
        os.close(theirs)
        output, _ = await process.communicate()
        drawn = bytearray()
        try:
            while data := os.read(ours, 65536):
                drawn += data
        except OSError:  # what a terminal says at its end
            pass
        os.close(ours)
    assert process.returncode == 0
    assert output.decode().strip() == str(next((tmp_path / "made").iterdir()))
    lines = drawn.decode().split("\r")
    if terminal:
        assert len(lines) > 3 and lines[-2].startswith("backup [####") and "100%" in lines[-2]
        assert [len(line.strip()) for line in lines[1:-1]] == [len(lines[1].strip())] * (len(lines) - 2)
    else:
        assert lines == [""]
