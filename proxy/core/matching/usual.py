"""Reads what most requests are, by what costs little: one new message after the history, or a list that continues the
latest one.

Pure. The readings of `reconcile` would give the same plans, and read all other requests.
"""

from __future__ import annotations

from collections.abc import Sequence

from proxy.core.history import History
from proxy.core.matching.alignment import Alignment, MessageReader, has_ours
from proxy.core.matching.repeats import ALL
from proxy.core.model import CLIENT, FLAGS, STREAM, Ask, SeenPrefix, Turn, has_tools
from proxy.core.plan import Decision, Flight, Plan

NEW = "no reply of ours in it"
HEADS = 8  # turns at most that may have come before the chat they were asked for


def is_one_new_message(ask: Ask, history: History, flights: Sequence[Flight], client: bytes) -> bool:
    """Whether a request is one message behind a history in which nobody has shown more than that: as most are, and no
    reading needs to be tried."""
    last = history.last
    if last is None or last.rendered is None or last.resends or not last.asked:
        return False
    if last.client[:CLIENT] != client and last.client:  # an earlier version kept none
        return False
    if flights or history.side_requests or history.carriers or ask.count != 1 or ask.messages[0].role == "assistant":
        return False
    tools = len(ask.tools) if ask.tools and has_tools(ask.tools) else 0
    return last.traits >> FLAGS == tools and (not tools or len(history.turns) > HEADS)


def appended(ask: Ask, history: History, client: bytes) -> Plan:
    """The plan to append the new message after the tip, as `Planner.append` makes it: one call in place of three."""
    return Plan(
        Decision.APPEND,
        NEW,
        parent=history.tip,
        messages=ask.messages,
        asked=ask.messages,
        system=history.system if ask.system is None else ask.system,
        path=history.path,
        injected=len(history.path),
        client=client,
    )


def seen_again(ask: Ask, seen: SeenPrefix, history: History, dialect: MessageReader) -> Plan | None:
    """The plan of a list that begins as the latest one did: all of the history, and then what is new. Costs what
    is new; None where it departs."""
    path = history.path
    pairs = Alignment(ask.tail, dialect).run(path, 0, seen.covered)
    if seen.covered + len(pairs) != len(path) or not has_ours(pairs, path):
        return None
    return Plan(
        Decision.RESEND,
        ALL,
        parent=history.tip,
        messages=ask.tail,
        asked=ask.tail[pairs[-1][0] + 1 :],
        system=ask.system,
        path=path,
        pairs=pairs,
        resends=True,
        alone=True,
        client=seen.client,
        carries_history=True,
    )


def differs_twice(ask: Ask, last: Turn | None) -> bool:
    """Whether a list has other tools than the latest turn and no stream where that had one: two marks at once."""
    return last is not None and bool(last.traits & STREAM) and not ask.stream and len(ask.tools) != last.traits >> FLAGS
