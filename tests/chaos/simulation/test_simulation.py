"""No promise is broken in any simulated life, and the simulation would notice.

More seeds: ``python -m tests.chaos.simulation``; a seed that fails is shown by ``--show``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest

from gateway.delivery.audit import Audit
from gateway.delivery.block import Block
from gateway.delivery.flusher import Flusher
from gateway.delivery.ledger import Ledger
from gateway.delivery.segments import SegmentReader
from gateway.delivery.spool import Spool
from gateway.delivery.walk import Walk
from gateway.schema import Table
from tests.chaos.simulation.plan import Plan, plan
from tests.chaos.simulation.server import Client
from tests.chaos.simulation.world import simulate

QUICK_S = 40.0
SEEDS_MIN, SEEDS_MAX = 100, 2_000
CONTROL_SEEDS_MAX = 3_000

PINNED = {
    0: "a request with rows for two tables, one of which could be written",
    4: "a copy that the compaction could not sync is there after a kill, but not whole",
    12: "a batch is sealed, copied and sealed again in one segment, and its DONE is lost",
    19: "a file that could not be removed comes back after what spoke of it is gone",
    21: "a read error while sealed batches are taken up",
    56: "a copy that could not be synced is whole after a power cut, and a later SEAL names the original",
    69: "a slot is taken over between a dead letter and its SKIP",
    46: "a row that was acknowledged as written waits to be written again when the process stops",
    181: "a try by row comes through after the process that sent it was killed",
    1642: "a SEAL that was never synced is believed after a kill, and lost with the power later",
    61096: "a server that dies twice within three seconds",
    51402: "a SEAL of a frame that is damaged is never forgotten",
    5000510: "rows stored beside dead letters are lost by the server",
    5001273: "of rows stored beside dead letters the server has lost some",
    10714: "a frame is done while the compaction copies it, and both machines die",
    11484: "a gateway dies before it has counted what the one before it stored",
    2002088: "an attempt without an answer comes through behind a refusal",
    203498: "a file that could not be synced is removed before its rows are written again",
}
"""Seeds that found something, and what."""


def test_no_promise_is_broken() -> None:
    """As many seeds as fit into QUICK_S."""
    deadline = time.monotonic() + QUICK_S
    seed = 0
    while seed < SEEDS_MAX and (seed < SEEDS_MIN or time.monotonic() < deadline):
        assert_no_promise_is_broken(seed)
        seed += 1
    print(f"{seed} seeds")
    assert seed >= SEEDS_MIN


@pytest.mark.parametrize("seed", PINNED)
def test_what_was_found_once_stays_mended(seed: int) -> None:
    assert_no_promise_is_broken(seed)


def test_the_same_seed_is_the_same_life() -> None:
    for seed in (3, 54, 138):
        assert simulate(seed) == simulate(seed)


def assert_no_promise_is_broken(seed: int) -> None:
    trace, error = simulate(seed)
    assert error is None, f"seed {seed}: {error}\n" + "\n".join(trace[-200:])


# Positive controls: each protection is needed, and its lack is seen -----------------------------------


def test_without_syncs_rows_are_lost() -> None:
    assert "is lost" in found(ignores=frozenset({"sync"}))


def test_without_syncs_of_directories_rows_are_lost() -> None:
    assert "is lost" in found(ignores=frozenset({"sync_directory"}))


def test_with_seals_that_nobody_heeds_rows_are_doubled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ledger, "is_open", lambda ledger, sealed: False)
    assert "stored twice" in found()


def test_with_a_new_token_for_each_attempt_rows_are_doubled(monkeypatch: pytest.MonkeyPatch) -> None:
    insert, count = Client.insert, iter(range(1 << 30))

    async def forgetful(
        client: Client, table: Table, blocks: list[bytes], *, token: str, patience: float
    ) -> int | None:
        return await insert(client, table, blocks, token=f"{token}-{next(count)}", patience=patience)

    monkeypatch.setattr(Client, "insert", forgetful)
    assert "stored twice" in found()


def test_without_a_count_after_doubt_rows_are_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    async def all_there(flusher: Flusher, batch: object) -> None:
        return None

    monkeypatch.setattr(Flusher, "_missing", all_there)
    assert "is lost" in found()


def test_without_an_audit_of_frames_with_dead_letters_rows_are_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = Audit.stored

    def of_whole_frames(audit: Audit, table: str, blocks: Sequence[Block], dead: Sequence[int], at: float) -> None:
        stored(audit, table, [] if dead else blocks, (), at)

    monkeypatch.setattr(Audit, "stored", of_whole_frames)
    assert "is lost" in found()


def test_without_the_audit_rows_are_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing(audit: Audit, batch: object) -> None:
        return None

    monkeypatch.setattr(Audit, "_check", nothing)
    assert "lost by the server" in found()


def test_without_what_earlier_lives_stored_rows_are_lost_with_the_machine_of_both(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Audit, "found", lambda *_, **__: None)
    assert "lost by the server" in found()


def test_with_an_audit_that_forgets_while_the_server_is_away_rows_are_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    suspect = Audit._suspect

    def forget_first(audit: Audit, until: float) -> None:
        audit._see(audit._clock())
        suspect(audit, until)

    monkeypatch.setattr(Audit, "_suspect", forget_first)
    assert "lost by the server" in found()


def test_with_rests_under_a_token_that_another_life_would_not_take_rows_are_doubled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    insert, count = Client.insert_absent, iter(range(1 << 30))

    async def forgetful(client: Client, table: Table, block: bytes, *, token: str, **how: Any) -> None:
        return await insert(client, table, block, token=f"{token}-{next(count)}" if "-rest-" in token else token, **how)

    monkeypatch.setattr(Client, "insert_absent", forgetful)
    assert "stored twice" in found(where=lambda plan: plan.late and plan.late_slow and plan.late_kills)


def test_with_dones_that_name_frames_without_their_segment_frames_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    settle: Callable[..., None] = Walk.settle

    def elsewhere(walk: Walk, by: int, members: Iterable[tuple[int, int]]) -> None:
        settle(walk, by, [(by, frame) for _, frame in members])

    monkeypatch.setattr(Walk, "settle", elsewhere)
    assert found().startswith("broken: ")


def test_without_keys_in_frames_what_is_sent_again_is_doubled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SegmentReader, "keys", lambda reader, frame: b"")
    assert "stored twice" in found(where=lambda plan: plan.insists)


def test_with_refused_frames_whose_keys_are_free_before_the_disk_says_so_rows_are_doubled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    append = Spool._say

    def at_once(spool: Spool, *what: Any, **more: Any) -> None:
        if what[-1] is not None and callable(what[-1]):
            what[-1]()
        append(spool, *what, **more)

    monkeypatch.setattr(Spool, "_say", at_once)
    assert "stored twice" in found(where=lambda plan: plan.insists and plan.disk.sync > 0.1)


def found(*, ignores: frozenset[str] = frozenset(), where: Callable[[Plan], object] = lambda plan: True) -> str:
    """What the first seed says that notices anything, of those ``where`` there is something to notice."""
    tried = 0
    for seed in range(CONTROL_SEEDS_MAX):
        if not where(plan(seed)):
            continue
        tried += 1
        _, error = simulate(seed, ignores=ignores)
        if error is not None:
            print(f"noticed by seed {seed}, the {tried}th: {error}")
            return f"broken: {error}"
    return f"nothing was noticed in {tried} seeds"
