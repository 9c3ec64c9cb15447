"""A session without sockets: what the relay and its turns do to a history, in the same order, as plain calls.

Pure. Knows no client: who sends what is the tests' affair.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, cast

from proxy.core.exchange import Dialect, Exchange, Outcome, Verdict
from proxy.core.history import History
from proxy.core.members import dumps, elements
from proxy.core.model import Ask, Turn, TurnState
from proxy.core.plan import Decision, Mode, Plan
from proxy.core.reconcile import decide, is_retry, retried
from proxy.dialects import chat, marks, sending
from proxy.dialects.turns import turns_of

Json = dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """What an upstream answers: a message, or None for an error. `clean`: the transfer ended as it should;
    `heard`: the client saw its end. A body that is not `streamed` cannot be cut: then nothing came."""

    message: Json | None
    finish_reason: str | None = "stop"
    clean: bool = True
    heard: bool = True
    streamed: bool = False

    @property
    def bytes(self) -> bytes:
        choice: Json = {"index": 0, "finish_reason": self.finish_reason}
        if not self.streamed:
            return dumps({"choices": [choice | {"message": self.message}]})
        delta = dict(self.message or {})
        if calls := delta.get("tool_calls"):
            delta["tool_calls"] = [{"index": n, **call} for n, call in enumerate(calls)]
        events = [dumps({"choices": [choice | {"delta": delta}]}), *([b"[DONE]"] if self.clean else [])]
        return b"".join([b"data: " + event + b"\n\n" for event in events])


@dataclass(frozen=True)
class Posted:
    """What became of a request: how it was read, the body that went upstream, the turns that were kept."""

    plan: Plan
    body: bytes
    turns: list[Turn]

    @property
    def messages(self) -> list[bytes]:
        ask = chat.read(self.body)
        return elements(self.body[ask.start : ask.end])


class Session:
    """One session, one request after another."""

    def __init__(self) -> None:
        self.history = History()
        self.heard: dict[str, bool] = {}  # by turn: whether the client has seen its end
        self._ids = 0

    def post(
        self,
        body: bytes,
        answer: Answer,
        *,
        profile: str = "echo",
        mode: Mode = Mode.AUTO,
        counted: bool = False,
    ) -> Posted:
        """A request and its answer. `counted`: it says that it is a retry. Raises BadRequest."""
        ask, request = chat.read(body, self.history.forms.get("seen")), blake2b(body, digest_size=16).digest()
        plan = self._decide(ask, request, mode, counted)
        form = sending.form_of(profile, f"{profile}.test", ask.model)
        sent, _ = sending.compose(ask, plan, self.history, form)
        outcome = _outcome(answer)
        turns: list[Turn] = []
        id = self._new_id()
        if plan.decision is not Decision.ASIDE:
            if outcome.verdict in (Verdict.COMPLETE, Verdict.CUT):
                turns = self._keep(ask, plan, form, id, request, outcome)
            if turns:
                self.heard[id] = outcome.verdict is Verdict.COMPLETE and answer.heard
        return Posted(plan, sent, turns)

    def _decide(self, ask: Ask, request: bytes, mode: Mode, counted: bool) -> Plan:
        history = self.history
        last = history.last
        if last and is_retry(request, last, counted, self.heard.get(last.id)):
            return retried(history, last)
        if last and last.request == request:
            self.heard[last.id] = True  # a turn of its own
        return decide(ask, history, marks, mode)

    def _keep(self, ask: Ask, plan: Plan, form: sending.Form, id: str, request: bytes, outcome: Outcome) -> list[Turn]:
        cut = outcome.verdict is Verdict.CUT
        turns = turns_of(
            ask,
            plan,
            outcome.reply,
            form,
            id=id,
            new_id=self._new_id,
            remembered=self.history.system_of(plan.parent),
            request=request,
            state=TurnState.CUT if cut else TurnState.COMPLETE,
        )
        if cut and turns[-1].echo is None:
            return []
        grown = self.history.plus(*turns)
        if not plan.injected and plan.layout is None and plan.parent == self.history.tip and turns[-1].echo:
            news = sum([len(turn.asked) for turn in turns]) + len(turns) - 1
            self.history.forms["seen"] = chat.seen_in(ask, len(self.history.line) + news)
        branches = turns[0].layout is not None or turns[0].parent != self.history.tip
        self.history = grown.without(grown.spare()) if branches else grown
        return turns

    def _new_id(self) -> str:
        self._ids += 1
        return f"t{self._ids}"


def _outcome(answer: Answer) -> Outcome:
    exchange = Exchange(cast(Dialect, chat), 1 << 20)
    exchange.begin(200 if answer.message is not None else 500, None, None)
    exchange.receive(answer.bytes)
    return exchange.finish(answer.clean)
