"""Sends a request to the running proxy through its control socket. Knows no command."""

from __future__ import annotations

import http.client
import json
from pathlib import Path
from typing import Any

from proxy.errors import StoreUnavailable
from proxy.service import control_socket as control

TIMEOUT = 60.0  # seconds


def ask(database: Path, method: str, path: str) -> dict[str, Any]:
    """Send a request to the proxy of this database and return its answer. Raises OSError if none listens, and
    StoreUnavailable with the proxy's message if it refuses."""
    connection = http.client.HTTPConnection("localhost")
    connection.sock = control.connected(database, TIMEOUT)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        said: dict[str, Any] = json.loads(answer.read())
    except (http.client.HTTPException, ValueError) as error:
        raise StoreUnavailable("The running proxy gave no valid answer. Look in its log.") from error
    finally:
        connection.close()
    if answer.status != 200:
        raise StoreUnavailable(said["error"]["message"])
    return said
