"""What the documents name is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_and_every_test_that_a_page_names_is_there(page: Path) -> None:
    text = page.read_text()
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []
    named = re.findall(r"`((?:tests/)?[\w/]+\.py)::(\w+)`", text)
    missing = [f"{file}::{name}" for file, name in named if not has(ROOT / "tests" / file.removeprefix("tests/"), name)]
    assert missing == []


def has(file: Path, name: str) -> bool:
    return file.exists() and f"def {name}(" in file.read_text()
