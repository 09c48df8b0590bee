"""Keys in memory: current within a second, and never a 401 for a key that may be good."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import signal
import stat
from pathlib import Path
from typing import Any

import pytest

from gateway.embedded.postgres import EmbeddedPostgres
from gateway.errors import KeysUnavailable
from gateway.tenants.keys import Keys
from gateway.tenants.minting import KEY_CHARS_MAX
from gateway.tenants.postgres import ControlStore, KeyFeed
from gateway.tenants.records import KeyRecord

# Polling so rare that it never happens in a test.
NEVER_S = 3600.0
WITHOUT_NOTIFY = """
    CREATE OR REPLACE FUNCTION count_key_change() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN UPDATE key_changes SET number = number + 1; RETURN NULL; END; $$
"""


async def new_key(store: ControlStore, name: str = "n") -> tuple[KeyRecord, str]:
    return await store.create_key("demo", kind="server", dialect="otlp", name=name)


def answer(keys: Keys, secret: str) -> str:
    """What a sender would be told: known, unknown (401) or unavailable (503)."""
    try:
        return "unknown" if keys.find(secret) is None else "known"
    except KeysUnavailable:
        return "unavailable"


WAYS: dict[str, tuple[dict[str, Any], bool]] = {
    "notify and polling": ({}, False),
    "polling, not listening": ({"listen": False}, False),
    "polling, listening in vain": ({}, True),
    "notify, no polling": ({"poll_s": NEVER_S}, False),
}


@pytest.mark.parametrize("way", WAYS)
async def test_new_and_revoked_keys_take_effect_within_a_second(
    store: ControlStore, sql: Any, make_keys: Any, until: Any, way: str
) -> None:
    settings, notify_off = WAYS[way]
    if notify_off:
        await sql(WITHOUT_NOTIFY)
    first, first_secret = await new_key(store)
    keys = await make_keys(**settings)
    assert keys.find(first_secret) == first
    second, second_secret = await new_key(store)
    await until(lambda: answer(keys, second_secret) == "known")
    assert keys.find(second_secret) == second
    await store.revoke_key(first.id)
    await until(lambda: answer(keys, first_secret) == "unknown")
    assert answer(keys, second_secret) == "known"
    assert len(keys) == 1


async def test_control_without_notify_and_polling_nothing_takes_effect(
    store: ControlStore, make_keys: Any, until: Any
) -> None:
    first, first_secret = await new_key(store)
    keys = await make_keys(listen=False, poll_s=NEVER_S)
    _, second_secret = await new_key(store)
    await store.revoke_key(first.id)
    with pytest.raises(AssertionError, match="not within"):
        await until(lambda: answer(keys, second_secret) == "known" or answer(keys, first_secret) == "unknown")


async def test_whoever_waits_for_a_new_key_can_catch_up(store: ControlStore, make_keys: Any) -> None:
    keys = await make_keys(listen=False, poll_s=NEVER_S)
    for _ in range(5):
        _, secret = await new_key(store)
        assert answer(keys, secret) == "unknown"
        await keys.catch_up()
        assert answer(keys, secret) == "known"


async def test_a_renamed_project_is_seen_in_its_keys(store: ControlStore, sql: Any, make_keys: Any, until: Any) -> None:
    _, secret = await new_key(store)
    keys = await make_keys()
    assert keys.find(secret).project_slug == "demo"
    await sql("UPDATE projects SET slug = 'renamed' WHERE slug = 'demo'")
    await until(lambda: keys.find(secret).project_slug != "demo")
    assert keys.find(secret).project_slug == "renamed"


async def test_a_change_that_commits_late_is_not_missed(
    store: ControlStore, sql: Any, make_keys: Any, until: Any
) -> None:
    keys = await make_keys()
    digest = hashlib.sha256(b"late").digest()
    await sql("BEGIN")
    await sql(
        "INSERT INTO keys (project_id, sha256, kind, dialect, name) SELECT id, $1, 'server', 'otlp', 'late' "
        "FROM projects WHERE slug = 'demo'",
        digest,
    )
    # Another change, begun later, waits for the first one: numbers follow commits.
    other = asyncio.create_task(new_key(store))
    await keys.catch_up()
    assert answer(keys, "late") == "unknown"
    assert not other.done()
    await sql("COMMIT")
    _, secret = await other
    await until(lambda: (answer(keys, "late"), answer(keys, secret)) == ("known", "known"))


async def test_before_the_first_answer_nothing_is_called_unknown(make_keys: Any, proxy: Any) -> None:
    through = await proxy.start()
    await proxy.cut()
    keys = await make_keys(through)
    assert answer(keys, "anything") == "unavailable"
    assert keys.current_as_of is None
    assert keys.store_failures >= 1


async def test_without_tables_nothing_is_called_unknown(make_keys: Any, empty_dsn: str, until: Any) -> None:
    keys = await make_keys(empty_dsn)
    assert answer(keys, "anything") == "unavailable"
    late = await ControlStore.connect(empty_dsn)
    await late.migrate()
    await late.close()
    await until(lambda: answer(keys, "anything") == "unknown", within_s=2.0)


async def test_known_keys_outlive_postgres_and_unknown_ones_are_never_refused(
    store: ControlStore, make_keys: Any, proxy: Any, until: Any
) -> None:
    through = await proxy.start()
    revoked, revoked_secret = await new_key(store)
    await store.revoke_key(revoked.id)
    _, secret = await new_key(store)
    keys = await make_keys(through)
    assert [answer(keys, key) for key in (secret, revoked_secret, "garbage")] == ["known", "unknown", "unknown"]
    await proxy.cut()
    await until(lambda: answer(keys, "garbage") == "unavailable")
    _, new_secret = await new_key(store)
    assert [answer(keys, key) for key in (secret, revoked_secret, new_secret)] == ["known", "unknown", "unavailable"]
    proxy.heal()
    await until(lambda: answer(keys, new_secret) == "known", within_s=2.0)
    assert answer(keys, "garbage") == "unknown"


async def test_a_postgres_that_is_stopped_and_started_is_followed_again(tmp_path: Path, until: Any) -> None:
    own = EmbeddedPostgres(tmp_path)
    keys = None
    try:
        dsn = await own.start()
        store = await ControlStore.connect(dsn)
        await store.migrate()
        await store.create_project("demo")
        _, secret = await new_key(store)
        keys = Keys(dsn, snapshot_path=None, retry_max_s=0.2)
        await keys.start()
        await own.stop()
        await until(lambda: answer(keys, "garbage") == "unavailable")
        assert answer(keys, secret) == "known"
        assert await own.start() == dsn
        await until(lambda: answer(keys, "garbage") == "unknown", within_s=3.0)
        _, new_secret = await new_key(store)  # the control store has connected anew as well
        await until(lambda: answer(keys, new_secret) == "known")
        await store.close()
    finally:
        if keys:
            await keys.stop()
        await own.stop()


async def test_a_silent_network_is_noticed_and_given_up(
    store: ControlStore, make_keys: Any, proxy: Any, until: Any
) -> None:
    through = await proxy.start()
    _, secret = await new_key(store)
    keys = await make_keys(through, connect_timeout_s=0.3, command_timeout_s=0.3)
    assert answer(keys, "garbage") == "unknown"
    proxy.hang()
    await until(lambda: answer(keys, "garbage") == "unavailable", within_s=1.5)
    await until(lambda: keys.store_failures >= 2, within_s=5.0)
    assert answer(keys, secret) == "known"
    proxy.heal()
    await until(lambda: answer(keys, "garbage") == "unknown", within_s=3.0)


async def test_a_hung_backend_is_left_for_another(store: ControlStore, sql: Any, make_keys: Any, until: Any) -> None:
    _, secret = await new_key(store)
    keys = await make_keys(command_timeout_s=0.3)
    backend = next(
        row["pid"]
        for row in await sql(
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'weir keys'"
        )
    )
    os.kill(backend, signal.SIGSTOP)
    try:
        await until(lambda: keys.store_failures == 1, within_s=3.0)
        assert answer(keys, secret) == "known"
        await until(lambda: answer(keys, "garbage") == "unknown", within_s=3.0)
        _, new_secret = await new_key(store)
        await until(lambda: answer(keys, new_secret) == "known")
    finally:
        os.kill(backend, signal.SIGCONT)


async def test_a_cut_listen_costs_nothing(store: ControlStore, sql: Any, make_keys: Any, until: Any) -> None:
    _, known = await new_key(store)
    keys = await make_keys()
    await sql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND application_name = 'weir keys'"
    )
    await until(lambda: keys.store_failures == 1)
    assert answer(keys, known) == "known"
    _, secret = await new_key(store)
    await until(lambda: answer(keys, secret) == "known")
    assert [answer(keys, each) for each in (known, "garbage")] == ["known", "unknown"]
    assert keys.store_failures == 1


async def test_known_keys_keep_working_for_a_day_and_then_get_503(
    store: ControlStore, make_keys: Any, proxy: Any, until: Any, clock: Any
) -> None:
    through = await proxy.start()
    _, secret = await new_key(store)
    keys = await make_keys(through, clock=clock)
    await proxy.cut()
    await until(lambda: answer(keys, "garbage") == "unavailable")
    clock.ahead_s = 24 * 3600 - 10
    assert answer(keys, secret) == "known"
    clock.ahead_s = 24 * 3600 + 10
    assert answer(keys, secret) == "unavailable"
    proxy.heal()
    await until(lambda: answer(keys, secret) == "known", within_s=2.0)


async def test_a_clock_that_is_put_back_refuses_nobody(
    store: ControlStore, make_keys: Any, until: Any, clock: Any
) -> None:
    _, secret = await new_key(store)
    keys = await make_keys(clock=clock)
    clock.ahead_s = -3600
    assert answer(keys, secret) == "known"
    assert answer(keys, "garbage") == "unavailable"
    await until(lambda: answer(keys, "garbage") == "unknown")


async def test_a_loop_that_stood_still_does_not_pass_for_current(
    store: ControlStore, make_keys: Any, clock: Any
) -> None:
    keys = await make_keys(clock=clock)
    assert answer(keys, "garbage") == "unknown"
    clock.ahead_s = 1.5
    assert answer(keys, "garbage") == "unavailable"


@pytest.mark.parametrize("statement", ["DELETE FROM keys", "TRUNCATE keys"])
async def test_an_empty_key_table_is_refused_not_obeyed(
    store: ControlStore, sql: Any, make_keys: Any, until: Any, caplog: pytest.LogCaptureFixture, statement: str
) -> None:
    _, secret = await new_key(store)
    keys = await make_keys(poll_s=0.02)
    await sql(statement)
    await until(lambda: keys.empty_tables_refused == 1)
    assert (answer(keys, secret), answer(keys, "garbage")) == ("known", "unavailable")
    # It stays refused, and is said once for each change.
    await sql("UPDATE projects SET name = name WHERE false")
    await until(lambda: keys.empty_tables_refused == 2)
    assert (answer(keys, secret), answer(keys, "garbage")) == ("known", "unavailable")
    refused = [record.levelno for record in caplog.records if "the key table is empty" in record.message]
    assert refused == [logging.ERROR, logging.ERROR]
    # A table with keys is obeyed again, also one that lacks ours.
    _, new_secret = await new_key(store)
    await until(lambda: answer(keys, new_secret) == "known")
    assert answer(keys, secret) == "unknown"


async def test_a_table_emptied_without_being_counted_is_refused_for_as_long_as_it_is_empty(
    store: ControlStore, sql: Any, make_keys: Any, until: Any
) -> None:
    _, secret = await new_key(store)
    keys = await make_keys(poll_s=0.02)
    await sql("ALTER TABLE keys DISABLE TRIGGER USER")
    await sql("DELETE FROM keys")
    await sql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND application_name = 'weir keys'"
    )
    await until(lambda: keys.empty_tables_refused == 1)
    # The change number is the one in memory, and still the memory is not current.
    with pytest.raises(AssertionError, match="not within"):
        await until(lambda: answer(keys, "garbage") == "unknown", within_s=0.3)
    assert answer(keys, secret) == "known"


async def test_an_empty_table_is_obeyed_where_there_never_was_a_key(dsn: str, make_keys: Any) -> None:
    keys = await make_keys()
    assert answer(keys, "garbage") == "unknown"
    assert keys.empty_tables_refused == 0


async def test_keys_that_were_all_revoked_one_by_one_are_all_refused(
    store: ControlStore, make_keys: Any, until: Any
) -> None:
    made = [await new_key(store) for _ in range(3)]
    keys = await make_keys()
    for record, _ in made:
        await store.revoke_key(record.id)
    await until(lambda: [answer(keys, secret) for _, secret in made] == ["unknown"] * 3)
    assert (len(keys), keys.empty_tables_refused) == (0, 0)


async def test_a_restart_needs_no_postgres(
    store: ControlStore, make_keys: Any, proxy: Any, tmp_path: Path, clock: Any, until: Any
) -> None:
    through = await proxy.start()
    path = tmp_path / "keys"
    revoked, revoked_secret = await new_key(store)
    await store.revoke_key(revoked.id)
    record, secret = await new_key(store)
    keys = await make_keys(through, snapshot_path=path, clock=clock)
    await keys.stop()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert secret.encode() not in path.read_bytes()
    await proxy.cut()
    keys = await make_keys(through, snapshot_path=path, clock=clock)
    assert keys.find(secret) == record
    assert [answer(keys, key) for key in (revoked_secret, "garbage")] == ["unknown", "unavailable"]
    clock.ahead_s = 24 * 3600 + 10
    keys = await make_keys(through, snapshot_path=path, clock=clock)
    assert answer(keys, secret) == "unavailable"
    # Control: without the snapshot a restart knows nothing.
    assert answer(await make_keys(through), secret) == "unavailable"


async def test_a_revocation_is_in_the_snapshot_at_once(
    store: ControlStore, make_keys: Any, proxy: Any, tmp_path: Path, until: Any
) -> None:
    through = await proxy.start()
    path = tmp_path / "keys"
    record, secret = await new_key(store)
    keys = await make_keys(through, snapshot_path=path)
    await until(path.exists)
    before = path.read_bytes()
    await store.revoke_key(record.id)
    await until(lambda: path.read_bytes() != before)
    copy = tmp_path / "as after a crash"
    copy.write_bytes(path.read_bytes())
    await proxy.cut()
    assert answer(await make_keys(through, snapshot_path=copy), secret) == "unknown"
    assert answer(keys, secret) == "unknown"


async def test_an_unwritable_snapshot_stops_nothing(
    store: ControlStore, make_keys: Any, tmp_path: Path, until: Any, caplog: pytest.LogCaptureFixture
) -> None:
    _, secret = await new_key(store)
    keys = await make_keys(snapshot_path=tmp_path / "no such folder" / "keys")
    await until(lambda: "snapshot was not written" in caplog.text)
    assert answer(keys, secret) == "known"


async def test_odd_keys_are_just_unknown(store: ControlStore, make_keys: Any) -> None:
    keys = await make_keys()
    for odd in ("", " ", "\x00", "\ud800", "ü" * 100, "x" * KEY_CHARS_MAX, "x" * (KEY_CHARS_MAX + 1), "'; --"):
        assert answer(keys, odd) == "unknown"


async def test_a_key_without_a_checksum_works_when_its_digest_is_in_the_table(
    store: ControlStore, sql: Any, make_keys: Any
) -> None:
    await sql(
        "INSERT INTO keys (project_id, sha256, kind, dialect, name) SELECT id, $1, 'server', 'proliferate', 'moved' "
        "FROM projects WHERE slug = 'demo'",
        hashlib.sha256(b"pk_abc123def456ghi789").digest(),
    )
    assert (await make_keys()).find("pk_abc123def456ghi789").name == "moved"


async def test_the_refresher_outlives_its_own_mistakes(
    store: ControlStore, make_keys: Any, until: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _, secret = await new_key(store)
    keys = await make_keys(poll_s=0.02)

    async def broken(_: object) -> int:
        raise RuntimeError("postgresql://user:hunter2@host")

    with monkeypatch.context() as patch:
        patch.setattr(KeyFeed, "change", broken)
        await until(lambda: keys.store_failures >= 1)
        assert (answer(keys, secret), answer(keys, "garbage")) == ("known", "unavailable")
    await until(lambda: answer(keys, "garbage") == "unknown")
    assert "hunter2" not in caplog.text


async def test_many_keys_are_loaded(store: ControlStore, sql: Any, make_keys: Any) -> None:
    await sql(
        "INSERT INTO keys (project_id, sha256, kind, dialect, name) SELECT projects.id, sha256(n::text::bytea), "
        "'server', 'otlp', 'n' FROM projects, generate_series(1, 20000) AS n WHERE slug = 'demo'"
    )
    keys = await make_keys()
    assert len(keys) == 20000
    assert answer(keys, "17") == "known"


async def test_secrets_are_in_no_log_error_or_repr(
    store: ControlStore, make_keys: Any, proxy: Any, tmp_path: Path, until: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    through = await proxy.start()
    _, secret = await new_key(store)
    keys = await make_keys(through, snapshot_path=tmp_path / "keys")
    await proxy.cut()
    unknown = secret[:-1] + ("a" if secret[-1] != "a" else "b")
    await until(lambda: answer(keys, unknown) == "unavailable")
    with pytest.raises(KeysUnavailable) as caught:
        keys.find(unknown)
    shown = caplog.text + repr(vars(keys)) + repr(keys.find(secret)) + str(caught.value) + caught.value.log
    assert secret not in shown
    assert unknown[:-1] not in shown
