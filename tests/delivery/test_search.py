"""The guilty are found with few tries, and the newest SEAL of a frame counts."""

from __future__ import annotations

import math
import random

import pytest

from gateway.delivery.seals import Sealed, by_row, disjoint
from gateway.delivery.search import Search


def tries(count: int, bad: set[int], *, refused: bool = True) -> int:
    """How many tries a search takes until it has found exactly these."""
    search = Search(count, refused=refused)
    taken: list[int] = []
    made = 0
    while (run := search.next()) is not None:
        made += 1
        if bad.isdisjoint(run):
            taken += run
            search.taken()
        else:
            search.refused()
    assert set(search.guilty) == bad
    assert taken == [each for each in range(count) if each not in bad]
    return made


def test_one_bad_row_in_any_batch_takes_at_most_2_log2_n_plus_2_inserts() -> None:
    dearest = {count: max(tries(count, {bad}) for bad in range(count)) for count in range(1, 65)}
    for frames, rows in ((frames, rows) for frames in dearest for rows in dearest):
        assert 1 + dearest[frames] + dearest[rows] <= 2 * math.log2(frames * rows) + 2, (frames, rows)


def test_each_of_several_takes_no_more() -> None:
    seed = random.getrandbits(32)
    chance = random.Random(seed)
    for _ in range(500):
        count = chance.randrange(2, 500)
        bad = set(chance.sample(range(count), chance.randrange(1, min(count, 9))))
        assert tries(count, bad) <= len(bad) * (math.ceil(math.log2(count)) + 2), f"seed {seed}"


@pytest.mark.parametrize("refused", [True, False])
def test_where_all_are_bad_each_is_tried_about_once(refused: bool) -> None:
    assert tries(1_000, set(range(1_000)), refused=refused) <= 1_000 + 2 * 11


def test_where_none_is_bad_all_go_at_once() -> None:
    assert tries(1_000, set(), refused=False) == 1
    assert tries(0, set(), refused=True) == 0


def test_what_is_refused_only_together_is_not_guilty() -> None:
    """So it is with too many partitions: each row has only one."""
    search = Search(100, refused=True)
    taken = 0
    while (run := search.next()) is not None:
        if len(run) > 10:
            search.refused()
        else:
            taken += len(run)
            search.taken()
    assert (search.guilty, taken) == ([], 100)


def token(batch: int, epoch: int = 1) -> str:
    return f"{7:016x}-{epoch}-0-{batch}"


def test_of_several_seals_the_newest_has_the_frame() -> None:
    seals = [
        Sealed("t", token(9), ((1, 10), (1, 11), (1, 12), (1, 13))),
        Sealed("t", token(10), ((1, 10), (1, 11))),
        Sealed("t", by_row(token(12), (3, 7)), ((1, 10),)),
        Sealed("t", token(2, epoch=2), ((2, 20),)),
        Sealed("t", token(99), ((2, 21),)),
    ]
    random.shuffle(seals)
    found = {sealed.token: ([frame for _, frame in sealed.members], sealed.over) for sealed in disjoint(seals)}
    assert found == {
        by_row(token(12), (3, 7)): ([10], False),
        token(10): ([11], True),
        token(9): ([12, 13], True),
        token(2, epoch=2): ([20], False),
        token(99): ([21], False),
    }
    assert [sealed.run for sealed in disjoint(seals) if sealed.run is not None] == [(3, 7)]
