"""What systemd wants to hear: one datagram per state, and nothing where nobody listens.

It never knows the daemon, the configuration or an event loop.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping


def notify(state: str, environ: Mapping[str, str]) -> bool:
    """Send a state such as `READY=1` to $NOTIFY_SOCKET; whether somebody took it."""
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
