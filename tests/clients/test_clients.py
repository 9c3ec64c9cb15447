"""Clients of other people, in front of the proxy as they come from their registries: no side request of theirs stands
in the transcript, nothing reaches the upstream twice, and each request reaches it as the client sent it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.clients.install import node_with, python_with
from tests.clients.stage import PROGRAMS, Call, Script, Stage, form, stage, text_of
from tests.clients.tap import Sent

pytestmark = pytest.mark.timeout(2400)

PLAN = [
    "I am planning a week in Lisbon.",
    "Where should I stay there?",
    "And the weather?",
    "What about the trams?",
    "Are two nights enough for the hills?",
    "And the food, what is typical?",
    "Give me the plan in one line.",
]
TEXTS = "|".join(PLAN)
BRIEF = "You help with plans, briefly."


def weather(messages: list[Any]) -> Call | None:
    """Looks up the weather where the user's last word asks for it."""
    last = messages[-1]
    asks = last["role"] == "user" and "weather" in text_of(last["content"])
    return ("weather", {"place": "Lisbon"}) if asks else None



def has_no_tools(sent: Sent) -> bool:
    return not sent.json.get("tools")


def has_another_prompt(sent: Sent) -> bool:
    first = sent.messages[0]
    return first["role"] != "system" or text_of(first["content"]) != BRIEF


async def test_langchain_sums_up(tmp_path: Path) -> None:
    python = python_with("langchain", "langchain", "langchain-openai")
    async with stage(tmp_path, Script(weather)) as run:
        await run.run(python, PROGRAMS / "langchain_summary.py", cwd=tmp_path, TEXTS=TEXTS)
        sides = await run.check(has_no_tools)
        assert len(sides) >= 2
        print(figures(run, sides))


@pytest.mark.parametrize("tools", ["", "1"], ids=["plain", "tools"])
async def test_strands_sums_up(tmp_path: Path, tools: str) -> None:
    python = python_with("strands", "strands-agents[openai]")
    async with stage(tmp_path, Script(weather)) as run:
        await run.run(python, PROGRAMS / "strands_summary.py", cwd=tmp_path, TEXTS=TEXTS, TOOLS=tools)
        sides = await run.check(has_another_prompt)
        assert len(sides) == 2
        print(figures(run, sides))


def in_turn(messages: list[Any]) -> Call | None:
    """Looks up the weather, then gives its answer; each time anew."""
    calls = sum([message["role"] == "assistant" and "weather" in text_of(message["content"]) for message in messages])
    answers = sum(["final_answer" in text_of(message["content"]) for message in messages[1:]])
    return ("final_answer", {"answer": "two nights"}) if calls > answers else ("weather", {"place": "Lisbon"})


@pytest.mark.parametrize("interval", ["1", "2"])
@pytest.mark.parametrize("calls", [in_turn, lambda messages: None], ids=["calls", "words"])
async def test_smolagents_plans(tmp_path: Path, interval: str, calls: Any) -> None:
    python = python_with("smolagents", "smolagents[openai]")
    async with stage(tmp_path, Script(calls)) as run:
        await run.run(
            python, PROGRAMS / "smolagents_plan.py", cwd=tmp_path, TEXTS="|".join(PLAN[:2]), INTERVAL=interval
        )
        sides = await run.check(has_no_tools)
        assert len(sides) >= 2
        print(figures(run, sides))


async def test_semantic_kernel_sums_up(tmp_path: Path) -> None:
    python = python_with("semantic-kernel", "semantic-kernel")
    async with stage(tmp_path, Script()) as run:
        await run.run(python, PROGRAMS / "semantic_kernel_summary.py", cwd=tmp_path, TEXTS=TEXTS)
        sides = await run.check(has_another_prompt)
        assert len(sides) >= 2
        print(figures(run, sides))


def figures(run: Stage, sides: list[Sent]) -> str:
    """What a run did, a line for each request (shown with -s, and where a test fails)."""
    lines = [f"{len(run.tap.sent)} requests, {len(sides)} beside the chat"]
    for number, sent in enumerate(run.tap.sent):
        got = [form(each) for each in run.received(number)]
        shape = "".join([one[0][0] + ("c" if one[2] != "[]" else "") for one in got])
        kind = "side" if sent in sides else "main"
        lines.append(f"  {number} {kind} {sent.decision}: sent {len(sent.messages)}, upstream {len(got)} {shape}")
    return "\n".join(lines)
