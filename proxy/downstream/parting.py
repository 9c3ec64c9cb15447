"""Resets the connection of a broken answer, after a moment in which the client can read what it was sent.

On a reset a client's kernel, or the client itself, discards what it has not read: Chromium lost whole answers. So the
reset waits until the client's kernel has acknowledged everything, and a moment more. Knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct
import sys
import termios
import time
from collections.abc import Callable

QUIET = 0.02  # seconds from an empty send queue to the reset
LONGEST = 0.1  # seconds from the break to the reset, whatever the client takes
_POLL_INTERVAL = 0.005  # seconds between two looks: nobody tells when a send queue is empty


class ResetTimer:
    """Computes how long a client still has until the reset; the caller passes the time. Pure."""

    def __init__(self, broke: float) -> None:
        self._end = broke + LONGEST
        self._empty: float | None = None  # since when nothing is unsent

    def left(self, now: float, unsent: bool) -> float:
        """Return the seconds until the reset if nothing changes; 0 or less means now."""
        if unsent:
            self._empty = None
            return self._end - now
        if self._empty is None:
            self._empty = now
        return min(self._end, self._empty + QUIET) - now


class DelayedReset:
    """Resets a connection by timers of its own and completes `over` once it is closed. `broke`: when the answer broke
    (monotonic). When `hurries` returns True it resets at once."""

    def __init__(self, transport: asyncio.Transport, broke: float, hurries: Callable[[], bool]) -> None:
        self._loop = asyncio.get_running_loop()
        self.over: asyncio.Future[None] = self._loop.create_future()
        self._transport, self._moment, self._hurries = transport, ResetTimer(broke), hurries
        harden(transport)
        self._poll()

    def _poll(self) -> None:
        transport = self._transport
        if not transport.is_closing():
            left = self._moment.left(time.monotonic(), has_unsent(transport))
            if left > 0 and not self._hurries():
                self._loop.call_later(min(left, _POLL_INTERVAL), self._poll)
                return
            transport.abort()
        if not self.over.done():  # whoever waited may have been cancelled
            self.over.set_result(None)


def harden(transport: asyncio.BaseTransport) -> None:
    """Make any later close of the connection a reset (SO_LINGER)."""
    connection = transport.get_extra_info("socket")
    if connection is not None and connection.family in (socket.AF_INET, socket.AF_INET6):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def has_unsent(transport: asyncio.WriteTransport) -> bool:
    """Whether bytes are still unsent, or not acknowledged by the client's kernel."""
    if transport.get_write_buffer_size():
        return True
    connection = transport.get_extra_info("socket")
    if connection is None or sys.platform != "linux":
        return False
    try:
        return any(fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, bytes(4)))  # SIOCOUTQ by its other name
    except OSError:
        return False
