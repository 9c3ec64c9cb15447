"""Builds the plan of a request once its list has been matched: what goes upstream, and what is recorded.

Pure. `reconcile` decides how the list is read.
"""

from __future__ import annotations

from collections.abc import Sequence

from proxy.core.history import History
from proxy.core.matching.alignment import Alignment, Entries, Fingerprinter, Pairs, layout
from proxy.core.matching.repeats import Match
from proxy.core.matching.speakers import Speakers, client_of, is_of_another
from proxy.core.model import Ask, Layout, Message
from proxy.core.plan import Decision, Flight, Plan


class Planner:
    """Makes plans for one request. `messages`: its list, without copies of replies that say nothing."""

    def __init__(
        self,
        ask: Ask,
        messages: Sequence[Message],
        history: History,
        dialect: Fingerprinter,
        flights: Sequence[Flight],
        client: bytes,
    ) -> None:
        self._ask, self._list, self._history, self._dialect = ask, tuple(messages), history, dialect
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
            client=client_of(self._client, self._list, self._dialect) if brought else self._client,
        )

    def append(self, start: int, reason: str, tip: str | None = None) -> Plan:
        """The plan to append the list from `start` after the tip, or after the turn `tip`."""
        history = self._history
        path = history.path if tip is None else history.path_of(tip)
        system = self._remembered() if tip is None or self._ask.system is not None else history.system_of(tip)
        return Plan(
            Decision.APPEND,
            reason,
            parent=history.tip if tip is None else tip,
            messages=self._list[start:],
            asked=self._list[start:],
            system=system,
            path=path,
            injected=len(path),
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

    def followed(self, found: Match, carries_history: bool | None = None, stays: bool = True) -> Plan:
        """The plan of a list that repeats stored messages: the new turn keeps these. `stays`: it also keeps what other
        clients said and the list does not show. `carries_history`: as in Plan, None to find out."""
        if carries_history is None:
            carries_history = self._resent(found.pairs, found.path)
        if stays and found.path is not self._history.path:
            found = self._with_others(found)
        pairs, path, tip, before, size = found.pairs, found.path, found.tip, found.before, len(self._list)
        repeated = sorted([*pairs, *found.told])
        unseen = self._unseen(repeated, found) if stays else []
        client = client_of(self._client, self._list, self._dialect) if carries_history or unseen else self._client
        known = {n for n, _ in repeated}
        # As of most lists: all of the line, and then what is new. To lay that out takes as long as all else.
        whole = len(repeated) == len(path) > 0 and len(known) == repeated[-1][0] + 1
        parts = None if whole else layout(repeated, size, before, unseen)
        if parts is not None and not _is_whole(parts, path):
            tip, path = self._nearest(tip, path, max([before - 1, *unseen, *[at for _, at in repeated]]))
        decision, reason = found.decision, found.reason
        if unseen:
            edits = len(unseen) + before + len(repeated) < len(found.path)
            decision = decision if edits else Decision.RESEND
            reason = (reason if edits else "all of its own list, and then what is new") + "; what others said stays"
        return Plan(
            decision,
            reason,
            parent=tip,
            messages=self._list,
            asked=tuple([message for n, message in enumerate(self._list) if n not in known]),
            system=self._remembered() if before else self._ask.system,
            path=path,
            pairs=pairs,
            injected=before,
            layout=None if parts is None or _is_whole(parts, path) else parts,
            resends=not before,
            alone=not before and not self._awaits_flight(repeated),
            spliced=bool(unseen or found.told),
            client=client,
            carries_history=carries_history,
        )

    def _resent(self, pairs: Pairs, path: Entries) -> bool:
        """Whether the list carried a reply of ours, and behind it a message of the user's: more than a tool loop."""
        first = next((n for n, at in pairs if path[at].ours), len(self._list))
        return any([message.role == "user" for message in self._list[first + 1 :]])

    def _with_others(self, found: Match) -> Match:
        """What a list repeats of another branch, which has not what other software said since: that stays, so the list
        follows the tip, and of what it repeats only what stands there, too."""
        path, known = self._history.path, {entry.turn.id for entry in found.path}
        if all([entry.turn.id in known or not is_of_another(entry.turn, self._client) for entry in path]):
            return found
        places = {id(entry.message): at for at, entry in enumerate(path)}
        both = [
            (n, places[id(found.path[at].message)]) for n, at in found.pairs if id(found.path[at].message) in places
        ]
        return found._replace(pairs=both, path=path, tip=self._history.tip)

    def _unseen(self, pairs: Pairs, found: Match) -> list[int]:
        repeated = {*range(found.before), *[at for _, at in pairs]}
        if len(repeated) == len(found.path):
            return []
        history = self._history
        if found.path is not history.path:
            history = History(history.turns, found.tip)
        client = client_of(self._client, self._list, self._dialect)
        return Speakers(history, client, self._dialect).unseen(repeated, found.anew)

    def _nearest(self, tip: str | None, path: Entries, top: int) -> tuple[str | None, Entries]:
        """The earliest turn that holds all of the line up to `top`: what nobody follows may go one day."""
        if top < 0:
            return None, ()
        owner = path[top].turn.id
        shorter = self._history.path_of(owner)
        same = [mine.message is theirs.message for mine, theirs in zip(shorter, path[: top + 1], strict=False)]
        return (owner, shorter) if len(same) == top + 1 and all(same) else (tip, path)

    def _remembered(self) -> bytes | None:
        return self._history.system if self._ask.system is None else self._ask.system

    def _awaits_flight(self, pairs: Pairs) -> bool:
        """Whether the list holds the reply of a turn in flight, which its client has seen but for the end."""
        tail = pairs[-1][0] + 1 if pairs else 0
        alignment = Alignment(self._list, self._dialect)
        for flight in self._flights:
            reply = tail + len(flight.asked)
            answered = len(self._list) > reply and self._list[reply].role == "assistant"
            if answered and alignment.begins(tail, flight.asked):
                return True
        return False


def as_turns(messages: Sequence[Message]) -> list[tuple[Message, ...]]:
    """A list split into turns: one for each answered user message, and last what is not answered yet."""
    turns: list[tuple[Message, ...]] = []
    start = 0
    for n in range(1, len(messages)):
        if messages[n].role == "user" and messages[n - 1].role == "assistant":
            turns.append(tuple(messages[start:n]))
            start = n
    return [*turns, tuple(messages[start:])]


def _is_whole(parts: Layout, path: Entries) -> bool:
    """Whether a layout is all of the line, and then what is new."""
    return parts[:1] == ((0, len(path)),) and all([isinstance(part, int) for part in parts[1:]])
