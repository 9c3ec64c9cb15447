"""A client that sends new messages only is never mistaken for what is asked beside a chat.

Such clients change their system prompt (one for each task, one with a clock, one that is sent once), bring examples
along, paste earlier answers, send one message under another prompt, name their tools in the first request only, switch
the stream on and off. The upstream always receives the whole history and what is new. Only two marks at once make a
side request of a message (no tools where the latest turn had some, and either a quote of a reply beside the user's own
words, or a quote of either and no stream where that turn was streamed), and these programs leave those two out.
"""

from __future__ import annotations

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.core.plan import Decision
from tests.support.conversation import Answer, Posted, Session
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

SCRIPT, AGENT = software("script/1.0"), software("agent/2.0")


class Script:
    """The client. `said` is what was said in the session, and what the upstream is to have in front of anything new."""

    def __init__(self, dice: Random) -> None:
        self.session, self.words = Session(), Words()
        self.said: list[Json] = []
        self.in_force: str | None = None
        self.prompt = dice.choice(["none", "once", "each", "clock", "task", "any"])
        self.tools = dice.choice(["none", "none", "first", "each", "any"])
        self.stream = dice.choice(["none", "each", "any"])
        self.size = dice.choice([1, 4])
        self.examples: list[Json] = []
        if dice.random() < 0.2:
            self.examples = [user(self.words.question()), assistant(self.words.statement())]
        self.asked = 0
        self.had_tools = self.was_streamed = False
        self.agent: Agent | None = None

    # How a request is asked

    def head(self, dice: Random) -> str | None:
        first = not self.asked
        task = f"You are good at task {self.words.instruction()}"
        return {
            "none": None,
            "once": "You help with plans, briefly." if first else None,
            "each": "You help with plans, briefly.",
            "clock": f"You help with plans. It is {self.asked + 10}:{dice.randint(10, 59)} now, on a day in May.",
            "task": task,
            "any": dice.choice([None, "You help with plans, briefly.", task]),
        }[self.prompt]

    def shape(self, dice: Random) -> tuple[int, bool | None]:
        tools = {"none": 0, "first": 0 if self.asked else 3, "each": 3, "any": dice.choice([0, 3])}[self.tools]
        return tools, {"none": None, "each": True, "any": dice.choice([None, False, True])}[self.stream]

    # What it says

    def says(self, dice: Random, tools: int, stream: bool | None) -> list[Json]:
        last = self.said[-1] if self.said else {}
        if last.get("tool_calls"):
            return self.words.said_next(self.said, dice)
        told = dice.choice([self._new, self._new, self._pasted, self._quoted, self._quoted_beside, self._again])
        told = self._new if self.examples and not self.said else told
        texts = told(dice)
        if self.had_tools and not tools and self.is_marked(texts, self.was_streamed and stream is not True):
            texts = self._new(dice)
        return [user(text) for text in texts]

    def is_marked(self, texts: list[str], unstreamed: bool) -> bool:
        """Whether texts without the chat's tools show another mark of a side request."""
        quotes = [text for text in texts if any([one in text and one != text for one in replies_in(self.said)])]
        own = any([one in text and one != text for one in questions_in(self.said) for text in texts])
        return (bool(quotes) and (unstreamed or own)) or (unstreamed and own)

    def _new(self, dice: Random) -> list[str]:
        if self.examples and not self.said:
            return [self.words.question()]  # of two, nobody knows the first from an example
        return [self.words.question() for _ in range(dice.choice([1, 1, 1, 2]))]

    def _pasted(self, dice: Random) -> list[str]:
        """An earlier answer, whole."""
        return [dice.choice(replies_in(self.said) or ["hi"])]

    def _quoted(self, dice: Random) -> list[str]:
        """An earlier answer within a question."""
        return [f"You wrote:\n> {dice.choice(replies_in(self.said) or ['hi'])}\n{self.words.question()}"]

    def _quoted_beside(self, dice: Random) -> list[str]:
        """An earlier answer and the question that it was given to."""
        question, reply = dice.choice(questions_in(self.said) or ["hi"]), dice.choice(replies_in(self.said) or ["hi"])
        return [f"I asked: {question}\nYou wrote: {reply}\n{self.words.question()}"]

    def _again(self, dice: Random) -> list[str]:
        """The same words as before, or some that everybody says."""
        return [dice.choice([*questions_in(self.said)[-1:], "hi", "yes", "continue"])]

    # One request

    def ask(self, dice: Random) -> None:
        tools, stream = self.shape(dice)
        news, head = self.says(dice, tools, stream), self.head(dice)
        in_force = self.in_force if head is None else head
        listed = [*self.examples, *news] if self.said[:2] == self.examples and self.examples else news
        if not self.said:
            listed = [*self.examples, *news]
        brought = [] if self.said else self.examples
        meant = [*system(in_force), *self.said, *brought, *news]
        posted = self.posted(body_of([*system(head), *listed], tools, stream), meant, tools, dice, SCRIPT)
        if posted:
            self.said = [*self.said, *brought, *news, posted]
            self.in_force = in_force
            self.asked, self.had_tools, self.was_streamed = self.asked + 1, tools > 0, stream is True

    def posted(self, body: bytes, meant: list[Json], tools: int, dice: Random, client: bytes) -> Json | None:
        failed = dice.random() < 0.1
        reply = self.words.reply(dice, tools)
        posted = self.session.post(body, Answer(None) if failed else answered(reply, dice), client=client)
        assert posted.plan.decision is not Decision.ASIDE, posted.plan.reason
        assert plainly(sent_to(posted)) == plainly(meant), posted.plan.reason
        if failed:
            return None
        assert plainly(line_of(self.session))[-1:] == plainly([reply])
        return reply


class Agent:
    """Other software in the same session, that carries its own list and never sees what the script says."""

    def __init__(self, dice: Random, script: Script) -> None:
        self._script, self.list = script, list[Json]()
        self._prompt = dice.choice([None, "You find facts."])
        self._tools = dice.choice([0, 2])

    def ask(self, dice: Random) -> None:
        """One turn, and the steps of it that its tools take."""
        script = self._script
        while True:
            news = script.words.said_next(self.list, dice)
            body = body_of([*system(self._prompt), *self.list, *news], self._tools, True)
            reply = script.words.reply(dice, self._tools)
            posted = script.session.post(body, answered(reply, dice), client=AGENT)
            self._check(posted, news)
            self.list = [*self.list, *news, reply]
            script.said = [*script.said, *news, reply]
            script.in_force = self._prompt if self._prompt or not posted.plan.injected else script.in_force
            if "tool_calls" not in reply:
                return

    def _check(self, posted: Posted, news: list[Json]) -> None:
        """Its list, or that behind what was said before it: a first list behind others' looks like a new message."""
        sent = plainly(sent_to(posted))[1 if self._prompt or posted.plan.system else 0 :]
        own, every = plainly([*self.list, *news]), plainly([*self._script.said, *news])
        assert sent[len(sent) - len(own) :] == own, posted.plan.reason
        assert sent[: len(sent) - len(own)] == every[: len(sent) - len(own)], posted.plan.reason


# Not fewer in the gate, more where the profile asks for more.
IN_THE_GATE = 1_000
EXAMPLES = max(IN_THE_GATE, min(settings.get_profile(settings.get_current_profile_name()).max_examples, 5_000))

STEPS = ("script", "script", "script", "agent")


def sample(dice: Random) -> tuple[int, list[tuple[str, int]]]:
    return dice.randrange(2**32), [(dice.choice(STEPS), dice.randrange(2**32)) for _ in range(dice.randint(2, 10))]


def run(seed: int, program: list[tuple[str, int]]) -> None:
    script = Script(Random(seed))
    agent = Agent(Random(seed), script)
    for kind, each in program:
        dice = Random(each)
        if kind == "script":
            script.ask(dice)
        elif "tool_calls" not in (script.said or [{}])[-1]:
            agent.ask(dice)
        if script.said:
            assert plainly(line_of(script.session)) == plainly(script.said)


programs = st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 2**32)), min_size=2, max_size=12)


@settings(max_examples=EXAMPLES)
@given(st.integers(0, 2**32), programs)
def test_new_messages_are_no_side_request(seed: int, program: list[tuple[str, int]]) -> None:
    run(seed, program)


@settings(max_examples=EXAMPLES)
@given(st.integers(0, 2**32), programs.map(lambda steps: [("script", seed) for _, seed in steps]))
def test_new_messages_of_one_client_are_no_side_request(seed: int, program: list[tuple[str, int]]) -> None:
    run(seed, program)
