"""Loads or makes the secret beside a database, with which credentials become tenants.

It is part of every backup: without it no stored session can be found again.
"""

from __future__ import annotations

import hmac
import os
from pathlib import Path

from proxy.stores.sqlite.files import hand_over, sync

SIZE = 32  # bytes


def load_secret(database: Path, fresh: bytes | None) -> bytes:
    """The secret of this database, made from `fresh` (32 random bytes) at the first start. None where
    the database holds sessions already: a new secret would orphan them all, so a missing one is an error.

    Durable on return, file and folder: a secret lost to a power cut would orphan every session.
    """
    path = secret_path(database)
    try:
        secret = path.read_bytes()
    except FileNotFoundError as error:
        if fresh is None:
            raise ValueError(
                f"{path} is missing, and without it no session in {database.name} can be found."
                " Restore it from a backup, or move the database away to start with an empty one."
            ) from error
        secret = _create(path, fresh)
    if len(secret) != SIZE:
        raise ValueError(f"{path} is damaged: it must hold {SIZE} bytes. Restore it from a backup.")
    return secret


def seal_of(secret: bytes) -> bytes:
    """Derive the hash by which a database recognises its secret; the secret cannot be derived from it."""
    return hmac.digest(secret, b"the secret of this database", "sha256")


def refuse_foreign(database: Path, secret: bytes, seal: bytes | None) -> None:
    """Raise ValueError if the secret does not match the database's seal. `seal`: None if there is none yet."""
    if seal is not None and not hmac.compare_digest(seal, seal_of(secret)):
        raise ValueError(
            f"{secret_path(database)} belongs to another database, so no session in {database.name} could be"
            " found. Put back the secret of this database, or restore a backup, which has both."
        )


def secret_path(database: Path) -> Path:
    """Return the path of the secret that belongs to a database."""
    return database.with_name(database.name + ".secret")


def _create(path: Path, fresh: bytes) -> bytes:
    draft = path.with_name(path.name + ".new")
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, fresh)
        os.fsync(fd)
    finally:
        os.close(fd)
    hand_over(draft)
    draft.rename(path)
    sync(path.parent)
    return fresh
