"""A value is read as the kind that is wanted, and as an empty one where it is another."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.dialects.json_values import as_dict, as_list, as_text, is_text

OTHERS: list[Any] = [None, 0, 1.5, True, b"a", [], {}]


@pytest.mark.parametrize(
    ("value", "read"),
    [
        ([1], ([1], {}, "", False)),
        ({"a": 1}, ([], {"a": 1}, "", False)),
        ("a", ([], {}, "a", True)),
        ("", ([], {}, "", False)),
        *[(other, ([], {}, "", False)) for other in OTHERS],
    ],
)
def test_each_kind_of_value(value: Any, read: tuple[Any, ...]) -> None:
    assert (as_list(value), as_dict(value), as_text(value), is_text(value)) == read
