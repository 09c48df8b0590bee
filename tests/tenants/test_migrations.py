"""Migrations: once, in order, all or nothing, however many instances run them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from gateway.tenants.errors import MigrationError, NotAcceptable, StoreUnavailable
from gateway.tenants.postgres import ControlStore, read_migrations


@pytest.fixture
async def fresh(empty_dsn: str) -> AsyncIterator[ControlStore]:
    store = await ControlStore.connect(empty_dsn)
    try:
        yield store
    finally:
        await store.close()


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "0001_first.sql").write_text("CREATE TABLE first (n integer);")
    (tmp_path / "0002_second.sql").write_text("CREATE TABLE second (n integer); INSERT INTO second VALUES (1);")
    return tmp_path


async def test_migrations_are_applied_once(fresh: ControlStore) -> None:
    names = [migration.name for migration in read_migrations()]
    assert names[0] == "0001_control_plane.sql"
    assert await fresh.migrate() == names
    assert await fresh.migrate() == []


async def test_instances_that_migrate_at_once_apply_each_file_once(empty_dsn: str, files: Path) -> None:
    stores = [await ControlStore.connect(empty_dsn) for _ in range(6)]
    try:
        applied = await asyncio.gather(*(store.migrate(directory=files) for store in stores))
        assert sorted(applied, key=len) == [[]] * 5 + [["0001_first.sql", "0002_second.sql"]]
    finally:
        for store in stores:
            await store.close()


async def test_a_dry_run_lists_what_is_pending_and_changes_nothing(
    fresh: ControlStore, empty_dsn: str, files: Path
) -> None:
    assert await fresh.migrate(dry_run=True, directory=files) == ["0001_first.sql", "0002_second.sql"]
    connection = await asyncpg.connect(empty_dsn)
    assert await connection.fetch("SELECT FROM pg_tables WHERE schemaname = 'public'") == []
    await connection.close()
    await fresh.migrate(directory=files)
    (files / "0003_third.sql").write_text("CREATE TABLE third (n integer);")
    assert await fresh.migrate(dry_run=True, directory=files) == ["0003_third.sql"]
    assert await fresh.migrate(directory=files) == ["0003_third.sql"]


@pytest.mark.parametrize("dry_run", [False, True])
async def test_a_file_that_changed_after_it_was_applied_is_named(
    fresh: ControlStore, files: Path, dry_run: bool
) -> None:
    await fresh.migrate(directory=files)
    (files / "0001_first.sql").write_text("CREATE TABLE first (n bigint);")
    with pytest.raises(MigrationError, match=r"0001_first\.sql has changed"):
        await fresh.migrate(dry_run=dry_run, directory=files)


async def test_line_ends_of_a_checkout_are_not_a_change(fresh: ControlStore, files: Path) -> None:
    (files / "0001_first.sql").write_bytes(b"CREATE TABLE first (\nn integer);\n")
    await fresh.migrate(directory=files)
    (files / "0001_first.sql").write_bytes(b"CREATE TABLE first (\r\nn integer);\r\n")
    assert await fresh.migrate(directory=files) == []


async def test_a_failing_file_is_named_and_nothing_of_the_run_stays(fresh: ControlStore, files: Path) -> None:
    (files / "0003_broken.sql").write_text("CREATE TABLE third (n integer); CREATE TABLE oops (n nonsense);")
    with pytest.raises(MigrationError, match=r"0003_broken\.sql failed"):
        await fresh.migrate(directory=files)
    (files / "0003_broken.sql").unlink()
    assert await fresh.migrate(directory=files) == ["0001_first.sql", "0002_second.sql"]


async def test_migrations_of_a_newer_version_are_left_alone(
    fresh: ControlStore, files: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await fresh.migrate(directory=files)
    (files / "0002_second.sql").unlink()
    assert await fresh.migrate(directory=files) == []
    assert "0002_second.sql" in caplog.text


@pytest.mark.parametrize("name", ["first.sql", "1_first.sql", "0001_again.sql", "0002-first.sql"])
def test_a_wrongly_named_file_is_named(files: Path, name: str) -> None:
    (files / name).write_text("SELECT 1;")
    with pytest.raises(MigrationError, match="NNNN_what_it_does"):
        read_migrations(files)


def test_no_files_at_all_is_an_error_and_not_an_empty_database(tmp_path: Path) -> None:
    with pytest.raises(MigrationError, match="install the package again"):
        read_migrations(tmp_path)


async def test_tables_that_are_missing_are_said_so(fresh: ControlStore) -> None:
    with pytest.raises(StoreUnavailable, match='relation "projects" does not exist'):
        await fresh.create_project("demo")


async def test_a_wrong_connection_string_is_explained_without_its_password() -> None:
    for wrong in (
        "postgresql://user:hunter2@:x:y/z",
        "mysql://user:hunter2@localhost/",
        "postgresql://u:hunter2@127.0.0.1:1/d",
    ):
        with pytest.raises(StoreUnavailable) as caught:
            await ControlStore.connect(wrong)
        assert "hunter2" not in str(caught.value)
        assert caught.value.__cause__ is None


async def test_the_schema_refuses_what_the_store_would_never_write(dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        project = await connection.fetchval("INSERT INTO projects (slug, name) VALUES ('p', 'p') RETURNING id")
        for digest, kind, origins in (
            (b"x" * 31, "server", []),
            (b"x" * 32, "other", []),
            (b"x" * 32, "browser", []),
            (b"x" * 32, "server", ["https://a.example"]),
        ):
            with pytest.raises(asyncpg.CheckViolationError):
                await connection.execute(
                    "INSERT INTO keys (project_id, sha256, kind, dialect, name, origins) "
                    "VALUES ($1, $2, $3, 'd', 'n', $4)",
                    project, digest, kind, origins,
                )  # fmt: skip
    finally:
        await connection.close()


async def test_a_slug_that_is_none_is_refused_with_the_rule(store: ControlStore) -> None:
    for slug in ("", "A", "-a", "a b", "a" * 64, "ä", "a\n"):
        with pytest.raises(NotAcceptable, match="1 to 63 of a-z"):
            await store.create_project(slug)
