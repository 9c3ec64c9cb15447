"""What was learned of upstreams: it grows, replaces what it was told before, and is forgotten after a day."""

from __future__ import annotations

import pytest

from proxy.core.learned import IMAGES, LIMIT_KEPT, PROBED, LearnedLimits, is_of, is_old
from proxy.core.model import ModelKey

MINE, THEIRS = ModelKey(b"me", "host", "model"), ModelKey(b"them", "host", "model")


def test_refusals_add_up_by_upstream() -> None:
    learned = LearnedLimits([("a", "audio"), ("b", "refusal")])
    before = learned.refusals
    learned.refusal("a", "name")
    assert learned.refusals == {"a": {"audio", "name"}, "b": {"refusal"}}
    assert before == {"a": {"audio"}, "b": {"refusal"}}  # whoever holds it reads on undisturbed


def test_a_limit_is_of_one_model_and_the_last_one_counts() -> None:
    learned = LearnedLimits(limits=[(*MINE, 4096, 0)])
    assert (learned.limit(MINE, 5), learned.limit(THEIRS, 5)) == (4096, None)
    learned.limited(MINE, 2048, 5)
    assert learned.limit(MINE, 5) == 2048


def test_every_so_often_a_turn_asks_for_more() -> None:
    learned = LearnedLimits(limits=[(*MINE, 4096, 0)])
    assert [learned.is_probed(MINE) for _ in range(PROBED + 1)] == [False] * (PROBED - 1) + [True] * 2
    assert not learned.is_probed(THEIRS)
    learned.probed(MINE, taken=False)
    assert not learned.is_probed(MINE)
    learned.probed(MINE, taken=True)
    assert learned.is_probed(MINE)
    learned.limited(THEIRS, 512, LIMIT_KEPT + 1)  # what is forgotten waits no more
    assert not learned.is_probed(MINE)


def test_how_many_images_a_model_takes_is_remembered_of_so_many_models() -> None:
    learned = LearnedLimits()
    for n in range(IMAGES + 1):
        learned.pictured(ModelKey(b"me", "host", str(n)), n)
    assert len(learned.images) == IMAGES
    assert ModelKey(b"me", "host", "0") not in learned.images and learned.images[ModelKey(b"me", "host", "9")] == 9


@pytest.mark.parametrize(
    ("told", "asked", "same"),
    [
        ("gpt-4o", "gpt-4o", True),
        ("gpt-4o-2024-08-06", "gpt-4o", True),
        ("gemini-2.0-flash-001", "gemini-2.0-flash", True),
        ("gpt-4o-mini-2024-07-18", "gpt-4o", False),
        ("gpt-4o", "gpt-4o-mini", False),
        ("llama-3-70b", "llama-3", False),
        (None, None, True),
        ("m", None, False),
    ],
)
def test_a_reply_may_name_a_version_of_what_was_asked_for(told: str | None, asked: str | None, same: bool) -> None:
    assert is_of(told, asked) is same


def test_a_limit_is_forgotten_after_a_day_and_never_before_it() -> None:
    learned = LearnedLimits(limits=[(*MINE, 4096, 1)])
    assert [learned.limit(MINE, now) for now in (0, 1 + LIMIT_KEPT, 2 + LIMIT_KEPT)] == [4096, 4096, None]
    learned.limited(THEIRS, 512, 2 + LIMIT_KEPT)
    assert learned.limit(MINE, 1) is None  # it is gone with the next one
    assert not is_old(learned=10, now=0)  # the clock went back
