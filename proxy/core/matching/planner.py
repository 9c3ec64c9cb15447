"""What is planned of a request once it is known how its list is read: what goes upstream, and what is recorded.

Pure. How a list is read is decided in `reconcile`.
"""

from __future__ import annotations

from collections.abc import Sequence

from proxy.core.history import History
from proxy.core.matching.alignment import Alignment, Line, Marks, Pairs, layout
from proxy.core.matching.repeats import Found
from proxy.core.matching.speakers import Speakers, client_of, is_of_another
from proxy.core.model import Ask, Layout, Message
from proxy.core.plan import Decision, Flight, Plan


class Planner:
    """Plans for one request: `messages` is its list, without copies of silent replies."""

    def __init__(
        self,
        ask: Ask,
        messages: Sequence[Message],
        history: History,
        marks: Marks,
        flights: Sequence[Flight],
        client: bytes,
    ) -> None:
        self._ask, self._list, self._history, self._marks = ask, tuple(messages), history, marks
        self._flights, self._client = flights, client

    def opening(self, parent: str | None, reason: str) -> Plan:
        *brought, asked = as_turns(self._list)
        return Plan(
            Decision.ADOPT if brought else Decision.APPEND,
            f"{reason}, and it brings a history along" if brought else reason,
            parent=parent,
            messages=self._list,
            asked=asked,
            system=self._ask.system,
            adopted=tuple(brought),
            client=client_of(self._client, self._list, self._marks) if brought else self._client,
        )

    def append(self, start: int, reason: str, tip: str | None = None) -> Plan:
        """Behind the session's tip, or another turn that is to be it."""
        history = self._history
        line = history.line if tip is None else history.line_of(tip)
        system = self._remembered() if tip is None or self._ask.system is not None else history.system_of(tip)
        return Plan(
            Decision.APPEND,
            reason,
            parent=history.tip if tip is None else tip,
            messages=self._list[start:],
            asked=self._list[start:],
            system=system,
            line=line,
            injected=len(line),
            client=self._client,
        )

    def aside(self, reason: str) -> Plan:
        return Plan(
            Decision.ASIDE,
            reason,
            None,
            self._ask.messages,
            self._ask.messages,
            self._ask.system,
            alone=True,
            side=True,
            client=self._client,
        )

    def followed(self, found: Found, carries: bool | None = None, stays: bool = True) -> Plan:
        """The turn that keeps what the list repeats, behind the first `before` messages of the line, and what other
        clients said that it `stays` with."""
        if carries is None:
            carries = self._resent(found.pairs, found.line)
        if stays and found.line is not self._history.line:
            found = self._with_others(found)
        pairs, line, tip, before, size = found.pairs, found.line, found.tip, found.before, len(self._list)
        repeated = sorted([*pairs, *found.told])
        unseen = self._unseen(repeated, found) if stays else []
        client = client_of(self._client, self._list, self._marks) if carries or unseen else self._client
        known = {n for n, _ in repeated}
        # As of most lists: all of the line, and then what is new. To lay that out takes as long as all else.
        whole = len(repeated) == len(line) > 0 and len(known) == repeated[-1][0] + 1
        parts = None if whole else layout(repeated, size, before, unseen)
        if parts is not None and not _is_whole(parts, line):
            tip, line = self._nearest(tip, line, max([before - 1, *unseen, *[at for _, at in repeated]]))
        decision, reason = found.decision, found.reason
        if unseen:
            edits = len(unseen) + before + len(repeated) < len(found.line)
            decision = decision if edits else Decision.RESEND
            reason = (reason if edits else "all of its own list, and then what is new") + "; what others said stays"
        return Plan(
            decision,
            reason,
            parent=tip,
            messages=self._list,
            asked=tuple([message for n, message in enumerate(self._list) if n not in known]),
            system=self._remembered() if before else self._ask.system,
            line=line,
            pairs=pairs,
            injected=before,
            layout=None if parts is None or _is_whole(parts, line) else parts,
            resends=not before,
            alone=not before and not self._awaits_flight(repeated),
            spliced=bool(unseen or found.told),
            client=client,
            carries=carries,
        )

    def _resent(self, pairs: Pairs, line: Line) -> bool:
        """Whether the list carried a reply of ours, and behind it a message of the user's: more than a tool loop."""
        first = next((n for n, at in pairs if line[at].ours), len(self._list))
        return any([message.role == "user" for message in self._list[first + 1 :]])

    def _with_others(self, found: Found) -> Found:
        """What a list repeats of another branch, which has not what other software said since: that stays, so the list
        follows the tip, and of what it repeats only what stands there, too."""
        line, known = self._history.line, {entry.turn.id for entry in found.line}
        if all([entry.turn.id in known or not is_of_another(entry.turn, self._client) for entry in line]):
            return found
        places = {id(entry.message): at for at, entry in enumerate(line)}
        both = [
            (n, places[id(found.line[at].message)]) for n, at in found.pairs if id(found.line[at].message) in places
        ]
        return found._replace(pairs=both, line=line, tip=self._history.tip)

    def _unseen(self, pairs: Pairs, found: Found) -> list[int]:
        repeated = {*range(found.before), *[at for _, at in pairs]}
        if len(repeated) == len(found.line):
            return []
        history = self._history
        if found.line is not history.line:
            history = History(history.turns, found.tip)
        client = client_of(self._client, self._list, self._marks)
        return Speakers(history, client, self._marks).unseen(repeated, found.anew)

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
        alignment = Alignment(self._list, self._marks)
        for flight in self._flights:
            reply = tail + len(flight.asked)
            answered = len(self._list) > reply and self._list[reply].role == "assistant"
            if answered and alignment.begins(tail, flight.asked):
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
