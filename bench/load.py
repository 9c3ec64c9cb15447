"""A closed loop of clients on bare sockets: what it took, how long it took, and what was wrong.

One thread, one epoll. Every answer is compared with the right one, byte for byte.
"""

from __future__ import annotations

import select
import socket
import struct
import time
from collections import Counter
from dataclasses import dataclass, field, fields

from bench import wire
from bench.client import Client, Kind, Turn

FAILED, CHANGED, MISSING = "requests failed", "answers changed", "answers to a list with messages missing or foreign"
READ = 1 << 16  # bytes at a time; what is larger would be mapped and unmapped for each read
SILENCE = 20.0  # seconds without a byte for anybody, after which all that is open has failed
_OK = b"HTTP/1.1 200 "


@dataclass(frozen=True)
class Run:
    """How long to load a target: `seconds`, or `turns` of each client. Clients begin evenly over the first `spread`
    seconds, whose deltas are not counted among the delays."""

    seconds: float = 0.0
    turns: int = 0
    spread: float = 0.0


@dataclass
class Visit:
    """What a target did while it was loaded. Times in seconds."""

    done: int = 0
    seconds: float = 0.0
    cpu: float = 0.0  # of the target
    messages: int = 0  # that the upstream was to receive
    events: int = 0
    latencies: list[float] = field(default_factory=list)  # request sent to end of answer
    firsts: list[float] = field(default_factory=list)  # request sent to first delta
    delays: list[float] = field(default_factory=list)  # delta sent by the upstream to delta here
    faults: Counter[str] = field(default_factory=Counter)
    example: bytes = b""  # the beginning of the first answer that was wrong

    def plus(self, other: Visit) -> Visit:
        """Both, one after the other."""
        return Visit(**{one.name: getattr(self, one.name) + getattr(other, one.name) for one in fields(self)})


class _Connection:
    """One client, and the answer it is reading."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.sock = socket.socket()
        self.turn: Turn | None = None
        self.sent = 0.0
        self.first = 0.0
        self.turns_left = 0
        self._pieces: list[bytes] = []
        self._needed = 0  # bytes of the whole answer; 0: not known yet, -1: it comes in chunks

    def open(self, port: int) -> None:
        self.sock.close()
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=SILENCE)
        self.sock.settimeout(None)  # with one, each call waits in a poll of its own first
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(SILENCE), 0))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self) -> None:
        """Send the next request; waits where a long list does not fit the kernel's buffer."""
        self.turn = self.client.next()
        self._pieces, self._needed, self.first = [], 0, 0.0
        self.sent = time.perf_counter()
        self.sock.sendall(self.turn.request)

    def right_at_once(self, data: bytes) -> bool:
        """Whether the whole answer, and the right one, came in one piece: the common case, told quickly."""
        turn = self.turn
        assert turn
        if self._pieces or not (data.startswith(_OK) and data.endswith(turn.answer)):
            return False
        length = wire.LENGTH.search(data, 0, len(data) - len(turn.answer))
        return length is not None and int(length[1]) == len(turn.answer) == len(data) - data.find(b"\r\n\r\n") - 4

    def feed(self, data: bytes) -> bool:
        """Whether the answer is whole."""
        self._pieces.append(data)
        if not self._needed:
            self._needed = self._size()
        if self._needed > 0:
            return sum(map(len, self._pieces)) >= self._needed
        return self._needed < 0 and b"".join(self._pieces[-2:]).endswith(wire.LAST_CHUNK)

    def _size(self) -> int:
        whole = self.came
        end = whole.find(b"\r\n\r\n") + 4
        if end < 4:
            return 0
        if found := wire.LENGTH.search(whole, 0, end):
            return end + int(found[1])
        return -1 if wire.CHUNKED.search(whole, 0, end) else end

    @property
    def came(self) -> bytes:
        """What was read of the answer so far."""
        return b"".join(self._pieces)

    def fault(self) -> str | None:
        """What is wrong with the answer that is whole."""
        assert self.turn
        head, _, body = self.came.partition(b"\r\n\r\n")
        if not head.startswith(_OK):
            return FAILED
        try:
            body = wire.unchunked(body) if self._needed < 0 else body
        except ValueError:
            return CHANGED
        if self.client.kind.pace is not None:
            body = wire.STAMP.sub(b"@" + b"0" * 19 + b"@", body)
        return None if body == self.turn.answer else _difference(body, self.turn.answer)


def _difference(body: bytes, right: bytes) -> str:
    """An answer that differs in what the upstream heard is the right one to the wrong request."""
    told = wire.HEARD.search(right)
    assert told
    same = wire.COUNTS.sub(b"", body) == wire.COUNTS.sub(b"", right)
    return MISSING if same and told[0] not in body else CHANGED


class Load:
    """`connections` clients of a kind, each on a connection of its own."""

    def __init__(self, port: int, kind: Kind, connections: int = 1, clients: list[Client] | None = None) -> None:
        self.port = port
        self._poll = select.epoll()
        self._all = [_Connection(client) for client in clients or [Client(kind) for _ in range(connections)]]
        self._open: dict[int, _Connection] = {}
        self._busy = 0
        self._visit = Visit()

    def __enter__(self) -> Load:
        try:
            for connection in self._all:
                self._connect(connection)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for connection in self._all:
            connection.sock.close()
        self._poll.close()

    def run(self, run: Run) -> Visit:
        """Load the target for as long as the run says; returns when every answer is there."""
        self._visit = visit = Visit()
        begun = time.perf_counter()
        self._until = begun + run.spread + run.seconds if run.seconds else 0.0
        self._counted = begun + run.spread
        starts = [(begun + run.spread * n / len(self._all), one) for n, one in enumerate(self._all)][::-1]
        while starts or self._busy:
            while starts and starts[-1][0] <= time.perf_counter():
                self._start(starts.pop()[1], run.turns)
            wait = starts[-1][0] - time.perf_counter() if starts else SILENCE
            if not (ready := self._poll.poll(max(0.0, wait))) and not starts:
                self._give_up()
            for fd, _ in ready:
                self._readable(self._open[fd])
        visit.seconds = time.perf_counter() - begun
        return visit

    def _start(self, connection: _Connection, turns: int) -> None:
        connection.turns_left = turns or -1
        self._busy += 1
        self._next(connection)

    def _next(self, connection: _Connection) -> None:
        """Ask again, unless the time or the turns are over."""
        over = connection.turns_left == 0 or (self._until and time.perf_counter() >= self._until)
        connection.turns_left -= 1
        connection.turn = None
        if over:
            self._busy -= 1
            return
        try:
            connection.ask()
        except OSError:
            self._failed(connection)

    def _readable(self, connection: _Connection) -> None:
        try:
            data = connection.sock.recv(READ)
        except OSError:
            data = b""
        now = time.perf_counter()
        if not connection.turn:  # closed between two requests: as good as open, once it is opened again
            self._visit.faults[CHANGED] += bool(data)
            self._connect(connection)
        elif not data:
            self._failed(connection)
        else:
            if connection.client.kind.pace is not None:
                self._stamps(connection, data, now)
            if connection.right_at_once(data):
                self._finished(connection, connection.turn, now, None)
            elif connection.feed(data):
                self._finished(connection, connection.turn, now, connection.fault())

    def _stamps(self, connection: _Connection, data: bytes, now: float) -> None:
        stamps = wire.STAMP.findall(data)
        self._visit.events += len(stamps)
        if stamps and not connection.first:
            connection.first = now
            self._visit.firsts.append(now - connection.sent)
        if now >= self._counted:
            self._visit.delays += [now - int(stamp) / 1e9 for stamp in stamps]

    def _finished(self, connection: _Connection, turn: Turn, now: float, fault: str | None) -> None:
        visit = self._visit
        visit.latencies.append(now - connection.sent)
        visit.done += 1
        visit.messages += turn.messages
        if fault:
            visit.faults[fault] += 1
            visit.example = visit.example or connection.came[:400]
            connection.client.restart()
        self._next(connection)

    def _failed(self, connection: _Connection) -> None:
        self._visit.faults[FAILED] += 1
        self._visit.example = self._visit.example or connection.came[:400]
        connection.client.restart()
        self._connect(connection)
        self._next(connection)

    def _give_up(self) -> None:
        for connection in self._all:
            if connection.turn:
                self._visit.faults[FAILED] += 1
                connection.turn = None
        self._busy = 0

    def _connect(self, connection: _Connection) -> None:
        """Closing a socket takes it out of the poll."""
        self._open.pop(connection.sock.fileno(), None)
        connection.open(self.port)
        self._open[connection.sock.fileno()] = connection
        self._poll.register(connection.sock, select.EPOLLIN)
