"""The snapshot of keys on disk: whole or not at all, and never a reason not to start."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from gateway.tenants import snapshot
from gateway.tenants.records import KeyRecord, KeyTable
from gateway.tenants.snapshot import Snapshot

RECORD = KeyRecord(
    id="5f3c", project_id="77aa", project_slug="demo", kind="browser", dialect="loguro", name="ünïcode \" \\",
    origins=("http://localhost:3000",), created_at=datetime(2026, 1, 2, 3, 4, 5, 678901, UTC), revoked_at=None,
)  # fmt: skip
KEPT = Snapshot(1.5e9, KeyTable(7, {bytes(range(32)): RECORD}, frozenset({b"\xff" * 32, b"\n" * 32})))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys"


def test_what_is_written_is_read(path: Path) -> None:
    snapshot.write(path, KEPT)
    assert snapshot.read(path) == KEPT
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [file.name for file in path.parent.iterdir()] == ["keys"]


@pytest.mark.parametrize("count", [0, 1, snapshot.KEYS_A_LINE, 2 * snapshot.KEYS_A_LINE + 1])
def test_any_number_of_keys_is_kept(path: Path, count: int) -> None:
    digests = [hashlib.sha256(str(number).encode()).digest() for number in range(2 * count)]
    table = KeyTable(1, dict.fromkeys(digests[:count], RECORD), frozenset(digests[count:]))
    snapshot.write(path, Snapshot(1.0, table))
    assert snapshot.read(path) == Snapshot(1.0, table)


def test_the_file_of_before_is_replaced_and_its_permissions_with_it(path: Path) -> None:
    path.write_text("something else")
    path.chmod(0o644)
    snapshot.write(path, KEPT)
    assert snapshot.read(path) == KEPT
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_no_file_is_no_snapshot_and_no_warning(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert snapshot.read(path) is None
    assert caplog.text == ""


def test_every_flipped_or_missing_byte_is_noticed(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    snapshot.write(path, KEPT)
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert snapshot.read(path) is None
        path.write_bytes(whole[:place])
        assert snapshot.read(path) is None
    assert len(caplog.records) == 2 * len(whole)
    path.write_bytes(whole)  # control
    assert snapshot.read(path) == KEPT


@pytest.mark.parametrize(
    "content",
    [
        b"{}",
        b"[]",
        b"",
        b'{"as_of":"now","change":1}',
        b'{"as_of":1.0,"change":1}\n{"live":[["?",{}]]}',
        b"\xff\xfe",
        b"[" * 5000,
    ],
)
def test_a_content_nobody_here_writes_is_left_out(path: Path, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    path.write_bytes(b"weir-keys 1 " + hashlib.sha256(content).hexdigest().encode() + b"\n" + content)
    assert snapshot.read(path) is None
    assert "ignored" in caplog.text


def test_a_format_of_the_future_is_left_out(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    snapshot.write(path, KEPT)
    path.write_bytes(path.read_bytes().replace(b"weir-keys 1", b"weir-keys 2", 1))
    assert snapshot.read(path) is None
    assert "another version" in caplog.text


def test_a_folder_in_its_place_is_left_out(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path.mkdir()
    assert snapshot.read(path) is None
    assert "ignored" in caplog.text


def _fail(*_: object) -> None:
    raise OSError(5, "Input/output error")


@pytest.mark.parametrize("step", ["fsync", "fchmod"])
def test_a_failed_write_leaves_the_old_one(path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    snapshot.write(path, KEPT)
    with monkeypatch.context() as patch:
        patch.setattr(os, step, _fail)
        with pytest.raises(OSError, match="Input/output"):
            snapshot.write(path, Snapshot(2e9, KEPT.table))
    assert snapshot.read(path) == KEPT
    assert [file.name for file in path.parent.iterdir()] == ["keys"]


def test_bytes_reach_the_disk_before_the_name_does(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []

    def noted(name: str, real: Callable[..., object]) -> Callable[..., object]:
        def step(*arguments: object) -> object:
            steps.append(name)
            return real(*arguments)

        return step

    monkeypatch.setattr(os, "fsync", noted("fsync", os.fsync))
    monkeypatch.setattr(Path, "replace", noted("replace", Path.replace))
    snapshot.write(path, KEPT)
    assert steps == ["fsync", "replace", "fsync"]


def test_what_a_killed_process_left_is_tidied_away_but_not_what_is_being_written(path: Path) -> None:
    old, young = path.with_name("keys.1.new"), path.with_name("keys.2.new")
    for file in (old, young):
        file.write_bytes(b"half")
    os.utime(old, (1, 1))
    snapshot.read(path)
    assert not old.exists()
    assert young.exists()
