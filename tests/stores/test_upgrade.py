"""The copy of a database before a migration: made once, taken back by `restore`, removed after a week."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from proxy.stores.secret import SIZE, load_secret
from proxy.stores.sqlite.backup import NAME, restore
from proxy.stores.sqlite.migration import steps
from proxy.stores.sqlite.store import SQLiteStore
from proxy.stores.sqlite.upgrade import KEPT, SPARE, copy_before, remove_old_copies
from tests.stores.conftest import TTL
from tests.stores.test_migration import make, schema

NEWEST = len(steps())
SECRET = b"s" * SIZE


def old_database(folder: Path, version: int = NEWEST - 1) -> Path:
    make(path := folder / "sessions.db", version)
    load_secret(path, SECRET)
    return path


@pytest.mark.parametrize("version", range(1, NEWEST))
async def test_the_older_version_can_have_its_database_back(tmp_path: Path, version: int) -> None:
    path = old_database(tmp_path, version)
    before = schema(path)
    made = copy_before(path)
    assert made and made.folder and (made.old, made.new, made.why) == (version, NEWEST, "")
    await (await SQLiteStore.open(path, TTL)).close()
    assert schema(path)[0] == NEWEST
    assert restore(made.folder, path, tmp_path / "aside", lambda done, pages: None)
    assert schema(path) == before
    assert load_secret(path, None) == SECRET


@pytest.mark.parametrize("version", [0, NEWEST])
def test_what_is_not_migrated_is_not_copied(tmp_path: Path, version: int) -> None:
    assert copy_before(old_database(tmp_path, version)) is None
    assert copy_before(tmp_path / "missing.db") is None
    (tmp_path / "other.db").write_bytes(b"no database" * 20)
    assert copy_before(tmp_path / "other.db") is None


def test_a_copy_that_is_there_is_kept(tmp_path: Path) -> None:
    path = old_database(tmp_path)
    first = copy_before(path)
    assert first and first.folder
    stamp = (first.folder / NAME).stat().st_mtime_ns
    assert copy_before(path) == first
    assert (first.folder / NAME).stat().st_mtime_ns == stamp


def test_why_there_is_no_copy(tmp_path: Path) -> None:
    path = old_database(tmp_path)
    full = copy_before(path, free=lambda _: SPARE)
    assert full and full.folder is None and "nearly full" in full.why
    (tmp_path / "sessions.db.secret").unlink()
    lost = copy_before(path)
    assert lost and lost.folder is None and "secret" in lost.why
    assert [each for each in tmp_path.iterdir() if each.is_dir()] == []


def test_copies_go_after_a_week(tmp_path: Path) -> None:
    path = old_database(tmp_path)
    made = copy_before(path)
    assert made and made.folder
    now = made.folder.stat().st_mtime
    assert remove_old_copies(path, now + KEPT) == []
    os.utime(made.folder, (now, now))
    assert remove_old_copies(path, now + KEPT + 1) == [made.folder]
    assert not made.folder.exists() and path.exists()
