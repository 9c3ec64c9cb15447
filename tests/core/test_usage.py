"""The tokens that upstreams count, in the forms that they have."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.usage import TokenCounts, counts

JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
NAMES = [
    "prompt_tokens",
    "completion_tokens",
    "prompt_tokens_details",
    "completion_tokens_details",
    "cached_tokens",
    "prompt_cache_hit_tokens",
]


@pytest.mark.parametrize(
    ("usage", "told"),
    [
        ({"prompt_tokens": 12, "completion_tokens": 3, "total_tokens": 15}, TokenCounts(12, 3)),
        (
            {
                "prompt_tokens": 12,
                "completion_tokens": 9,
                "prompt_tokens_details": {"cached_tokens": 8, "audio_tokens": 0},
                "completion_tokens_details": {"reasoning_tokens": 5},
            },
            TokenCounts(12, 9, 5, 8),
        ),
        ({"prompt_tokens": 12, "prompt_cache_hit_tokens": 8}, TokenCounts(12, 0, 0, 8)),
        ({"prompt_tokens": 12.0, "prompt_tokens_details": None, "completion_tokens_details": None}, TokenCounts(12)),
        ({"prompt_tokens": None, "completion_tokens": -1, "prompt_cache_hit_tokens": 1e30}, TokenCounts()),
        ({"prompt_tokens": "12", "completion_tokens_details": {"reasoning_tokens": 2}}, TokenCounts(0, 0, 2)),
        ({"prompt_tokens": True, "prompt_tokens_details": [], "completion_tokens": 3}, TokenCounts(0, 3)),
        ([], TokenCounts()),
    ],
)
def test_what_an_upstream_counts(usage: Any, told: TokenCounts) -> None:
    assert counts(json.dumps(usage).encode()) == told


@given(st.binary() | st.builds(lambda value: json.dumps(value).encode(), st.dictionaries(st.sampled_from(NAMES), JSON)))
def test_whatever_it_says_it_is_whole_numbers(usage: bytes) -> None:
    assert all([type(number) is int and number >= 0 for number in counts(usage)])
