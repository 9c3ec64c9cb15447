"""Finds which messages of a history a list repeats, and tries the ways to read such a list in order.

Pure. `reconcile` decides what is planned of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

from proxy.core.history import Entry, History
from proxy.core.matching.alignment import Alignment, Entries, MessageReader, Pairs, has_ours
from proxy.core.matching.prompts import is_quoted
from proxy.core.matching.side_requests import SideRequestCheck
from proxy.core.matching.starts import Start
from proxy.core.model import Message, TurnState
from proxy.core.plan import Decision

ALL = "all of the history, and then what is new"


class Match(NamedTuple):
    """Which messages of the `path` that ends at the turn `tip` a list repeats, how many precede those that are to be
    put in front, and which the list `told` in another role, so that its own copies go upstream. `anew`: its client has
    begun another list with it, and of what precedes it only what other software said stays."""

    pairs: Pairs
    reason: str
    path: Entries
    tip: str | None
    decision: Decision = Decision.REWRITE
    before: int = 0
    told: Sequence[tuple[int, int]] = ()
    anew: bool = False


class Repeats:
    """Compares one list with the branches of one history. `resends`: its client sends its history with each request."""

    def __init__(
        self,
        messages: Sequence[Message],
        history: History,
        dialect: MessageReader,
        beside: SideRequestCheck,
        resends: bool,
    ) -> None:
        self._list, self._history, self._dialect, self._beside = messages, history, dialect, beside
        self._resends = resends
        self._found = Alignment(messages, dialect)

    @property
    def alignment(self) -> Alignment:
        return self._found

    @cached_property
    def _start(self) -> Start:
        return Start(self._list, self._history, self._dialect, self._beside, self._found)

    def of_the_history(self) -> Match | None:
        """The first match that fits, of a list that carries a reply of ours; None where none does."""
        history, resends = self._history, self._resends
        path, tip, pairs = self._from_the_start()
        if pairs and pairs[-1][1] + 1 == len(path) and (tip == history.tip or history.by_id[tip or ""].is_side_request):
            return Match(pairs, ALL, path, tip, Decision.RESEND)
        end = [] if pairs and resends else self._found.window(history.path, to_the_tip=True)
        if end and (pairs or not self._is_answered_anew(end)):
            return self._window(end)
        again = self._tries_again()
        if again and (pairs or not self._is_answered_anew(again.pairs)):
            return again
        pairs = pairs or self._to_the_first_reply()
        if pairs:
            departs = pairs[-1][0] + 1 < len(self._list)
            reason = "it departs from the history" if departs else "it ends before the tip"
            return Match(self._on(pairs, path), reason, path, tip)
        if window := self._found.window(history.path, to_the_tip=False):
            reason = "it departs from the history within a window"
            return self._in_front(Match(self._on(window, history.path), reason, history.path, history.tip))
        return self._begins_anew() or self._in_order()

    def silently(self) -> Match | None:
        """A list that repeats all of a line whose last reply said nothing, and that no copy of a reply shows."""
        history = self._history
        if history.last is None or history.last.rendered is not None:
            return None
        pairs = self._found.run(history.path)
        if not self._is_silent_to(pairs, history.path):
            return None
        return Match(pairs, ALL, history.path, history.tip, Decision.RESEND)

    def unheard(self) -> Match | None:
        """What the first turn asked, and more behind it, where its client has not taken the reply: one that was
        cut, or makes calls that the list does not answer."""
        path, last = self._history.path, self._history.last
        if last is None or last.rendered is None or not len(path) - 1 == len(last.asked) < len(self._list):
            return None
        if last.state is not TurnState.INTERRUPTED and not self._dialect.made("assistant", last.rendered.raw):
            return None
        pairs = self._found.run(path)
        if len(pairs) < len(last.asked) or any([self._dialect.answered(m.role, m.raw) is not None for m in self._list]):
            return None
        return Match(pairs, "what was asked first, without the reply that its client has not taken", path, last.id)

    def told_by_another(self) -> Match | None:
        """The list of one of several agents: from the start to the tip, but that it tells others' replies as a
        user's messages. No pairs for those: its own copies go upstream."""
        path = self._history.path
        pairs: Pairs = []
        told: Pairs = []
        if not 2 <= len(path) <= len(self._list):
            return None
        for n, entry in enumerate(path):
            if self._found.same(n, entry):
                pairs.append((n, n))
            elif self._is_told(self._list[n], entry):
                told.append((n, n))
            else:
                return None
        reason = "an agent's list, that tells the others' replies"
        return Match(pairs, reason, path, self._history.tip, Decision.RESEND, told=told) if told else None

    def questions(self) -> Match | None:
        """A list that repeats what the client sent and leaves our replies out: each one longer than the last."""
        path, last = self._history.path, self._history.last
        if last is None or len(self._list) < 2:
            return None
        own = len(last.asked) + (1 if last.rendered else 0)
        earlier = [at for at in range(len(path) - own) if path[at].message.role != "assistant"]
        news = self._found.begins_as(last.asked, [path[at] for at in earlier]) if earlier else 0
        kept = list(range(len(path)))
        if news:  # the second list was read as new messages: what it repeated is left out
            kept = [*range(len(path) - own), *range(len(path) - own + news, len(path))]
        places = [at for at in kept if path[at].message.role != "assistant"]
        same = all([self._found.same(n, path[at]) for n, at in enumerate(places[: len(self._list)])])
        if not 2 <= len(places) < len(self._list) or not same:
            return None
        pairs: Pairs = []
        n = -1
        for at in kept:
            n += path[at].message.role != "assistant"
            pairs.append((max(n, 0), at))
        return Match(pairs, "its own messages alone, a longer list each time", path, self._history.tip, Decision.RESEND)

    def elsewhere(self) -> Pairs:
        """What of the list stands in the tip's line, in order."""
        return self._found.in_order(self._history.path)

    def best(self) -> Match:
        """What of the list stands on any branch, in order: the one that holds most of it."""
        return max(self._on_branches(), key=lambda found: len(found.pairs))

    def _on_branches(self) -> list[Match]:
        """What of the list stands on each branch, in order, the tip's first. Side requests are none."""
        history = self._history
        others = [other for other in history.other_paths if not history.by_id[other[0]].is_side_request]
        paths = [(history.tip, history.path), *others]
        return [Match(self._found.in_order(path), "", path, tip) for tip, path in paths]

    def _is_told(self, message: Message, entry: Entry) -> bool:
        """Whether another agent's reply stands in a list as a user's message, or within one."""
        if message.role != "user" or not entry.ours or self._beside.is_under(self._history.system_of(entry.turn.id)):
            return False
        said = self._dialect.text(entry.message.raw)
        told = self._dialect.text(message.raw)
        return said != "" and (said == told or is_quoted(said, told))

    def _window(self, end: Pairs) -> Match:
        """The end of the history."""
        history = self._history
        reason = "the end of the history, and then what is new"
        found = self._in_front(Match(end, reason, history.path, history.tip, Decision.RESEND))
        if found.before and self._start.is_behind_sides(end):
            return found._replace(before=0, reason="all of its own list; what precedes it were side requests")
        if found.before or found.anew:
            return found
        return found._replace(reason=f"{reason}; what precedes it was cut on purpose")

    def _in_front(self, found: Match) -> Match:
        """A stretch of the history, with what precedes it put in front, unless it was cut on purpose, or was never of
        this list."""
        if self._start.is_begun_anew(found.pairs):
            return found._replace(anew=True, reason=f"{found.reason}; what precedes it was another list")
        return found if self._resends else found._replace(before=found.pairs[0][1])

    def _is_answered_anew(self, pairs: Pairs) -> bool:
        """Whether a list is one from the first message on, with another reply to it, and no later stretch."""
        return bool(self._to_the_first_reply()) and self._start.is_answered_anew(pairs[0][1])

    def _tries_again(self) -> Match | None:
        """The turn that was cut, sent again by itself with the beginning of its reply, as its client saw it."""
        last, found = self._history.last, self._last_again()
        if found is None or last is None or last.rendered is None or last.state is not TurnState.INTERRUPTED:
            return None
        said = self._dialect.text(self._list[len(last.asked)].raw)
        if not said or not self._dialect.text(last.rendered.raw).startswith(said):
            return None
        return self._in_front(found._replace(reason="the last turn again, with what came of it"))

    def _begins_anew(self) -> Match | None:
        """What a list was begun anew with, and another reply to it: one that its client edited."""
        found = self._last_again()
        found = self._in_front(found) if found else None
        return found if found and found.anew else None

    def _last_again(self) -> Match | None:
        """What the last turn asked, at the beginning of the list, and a reply behind it."""
        path, last = self._history.path, self._history.last
        size = len(last.asked) if last else 0
        at = len(path) - 1 - size
        if last is None or last.rendered is None or not 0 < size < len(self._list) or at <= 0:
            return None
        if self._list[size].role != "assistant" or not self._found.begins(0, last.asked):
            return None
        pairs = [(n, at + n) for n in range(size)]
        return Match(pairs, "it departs from the history within a window", path, self._history.tip)

    def _in_order(self) -> Match | None:
        history = self._history
        pairs = self._found.in_order(history.path)
        reason = "replies of ours at their place among other messages"
        if any([self._is_in_place(n, at) for n, at in pairs]):
            return Match(pairs, reason, history.path, history.tip)
        if not (self._resends or self._start.has_resent) or not history.other_paths:
            return None
        with_ours = [found for found in self._on_branches()[1:] if has_ours(found.pairs, found.path)]
        best = max(with_ours, key=lambda found: len(found.pairs), default=None)
        reason = "replies of another branch, at their place among other messages"
        return best._replace(reason=reason, anew=True) if best else None

    def _from_the_start(self) -> tuple[Entries, str | None, Pairs]:
        """The branch that the list follows longest, and how far; no pairs without a reply of ours. One that the
        tip has left is taken where it holds more of the list than the tip's, all in all."""
        history = self._history
        path: Entries = history.path
        tip = history.tip
        pairs = self._found.run(path)
        reached = pairs[-1][0] + 1 if pairs else 0  # a message of the list may repeat two of the line
        # One of them may turn out to be the chat's.
        beside = any([turn.carries_history for turn in history.side_requests])
        if reached < len(self._list) and (len(pairs) < len(path) or beside):
            held = len(self._on(pairs, path))
            for other, branch in history.other_paths:
                further = self._found.run(branch)
                if len(further) > len(pairs) and len(self._on(further, branch)) > held:
                    path, tip, pairs, held = branch, other, further, len(self._on(further, branch))
        elif reached < len(self._list) and pairs:
            path, tip, pairs = self._beside_it(reached) or (path, tip, pairs)
        return path, tip, pairs if has_ours(pairs, path) or self._is_silent_to(pairs, path) else []

    def _beside_it(self, reached: int) -> tuple[Entries, str | None, Pairs] | None:
        """What was said beside the line, where the list repeats the line and goes on with that."""
        history = self._history
        for turn in reversed(history.side_requests):
            if turn.parent and turn.asked and self._found.same(reached, Entry(turn.asked[0], turn, False)):
                path = history.path_of(turn.id)
                pairs = self._found.run(path)
                if len(pairs) == len(path):
                    return path, turn.id, pairs
        return None

    def _is_silent_to(self, pairs: Pairs, path: Entries) -> bool:
        """Whether a list repeats all of a line whose replies, since the last that can be seen, said nothing."""
        return bool(pairs) and pairs[-1][1] + 1 == len(path) and path[-1].turn.rendered is None

    def _to_the_first_reply(self) -> Pairs:
        """How far the list agrees with the history, where that is up to our first reply and it has another one:
        what a client makes of a reply that it edited, or did not see to its end."""
        path = self._history.path
        pairs = self._found.run(path)
        n, at = (pairs[-1][0] + 1, pairs[-1][1] + 1) if pairs else (0, 0)
        other = pairs and n < len(self._list) and self._list[n].role == "assistant"
        return pairs if other and at < len(path) and path[at].ours else []

    def _on(self, pairs: Pairs, path: Entries) -> Pairs:
        """What is repeated before a list departs, and what of the line it still repeats behind that."""
        n, at = (pairs[-1][0] + 1, pairs[-1][1] + 1) if pairs else (0, 0)
        return pairs + self._found.in_order(path, n, at)

    def _is_in_place(self, n: int, at: int) -> bool:
        """Whether a message of the list is a reply of ours that stands where it stood: as far from the start, or behind
        what it answered, with what tools gave in between or without."""
        path = self._history.path
        if not path[at].ours:
            return False
        if n == at or self._resends:
            return True
        asked = next((before for before in range(at - 1, -1, -1) if path[before].message.role == "user"), at)
        question = [*path[asked:at], *[entry for entry in path[:asked] if entry.turn is path[at].turn]]
        return n > 0 and any([self._found.same(n - 1, entry) for entry in question])
