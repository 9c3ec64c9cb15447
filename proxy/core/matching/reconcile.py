"""Decides how a request's list of messages is read: it appends, resends, rewrites, retries or stands aside.

Pure. Knows no message's content, no store and no queue. docs/reconcile.md lists every case, and the lists that can be
read in two ways.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import structs

from proxy.core.history import History
from proxy.core.matching.alignment import MessageReader, Pairs, has_ours
from proxy.core.matching.planner import Planner
from proxy.core.matching.repeats import Match, Repeats
from proxy.core.matching.side_requests import SideRequestCheck
from proxy.core.matching.usual import HEADS, NEW, appended, differs_twice, is_one_new_message, seen_again
from proxy.core.model import CLIENT, Ask, Turn
from proxy.core.plan import Decision, Flight, Mode, Plan

FIRST = "the first of its session"


def decide(
    ask: Ask,
    history: History,
    dialect: MessageReader,
    mode: Mode = Mode.AUTO,
    flights: Sequence[Flight] = (),
    client: bytes = b"",
) -> Plan:
    """Decide how a request is read against its history and the turns in flight. `client`: the fingerprint of the
    software that sent it, 8 bytes or none."""
    client = client[:CLIENT].ljust(CLIENT, b"\0")
    seen = ask.seen
    if mode is Mode.AUTO and is_one_new_message(ask, history, flights, client):
        return appended(ask, history, client)
    goes_on = seen and mode is not Mode.APPEND and not flights and seen.client[:CLIENT] == client
    again = seen and goes_on and not differs_twice(ask, history.last)
    plan = seen_again(ask, seen, history, dialect) if seen and again else None
    plan = plan or _Matcher(ask, history, dialect, flights, client, mode).plan()
    return structs.replace(plan, branches=True) if mode is Mode.RESEND else plan


class _Matcher:
    """Matches one list with one history. `client`: the fingerprint of the software that sent it."""

    def __init__(
        self, ask: Ask, history: History, dialect: MessageReader, flights: Sequence[Flight], client: bytes, mode: Mode
    ) -> None:
        self._ask, self._history, self._dialect, self._flights = ask, history, dialect, flights
        self._client, self._mode = client, mode
        self._resends = mode is Mode.RESEND or history.resends or any([flight.resends for flight in flights])
        self._list = ask.messages
        self._carries = any([message.role == "assistant" for message in self._list])
        if self._carries and history.has_silent:
            spoken = [one for one in self._list if one.role != "assistant" or not dialect.says_nothing(one.raw)]
            self._list = tuple(spoken)
        self._beside = SideRequestCheck(ask, history, dialect, client, flights)
        self._repeats = Repeats(self._list, history, dialect, self._beside, self._resends)
        self._plans = Planner(ask, self._list, history, dialect, flights, client)

    def plan(self) -> Plan:
        if self._mode is Mode.APPEND:
            return self._plans.append(0, "the mode says so")
        if not self._history.path:
            return self._first()
        if self._is_headed():
            opening = self._plans.opening(None, "what came before it was asked for this chat")
            # A list that tells the reply of what came before shows whose it is: its client carries it itself.
            return structs.replace(opening, resends=self._carries, alone=self._carries, carries_history=self._carries)
        if self._mode is Mode.RESEND:
            found = self._repeats.of_the_history() or self._as_sent("the mode says so", self._repeats.elsewhere())
            return self._plans.followed(found, stays=False)
        if tip := self._answers_beside():
            return self._plans.append(0, "the result of a call that was made beside the tip", tip)
        plan = self._carried() if self._carries else self._said()
        return structs.replace(plan, demoted=self._demoted(plan)) if plan.carries_history and self._flights else plan

    def _carried(self) -> Plan:
        """A list with an assistant's message in it."""
        found = self._repeats.of_the_history()
        if found is None or found.decision is Decision.REWRITE:
            found = self._repeats.told_by_another() or found
        if self._may_be_beside(found):
            return self._provisional(found)
        if found is None and self._beside.is_compacted:
            return self._compacted()
        if found:
            return self._plans.followed(found)
        if self._is_foreign():
            return self._plans.aside("another system prompt than the session's, and no reply of ours")
        if plan := self._behind_examples():
            return plan
        if self._resends and self._is_of_the_last() and self._is_answered():
            return self._plans.followed(
                self._as_sent("a list of its own: none of it is ours", []), carries_history=True
            )
        return self._plans.append(0, NEW)

    def _said(self) -> Plan:
        """A list without an assistant's message."""
        if self._beside.is_summed_up:
            return self._compacted()
        if reason := self._beside.reason(self._resends):
            return self._plans.aside(reason)
        if self._beside.is_compacted:
            return self._compacted()
        if self._beside.is_begun_anew:
            return self._compacted()
        if found := self._repeats.silently() or self._repeats.unheard():
            return structs.replace(self._plans.followed(found), resends=False, alone=False)
        if found := self._repeats.told_by_another() or self._repeats.questions():
            return self._plans.followed(found)
        return self._behind_examples() or self._plans.append(0, NEW)

    # The first of its session

    def _first(self) -> Plan:
        if self._mode is Mode.RESEND:
            return structs.replace(self._plans.opening(self._history.tip, FIRST), resends=True, alone=True)
        beside = [flight for flight in self._flights if self._history.tip is None and not self._is_same(flight)]
        demoted = [flight.id for flight in beside if self._beside.led_to_by(flight)]
        if len(demoted) < len(beside):
            return self._plans.aside("beside the first turn, under another system prompt or with other tools")
        plan = structs.replace(self._plans.opening(self._history.tip, FIRST), demoted=tuple(demoted))
        if self._history.tip is None and any([self._is_for_another_model(flight) for flight in self._flights]):
            return structs.replace(plan, alone=True, branches=True)
        return plan

    def _is_for_another_model(self, flight: Flight) -> bool:
        """Whether a turn in flight asks the same of another model, for somebody who compares them."""
        same = len(flight.asked) == len(self._list) and self._repeats.alignment.begins(0, flight.asked)
        return same and flight.ask is not None and flight.ask.model != self._ask.model and not flight.abandoned

    def _is_same(self, flight: Flight) -> bool:
        """Whether a turn in flight asks the same way, or asks the same: its client may have given up on it, and try
        again under a prompt with a clock in it. Other software's turn tells nothing of this one: it waits for it."""
        if flight.client and flight.client[:CLIENT] != self._client:
            return True
        if (flight.system, flight.tools) == (self._ask.system, self._ask.tools):
            return True
        same = len(flight.asked) == len(self._list) and self._repeats.alignment.begins(0, flight.asked)
        return same and flight.abandoned

    def _is_headed(self) -> bool:
        """Whether all that the session holds are side requests that came before their chat."""
        history = self._history
        told = self._carries or self._beside.has_tools or not history.turns[0].asked
        if len(history.turns) > HEADS or not told:
            return False
        return self._beside.heads(history.ancestors(history.tip))

    def _demoted(self, plan: Plan) -> tuple[str, ...]:
        """The turns in flight that are side requests, now that their client has shown that it resends."""
        history = History(self._history.turns, plan.parent)
        shown = [Flight((), None, b"", plan.resends, client=plan.client, carries_history=True, spliced=plan.spliced)]
        found = []
        for flight in self._flights:
            if flight.ask and not flight.resends and flight.client[:CLIENT] == self._client:
                beside = SideRequestCheck(flight.ask, history, self._dialect, self._client, shown)
                found += [flight.id] if beside.reason(resends=True) else []
        return tuple(found)

    # Beside the conversation

    def _is_foreign(self) -> bool:
        """Whether a list that repeats nothing of ours is somebody's beside a chat that is sent whole."""
        if not self._beside.is_unknown:
            return False
        if self._resends and self._is_of_the_last():
            return True
        starts_alike = self._repeats.alignment.same(0, self._history.path[0])
        return starts_alike and self._beside.lacks_tools and not self._brings_examples

    def _may_be_beside(self, found: Match | None) -> bool:
        """Whether a list that repeats ours from the start is a side request with all of the chat in front: under an
        unknown prompt, or with its prompt at its end. A later list that carries its reply shows that it was not."""
        if found is None or found.told or not has_ours(found.pairs, found.path):
            return False
        closes, window = self._list[-1].role, found.pairs[0][1] > found.pairs[0][0]
        branch = self._history.by_id.get(found.tip or "")
        if branch and branch.is_side_request and found.pairs[-1][1] + 1 == len(found.path):
            return closes != "user"  # a tool loop of its own; who goes on with a question is a client
        if window and not self._resends:
            return False  # the end of the history, by a client that shows its last turn
        if not self._beside.is_unknown:
            alone = found.pairs[-1][0] + 2 == len(self._list)  # behind what it repeats, as an instruction is
            if closes == "system" and alone and self._ask.system is None and self._history.system is not None:
                return True
            if window or not self._beside.differs_twice:
                return False
        elif self._beside.is_summed_up and not self._beside.has_another_shape:
            return False
        if window and not (self._flights or self._beside.has_another_shape):
            return False  # cut under a prompt with a summary in it; or the chat's own window is in flight
        reaches = branch is self._history.last and found.pairs[-1][1] + 1 == len(found.path)
        return closes == "user" and (not reaches or self._beside.has_another_shape)

    def _answers_beside(self) -> str | None:
        """The turn that made the call whose result the list begins with, where nobody did on the tip's branch: the
        latest, where it may have been said beside the chat, or any by the call's ID. Its client is the chat's."""
        history = self._history
        latest, last = history.turns[-1], history.last
        first = self._list[0] if self._list else None
        if first is None or (id := self._dialect.answered(first.role, first.raw)) is None:
            return None
        tip, side = [self._calls(turn) for turn in (last, latest)]
        if id in tip or ("" in tip and "" not in side):  # a call without an ID gets one from each client
            return None
        if latest.is_side_request and latest.carries_history and side and not self._beside.is_of_another(latest):
            return latest.id
        if id == "" or any([id in self._dialect.made(each.message.role, each.message.raw) for each in history.path]):
            return None
        others = [turn for turn in history.turns[::-1] if not self._beside.is_of_another(turn)]
        return next((turn.id for turn in others if id in self._calls(turn)), None)

    def _calls(self, turn: Turn | None) -> Sequence[str]:
        return self._dialect.made("assistant", turn.rendered.raw) if turn and turn.rendered else ()

    def _provisional(self, found: Match | None) -> Plan:
        assert found is not None  # it repeats something
        plan = self._plans.followed(found, stays=False)
        reason = "the chat's list under another prompt: it may be said beside the chat"
        return structs.replace(plan, decision=Decision.ASIDE, reason=reason, side=True, alone=True)

    def _compacted(self) -> Plan:
        best = self._repeats.best()
        reason = "its own list, with a summary that was asked for beside it"
        return self._plans.followed(best._replace(reason=reason), carries_history=True)

    @property
    def _brings_examples(self) -> bool:
        """Whether it begins with all that the first list carried before its question."""
        examples = self._history.preamble
        fits = len(self._list) > 1 and 0 < examples < len(self._list)
        return fits and len(self._repeats.alignment.run(self._history.path)) >= examples

    def _behind_examples(self) -> Plan | None:
        if not self._brings_examples:
            return None
        if self._carries and self._resends:
            same = self._repeats.alignment.run(self._history.path)
            found = Match(same, "it departs from what the session adopted", self._history.path, self._history.tip)
            return self._plans.followed(found)
        return self._plans.append(self._history.preamble, "behind the examples that each request brings")

    def _is_answered(self) -> bool:
        """Whether a reply in the list has a user's message behind it: what a prefill has not."""
        reply = next((n for n, message in enumerate(self._list) if message.role == "assistant"), len(self._list))
        return any([message.role == "user" for message in self._list[reply:]])

    def _as_sent(self, reason: str, pairs: Pairs) -> Match:
        return Match(pairs, reason, self._history.path, self._history.tip)

    def _is_of_the_last(self) -> bool:
        """Whether the software that sent it sent the latest turn, too."""
        last = self._history.last
        return last is not None and not self._beside.is_of_another(last)
