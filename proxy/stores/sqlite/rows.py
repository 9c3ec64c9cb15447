"""Converts turns, answers and refusals to rows of the database, and back. Pure; `sql.py` has the statements."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from typing import Any

from proxy.core.history import History
from proxy.core.json_bytes import dumps, elements, loads
from proxy.core.model import Answer, Layout, Message, SessionKey, TrimPoint, Turn, TurnState

FINGERPRINT = 16  # bytes of a message's fingerprint
SMALL = 2048  # bytes of an answer that compressing would gain nothing


_USER = '["user"]'  # the roles of most turns
Row = tuple[Any, ...]  # in the order of `statements.COLUMNS`


def row_of(id: int, key: SessionKey, turn: Turn, now: int, answer: Answer | None = None) -> Row:
    """Convert a turn, and its answer if it is stored, into the values of one row."""
    return (
        id,
        key.tenant,
        key.id,
        now,
        turn.parent,
        turn.id,
        turn.state.value,
        turn.system,
        b"[" + b",".join([message.raw for message in turn.asked]) + b"]",
        _USER if len(turn.asked) == 1 and turn.asked[0].role == "user" else _roles(turn.asked),
        turn.reply,
        turn.rendered.raw if turn.rendered else None,
        text(turn.model),
        text(turn.finish_reason),
        turn.usage,
        turn.started,
        turn.ended,
        None if turn.layout is None else dumps(turn.layout).decode(),
        _fingerprints(turn),
        turn.rendering_key,
        turn.request,
        turn.resends,
        text(turn.idempotency_key),
        *(turn.trim_point or (None, None, None)),
        turn.client,
        turn.traits,
        text(turn.trimmed_for),
        *((answer.status, text(answer.content_type), answer.body) if answer else (None, None, None)),
    )


def _roles(messages: Iterable[Message]) -> str:
    return dumps([message.role for message in messages]).decode()


def history_of(tip: int | None, rows: Iterable[Any]) -> History:
    """Build a session's history from the row number of its tip and the rows of its turns, oldest first."""
    names: dict[int, str] = {}
    turns = []
    for id, parent, *row in rows:
        turns.append(_turn(names.get(parent), row))
        names[id] = turns[-1].id
    return History(tuple(turns), None if tip is None else names.get(tip))


def _turn(parent: str | None, row: Any) -> Turn:
    name, state, system, asked, roles, reply, rendered, model, finish_reason, usage, started, ended, *tree = row
    (
        layout,
        fingerprints,
        rendering_key,
        request,
        resends,
        idempotency_key,
        trim_point,
        summary,
        told,
        client,
        traits,
        trimmed_for,
    ) = tree
    raws = [bytes(raw) for raw in elements(asked)]
    each = (
        [fingerprints[at : at + FINGERPRINT] for at in range(0, len(fingerprints), FINGERPRINT)]
        if fingerprints
        else [b""] * (len(raws) + 1)
    )
    named = zip(loads(roles.encode()), raws, each, strict=False)
    return Turn(
        id=name,
        system=system,
        asked=tuple([Message(role, raw, fingerprint) for role, raw, fingerprint in named]),
        reply=reply,
        rendered=Message("assistant", rendered, each[-1]) if rendered is not None else None,
        parent=parent,
        layout=None if layout is None else _layout(loads(layout.encode())),
        state=TurnState(state),
        rendering_key=rendering_key,
        request=request,
        resends=bool(resends),
        idempotency_key=idempotency_key,
        model=model,
        finish_reason=finish_reason,
        usage=usage,
        trim_point=None if trim_point is None else TrimPoint(trim_point, summary, told),
        started=started,
        ended=ended,
        client=client,
        traits=traits,
        trimmed_for=trimmed_for,
    )


def _layout(parts: list[Any]) -> Layout:
    return tuple([part if isinstance(part, int) else (part[0], part[1]) for part in parts])


def _fingerprints(turn: Turn) -> bytes | None:
    """The fingerprints of a turn's messages, one after another; None where one has none."""
    if turn.rendered and not turn.rendered.fingerprint:
        return None
    fingerprints = [message.fingerprint for message in (*turn.asked, *([turn.rendered] if turn.rendered else []))]
    return b"".join(fingerprints) if all([len(fingerprint) == FINGERPRINT for fingerprint in fingerprints]) else None


def text(value: str | None) -> str | None:
    """Text as SQLite takes it. A lone surrogate has no UTF-8, and would fail the whole group."""
    return value if not value or value.isascii() else value.encode(errors="backslashreplace").decode()


def packed(rows: Sequence[Row]) -> list[Any]:
    """The values of several rows, with their answers' bodies as they are kept. Takes its time: not for the loop."""
    return [value for row in rows for value in (*row[:-1], None if row[-1] is None else _packed(row[-1]))]


def _packed(body: bytes) -> bytes:
    """With tables as small as zlib has them: they are cleared for each answer, and larger ones push all else out of
    the processor's cache."""
    small = len(body) <= SMALL
    squeeze = zlib.compressobj(0, wbits=9, memLevel=1) if small else zlib.compressobj(1, memLevel=4)
    return squeeze.compress(body) + squeeze.flush()


def unpacked(body: bytes) -> bytes:
    """Decompress the body of a stored answer."""
    return zlib.decompress(body)
