"""The spool takes what the disk has to spare, and leaves the rest of it to others."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest

from gateway.delivery.disk import Disk
from gateway.errors import Overloaded
from tests.delivery.conftest import OpenRig
from tests.delivery.rig import Rig, until

MIB = 1 << 20
FREE_MIN = 10 * MIB


class Shared(Disk):
    """The real disk, on which others leave so much."""

    def __init__(self) -> None:
        self.free = 1_000 * MIB

    def free_bytes(self, path: Path) -> int:
        return self.free


def takes(rig: Rig) -> bool:
    try:
        rig.delivery.check("p", 100, retries=True)
    except Overloaded:
        return False
    return True


@pytest.mark.parametrize("audit_ms", [0.0, 600_000.0], ids=["all is removed", "much is kept for the audit"])
async def test_nothing_is_taken_where_less_is_free_than_is_to_be_left(open_rig: OpenRig, audit_ms: float) -> None:
    disk = Shared()
    async with open_rig(disk=disk, spool_free_bytes_min=FREE_MIN, segment_bytes=MIB, audit_ms=audit_ms) as rig:
        for number in range(16):
            await rig.send([number], body=secrets.token_hex(MIB // 2)).wait()
        await rig.flush()
        disk.free = FREE_MIN - 4 * MIB
        await until(lambda: not takes(rig), "it is refused")
        disk.free = FREE_MIN + 4 * MIB
        await until(lambda: takes(rig), "it is taken")
        await rig.send([16]).wait()
        await rig.flush()
        assert await rig.stored() == list(range(17))
