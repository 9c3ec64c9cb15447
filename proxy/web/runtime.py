"""What a request needs from the process: one value, replaced in part by a reload."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from proxy.config import Config
from proxy.stores.base import Store
from proxy.web.live import Live
from proxy.web.upstream import Client


@dataclass
class Runtime:
    """`now` gives the wall clock in ms, `turn_id` a new turn ID that nobody can guess."""

    config: Config
    store: Store
    client: Client
    secret: bytes
    now: Callable[[], int]
    turn_id: Callable[[], str]
    live: Live[Any] = field(default_factory=Live)  # of turn.RecordedTurn, which is made of a runtime
