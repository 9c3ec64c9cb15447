"""A client that carries its lists, and has one session for all of its chats: a header that never changes. It begins a
new chat, edits the first message of one, goes back to an earlier one, and may trim its list to what fits, down to the
newest message alone. Other software may send new messages in between.

Once it has shown a list, each later list goes up as it was sent. Nothing goes up twice or stands in the history twice,
and what the other software said is never lost to it.
"""

from __future__ import annotations

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.conversation import Pending, Session
from tests.support.speakers import Json, Words, answered, body_of, line_of, plainly, sent_to, software, system, user

CHAT, SCRIPT = software("chat/1.0"), software("script/2.0")
KINDS = ("ask", "ask", "ask", "begin", "edit", "back", "again")


class Chats:
    """The client and the script, and their session. `room`: how many messages fit, where it trims its lists."""

    def __init__(self, dice: Random) -> None:
        self.session, self.words = Session(), Words()
        self.prompt = dice.choice([None, "You help with plans, briefly."])
        self.tools, self.trims = dice.choice([0, 2]), dice.random() < 0.4
        self.list: list[Json] = []
        self.former: list[list[Json]] = []
        self.told: list[Json] = []  # what the script said and heard
        self.resent = False
        self.begun: dict[
            str, bool
        ] = {}  # by the first message of a list: whether it was asked alone, behind a list that was shown
        self.spliced = False

    def step(self, kind: str, dice: Random) -> None:
        if kind == "script":
            self.script(dice)
            return
        if waits(self.list):
            kind = "ask"
        if kind in ("begin", "back") and len(self.list) > 2:  # it was shown as a list
            self.former.append(self.list)
        if kind == "begin":
            self.list = []
        elif kind == "back" and self.former:
            self.list = self.former.pop(dice.randrange(len(self.former)))
        elif kind == "edit":
            self.list = []
        elif kind == "again" and self.list[-1:] and len(self.list) > 2:
            asked = [n for n, each in enumerate(self.list) if each["role"] == "user"]
            self.list = self.list[: asked[-1]]
        self.ask(dice)

    def ask(self, dice: Random) -> None:
        news = self.words.said_next(self.list, dice)
        news = news if news[0]["role"] == "tool" else news[:1]
        kept = self.trimmed(dice) if news[0]["role"] == "user" else self.list
        listed = [*kept, *news]
        self.begun.setdefault(listed[0]["content"], self.resent and len(listed) == 1)
        pending = self.session.begin(body_of([*system(self.prompt), *listed], self.tools, True), client=CHAT)
        assert pending
        assert not pending.plan.side, pending.plan.reason
        sent = plainly(sent_to(pending))
        own = plainly(listed)
        assert sent[len(sent) - len(own) :] == own, pending.plan.reason
        assert_once(sent)
        if self.is_shown(listed):
            assert sent == plainly([*system(self.prompt), *listed]), pending.plan.reason
        reply = self.words.reply(dice, self.tools)
        self.session.end(pending, answered(reply, dice))
        self.resent = self.resent or (pending.plan.carries_history and pending.plan.resends)
        self.list = [*listed, reply]
        self.check(pending, [*listed, reply])

    def is_shown(self, listed: list[Json]) -> bool:
        """Whether a list shows that it is one, from where it began, and its client had shown one before that."""
        replied = next((n for n, each in enumerate(listed) if each["role"] == "assistant"), len(listed))
        goes_on = any([each["role"] == "user" for each in listed[replied:]])
        return goes_on and not self.told and self.begun[listed[0]["content"]]

    def trimmed(self, dice: Random) -> list[Json]:
        """What fits: from a user's message on that begins a turn, or nothing. It never grows back."""
        if not self.trims or dice.random() < 0.5:
            return self.list
        starts = [n for n, each in enumerate(self.list) if each["role"] == "user"]
        starts = [n for n in starts if n == 0 or self.list[n - 1]["role"] == "assistant"]
        return self.list[dice.choice([*starts, len(self.list)]) :]

    def script(self, dice: Random) -> None:
        if waits(self.list):
            return
        news = [user(self.words.question())]
        pending = self.session.begin(body_of(news), client=SCRIPT)
        assert pending
        sent = plainly(sent_to(pending))
        assert not pending.plan.side
        assert_once(sent)
        assert is_within(plainly([*self.told, *news]), sent), pending.plan.reason
        reply = self.words.reply(dice, 0)
        self.session.end(pending, answered(reply, dice))
        self.told = [*self.told, *news, reply]
        self.check(pending, [*news, reply])

    def check(self, pending: Pending, latest: list[Json]) -> None:
        line = plainly(line_of(self.session))
        assert_once(line)
        assert is_within(plainly(latest), line), pending.plan.reason
        assert line[-1:] == plainly(latest[-1:]), pending.plan.reason
        assert is_within(plainly(self.told), line), pending.plan.reason


def waits(messages: list[Json]) -> bool:
    return bool(messages and messages[-1].get("tool_calls"))


def assert_once(messages: list[tuple[object, ...]]) -> None:
    assert len({repr(each) for each in messages}) == len(messages), messages


def is_within(some: list[tuple[object, ...]], every: list[tuple[object, ...]]) -> bool:
    rest = iter(every)
    return all([each in rest for each in some])


def sample(dice: Random) -> tuple[bool, int, list[tuple[str, int]]]:
    """For a hunt without hypothesis."""
    script = dice.random() < 0.5
    kinds = (*KINDS, "script", "script") if script else KINDS
    return (
        script,
        dice.randrange(2**32),
        [(dice.choice(kinds), dice.randrange(2**32)) for _ in range(dice.randint(3, 14))],
    )


def run(script: bool, seed: int, program: list[tuple[str, int]]) -> None:
    chats = Chats(Random(seed))
    for kind, each in program:
        chats.step(kind if script or kind != "script" else "ask", Random(each))


# Not fewer in the gate, more where the profile asks for more.
EXAMPLES = max(1_000, min(settings.get_profile(settings.get_current_profile_name()).max_examples, 5_000))

steps = st.tuples(st.sampled_from((*KINDS, "script", "script")), st.integers(0, 2**32))


@settings(max_examples=EXAMPLES)
@given(st.booleans(), st.integers(0, 2**32), st.lists(steps, min_size=3, max_size=12))
def test_each_list_is_its_own(script: bool, seed: int, program: list[tuple[str, int]]) -> None:
    run(script, seed, program)
