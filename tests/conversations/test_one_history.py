"""One history, whoever sends it: any mixture of the ways in which clients send a conversation ends in the truth.

Every message carries a number of its own (`#17`), so that the truth is a list of numbers: what a person in
front of the client would say was said. Its first exchange is not edited, for then nothing tells an edit
from a new conversation.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.core.history import Entry
from proxy.core.json_bytes import dumps
from proxy.core.model import Turn
from proxy.core.plan import Decision, Mode
from proxy.dialects.chat import fingerprints
from tests.support.conversation import Answer, Posted, Session

Json = dict[str, Any]

NUMBER = re.compile(r"#(\d+)")
SYSTEM = ("system", "developer")
MARK = {"type": "ephemeral"}


def numbers(raw: bytes) -> list[int]:
    return [int(number) for number in NUMBER.findall(raw.decode())]


def plain(message: Json) -> Json:
    """A message without its cache marks, a single text as a string."""
    message = json.loads(json.dumps(message), object_hook=lambda each: (each.pop("cache_control", 0) and each) or each)
    content = message.get("content")
    if isinstance(content, list) and len(content) == 1 and message["role"] != "assistant":
        message["content"] = content[0]["text"]
    return message


# How clients disturb what they send again ---------------------------------------------------


def as_one_part(message: Json) -> Json:
    if not message["content"] or not isinstance(message["content"], str):
        return message
    return message | {"content": [{"type": "text", "text": message["content"]}]}


def without_reasoning(message: Json) -> Json:
    return {name: value for name, value in message.items() if name != "reasoning_content"}


def calls_anew(message: Json) -> Json:
    """Arguments parsed and printed again, an index stamp."""
    calls = []
    for n, call in enumerate(message.get("tool_calls") or []):
        arguments = json.dumps(json.loads(call["function"]["arguments"]), indent=1)
        calls.append(call | {"index": n, "function": call["function"] | {"arguments": arguments}})
    return message | {"tool_calls": calls} if calls else message


def spaced(message: Json) -> Json:
    return message | {"content": f"\n {message['content']} "} if isinstance(message["content"], str) else message


def with_fillers(message: Json) -> Json:
    return {"refusal": None, "annotations": [], **message} if message["role"] == "assistant" else message


def cached(message: Json) -> Json:
    return message | {"cache_control": MARK}


def reordered(message: Json) -> Json:
    return {name: message[name] for name in reversed(message)}


HABITS: list[Callable[[Json], Json]] = [
    spaced, as_one_part, without_reasoning, calls_anew, with_fillers, cached, reordered,
]  # fmt: skip


# What they send -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Request:
    """A request, and what a person expects of it: the messages in front of the reply, the new ones among them,
    the system prompt in force, whether the client is one that resends from now on."""

    kind: str
    body: bytes
    expected: list[int]
    fresh: list[int]
    system: str | None
    resends: bool
    mode: Mode = Mode.AUTO
    aside: bool = False


class Talk:
    """A session, and beside it the truth."""

    def __init__(self) -> None:
        self.session = Session()
        self.messages: dict[int, Json] = {}  # as they were first said
        self.truth: list[int] = []
        self.past: list[list[int]] = []  # what was the truth until its last message was taken back
        self.firsts: set[int] = set()  # with which a branch begins; a list that begins so is no window
        self.ours: set[int] = set()
        self.others: set[int] = set()  # said alone behind a list: by another client, which no list takes back
        self.system: str | None = None
        self.resends = False
        self.last: Request | None = None  # not an aside, which nobody tries again here
        self.kept: Request | None = None  # the last that was recorded
        self.heard = False  # an answer to it was kept, and heard to its end

    def new(self, role: str, **more: Any) -> int:
        number = len(self.messages) + 1
        self.messages[number] = {"role": role, "content": f"{role} #{number}", **more}
        return number

    @property
    def lines(self) -> list[list[int]]:
        return [self.truth, *self.past]

    @property
    def branch(self) -> list[Turn]:
        return self.session.history.ancestors(self.session.history.tip)

    @property
    def prompts(self) -> set[str | None]:
        """The system prompts that the turns of this branch were asked under, and none."""
        return {None, *[content_of(turn.system) for turn in self.branch if turn.system]}

    # New messages

    def fresh(self, behind: list[int], dice: Random) -> list[int]:
        """What a client says behind those messages: results of the calls that wait, or something new."""
        results = [self.new("tool", tool_call_id=id) for id in self.waiting(behind)]
        if results and dice.random() < 0.8:
            return results if dice.random() < 0.7 else [*results, self.new("user")]
        return [self.new("user"), *[self.new(role) for role in dice.choice([(), (), (), ("user",), BEHIND, PREFILL])]]

    def waiting(self, behind: list[int]) -> list[str]:
        answered: list[str] = []
        for number in reversed(behind):
            message = self.messages[number]
            if message["role"] != "tool":
                return [call["id"] for call in message.get("tool_calls", []) if call["id"] not in answered]
            answered.append(message["tool_call_id"])
        return []

    def answer(self, dice: Random, cut: bool) -> tuple[int, Json]:
        number = self.new("assistant")
        message = self.messages[number]
        if dice.random() < 0.3:
            message["reasoning_content"] = "so ..."
        if dice.random() < 0.3 and not cut:
            message["tool_calls"] = [call(number, n) for n in range(dice.randint(1, 3))]
            message["content"] = dice.choice([message["content"], None])
        return number, message

    # Requests

    def floor(self) -> int:
        """Behind the first exchange: what stands from here on may be edited."""
        return next((n + 1 for n, number in enumerate(self.truth) if number in self.ours), 0)

    def body(self, which: list[int], system: str | None, dice: Random) -> bytes:
        known = {number for line in self.lines for number in line}
        listed = [self.disturbed(number, dice) if number in known else self.messages[number] for number in which]
        if dice.random() < 0.3:
            self.join_prefills(listed, which)
        head = [{"role": dice.choice(["system", "developer"]), "content": system}] if system is not None else []
        return dumps({"model": "m", "messages": head + [each for each in listed if each]})

    def disturbed(self, number: int, dice: Random) -> Json:
        message = self.messages[number]
        for habit in HABITS:
            if dice.random() < 0.2:
                message = habit(message)
        return message

    def join_prefills(self, listed: list[Json], which: list[int]) -> None:
        """Some clients show a prefill and the reply that went on from it as one message, and send it so."""
        for n in range(1, len(which) - 1):
            first, second = self.messages[which[n]], self.messages[which[n + 1]]
            prefilled = first["role"] == "assistant" and which[n] not in self.ours and which[n + 1] in self.ours
            untouched = any(which[: n + 2] == line[at : at + n + 2] for line in self.lines for at in range(len(line)))
            if prefilled and untouched and second["content"] and "tool_calls" not in first:
                listed[n], listed[n + 1] = {}, {**second, "content": first["content"] + second["content"]}

    def request(self, kind: str, dice: Random) -> Request | None:
        """The next request of that kind; None where this conversation offers none."""
        request: Request | None = getattr(self, f"_{kind}")(dice)
        return request

    def _append(self, dice: Random) -> Request:
        fresh = self.fresh(self.truth, dice)
        system = self.own_system(dice)
        mode = dice.choice([Mode.AUTO, Mode.AUTO, Mode.APPEND])
        aside = bool(self.truth) and mode is Mode.AUTO and self.resends and system not in self.prompts
        in_force = self.system if system is None else system
        body = self.body(fresh, system, dice)
        return Request("append", body, [*self.truth, *fresh], fresh, in_force, False, mode, aside)

    def _adopt(self, dice: Random) -> Request | None:
        if self.truth:
            return None
        brought = [self.new(role) for role in ["user", "assistant"] * dice.randint(1, 2)]
        fresh = [*brought, *self.fresh(brought, dice)]
        system = self.own_system(dice)
        return Request("adopt", self.body(fresh, system, dice), fresh, fresh, system, False)

    def _resend(self, dice: Random) -> Request | None:
        return self.listed(self.truth, self.truth, self.fresh(self.truth, dice), dice)

    def _undo(self, dice: Random) -> Request | None:
        kept = self.truth[: dice.randint(self.floor(), len(self.truth))]
        return self.listed(self.truth, kept, self.fresh(kept, dice), dice)

    def _regenerate(self, dice: Random) -> Request | None:
        ends = [n for n in range(self.floor() + 1, len(self.truth)) if self.truth[n] in self.ours]
        return self.listed(self.truth, self.truth[: dice.choice(ends)], [], dice) if ends else None

    def _edit(self, dice: Random) -> Request | None:
        """One message says something else; the others stay as they are."""
        if self.floor() == len(self.truth):
            return None
        place = dice.randrange(self.floor(), len(self.truth))
        old = self.messages[self.truth[place]]
        edited = self.new(old["role"], **{name: old[name] for name in old if name not in ("role", "content")})
        listed = [*self.truth[:place], edited, *self.truth[place + 1 :]]
        return self.listed(self.truth, listed, self.fresh(listed, dice), dice, [edited])

    def _delete(self, dice: Random) -> Request | None:
        places = [n for n in range(self.floor(), len(self.truth)) if "tool_calls" not in self.messages[self.truth[n]]]
        if not places:
            return None
        place = dice.choice(places)
        listed = [*self.truth[:place], *self.truth[place + 1 :]]
        return self.listed(self.truth, listed, self.fresh(listed, dice), dice)

    def _switch(self, dice: Random) -> Request | None:
        """Back to what was said on another branch."""
        if not self.past:
            return None
        line = dice.choice(self.past)
        return self.listed(line, line, self.fresh(line, dice), dice)

    def listed(
        self, line: list[int], kept: list[int], fresh: list[int], dice: Random, edited: list[int] | None = None
    ) -> Request | None:
        """A list from the start on."""
        if not self.ours.intersection(kept[: self.floor()] if line is self.truth else kept):
            return None
        if self.others.difference(kept).intersection(self.truth):
            return None
        system = self.own_system(dice)
        if kept != self.truth and system not in self.prompts:
            system = self.system  # else it may be said beside the chat
        mode = dice.choice([Mode.AUTO, Mode.AUTO, Mode.RESEND])
        body = self.body([*kept, *fresh], system, dice)
        return Request("listed", body, [*kept, *fresh], [*(edited or []), *fresh], system, True, mode)

    def _window(self, dice: Random) -> Request | None:
        return self.windowed(len(self.truth), dice)

    def _edit_in_window(self, dice: Random) -> Request | None:
        return self.windowed(dice.randint(0, len(self.truth)), dice)

    def windowed(self, stop: int, dice: Random) -> Request | None:
        """A list cut short in front. Who resends has cut it on purpose; else the rest is still meant."""
        if self.others.intersection(self.truth[stop:]):
            return None
        starts = [
            start
            for start in range(1, stop)
            if self.ours.intersection(self.truth[start:stop])
            and self.messages[self.truth[start]]["role"] in ("user", "assistant")
            and self.truth[start] not in self.firsts
        ]
        if not starts:
            return None
        start = dice.choice(starts)
        kept = self.truth[start:stop]
        fresh, system = self.fresh(kept, dice), self.own_system(dice)
        before = [] if self.resends else self.truth[:start]
        if before and system != content_of(self.branch[-1].system or None):
            system = None  # else what was asked under other prompts looks like side requests
        in_force = self.system if system is None and before else system
        expected = [*before, *kept, *fresh]
        return Request("window", self.body([*kept, *fresh], system, dice), expected, fresh, in_force, not before)

    def _retry(self, dice: Random) -> Request | None:
        """The same body once more, as a retry that says so, of a client that has not seen the answer."""
        return None if self.heard else self.last

    def _again(self, dice: Random) -> Request | None:
        """The same body once more. A client that has seen the answer asks for another one."""
        if self.last is None or not self.heard:
            return self._retry(dice)
        return replace(self.last, fresh=[]) if self.last.kind in ("listed", "window") else None

    def own_system(self, dice: Random) -> str | None:
        return dice.choice([None, self.system, self.system, f"S{dice.randint(1, 3)}"])

    # What becomes of them

    def send(self, request: Request, end: str, dice: Random, counted: bool = False) -> None:
        number, message = self.answer(dice, end == "cut")
        answer = Answer(
            message if end != "failed" else None,
            None if end == "cut" else "stop",
            clean=end != "cut",
            heard=end != "unheard",
            streamed=end == "cut" or dice.random() < 0.5,
        )
        before = {turn.id for turn in self.session.history.turns}
        again = self.last is not None and request.body == self.last.body
        # By chance a list equals that of the last turn, and a request between the two failed.
        known = [one for one in (self.last, self.kept) if one is not None and one.body == request.body]
        tried = {*request.fresh, *[number for one in known for number in one.fresh]} if known else None
        posted = self.session.post(request.body, answer, mode=request.mode, counted=counted)
        assert (posted.plan.decision is Decision.ASIDE) == request.aside, posted.plan.reason
        self.check_sent(request, posted)
        if request.aside:
            return
        if end == "failed":
            self.last, self.heard = (self.last, self.heard) if again else (request, False)
            return
        self.last, self.heard = request, end == "complete"
        self.kept = request
        truth = [*request.expected, number]
        if self.truth and self.truth[-1] not in truth:
            self.past.append(self.truth)
        elif truth[: len(self.truth)] != self.truth:
            self.past.clear()  # edited, and what followed was kept: nobody goes back to before that
        resent = any([turn.carries_history for turn in self.branch])
        if self.ours and ((request.kind == "append" and resent) or (request.kind == "window" and not request.resends)):
            self.others.update([*request.fresh, number])
        self.truth, self.system, self.resends = truth, request.system, request.resends
        self.ours.add(number)
        self.firsts.add(truth[0])
        if request.kind == "append" and resent:
            self.firsts.add(request.fresh[0])  # who carries its list and says one message alone begins another chat
        self.check_kept(request, posted, tried)
        assert before <= {turn.id for turn in self.session.history.turns}

    def check_sent(self, request: Request, posted: Posted) -> None:
        """The upstream saw the truth and what is new, each message once and as it was first said."""
        sent = [json.loads(raw) for raw in posted.messages]
        head = [
            each["content"] for each in sent if each["role"] in ("system", "developer") and "#" not in each["content"]
        ]
        if request.aside:
            assert posted.body == request.body
            return
        assert head == [request.system] * (request.system is not None)
        said = [each for each in sent[len(head) :] if each.get("content") != "No result."]
        assert [number for each in said for number in numbers(dumps(each))[:1]] == request.expected
        for number, each in zip(request.expected, said, strict=True):
            assert plain(each) == plain(self.messages[number])

    def check_kept(self, request: Request, posted: Posted, tried: set[int] | None) -> None:
        history = self.session.history
        assert [number for entry in history.path for number in numbers(entry.message.raw)[:1]] == self.truth
        assert [entry.ours for entry in history.path] == [number in self.ours for number in self.truth]
        assert content_of(history.system) == self.system
        assert history.resends == self.resends
        *stored, reply = [number for turn in posted.turns for number in stored_by(turn)]
        assert reply == self.truth[-1]
        assert stored == request.fresh or (tried is not None and set(stored) <= tried)
        for line in (history.path, *[line for _, line in history.other_paths]):
            assert is_once(line)


BEHIND = ("system",)  # a note behind the user's message
PREFILL = ("assistant",)


def call(number: int, n: int) -> Json:
    arguments = f'{{"city": "#{number}", "day": {n}.0}}'
    return {"id": f"call_{number}_{n}", "type": "function", "function": {"name": "f", "arguments": arguments}}


def content_of(system: bytes | None) -> str | None:
    return None if system is None else json.loads(system)["content"]


def stored_by(turn: Turn) -> list[int]:
    messages = [*turn.asked, *([turn.rendered] if turn.rendered else [])]
    return [number for message in messages for number in numbers(message.raw)[:1]]


def is_once(line: tuple[Entry, ...]) -> bool:
    texts, messages = (
        {fingerprints.fingerprint(entry.message.raw) for entry in line},
        {id(entry.message) for entry in line},
    )
    return len(texts) == len(messages) == len(line)


KINDS = (
    *("append", "append", "adopt", "resend", "resend", "undo", "regenerate", "edit", "delete", "switch"),
    *("window", "window", "edit_in_window", "again", "retry"),
)
ENDS = ("complete", "complete", "complete", "complete", "unheard", "cut", "failed")

# Not fewer in the gate, more where the profile asks for more.
EXAMPLES = max(2_500, settings.get_profile(settings.get_current_profile_name()).max_examples)

Step = tuple[str, str, int]
Program = list[Step]
steps = st.tuples(st.sampled_from(KINDS), st.sampled_from(ENDS), st.integers(0, 2**32))
programs = st.lists(steps, min_size=2, max_size=10)


def run(program: Program) -> None:
    talk = Talk()
    for kind, end, seed in program:
        dice = Random(seed)
        if request := talk.request(kind, dice):
            talk.send(request, end, dice, counted=kind == "retry")


@settings(max_examples=EXAMPLES)
@given(programs)
def test_the_tip_is_the_truth(program: Program) -> None:
    run(program)


# What a retry finds: the history as it was when the request came first, which is not always the parent's line.
RETRIES: dict[str, Program] = {
    "of a list that was adopted": [("adopt", "unheard", 0), ("retry", "complete", 0)],
    "of a window, when the system prompt of what it departs from is newer": [
        ("append", "complete", 0),
        ("append", "complete", 0),
        ("edit_in_window", "complete", 26),
        ("edit_in_window", "unheard", 5),
        ("retry", "complete", 0),
    ],
}


@pytest.mark.parametrize("program", RETRIES.values(), ids=RETRIES)
def test_a_retry_is_read_as_the_first_try_was(program: Program) -> None:
    run(program)


# A branch that agrees with a list for longer at its start is not the one to follow where the tip's holds more of it.
U1, A2, U3, A4, U5, A6, U7, A8, U9 = [
    {"role": "user" if number % 2 else "assistant", "content": f"#{number}"} for number in range(1, 10)
]
SILENT = Answer({"role": "assistant", "content": None})
Exchanges = list[tuple[list[Json], Answer, bool]]  # what is sent, what comes back, whether it says it is a retry
BRANCHES: dict[str, Exchanges] = {
    "a question whose second try said nothing": [
        ([U1], Answer(A2), False),
        ([U3], Answer(A4, heard=False), False),
        ([U3], SILENT, True),
        ([U5], Answer(A6), False),
        ([U1, A2, U3, U5, A6, U7], Answer(A8), False),
    ],
    "a window that begins where another branch does": [
        ([U1], Answer(A2), False),
        ([U1, A2, U3], Answer(A4), False),
        ([U3, A4, U5], Answer(A6), False),
        ([U1, A2, U3, A4, U7], Answer(A8), False),
        ([U3, A4, U7, A8, U9], Answer(A2), False),
    ],
}


@pytest.mark.parametrize("exchanges", BRANCHES.values(), ids=BRANCHES)
def test_a_reply_of_ours_is_known_on_the_branch_that_holds_it(exchanges: Exchanges) -> None:
    session = Session()
    for messages, answer, counted in exchanges:
        posted = session.post(dumps({"messages": messages}), answer, counted=counted)
    assert "assistant" not in [message.role for message in posted.plan.asked]
