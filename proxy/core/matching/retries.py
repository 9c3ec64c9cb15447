"""Recognises a retry of the last turn, and plans what is sent for it. Pure."""

from __future__ import annotations

from proxy.core.history import Entry, History, laid_out
from proxy.core.model import Ask, Turn
from proxy.core.plan import Decision, Plan


def is_retry(request: bytes, last: Turn | None, counted: bool, delivered: bool | None) -> bool:
    """Whether a request that no turn in flight answers is the last turn tried again.

    `request` is its body's digest, `counted` whether it says that it is a retry, `delivered` whether a
    client has seen the end of the last turn; after a restart nobody knows (None). A delivered turn is
    never tried again by an equal body alone: "continue" twice is two turns.
    """
    if last is None or last.request != request:
        return False
    return counted if delivered is None else not delivered


def retried(history: History, turn: Turn, ask: Ask) -> Plan:
    """The plan of a recorded turn, to be run again beside it: what it was read against, not what stands there now.
    `ask` is the request that came again."""
    path = history.path_of(turn.parent)
    if turn.layout is not None:
        path = tuple(laid_out(path, turn.layout, [Entry(message, turn, False) for message in turn.asked]))
    messages = turn.asked if turn.layout is None else ()
    spliced = turn.is_side_request or (turn.resends and turn.is_spliced)  # its client's list went as it was
    return Plan(
        Decision.RETRY,
        "the last turn, tried again",
        parent=turn.parent,
        messages=ask.messages if spliced else messages,
        asked=turn.asked,
        system=history.system_of(turn.id),
        path=() if spliced else path,
        injected=0 if spliced else len(path),
        layout=turn.layout,
        resends=turn.resends,
        alone=turn.resends,
        side=turn.is_side_request,
        spliced=spliced,
        client=turn.client,
        carries_history=turn.carries_history,
    )
