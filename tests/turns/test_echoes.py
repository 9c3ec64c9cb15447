"""Recorded conversations through the real application, whole and in part, and rewritten the ways clients rewrite
what they send again: the upstream receives one list, nothing twice and nothing lost."""

from __future__ import annotations

import itertools
import json
import random
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from proxy.core.json_bytes import elements
from proxy.dialects.chat import wire
from proxy.dialects.chat.profiles import PROFILES
from tests.support.fakes import RECORDINGS, Recording, ScriptedUpstream, recordings
from tests.support.serving import RunningProxy, Serve
from tests.support.talk import Answer, Json, history, marks, sent, tell
from tests.turns.test_recorded_traffic import replay

# Its first turn is an error, and its client made a reply up.
INVENTED = "groq--pydantic-ai--03"

Group = list[Recording]
Habit = Callable[[Json], Json]


def groups() -> dict[str, Group]:
    """The recorded conversations of several turns that all hold their requests."""
    ordered = itertools.groupby(recordings(), lambda recording: recording.group.rpartition("/")[2])
    found = {name: list(group) for name, group in ordered}
    return {name: group for name, group in found.items() if len(group) > 1 and all(each.request for each in group)}


GROUPS = groups()


def present(*names: str) -> list[Any]:
    """Groups as parameters, or one skipped test where the recordings are absent."""
    skipped = pytest.param("", marks=pytest.mark.skip(reason=f"no recorded traffic in {RECORDINGS}"))
    return [*names] or [skipped]


ANSWERED = present(*[name for name in GROUPS if name != INVENTED])


def body_of(recording: Recording) -> Json:
    body: Json = json.loads(recording.request or b"")
    return body


def profile_of(name: str) -> str:
    """The profile of the upstream that was recorded, where there is one."""
    upstream = name.partition("-")[0]
    return upstream if upstream in PROFILES else "auto"


def news(group: Group, turn: int) -> list[Any]:
    """What a request brings beyond the ones before it and the reply to the last of them."""
    messages: list[Any] = body_of(group[turn])["messages"]
    return messages[len(body_of(group[turn - 1])["messages"]) + 1 :] if turn else messages


async def told(proxy: RunningProxy, group: Group, turn: int, messages: list[Any]) -> Answer:
    """A recorded request with other messages."""
    return await tell(proxy.port, json.dumps({**body_of(group[turn]), "messages": messages}).encode())


def answering(group: Group) -> ScriptedUpstream:
    """An upstream that gives the recorded answers."""
    return ScriptedUpstream([replay(recording, [recording.response]) for recording in group])


# Three ways to send the same conversation --------------------------------------------------


def test_recorded_conversations_exist() -> None:
    assert len(GROUPS) > 20 or not recordings()


@pytest.mark.parametrize("name", ANSWERED)
@pytest.mark.parametrize("way", ["full lists", "new messages only", "mixed 1", "mixed 2", "mixed 3"])
@pytest.mark.parametrize("profile", ["auto", "its own"])
async def test_the_upstream_receives_the_recorded_list_whoever_sends_it(
    serve: Serve, name: str, way: str, profile: str
) -> None:
    group, chance = GROUPS[name], random.Random(name + way)
    chosen = profile_of(name) if profile == "its own" else profile
    async with answering(group) as upstream:
        proxy = await serve(upstream.base_url, upstream={"profile": chosen})
        for turn, recording in enumerate(group):
            full = {"full lists": True, "new messages only": False}.get(way) or (
                way[:5] == "mixed" and chance.random() < 0.5
            )
            whole = body_of(recording)["messages"]
            answer = await told(proxy, group, turn, whole if full else news(group, turn))
            assert answer.status == 200 and answer.whole and answer.data == recording.response
            if turn:
                assert answer.decision == ("resend" if full else "append")
            assert marks(upstream.requests[turn].messages) == marks(whole)
        kept = await history(proxy)
    assert [turn.parent for turn in kept.turns] == [None, *[turn.id for turn in kept.turns[:-1]]]
    messages = wire.read(group[-1].request or b"").messages
    assert sum(len(turn.asked) + 1 for turn in kept.turns) == len(messages) + 1


@pytest.mark.skipif(INVENTED not in GROUPS, reason=f"no recorded traffic in {RECORDINGS}")
async def test_a_reply_that_the_client_made_up_of_an_error_is_adopted(serve: Serve) -> None:
    group = GROUPS[INVENTED]
    async with answering(group) as upstream:
        proxy = await serve(upstream.base_url)
        said = [await told(proxy, group, turn, body_of(group[turn])["messages"]) for turn in range(len(group))]
        for turn, request in enumerate(upstream.requests):
            assert marks(request.messages) == marks(body_of(group[turn])["messages"])
    assert [answer.decision for answer in said] == ["append", "append", "resend"]


# Rewritten on the way ----------------------------------------------------------------------


def parts_and_strings(message: Json) -> Json:
    """A string becomes a list of one text, and such a list a string."""
    match message.get("content"):
        case str(text):
            return {**message, "content": [{"type": "text", "text": text}]}
        case [{"type": "text", "text": text}]:
            return {**message, "content": text}
    return message


def other_order(value: Any) -> Any:
    """The keys of every object the other way round."""
    if isinstance(value, dict):
        return {key: other_order(value[key]) for key in reversed(value)}
    return [other_order(each) for each in value] if isinstance(value, list) else value


def arguments_printed_again(message: Json) -> Json:
    def printed(call: Json) -> Json:
        value = json.loads(call["function"]["arguments"] or "{}")
        return {**call, "function": {**call["function"], "arguments": json.dumps(value, indent=3, sort_keys=True)}}

    return (
        {**message, "tool_calls": [printed(call) for call in message["tool_calls"]]} if calls_of(message) else message
    )


def without_reasoning(message: Json) -> Json:
    dropped = ("reasoning", "reasoning_content", "reasoning_details", "extra_content")
    kept = {key: value for key, value in message.items() if key not in dropped}
    if calls_of(message):
        kept["tool_calls"] = [
            {key: call[key] for key in ("id", "type", "function") if key in call} for call in calls_of(message)
        ]
    return kept


def with_nulls(message: Json) -> Json:
    empty: Json = {"name": None, "refusal": None, "audio": None, "function_call": None}
    if message["role"] == "assistant":
        empty |= {"annotations": [], "tool_calls": []}
    return {**empty, **message}


def with_cache_control(message: Json) -> Json:
    marked = parts_and_strings(message) if isinstance(message.get("content"), str) else message
    stamp = {"cache_control": {"type": "ephemeral"}}
    if isinstance(content := marked.get("content"), list):
        return {**marked, "content": [*content[:-1], content[-1] | stamp]}
    return marked | stamp


def with_outer_space(message: Json) -> Json:
    match message.get("content"):
        case str(text):
            return {**message, "content": f"\n {text.strip()}\r\n\n"}
        case [{"type": "text", "text": text}]:
            return {**message, "content": [{"type": "text", "text": f"\t{text.strip()} "}]}
    return message


def with_index(message: Json) -> Json:
    calls = [{"index": n, **call} for n, call in enumerate(calls_of(message))]
    return {"index": 0, **message, **({"tool_calls": calls} if calls else {})}


def calls_of(message: Json) -> list[Json]:
    return message.get("tool_calls") or []


HABITS: list[Habit] = [
    parts_and_strings,
    other_order,
    arguments_printed_again,
    without_reasoning,
    with_nulls,
    with_cache_control,
    with_outer_space,
    with_index,
]


def all_at_once(chance: random.Random) -> Habit:
    """Any of the habits, another choice of them for each message."""

    def disturbed(message: Json) -> Json:
        for habit in chance.sample(HABITS, chance.randint(1, len(HABITS))):
            message = habit(message)
        return message

    return disturbed


CLIENTS = [*[pytest.param(habit, id=habit.__name__) for habit in HABITS], pytest.param(None, id="all at once")]


@pytest.mark.parametrize("name", ANSWERED)
@pytest.mark.parametrize("habit", CLIENTS)
async def test_a_list_that_was_rewritten_on_the_way_is_a_resend(serve: Serve, name: str, habit: Habit | None) -> None:
    group = GROUPS[name]
    habit = habit or all_at_once(random.Random(name))
    async with answering(group) as upstream:
        proxy = await serve(upstream.base_url)
        await told(proxy, group, 0, body_of(group[0])["messages"])
        for turn in range(1, len(group)):
            whole = body_of(group[turn])["messages"]
            answer = await told(proxy, group, turn, [habit(message) for message in whole])
            assert answer.decision == "resend"
            assert marks(upstream.requests[turn].messages) == marks(whole)
            earlier, now = upstream.requests[turn - 1 : turn + 1]
            if b"cache_control" not in earlier.body + now.body:  # marks go where the client has them now
                assert sent(now)[: len(sent(earlier))] == sent(earlier)
        kept = await history(proxy)
    messages = wire.read(group[-1].request or b"").messages
    assert sum(len(turn.asked) + 1 for turn in kept.turns) == len(messages) + 1


def test_every_habit_changes_some_recorded_message_and_the_meaning_of_none() -> None:
    messages = [message for group in GROUPS.values() for message in body_of(group[-1])["messages"]]
    for habit in HABITS if messages else []:
        changed = [(message, habit(message)) for message in messages]
        assert any(json.dumps(before) != json.dumps(after) for before, after in changed)
        assert marks(before for before, _ in changed) == marks(after for _, after in changed)


# One word of one old message ---------------------------------------------------------------


def with_another_word(message: Json) -> Json:
    """The message with one word more, in its text or in the arguments of its first call."""
    match message.get("content"):
        case str(text) if text.strip():
            return {**message, "content": re.sub(r"\w+|$", "otherwise", text, count=1)}
        case [{"type": "text", "text": text} as part, *more]:
            return {**message, "content": [{**part, "text": text + " otherwise"}, *more]}
    call, *others = calls_of(message)
    arguments = json.dumps({**json.loads(call["function"]["arguments"] or "{}"), "otherwise": True})
    return {**message, "tool_calls": [{**call, "function": {**call["function"], "arguments": arguments}}, *others]}


def edits() -> Iterator[Any]:
    """Each old message of the last request of each group, behind its system prompt. Not a list whose only reply is
    the one that was changed: nothing of ours is left in it, so it reads as new throughout."""
    for name in GROUPS:
        if name == INVENTED:
            continue
        first, last = (wire.read(GROUPS[name][at].request or b"").messages for at in (-2, -1))
        roles = [message.role for message in last]
        for place in range(len(first) + 1):
            if roles[place] != "assistant" or roles.count("assistant") > 1:
                yield pytest.param(name, place, id=f"{name}-{place}")


EDITS = [*edits()] or present()


@pytest.mark.parametrize(("name", "place"), EDITS)
async def test_a_changed_word_in_an_old_message_is_a_rewrite_there(serve: Serve, name: str, place: int) -> None:
    group = GROUPS[name]
    async with answering(group) as upstream:
        proxy = await serve(upstream.base_url)
        for turn in range(len(group) - 1):
            await told(proxy, group, turn, body_of(group[turn])["messages"])
        before = await history(proxy)
        messages = body_of(group[-1])["messages"]
        at = place + len(elements(b"[" + (wire.read(group[-1].request or b"").system or b"") + b"]"))
        changed = [*messages[:at], with_another_word(messages[at]), *messages[at + 1 :]]
        answer = await told(proxy, group, len(group) - 1, changed)
        after = await history(proxy)
        assert answer.decision == "rewrite"
        assert marks(upstream.requests[-1].messages) == marks(changed)
    # What stood there is still what is there, but for the one message and what is new.
    branch = [(old.message.raw, old.turn.id) for old in before.path]
    line = [(new.message.raw, new.turn.id) for new in after.path]
    new = after.turns[-1]
    assert line[place][1] == new.id
    assert line[:place] == branch[:place] and line[place + 1 : len(branch)] == branch[place + 1 :]
    assert len(new.asked) == 1 + len(messages) - at - (len(branch) - place)
    assert before.turns == after.turns[:-1]
