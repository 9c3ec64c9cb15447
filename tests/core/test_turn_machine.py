"""The turn as playbooks: what happens (>>), and what is to be done about it (<<), for each way in which a turn ends.

A playbook that is named after a row of docs/operate/failures.md proves that row without a socket.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core import turn_machine
from proxy.core.exchange import Verdict
from proxy.core.turn_machine import TABLE, Command, Event, Phase, TurnMachine

PAGE = Path(__file__).parents[2] / "docs" / "operate" / "failures.md"
LIMIT = 600.0


class Playbook(NamedTuple):
    """`row`: the section and the first cell of a row of failures.md. `script`: words that say what happens, and behind
    each `<` what is to be done, in order."""

    row: str
    script: str
    may_return: bool = True
    finishes: bool = True


ANSWERED = "started < ask; head < begin; "
KEPT = "complete < commit; committed < leave queue, release; "
WHOLE = "transfer ended < end; over < leave queue, fail"
CLOSED = "over < leave queue, fail"
COMPLETE = f"{KEPT}{WHOLE}"
UNRECORDED = f"nothing < leave queue, release; {WHOLE}"
INTERRUPTED = f"cut < commit; committed < leave queue, reset; {CLOSED}"
BROKEN = f"broken < leave queue, reset; {CLOSED}"
VERDICTS = {verdict.value: verdict for verdict in Verdict}
PLAYBOOKS = [
    Playbook("", f"{ANSWERED}{COMPLETE}"),
    Playbook("", f"{ANSWERED}{UNRECORDED}"),
    Playbook("", f"{ANSWERED}{KEPT}transfer broken < reset; {CLOSED}"),
    # The client
    Playbook("client: before the upstream's head", f"started < ask; 0 gone; 599 gone; head < begin; {COMPLETE}"),
    Playbook("client: before the upstream's head", f"started < ask; 0 gone; 600 gone < cancel; {CLOSED}"),
    Playbook("client: before the upstream's head", f"started < ask; 0 gone < cancel; {CLOSED}", finishes=False),
    Playbook("client: before the upstream's head", f"started < ask; 0 gone < cancel; {CLOSED}", may_return=False),
    Playbook("client: before the first token", f"{ANSWERED}0 gone; 599 gone; {COMPLETE}"),
    Playbook("client: before the first token", f"{ANSWERED}0 gone < cancel; {BROKEN}", finishes=False),
    Playbook("client: in the stream", f"{ANSWERED}0 gone; 599 gone; {COMPLETE}"),
    Playbook("client: in the stream", f"{ANSWERED}0 gone; 600 gone < cancel; {INTERRUPTED}"),
    Playbook("client: in the stream", f"{ANSWERED}0 gone < cancel; {INTERRUPTED}", finishes=False),
    Playbook(
        "client: the same, and the session's next request comes", f"{ANSWERED}0 gone; stop < cancel; {INTERRUPTED}"
    ),
    Playbook(
        "client: the same, and the client sends another list that carries its history",
        f"{ANSWERED}0 gone; stop < cancel; {INTERRUPTED}",
    ),
    Playbook("client: after the finish_reason", f"{ANSWERED}finish_reason; 0 gone; 599 gone; stop; {COMPLETE}"),
    Playbook(
        "client: after the finish_reason", f"{ANSWERED}finish_reason; 0 gone; 599 gone; {COMPLETE}", finishes=False
    ),
    Playbook("client: after the finish_reason", f"{ANSWERED}finish_reason; 0 gone; 600 gone < cancel; {INTERRUPTED}"),
    Playbook(
        "client: in the commit",
        f"{ANSWERED}complete < commit; 0 gone; 9999 gone; stop now; committed < leave queue, release; {WHOLE}",
    ),
    Playbook(
        "client: reconnects at any time",
        f"{ANSWERED}0 gone; 599 back; 600 gone; 1199 gone; 1200 gone < cancel; {INTERRUPTED}",
    ),
    Playbook("client: behind the end", f"{ANSWERED}{KEPT}stop now; 0 gone < cancel; {CLOSED}"),
    # The upstream
    Playbook("upstream: before its head: unreachable, or silent", f"started < ask; fault < fail; {CLOSED}"),
    Playbook("upstream: before its head: unreachable, or silent", f"started < ask; fault < fail; stop now; {CLOSED}"),
    Playbook("upstream: before the first token", f"{ANSWERED}{BROKEN}"),
    Playbook("upstream: in the stream", f"{ANSWERED}{INTERRUPTED}"),
    Playbook("upstream: in a JSON body", f"{ANSWERED}{BROKEN}"),
    Playbook(
        "upstream: sends a whole 200 that is no reply: JSON with something behind it, lines of JSON, a page",
        f"{ANSWERED}{UNRECORDED}",
    ),
    Playbook("upstream: sends plain text", f"{ANSWERED}unmarked < commit; committed < leave queue, release; {WHOLE}"),
    Playbook("upstream: uses an encoding that the proxy cannot decode", f"{ANSWERED}{UNRECORDED}"),
    Playbook(
        "upstream: after the finish_reason, without `[DONE]` or an end", f"{ANSWERED}finish_reason; {INTERRUPTED}"
    ),
    Playbook("upstream: after `[DONE]`", f"{ANSWERED}{KEPT}transfer ended < end; {CLOSED}"),
    Playbook("upstream: reports an error, as a status or in the stream", f"{ANSWERED}{UNRECORDED}"),
    Playbook("upstream: a fault in the stream", f"{ANSWERED}fault < fail; {CLOSED}"),
    # The store
    Playbook("store: before the upstream is asked", f"fault < fail; {CLOSED}"),
    Playbook("store: in the stream", f"{ANSWERED}{COMPLETE}"),
    Playbook("store: in the commit", f"{ANSWERED}complete < commit; commit failed < leave queue, fail; {CLOSED}"),
    Playbook("store: in the commit", f"{ANSWERED}cut < commit; commit failed < leave queue, fail; {CLOSED}"),
    # The process
    Playbook("process: in the stream", f"{ANSWERED}stop now < cancel; {INTERRUPTED}"),
    Playbook("process: in the stream", f"{ANSWERED}finish_reason; stop now < cancel; {INTERRUPTED}"),
    Playbook("process: in the commit", f"{ANSWERED}complete < commit; stop now; over < leave queue, note unseen, fail"),
    Playbook("process: in the commit", f"{ANSWERED}cut < commit; over < leave queue, note unseen, fail"),
    # A stop, or the task's end, in any other phase
    Playbook("", f"stop; started; {CLOSED}"),
    Playbook("", f"stop; fault < fail; {CLOSED}"),
    Playbook("", f"0 gone; started; {CLOSED}", may_return=False),
    Playbook("", f"started < ask; stop < cancel; head; {CLOSED}"),
    Playbook("", f"{ANSWERED}stop < cancel; stop now; over < leave queue, fail"),
    Playbook("", "over < leave queue, fail; stop; started; head"),
    Playbook("", "started < ask; over < leave queue, fail; head"),
    Playbook("", f"{ANSWERED}over < leave queue, fail; complete"),
    Playbook("", f"{ANSWERED}{KEPT}over < leave queue, fail; transfer ended"),
]


def played(playbook: Playbook) -> tuple[list[str], list[Phase]]:
    """Each event with the commands that follow it; and the phase behind each."""
    machine = TurnMachine(playbook.may_return, playbook.finishes, LIMIT)
    seen: list[str] = []
    finished = lambda: "finish_reason" in seen  # noqa: E731
    steps, phases = [], []
    for step in playbook.script.split("; "):
        word = step.partition(" <")[0]
        now, _, what = word.partition(" ")
        if what in ("gone", "back"):
            commands = machine.watch(what == "gone", float(now) + 1000, finished)
        elif word == "finish_reason":
            seen.append(word)
            commands = ()
        elif word in ("stop", "stop now"):
            commands = machine.stop(finished, word == "stop now")
        elif word in VERDICTS:
            commands = machine.end(VERDICTS[word], recorded=True)
        else:
            commands = machine.feed(Event(word))
        steps.append(" < ".join([word, ", ".join(commands)]) if commands else word)
        phases.append(machine.phase)
    return steps, phases


PLAYED = [played(each) for each in PLAYBOOKS]


@pytest.mark.parametrize("playbook", PLAYBOOKS, ids=[f"{n} {each.row}" for n, each in enumerate(PLAYBOOKS)])
def test_what_happens_leads_to_what_is_to_be_done(playbook: Playbook) -> None:
    steps, phases = played(playbook)
    assert "; ".join(steps) == playbook.script
    assert phases[-1] is Phase.CLOSED


def rows() -> list[str]:
    """The rows of failures.md that are about a turn in flight."""
    text, found = PAGE.read_text(), []
    for section in ("client", "upstream", "store"):
        table = text.partition(f"## The {section}\n")[2].partition("\n## ")[0]
        found += [f"{section}: {cell.strip()}" for cell in re.findall(r"^\|([^|]+)\|", table, re.M)]
    return [row for row in found if not row.endswith((": phase", ": ---"))]


# Decided before there is a turn, by its transfer, or by what is beside it: their own tests stand in the page.
ELSEWHERE = {
    "client: queued",
    "client: the same, and the session's next request comes",
    "upstream: in the instant of its last bytes",
    "upstream: the same, and the client reads nothing",
    "upstream: says that the prompt is too long, before its first byte",
    "upstream: sends an answer that nobody asked for, on an idle connection",
    "store: power cut, at any time",
}


@pytest.mark.parametrize("row", rows())
def test_each_row_of_the_page_on_failures_has_a_playbook(row: str) -> None:
    assert row in {playbook.row for playbook in PLAYBOOKS} | ELSEWHERE


EDGES = [(phase, event) for phase, events in TABLE.items() for event in events]
CHANGES = ["no row", "no commands", *Phase]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(("phase", "event"), EDGES)
def test_a_changed_row_of_the_table_is_noticed(
    monkeypatch: pytest.MonkeyPatch, phase: Phase, event: Event, change: str
) -> None:
    following, commands = TABLE[phase][event]
    changed = {**TABLE[phase]}
    if change == "no row":
        del changed[event]
    elif change == "no commands":
        changed[event] = (following, ())
    else:
        changed[event] = (Phase(change), commands)
    if changed.get(event) == (following, commands) or (phase, event) == (following, Event.OVER):
        return  # the same; or a turn that is over, and closed already
    monkeypatch.setitem(TABLE, phase, changed)
    assert [played(each) for each in PLAYBOOKS] != PLAYED, "no playbook notices"


def test_the_table_at_the_head_of_the_module_is_the_one_in_force() -> None:
    told: dict[tuple[str, str], tuple[str, str]] = {}
    for line in re.findall(r"^\| (?!phase|---)(.*) \|$", turn_machine.__doc__ or "", re.M):
        phase, events, commands, following = [cell.strip() for cell in line.split("|")]
        for event in events.split(", "):
            for each in Phase if phase == "any other" else [phase]:
                told.setdefault((str(each), event), (commands, following))
    there = {
        (str(phase), str(event)): (", ".join(commands), str(following))
        for phase, events in TABLE.items()
        for event, (following, commands) in events.items()
    }
    assert told == there


@given(st.lists(st.sampled_from([*Event])))
def test_any_events_give_at_most_one_commit_and_nothing_behind_the_end_of_the_task(events: list[Event]) -> None:
    machine = TurnMachine(True, True, LIMIT)
    given: list[Command] = []
    for event in [*events, Event.OVER]:
        given += machine.feed(event)
    assert machine.phase is Phase.CLOSED
    assert given.count(Command.COMMIT) <= 1 and given.count(Command.RELEASE) <= 1
    if Command.RELEASE in given:
        assert Command.LEAVE_QUEUE in given[: given.index(Command.RELEASE)]
    assert not {*machine.feed(Event.STARTED), *machine.feed(Event.HEAD), *machine.feed(Event.COMMITTED)}


@pytest.mark.parametrize("verdict", Verdict)
def test_a_turn_that_is_not_recorded_commits_nothing(verdict: Verdict) -> None:
    machine = TurnMachine(False, True, LIMIT)
    for event in (Event.STARTED, Event.HEAD):
        machine.feed(event)
    assert Command.COMMIT not in machine.end(verdict, recorded=False)
    assert machine.has_end
