"""The diagrams of the documents render: Mermaid itself draws them in Chromium, as forges do in a reader's browser.

Their content is checked by tests/test_architecture.py, without a browser.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from tests.support.browser import Browser, Page
from tests.test_architecture import DIAGRAMS
from tests.test_docs import ROOT

MERMAID = ROOT / ".venv" / "node" / "mermaid.min.js"  # kept between runs, gone with the environment


def mermaid() -> Path:
    """The library, fetched once from the registry; skips where it cannot be had."""
    if not MERMAID.exists():
        if not shutil.which("npm"):
            pytest.skip("npm is not installed")
        MERMAID.parent.mkdir(parents=True, exist_ok=True)
        command = ["npm", "pack", "--silent", "mermaid@11"]
        done = subprocess.run(command, cwd=MERMAID.parent, capture_output=True, text=True, timeout=120, check=False)
        if done.returncode:
            pytest.skip(f"npm cannot fetch mermaid: {done.stderr[-200:]}")
        packed = MERMAID.parent / done.stdout.split()[-1]
        with tarfile.open(packed) as archive:
            found = archive.extractfile("package/dist/mermaid.min.js")
            assert found
            MERMAID.write_bytes(found.read())
        packed.unlink()
    return MERMAID


async def drawn(page: Page, text: str) -> str:
    """The picture of a diagram; AssertionError with Mermaid's words where it has none."""
    return str(await page.run(f"mermaid.render('picture', {json.dumps(text)}).then(made => made.svg)"))


async def test_every_diagram_renders_and_shows_what_it_names(tmp_path: Path) -> None:
    shutil.copy(await asyncio.to_thread(mermaid), tmp_path / "mermaid.js")
    (tmp_path / "page.html").write_text("<!doctype html><body><script src='mermaid.js'></script></body>")
    async with Browser() as browser:
        page = await browser.page((tmp_path / "page.html").as_uri())
        assert DIAGRAMS
        for _, text in DIAGRAMS:
            picture = await drawn(page, text)
            names = re.findall(r"\b[\w/]+\.py\b", text) + re.findall(r"^ +participant \w+ as (.+)$", text, re.M)
            assert names and [name for name in names if name not in picture] == []
        with pytest.raises(AssertionError):
            await drawn(page, "flowchart TD\n    a[b --> c")
