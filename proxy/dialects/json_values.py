"""Values of JSON that may be anything, read as the kind that is wanted: empty where they are another. Pure."""

from __future__ import annotations

from typing import Any


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def as_dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def as_text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def is_text(value: Any) -> bool:
    """Whether it is a string with something in it."""
    return isinstance(value, str) and bool(value)
