"""Reports the state of the process to systemd: its phase, what is in flight, and watchdog pings.

Knows nothing of requests, nor why a state changes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping

from proxy.service import systemd

LOOK = 1.0  # seconds between two looks at what is in flight


class Status:
    """Sends each state to systemd with one line for `systemctl status`: the phase, what is in flight, the last fault.

    `in_flight` counts the answers that have not ended.
    """

    def __init__(self, in_flight: Callable[[], int], environ: Mapping[str, str], process: int) -> None:
        self.fault = ""
        self._phase = "starting"
        self._in_flight = in_flight
        self._environ = environ
        self._patience = systemd.patience(environ, process)
        self._said = ""

    @property
    def line(self) -> str:
        count = self._in_flight()
        return f"{self._phase}, {count or 'nothing'} in flight" + (f"; {self.fault}" if self.fault else "")

    def ready(self) -> None:
        self._phase = "serving"
        self._say("READY=1")

    def reloading(self) -> None:
        """Report that a reload begins. systemd takes a READY=1 after this moment as its end."""
        self._say("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self, limit: float) -> None:
        """Report that the process stops, and will have ended within `limit` seconds."""
        self._phase = "stopping"
        self._say("STOPPING=1", f"EXTEND_TIMEOUT_USEC={round(limit * 1e6)}")

    async def keep(self, look: float = LOOK) -> None:
        """Report changes, and ping the watchdog from the event loop, until cancelled."""
        beat = min(look, self._patience / 4) if self._patience else look
        silent = 0.0
        while True:
            await asyncio.sleep(beat)
            silent += beat
            if self._patience and silent >= self._patience / 3:
                silent = 0.0
                self._say("WATCHDOG=1")
            elif self.line != self._said:
                self._say()

    def _say(self, *states: str) -> None:
        self._said = self.line
        systemd.notify("\n".join([*states, f"STATUS={self._said}"]), self._environ)
