"""Several clients in one session: some carry lists of their own, some send what is new, in any order and overlap.

Nothing that anyone said is lost from the history, nothing stands there twice, and all of it is in the order in which
it was kept. For a client that carries its list, that list goes up, alone or behind what was said before it came; for
one that sends what is new, everything goes up. Each has software of its own: two of the same cannot be told apart
where they send the same way.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.core.json_bytes import loads
from tests.support.conversation import Answer, Pending, Session
from tests.support.speakers import Json, Words, answered, body_of, line_of, plainly, sent_to, software, system

CASTS = ("whole whole", "whole delta", "whole whole delta", "whole delta delta", "whole whole whole")


@dataclass
class Speaker:
    """A client. `own` is what it has said and heard."""

    name: str
    carries_history: bool
    prompt: str | None
    tools: int
    own: list[Json] = field(default_factory=list)
    says: list[Json] = field(default_factory=list)

    @property
    def body(self) -> bytes:
        before = self.own if self.carries_history else []
        return body_of([*system(self.prompt), *before, *self.says], self.tools, True)


class Room:
    """A session and who speaks in it. `said` is all of it, in the order in which it was kept."""

    def __init__(self, dice: Random, cast: str) -> None:
        self.session, self.words = Session(), Words()
        self.said: list[Json] = []
        self.speakers = [
            Speaker(
                f"{kind} {n}",
                kind == "whole",
                dice.choice([None, f"You are number {n} of some agents."]),
                dice.choice([0, 2]),
            )
            for n, kind in enumerate(cast.split())
        ]

    def turn(self, who: Speaker, dice: Random, other: Speaker | None = None) -> None:
        """A turn, and one of another client that comes while it is in flight, which may end before it."""
        first = self.ask(who, dice)
        assert first
        second = self.ask(other, dice) if other else None
        if second and other and dice.random() < 0.5:
            self.answer(other, second, dice)
            second = None
        self.answer(who, first, dice)
        if second and other:
            self.answer(other, second, dice)
        for speaker in (who, other):
            while speaker and speaker.own and "tool_calls" in speaker.own[-1]:
                pending = self.ask(speaker, dice)
                assert pending
                self.answer(speaker, pending, dice, calls=False)

    def ask(self, who: Speaker, dice: Random) -> Pending | None:
        who.says = who.says or self.words.said_next(who.own, dice)
        if self.session.pending and not who.carries_history:
            return None  # what is new waits for what is in flight
        pending = self.session.begin(who.body, client=software(who.name))
        if pending is None:
            return None  # so does a first list
        head = who.prompt
        if head is None and pending.plan.injected:
            head = content_of(self.session.history.system)
        sent = plainly(sent_to(pending))
        assert sent[: len(system(head))] == plainly(system(head)), pending.plan.reason
        sent = sent[len(system(head)) :]
        own, every = plainly([*(who.own if who.carries_history else []), *who.says]), plainly([*self.said, *who.says])
        before = len(sent) - len(own)
        assert (sent[before:], sent[:before]) == (own, every[:before]), pending.plan.reason
        assert who.carries_history or sent == every, pending.plan.reason
        return pending

    def answer(self, who: Speaker, pending: Pending, dice: Random, calls: bool = True) -> None:
        if dice.random() < 0.1:
            self.session.end(pending, Answer(None))
            return
        # A call that waits would be answered for by us where another client's turn comes before its result.
        reply = self.words.reply(dice, who.tools if calls and len(self.session.pending) == 1 else 0)
        self.session.end(pending, answered(reply, dice))
        self.said = [*self.said, *who.says, reply]
        who.own, who.says = [*who.own, *who.says, reply], []
        assert plainly(line_of(self.session)) == plainly(self.said), pending.plan.reason


def content_of(block: bytes | None) -> str | None:
    return None if block is None else str(loads(block)["content"])


# Not fewer in the gate, more where the profile asks for more.
EXAMPLES = max(1_000, min(settings.get_profile(settings.get_current_profile_name()).max_examples, 5_000))

Step = tuple[int, int, int]


def sample(dice: Random) -> tuple[str, int, list[Step]]:
    """For a hunt without hypothesis."""
    steps = [(dice.randrange(3), dice.randrange(3), dice.randrange(2**32)) for _ in range(dice.randint(2, 9))]
    return dice.choice(CASTS), dice.randrange(2**32), steps


def run(cast: str, seed: int, program: list[Step]) -> None:
    room = Room(Random(seed), cast)
    for who, beside, each in program:
        size, dice = len(room.speakers), Random(each)
        first, second = room.speakers[who % size], room.speakers[beside % size]
        room.turn(first, dice, second if second is not first and dice.random() < 0.3 else None)


steps = st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 2**32))


@settings(max_examples=EXAMPLES)
@given(st.sampled_from(CASTS), st.integers(0, 2**32), st.lists(steps, min_size=2, max_size=10))
def test_nothing_that_anyone_said_is_lost_or_doubled(cast: str, seed: int, program: list[Step]) -> None:
    run(cast, seed, program)
