"""A client that carries its list, as chat applications do: it edits and deletes what was said, asks for an answer
again, the first one too, stops one, leaves out what tools gave, and names its chat meanwhile, often before anything
tells that from a new message. Its list goes up as it was sent, and is the history.
"""

from __future__ import annotations

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.core.plan import Decision
from tests.support.conversation import Answer, Pending, Session
from tests.support.speakers import (
    Json,
    Words,
    answered,
    assistant,
    body_of,
    line_of,
    plainly,
    questions_in,
    replies_in,
    sent_to,
    software,
    system,
    user,
)

CHAT = software("chat/1.0")


class Editor:
    """The client, and its session."""

    def __init__(self, dice: Random) -> None:
        self.session, self.words = Session(), Words()
        self.tools, self.stream = dice.choice([0, 3]), dice.choice([None, True])
        self.prompt = dice.choice([None, "You help with plans.", "You help with plans. It is {} of 99."])
        self.list: list[Json] = []
        self.asked = 0
        self.beside: list[Pending] = []  # what names the chat, in flight

    # What it makes of its list

    def ask(self, dice: Random) -> list[Json]:
        return [*self.list, *self.words.said_next(self.list, dice)[:1]]

    def ask_again(self, dice: Random) -> list[Json]:
        asked = self._questions()
        return self.list[: dice.choice(asked[-2:]) + 1]

    def edit(self, dice: Random) -> list[Json]:
        at = dice.choice(self._questions()[1:])
        return [*self.list[:at], user(self.words.question())]

    def edit_within(self, dice: Random) -> list[Json]:
        at = dice.choice(self._questions()[1:])
        return [*self.list[:at], user(self.words.question()), *self.list[at + 1 :], user(self.words.question())]

    def delete(self, dice: Random) -> list[Json]:
        asked = self._questions()
        at = dice.choice(asked[1:])
        stop = next((each for each in asked if each > at), len(self.list))
        return [*self.list[:at], *self.list[stop:], user(self.words.question())]

    def leave_tools_out(self, dice: Random) -> list[Json]:
        said = [each for each in self.list if each["role"] != "tool" and not each.get("tool_calls")]
        return [*said, user(self.words.question())]

    def _questions(self) -> list[int]:
        return [n for n, each in enumerate(self.list) if each["role"] == "user"]

    def next(self, dice: Random) -> list[Json]:
        """Its next list. One call that waits is answered for; all else is edited when an answer is whole."""
        calls = self.list[-1].get("tool_calls", []) if self.list else []
        if calls:
            results = self.words.said_next(self.list, dice)
            kept = [{**each, "content": None} if each.get("tool_calls") else each for each in self.list]
            return [*(kept if dice.random() < 0.3 else self.list), *results]
        ways = [self.ask, self.ask, self.ask, self.ask_again, self.leave_tools_out]
        ways += [self.edit, self.edit_within, self.delete] if len(self._questions()) > 1 else []
        return dice.choice(ways)(dice) if self.list else self.ask(dice)

    # What it sends

    def turn(self, dice: Random) -> None:
        if dice.random() < 0.4:
            self.name(dice)
        listed = self.next(dice)
        first = len(listed) == 1
        self.asked += 1
        head = system(self.prompt.format(self.asked + 10) if self.prompt else None)
        body = body_of([*head, *listed], self.tools, self.stream)
        pending = self.session.begin(body, client=CHAT)
        if pending is None:  # a message alone waits for what is in flight
            self.named(dice)
            pending = self.session.begin(body, client=CHAT)
        assert pending, "it waits"
        assert first or without_ids(sent_to(pending)) == without_ids([*head, *listed]), pending.plan.reason
        if dice.random() < 0.5:
            self.named(dice)
        self.answer(pending, listed, dice)
        self.named(dice)
        if not first:
            assert pending.plan.decision is not Decision.APPEND, pending.plan.reason
            assert without_ids(line_of(self.session)) == without_ids(self.list), pending.plan.reason

    def answer(self, pending: Pending, listed: list[Json], dice: Random) -> None:
        reply = self.words.reply(dice, self.tools if len(listed) > 1 else 0)
        if dice.random() < 0.1 and not reply.get("tool_calls") and len(listed) > 1:
            self.session.end(pending, Answer(reply, finish_reason=None, clean=False, streamed=True))
        else:
            self.session.end(pending, answered(reply, dice))
        self.list = [*listed, reply]

    def name(self, dice: Random) -> None:
        """A title, tags, follow-ups: one message, with a transcript in it. Without the chat's tools or its stream."""
        replies, asked = replies_in(self.list)[-2:], questions_in(self.list)[-2:]
        if not (replies and (self.tools or self.stream)) or self.list[-1].get("tool_calls"):
            return
        told = "\n".join([self.words.instruction(), *asked, *replies])
        pending = self.session.begin(body_of([user(told)]), client=CHAT)
        assert pending, "a name waits"
        self.beside.append(pending)

    def named(self, dice: Random) -> None:
        for pending in self.beside:
            self.session.end(pending, answered(assistant(self.words.statement()), dice))
        self.beside = []


def without_ids(messages: list[Json]) -> list[object]:
    """What tells each message from the others; what was said beside a call is ours to restore."""
    return [(role, calls or content, calls, of) for role, content, calls, of in plainly(messages)]


def sample(dice: Random) -> tuple[int, list[int]]:
    """For a hunt without hypothesis."""
    return dice.randrange(2**32), [dice.randrange(2**32) for _ in range(dice.randint(3, 10))]


def run(seed: int, program: list[int]) -> None:
    editor = Editor(Random(seed))
    for each in program:
        editor.turn(Random(each))


# Not fewer in the gate, more where the profile asks for more.
EXAMPLES = max(1_000, min(settings.get_profile(settings.get_current_profile_name()).max_examples, 5_000))


@settings(max_examples=EXAMPLES)
@given(st.integers(0, 2**32), st.lists(st.integers(0, 2**32), min_size=3, max_size=10))
def test_an_edited_list_is_the_history(seed: int, program: list[int]) -> None:
    run(seed, program)
