"""Narrows a window that an upstream refuses: leaves out more tokens, messages, bytes or images, as its error says. An
error of unknown meaning counts as too long once the session has failed a few times.
"""

from __future__ import annotations

import logging

from proxy.core.window.choose import DEPTH, Bound, Window, begin
from proxy.core.window.cuts import purpose
from proxy.dialects.chat.context_errors import STATUSES, Kind, Overflow, is_own, overflow, room, within
from proxy.errors import ProxyError
from proxy.turns.fit import FittedWindow
from proxy.upstream.body import Body
from proxy.upstream.client import Response

log = logging.getLogger("proxy.window")
TRIES = 2  # times that a refused request is sent again
ERROR_SIZE = 64 * 1024  # bytes of an error that are looked at
_SMALL = 16 * 1024  # bytes of a 200 that may be an error
_LEAST = 2 * 1024  # bytes of a request that may be too long for a model
_UNREAD = frozenset((200, 400, 413, 422))  # errors with these that nobody can read may be about the length


class Narrowing(FittedWindow):
    """Chooses a window, and narrower ones after refusals."""

    def is_accepted(self, answer: Response, body: Body) -> bool:
        """Whether what has come of an answer shows already that it refuses nothing, which is the common case. Clears
        the session's count of failures then; a stream does so with its first event."""
        if answer.status >= 400:
            return False
        may_be_refused = self._may_be_refused(answer)
        if may_be_refused:
            said = body.available()
            if b'"choices"' not in said or b'"error' in said or len(said) != answer.length:
                return False
        if may_be_refused or not self._chat.ask.stream:
            self._runtime.failures.over(self._chat.key)
        return True

    async def refused(self, answer: Response, body: Body) -> bool:
        """Whether an answer refuses the prompt as too long, and the window was narrowed for another try. For answers
        that `is_accepted` cannot tell."""
        status = answer.status
        if status not in STATUSES and self._probed is None:
            return False
        try:
            said = await body.beginning(ERROR_SIZE)
        except ProxyError:
            return False  # it breaks off, and does so again for who reads on
        return await self._read_error(status, said, overflow(status, said))

    async def refused_within(self, event: bytes) -> bool:
        """Whether the first event of a stream refuses the prompt as too long, and the window was narrowed."""
        return await self._read_error(200, event, within(event))

    @property
    def looks_within(self) -> bool:
        """Whether the first event of a stream may be such a refusal."""
        return self._is_trimmed and self._size >= _LEAST and self._trims

    async def _read_error(self, status: int, said: bytes, found: Overflow | None) -> bool:
        if found is None and status < 400 and (b'"error' not in said or b'"choices"' in said):
            self._runtime.failures.over(self._chat.key)
            return False
        return await self._narrowed(status, found)

    async def _narrowed(self, status: int, found: Overflow | None) -> bool:
        """Narrow the window after an error; `found` is its meaning, None if unknown. Return whether it is narrower."""
        if found and found.kind is Kind.TOKENS and found.limit and self._trims:
            await self._runtime.store.learn_limit(self._model, found.limit, self._runtime.now())
        if self._probed is not None:  # it asked for more than is known to be taken
            self._end_probe(False)
            return True
        if not self._trims or not self._is_trimmed or self._tries == TRIES:
            return False
        before = self.window
        if found is None:
            if status not in _UNREAD or self._tries:
                return False
            tried = self._runtime.failures.again(self._chat.key)
            if tried is None:
                return False
            log.warning("repeated errors that do not say why: retrying with less of the history")
            self.window = self._from(self._narrower(None, None, DEPTH / 2**tried))
        elif found.kind is Kind.IMAGES:
            self._without_images(found.limit)
        elif found.kind is not Kind.TOKENS:
            self.window = self._from(self._fewer(found))
        elif is_own(self._chat.ask, found, self._tokens().of(before.start)):
            log.info("the max_tokens of a request do not fit, however much history is left out")
        else:
            depth = DEPTH / (1 + self._tries)
            self.window = self._from(self._narrower(found.limit, found.tokens, depth))
        if self.window == before:
            return False
        limit = self.limit if found and found.kind is Kind.TOKENS and found.limit else None
        self.trimmed_for = purpose(limit or 0, self._name)
        what = found.kind if found else "tokens"
        takes = found.limit if found and found.limit else "fewer"
        log.info("the upstream takes %s %s: %d messages are left out", takes, what, self.window.start)
        self._tries += 1
        return True

    def _from(self, start: int) -> Window:
        """Return the window from `start` on. If it begins there already, drop the summary as the last resort: the
        client's own messages matter more."""
        less = self.window._replace(start=start, summary=self._fitting(self.window.summary))
        return less if less != self.window else less._replace(summary=None)

    def _narrower(self, limit: int | None, counted: int | None, depth: float) -> int:
        """Compute the start of a window with fewer tokens than the refused one."""
        start, found = self.window.start, self._tokens()
        if counted or (limit and found.of(start) < limit):
            found = found.corrected(start, counted or limit or 0)
        least = found.of(start) - 1  # whatever is named, this was too much
        takes = min(least, limit - room(self._chat.ask, limit)) if limit else least
        return begin([Bound(takes, found.of)], start, self._plan.injected, self._legal_starts, depth)

    def _fewer(self, found: Overflow) -> int:
        """Compute the start of a window with fewer messages or bytes than the refused one."""
        start, end = self.window.start, self._plan.injected
        cost = self._messages if found.kind is Kind.MESSAGES else self._bytes
        takes = min(found.limit or cost(start), cost(start) - 1)
        return begin([Bound(takes, cost)], start, end, self._legal_starts, DEPTH / (1 + self._tries))

    def _without_images(self, limit: int | None) -> None:
        """Leave out images above the limit and remember it; without a named limit leave out half of the history's."""
        end, sizes = self._plan.injected, self._sizes
        own, sent = self._own.images, sizes.images[end] - sizes.images[max(self.window.start, self.window.blank)]
        takes = limit if limit is not None else own + sent // 2
        self._runtime.store.learned.pictured(self._model, takes)
        blank = sizes.spared(takes, end, own)
        if blank > self.window.blank:
            self.window = self.window._replace(blank=blank)

    def _may_be_refused(self, answer: Response) -> bool:
        """Whether a 200 may hold an error, as LM Studio and routers send it. For streams see `looks_within`."""
        if not self._is_trimmed or self._size < _LEAST:
            return False
        length = answer.length
        return length is not None and length <= _SMALL
