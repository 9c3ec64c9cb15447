"""What real clients did, replayed through the proxy as a process: a few recordings in the gate, all in `make soak`."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[3] / "shared" / "traces"
BIN = Path(sys.executable).parent
GATE = (
    "01-",
    "04-",
    "06-",
    "10-",
    "11-",
    "17-",
)  # a title first, two compactions, a plan, what a page asks, two agents
TRACES = sorted(FOLDER.glob("*.json")) or [FOLDER / "none.json"]


@pytest.mark.parametrize("trace", TRACES, ids=lambda trace: trace.stem)
async def test_a_trace_of_a_real_client(trace: Path) -> None:
    if not trace.exists():
        pytest.skip(f"no recorded clients in {FOLDER}")
    if not (BIN / "session-proxy").exists():
        pytest.skip("the proxy is not installed beside this Python")
    if not trace.name.startswith(GATE) and not os.environ.get("SOAK"):
        pytest.skip("one of many; `make soak` replays all")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(FOLDER / "replay.py"), "-v", str(BIN), str(trace)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(120):
            said, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, said.decode()
