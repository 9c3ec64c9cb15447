"""A session never breaks: whatever was said, cut, left open or sent elsewhere, the next request is accepted.

Random programs of turns against a validator as strict as the strictest upstream of each profile
(`tests/support/strict.py`). The client is a careless one, but what is wrong with its messages for themselves
it does not send: no result of a call that it left out itself, no member that its upstream refuses.
"""

from __future__ import annotations

import re
from collections import Counter
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.core.json_bytes import dumps, loads
from proxy.core.plan import Decision
from proxy.dialects.chat.profiles import PROFILES
from proxy.errors import BadRequest
from tests.support import strict
from tests.support.conversation import Answer, Session

Json = dict[str, Any]

MODELS = ("gpt-5", "anthropic/claude-sonnet-4.5", "gemini-3-flash", "deepseek-chat", "qwen3")
MARK = {"type": "ephemeral"}


class Upstream:
    """What comes back, in every form that upstreams have been seen to use. `reasons`: each reply is reasoned, as
    one string, and the upstream wants it back beside calls."""

    def __init__(self, reasons: bool) -> None:
        self.reasons = reasons
        self.said = 0

    def answer(self, dice: Random) -> Answer:
        end = dice.choices(["complete", "unheard", "cut", "failed"], [12, 1, 3, 1])[0]
        if end == "failed":
            return Answer(None)
        self.said += 1
        message = {"role": "assistant", "content": self.content(dice)} | self.thoughts(dice)
        calls = self.calls(dice) if dice.random() < 0.45 else []
        if calls:
            message["tool_calls"] = calls
        finish = dice.choice(["tool_calls", "stop", "stop", "length"]) if calls else dice.choice(["stop", "length"])
        if end == "cut":
            return Answer(torn(message, dice), dice.choice([None, None, finish]), clean=False, streamed=True)
        return Answer(
            message | self.fillers(dice, message), finish, heard=end != "unheard", streamed=dice.random() < 0.5
        )

    def content(self, dice: Random) -> Any:
        text = {"type": "text", "text": f"Answer {self.said}."}
        thinking = {"type": "thinking", "thinking": [{"type": "text", "text": "so"}]}
        kinds = [text["text"]] * 6 + ["", None, [text], [thinking, text], [{"type": "reasoning", "summary": []}, text]]
        return dice.choice(kinds)

    def thoughts(self, dice: Random) -> Json:
        if self.reasons:
            return {"reasoning_content": dice.choice(["so", ""])}
        detail: Json = dice.choice(
            [
                {"type": "reasoning.text", "text": f"so {self.said}", "signature": f"sig {self.said}"},
                {"type": "reasoning.text", "text": f"so {self.said}", "format": "anthropic-claude-v1"},
                {"type": "reasoning.encrypted", "data": f"data {self.said}", "id": f"rs_{self.said}"},
                {"type": "reasoning.summary", "summary": f"so {self.said}"},
            ]
        )
        return dice.choice(
            [
                {},
                {},
                {"reasoning_content": "so"},
                {"reasoning": "so"},
                {"reasoning": "so", "reasoning_details": [detail]},
                {"reasoning": None, "reasoning_details": []},
                {"thinking_blocks": [{"type": "thinking", "thinking": "so", "signature": "sig"}]},
                {"extra_content": {"google": {"thought_signature": "sig"}}},
            ]
        )

    def calls(self, dice: Random) -> list[Json]:
        kind = dice.choice(["long", "long", "none", "short", "too long", "again", "twice"])
        return [
            {
                "id": {
                    "long": f"call_{self.said}_{n}_{'x' * 20}",
                    "none": "",
                    "short": f"{self.said:04}{n:05}",
                    "too long": f"{self.said}-{n}-{'y' * 60}",
                    "again": f"functions.f:{n}",
                    "twice": f"f{self.said}",
                }[kind],
                "type": "function",
                "function": {"name": "f", "arguments": dice.choice(['{"a":1}', "{}", '{"a": [1, "x"]}'])},
                **({"extra_content": {"google": {"thought_signature": "sig"}}} if kind == "none" else {}),
            }
            for n in range(dice.choice([1, 1, 2, 3]))
        ]

    def fillers(self, dice: Random, message: Json) -> Json:
        empty: Json = {"refusal": None, "annotations": [], "audio": None, "function_call": None, "tool_calls": None}
        return {name: value for name, value in empty.items() if name not in message and dice.random() < 0.15}


def torn(message: Json, dice: Random) -> Json:
    """A message as far as it came."""
    if calls := message.get("tool_calls"):
        function = calls[-1]["function"]
        size = dice.randint(0, len(function["arguments"]))
        cut = calls[-1] | {"function": function | {"arguments": function["arguments"][:size]}}
        return message | {"tool_calls": [*calls[:-1], cut]}
    text = message["content"] if isinstance(message["content"], str) else ""
    return message | {"content": text[: dice.randint(0, len(text))]}


class Client:
    """Sends what is new, or all it has seen, as `style` says."""

    def __init__(self, reasons: bool) -> None:
        self.reasons = reasons
        self.view: list[Json] = []
        self.seen = 0  # what of the view stood there before the last request
        self.late: list[Json] = []  # results that have not been sent
        self.waiting: list[Json] = []  # results of the last reply's calls
        self.named: set[str] = set()
        self.lists = False  # it has sent a list, and an append under another system prompt were an aside
        self.system: list[Json] = []
        self.asked = 0

    def next(self, dice: Random, style: str, profile: str) -> list[Json]:
        view = self.kept(dice) if style == "list" else self.view
        self.seen = len(view)
        self.view = called([*view, *self.new(dice, profile)])
        if not (new := self.view[len(view) :]):
            self.view += (new := self.question(dice, profile))
        if style == "append":
            head = self.new_system(dice, profile) if not self.lists and dice.random() < 0.2 else []
            return [*head, *[marked(each) if each["role"] == "user" and dice.random() < 0.1 else each for each in new]]
        self.lists = True
        if dice.random() < 0.2:
            self.system = self.new_system(dice, profile)
        listed = [each | {"role": "system"} for each in self.system] + [
            echoed(each, dice, profile, self.reasons) for each in self.view
        ]
        places = [
            n for n, each in enumerate(listed) if each["role"] != "assistant" or profile in ("echo", "openrouter")
        ]
        for place in dice.sample(places, dice.randint(0, min(strict.MARKS, len(places)))):
            listed[place] = marked(listed[place])
        return listed

    def new(self, dice: Random, profile: str) -> list[Json]:
        results, self.waiting = self.waiting, []
        way = dice.choice(["all", "all", "all", "part", "and more", "none"]) if results else "none"
        if way == "part":
            dice.shuffle(results)
        sent = results[: {"all": 3, "and more": 3, "part": dice.randint(1, 3), "none": 0}[way]]
        self.late += [each for each in results[len(sent) :] if each["tool_call_id"] in self.named]
        if way in ("all", "part"):
            return sent
        late = self.late if dice.random() < 0.4 else []
        self.late = self.late[len(late) :]
        return [*sent, *late, *self.question(dice, profile)]

    def question(self, dice: Random, profile: str) -> list[Json]:
        self.asked += 1
        text = f"Question {self.asked}?"
        image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
        content = dice.choice([text, text, [{"type": "text", "text": text}], [{"type": "text", "text": text}, image]])
        asked: list[Json] = [{"role": "user", "content": content}] * dice.choice([1, 1, 1, 2])
        if profile not in ("mistral", "perplexity") and dice.random() < 0.1:
            asked.append({"role": "assistant", "content": f"Well {self.asked},"})
        return asked

    def new_system(self, dice: Random, profile: str) -> list[Json]:
        roles = ["system", "developer"] if profile in strict.DEVELOPER else ["system"]
        return [{"role": dice.choice(roles), "content": f"S{dice.randint(1, 3)}"} for _ in range(dice.randint(1, 2))]

    def kept(self, dice: Random) -> list[Json]:
        """What it has seen; now and then cut in front, or taken back to before a question. A reply stays: without
        one, and under another system prompt, a list is something aside."""
        way = dice.random()
        replies = [n for n, message in enumerate(self.view) if is_reply(message)]
        questions = [n for n, message in enumerate(self.view) if message["role"] == "user" and replies]
        ends, starts = [n for n in questions if n > replies[0]], [n for n in questions if n < replies[-1]]
        if (ends and way < 0.1) or (starts and way > 0.9):
            self.late, self.waiting = [], []
            return self.view[: dice.choice(ends)] if way < 0.1 else called(self.view[dice.choice(starts) :])
        return self.view

    def hears(self, answer: Answer, dice: Random) -> None:
        message = answer.message
        if message is None or not answer.heard:
            return
        if not answer.clean:
            if isinstance(message["content"], str) and message["content"] and dice.random() < 0.5:
                self.view.append({"role": "assistant", "content": message["content"]})
            return
        calls = message.get("tool_calls") or []
        if not calls and not message["content"]:
            self.view = self.view[: self.seen]  # as if it had not asked
            return
        self.view.append(message)
        self.waiting = [self.result(call, dice) for call in calls]
        self.named = {call["id"] for call in calls} - {""}

    def result(self, call: Json, dice: Random) -> Json:
        """Some clients give a call without an ID one of their own."""
        self.asked += 1
        id = call["id"] or dice.choice(["", f"mine_{self.asked}"])
        return {"role": "tool", "tool_call_id": id, "content": f"Result {self.asked}."}


def called(listed: list[Json]) -> list[Json]:
    """Without results of calls that stand no more in the list."""
    kept: list[Json] = []
    open: list[str] = []
    for message in listed:
        open += [call["id"] for call in message.get("tool_calls") or []]
        if message["role"] != "tool":
            kept.append(message)
        elif (id := message["tool_call_id"]) in open or ("" in open and id.startswith("mine")):
            open.remove(id if id in open else "")
            kept.append(message)
    return kept


def is_reply(message: Json) -> bool:
    return message["role"] == "assistant" and not str(message["content"]).startswith("Well")


def echoed(message: Json, dice: Random, profile: str, reasons: bool) -> Json:
    """A message as a client sends it back: as it came, where its upstream takes that, or what it knows of it."""
    if message["role"] != "assistant" or (dice.random() < 0.5 and not strict.message_problems(message, profile)):
        return message
    content = message["content"]
    if isinstance(content, list):
        content = "".join([part.get("text", "") for part in content])
    known = {"role": "assistant", "content": content}
    if calls := message.get("tool_calls"):
        known["tool_calls"] = [{name: call[name] for name in ("id", "type", "function")} for call in calls]
    if reasons and "reasoning_content" in message:
        known["reasoning_content"] = message["reasoning_content"]
    return known


def marked(message: Json) -> Json:
    content = message["content"]
    if isinstance(content, list):
        return message | {"content": [*content[:-1], content[-1] | {"cache_control": MARK}]}
    return message | {"cache_control": MARK}


def run(program: list[int], limit: int | None = None, summary: bytes | None = None) -> None:
    first = Random(program[0])
    reasons = first.random() < 0.15
    profile = first.choice(["deepseek", "moonshot"] if reasons else sorted(PROFILES))
    model = first.choice(MODELS)
    styles = first.choice([["append"], ["list"], ["append", "list"]])
    session, client, upstream = Session(limit, summary), Client(reasons), Upstream(reasons)
    for seed in program:
        dice = Random(seed)
        if not reasons and dice.random() < 0.25:
            profile = dice.choice(sorted(PROFILES))
        if not reasons and dice.random() < 0.2:
            model = dice.choice(MODELS)
        style = dice.choice(styles)
        body = dumps({"model": model, "messages": client.next(dice, style, profile)})
        for again in (False, True):
            answer = upstream.answer(dice)
            try:
                posted = session.post(body, answer, profile=profile, counted=again)
            except BadRequest as refused:  # the call had no ID, and has left
                assert limit and ("call ''" in refused.message or "call 'mine" in refused.message)
                return
            assert posted.plan.decision is Decision.ASIDE or not strict.problems(posted.body, profile, reasons)
            if (answer.message is not None and answer.clean and answer.heard) or dice.random() < 0.5:
                break
        client.hears(answer, dice)


# Not fewer in the gate, more where the profile asks for more.
EXAMPLES = max(10_000, settings.get_profile(settings.get_current_profile_name()).max_examples)


@settings(max_examples=EXAMPLES)
@given(st.lists(st.integers(0, 2**32), min_size=3, max_size=8))
def test_every_request_is_accepted(program: list[int]) -> None:
    run(program)


SUMMARY = b'{"role":"user","content":"Summary of earlier messages:\\n\\nAnn lives in Rome."}'
TEMPLATE = "llamacpp"  # roles alternate, a user's comes first, one system block


@settings(max_examples=EXAMPLES // 4)
@given(st.lists(st.integers(0, 2**32), min_size=6, max_size=16), st.integers(1, 12), st.sampled_from([None, SUMMARY]))
def test_every_request_of_a_window_is_accepted(program: list[int], limit: int, summary: bytes | None) -> None:
    run(program, limit, summary)


def test_every_request_with_a_summary_is_accepted_where_it_was_without(capsys: pytest.CaptureFixture[str]) -> None:
    """By an upstream that nobody told us how strict it is."""
    summarized = []

    @settings(max_examples=EXAMPLES // 4)
    @given(st.lists(st.integers(0, 2**32), min_size=5, max_size=10), st.integers(1, 12))
    def told(program: list[int], limit: int) -> None:
        summarized.append(run_strictly(program, limit))

    told()
    with capsys.disabled():
        print(f"\n{len(summarized)} programs, {sum(summarized)} requests with a summary", end="")
    assert len(summarized) >= EXAMPLES // 4
    assert sum(summarized) > EXAMPLES // 4


def run_strictly(program: list[int], limit: int) -> int:
    """How many requests had a summary in front."""
    session, client, upstream = Session(limit, SUMMARY), Client(False), Upstream(False)
    summarized = 0
    for seed in program:
        dice = Random(seed)
        body = dumps({"model": "m", "messages": client.next(dice, dice.choice(["append", "append", "list"]), "auto")})
        answer = upstream.answer(dice)
        try:
            posted = session.post(body, answer, profile="auto")
        except BadRequest:
            return summarized
        if posted.body != posted.bare:
            summarized += 1
            messages = loads(posted.body)["messages"]
            assert next(each["role"] for each in messages if each["role"] not in ("system", "developer")) == "user"
            assert faults(posted.body) <= faults(posted.bare), (faults(posted.body) - faults(posted.bare), posted)
        client.hears(answer, dice)
    return summarized


def faults(body: bytes) -> Counter[str]:
    """What the strictest upstream would say, wherever it says it of."""
    return Counter([re.sub(r"^(\[[\d, ]*\]|\d+): ", "", each) for each in strict.problems(body, TEMPLATE)])


def call(*ids: str, arguments: str = "{}") -> Json:
    function = {"name": "f", "arguments": arguments}
    calls = [{"id": id, "type": "function", "function": function} for id in ids]
    return {"role": "assistant", "content": None, "tool_calls": calls}


def result(id: str) -> Json:
    return {"role": "tool", "tool_call_id": id, "content": "r"}


ASKS = {"role": "user", "content": "q"}
SAYS = {"role": "assistant", "content": "a"}
OPENS = {"role": "assistant", "content": "Well,", "prefix": True}
# By what is told: the profiles, and what is sent and what comes back in turn, by a client that sends what is new.
STORIES: dict[str, tuple[list[str], list[tuple[list[Json], Json]]]] = {
    "the results of two calls, one request each": (
        ["openai", "mistral", "perplexity"],
        [([ASKS], call("aaaaaaaaa", "bbbbbbbbb")), ([result("aaaaaaaaa")], SAYS), ([result("bbbbbbbbb")], SAYS)],
    ),
    "a late result of a call without an ID": (
        ["gemini"],
        [([ASKS], call("")), ([ASKS], SAYS), ([result(""), ASKS], SAYS)],
    ),
    "a late result, under an ID of the client's, of a call without one": (
        ["gemini"],
        [([ASKS], call("")), ([ASKS], SAYS), ([result("mine"), ASKS], SAYS)],
    ),
    "arguments that the model got wrong": (
        ["gemini", "openrouter", "databricks", "vercel", "openai"],
        [([ASKS], call("a", arguments='{"a')), ([result("a")], SAYS)],
    ),
    "a prefix that was continued": (
        ["deepseek", "deepseek-r1", "mistral"],
        [([ASKS, OPENS], SAYS), ([ASKS], SAYS)],
    ),
}


@pytest.mark.parametrize(("story", "profile"), [(story, each) for story in STORIES for each in STORIES[story][0]])
def test_what_the_programs_do_not_tell(story: str, profile: str) -> None:
    session = Session()
    for messages, reply in STORIES[story][1]:
        posted = session.post(dumps({"messages": messages}), Answer(reply), profile=profile)
        assert not strict.problems(posted.body, profile)
