"""Where a client's own list begins: whether a list that repeats a stretch of the history has shown itself from its
start, so that what precedes the stretch was never its own, or was given up.

Pure. What a list repeats is found in `repeats`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import takewhile

from proxy.core.history import History
from proxy.core.matching.alignment import Alignment, MessageReader, Pairs
from proxy.core.matching.prompts import quoted_in
from proxy.core.matching.side_requests import SideRequestCheck
from proxy.core.matching.speakers import begins_with
from proxy.core.model import CLIENT, Message, Turn


class Start:
    """The beginning of one list, held against the line of the tip."""

    def __init__(
        self,
        messages: Sequence[Message],
        history: History,
        dialect: MessageReader,
        beside: SideRequestCheck,
        alignment: Alignment,
    ) -> None:
        self._list, self._history, self._dialect, self._beside = messages, history, dialect, beside
        self._found = alignment

    @property
    def has_resent(self) -> bool:
        """Whether the same software has resent its list in this session."""
        return len(self._lists) > 0

    @cached_property
    def _lists(self) -> list[Turn]:
        return [turn for turn in self._history.turns if turn.carries_history and not self._beside.is_of_another(turn)]

    def is_answered_anew(self, start: int) -> bool:
        """Whether a list that begins with the first message, and has another reply to it, begins there: its client
        has shown that it does, or nothing but tries of that message, what their tools gave, and messages that quote a
        reply to it precede the `start` of what it repeats."""
        if not self._goes_on():
            return False
        head = self._found.head()[:CLIENT]
        if any([turn.client[CLIENT:] == head for turn in self._lists]):
            return True
        before = self._history.path[:start]
        turns = {entry.turn.id: entry.turn for entry in before if entry.message.role == "user"}
        others = [turn for turn in turns.values() if not self._found.begins(0, turn.asked)]
        replies = [self._dialect.text(entry.message.raw) for entry in before if entry.ours] if others else []
        told = [[self._dialect.text(message.raw) for message in turn.asked] for turn in others]
        return all([quoted_in(replies, texts) is not None for texts in told])

    def is_behind_sides(self, pairs: Pairs) -> bool:
        """Whether a list that shows itself from its own start was preceded by side requests alone: other prompts,
        of the same client, that carried nothing."""
        path, start = self._history.path, self._begins(pairs)
        if start is None or self._beside.prompt == "" or not self._beside.is_under(self._history.system_of(start.id)):
            return False
        before = {entry.turn.id: entry.turn for entry in path[: pairs[0][1]]}
        return all([self._was_beside(turn) for turn in before.values()])

    def is_begun_anew(self, pairs: Pairs) -> bool:
        """Whether a list that shows itself from its own start is a later one of software that had shown another by
        then: a second chat, or one whose first message was edited. Who carries its list appends nothing to it."""
        start = self._begins(pairs)
        if start is None or self._beside.is_of_another(start):
            return False
        first = start.asked[0]
        if self._dialect.answered(first.role, first.raw) is not None:
            return False  # a result is no beginning
        earlier = {turn.id for turn in takewhile(lambda turn: turn.id != start.id, self._history.turns)}
        lists = [turn for turn in self._lists if turn.id in earlier and not turn.is_side_request]
        return any(self._is_whole(turn) for turn in lists)  # the first one tells, as a rule

    def _is_whole(self, turn: Turn) -> bool:
        """Whether a turn showed the list of the same software from where that began in the session."""
        if turn.resends:
            return True
        own = [each for each in self._history.ancestors(turn.id) if not self._beside.is_of_another(each)]
        return begins_with(own[-1], self._dialect) == turn.client[CLIENT:]

    def _begins(self, pairs: Pairs) -> Turn | None:
        """The turn that was asked with just what the list begins with, where the list goes on behind its reply."""
        entry = self._history.path[pairs[0][1]]
        turn = entry.turn
        if turn.carries_history or not turn.asked or entry.message is not turn.asked[0] or not self._goes_on():
            return None
        return turn

    def _goes_on(self) -> bool:
        """Whether a list has a message of the user's behind a reply: a tool loop shows a client's last turn only."""
        roles = [message.role for message in self._list]
        return "user" in roles[roles.index("assistant") + 1 :]

    def _was_beside(self, turn: Turn) -> bool:
        system = self._history.system_of(turn.id)
        return not (turn.carries_history or self._beside.is_of_another(turn) or self._beside.is_under(system))
