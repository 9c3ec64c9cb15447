"""Chooses the window of a recorded turn before it is sent; `narrowing` reacts to a refusal.

Combines the configured limits with those that upstreams named; `core.window` computes where a window may begin.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cached_property

from proxy.context.runtime import Runtime
from proxy.core.history import History
from proxy.core.learned import is_of
from proxy.core.model import ModelKey, TrimPoint, Turn
from proxy.core.plan import Decision, Plan
from proxy.core.window.chain import furthest, taken
from proxy.core.window.choose import (
    DEPTH,
    Bound,
    Window,
    begin,
    in_force,
    is_trimmed,
    last,
    legal_starts,
    reaching,
    settled,
)
from proxy.core.window.cuts import purpose
from proxy.core.window.token_estimate import LOOK_BACK, Size, Sizes, Tokens, size_of, sizes_of, tokens
from proxy.dialects.chat import compose, tool_groups
from proxy.dialects.chat.compose import Rendering
from proxy.dialects.chat.context_errors import room
from proxy.dialects.chat.summary import within
from proxy.errors import ContextTooLong
from proxy.turns.chat_request import ChatRequest
from proxy.turns.summarize import Asked, after

log = logging.getLogger("proxy.window")
NO_TRIM_POINT = TrimPoint()
SUMMARY = 2  # messages that a summary takes: itself, and what stands between it and a user's message
STRETCHED = 2  # times a learned limit: what a probe asks for
FILLED = 0.9  # of that it takes


def limit_of(runtime: Runtime, tenant: bytes, last: Turn) -> int | None:
    """Return the token limit of a session's next prompt, by the model of its last turn; None if unknown. A reply may
    name a dated version of the requested model."""
    settings, model = runtime.config.history, last.model or ""
    named = None
    while named is None and model:
        named = runtime.store.learned.limit(
            ModelKey(tenant, last.rendering_key.partition(" ")[0], model), runtime.now()
        )
        model = model.rpartition("-")[0]
    return min([limit for limit in (settings.max_tokens, named) if limit], default=None)


class FittedWindow:
    """Chooses the `window` of the injected history. Raises ContextTooLong if the history exceeds a limit and must not
    be trimmed. With `probes` it may exceed a learned limit, to find out whether that still holds."""

    def __init__(
        self,
        runtime: Runtime,
        chat: ChatRequest,
        plan: Plan,
        history: History,
        rendering: Rendering,
        probes: bool = True,
    ) -> None:
        self._runtime, self._chat, self._plan, self._history, self._rendering = runtime, chat, plan, history, rendering
        self._settings = runtime.config.history
        self._tries = self._size = 0
        self._stretch = 1
        self._probed: int | None = None  # the limit beyond which this request goes, to find out whether it holds
        self.trimmed_for = ""  # what the window was cut for, where that is new
        self._last = self._taken = NO_TRIM_POINT
        self.window = compose.WHOLE
        self._is_long = False  # it is tokens that there are too many of
        self._is_trimmed = is_trimmed(plan)
        if self._is_trimmed and not self._is_free():
            self._choose()
            if probes and self.window.start:
                self._probe()

    def body(self, rendering: Rendering) -> tuple[Sequence[bytes], int]:
        """Compose the body to send, and count its messages that the client did not send."""
        now = self._runtime.now()
        body, injected = compose.compose(self._chat.ask, self._plan, self._history, rendering, self.window, now)
        self._size = sum(map(len, body))
        return body, injected

    def _is_free(self) -> bool:
        """Whether no limit applies to this session or ever did, which is the common case."""
        learned, history = self._runtime.store.learned, self._history
        bounded = learned.limits or learned.images or history.trim_points or self._plan.path is not history.path
        return self._settings.is_free and not bounded

    @property
    def dropped(self) -> int:
        """Count the messages that are left out."""
        return self.window.start

    @property
    def trim_point(self) -> TrimPoint | None:
        """Return the trim point if it must be stored with the turn, else None."""
        start, kept = self.window.start, self._taken
        if not start and kept is self._last:
            return None
        trim_point = TrimPoint(start, kept.summary, kept.covered if kept.summary and kept.covered < start else None)
        return trim_point if start >= kept.at and trim_point != self._last else None

    @property
    def limit(self) -> int | None:
        """Return the token limit of a prompt: the lower of the configured and the learned one."""
        known = [self._settings.max_tokens] if self._settings.max_tokens else []
        learned = self._runtime.store.learned
        if learned.limits and self._trims and (named := learned.limit(self._model, self._runtime.now())):
            named *= self._stretch
            known.append(named - room(self._chat.ask, named))
        return min(known, default=None)

    def committed(self) -> None:
        """Call after the commit: ends a probe, and requests a summary of what the window left out."""
        if self._probed is not None:
            self._end_probe(True)
        if self._settings.overflow == "summarize" and not self._plan.resends:
            chat, trim_point = self._chat, self.trim_point
            if trim_point and trim_point.at > max(trim_point.covered, self._last.at):
                log.info("%d messages are left out and not in a summary yet", trim_point.at - trim_point.covered)
            told = chat.key, chat.target, chat.ask.model, self._rendering, self._frame, self.limit
            after(self._runtime, Asked(*told, self._is_same()))

    @property
    def _trims(self) -> bool:
        return self._settings.overflow != "error"

    @property
    def _model(self) -> ModelKey:
        return ModelKey(self._chat.key.tenant, self._chat.target.host, self._chat.ask.model or "")

    @cached_property
    def _name(self) -> str:
        """The name under which trim points are stored for this model."""
        return f"{self._model.upstream} {self._model.model}"

    def _choose(self, depth: float = DEPTH) -> None:
        self.window, limit = compose.WHOLE, self.limit
        history, plan = self._history, self._plan
        self._last = last(history, plan, self._name) if history.trim_points else NO_TRIM_POINT
        known = history.trim_points or plan.path is not history.path
        before = in_force(history, plan, limit, self._name) if known else NO_TRIM_POINT
        self.trimmed_for = purpose(limit, self._name) if limit else ""
        self._taken = self._summarized(before) or before
        self.window = self._chosen(self._taken, depth)

    def _probe(self) -> None:
        """Now and then exceed a learned limit, to notice that it grew. After a refusal the usual window is sent, and
        the client does not notice."""
        learned, usual = self._runtime.store.learned, (self._taken, self.window, self.trimmed_for)
        named = learned.limit(self._model, self._runtime.now()) if learned.limits else None
        if not named or self._plan.decision is Decision.RETRY or not learned.is_probed(self._model):
            return
        self._stretch = STRETCHED
        self._choose(FILLED)
        if self.window.start < usual[1].start and self._tokens().of(self.window.start) > named:
            self._probed = named
        else:
            self._stretch = 1
            self._taken, self.window, self.trimmed_for = usual

    def _end_probe(self, taken: bool) -> None:
        named, self._probed = self._probed, None
        learned, now = self._runtime.store.learned, self._runtime.now()
        learned.probed(self._model, taken)
        if not taken:
            self._stretch = 1
            self._choose()
        elif named and learned.limit(self._model, now) == named:
            learned.limited(self._model, named * STRETCHED, now)  # how far it goes is not known yet

    @cached_property
    def _sizes(self) -> Sizes:
        return sizes_of(self._history, self._plan.path)

    @cached_property
    def _own(self) -> Size:
        """The size of the messages that the client sends itself."""
        sizes = [size_of(message.raw) for message in self._plan.messages]
        return Size(*[sum(each) for each in zip(Size(), *sizes, strict=True)])

    @property
    def _frame(self) -> int:
        return len(self._plan.system or b"") + len(self._chat.ask.tools)

    def _tokens(self) -> Tokens:
        plan, at = self._plan, (self._last.at, self.window.blank)  # what was counted was counted before
        then, now = len(self._last.summary or b""), len(self.window.summary or b"")
        found = tokens(plan.path, self._sizes, at, plan.injected, self._own, self._frame + then, self._is_same())
        return found.grown(now - then)

    def _is_same(self) -> Callable[[Turn], bool]:
        """Return a predicate for turns that share this one's window: each of several models has its own. A reply may
        name another model than the requested one, and does so consistently."""
        recent = self._plan.path[: self._plan.injected][-LOOK_BACK:] if self._history.trim_points else ()
        several = len({entry.turn.model for entry in recent if entry.ours}) > 1
        asked = self._chat.ask.model
        return lambda turn: self._rendering.binds(turn.rendering_key) and (not several or is_of(turn.model, asked))

    def _summarized(self, now: TrimPoint) -> TrimPoint | None:
        """Return a trim point whose summary covers more than the current one: a prepared one, or one that was made for
        another model."""
        if self._settings.overflow != "summarize":
            return None
        others = self._history.trim_points if self._plan.path is self._history.path else ()
        told = [taken(each.trim_point, now, deepens=False) for each in others]
        path = self._plan.path[: self._plan.injected]
        if found := self._runtime.summaries.ready(self._chat.key, path, now.covered):
            told.append(taken(found.trim_point, now, found.model == self._chat.ask.model))
        trim_point = furthest([trim_point for trim_point in told if trim_point])
        return settled(trim_point, self._plan) if trim_point.summary else None

    def _chosen(self, trim_point: TrimPoint, depth: float) -> Window:
        settings, end = self._settings, self._plan.injected
        blank = self._sizes.blank(settings.image_turns) if settings.image_turns else 0
        if (pictures := self._runtime.store.learned.images) and self._model in pictures:
            blank = max(blank, self._sizes.spared(pictures[self._model], end, self._own.images))
        if trim_point.at or blank:
            at = reaching(self._plan.path, self._plan.messages, trim_point.at, end, tool_groups) if trim_point.at else 0
            self.window = Window(at, blank, self._fitting(trim_point.summary) if trim_point.at else None)
        bounds = self._bounds()
        start = begin(bounds, self.window.start, end, self._legal_starts, depth) if bounds else self.window.start
        if start > trim_point.at and (
            more := self._summarized(TrimPoint(start, trim_point.summary, trim_point.covered))
        ):
            self._taken, self.window = more, Window(more.at, blank, self._fitting(more.summary))
            return self.window._replace(start=begin(self._bounds(), more.at, end, self._legal_starts, depth))
        if start == self.window.start:
            return self.window
        if not self._trims:
            raise ContextTooLong(
                "With this session's history the request exceeds the limit that the proxy's operator set. Begin a new"
                " session, or send a shorter message.",
                param="messages",
            )
        if not self._is_long:
            self.trimmed_for = ""
        return self.window._replace(start=start)

    def _fitting(self, summary: bytes | None) -> bytes | None:
        """Shorten a summary that was written for a larger model to a quarter of this one's limit."""
        limit = self.limit if summary else None
        return within(summary, limit) if summary and limit else summary

    def _bounds(self) -> list[Bound]:
        settings, bounds = self._settings, []
        if limit := self.limit:
            bounds.append(Bound(limit, self._tokens().of))
            self._is_long = bounds[0].cost(self.window.start) > limit
        if settings.max_messages:
            bounds.append(Bound(settings.max_messages, self._messages))
        if settings.max_bytes:
            bounds.append(Bound(settings.max_bytes, self._bytes))
        return bounds

    def _legal_starts(self) -> list[int]:
        return legal_starts(self._plan.path, self._plan.messages, self.window.start, self._plan.injected, tool_groups)

    def _messages(self, start: int) -> int:
        return self._plan.injected - start + len(self._plan.messages) + (SUMMARY if self.window.summary else 0)

    def _bytes(self, start: int) -> int:
        whole = self._sizes.whole
        return whole[self._plan.injected] - whole[start] + len(self._chat.ask.body) + len(self.window.summary or b"")
