"""How the tests of readings write what came before, and a list.

`before` is what happened so far, one request after another: the list that came, ">", the
reply. `list` is what comes now. A word is a message, its text the word itself, its role by its first letter:

    s system, d the same as developer     u, v, e, yes user (e: of an example)     n a system message in the middle
    a, t, x, p, ok assistant (t: a title, x: of an example, p: a prefill)       c assistant with a call, r its result
    u1@cat a text with a picture          p1a1 a prefill and its reply in one   #f the request's tools
    ! what is no message at all           - a reply that says nothing           =a1 a reply told as a user's message
    ~ the request asks for a stream       ^b other software sent it             a1/ a reply that was cut
    u9:a1-first-reply                 a user's message that quotes a reply           _ a space

`upstream` is what goes on: behind "|" for what the client sent and before it for what we put there; in brackets is
what we have stored, ours in the place of the client's copy. What stands in no bracket is new, and stored next.
Turns are named by the number of their request, those that it brought along by 1.1, 1.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count, groupby
from typing import Any

from proxy.core.history import Entry, History
from proxy.core.json_bytes import dumps, loads
from proxy.core.matching.reconcile import decide
from proxy.core.model import CLIENT, Ask, Message, Reply, TurnState
from proxy.core.plan import Flight, Mode, Plan, Sent
from proxy.dialects.chat import fingerprints, wire
from proxy.dialects.chat.compose import rendering_of
from proxy.dialects.chat.turns import turns_of

FORM = rendering_of("auto", "upstream.example", None)
ROLES = {"s": "system", "d": "developer", "n": "system", "r": "tool", **dict.fromkeys("uvey", "user")}


def message(word: str) -> Any:
    """A word as a message."""
    if word == "!":
        return 7
    if word == "-":
        return {"role": "assistant", "content": ""}
    if word[0] == "=":
        return {"role": "user", "content": word[1:]}
    text, _, picture = word.replace("_", " ").partition("@")
    role = ROLES.get(word[0], "assistant")
    made: dict[str, Any] = {"role": role, "content": "s" + text[1:] if role == "developer" else text}
    if picture:
        parts = [{"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": picture}}]
        made["content"] = parts
    if word[0] == "c":
        function = {"name": "look", "arguments": '{"at": 1}'}
        made["tool_calls"] = [{"id": word[1:], "type": "function", "function": function}]
    return {**made, "tool_call_id": word[1:]} if word[0] == "r" else made


def word(raw: bytes) -> str:
    """A message as a word."""
    made = loads(raw)
    if not isinstance(made, dict):
        return "!"
    content = made["content"]
    if isinstance(content, list):
        content = "@".join([part["text"].strip() if "text" in part else part["image_url"]["url"] for part in content])
    if made["role"] == "user" and content[:1] == "a":
        return f"={content}"
    said: str = str(content or "-").replace(" ", "_")
    return "d" + said[1:] if made["role"] == "developer" else said


def rewritten(word: str) -> Any:
    """The same message as a client may send it back: its keys in another order, its text as one part, with outer
    white space and a mark for caching."""
    made = message(word)
    if not isinstance(made, dict) or made["role"] in ("system", "developer"):
        return made
    parts = made["content"]
    if isinstance(parts, str):
        parts = [{"type": "text", "text": f" {parts}\n"}]
    parts[-1]["cache_control"] = {"type": "ephemeral"}
    return {key: parts if key == "content" else made[key] for key in reversed(made)}


def ask(words: str, spelt: Any = message) -> Ask:
    tools = [each for each in words.split() if each[0] == "#"]
    body: dict[str, Any] = {"messages": [spelt(each) for each in words.split() if each[0] not in "#~^"]}
    if "~" in words.split():
        body["stream"] = True
    return wire.read(dumps({**body, "tools": tools} if tools else body))


def software(words: str) -> bytes:
    """The fingerprint of what sent a list."""
    name = next((each[1:] for each in words.split() if each[0] == "^"), "")
    return name.encode().ljust(CLIENT, b"\0")


def recorded(history: History, plan: Plan, asked: Ask, reply: str, name: str) -> History:
    """A history, and the turns that remain of a plan and its reply."""
    cut = reply.endswith("/")
    said = Reply(message=dumps(message(reply.rstrip("/"))), finish_reason=None if cut else "stop")
    brought = count(1)
    return history.plus(
        *turns_of(
            asked,
            plan,
            said,
            FORM,
            id=name,
            new_id=lambda: f"{name}.{next(brought)}",
            remembered=history.system_of(plan.parent),
            request=b"",
            state=TurnState.INTERRUPTED if cut else TurnState.COMPLETE,
        )
    )


def played(before: str, mode: Mode = Mode.AUTO) -> History:
    """The history that requests and their replies leave."""
    history = History()
    for number, exchange in enumerate(filter(None, before.split(";")), 1):
        words, reply = exchange.split(">")
        asked = ask(words)
        plan = decide(asked, history, fingerprints, mode, client=software(words))
        history = recorded(history, plan, asked, reply.strip(), str(number))
    return history


def in_flight(history: History, words: str) -> list[Flight]:
    if not words:
        return []
    asked = ask(words)
    plan = decide(asked, history, fingerprints)
    return [Flight(plan.asked, asked.system, asked.tools, plan.resends)]


def words_of(messages: Sequence[Message]) -> list[str]:
    return [word(each.raw) for each in messages]


def line_of(line: Sequence[Entry]) -> list[str]:
    return [word(entry.message.raw) for entry in line]


def sent_word(sent: Sent) -> str:
    said = sent.entry.message if sent.entry else sent.theirs
    assert said is not None
    return word(said.raw)


def upstream(plan: Plan) -> str:
    """What goes upstream, as the cases write it."""
    parts = [*line_of(plan.path[: plan.injected]), "|"] if plan.injected else []
    for stored, group in groupby(plan.sent[plan.injected :], key=lambda sent: sent.entry is not None):
        said = " ".join([sent_word(sent) for sent in group])
        parts.append(f"[{said}]" if stored else said)
    return " ".join(parts)


def held(plan: Plan) -> list[int]:
    return [*range(plan.injected), *[at for _, at in plan.pairs]]


def is_within(some: list[str], every: list[str]) -> bool:
    """Whether messages stand in a list, in order."""
    rest = iter(every)
    return all([each in rest for each in some])
