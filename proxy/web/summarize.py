"""What leaves a window, as a summary that the upstream writes: asked for after a turn, in a request of its own.

Never in a turn's way: a summary that is not there in time, or fails, leaves what was trimmed. Only where the
upstream's key is ours, for there is no caller to pay for it otherwise.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import closing
from typing import NamedTuple

from proxy.core.history import Entry, History
from proxy.core.model import Cut, SessionKey
from proxy.core.sizes import Size, sizes_of, tokens
from proxy.core.window import Bound, begin, places
from proxy.dialects import groups, summary
from proxy.dialects.sending import Form
from proxy.errors import ProxyError
from proxy.web import caller
from proxy.web.pieces import Body
from proxy.web.runtime import Runtime
from proxy.web.summaries import Ready
from proxy.web.target import Target

log = logging.getLogger("proxy.summary")
FULL = 0.85  # of the limit: from there on the next turns are prepared for
SIZE = 64 * 1024  # bytes of text in a request for a summary, where no limit is known
_ANSWER = 1 << 20  # bytes of an answer


class Asked(NamedTuple):
    """The turn after which a summary may be asked for. `frame`: bytes of its system block and tools, `limit`: the
    tokens that its prompt might have, None where that is not known."""

    key: SessionKey
    target: Target
    model: str | None
    form: Form
    frame: int
    limit: int | None


class Leaving(NamedTuple):
    """What is to be summarized: the messages that leave, the summary before them, and where the window then begins."""

    entries: Sequence[Entry]
    before: bytes | None
    at: int


def after(runtime: Runtime, asked: Asked) -> None:
    """A turn was kept: ask for a summary, if one is due."""
    settings = runtime.config.history
    paid, free = asked.target.upstream.api_key is not None, runtime.summaries.is_free(asked.key)
    if settings.overflow == "summarize" and paid and free and not runtime.live.draining:
        runtime.summaries.start(asked.key, _prepared(runtime, asked))


async def _prepared(runtime: Runtime, asked: Asked) -> None:
    session = await runtime.store.load(asked.key, runtime.now(), in_use=True)
    history, size = session.history, len(session.history.line)
    if runtime.summaries.ready(asked.key, history) or not runtime.summaries.has_rested(asked.key, size):
        return
    leaving = due(history, asked)
    if leaving is None or history.tip is None:
        return
    if message := await _written(runtime, asked, leaving):
        runtime.summaries.keep(asked.key, Ready(history.tip, Cut(leaving.at, message)))
    else:
        runtime.summaries.fail(asked.key, size)


def due(history: History, asked: Asked) -> Leaving | None:
    """What is to be summarized of a session: what was cut without a summary, else what a turn over the limit would
    cut."""
    cut, line = history.cut, history.line
    if cut.at and cut.summary is None:
        cutter = next((turn for turn in history.ancestors(history.tip) if turn.cut), None)
        before = history.cut_of(cutter.parent) if cutter else Cut()
        return Leaving(line[before.at : cut.at], before.summary, cut.at)
    if not asked.limit:
        return None
    same = lambda turn: asked.form.binds(turn.form)  # noqa: E731
    sizes = sizes_of(history, line)
    found = tokens(line, sizes, (cut.at, 0), len(line), Size(), asked.frame, same)
    bound = Bound(FULL * asked.limit, found.of)
    at = begin([bound], cut.at, len(line), lambda: places(line, (), cut.at, len(line), groups))
    return Leaving(line[cut.at : at], cut.summary, at) if at > cut.at else None


async def _written(runtime: Runtime, asked: Asked, leaving: Leaving) -> bytes | None:
    """The message with the summary, as the upstream wrote it; None where it did not."""
    upstream, body = asked.target.upstream, _request(runtime, asked, leaving)
    headers = caller.with_our_key(upstream, [("Content-Type", "application/json"), ("Accept-Encoding", "identity")])
    try:
        answer = await runtime.client.ask("POST", asked.target.url, headers, (body,), upstream)
        with closing(answer):
            said = await Body(answer).beginning(_ANSWER)
            message = summary.message_of(said) if answer.status == 200 else None
            why = f"the upstream answered {answer.status} without one"
    except ProxyError as error:
        message, why = None, str(error)
    if message is None:
        log.warning("no summary: %s. What leaves is trimmed.", why.rstrip("."))
    return message


def _request(runtime: Runtime, asked: Asked, leaving: Leaving) -> bytes:
    settings = runtime.config.history.summary
    return summary.request(
        settings.prompt,
        settings.model or asked.model,
        min(settings.max_tokens, asked.limit // 8) if asked.limit else settings.max_tokens,
        asked.form.profile,
        [entry.message for entry in leaving.entries],
        min(SIZE, 3 * asked.limit) if asked.limit else SIZE,  # three quarters of it, at four bytes a token
        leaving.before,
    )
