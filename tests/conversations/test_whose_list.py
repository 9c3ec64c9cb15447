"""Whose list is it? One client that chats, in any of the ways in which clients send a conversation, and beside it what
its software asks for: titles, tags, follow-ups, summaries, plans, a memory agent, a guard, a commit message.

The upstream receives of each request what its client meant: the chat's own list as it was sent, or the history and what
is new where only that was sent; a side request as it was sent. The history is the chat's line, whatever came between.

A side request is made here only where something tells it: what real clients show, in one way or another. One without
any evidence (another prompt over one message, before anything was resent; a quote by a client whose chat has neither
tools, nor a stream, nor a prompt, and whose request has none either) is a new message to anybody.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

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
STYLES = ("delta", "whole", "window", "compact")
QUOTE = 13  # characters that make a quote


@dataclass(frozen=True)
class Side:
    """A request beside the chat."""

    what: str
    messages: list[Json]
    tools: int = 0
    stream: bool | None = None

    @property
    def body(self) -> bytes:
        return body_of(self.messages, self.tools, self.stream)


class Chat:
    """The client that chats. `list` is what it would show a person: what it carries, or, where it sends what is new
    only, what it knows was said."""

    def __init__(self, dice: Random, style: str) -> None:
        self.words, self.style = Words(), style
        self.tools = dice.choice([0, 0, 3, 5])
        self.stream = dice.choice([None, False, True])
        self.prompt = dice.choice([None, "You help with plans, briefly.", "You help with plans. It is day {} of 99."])
        self.keeps = dice.randint(1, 3)
        self.list: list[Json] = []
        self.summary: list[Json] = []  # in the system block, behind the prompt
        self.brought: list[Json] = []  # what its software put into the list
        self.head: list[Json] = []  # of that, what each list begins with
        self.asked = 0
        self.resent = False  # a request of its has shown a reply, and a question behind it
        self.titled = self.failed = False
        self.stays = False  # it sends its prompt once
        self.says: list[Json] = []
        self.shown: list[Json] = []  # its list, as it was sent
        self.path: list[Json] = []  # what is to be the history
        self.in_force: str | None = None
        self.reminder = ""  # at the end of its newest message, and gone from it with the next list
        if style == "delta":
            self.stays = dice.random() < 0.3
            return
        if dice.random() < 0.3:
            self.reminder = f"\n\n{self.words.instruction()}"
        if dice.random() < 0.3:  # aider: examples, which each list begins with
            self.brought = [user(self.words.question()), assistant(self.words.statement())]
            self.list = self.head = self.brought

    @property
    def system(self) -> list[Json]:
        text = self.prompt.format(self.asked + 10) if self.prompt else None
        if self.stays and self.asked:
            return []
        return [*system(text), *self.summary]

    def next(self, dice: Random) -> tuple[bytes, list[Json]]:
        """Its next request, and what is to reach the upstream of it."""
        self.says = self.says or self.words.said_next(self.list, dice)
        if self.style == "delta":
            own = self._loop() if dice.random() < 0.5 else []
            self.in_force = self.system[0]["content"] if self.system else self.in_force
            sent, meant = [*self.system, *own, *self.says], [*system(self.in_force), *self.list, *self.says]
        else:
            if self.style == "window":
                self._cut()
            *rest, last = self.says
            if last["role"] == "user" and self.reminder:
                last = user(last["content"] + self.reminder)
            self.shown = [*self.list, *rest, last]
            sent = meant = [*self.system, *self.shown]
        return body_of(sent, self.tools, self.stream), meant

    def _loop(self) -> list[Json]:
        """Some clients that send what is new show their last turn while its calls wait."""
        if self.says[0]["role"] != "tool":
            return []
        asked = [n for n, each in enumerate(self.list) if each["role"] == "user"]
        whole = asked[-1] == 0 and not self.system  # a whole list without a prompt has none
        return [] if whole else self.list[asked[-1] :]

    def _cut(self) -> None:
        """To the last questions and what was answered to them."""
        size, said = len(self.head), self.list
        asked = [n for n in range(size, len(said)) if said[n]["role"] == "user" and said[n - 1]["role"] != "user"]
        if len(asked) > self.keeps:
            self.list = [*self.head, *said[asked[-self.keeps] :]]

    def hears(self, message: Json) -> None:
        replied = next((n for n, each in enumerate(self.list) if is_ours(self, each)), None)
        shown = self.list[replied:] if replied is not None else []
        if self.style != "delta" and any([each["role"] == "user" for each in [*shown, *self.says]]) and shown:
            self.resent = True
        self.path = [*(self.shown or [*self.list, *self.says]), message]
        self.list = [*self.list, *self.says, message]
        self.asked, self.says, self.failed = self.asked + 1, [], False

    def compacted(self, summary: str, dice: Random) -> None:
        """It goes on from a summary, and from the last messages that it keeps."""
        starts = [n for n, each in enumerate(self.list) if each["role"] != "tool" and n >= len(self.head)][-4:]
        kept = self.list[dice.choice(starts if self.waits else [*starts, len(self.list)]) :]  # a call that waits stays
        note, told = self.words.instruction(), f"{self.words.instruction()}\n\n{summary}"
        forms: list[list[Json]] = [
            [user(told)],
            [user(summary)],
            [assistant(summary)],
            [user(told), assistant("Well, I go on from there.")],
            [user(note), assistant(summary)],
            [user(note), assistant(told)],
        ]
        self.summary = []
        form, head = dice.randrange(len(forms) + 2), []
        if form < len(forms):
            head = forms[form]
        elif form == len(forms) and self.prompt:
            self.prompt = f"{self.prompt.splitlines()[0]}\n\n{told}"
        else:
            self.summary = system(dice.choice([summary, told]))
        self.brought = [*self.brought, *head]
        self.list = [*self.head, *head, *kept]

    @property
    def talk(self) -> list[Json]:
        """What was said, without examples."""
        return self.list[len(self.head) :]

    @property
    def waits(self) -> bool:
        """Whether a call of its has no result yet."""
        return bool(self.list and self.list[-1].get("tool_calls"))

    # Beside it

    def shape(self, dice: Random, quoted: list[str]) -> tuple[int, bool | None, list[Json]] | None:
        """How a side request about a transcript is asked, so that it can be told: its tools, its stream, its prompt."""
        tools = 0
        stream = dice.choice([None, False, self.stream])
        prompt = dice.choice([[], system(f"You name things. {self.words.instruction()}")])
        gone, unstreamed = self.tools > 0, self.stream is True and stream is not True
        quoted = [] if self.reminder else quoted  # not all of what the user said
        if self.resent:
            told = gone or unstreamed or bool(prompt) or self.prompt is not None
        else:
            told = gone and (unstreamed or len(quoted) > 0)
        return (tools, stream, prompt) if told else None


# What is asked beside a chat


def about(chat: Chat, dice: Random) -> Side | None:
    """A title, tags, follow-ups: one message that quotes the end of the chat."""
    replies, questions = replies_in(chat.talk)[-dice.randint(1, 3) :], questions_in(chat.talk)[-dice.randint(0, 2) :]
    questions = questions if dice.random() < 0.7 else []
    shape = chat.shape(dice, questions) if replies else None
    if shape is None:
        return None
    tools, stream, prompt = shape
    told = "\n\n".join([chat.words.instruction(), *questions, *replies, chat.words.instruction()])
    if prompt and dice.random() < 0.2:  # agno: the transcript stands in the prompt
        return Side("about", [*system(told), user(chat.words.instruction())], tools, stream) if chat.resent else None
    return Side("about", [*prompt, user(told)], tools, stream)


def guard(chat: Chat, dice: Random) -> Side | None:
    """Whether the user's words are polite, a commit message: nothing of ours in it, under another prompt."""
    if not chat.resent:
        return None
    said = chat.says or [each for each in chat.talk if each["role"] == "user"][-1:]
    text = said[0]["content"] if said and dice.random() < 0.7 else chat.words.instruction()
    prompt = system(f"Say yes or no. {chat.words.instruction()}")
    return Side("guard", [*prompt, user(text)], dice.choice([0, chat.tools]), dice.choice([None, chat.stream]))


def whole(chat: Chat, dice: Random) -> Side | None:
    """A memory agent, a summary: the chat's list or its beginning, and an instruction behind it."""
    ends = [n + 1 for n, each in enumerate(chat.list) if is_ours(chat, each) and not each.get("tool_calls")]
    if chat.style == "delta" or not ends:
        return None
    stop = dice.choice([ends[-1], dice.choice(ends)])
    if stop < len(chat.list) and chat.list[stop]["role"] == "user" and not chat.reminder and dice.random() < 0.3:
        stop += 1  # strands: up to a question
    listed = chat.list[:stop]
    if chat.prompt and dice.random() < 0.3:
        return Side("whole", [*listed, *system(chat.words.instruction())], dice.choice([0, chat.tools]), chat.stream)
    tools = dice.choice([0, chat.tools, max(chat.tools - 2, 0)])
    stream = dice.choice([None, False, chat.stream])
    alike = tools == chat.tools and not (chat.stream is True and stream is not True)
    if alike and (stop >= len(chat.list) or chat.failed):
        return None  # asked as the chat is but for the prompt: the chat itself, all of it or edited within a window
    return Side("whole", [*system(chat.words.instruction()), *listed, user(chat.words.instruction())], tools, stream)


def is_ours(chat: Chat, message: Json) -> bool:
    return message["role"] == "assistant" and message not in chat.brought


def title(chat: Chat, dice: Random) -> Side | None:
    """What is asked before the chat's first request, about the words it will begin with."""
    if chat.talk or chat.titled or not (chat.tools and chat.prompt):
        return None
    chat.titled = True  # before there is a chat, a second one looks like the next message of the first
    chat.says = chat.says or chat.words.said_next([], dice)
    asked = chat.says[0]["content"]
    within = [user(chat.words.instruction()), user(asked)]
    if dice.random() < 0.5:
        within = [user(f"{chat.words.instruction()}\n{asked}")]
    prompt = dice.choice([[], system(f"You name things. {chat.words.instruction()}")])
    return Side("title", [*prompt, *within], 0, dice.choice([None, True]))


SHAPES: dict[str, Callable[[Chat, Random], Side | None]] = {
    "about": about, "guard": guard, "whole": whole, "title": title,
}  # fmt: skip


class Run:
    """A session, the chat in it, and what is in flight beside it."""

    def __init__(self, dice: Random, style: str) -> None:
        self.session, self.chat = Session(), Chat(dice, style)
        self.path: list[Json] = []  # what was said in the chat
        self.side_requests: dict[Pending, Side] = {}  # in flight

    def step(self, kind: str, dice: Random) -> None:
        """One request, or a request of the chat with one beside it."""
        if kind == "ask":
            self.answer(self.ask(dice), dice)
        elif kind == "compact":
            self.compact(dice)
        else:
            what, _, order = kind.partition(" ")
            chat = self.ask(dice) if order == "after" else None
            side = self.beside(SHAPES[what], dice)
            if order == "before" and side and dice.random() < 0.3:
                side.abandoned = True
            chat = self.ask(dice) if order == "before" else chat
            if chat and dice.random() < 0.5:
                self.answer(chat, dice)
                chat = None
            if side:
                self.over(side, dice)
            if chat:
                self.answer(chat, dice)

    def ask(self, dice: Random) -> Pending:
        body, meant = self.chat.next(dice)
        pending = self.session.begin(body, client=CHAT)
        assert pending, "it waits for a side request"
        assert plainly(sent_to(pending)) == plainly(meant), pending.plan.reason
        assert not pending.plan.side, pending.plan.reason
        return pending

    def answer(self, pending: Pending, dice: Random) -> None:
        message = self.chat.words.reply(dice, self.chat.tools)
        if dice.random() < 0.1:
            self.session.end(pending, Answer(None))
            self.chat.failed = True
            return
        self.session.end(pending, answered(message, dice))
        self.chat.hears(message)
        self.path = self.chat.path
        self.check()

    def beside(self, shape: Callable[[Chat, Random], Side | None], dice: Random) -> Pending | None:
        side = shape(self.chat, dice)
        if side is None:
            return None
        pending = self.session.begin(side.body, client=CHAT)
        assert pending, "a side request waits"
        assert plainly(sent_to(pending)) == plainly(side.messages), pending.plan.reason
        assert pending.plan.side or side.what == "title", pending.plan.reason
        self.side_requests[pending] = side
        return pending

    def over(self, pending: Pending, dice: Random) -> str | None:
        """The end of a side request, and what it said."""
        side = self.side_requests.pop(pending)
        if side.tools and side.what == "whole" and dice.random() < 0.3:
            return self.loop(side, pending, dice)
        text: str = self.chat.words.statement()
        failed = dice.random() < 0.1
        self.session.end(pending, Answer(None) if failed else answered(assistant(text), dice))
        self.check()
        return None if failed else text

    def loop(self, side: Side, pending: Pending, dice: Random) -> str | None:
        """A side request that calls a tool, and goes on with what the tool found."""
        call = self.chat.words.call()
        calls: Json = {"role": "assistant", "content": None, "tool_calls": [call]}
        self.session.end(pending, answered(calls, dice))
        self.check()
        found = {"role": "tool", "tool_call_id": call["id"], "content": self.chat.words.statement()}
        more = Side("loop", [*side.messages, calls, found], side.tools, side.stream)
        again = self.beside(lambda chat, dice: more, dice)
        return self.over(again, dice) if again else None

    def compact(self, dice: Random) -> None:
        """A summary, and then a list of the chat's with it."""
        chat = self.chat
        if chat.style != "compact" or not chat.resent or len(replies_in(chat.talk)) < 2:
            return
        side = self.beside(dice.choice([about, whole]), dice)
        if side and (summary := self.over(side, dice)):
            chat.compacted(summary, dice)
            self.answer(self.ask(dice), dice)

    def check(self) -> None:
        """The history is what was said in the chat."""
        if self.path:  # a title may stand there until the chat has come
            assert plainly(line_of(self.session)) == plainly(self.path)


ORDERS = [f"{shape} {order}".strip() for shape in SHAPES for order in ("", "before", "after")]
KINDS = ("ask", "ask", "ask", "ask", "ask", "compact", "compact", *ORDERS)

# Not fewer in the gate, more where the profile asks for more.
EXAMPLES = max(2_500, settings.get_profile(settings.get_current_profile_name()).max_examples)

Step = tuple[str, int]
steps = st.tuples(st.sampled_from(KINDS), st.integers(0, 2**32))


def run(style: str, seed: int, program: list[Step]) -> None:
    talk = Run(Random(seed), style)
    for kind, each in program:
        talk.step(kind, Random(each))


@settings(max_examples=EXAMPLES)
@given(st.sampled_from(STYLES), st.integers(0, 2**32), st.lists(steps, min_size=3, max_size=14))
def test_a_side_request_is_none_of_the_chat(style: str, seed: int, program: list[Step]) -> None:
    run(style, seed, program)
