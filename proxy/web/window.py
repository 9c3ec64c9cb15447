"""The window of a recorded turn: chosen before it is sent, and narrowed where the upstream says that it is too much.

Puts together what is known of limits (the configuration's, and those that upstreams named); what a window is, and
where it may begin, stands in `core.window`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cached_property

from proxy.core.cuts import purpose
from proxy.core.history import History
from proxy.core.model import Cut, ModelKey, Turn
from proxy.core.plan import Decision, Plan
from proxy.core.sizes import LOOK_BACK, Size, Sizes, Tokens, size_of, sizes_of, tokens
from proxy.core.window import DEPTH, Bound, Window, begin, in_force, is_trimmed, places, reaching
from proxy.dialects import groups, sending
from proxy.dialects.overflow import STATUSES, Kind, Overflow, is_own, overflow, room, within
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
_UNREAD = frozenset((200, 400, 413, 422))  # errors with these that nobody can read may be about the length
STRETCHED = 2  # times a learned limit: what a probe asks for
FILLED = 0.9  # of that it takes


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
    over a limit of ours and is not to be trimmed. `probes`: it may ask for more than a learned limit, to find out
    whether that still holds."""

    def __init__(
        self, runtime: Runtime, call: Call, plan: Plan, history: History, form: Form, probes: bool = True
    ) -> None:
        self._runtime, self._call, self._plan, self._history, self._form = runtime, call, plan, history, form
        self._settings = runtime.config.history
        self._tries = self._size = 0
        self._stretch = 1
        self._probed: int | None = None  # the limit beyond which this request goes, to find out whether it holds
        self.cut_for = ""  # what the window was cut for, where that is new
        self._before, self.window = NO_CUT, sending.WHOLE
        self._is_long = False  # it is tokens that there are too many of
        self._is_trimmed = is_trimmed(plan)
        if self._is_trimmed:
            self._choose()
            if probes and self.window.start:
                self._probe()

    def body(self, form: Form) -> tuple[Sequence[bytes], int]:
        """The body to send, and how many messages in it the client did not send; see `sending.compose`."""
        body, injected = sending.compose(self._call.ask, self._plan, self._history, form, self.window)
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
            named *= self._stretch
            known.append(named - room(self._call.ask, named))
        return min(known, default=None)

    async def refused(self, answer: Response, body: Body) -> bool:
        """Whether an answer says that the prompt is too long, and less of it can be sent."""
        status = answer.status
        if status == 200:
            self._runtime.failures.over(self._call.key)
        failed = status >= 400 and self._probed is not None
        if not failed and (status not in STATUSES or (status == 200 and not self._may_be_refused(answer))):
            return False
        try:
            said = await body.beginning(ERROR_SIZE)
        except ProxyError:
            return False  # it breaks off, and does so again for who reads on
        return await self._answered(status, overflow(status, said))

    async def refused_within(self, event: bytes) -> bool:
        """The same of the first event of a stream."""
        found = within(event)
        return await self._answered(200, found) if found or b'"error' in event[:ERROR_SIZE] else False

    @property
    def looks_within(self) -> bool:
        """Whether the first event of a stream may say that the prompt is too long."""
        return self._is_trimmed and self._size >= _LEAST and self._trims

    async def _answered(self, status: int, found: Overflow | None) -> bool:
        """Whether there is less to be sent, after an error that says what was `found` in it."""
        if found and found.kind is Kind.TOKENS and found.limit and self._trims:
            await self._runtime.store.learn_limit(self._model, found.limit, self._runtime.now())
        if self._probed is not None:  # it asked for more than is known to be taken
            self._end_probe(False)
            return True
        if not self._trims or not self._is_trimmed or self._tries == TRIES:
            return False
        before = self.window
        if found is None:
            if status not in _UNREAD or self._tries or self._size < _LEAST:
                return False
            tried = self._runtime.failures.again(self._call.key)
            if tried is None:
                return False
            log.warning("errors in a row that nobody can read: less of the history is tried")
            self.window = self._from(self._narrower(None, None, DEPTH / 2**tried))
        elif found.kind is Kind.IMAGES:
            self._without_images(found.limit)
        elif found.kind is not Kind.TOKENS:
            self.window = self._from(self._fewer(found))
        elif is_own(self._call.ask, found, self._tokens().of(before.start)):
            log.info("the answer that a request asks for does not fit, whatever is left out")
        else:
            depth = DEPTH / (1 + self._tries)
            self.window = self._from(self._narrower(found.limit, found.tokens, depth))
        if self.window == before:
            return False
        limit = self.limit if found and found.kind is Kind.TOKENS and found.limit else None
        self.cut_for = purpose(limit or 0, self._name)
        what = found.kind if found else "tokens"
        takes = found.limit if found and found.limit else "fewer"
        log.info("the upstream takes %s %s: %d messages are left out", takes, what, self.window.start)
        self._tries += 1
        return True

    def kept(self) -> None:
        """The turn is kept: what it leaves may have to be summarized for the next one."""
        call = self._call
        if self._probed is not None:
            self._end_probe(True)
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
    def _name(self) -> str:
        """By which cuts tell models apart."""
        return f"{self._model.upstream} {self._model.model}"

    def _choose(self, depth: float = DEPTH) -> None:
        limit = self.limit
        self._before = in_force(self._history, self._plan, limit, self._name)
        self.cut_for = purpose(limit, self._name) if limit else ""
        self.window = self._chosen(self._summarized() or self._before, depth)

    def _probe(self) -> None:
        """Every so often more is sent than a learned limit allows: that it grew is told by nobody. Where that is
        refused, what is usual is sent, and the client sees nothing of it."""
        learned, usual = self._runtime.store.learned, (self._before, self.window, self.cut_for)
        named = learned.limit(self._model, self._runtime.now()) if learned.limits else None
        if not named or self._plan.decision is Decision.RETRY or not learned.is_probed(self._model):
            return
        self._stretch = STRETCHED
        self._choose(FILLED)
        if self.window.start < usual[1].start and self._tokens().of(self.window.start) > named:
            self._probed = named
        else:
            self._stretch = 1
            self._before, self.window, self.cut_for = usual

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
        return tokens(plan.line, self._sizes, at, plan.injected, self._own, self._frame, self._is_same())

    def _is_same(self) -> Callable[[Turn], bool]:
        """Which turns had this one's window: of several models each has its own. A reply may name another model than
        was asked for, and does so throughout."""
        recent = self._plan.line[: self._plan.injected][-LOOK_BACK:] if self._history.cuts else ()
        several = len({entry.turn.model for entry in recent if entry.ours}) > 1
        asked = self._call.ask.model or ""
        return lambda turn: self._form.binds(turn.form) and (not several or (turn.model or "").startswith(asked))

    def _summarized(self) -> Cut | None:
        """The cut with a summary that was prepared since the last turn."""
        if self._settings.overflow != "summarize" or self._plan.line is not self._history.line:
            return None
        found = self._runtime.summaries.ready(self._call.key, self._history)
        return found if found and found.at <= self._plan.injected else None

    def _chosen(self, cut: Cut, depth: float) -> Window:
        settings, end = self._settings, self._plan.injected
        blank = self._sizes.blank(settings.image_turns) if settings.image_turns else 0
        if (pictures := self._runtime.store.learned.images) and self._model in pictures:
            blank = max(blank, self._sizes.spared(pictures[self._model], end, self._own.images))
        if cut.at or blank:
            at = reaching(self._plan.line, self._plan.messages, cut.at, end, groups) if cut.at else 0
            self.window = Window(at, blank, cut.summary)
        bounds = self._bounds()
        start = begin(bounds, self.window.start, end, self._places, depth) if bounds else self.window.start
        if start == self.window.start:
            return self.window
        if not self._trims:
            raise ContextTooLong(
                "With this session's history the request is over the limit that the proxy's operator has set. Begin a"
                " new session, or send a shorter message.",
                param="messages",
            )
        if not self._is_long:
            self.cut_for = ""
        return Window(start, blank)

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

    def _places(self) -> list[int]:
        return places(self._plan.line, self._plan.messages, self.window.start, self._plan.injected, groups)

    def _from(self, start: int) -> Window:
        return self.window if start == self.window.start else Window(start, self.window.blank)

    def _narrower(self, limit: int | None, counted: int | None, depth: float) -> int:
        """Where a window begins that is refused as it is."""
        start, found = self.window.start, self._tokens()
        if counted or (limit and found.of(start) < limit):
            found = found.corrected(start, counted or limit or 0)
        least = found.of(start) - 1  # whatever is named, this was too much
        takes = min(least, limit - room(self._call.ask, limit)) if limit else least
        return begin([Bound(takes, found.of)], start, self._plan.injected, self._places, depth)

    def _fewer(self, found: Overflow) -> int:
        """Where a window begins that has too many messages or bytes as it is."""
        start, end = self.window.start, self._plan.injected
        cost = self._messages if found.kind is Kind.MESSAGES else self._bytes
        takes = min(found.limit or cost(start), cost(start) - 1)
        return begin([Bound(takes, cost)], start, end, self._places, DEPTH / (1 + self._tries))

    def _messages(self, start: int) -> int:
        return self._plan.injected - start + len(self._plan.messages)

    def _bytes(self, start: int) -> int:
        whole = self._sizes.whole
        return whole[self._plan.injected] - whole[start] + len(self._call.ask.body)

    def _without_images(self, limit: int | None) -> None:
        """Leave images out: all but as many as are taken, which is remembered; of those that nobody named the half."""
        end, sizes = self._plan.injected, self._sizes
        own, sent = self._own.images, sizes.images[end] - sizes.images[max(self.window.start, self.window.blank)]
        takes = limit if limit is not None else own + sent // 2
        self._runtime.store.learned.pictured(self._model, takes)
        blank = sizes.spared(takes, end, own)
        if blank > self.window.blank:
            self.window = self.window._replace(blank=blank)

    def _may_be_refused(self, answer: Response) -> bool:
        """Whether a 200 may be an error: LM Studio and routers answer so. Of a stream see `looks_within`."""
        if not self._is_trimmed or self._size < _LEAST:
            return False
        length = answer.length
        return length is not None and length <= _SMALL
