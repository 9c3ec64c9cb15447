"""The window of a recorded turn: chosen before it is sent, and narrowed where the upstream says that it is too much.

Puts together what is known of limits (the configuration's, and those that upstreams named); what a window is, and
where it may begin, stands in `core.window`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cached_property

from proxy.core.history import History
from proxy.core.model import Cut, ModelKey, Turn
from proxy.core.plan import Plan
from proxy.core.sizes import Size, Sizes, Tokens, size_of, sizes_of, tokens
from proxy.core.window import DEPTH, Bound, Window, begin, in_force, is_trimmed, places, reaching
from proxy.dialects import groups, sending
from proxy.dialects.overflow import STATUSES, overflow, room
from proxy.dialects.sending import Form
from proxy.errors import ContextTooLong, ProxyError
from proxy.web.call import Call
from proxy.web.pieces import Body
from proxy.web.runtime import Runtime
from proxy.web.summarize import Asked, after
from proxy.web.upstream import Response

log = logging.getLogger("proxy.window")
TRIES = 2  # times that a refused request is sent again
ERROR_SIZE = 64 * 1024  # bytes of an error that are looked at
_SMALL = 16 * 1024  # bytes of a 200 that may be an error
NO_CUT = Cut()
_LEAST = 4 * 1024  # bytes of a request that may be too long for a model


def limit_of(runtime: Runtime, tenant: bytes, last: Turn) -> int | None:
    """The tokens that a session's next prompt may have, as far as that is known of its last turn. A reply may name a
    dated version of the model that was asked for."""
    settings, model = runtime.config.history, last.model or ""
    named = None
    while named is None and model:
        named = runtime.store.learned.limit(ModelKey(tenant, last.form.partition(" ")[0], model), runtime.now())
        model = model.rpartition("-")[0]
    return min([limit for limit in (settings.max_tokens, named) if limit], default=None)


class Fit:
    """What of a history goes with a call: `window` of what is injected. Raises ContextTooLong where the history is
    over a limit of ours and is not to be trimmed."""

    def __init__(self, runtime: Runtime, call: Call, plan: Plan, history: History, form: Form) -> None:
        self._runtime, self._call, self._plan, self._history, self._form = runtime, call, plan, history, form
        self._settings = runtime.config.history
        self._tries = self._size = 0
        self._before, self.window = NO_CUT, sending.WHOLE
        self._is_trimmed = is_trimmed(plan)
        if self._is_trimmed:
            self._before = in_force(history, plan)
            self.window = self._chosen(self._summarized() or self._before)

    def body(self, form: Form) -> tuple[Sequence[bytes], int]:
        """The body to send, and how many messages in it the client did not send; see `sending.compose`."""
        now = self._runtime.now()
        body, injected = sending.compose(self._call.ask, self._plan, self._history, form, self.window, now)
        self._size = sum(map(len, body))
        return body, injected

    @property
    def dropped(self) -> int:
        """How many messages are left out."""
        return self.window.start

    @property
    def cut(self) -> Cut | None:
        """Where the window begins, if that is to be kept with the turn."""
        start, _, summary = self.window
        return Cut(start, summary) if start >= self._before.at and (start, summary) != self._before else None

    @property
    def limit(self) -> int | None:
        """The tokens that a prompt may have: by the configuration, and by what the upstream said once."""
        known = [self._settings.max_tokens] if self._settings.max_tokens else []
        learned = self._runtime.store.learned
        if learned.limits and self._trims and (named := learned.limit(self._model, self._runtime.now())):
            known.append(named - room(self._call.ask, named))
        return min(known, default=None)

    async def refused(self, answer: Response, body: Body) -> bool:
        """Whether an answer says that the prompt is too long, and less of it can be sent."""
        if answer.status not in STATUSES or (answer.status == 200 and not self._may_be_refused(answer)):
            return False
        try:
            said = await body.beginning(ERROR_SIZE)
        except ProxyError:
            return False  # it breaks off, and does so again for who reads on
        found = overflow(answer.status, said)
        if found is None or not self._trims:
            return False
        if found.limit:
            await self._runtime.store.learn_limit(self._model, found.limit, self._runtime.now())
        if self._tries == TRIES or not self._is_trimmed:
            return False
        start = self._narrower(found.limit, found.tokens)
        if start == self.window.start:
            return False
        log.info("the upstream takes %s tokens: %d messages are left out", found.limit or "fewer", start)
        self._tries += 1
        self.window = Window(start, self.window.blank)
        return True

    def kept(self) -> None:
        """The turn is kept: what it leaves may have to be summarized for the next one."""
        call = self._call
        if self._settings.overflow == "summarize" and not self._plan.resends:
            form, model = self._form, call.ask.model
            after(self._runtime, Asked(call.key, call.target, model, form, self._frame, self.limit))

    @property
    def _trims(self) -> bool:
        return self._settings.overflow != "error"

    @property
    def _model(self) -> ModelKey:
        return ModelKey(self._call.key.tenant, self._call.target.host, self._call.ask.model or "")

    @cached_property
    def _sizes(self) -> Sizes:
        return sizes_of(self._history, self._plan.line)

    @cached_property
    def _own(self) -> Size:
        """What the client sends itself."""
        sizes = [size_of(message.raw) for message in self._plan.messages]
        return Size(*[sum(each) for each in zip(Size(), *sizes, strict=True)])

    @property
    def _frame(self) -> int:
        return len(self._plan.system or b"") + len(self._call.ask.tools)

    def _tokens(self) -> Tokens:
        plan, at = self._plan, (self._before.at, self.window.blank)  # what was counted was counted before
        same = lambda turn: self._form.binds(turn.form)  # noqa: E731
        return tokens(plan.line, self._sizes, at, plan.injected, self._own, self._frame, same)

    def _summarized(self) -> Cut | None:
        """The cut with a summary that was prepared since the last turn."""
        if self._settings.overflow != "summarize" or self._plan.line is not self._history.line:
            return None
        found = self._runtime.summaries.ready(self._call.key, self._history)
        return found if found and found.at <= self._plan.injected else None

    def _chosen(self, cut: Cut) -> Window:
        settings, end = self._settings, self._plan.injected
        blank = self._sizes.blank(settings.image_turns) if settings.image_turns else 0
        if cut.at or blank:
            at = reaching(self._plan.line, self._plan.messages, cut.at, end, groups) if cut.at else 0
            self.window = Window(at, blank, cut.summary)
        bounds = self._bounds()
        start = begin(bounds, self.window.start, end, self._places) if bounds else self.window.start
        if start == self.window.start:
            return self.window
        if not self._trims:
            raise ContextTooLong(
                "With this session's history the request is over the limit that the proxy's operator has set. Begin a"
                " new session, or send a shorter message.",
                param="messages",
            )
        return Window(start, blank)

    def _bounds(self) -> list[Bound]:
        settings, end, bounds = self._settings, self._plan.injected, []
        if limit := self.limit:
            bounds.append(Bound(limit, self._tokens().of))
        if settings.max_messages:
            own = len(self._plan.messages)
            bounds.append(Bound(settings.max_messages, lambda start: end - start + own))
        if settings.max_bytes:
            whole, body = self._sizes.whole, len(self._call.ask.body)
            bounds.append(Bound(settings.max_bytes, lambda start: whole[end] - whole[start] + body))
        return bounds

    def _places(self) -> list[int]:
        return places(self._plan.line, self._plan.messages, self.window.start, self._plan.injected, groups)

    def _narrower(self, limit: int | None, counted: int | None) -> int:
        """Where a window begins that is refused as it is; the second time it is cut deeper."""
        start, found = self.window.start, self._tokens()
        if counted or (limit and found.of(start) < limit):
            found = found.corrected(start, counted or limit or 0)
        least = found.of(start) - 1  # whatever is named, this was too much
        takes = min(least, limit - room(self._call.ask, limit)) if limit else least
        return begin([Bound(takes, found.of)], start, self._plan.injected, self._places, DEPTH / (1 + self._tries))

    def _may_be_refused(self, answer: Response) -> bool:
        """Whether a 200 may be an error: LM Studio and routers answer so. A stream is not held back for it."""
        if not self._is_trimmed or self._call.ask.stream or self._size < _LEAST:
            return False
        length = answer.length
        return length is not None and length <= _SMALL
