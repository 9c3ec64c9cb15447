"""What goes upstream for a call, and what goes there next where that is refused: without a member, or with less of
the history. Knows nothing of what becomes of an answer that is none of these refusals.
"""

from __future__ import annotations

from proxy.context.runtime import Runtime
from proxy.core.history import History
from proxy.core.plan import Plan
from proxy.dialects.chat import compose, profiles
from proxy.dialects.chat.compose import Rendering
from proxy.dialects.chat.context_errors import begins, goes_on
from proxy.errors import ProxyError
from proxy.turns.chat_request import ChatRequest
from proxy.turns.narrowing import ERROR_SIZE, Narrowing
from proxy.upstream.body import Body
from proxy.upstream.client import Response
from proxy.upstream.connection import Sink

_REFUSALS = 3  # members that a request is stripped of, one after another


class Attempts:
    """`body` is what to send, in pieces, `injected` how many messages in it the client did not send. Raises BadRequest
    and ContextTooLong."""

    def __init__(self, runtime: Runtime, chat: ChatRequest, plan: Plan, history: History, probes: bool = True) -> None:
        self._runtime, self._chat = runtime, chat
        self.rendering = self._rendering(self._known)
        self.fit = Narrowing(runtime, chat, plan, history, self.rendering, probes)
        self.body, self.injected = self.fit.body(self.rendering)

    async def refused(self, answer: Response, body: Body) -> bool:
        """Whether an answer refuses what was sent, and something else is to be sent now."""
        if answer.status == 200 and not self.rendering.refused and self.fit.is_taken(answer, body):
            return False
        if await self.fit.refused(answer, body):
            self.body, self.injected = self.fit.body(self.rendering)
            return True
        if answer.status in (400, 422) and (members := compose.sent_members(b"".join(self.body))):
            return self._strip(profiles.refused(answer.status, await body.beginning(ERROR_SIZE), members))
        if 200 <= answer.status < 300:
            for member in self.rendering.refused - self._known:
                await self._runtime.store.learn(self._chat.target.host, member)
        return False

    async def refused_within(self, answer: Response, body: Body, sink: Sink) -> bool:
        """Whether the first event of a stream refuses what was sent, and something else is to be sent now. What comes
        before it keeps the connection alive, and goes to `sink`."""
        try:
            while piece := await body.peek():
                if not begins(piece):
                    await body.flow(lambda comment, chunks: sink(comment, chunks) and False)
                elif not (goes_on(piece) and await body.more()):
                    break
        except ProxyError:
            return False  # it breaks off, and does so again for who reads on
        if not await self.fit.refused_within(piece):
            return False
        self.body, self.injected = self.fit.body(self.rendering)
        return True

    def _strip(self, member: str | None) -> bool:
        """Leave a refused member out of the body; whether that changed it."""
        if member is None or len(self.rendering.refused - self._known) >= _REFUSALS:
            return False
        before, self.rendering = b"".join(self.body), self._rendering(self.rendering.refused | {member})
        self.body, self.injected = self.fit.body(self.rendering)
        return b"".join(self.body) != before

    @property
    def _known(self) -> frozenset[str]:
        return self._runtime.store.learned.refusals.get(self._chat.target.host, frozenset())

    def _rendering(self, refused: frozenset[str]) -> Rendering:
        target = self._chat.target
        return compose.rendering_of(target.upstream.profile, target.host, self._chat.ask.model, refused)
