"""The record of a turn: what is kept of it, behind the tip as it stands at the commit.

Knows nothing of how the answer came, nor of who waits for it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from proxy.context.runtime import Runtime
from proxy.core.exchange import Outcome, Verdict
from proxy.core.history import History, Session
from proxy.core.matching.speakers import client_of, moved_on
from proxy.core.model import Answer, Turn, TurnState
from proxy.core.plan import Plan
from proxy.dialects.chat import fingerprints as marks
from proxy.dialects.chat import torn_calls as tool_calls
from proxy.dialects.chat import wire as chat
from proxy.dialects.chat.turns import turns_of
from proxy.turns.attempts import Attempts
from proxy.turns.chat_request import SEEN, Call


class Record:
    """`overtaken`: another turn of the session was kept since this one was read against `session`."""

    def __init__(self, runtime: Runtime, call: Call, session: Session, attempts: Attempts, id: str) -> None:
        self.overtaken = False
        self._runtime, self._call, self._session, self._attempts, self._id = runtime, call, session, attempts, id

    async def keep(self, plan: Plan, outcome: Outcome, started: int, answer: Answer) -> bool:
        """Record the turn, unless it was cut before it said anything, or began a call that may be answered. Raises
        StoreUnavailable."""
        live, key = self._runtime.live, self._call.key
        while not live.begin_commit(key):
            await live.commit_ended(key)
        kept: str | None = None
        try:
            history = self._session.history
            if self.overtaken:
                latest = await self._latest()
                if (moved := moved_on(plan, self._call.ask.system, history, latest, marks)) is not plan:
                    plan, history = moved, latest
            turns = self._turns(plan, history, outcome, started)
            if turns[-1].state is TurnState.CUT and turns[-1].echo is None and not tool_calls.begins(turns[-1].reply):
                return False
            drop: list[str] = []
            if turns[0].layout is not None or turns[0].parent != history.tip:
                drop = (await self._latest()).plus(*turns).spare(live.parents(key))
            wanted = not plan.side or self._call.idempotency_key is not None
            begun = time.monotonic()
            await self._runtime.store.append(key, turns, turns[-1].ended, drop, answer if wanted else None)
            self._runtime.numbers.commit.add(time.monotonic() - begun)
            if not plan.side:
                kept = self._id
                self._note_seen(plan, history, turns)
            return True
        finally:
            live.end_commit(key, kept)

    async def _latest(self) -> History:
        """The history as it stands now."""
        return (await self._runtime.store.load(self._call.key, self._runtime.now(), in_use=True)).history

    def _turns(self, plan: Plan, history: History, outcome: Outcome, started: int) -> list[Turn]:
        runtime, call, fit = self._runtime, self._call, self._attempts.fit
        return turns_of(
            call.ask,
            plan,
            outcome.reply,
            self._attempts.form,
            id=self._id,
            new_id=runtime.turn_id,
            remembered=history.system if plan.parent == history.tip else history.system_of(plan.parent),
            request=call.request,
            idempotency_key=call.idempotency_key,
            state=TurnState.COMPLETE if outcome.verdict is Verdict.COMPLETE else TurnState.CUT,
            cut=fit.cut,
            cut_for=fit.cut_for,
            started=started,
            ended=runtime.now(),
        )

    def _note_seen(self, plan: Plan, history: History, turns: Sequence[Turn]) -> None:
        """What of the list the next request of a client that resends need not bring to be read again."""
        if plan.injected or not plan.whole or plan.parent != history.tip or turns[-1].echo is None:
            return
        news = sum([len(turn.asked) for turn in turns]) + len(turns) - 1
        client = plan.client if plan.carries else client_of(plan.client, self._call.ask.messages, marks)
        history.forms[SEEN] = chat.seen_in(self._call.ask, len(history.line) + news, client)
