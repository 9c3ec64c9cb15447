"""A session without sockets: what the relay and its turns do to a history, in the same order, as plain calls.

Pure. Knows no client: who sends what is the tests' affair.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, cast

from msgspec import structs

from proxy.core.exchange import Dialect, Exchange, Outcome, Verdict
from proxy.core.history import History
from proxy.core.json_bytes import dumps, elements
from proxy.core.matching.reconcile import decide
from proxy.core.matching.retries import is_retry, retried
from proxy.core.matching.speakers import client_of, moved_on
from proxy.core.model import Ask, TrimPoint, Turn, TurnState
from proxy.core.plan import Flight, Mode, Plan
from proxy.core.window.choose import Bound, Window, begin, in_force, is_trimmed, legal_starts, reaching
from proxy.dialects.chat import compose, fingerprints, tool_groups, wire
from proxy.dialects.chat.turns import turns_of

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
    """What became of a request: how it was read, the body that went upstream, the turns that were kept. `bare`: the
    body as it had been without a summary."""

    plan: Plan
    body: bytes
    turns: list[Turn]
    dropped: int = 0
    bare: bytes = b""

    @property
    def messages(self) -> list[bytes]:
        ask = wire.read(self.body)
        return elements(self.body[ask.start : ask.end])


@dataclass(eq=False)
class Pending:
    """A request in flight. `history`: what it was read against; `overtaken`: a turn was kept since; `abandoned`: its
    client has gone."""

    ask: Ask
    request: bytes
    plan: Plan
    id: str
    history: History
    form: compose.Rendering
    client: bytes
    sent: bytes
    start: int
    moved: TrimPoint | None
    bare: bytes
    overtaken: bool = False
    abandoned: bool = False

    @property
    def flight(self) -> Flight:
        ask, plan = self.ask, self.plan
        client = plan.client if plan.carries_history else self.client
        shown = plan.carries_history, plan.spliced
        return Flight(plan.asked, ask.system, ask.tools, plan.resends, self.id, client, self.abandoned, *shown, ask)


class Session:
    """One session, one request after another. `limit`: the messages that may go with a history of ours; `summary`: the
    message that stands for what is left out."""

    def __init__(self, limit: int | None = None, summary: bytes | None = None) -> None:
        self.summary = summary
        self.history = History()
        self.limit = limit
        self.heard: dict[str, bool] = {}  # by turn: whether the client has seen its end
        self.pending: list[Pending] = []  # in flight
        self._ids = 0

    def post(
        self,
        body: bytes,
        answer: Answer,
        *,
        profile: str = "echo",
        mode: Mode = Mode.AUTO,
        counted: bool = False,
        client: bytes = b"",
    ) -> Posted:
        """A request and its answer. `counted`: it says that it is a retry. Raises BadRequest."""
        pending = self.begin(body, profile=profile, mode=mode, counted=counted, client=client)
        assert pending, "it waits for a turn in flight"
        return self.end(pending, answer)

    def begin(
        self,
        body: bytes,
        *,
        profile: str = "echo",
        mode: Mode = Mode.AUTO,
        counted: bool = False,
        client: bytes = b"",
    ) -> Pending | None:
        """A request that has gone upstream; None where it has to wait for the turns in flight."""
        ask, request = wire.read(body, self.history.cache.seen), blake2b(body, digest_size=16).digest()
        plan = self._decide(ask, request, mode, counted, client)
        for turn in self.pending:
            if turn.id in plan.demoted:
                turn.plan = structs.replace(turn.plan, parent=None, layout=None, side=True)
        if not plan.alone and any([not turn.plan.side for turn in self.pending]):
            return None
        form = compose.rendering_of(profile, f"{profile}.test", ask.model)
        trim_point, start = self._window(plan)
        window = Window(start, start + 3 if start else 0)  # with a few images left out behind it
        bare = b"".join(compose.compose(ask, plan, self.history, form, window)[0])
        told = window._replace(summary=self.summary if start else None)
        sent = b"".join(compose.compose(ask, plan, self.history, form, told)[0]) if told != window else bare
        moved = TrimPoint(start) if start > trim_point.at else None
        pending = Pending(ask, request, plan, self._new_id(), self.history, form, client, sent, start, moved, bare)
        self.pending.append(pending)
        return pending

    def end(self, pending: Pending, answer: Answer) -> Posted:
        """Its answer, which came after whatever has been kept since it began."""
        self.pending.remove(pending)
        outcome = _outcome(answer)
        turns: list[Turn] = []
        if outcome.verdict in (Verdict.COMPLETE, Verdict.INTERRUPTED):
            turns = self._keep(pending, outcome)
        if turns and not pending.plan.side:
            self.heard[pending.id] = outcome.verdict is Verdict.COMPLETE and answer.heard
            for turn in self.pending:
                turn.overtaken = True
        return Posted(pending.plan, pending.sent, turns, pending.start, pending.bare)

    def _window(self, plan: Plan) -> tuple[TrimPoint, int]:
        """Where the window begins so far, and from this request on."""
        if not is_trimmed(plan):
            return TrimPoint(), 0
        trim_point, end, own = in_force(self.history, plan), plan.injected, len(plan.messages)
        at = reaching(plan.path, plan.messages, trim_point.at, end, tool_groups)
        bounds = [Bound(self.limit, lambda start: end - start + own)] if self.limit else []
        return trim_point, begin(bounds, at, end, lambda: legal_starts(plan.path, plan.messages, at, end, tool_groups))

    def _decide(self, ask: Ask, request: bytes, mode: Mode, counted: bool, client: bytes) -> Plan:
        history = self.history
        last = history.last
        if last and is_retry(request, last, counted, self.heard.get(last.id)):
            return retried(history, last, ask)
        if last and last.request == request:
            self.heard[last.id] = True  # a turn of its own
        flights = [turn.flight for turn in self.pending if not turn.plan.side]
        return decide(ask, history, fingerprints, mode, flights, client)

    def _keep(self, pending: Pending, outcome: Outcome) -> list[Turn]:
        trim_point, ask, plan, history = (
            outcome.verdict is Verdict.INTERRUPTED,
            pending.ask,
            pending.plan,
            pending.history,
        )
        if (
            pending.overtaken
            and (behind := moved_on(plan, ask.system, history, self.history, fingerprints)) is not plan
        ):
            plan, history = behind, self.history
        turns = turns_of(
            ask,
            plan,
            outcome.reply,
            pending.form,
            id=pending.id,
            new_id=self._new_id,
            remembered=history.system_of(plan.parent),
            request=pending.request,
            state=TurnState.INTERRUPTED if trim_point else TurnState.COMPLETE,
            trim_point=pending.moved,
        )
        if trim_point and turns[-1].rendered is None:
            return []
        grown = self.history.plus(*turns)
        if not (plan.injected or plan.side) and plan.whole and plan.parent == history.tip and turns[-1].rendered:
            news = sum([len(turn.asked) for turn in turns]) + len(turns) - 1
            client = plan.client if plan.carries_history else client_of(plan.client, ask.messages, fingerprints)
            history.cache.seen = wire.seen_in(ask, len(history.path) + news, client)
        branches = turns[0].layout is not None or turns[0].parent != history.tip
        needed = [turn.plan.parent for turn in self.pending if turn.plan.parent]
        self.history = grown.without(grown.turns_to_drop(needed)) if branches else grown
        return turns

    def _new_id(self) -> str:
        self._ids += 1
        return f"t{self._ids}"


def _outcome(answer: Answer) -> Outcome:
    exchange = Exchange(cast(Dialect, wire), 1 << 20)
    exchange.begin(200 if answer.message is not None else 500, None, None)
    exchange.receive(answer.bytes)
    return exchange.finish(answer.clean)
