"""Builds the body that goes upstream, and the next one after a refusal: without a refused member, or with less
history. Handles no other answers.
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
    """Holds the next `body` to send, in pieces; `injected` counts its messages that the client did not send. Raises
    BadRequest and ContextTooLong."""

    def __init__(self, runtime: Runtime, chat: ChatRequest, plan: Plan, history: History, probes: bool = True) -> None:
        self._runtime, self._chat = runtime, chat
        self.rendering = self._rendering(self._known)
        self.fit = Narrowing(runtime, chat, plan, history, self.rendering, probes)
        self.body, self.injected = self.fit.body(self.rendering)

    async def refused(self, answer: Response, body: Body) -> bool:
        """Whether an answer refuses the request, and `body` holds another one to try now."""
        status = answer.status
        if not self.fit.is_accepted(answer, body):
            if await self.fit.refused(answer, body):
                self.body, self.injected = self.fit.body(self.rendering)
                return True
            if status in (400, 422) and (members := compose.sent_members(b"".join(self.body))):
                return self._strip(profiles.refused(status, await body.beginning(ERROR_SIZE), members))
        if self.rendering.refused and 200 <= status < 300:
            for member in self.rendering.refused - self._known:
                await self._runtime.store.learn(self._chat.target.host, member)
        return False

    async def refused_within(self, answer: Response, body: Body, sink: Sink) -> bool:
        """Whether the first event of a stream refuses the request, and `body` holds another one to try now. Comments
        before it, which keep the connection alive, go to `sink`."""
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
        """Remove a refused member from the body. Return whether the body changed."""
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
