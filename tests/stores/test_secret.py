"""The secret beside the database: made once, kept, guarded."""

from __future__ import annotations

from pathlib import Path

import pytest

from proxy.stores.secret import load_secret, refuse_foreign, seal_of
from proxy.stores.sqlite.store import SQLiteStore
from tests.stores.conftest import TTL, A, full_disk, turn

FIRST, SECOND = bytes(range(32)), bytes(range(32, 64))


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "sessions.db"


def test_the_secret_is_made_once_and_then_kept(database: Path) -> None:
    assert load_secret(database, FIRST) == FIRST
    assert load_secret(database, SECOND) == FIRST
    assert [file.name for file in database.parent.iterdir()] == ["sessions.db.secret"]


@pytest.mark.usefixtures("careless_umask")
def test_only_its_owner_reads_it(database: Path) -> None:
    load_secret(database, FIRST)
    assert database.with_name("sessions.db.secret").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("damaged", [b"", FIRST[:31], FIRST + b"\n"])
def test_a_damaged_one_is_never_replaced(database: Path, damaged: bytes) -> None:
    file = database.with_name("sessions.db.secret")
    file.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"sessions\.db\.secret is damaged: .* 32 bytes\. Restore it from a backup\."):
        load_secret(database, FIRST)
    assert file.read_bytes() == damaged


def test_a_missing_one_is_not_made_anew_beside_sessions(database: Path) -> None:
    with pytest.raises(ValueError, match=r"sessions\.db\.secret is missing.* Restore it from a backup, or move"):
        load_secret(database, None)
    assert not list(database.parent.iterdir())


def test_a_draft_left_by_a_crash_is_no_secret(database: Path) -> None:
    database.with_name("sessions.db.secret.new").write_bytes(SECOND + SECOND)
    assert load_secret(database, FIRST) == FIRST
    assert load_secret(database, SECOND) == FIRST


def test_a_full_disk_leaves_no_half_secret(database: Path) -> None:
    with full_disk(0), pytest.raises(OSError, match="File too large"):
        load_secret(database, SECOND)
    assert load_secret(database, FIRST) == FIRST


async def test_a_database_knows_its_secret_once_it_holds_sessions(database: Path) -> None:
    for secret in (FIRST, SECOND):  # nothing is lost with either
        store = await SQLiteStore.open(database, TTL)
        assert await store.seal(seal_of(secret)) == seal_of(secret)
        await store.close()
    store = await SQLiteStore.open(database, TTL)
    await store.append(A, [turn()], 1)
    assert await store.seal(seal_of(FIRST)) == seal_of(SECOND)
    await store.close()
    assert SECOND not in b"".join([file.read_bytes() for file in database.parent.iterdir()])


def test_the_secret_of_another_database_is_refused_with_what_to_do(database: Path) -> None:
    refuse_foreign(database, FIRST, seal_of(FIRST))
    refuse_foreign(database, FIRST, None)
    with pytest.raises(ValueError, match=r"sessions\.db\.secret belongs to another database.* restore a backup"):
        refuse_foreign(database, FIRST, seal_of(SECOND))
