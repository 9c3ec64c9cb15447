"""Requests a summary of the messages that leave the window, after a turn, in as many requests as it takes.

No turn waits for it. Until a summary is ready, or if it fails, the last one stays, and the messages that it does not
cover are trimmed. Runs only with the proxy's own upstream key, because no caller pays for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import NamedTuple

from proxy.context import tenants
from proxy.context.routing import Target
from proxy.context.runtime import Runtime
from proxy.context.summaries import Ready
from proxy.core.history import History
from proxy.core.model import ModelKey, SessionKey, TrimPoint, Turn
from proxy.core.usage import counts
from proxy.core.window import chain
from proxy.core.window.chain import Leaving, Position
from proxy.core.window.cuts import holding
from proxy.dialects.chat import summary, tool_groups
from proxy.dialects.chat.compose import Rendering
from proxy.dialects.chat.context_errors import Kind, overflow
from proxy.errors import ProxyError
from proxy.upstream.body import Body

log = logging.getLogger("proxy.summary")
PARTS = 32  # requests after one turn; what is left of a longer chain is asked for after the next
SMALLER = 6  # times that a part is halved which its upstream finds too long
_ANSWER = 1 << 20  # bytes of an answer


class Asked(NamedTuple):
    """Describes the turn after which a summary may be requested. `frame`: bytes of its system prompt and tools.
    `limit`: the token limit of its prompt, if known. `same`: tells which turns had its window."""

    key: SessionKey
    target: Target
    model: str | None
    rendering: Rendering
    frame: int
    limit: int | None
    same: Callable[[Turn], bool]


class _Failed(Exception):
    """The summary failed; the message says why."""


class _TooLong(Exception):
    """The upstream refused the request as too long for its model."""


def after(runtime: Runtime, asked: Asked) -> None:
    """Start to request a summary after a committed turn, if one is due."""
    settings = runtime.config.history
    host = asked.target.host
    paid, free = asked.target.upstream.api_key is not None, runtime.summaries.is_free(asked.key, host)
    if settings.overflow == "summarize" and paid and free and not runtime.registry.draining:
        runtime.summaries.start(asked.key, host, _prepared(runtime, asked))


async def _prepared(runtime: Runtime, asked: Asked) -> None:
    session = await runtime.store.load(asked.key, runtime.now(), in_use=True)
    history, summaries = session.history, runtime.summaries
    size = len(history.path)
    if history.tip is None or not summaries.has_rested(asked.key, size):
        return
    now = holding(history.trim_points, asked.limit, f"{asked.target.host} {asked.model or ''}")
    found, other = (
        summaries.ready(asked.key, history.path, now.covered),
        chain.furthest([each.trim_point for each in history.trim_points]),
    )
    base = chain.furthest([now, TrimPoint(0, other.summary, other.covered), *([found.trim_point] if found else [])])
    leaving, ratio = chain.due(history, now, base, asked.limit, asked.frame, asked.same, tool_groups)
    if leaving is None:
        return
    made = _Chain(runtime, asked, history, leaving, ratio)
    try:
        await made.run()
    except _Failed as why:
        summaries.fail(asked.key, size)
        runtime.counters.summaries["failed"] += 1
        missing = max(0, now.at - made.covered)
        log.warning(
            "summary failed: %s. The last one stays; %d messages are left out and in no summary.",
            str(why).rstrip("."),
            missing,
        )
    else:
        summaries.succeed(asked.key)


@dataclass
class _Chain:
    """Summarizes messages part by part; each request carries the summary so far."""

    runtime: Runtime
    asked: Asked
    history: History
    leaving: Leaving
    ratio: float

    def __post_init__(self) -> None:
        self.covered = self.leaving.start
        self._most = 0

    async def run(self) -> None:
        """Request all parts. Raises _Failed; the parts that succeeded are kept."""
        start, at, before = self.leaving
        texts = summary.texts([entry.message for entry in self.history.path[start:at]])
        position, requests, smaller = Position(), 0, 0
        room = self._measured(before)
        texts = [self._whole(text, room) for text in texts]
        while position.message < len(texts):
            room = min(room, self._measured(before)) if smaller else self._measured(before)
            part = chain.part(texts, position, room)
            if part.text:
                if requests == PARTS:
                    log.info("messages %d to %d are summarized so far; the next turn continues", start, self.covered)
                    return
                requests += 1
                try:
                    before = await self._written(part.text, before)
                except _TooLong:
                    smaller, room = smaller + 1, chain.size_of(part.text) // 2
                    if smaller > SMALLER or room < chain.LEAST:
                        raise _Failed("the upstream refused its request as too long") from None
                    continue
            position = part.after
            self._keep(start + position.message, before)
        if requests:
            log.info("messages %d to %d are summarized in %d bytes", start, at, len(before or b""))

    def _keep(self, covered: int, before: bytes | None) -> None:
        """Store a summary that covers `covered` messages."""
        if before is None or covered <= self.covered:
            return
        self.covered = covered
        trim_point = TrimPoint(covered, before) if covered == self.leaving.at else TrimPoint(0, before, covered)
        ready = Ready(trim_point, chain.digest(self.history.path, covered), self.asked.model)
        self.runtime.summaries.keep(self.asked.key, ready)

    def _whole(self, text: str, room: int) -> str:
        """Return a message's text; leave out its middle if it would take too many requests."""
        kept = chain.abridged(text, chain.ROOMS * room)
        if kept is not text:
            log.warning("a message of %d characters is summarized without its middle", len(text))
        return kept

    def _measured(self, before: bytes | None) -> int:
        """Compute the bytes of text that the next request may carry. Raises _Failed if that is too little."""
        settings, limit = self.runtime.config.history, self._limit
        self._most = chain.most_of(settings.summary.max_tokens, limit, settings.max_bytes)
        taken = len(settings.summary.prompt.encode()) + len(before or b"")
        room = chain.room(limit, self.ratio, self._most, taken)
        if settings.max_bytes:
            room = min(room, settings.max_bytes // 2 - taken)
        if room < chain.LEAST:
            raise _Failed(f"a limit of {limit or settings.max_bytes} leaves no room to ask for one")
        return room

    @property
    def _limit(self) -> int | None:
        """The token limit of a request: the lower of the turn's and that learned for the summarizing model."""
        named = self.runtime.store.learned.limit(self._model, self.runtime.now())
        return min([limit for limit in (self.asked.limit, named) if limit], default=None)

    @property
    def _model(self) -> ModelKey:
        asked = self.asked
        model = self.runtime.config.history.summary.model or asked.model or ""
        return ModelKey(asked.key.tenant, asked.target.host, model)

    async def _written(self, told: str, before: bytes | None) -> bytes:
        """Request one summary and return it as a message. Raises _Failed and _TooLong."""
        asked, settings = self.asked, self.runtime.config.history.summary
        body = summary.request(
            settings.prompt, settings.model or asked.model, self._most, asked.rendering.profile, told, before
        )
        status, said = await self._answered(body)
        found = (
            summary.written(said, self._most, settings.heading) if status == 200 else f"the upstream answered {status}"
        )
        if isinstance(found, str):
            if much := overflow(status, said):
                if much.kind is Kind.TOKENS and much.limit:
                    await self.runtime.store.learn_limit(self._model, much.limit, self.runtime.now())
                raise _TooLong
            raise _Failed(found if status != 200 else f"the upstream answered 200, but {found}")
        self.runtime.counters.summarized(counts(found.usage) if found.usage else None)
        if found.truncated:
            log.warning("a summary was cut off at %d tokens; see history.summary.max_tokens", self._most)
        return summary.message(settings.heading, found.text)

    async def _answered(self, body: bytes) -> tuple[int, bytes]:
        runtime, upstream = self.runtime, self.asked.target.upstream
        headers = tenants.with_our_key(
            upstream, [("Content-Type", "application/json"), ("Accept-Encoding", "identity")]
        )
        seconds = runtime.config.history.summary.timeout
        try:
            async with asyncio.timeout(seconds):
                answer = await runtime.client.ask("POST", self.asked.target.url, headers, (body,), upstream)
                with closing(answer):
                    return answer.status, await Body(answer).beginning(_ANSWER)
        except TimeoutError:
            raise _Failed(f"no answer came within {seconds:g} s") from None
        except ProxyError as error:
            raise _Failed(str(error)) from None
