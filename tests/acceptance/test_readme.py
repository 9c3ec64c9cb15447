"""Every snippet of the README and of the clients' pages, run as it stands in front of the proxy with the demo."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from proxy.commands.greeting import greeting
from proxy.config.model import Config

ROOT = Path(__file__).resolve().parents[2]
# What agents are set to is run by `make clients`.
CLIENTS = [page for page in sorted((ROOT / "docs" / "clients").glob("*.md")) if page.name != "agents.md"]
PAGES = [ROOT / "README.md", *CLIENTS]
NODE_MODULES = ROOT / ".venv" / "node"  # kept between runs, gone with the environment
KNOWN = "Your name is Alice."


def snippets(language: str) -> list[str]:
    """Of all pages; of the shell only those that call with curl."""
    found = [text for page in PAGES for text in re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)]
    return [text for text in found if language != "sh" or "curl" in text]


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


@pytest.mark.parametrize("curls", snippets("sh"))
def test_curl_snippets_are_answered_from_memory(demo: str, curls: str) -> None:
    if not shutil.which("curl"):
        pytest.skip("curl is not installed")
    assert KNOWN in run(["sh", "-c", placed(curls, demo)])
    assert "I don't have that information." in run(
        ["sh", "-c", re.sub(r"-H 'sessionId: [\w-]+'", "", placed(curls, demo))]
    )


def test_the_printed_curl_calls_work(demo: str) -> None:
    if not shutil.which("curl"):
        pytest.skip("curl is not installed")
    calls = [line for line in greeting(Config(), demo, True).splitlines() if line.startswith("curl")]
    assert len(calls) == 2
    assert KNOWN in run(["sh", "-c", "\n".join(calls)])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.name))
def test_every_snippet_has_a_language_that_a_test_runs(page: Path) -> None:
    """And every page on a client has one, with a session of its own."""
    text = page.read_text()
    languages = set(re.findall(r"^```(\w+)$", text, re.MULTILINE))
    assert languages <= {"sh", "python", "js", "mermaid"}
    assert languages or page.name == "README.md"
    assert len(re.findall("```", text)) == 2 * len(re.findall(r"^```(?:sh|python|js|mermaid)\n", text, re.MULTILINE))


def test_each_client_has_a_snippet_with_its_own_session_id() -> None:
    assert (len(snippets("sh")), len(snippets("python")), len(snippets("js"))) == (2, 3, 2)
    found = [text for language in ("sh", "python", "js") for text in snippets(language)]
    ids = [set(re.findall(r"""sessionId"?: "?([\w-]+)""", text)) for text in found]
    assert all([len(each) == 1 for each in ids]) and len(set().union(*ids)) == len(found)
