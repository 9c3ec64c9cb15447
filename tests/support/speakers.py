"""Who speaks in a session: a client that chats, one request after another, and how its list grows.

Every text holds a number of its own, so that each message of a list can be told from the others. Knows nothing of how
a list is read.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import blake2b
from itertools import count
from random import Random
from typing import Any

from proxy.core.json_bytes import dumps
from proxy.core.model import CLIENT
from tests.support.conversation import Answer, Pending, Posted, Session

Json = dict[str, Any]


def software(name: str) -> bytes:
    """The fingerprint of a client's software."""
    return blake2b(name.encode(), digest_size=CLIENT).digest()


def tools_of(size: int) -> list[Json]:
    return [{"type": "function", "function": {"name": f"tool_{n}", "parameters": {}}} for n in range(size)]


def body_of(messages: Sequence[Json], tools: int = 0, stream: bool | None = None) -> bytes:
    more: Json = {"tools": tools_of(tools)} if tools else {}
    if stream is not None:
        more["stream"] = stream
    return dumps({"model": "m", "messages": list(messages), **more})


class Words:
    """Texts, each with a number of its own."""

    def __init__(self) -> None:
        self._numbers = count(1)

    def question(self) -> str:
        return f"What is known of place {next(self._numbers)} by now?"

    def statement(self) -> str:
        return f"The place has the number {next(self._numbers)} on every map."

    def instruction(self) -> str:
        # Letters alone: texts that differ in a number look like one with a clock in it.
        name = "".join(["abcdefghij"[int(digit)] for digit in str(next(self._numbers))])
        return f"Do as note {name} of these tools says."

    def reply(self, dice: Random, tools: int) -> Json:
        message: Json = {"role": "assistant", "content": self.statement()}
        if tools and dice.random() < 0.3:
            calls = [self.call() for _ in range(dice.randint(1, 2))]
            message |= {"tool_calls": calls, "content": dice.choice([None, message["content"]])}
        return message

    def call(self) -> Json:
        number = next(self._numbers)
        return {
            "id": f"call_{number}",
            "type": "function",
            "function": {"name": "tool_0", "arguments": f'{{"at": {number}}}'},
        }

    def said_next(self, behind: Sequence[Json], dice: Random) -> list[Json]:
        """What a client says behind its list: the results of the calls that wait, or a question."""
        calls = behind[-1].get("tool_calls", []) if behind else []
        if calls:
            return [{"role": "tool", "tool_call_id": each["id"], "content": self.statement()} for each in calls]
        return [user(self.question()), *([user(self.question())] if dice.random() < 0.1 else [])]


def user(text: str) -> Json:
    return {"role": "user", "content": text}


def assistant(text: str) -> Json:
    return {"role": "assistant", "content": text}


def system(text: str | None) -> list[Json]:
    return [] if text is None else [{"role": "system", "content": text}]


def replies_in(messages: Sequence[Json]) -> list[str]:
    return [each["content"] for each in messages if each["role"] == "assistant" and each["content"]]


def questions_in(messages: Sequence[Json]) -> list[str]:
    return [each["content"] for each in messages if each["role"] == "user"]


def answered(message: Json, dice: Random) -> Answer:
    return Answer(message, streamed=dice.random() < 0.5)


def sent_to(posted: Pending | Posted) -> list[Json]:
    """What the upstream received of a request."""
    body = posted.sent if isinstance(posted, Pending) else posted.body
    return list(json.loads(body)["messages"])


def line_of(session: Session) -> list[Json]:
    return [json.loads(entry.message.raw) for entry in session.history.path]


def plainly(messages: Sequence[Json]) -> list[tuple[Any, ...]]:
    """What tells each message from the others."""
    return [
        (
            each["role"],
            each.get("content") or None,
            [(call["id"], call["function"]["arguments"]) for call in each.get("tool_calls", [])],
            each.get("tool_call_id"),
        )
        for each in messages
    ]
