"""The window of a recorded turn, as it is chosen before it is sent; see `narrowing` for what follows of a refusal.

Puts together what is known of limits (the configuration's, and those that upstreams named); what a window is, and
where it may begin, stands in `core.window`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cached_property

from proxy.context.runtime import Runtime
from proxy.core.history import History
from proxy.core.learned import is_of
from proxy.core.model import Cut, ModelKey, Turn
from proxy.core.plan import Decision, Plan
from proxy.core.window.chain import furthest, taken
from proxy.core.window.choose import DEPTH, Bound, Window, begin, in_force, is_trimmed, last, places, reaching, settled
from proxy.core.window.cuts import purpose
from proxy.core.window.token_estimate import LOOK_BACK, Size, Sizes, Tokens, size_of, sizes_of, tokens
from proxy.dialects.chat import compose as sending
from proxy.dialects.chat import tool_groups as groups
from proxy.dialects.chat.compose import Form
from proxy.dialects.chat.context_errors import room
from proxy.dialects.chat.summary import within
from proxy.errors import ContextTooLong
from proxy.turns.chat_request import Call
from proxy.turns.summarize import Asked, after

log = logging.getLogger("proxy.window")
NO_CUT = Cut()
SUMMARY = 2  # messages that a summary takes: itself, and what stands between it and a user's message
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
        self._last = self._taken = NO_CUT
        self.window = sending.WHOLE
        self._is_long = False  # it is tokens that there are too many of
        self._is_trimmed = is_trimmed(plan)
        if self._is_trimmed and not self._is_free():
            self._choose()
            if probes and self.window.start:
                self._probe()

    def body(self, form: Form) -> tuple[Sequence[bytes], int]:
        """The body to send, and how many messages in it the client did not send; see `compose.compose`."""
        now = self._runtime.now()
        body, injected = sending.compose(self._call.ask, self._plan, self._history, form, self.window, now)
        self._size = sum(map(len, body))
        return body, injected

    def _is_free(self) -> bool:
        """Whether nothing bounds what goes along, nor ever did in this session: as for most."""
        learned, history = self._runtime.store.learned, self._history
        bounded = learned.limits or learned.images or history.cuts or self._plan.line is not history.line
        return self._settings.is_free and not bounded

    @property
    def dropped(self) -> int:
        """How many messages are left out."""
        return self.window.start

    @property
    def cut(self) -> Cut | None:
        """Where the window begins, if that is to be kept with the turn."""
        start, kept = self.window.start, self._taken
        if not start and kept is self._last:
            return None
        cut = Cut(start, kept.summary, kept.covered if kept.summary and kept.covered < start else None)
        return cut if start >= kept.at and cut != self._last else None

    @property
    def limit(self) -> int | None:
        """The tokens that a prompt may have: by the configuration, and by what the upstream said once."""
        known = [self._settings.max_tokens] if self._settings.max_tokens else []
        learned = self._runtime.store.learned
        if learned.limits and self._trims and (named := learned.limit(self._model, self._runtime.now())):
            named *= self._stretch
            known.append(named - room(self._call.ask, named))
        return min(known, default=None)

    def kept(self) -> None:
        """The turn is kept: what it leaves may have to be summarized for the next one."""
        if self._probed is not None:
            self._end_probe(True)
        if self._settings.overflow == "summarize" and not self._plan.resends:
            call, cut = self._call, self.cut
            if cut and cut.at > max(cut.covered, self._last.at):
                log.info("%d messages are left out that no summary tells of yet", cut.at - cut.covered)
            told = call.key, call.target, call.ask.model, self._form, self._frame, self.limit
            after(self._runtime, Asked(*told, self._is_same()))

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
        self.window, limit = sending.WHOLE, self.limit
        history, plan = self._history, self._plan
        self._last = last(history, plan, self._name) if history.cuts else NO_CUT
        known = history.cuts or plan.line is not history.line
        before = in_force(history, plan, limit, self._name) if known else NO_CUT
        self.cut_for = purpose(limit, self._name) if limit else ""
        self._taken = self._summarized(before) or before
        self.window = self._chosen(self._taken, depth)

    def _probe(self) -> None:
        """Every so often more is sent than a learned limit allows: that it grew is told by nobody. Where that is
        refused, what is usual is sent, and the client sees nothing of it."""
        learned, usual = self._runtime.store.learned, (self._taken, self.window, self.cut_for)
        named = learned.limit(self._model, self._runtime.now()) if learned.limits else None
        if not named or self._plan.decision is Decision.RETRY or not learned.is_probed(self._model):
            return
        self._stretch = STRETCHED
        self._choose(FILLED)
        if self.window.start < usual[1].start and self._tokens().of(self.window.start) > named:
            self._probed = named
        else:
            self._stretch = 1
            self._taken, self.window, self.cut_for = usual

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
        plan, at = self._plan, (self._last.at, self.window.blank)  # what was counted was counted before
        then, now = len(self._last.summary or b""), len(self.window.summary or b"")
        found = tokens(plan.line, self._sizes, at, plan.injected, self._own, self._frame + then, self._is_same())
        return found.grown(now - then)

    def _is_same(self) -> Callable[[Turn], bool]:
        """Which turns had this one's window: of several models each has its own. A reply may name another model than
        was asked for, and does so throughout."""
        recent = self._plan.line[: self._plan.injected][-LOOK_BACK:] if self._history.cuts else ()
        several = len({entry.turn.model for entry in recent if entry.ours}) > 1
        asked = self._call.ask.model
        return lambda turn: self._form.binds(turn.form) and (not several or is_of(turn.model, asked))

    def _summarized(self, now: Cut) -> Cut | None:
        """The cut with a summary that tells more than the one in force: one that was prepared, or that of a cut which
        another model needed."""
        if self._settings.overflow != "summarize":
            return None
        others = self._history.cuts if self._plan.line is self._history.line else ()
        told = [taken(each.cut, now, deepens=False) for each in others]
        line = self._plan.line[: self._plan.injected]
        if found := self._runtime.summaries.ready(self._call.key, line, now.covered):
            told.append(taken(found.cut, now, found.model == self._call.ask.model))
        cut = furthest([cut for cut in told if cut])
        return settled(cut, self._plan) if cut.summary else None

    def _chosen(self, cut: Cut, depth: float) -> Window:
        settings, end = self._settings, self._plan.injected
        blank = self._sizes.blank(settings.image_turns) if settings.image_turns else 0
        if (pictures := self._runtime.store.learned.images) and self._model in pictures:
            blank = max(blank, self._sizes.spared(pictures[self._model], end, self._own.images))
        if cut.at or blank:
            at = reaching(self._plan.line, self._plan.messages, cut.at, end, groups) if cut.at else 0
            self.window = Window(at, blank, self._fitting(cut.summary) if cut.at else None)
        bounds = self._bounds()
        start = begin(bounds, self.window.start, end, self._places, depth) if bounds else self.window.start
        if start > cut.at and (more := self._summarized(Cut(start, cut.summary, cut.covered))):
            self._taken, self.window = more, Window(more.at, blank, self._fitting(more.summary))
            return self.window._replace(start=begin(self._bounds(), more.at, end, self._places, depth))
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
        return self.window._replace(start=start)

    def _fitting(self, summary: bytes | None) -> bytes | None:
        """A summary that was written for a larger model takes no more than a quarter of this one's limit."""
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

    def _places(self) -> list[int]:
        return places(self._plan.line, self._plan.messages, self.window.start, self._plan.injected, groups)

    def _messages(self, start: int) -> int:
        return self._plan.injected - start + len(self._plan.messages) + (SUMMARY if self.window.summary else 0)

    def _bytes(self, start: int) -> int:
        whole = self._sizes.whole
        return whole[self._plan.injected] - whole[start] + len(self._call.ask.body) + len(self.window.summary or b"")
