"""The benchmark says so where a target is wrong, and then gives no figure. Nothing here is about time."""

from __future__ import annotations

import re
import socket
import socketserver
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from bench import soak
from bench.__main__ import run
from bench.bench import Bench
from bench.client import Client, Kind
from bench.load import Run
from bench.machine import Machine, Target
from bench.scenarios import RECORDED, unary
from bench.table import GOALS, Goal, Row, over, row

GOAL = Goal("requests over direct", (1000.0,), (1000.0,))
MESSAGE = rb',\{"role":"assistant".*?\}'


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    with Machine(pin=False) as machine:
        yield machine


@dataclass
class Spoil:
    """What a proxy does to the requests and answers that pass through it; the hundredth part would be enough."""

    request: Callable[[bytes], bytes] = lambda data: data
    answer: Callable[[bytes], bytes] = lambda data: data
    again: bool = False  # it sends each request twice


@contextmanager
def proxy(behind: int, spoil: Spoil) -> Iterator[Target]:
    """A proxy in a thread. One that has nothing to answer closes the connection."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            while (request := whole(self.rfile.readline, self.rfile.read)) and self.pass_on(spoil.request(request)):
                pass

        def pass_on(self, request: bytes) -> bool:
            for _ in range(1 + spoil.again):
                with socket.create_connection(("127.0.0.1", behind), timeout=5) as sock, sock.makefile("rb") as file:
                    sock.sendall(request)
                    answer = spoil.answer(whole(file.readline, file.read))
            self.wfile.write(answer)
            return answer.endswith((b"\r\n\r\n", b"}"))

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield Target("bad", server.server_address[1])
        server.shutdown()


def whole(line: Callable[[], bytes], read: Callable[[int], bytes]) -> bytes:
    """A request or an answer, head and body; nothing at the end of the connection."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        if not (more := line()):
            return b""
        head += more
    if b"chunked" not in head:
        return head + read(int(head.lower().partition(b"content-length: ")[2].split(b"\r")[0]))
    data = head
    while not data.endswith(b"\r\n0\r\n\r\n"):
        data += line()
    return data


def resized(request: bytes) -> bytes:
    head, _, body = request.partition(b"\r\n\r\n")
    return re.sub(rb"Content-Length: \d+", b"Content-Length: %d" % len(body), head) + b"\r\n\r\n" + body


def without_an_event(answer: bytes, event: bytes) -> bytes:
    return re.sub(rb"[0-9a-f]+\r\ndata: [^\r]*" + event + rb"[^\r]*\r\n", b"", answer, count=1)


LISTS, STREAMS = Kind(resend=True, life=4), Kind(pace=0)
BAD = {
    "a message dropped": (
        LISTS,
        Spoil(request=lambda data: resized(re.sub(MESSAGE, b"", data, count=1))),
        "messages missing or foreign",
    ),
    "a message sent twice": (
        LISTS,
        Spoil(request=lambda data: resized(re.sub(b"(" + MESSAGE + b")", rb"\1\1", data, count=1))),
        "messages missing or foreign",
    ),
    "a message of another session": (
        LISTS,
        Spoil(request=lambda data: re.sub(rb'(assistant","content":"#)\d{7}', rb"\g<1>9999999", data, count=1)),
        "messages missing or foreign",
    ),
    "a message reworded": (LISTS, Spoil(request=lambda data: data.replace(b"Lorem", b"LOREM", 1)), "lists altered"),
    "a request sent twice": (LISTS, Spoil(again=True), "messages too few or too many"),
    "a byte changed": (LISTS, Spoil(answer=lambda data: data.replace(b"ipsum", b"IPSUM")), "answers changed"),
    "a byte more": (LISTS, Spoil(answer=lambda data: data + b"\n\r\n\r\n"), "answers changed"),
    "bytes in front": (
        LISTS,
        Spoil(answer=lambda data: data.replace(b"\r\n\r\n", b"\r\n\r\n  ", 1)),
        "answers changed",
    ),
    "an error": (LISTS, Spoil(answer=lambda data: data.replace(b" 200 OK", b" 503 Busy")), "requests failed"),
    "an answer cut short": (LISTS, Spoil(answer=lambda data: data[:-9]), "requests failed"),
    "no answer": (LISTS, Spoil(answer=lambda data: b""), "requests failed"),
    "no [DONE]": (STREAMS, Spoil(answer=lambda data: data.replace(b"data: [DONE]\n\n", b"\n" * 14)), "answers changed"),
    "an event dropped": (STREAMS, Spoil(answer=lambda data: without_an_event(data, b"lorem")), "answers changed"),
    "a stream cut short": (STREAMS, Spoil(answer=lambda data: data[:-200]), "requests failed"),
}


def beside_direct(target: Target, kind: Kind) -> Callable[[Bench], list[Row]]:
    def scenario(bench: Bench) -> list[Row]:
        found = bench.in_rounds({"bad": (target, kind), "direct": (bench.direct, kind)}, 2, Run(turns=4))
        return [row(GOAL, found, lambda: [over(found["bad"], found["direct"], lambda visit: visit.done)])]

    return scenario


@pytest.mark.parametrize(("kind", "spoil", "fault"), BAD.values(), ids=list(BAD))
def test_a_bad_target_gets_no_figure_and_a_status(
    machine: Machine, capsys: pytest.CaptureFixture[str], kind: Kind, spoil: Spoil, fault: str
) -> None:
    with proxy(machine.direct.port, spoil) as bad:
        status = run(Bench(machine, bad, None, rounds=1), [beside_direct(bad, kind)])
    line, total, *_ = capsys.readouterr().out.splitlines()[2:]
    assert status == 1
    assert re.search(rf"\| failed: \d+ [^|]*{fault}[^|]* \(bad\)", line)
    assert fault in total
    assert "(direct)" not in line


@pytest.mark.parametrize("kind", [LISTS, STREAMS, Kind()])
def test_a_good_target_gets_its_figure(machine: Machine, capsys: pytest.CaptureFixture[str], kind: Kind) -> None:
    with proxy(machine.direct.port, Spoil()) as good:
        status = run(Bench(machine, good, None, rounds=2), [beside_direct(good, kind)])
    assert status == 0
    assert "| requests over direct | ≤ 1000 | ≤ 1000 | 1 · goal |" in capsys.readouterr().out


def test_a_target_that_does_not_listen_has_failed(machine: Machine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    bench = Bench(machine, Target("bad", port), None, rounds=1)
    assert "failed: 1 requests failed (bad)" in beside_direct(bench.proxy, LISTS)(bench)[0].line


def test_a_proxy_that_forgets_has_failed(machine: Machine) -> None:
    """Nothing in between answers a recorded turn well, but for the first one."""
    bench = Bench(machine, machine.direct, None)
    visit = bench.visit(machine.direct, RECORDED, 2, Run(turns=3))
    assert visit.faults == bench.faults == Counter({"answers to a list with messages missing or foreign": 2})


def test_the_proxy_itself(machine: Machine) -> None:
    bench = Bench(machine, machine.proxy({"store": {"path": "memory:"}}), None, rounds=1, seconds=0.1)
    rows = unary(bench)
    assert bench.faults == Counter()
    assert [row.got for row in rows[:2]] == ["not measured: no nginx"] * 2
    assert re.match(r"[\d.]+ / [\d.]+ ms · ", rows[2].got)


def test_a_client_that_resends_sends_what_the_upstream_answered() -> None:
    client = Client(Kind(resend=True))
    turns = [client.next() for _ in range(3)]
    assert [turn.messages for turn in turns] == [1, 3, 5]
    said = re.search(rb'"message":(\{.*?\})', turns[1].answer)
    assert said and said[1] in turns[2].request


@pytest.mark.parametrize(
    ("values", "verdict"),
    [((0.1, 0.05), "goal"), ((0.3, 0.05), "must"), ((0.1, 0.3), "**misses the must**")],
)
def test_a_verdict_is_of_all_values(values: tuple[float, float], verdict: str) -> None:
    assert GOALS["cpu"].verdict(values) == verdict


@pytest.mark.parametrize(
    ("memory", "descriptors", "faults", "status"),
    [
        (lambda n: 5e7 + 4096 * (n % 3), 30, Counter[str](), 0),
        (lambda n: 5e7 + 1.1e6 * min(n, 25), 30, Counter[str](), 0),  # a warm-up
        (lambda n: 5e7 + 1.1e3 * n, 30, Counter[str](), 1),
        (lambda n: 5e7, 30, Counter({"requests failed": 1}), 1),
    ],
)
def test_a_soak_fails_for_a_slope(
    memory: Callable[[int], float], descriptors: int, faults: Counter[str], status: int
) -> None:
    done = [1000.0 * n for n in range(1, 101)]
    samples = {"memory": [memory(n) for n in range(100)], "descriptors": [float(descriptors)] * 100}
    assert soak.report(done, samples, faults) == status
