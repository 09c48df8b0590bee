"""What damage may have said is not forgotten: the next start judges as this one does."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gateway.delivery.segments import Kind, SegmentName, listed
from gateway.delivery.spool import Spool
from tests.delivery.segment_files import Spec, segment
from tests.delivery.spools import opened

OLD, NEW = SegmentName(1, 100), SegmentName(2, 200)
DATA = Spec(Kind.DATA, b"a block", 7, "things", "p", 3)
SEAL = Spec(Kind.SEAL, listed([(OLD.id, 7)], "token"), table="things")
DAMAGE = b"damage" * 4


@contextmanager
def found(directory: Path, files: dict[SegmentName, bytes]) -> Iterator[Spool]:
    """A spool that finds these segments."""
    (place := directory / "slot-00").mkdir(mode=0o700)
    for name, image in files.items():
        (place / name.file).write_bytes(image)
    numbers, spool = opened(directory)
    try:
        yield spool
    finally:
        numbers.close()


@pytest.mark.parametrize("damage", [b"", DAMAGE], ids=["whole", "damaged"])
async def test_a_segment_in_which_nothing_is_left_stays_while_it_is_damaged_and_there_are_older_ones(
    tmp_path: Path, damage: bytes
) -> None:
    with found(tmp_path, {OLD: segment([DATA], OLD)[0], NEW: segment([], NEW)[0] + damage}) as spool:
        await spool.recover()
        gone = {each.name for each in spool.ledger.removable(now=1e9, safe=math.inf)}
    assert gone == (set() if damage else {NEW})


@pytest.mark.parametrize("damage", [b"", DAMAGE], ids=["whole", "damaged"])
async def test_blocks_of_a_sealed_batch_are_suspect_where_anything_is_damaged(tmp_path: Path, damage: bytes) -> None:
    with found(tmp_path, {OLD: segment([DATA, SEAL], OLD)[0], NEW: segment([], NEW)[0] + damage}) as spool:
        _, (sealed,) = await spool.recover()
        (block,) = await spool.load_sealed(sealed.token)
    assert (sealed.token, block.frame, block.suspect) == ("token", 7, bool(damage))
