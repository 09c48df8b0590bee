"""A bucket gives what it holds and then its rate, however many processes take from it at once."""

from __future__ import annotations

import mmap
import subprocess
import sys
from pathlib import Path

import pytest

from gateway._native import take_tokens

EACH_NS = 6_000_000.0  # 10,000 a minute


def cells() -> memoryview:
    return memoryview(mmap.mmap(-1, 4096)).cast("q")


def test_a_full_bucket_gives_what_it_holds_and_then_its_rate() -> None:
    bucket, now_ns = cells(), 10**18
    for taken in range(100):
        assert take_tokens(bucket, 3, now_ns, each_ns=EACH_NS, burst=100, cost=1) == (0.0, 99 - taken)
    wait_s, left = take_tokens(bucket, 3, now_ns, each_ns=EACH_NS, burst=100, cost=1)
    assert (wait_s, left) == (EACH_NS / 1e9, 0.0)
    assert take_tokens(bucket, 3, now_ns + int(EACH_NS), each_ns=EACH_NS, burst=100, cost=1)[0] == 0.0
    assert take_tokens(bucket, 3, now_ns + 10**12, each_ns=EACH_NS, burst=100, cost=100) == (0.0, 0.0)
    assert bucket[2] == bucket[4] == 0


def test_more_than_it_holds_is_never_given() -> None:
    assert take_tokens(cells(), 0, 10**18, each_ns=EACH_NS, burst=10, cost=11)[0] > 0


@pytest.mark.parametrize("place", [-1, 512])
def test_a_place_outside_the_memory_is_refused(place: int) -> None:
    with pytest.raises(IndexError):
        take_tokens(cells(), place, 0, each_ns=EACH_NS, burst=1, cost=1)


TAKING = """
import mmap, sys
from gateway._native import take_tokens
bucket = memoryview(mmap.mmap(int(sys.argv[1]), 4096)).cast("q")
print(sum(not take_tokens(bucket, 0, 10**18, each_ns=6e6, burst=60_000, cost=1)[0] for _ in range(20_000)))
"""


def test_processes_that_take_at_once_get_no_more_and_no_less_than_there_is(tmp_path: Path) -> None:
    with (tmp_path / "cells").open("w+b") as shared:
        shared.truncate(4096)
        takers = [
            subprocess.Popen(
                [sys.executable, "-c", TAKING, str(shared.fileno())], pass_fds=[shared.fileno()], stdout=subprocess.PIPE
            )
            for _ in range(4)
        ]
        taken = [int(taker.communicate(timeout=60)[0]) for taker in takers]
    assert sum(taken) == 60_000, taken
