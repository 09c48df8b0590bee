"""The data directory: one holder at a time, and files that are whole or not there."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from gateway.data_dir import DataDir, DataDirBusy


def test_one_holder_at_a_time(tmp_path: Path) -> None:
    first, second = DataDir(tmp_path / "var"), DataDir(tmp_path / "var")
    first.lock()
    with pytest.raises(DataDirBusy, match=f"in use by process {os.getpid()}"):
        second.lock()
    second.unlock()  # it holds nothing: the first keeps its lock
    with pytest.raises(DataDirBusy):
        second.lock()
    first.unlock()
    second.lock()
    second.unlock()


def test_a_file_is_for_its_owner_alone_whatever_was_there_before(tmp_path: Path) -> None:
    directory = DataDir(tmp_path)
    directory.demo.write_text("old")
    directory.demo.chmod(0o644)
    directory.demo.with_name(".demo.json.new").write_text("left by a crash")
    directory.write(directory.demo, "new")
    assert directory.demo.read_text() == "new"
    assert stat.S_IMODE(directory.demo.stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["demo.json"]


def test_the_admin_token_is_made_once(tmp_path: Path) -> None:
    token = DataDir(tmp_path).admin_token()
    assert len(token) >= 32
    assert DataDir(tmp_path).admin_token() == token


def test_a_stopped_gateway_leaves_no_addresses(tmp_path: Path) -> None:
    directory = DataDir(tmp_path)
    directory.write(directory.listen, "{}")
    assert directory.read_json(directory.listen) == {}
    directory.forget_addresses()
    directory.forget_addresses()
    assert directory.read_json(directory.listen) is None
