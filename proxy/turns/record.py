"""Commits a turn after the tip, as the tip stands at the commit.

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
from proxy.dialects.chat import fingerprints, torn_calls, wire
from proxy.dialects.chat.turns import turns_of
from proxy.turns.attempts import Attempts
from proxy.turns.chat_request import ChatRequest


class Record:
    """Builds and commits the record. `overtaken`: another turn was committed since `session` was loaded."""

    def __init__(self, runtime: Runtime, chat: ChatRequest, session: Session, attempts: Attempts, id: str) -> None:
        self.overtaken = False
        self._runtime, self._chat, self._session, self._attempts, self._id = runtime, chat, session, attempts, id

    async def commit(self, plan: Plan, outcome: Outcome, started: int, answer: Answer) -> bool:
        """Commit the turn; return False if it was interrupted before any content or answerable tool call. Raises
        StoreUnavailable."""
        registry, key = self._runtime.registry, self._chat.key
        while not registry.begin_commit(key):
            await registry.commit_ended(key)
        kept: str | None = None
        try:
            history = self._session.history
            if self.overtaken:
                latest = await self._latest()
                if (moved := moved_on(plan, self._chat.ask.system, history, latest, fingerprints)) is not plan:
                    plan, history = moved, latest
            turns = self._turns(plan, history, outcome, started)
            if (
                turns[-1].state is TurnState.INTERRUPTED
                and turns[-1].rendered is None
                and not torn_calls.begins(turns[-1].reply)
            ):
                return False
            drop: list[str] = []
            if turns[0].layout is not None or turns[0].parent != history.tip:
                drop = (await self._latest()).plus(*turns).turns_to_drop(registry.parents(key))
            wanted = not plan.side or self._chat.idempotency_key is not None
            begun = time.monotonic()
            await self._runtime.store.append(key, turns, turns[-1].ended, drop, answer if wanted else None)
            self._runtime.counters.commit.add(time.monotonic() - begun)
            if not plan.side:
                kept = self._id
                self._note_seen(plan, history, turns)
            return True
        finally:
            registry.end_commit(key, kept)

    async def _latest(self) -> History:
        """Load the current history."""
        return (await self._runtime.store.load(self._chat.key, self._runtime.now(), in_use=True)).history

    def _turns(self, plan: Plan, history: History, outcome: Outcome, started: int) -> list[Turn]:
        runtime, chat, fit = self._runtime, self._chat, self._attempts.fit
        return turns_of(
            chat.ask,
            plan,
            outcome.reply,
            self._attempts.rendering,
            id=self._id,
            new_id=runtime.turn_id,
            remembered=history.system if plan.parent == history.tip else history.system_of(plan.parent),
            request=chat.request,
            idempotency_key=chat.idempotency_key,
            state=TurnState.COMPLETE if outcome.verdict is Verdict.COMPLETE else TurnState.INTERRUPTED,
            trim_point=fit.trim_point,
            trimmed_for=fit.trimmed_for,
            started=started,
            ended=runtime.now(),
        )

    def _note_seen(self, plan: Plan, history: History, turns: Sequence[Turn]) -> None:
        """Cache which prefix of the list was read, so that the next request that resends it is not read from the
        start."""
        if plan.injected or not plan.whole or plan.parent != history.tip or turns[-1].rendered is None:
            return
        news = sum([len(turn.asked) for turn in turns]) + len(turns) - 1
        client = plan.client if plan.carries_history else client_of(plan.client, self._chat.ask.messages, fingerprints)
        history.cache.seen = wire.seen_in(self._chat.ask, len(history.path) + news, client)
