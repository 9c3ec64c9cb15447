"""Every snippet of the README, run as it stands against the proxy with the demo behind it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from proxy.commands.greeting import greeting
from proxy.config import Config

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
NODE_MODULES = ROOT / ".venv" / "node"  # kept between runs, gone with the environment
KNOWN = "Your name is Alice."


def snippets(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def run(command: list[str], **more: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env={**os.environ, **more}, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def placed(snippet: str, address: str) -> str:
    return snippet.replace("127.0.0.1:8484", address)


def node() -> str:
    """Node and the official SDK, installed once from the registry; skips where there is no Node."""
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("Node.js and npm are not installed")
    if not (NODE_MODULES / "node_modules" / "openai").exists():
        NODE_MODULES.mkdir(parents=True, exist_ok=True)
        install = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(NODE_MODULES), "openai@6"]
        done = subprocess.run(install, capture_output=True, text=True, timeout=120, check=False)
        if done.returncode:
            pytest.skip(f"npm cannot install the SDK: {done.stderr[-200:]}")
    return "node"


@pytest.mark.parametrize("snippet", snippets("python"))
def test_python_snippets_are_answered_from_memory(demo: str, snippet: str) -> None:
    assert KNOWN in run([sys.executable, "-c", placed(snippet, demo)])


@pytest.mark.parametrize("snippet", snippets("js"))
def test_javascript_snippets_are_answered_from_memory(demo: str, snippet: str) -> None:
    script = NODE_MODULES / f"snippet-{abs(hash(snippet))}.mjs"
    program = node()
    script.write_text(placed(snippet, demo))
    try:
        assert KNOWN in run([program, str(script)])
    finally:
        script.unlink()


def test_curl_snippets_are_answered_from_memory(demo: str) -> None:
    if not shutil.which("curl"):
        pytest.skip("curl is not installed")
    (curls,) = [snippet for snippet in snippets("sh") if "curl" in snippet]
    assert KNOWN in run(["sh", "-c", placed(curls, demo)])
    assert "I don't have that information." in run(
        ["sh", "-c", re.sub(r"-H 'sessionId: [\w-]+'", "", placed(curls, demo))]
    )


def test_the_curl_calls_that_the_command_prints_work(demo: str) -> None:
    if not shutil.which("curl"):
        pytest.skip("curl is not installed")
    calls = [line for line in greeting(Config(), demo, True).splitlines() if line.startswith("curl")]
    assert len(calls) == 2
    assert KNOWN in run(["sh", "-c", "\n".join(calls)])


def test_every_snippet_has_a_language_that_a_test_runs() -> None:
    assert set(re.findall(r"^```(\w+)$", README, re.MULTILINE)) == {"sh", "python", "js"}
    assert len(snippets("python")) == len(snippets("js")) == 2
