"""Who sent what: whether a list of messages is new, repeats what the history holds, or departs from it.

Pure. Knows no message's content, no store, and nothing of who waits in line. Every reading, and the
lists that can be read in two ways, stand in docs/reconcile.md.
"""

from __future__ import annotations

from collections.abc import Sequence

from proxy.core.alignment import Alignment, Line, Marks, Pairs, has_ours, layout
from proxy.core.history import Entry, History, laid_out
from proxy.core.members import elements
from proxy.core.model import Ask, Layout, Message, Seen, Turn
from proxy.core.plan import Decision, Flight, Mode, Plan

ALL = "all of the history, and then what is new"


def decide(ask: Ask, history: History, marks: Marks, mode: Mode = Mode.AUTO, flights: Sequence[Flight] = ()) -> Plan:
    """How a request is read, against the history and the turns in flight."""
    if ask.seen and mode is not Mode.APPEND and not flights and (plan := _seen_again(ask, ask.seen, history, marks)):
        return plan
    return _Reading(ask, history, marks, flights).plan(mode)


def is_retry(request: bytes, last: Turn | None, counted: bool, delivered: bool | None) -> bool:
    """Whether a request that no turn in flight answers is the last turn tried again.

    `request` is its body's digest, `counted` whether it says that it is a retry, `delivered` whether a
    client has seen the end of the last turn; after a restart nobody knows (None). A delivered turn is
    never tried again by an equal body alone: "continue" twice is two turns.
    """
    if last is None or last.request != request:
        return False
    return counted if delivered is None else not delivered


def retried(history: History, turn: Turn) -> Plan:
    """The plan of a recorded turn, to be run again beside it: what it was read against, not what stands there now."""
    line = history.line_of(turn.parent)
    if turn.layout is not None:
        line = tuple(laid_out(line, turn.layout, [Entry(message, turn, False) for message in turn.asked]))
    return Plan(
        Decision.RETRY,
        "the last turn, tried again",
        parent=turn.parent,
        messages=turn.asked if turn.layout is None else (),
        asked=turn.asked,
        system=history.system_of(turn.id),
        line=line,
        injected=len(line),
        layout=turn.layout,
        resends=turn.resends,
        alone=turn.resends,
    )


def _seen_again(ask: Ask, seen: Seen, history: History, marks: Marks) -> Plan | None:
    """The plan of a list that begins as the latest one did: all of the history, and then what is new. Costs what
    is new; None where it departs."""
    line = history.line
    pairs = Alignment(ask.tail, marks).run(line, 0, seen.covered)
    if seen.covered + len(pairs) != len(line) or not has_ours(pairs, line):
        return None
    return Plan(
        Decision.RESEND,
        ALL,
        parent=history.tip,
        messages=ask.tail,
        asked=ask.tail[pairs[-1][0] + 1 :],
        system=ask.system,
        line=line,
        pairs=pairs,
        resends=True,
        alone=True,
    )


class _Reading:
    """One list held against one history."""

    def __init__(self, ask: Ask, history: History, marks: Marks, flights: Sequence[Flight]) -> None:
        self._ask, self._history, self._marks, self._flights = ask, history, marks, flights
        self._list = ask.messages
        self._found = Alignment(ask.messages, marks)
        self._resends = history.resends or any([flight.resends for flight in flights])

    def plan(self, mode: Mode) -> Plan:
        self._resends = self._resends or mode is Mode.RESEND
        if mode is Mode.APPEND:
            return self._append(0, "the mode says so")
        if not self._history.line:
            return self._first()
        carries = any([message.role == "assistant" for message in self._list])
        if (carries or mode is Mode.RESEND) and (plan := self._repeats()):
            return plan
        if mode is Mode.RESEND:
            return self._followed(self._found.in_order(self._history.line), "the mode says so")
        if self._is_aside():
            return self._aside("another system prompt than the session's, and no reply of ours")
        if len(self._list) > 1 and 0 < (examples := self._history.preamble) < len(self._list):
            same = self._found.run(self._history.line)
            if len(same) >= examples and carries and self._resends:
                return self._followed(same, "it departs from what the session adopted")
            if len(same) >= examples:
                return self._append(examples, "behind the examples that each request brings")
        return self._append(0, "no reply of ours in it")

    def _first(self) -> Plan:
        beside = [flight for flight in self._flights if not self._history.turns]
        if any([(flight.system, flight.tools) != (self._ask.system, self._ask.tools) for flight in beside]):
            return self._aside("beside the first turn, under another system prompt or with other tools")
        *brought, asked = as_turns(self._list)
        if not brought:
            return self._append(0, "the first of its session")
        return Plan(
            Decision.ADOPT,
            "the first of its session, and it brings a history along",
            parent=self._history.tip,
            messages=self._list,
            asked=asked,
            system=self._ask.system,
            adopted=tuple(brought),
        )

    def _append(self, start: int, reason: str) -> Plan:
        return Plan(
            Decision.APPEND,
            reason,
            parent=self._history.tip,
            messages=self._list[start:],
            asked=self._list[start:],
            system=self._remembered(),
            line=self._history.line,
            injected=len(self._history.line),
        )

    def _aside(self, reason: str) -> Plan:
        return Plan(Decision.ASIDE, reason, None, self._list, (), self._ask.system, alone=True)

    def _is_aside(self) -> bool:
        """A title, tags or a summary beside a chat. Another model or other tools alone never make one."""
        own, remembered = self._ask.system, self._history.system
        if not self._resends or own is None or own == remembered:
            return False
        return remembered is None or self._marked(own) != self._marked(remembered)

    def _marked(self, block: bytes) -> list[bytes]:
        return [self._marks.mark(raw) for raw in elements(b"[" + block + b"]")]

    def _repeats(self) -> Plan | None:
        """The readings of a list that carries a reply of ours at its place, in their order."""
        history, resends = self._history, self._resends
        line, tip, pairs = self._from_the_start()
        if pairs and tip == history.tip and pairs[-1][1] + 1 == len(line):
            return self._followed(pairs, ALL, Decision.RESEND)
        if not (pairs and resends) and (end := self._found.window(history.line, to_the_tip=True)):
            reason = "the end of the history, and then what is new"
            reason += "; what precedes it was cut on purpose" if resends else ""
            return self._followed(end, reason, Decision.RESEND, before=0 if resends else end[0][1])
        pairs = pairs or self._to_the_first_reply()
        if pairs:
            departs = pairs[-1][0] + 1 < len(self._list)
            reason = "it departs from the history" if departs else "it ends before the tip"
            return self._followed(self._on(pairs, line), reason, line=line, tip=tip)
        if window := self._found.window(history.line, to_the_tip=False):
            before = 0 if resends else window[0][1]
            reason = "it departs from the history within a window"
            return self._followed(self._on(window, history.line), reason, before=before)
        pairs = self._found.in_order(history.line)
        if any([self._is_in_place(n, at) for n, at in pairs]):
            return self._followed(pairs, "replies of ours at their place among other messages")
        return None

    def _from_the_start(self) -> tuple[Line, str | None, Pairs]:
        """The branch that the list follows longest, and how far; no pairs without a reply of ours. One that the
        tip has left is taken where it holds more of the list than the tip's, all in all."""
        history = self._history
        line, tip = history.line, history.tip
        pairs = self._found.run(line)
        reached = pairs[-1][0] + 1 if pairs else 0  # a message of the list may repeat two of the line
        if len(pairs) < len(line) and reached < len(self._list):
            held = len(self._on(pairs, line))
            for other, branch in history.other_lines:
                further = self._found.run(branch)
                if len(further) > len(pairs) and len(self._on(further, branch)) > held:
                    line, tip, pairs, held = branch, other, further, len(self._on(further, branch))
        return line, tip, pairs if has_ours(pairs, line) else []

    def _to_the_first_reply(self) -> Pairs:
        """How far the list agrees with the history, where that is up to our first reply and it has another one:
        what a client makes of a reply that it edited, or did not see to its end."""
        line = self._history.line
        pairs = self._found.run(line)
        n, at = (pairs[-1][0] + 1, pairs[-1][1] + 1) if pairs else (0, 0)
        other = pairs and n < len(self._list) and self._list[n].role == "assistant"
        return pairs if other and at < len(line) and line[at].ours else []

    def _on(self, pairs: Pairs, line: Line) -> Pairs:
        """What is repeated before a list departs, and what of the line it still repeats behind that."""
        n, at = (pairs[-1][0] + 1, pairs[-1][1] + 1) if pairs else (0, 0)
        return pairs + self._found.in_order(line, n, at)

    def _is_in_place(self, n: int, at: int) -> bool:
        """Whether a message of the list is a reply of ours that stands where it stood: as far from the
        start, or behind what it answered."""
        line = self._history.line
        if not line[at].ours:
            return False
        if n == at or self._resends:
            return True
        question = [entry for entry in line[:at] if entry.turn is line[at].turn]
        return n > 0 and any([self._found.same(n - 1, entry) for entry in question])

    def _followed(
        self,
        pairs: Pairs,
        reason: str,
        decision: Decision = Decision.REWRITE,
        *,
        line: Line | None = None,
        tip: str | None = None,
        before: int = 0,
    ) -> Plan:
        """The turn that keeps what the list repeats, behind the first `before` messages of the line."""
        if line is None:
            line, tip = self._history.line, self._history.tip
        parts = layout(pairs, len(self._list), before)
        if not _is_whole(parts, line):
            tip, line = self._nearest(tip, line, max([before - 1, *[at for _, at in pairs]]))
        repeated = {n for n, _ in pairs}
        return Plan(
            decision,
            reason,
            parent=tip,
            messages=self._list,
            asked=tuple([message for n, message in enumerate(self._list) if n not in repeated]),
            system=self._remembered() if before else self._ask.system,
            line=line,
            pairs=pairs,
            injected=before,
            layout=None if _is_whole(parts, line) else parts,
            resends=not before,
            alone=not before and not self._awaits_flight(pairs),
        )

    def _nearest(self, tip: str | None, line: Line, top: int) -> tuple[str | None, Line]:
        """The earliest turn that holds all of the line up to `top`: what nobody follows may go one day."""
        if top < 0:
            return None, ()
        owner = line[top].turn.id
        shorter = self._history.line_of(owner)
        same = [mine.message is theirs.message for mine, theirs in zip(shorter, line[: top + 1], strict=False)]
        return (owner, shorter) if len(same) == top + 1 and all(same) else (tip, line)

    def _remembered(self) -> bytes | None:
        return self._history.system if self._ask.system is None else self._ask.system

    def _awaits_flight(self, pairs: Pairs) -> bool:
        """Whether the list holds the reply of a turn in flight, which its client has seen but for the end."""
        tail = pairs[-1][0] + 1 if pairs else 0
        for flight in self._flights:
            reply = tail + len(flight.asked)
            answered = len(self._list) > reply and self._list[reply].role == "assistant"
            if answered and self._found.begins(tail, flight.asked):
                return True
        return False


def as_turns(messages: Sequence[Message]) -> list[tuple[Message, ...]]:
    """A list as turns: one for each user message that has been answered, and last what has not."""
    turns: list[tuple[Message, ...]] = []
    start = 0
    for n in range(1, len(messages)):
        if messages[n].role == "user" and messages[n - 1].role == "assistant":
            turns.append(tuple(messages[start:n]))
            start = n
    return [*turns, tuple(messages[start:])]


def _is_whole(parts: Layout, line: Line) -> bool:
    """Whether a layout is all of the line, and then what is new."""
    return parts[:1] == ((0, len(line)),) and all([isinstance(part, int) for part in parts[1:]])
