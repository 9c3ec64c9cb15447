"""The benchmark's upstream: a process of its own that answers every chat request at once, or in a paced stream.

    python -m bench.upstream     says its port, and serves until it is killed

`GET /__stats` counts what came, `GET /__last` is the body of the newest chat request. A bare epoll loop: libuv's
timers, and with them uvloop's, go by whole milliseconds, which would send the deltas of 200 streams in bursts of
twenty.
"""

from __future__ import annotations

import gc
import heapq
import json
import select
import socket
import time

from bench import wire

JSON = b"application/json"
READ = 1 << 16  # bytes at a time; what is larger would be mapped and unmapped for each read
SSE = b"text/event-stream; charset=utf-8"


class Connection:
    """One client of the upstream. What it has not read is left to the kernel, which holds a whole stream."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._data = bytearray()
        self._needed = 0

    def feed(self, data: bytes) -> tuple[bytes, bytes] | None:
        """The request line and the body, once both are whole. One request at a time: nobody sends ahead."""
        if not self._data and b"\r\n\r\n" in data and len(data) == _size(data):
            return _split(data)
        self._data += data
        self._needed = self._needed or _size(self._data)
        if not self._needed or len(self._data) < self._needed:
            return None
        whole, self._data, self._needed = bytes(self._data), bytearray(), 0
        return _split(whole)


def _size(data: bytes | bytearray) -> int:
    """Of the request that begins there, in bytes; 0 while its head is not whole."""
    end = data.find(b"\r\n\r\n") + 4
    found = wire.LENGTH.search(data, 0, end)
    return 0 if end < 4 else end + (int(found[1]) if found else 0)


def _split(data: bytes) -> tuple[bytes, bytes]:
    head, _, body = data.partition(b"\r\n\r\n")
    return head.partition(b"\r\n")[0], body


class Upstream:
    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        listener.setblocking(False)
        self._poll = select.epoll()
        self._poll.register(listener, select.EPOLLIN)
        self._connections: dict[int, Connection] = {}
        self._due: list[tuple[int, int, Connection, int, int]] = []  # when, order, to whom, which delta, pace in ns
        self._order = 0
        self._stats = {"requests": 0, "messages": 0, "bytes": 0}
        self._last = b""

    def run(self) -> None:
        while True:
            for fd, _ in self._poll.poll(0 if self._due else -1):
                self._readable(fd)
            self._send_due()
            if self._due:  # epoll waits in whole milliseconds, select in microseconds; a poll can be selected
                wait = max(0, self._due[0][0] - time.monotonic_ns()) / 1e9
                select.select([self._poll], [], [], wait)

    def _readable(self, fd: int) -> None:
        if fd == self._listener.fileno():
            sock, _ = self._listener.accept()
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._connections[sock.fileno()] = Connection(sock)
            self._poll.register(sock, select.EPOLLIN)
            return
        connection = self._connections[fd]
        try:
            data = connection.sock.recv(READ)
            if not data:
                raise ConnectionError
            if request := connection.feed(data):
                self._answer(connection, *request)
        except OSError:  # gone, or it does not read: then it is as good as gone
            self._close(fd)

    def _close(self, fd: int) -> None:
        self._poll.unregister(fd)
        self._connections.pop(fd).sock.close()

    def _answer(self, connection: Connection, line: bytes, body: bytes) -> None:
        if line.startswith(b"GET /__stats "):
            connection.sock.send(wire.with_length(json.dumps(self._stats).encode()))
        elif line.startswith(b"GET /__last "):
            connection.sock.setblocking(True)
            connection.sock.sendall(wire.with_length(self._last))
            connection.sock.setblocking(False)
        else:
            self._chat(connection, body)

    def _chat(self, connection: Connection, body: bytes) -> None:
        heard = wire.heard(body)
        stats = self._stats
        stats["requests"] += 1
        stats["messages"] += heard[2]
        stats["bytes"] += len(body)
        self._last = body
        if not (pace := wire.PACE.search(body, 0, 100)):
            connection.sock.send(wire.with_length(wire.answer(*heard), JSON))
            return
        connection.sock.send(wire.head(b"Transfer-Encoding: chunked", SSE) + wire.chunk(wire.first_event(*heard)))
        self._deltas(connection, 0, int(pace[1]) * 1000)

    def _deltas(self, connection: Connection, number: int, pace: int) -> None:
        """Send the delta that is due, and those after it where nothing lies between them."""
        send = connection.sock.send
        now = time.monotonic_ns()
        while number < wire.DELTAS:
            send(wire.chunk(wire.delta(now)))
            number += 1
            now = time.monotonic_ns()
            if pace:
                self._order += 1
                heapq.heappush(self._due, (now + pace, self._order, connection, number, pace))
                return
        send(wire.chunk(wire.END) + wire.LAST_CHUNK)

    def _send_due(self) -> None:
        now = time.monotonic_ns()
        while self._due and self._due[0][0] <= now:
            _, _, connection, number, pace = heapq.heappop(self._due)
            try:
                self._deltas(connection, number, pace)
            except OSError:
                pass  # its end is read next


def main() -> None:
    listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
    print(listener.getsockname()[1], flush=True)
    gc.disable()  # nothing here makes cycles
    Upstream(listener).run()


if __name__ == "__main__":
    main()
