"""Tells which client brought each turn of a path, where several clients share a session.

A client that resends sends its own list and has not seen what other clients said in between; those turns stay on the
path. Pure; a client is known by the fingerprint of its software and by its list's first message.
"""

from __future__ import annotations

from collections.abc import Container, Sequence

from msgspec import structs

from proxy.core.history import History
from proxy.core.matching.alignment import Entries, Fingerprinter
from proxy.core.model import CLIENT, Layout, Message, Turn
from proxy.core.plan import Decision, Plan


def client_of(software: bytes, messages: Sequence[Message], dialect: Fingerprinter) -> bytes:
    """A client's fingerprint, with that of its list's first message."""
    return software + (dialect.fingerprint(messages[0].raw)[:CLIENT] if messages else b"")


def is_of_another(turn: Turn, software: bytes) -> bool:
    """Whether other software sent a turn. Of turns that an earlier version kept nobody knows."""
    return turn.client != b"" and turn.client[:CLIENT] != software


def begins_with(turn: Turn, dialect: Fingerprinter) -> bytes:
    """The fingerprint of the message that the list of a turn's client begins with."""
    if len(turn.client) > CLIENT:
        return turn.client[CLIENT:]
    return dialect.fingerprint(turn.asked[0].raw)[:CLIENT] if turn.asked else b""


class Speakers:
    """Tells which turns on the tip's path other clients brought.

    A turn that a later list of the client has shown whole counts as its own, whoever said it first.
    """

    def __init__(self, history: History, client: bytes, dialect: Fingerprinter) -> None:
        self._line, self._dialect = history.path, dialect
        self._software, self._head = client[:CLIENT], client[CLIENT:]
        ids = {entry.turn.id for entry in history.path}
        self._turns = [turn for turn in history.turns if turn.id in ids]  # in the order of their commit
        own = [turn for turn in self._turns if not is_of_another(turn, self._software)]
        firsts = {
            begins_with(turn, dialect) for turn in own if not turn.carries_history
        }  # said alone, as a client begins
        self._heads = {turn.client[CLIENT:] for turn in own if turn.carries_history} & firsts
        self._begins = self._last([turn for turn in own if begins_with(turn, dialect) == self._head])
        lists = [turn for turn in own if turn.carries_history and not turn.is_spliced]
        self._shown = self._last([turn for turn in lists if turn.client[CLIENT:] == self._head])
        self._overtaken = self._last([turn for turn in lists if turn.client[CLIENT:] != self._head])

    def _last(self, turns: Sequence[Turn]) -> int:
        """Where the last of some turns of the line stands; -1 where there is none."""
        return self._turns.index(turns[-1]) if turns else -1

    def unseen(self, matched: Container[int], anew: bool = False) -> list[int]:
        """The positions of what others said and the list does not show. `matched`: the positions that it repeats. A
        list that its client began `anew` leaves out what the same software said before it.

        A turn of which any message is repeated was seen whole: what is missing of it was edited.
        """
        seen = {entry.turn.id for at, entry in enumerate(self._line) if at in matched}
        order = {turn.id: n for n, turn in enumerate(self._turns)}
        first = next((at for at in range(len(self._line)) if at in matched), len(self._line))
        places: dict[str, list[int]] = {}
        for at, entry in enumerate(self._line):
            if entry.turn.id not in seen:
                places.setdefault(entry.turn.id, []).append(at)
        others = [n for id, n in order.items() if id in places and self._is_others(n, places[id][0] > first, anew)]
        return sorted([at for n in others for at in places[self._turns[n].id]])

    def _is_others(self, n: int, behind: bool, anew: bool) -> bool:
        """Whether another client brought a turn, that stands `behind` what the list begins with or before it."""
        turn = self._turns[n]
        if behind and n <= self._shown:
            return False
        if is_of_another(turn, self._software):
            return True
        if anew and not behind:
            return False
        head = begins_with(turn, self._dialect)
        if head == self._head or self._begins <= self._overtaken:
            return False
        # A client that resends appends nothing between its lists.
        return head in self._heads or (
            behind and not (turn.carries_history or turn.resends) and self._head in self._heads
        )


def moved_on(plan: Plan, own: bytes | None, before: History, latest: History, dialect: Fingerprinter) -> Plan:
    """A plan made at the tip of `before`, where turns were kept since, up to the tip of `latest`: it follows them,
    unless they are of the same client or it branches. `own` is the system block that the request brought."""
    if plan.side or plan.branches or latest.tip == before.tip:
        return plan
    path, size = latest.path, len(before.path)
    if plan.decision is Decision.APPEND and plan.parent == before.tip:
        system = latest.system if own is None else own
        return structs.replace(plan, parent=latest.tip, path=path, system=system, spliced=True)
    if len(path) <= size or not _is_start(before.path, path) or not _is_start(plan.path, path):
        return plan
    client = plan.client if len(plan.client) > CLIENT else client_of(plan.client, plan.asked, dialect)
    theirs = [entry.turn for entry in path[size:] if not is_of_another(entry.turn, client[:CLIENT])]
    if any([begins_with(turn, dialect) == client[CLIENT:] for turn in theirs]):
        return plan  # two lists of one client, sent at once: branches
    layout: Layout = (
        ((0, len(plan.path)), *([len(plan.asked)] if plan.asked else [])) if plan.layout is None else plan.layout
    )
    new = len(layout)
    while new and isinstance(layout[new - 1], int):
        new -= 1
    layout = (*layout[:new], (size, len(path)), *layout[new:])
    whole = layout[:2] == ((0, size), (size, len(path)))
    return structs.replace(plan, parent=latest.tip, layout=None if whole else layout, path=path, spliced=True)


def _is_start(some: Entries, path: Entries) -> bool:
    """Whether a line begins with those messages."""
    return all([mine.message is theirs.message for mine, theirs in zip(some, path, strict=False)])
