"""What a chat client says and hears, in few words, and what the proxy has kept of it."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multidict import CIMultiDict

from proxy.context import tenants
from proxy.core.history import History
from proxy.core.json_bytes import elements
from proxy.core.model import SessionKey
from proxy.dialects.chat import wire
from proxy.dialects.chat.fingerprints import fingerprint
from proxy.stores.cache import CachedStore
from proxy.stores.sqlite.store import SQLiteStore
from tests.support.fakes import Head, Pairs, RawClient, Received
from tests.support.serving import RunningProxy

TTL = 24 * 3600 * 1000

Json = dict[str, Any]


def user(content: Any) -> Json:
    return {"role": "user", "content": content}


def assistant(content: Any, **more: Any) -> Json:
    return {"role": "assistant", "content": content, **more}


def system(content: Any) -> Json:
    return {"role": "system", "content": content}


def calling(*ids: str) -> Json:
    """The members of a reply that calls a tool once for each ID."""
    calls = [
        {"id": id, "type": "function", "function": {"name": "look", "arguments": f'{{"at":"{id}"}}'}} for id in ids
    ]
    return {"role": "assistant", "content": None, "tool_calls": calls}


def result(id: str) -> Json:
    return {"role": "tool", "tool_call_id": id, "content": f"result of {id}"}


@dataclass(frozen=True)
class Answer:
    """What came of a request, to its end."""

    head: Head
    data: bytes
    whole: bool

    @property
    def status(self) -> int:
        return self.head.status

    @property
    def decision(self) -> str | None:
        return self.head.header("x-session-decision")

    @property
    def error(self) -> Json:
        error: Json = json.loads(self.data)["error"]
        return error

    @property
    def message(self) -> Json:
        """The reply of a completion in one piece."""
        message: Json = json.loads(self.data)["choices"][0]["message"]
        return message


async def tell(port: int, body: bytes, *, session: str = "s1", headers: Pairs = (), path: str = "/v1") -> Answer:
    """Send a body as it is, and read the answer to its end."""
    async with RawClient(port) as client:
        await client.request("POST", f"{path}/chat/completions", [("sessionId", session), *headers], body)
        head = await client.head()
        data = await client.body()
    return Answer(head, data, client.ended == "complete")


async def ask(port: int, messages: Iterable[Any], *, session: str = "s1", headers: Pairs = (), **more: Any) -> Answer:
    """Send messages, with further members of the body in `more`, written as the official clients write JSON."""
    body = json.dumps({"model": "m", "messages": list(messages), **more}, separators=(",", ":"))
    return await tell(port, body.encode(), session=session, headers=headers)


async def history(proxy: RunningProxy, session: str = "s1") -> History:
    """What the proxy holds of a session."""
    runtime = proxy.runtime
    key = SessionKey(tenants.tenant(runtime.config, CIMultiDict(), runtime.secret), session)
    return (await runtime.store.load(key, runtime.now(), in_use=True)).history


def contents(history: History) -> list[Any]:
    """The contents of the messages from the first turn to the tip."""
    return [json.loads(entry.message.raw)["content"] for entry in history.path]


def marks(messages: Iterable[Any]) -> list[bytes]:
    """Messages in their canonical form: what clients and upstreams may add, drop or move is left out."""
    return [fingerprint(json.dumps(message).encode()) for message in messages]


def old_part(request: Received) -> bytes:
    """A request's bytes up to the end of its last message: what the next request begins with, if it only grew."""
    return request.body[: wire.read(request.body).end - 1]


def sent(request: Received) -> list[bytes]:
    """The bytes of each message of a request behind its system prompt."""
    return [message.raw for message in wire.read(request.body).messages]


def system_sent(request: Received) -> list[bytes]:
    return elements(b"[" + (wire.read(request.body).system or b"") + b"]")


# Databases


@asynccontextmanager
async def warm_store(folder: Path) -> AsyncIterator[CachedStore]:
    """A store as the daemon has it, with a database in `folder`."""
    store = CachedStore(await SQLiteStore.open(folder / "sessions.db", TTL), TTL, 16 << 20)
    try:
        yield store
    finally:
        await store.close()


def bytes_kept(folder: Path) -> int:
    """The bytes of all columns of all turns in the database."""
    with closing(sqlite3.connect(f"file:{folder / 'sessions.db'}?mode=ro", uri=True)) as database:
        columns = [row[1] for row in database.execute("PRAGMA table_info(turns)")]
        lengths = "+".join([f"ifnull(length(CAST({column} AS BLOB)),0)" for column in columns])
        (total,) = database.execute(f"SELECT sum({lengths}) FROM turns").fetchone()
    return int(total or 0)
