"""What was learned of upstreams: it grows, replaces what it was told before, and is forgotten after a day."""

from __future__ import annotations

from proxy.core.learned import LIMIT_KEPT, Learned, is_old
from proxy.core.model import ModelKey

MINE, THEIRS = ModelKey(b"me", "host", "model"), ModelKey(b"them", "host", "model")


def test_refusals_add_up_by_upstream() -> None:
    learned = Learned([("a", "audio"), ("b", "refusal")])
    before = learned.refusals
    learned.refusal("a", "name")
    assert learned.refusals == {"a": {"audio", "name"}, "b": {"refusal"}}
    assert before == {"a": {"audio"}, "b": {"refusal"}}  # whoever holds it reads on undisturbed


def test_a_limit_is_of_one_model_and_the_last_one_counts() -> None:
    learned = Learned(limits=[(*MINE, 4096, 0)])
    assert (learned.limit(MINE, 5), learned.limit(THEIRS, 5)) == (4096, None)
    learned.limited(MINE, 2048, 5)
    assert learned.limit(MINE, 5) == 2048


def test_a_limit_is_forgotten_after_a_day_and_never_before_it() -> None:
    learned = Learned(limits=[(*MINE, 4096, 1)])
    assert [learned.limit(MINE, now) for now in (0, 1 + LIMIT_KEPT, 2 + LIMIT_KEPT)] == [4096, 4096, None]
    learned.limited(THEIRS, 512, 2 + LIMIT_KEPT)
    assert learned.limit(MINE, 1) is None  # it is gone with the next one
    assert not is_old(learned=10, now=0)  # the clock went back
