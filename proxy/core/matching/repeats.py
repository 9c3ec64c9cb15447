"""What of a history a list repeats: the readings of a list that carries a reply of ours at its place, in their order.

Pure. Finds out; what is planned of it stands in `reconcile`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

from proxy.core.history import Entry, History
from proxy.core.matching.alignment import Alignment, Content, Line, Pairs, has_ours
from proxy.core.matching.prompts import is_quoted
from proxy.core.matching.side_requests import Beside
from proxy.core.matching.starts import Start
from proxy.core.model import Message, TurnState
from proxy.core.plan import Decision

ALL = "all of the history, and then what is new"


class Found(NamedTuple):
    """Which messages of the `line` that ends at the turn `tip` a list repeats, how many precede those that are to be
    put in front, and which the list `told` in another role, so that its own copies go upstream. `anew`: its client has
    begun another list with it, and of what precedes it only what other software said stays."""

    pairs: Pairs
    reason: str
    line: Line
    tip: str | None
    decision: Decision = Decision.REWRITE
    before: int = 0
    told: Sequence[tuple[int, int]] = ()
    anew: bool = False


class Repeats:
    """One list held against the branches of one history. `resends`: the client is one that resends."""

    def __init__(
        self, messages: Sequence[Message], history: History, marks: Content, beside: Beside, resends: bool
    ) -> None:
        self._list, self._history, self._marks, self._beside = messages, history, marks, beside
        self._resends = resends
        self._found = Alignment(messages, marks)

    @property
    def alignment(self) -> Alignment:
        return self._found

    @cached_property
    def _start(self) -> Start:
        return Start(self._list, self._history, self._marks, self._beside, self._found)

    def of_the_history(self) -> Found | None:
        """The first reading that fits."""
        history, resends = self._history, self._resends
        line, tip, pairs = self._from_the_start()
        if pairs and pairs[-1][1] + 1 == len(line) and (tip == history.tip or history.by_id[tip or ""].is_side):
            return Found(pairs, ALL, line, tip, Decision.RESEND)
        end = [] if pairs and resends else self._found.window(history.line, to_the_tip=True)
        if end and (pairs or not self._is_answered_anew(end)):
            return self._window(end)
        again = self._tries_again()
        if again and (pairs or not self._is_answered_anew(again.pairs)):
            return again
        pairs = pairs or self._to_the_first_reply()
        if pairs:
            departs = pairs[-1][0] + 1 < len(self._list)
            reason = "it departs from the history" if departs else "it ends before the tip"
            return Found(self._on(pairs, line), reason, line, tip)
        if window := self._found.window(history.line, to_the_tip=False):
            reason = "it departs from the history within a window"
            return self._in_front(Found(self._on(window, history.line), reason, history.line, history.tip))
        return self._begins_anew() or self._in_order()

    def silently(self) -> Found | None:
        """A list that repeats all of a line whose last reply said nothing, and that no copy of a reply shows."""
        history = self._history
        if history.last is None or history.last.echo is not None:
            return None
        pairs = self._found.run(history.line)
        if not self._is_silent_to(pairs, history.line):
            return None
        return Found(pairs, ALL, history.line, history.tip, Decision.RESEND)

    def unheard(self) -> Found | None:
        """What the first turn asked, and more behind it, where its client has not taken the reply: one that was
        cut, or makes calls that the list does not answer."""
        line, last = self._history.line, self._history.last
        if last is None or last.echo is None or not len(line) - 1 == len(last.asked) < len(self._list):
            return None
        if last.state is not TurnState.CUT and not self._marks.made("assistant", last.echo.raw):
            return None
        pairs = self._found.run(line)
        if len(pairs) < len(last.asked) or any([self._marks.answered(m.role, m.raw) is not None for m in self._list]):
            return None
        return Found(pairs, "what was asked first, without the reply that its client has not taken", line, last.id)

    def told_by_another(self) -> Found | None:
        """The list of one of several agents: from the start to the tip, but that it tells others' replies as a
        user's messages. No pairs for those: its own copies go upstream."""
        line = self._history.line
        pairs: Pairs = []
        told: Pairs = []
        if not 2 <= len(line) <= len(self._list):
            return None
        for n, entry in enumerate(line):
            if self._found.same(n, entry):
                pairs.append((n, n))
            elif self._is_told(self._list[n], entry):
                told.append((n, n))
            else:
                return None
        reason = "an agent's list, that tells the others' replies"
        return Found(pairs, reason, line, self._history.tip, Decision.RESEND, told=told) if told else None

    def questions(self) -> Found | None:
        """A list that repeats what the client sent and leaves our replies out: each one longer than the last."""
        line, last = self._history.line, self._history.last
        if last is None or len(self._list) < 2:
            return None
        own = len(last.asked) + (1 if last.echo else 0)
        earlier = [at for at in range(len(line) - own) if line[at].message.role != "assistant"]
        news = self._found.begins_as(last.asked, [line[at] for at in earlier]) if earlier else 0
        kept = list(range(len(line)))
        if news:  # the second list was read as new messages: what it repeated is left out
            kept = [*range(len(line) - own), *range(len(line) - own + news, len(line))]
        places = [at for at in kept if line[at].message.role != "assistant"]
        same = all([self._found.same(n, line[at]) for n, at in enumerate(places[: len(self._list)])])
        if not 2 <= len(places) < len(self._list) or not same:
            return None
        pairs: Pairs = []
        n = -1
        for at in kept:
            n += line[at].message.role != "assistant"
            pairs.append((max(n, 0), at))
        return Found(pairs, "its own messages alone, a longer list each time", line, self._history.tip, Decision.RESEND)

    def elsewhere(self) -> Pairs:
        """What of the list stands in the tip's line, in order."""
        return self._found.in_order(self._history.line)

    def best(self) -> Found:
        """What of the list stands on any branch, in order: the one that holds most of it."""
        return max(self._on_branches(), key=lambda found: len(found.pairs))

    def _on_branches(self) -> list[Found]:
        """What of the list stands on each branch, in order, the tip's first. Side requests are none."""
        history = self._history
        others = [other for other in history.other_lines if not history.by_id[other[0]].is_side]
        lines = [(history.tip, history.line), *others]
        return [Found(self._found.in_order(line), "", line, tip) for tip, line in lines]

    def _is_told(self, message: Message, entry: Entry) -> bool:
        """Whether another agent's reply stands in a list as a user's message, or within one."""
        if message.role != "user" or not entry.ours or self._beside.is_under(self._history.system_of(entry.turn.id)):
            return False
        said = self._marks.text(entry.message.raw)
        told = self._marks.text(message.raw)
        return said != "" and (said == told or is_quoted(said, told))

    def _window(self, end: Pairs) -> Found:
        """The end of the history."""
        history = self._history
        reason = "the end of the history, and then what is new"
        found = self._in_front(Found(end, reason, history.line, history.tip, Decision.RESEND))
        if found.before and self._start.is_behind_sides(end):
            return found._replace(before=0, reason="all of its own list; what precedes it were side requests")
        if found.before or found.anew:
            return found
        return found._replace(reason=f"{reason}; what precedes it was cut on purpose")

    def _in_front(self, found: Found) -> Found:
        """A stretch of the history, with what precedes it put in front, unless it was cut on purpose, or was never of
        this list."""
        if self._start.is_begun_anew(found.pairs):
            return found._replace(anew=True, reason=f"{found.reason}; what precedes it was another list")
        return found if self._resends else found._replace(before=found.pairs[0][1])

    def _is_answered_anew(self, pairs: Pairs) -> bool:
        """Whether a list is one from the first message on, with another reply to it, and no later stretch."""
        return bool(self._to_the_first_reply()) and self._start.is_answered_anew(pairs[0][1])

    def _tries_again(self) -> Found | None:
        """The turn that was cut, sent again by itself with the beginning of its reply, as its client saw it."""
        last, found = self._history.last, self._last_again()
        if found is None or last is None or last.echo is None or last.state is not TurnState.CUT:
            return None
        said = self._marks.text(self._list[len(last.asked)].raw)
        if not said or not self._marks.text(last.echo.raw).startswith(said):
            return None
        return self._in_front(found._replace(reason="the last turn again, with what came of it"))

    def _begins_anew(self) -> Found | None:
        """What a list was begun anew with, and another reply to it: one that its client edited."""
        found = self._last_again()
        found = self._in_front(found) if found else None
        return found if found and found.anew else None

    def _last_again(self) -> Found | None:
        """What the last turn asked, at the beginning of the list, and a reply behind it."""
        line, last = self._history.line, self._history.last
        size = len(last.asked) if last else 0
        at = len(line) - 1 - size
        if last is None or last.echo is None or not 0 < size < len(self._list) or at <= 0:
            return None
        if self._list[size].role != "assistant" or not self._found.begins(0, last.asked):
            return None
        pairs = [(n, at + n) for n in range(size)]
        return Found(pairs, "it departs from the history within a window", line, self._history.tip)

    def _in_order(self) -> Found | None:
        history = self._history
        pairs = self._found.in_order(history.line)
        reason = "replies of ours at their place among other messages"
        if any([self._is_in_place(n, at) for n, at in pairs]):
            return Found(pairs, reason, history.line, history.tip)
        if not (self._resends or self._start.has_resent) or not history.other_lines:
            return None
        with_ours = [found for found in self._on_branches()[1:] if has_ours(found.pairs, found.line)]
        best = max(with_ours, key=lambda found: len(found.pairs), default=None)
        reason = "replies of another branch, at their place among other messages"
        return best._replace(reason=reason, anew=True) if best else None

    def _from_the_start(self) -> tuple[Line, str | None, Pairs]:
        """The branch that the list follows longest, and how far; no pairs without a reply of ours. One that the
        tip has left is taken where it holds more of the list than the tip's, all in all."""
        history = self._history
        line: Line = history.line
        tip = history.tip
        pairs = self._found.run(line)
        reached = pairs[-1][0] + 1 if pairs else 0  # a message of the list may repeat two of the line
        beside = any([turn.carries for turn in history.sides])  # one of them may turn out to be the chat's
        if reached < len(self._list) and (len(pairs) < len(line) or beside):
            held = len(self._on(pairs, line))
            for other, branch in history.other_lines:
                further = self._found.run(branch)
                if len(further) > len(pairs) and len(self._on(further, branch)) > held:
                    line, tip, pairs, held = branch, other, further, len(self._on(further, branch))
        elif reached < len(self._list) and pairs:
            line, tip, pairs = self._beside_it(reached) or (line, tip, pairs)
        return line, tip, pairs if has_ours(pairs, line) or self._is_silent_to(pairs, line) else []

    def _beside_it(self, reached: int) -> tuple[Line, str | None, Pairs] | None:
        """What was said beside the line, where the list repeats the line and goes on with that."""
        history = self._history
        for turn in reversed(history.sides):
            if turn.parent and turn.asked and self._found.same(reached, Entry(turn.asked[0], turn, False)):
                line = history.line_of(turn.id)
                pairs = self._found.run(line)
                if len(pairs) == len(line):
                    return line, turn.id, pairs
        return None

    def _is_silent_to(self, pairs: Pairs, line: Line) -> bool:
        """Whether a list repeats all of a line whose replies, since the last that can be seen, said nothing."""
        return bool(pairs) and pairs[-1][1] + 1 == len(line) and line[-1].turn.echo is None

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
        """Whether a message of the list is a reply of ours that stands where it stood: as far from the start, or behind
        what it answered, with what tools gave in between or without."""
        line = self._history.line
        if not line[at].ours:
            return False
        if n == at or self._resends:
            return True
        asked = next((before for before in range(at - 1, -1, -1) if line[before].message.role == "user"), at)
        question = [*line[asked:at], *[entry for entry in line[:asked] if entry.turn is line[at].turn]]
        return n > 0 and any([self._found.same(n - 1, entry) for entry in question])
