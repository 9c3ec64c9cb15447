"""Speaks systemd's protocols: sends states, takes over open sockets, reads the watchdog's timeout.

Knows neither the daemon, nor the configuration, nor an event loop.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping

FIRST = 3  # the descriptor of the first socket that is handed over


def notify(state: str, environ: Mapping[str, str]) -> bool:
    """Send a state such as `READY=1` to $NOTIFY_SOCKET. Return whether it was sent."""
    address = environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        # a full or vanished socket must neither stop nor stall the proxy
        sender.setblocking(False)
        try:
            sender.sendto(state.encode(), address)
        except OSError:
            return False
    return True


def inherited(environ: Mapping[str, str], process: int) -> list[socket.socket]:
    """Take over the sockets that systemd opened for this process; none if they are meant for another.

    Call it once. Raises OSError if a descriptor is not a socket.
    """
    if environ.get("LISTEN_PID") != str(process):
        return []
    found = [socket.socket(fileno=FIRST + number) for number in range(_number(environ.get("LISTEN_FDS", "")))]
    for each in found:
        each.set_inheritable(False)
        each.setblocking(False)
    return found


def patience(environ: Mapping[str, str], process: int) -> float | None:
    """Return the watchdog's timeout in seconds, after which systemd kills this process; None without a watchdog."""
    if environ.get("WATCHDOG_PID", str(process)) != str(process):
        return None
    return _number(environ.get("WATCHDOG_USEC", "")) / 1e6 or None


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() else 0
