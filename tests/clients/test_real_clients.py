"""Clients of other people, in front of the proxy as they come from their registries: no side request of theirs stands
in the transcript, nothing reaches the upstream twice, and each request reaches it as the client sent it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.clients.install import node_with, python_with
from tests.clients.stage import PROGRAMS, SESSION, Call, Script, Stage, form, stage, text_of
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
TRANSCRIPT = "</messages>"  # how LangChain's request for a summary ends
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


def in_a_loop(messages: list[Any]) -> Call | None:
    """Looks up the weather at nine places, one after the other."""
    last = messages[-1]
    if last["role"] != "tool":
        return ("weather", {"place": "place 1"}) if weather(messages) else None
    place = int(text_of(last["content"]).split()[-1])
    return ("weather", {"place": f"place {place + 1}"}) if place < 9 else None


def markup(number: int) -> str:
    """A long reply that clients escape where they quote it."""
    line = f'<p class="{number}">Bring a "light" coat & an umbrella \u2014 it rains < 3 times</p>\n'
    return f"# Part {number}\n\n{line * 12}That is all of number {number}.\n\n"


PLAINLY = Script().says


@pytest.mark.parametrize("says", [PLAINLY, markup], ids=["plainly", "markup"])
@pytest.mark.parametrize(
    ("calls", "environ"),
    [
        (weather, {"TOOLS": "1", "PROMPT": BRIEF, "LIMITS": "5,2"}),
        (weather, {"TOOLS": "1", "LIMITS": "5,2"}),
        (weather, {"PROMPT": BRIEF, "LIMITS": "7,3", "STREAM": "1"}),
        (weather, {"LIMITS": "7,3"}),
        (in_a_loop, {"TOOLS": "1", "PROMPT": BRIEF, "LIMITS": "8,4"}),
        (in_a_loop, {"TOOLS": "1", "LIMITS": "8,4", "STREAM": "1"}),
    ],
    ids=["agent", "agent-without-prompt", "prompt", "neither", "tool-loop", "tool-loop-without-prompt"],
)
async def test_langchain_sums_up(tmp_path: Path, calls: Any, environ: dict[str, str], says: Any) -> None:
    python = python_with("langchain", "langchain", "langchain-openai")
    async with stage(tmp_path, Script(calls, says)) as run:
        await run.run(python, PROGRAMS / "langchain_summary.py", cwd=tmp_path, TEXTS=TEXTS, **environ)
        side_requests = await run.check(lambda sent: text_of(sent.messages[0]["content"]).endswith(TRANSCRIPT))
        assert len(side_requests) >= 2
        print(figures(run, side_requests))


@pytest.mark.parametrize("tools", ["", "1"], ids=["plain", "tools"])
async def test_strands_sums_up(tmp_path: Path, tools: str) -> None:
    python = python_with("strands", "strands-agents[openai]")
    async with stage(tmp_path, Script(weather)) as run:
        await run.run(python, PROGRAMS / "strands_summary.py", cwd=tmp_path, TEXTS=TEXTS, TOOLS=tools)
        side_requests = await run.check(has_another_prompt)
        assert len(side_requests) == 2
        print(figures(run, side_requests))


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
        side_requests = await run.check(has_no_tools)
        assert len(side_requests) >= 2
        print(figures(run, side_requests))


def code(number: int) -> str:
    """A step of a CodeAgent: it looks up the weather, and at each third request gives its answer."""
    step = 'final_answer("two nights")' if number % 3 == 2 else f'print(weather(place="place {number}"))'
    return f"Thought: this is number {number}.\n<code>\n{step}\n</code>"


async def test_smolagents_plans_in_code(tmp_path: Path) -> None:
    python = python_with("smolagents", "smolagents[openai]")
    async with stage(tmp_path, Script(says=code)) as run:
        texts = "|".join(PLAN[:3])
        await run.run(python, PROGRAMS / "smolagents_plan.py", cwd=tmp_path, TEXTS=texts, INTERVAL="1", KIND="code")
        side_requests = await run.check(lambda sent: "using code blobs" not in text_of(sent.messages[0]["content"]))
        assert len(side_requests) >= 2
        print(figures(run, side_requests))


async def test_semantic_kernel_sums_up(tmp_path: Path) -> None:
    python = python_with("semantic-kernel", "semantic-kernel")
    async with stage(tmp_path, Script()) as run:
        await run.run(python, PROGRAMS / "semantic_kernel_summary.py", cwd=tmp_path, TEXTS=TEXTS)
        side_requests = await run.check(has_another_prompt)
        assert len(side_requests) >= 2
        print(figures(run, side_requests))


def opencode(folder: Path, base_url: str, context: int, named: bool = False) -> tuple[Path, dict[str, str]]:
    """The command, and an environment of its own that points it at a URL, with a model of that context."""
    modules = node_with("opencode", "opencode-ai")
    found = sorted(modules.glob("opencode-*/bin/opencode"), key=lambda path: "baseline" not in str(path))
    if not found:
        pytest.skip("opencode has no build for this machine")
    model = {"name": "m", "limit": {"context": context, "output": 1000}, "tool_call": True}
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "options": {"baseURL": base_url, "apiKey": "k", "headers": {"sessionId": SESSION} if named else {}},
        "models": {"m": model},
    }
    settings = {"provider": {"local": provider}, "model": "local/m", "share": "disabled", "autoupdate": False}
    home = {
        name: str(folder / name) for name in ("XDG_DATA_HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_STATE_HOME")
    }
    return found[0], {
        **home,
        "HOME": str(folder),
        "OPENCODE_CONFIG_CONTENT": json.dumps(settings),
        "OPENCODE_DISABLE_AUTOUPDATE": "1",
        "OPENCODE_DISABLE_MODELS_FETCH": "1",
        "OPENCODE_DISABLE_LSP_DOWNLOAD": "1",
    }


def a_look(messages: list[Any]) -> Call | None:
    """Looks at the files where the user's last word asks for it."""
    last = messages[-1]
    asks = last["role"] == "user" and "this folder" in text_of(last["content"])
    return ("glob", {"pattern": "*"}) if asks else None


@pytest.mark.parametrize("named", [False, True], ids=["its-own-header", "sessionId-beside-it"])
async def test_opencode_names_its_chat(tmp_path: Path, named: bool) -> None:
    async with stage(tmp_path, Script(a_look)) as run:
        command, environ = opencode(tmp_path, run.tap.base_url, 128_000, named)
        (work := tmp_path / "work").mkdir()
        for turn, text in enumerate([PLAN[0], "What is in this folder?", *PLAN[2:4]]):
            await run.run(command, "run", *(["--continue"] if turn else []), text, cwd=work, **environ)
        own = run.tap.sent[0].headers["x-session-id"]
        side_requests = await run.check(has_no_tools, session=SESSION if named else own)
        assert len(side_requests) == 1 and len(run.tap.sent) == 6
        print(figures(run, side_requests))


async def test_opencode_compacts(tmp_path: Path) -> None:
    async with stage(tmp_path, Script(a_look, tokens=1000)) as run:
        command, environ = opencode(tmp_path, run.tap.base_url, 9_000)
        (work := tmp_path / "work").mkdir()
        for turn, text in enumerate(PLAN):
            await run.run(command, "run", *(["--continue"] if turn else []), text, cwd=work, **environ)
        print(figures(run, []))
        side_requests = await run.check(has_no_tools, session=run.tap.sent[0].headers["x-session-id"])
        print(figures(run, side_requests))
        assert len(side_requests) > 1


def figures(run: Stage, side_requests: list[Sent]) -> str:
    """What a run did, a line for each request (shown with -s, and where a test fails)."""
    lines = [f"{len(run.tap.sent)} requests, {len(side_requests)} beside the chat"]
    for number, sent in enumerate(run.tap.sent):
        got = [form(each) for each in run.received(number)]
        shape = "".join([one[0][0] + ("c" if one[2] != "[]" else "") for one in got])
        kind = "side" if sent in side_requests else "main"
        lines.append(f"  {number} {kind} {sent.decision}: sent {len(sent.messages)}, upstream {len(got)} {shape}")
    return "\n".join(lines)
