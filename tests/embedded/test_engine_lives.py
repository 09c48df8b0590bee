"""The embedded engines come up, come back, keep their data, and never outlive the gateway."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import aiohttp
import asyncpg
import pytest
import pytest_asyncio

import gateway
from gateway.embedded.child import EngineFailed
from gateway.embedded.clickhouse import EmbeddedClickHouse
from gateway.embedded.postgres import EmbeddedPostgres

from .conftest import becomes_true

pytestmark = pytest.mark.asyncio(loop_scope="session")
STAND_IN = Path(__file__).with_name("gateway_process.py")
ROOT = Path(gateway.__file__).parent.parent
NOBODY, DAEMON = 65534, 1
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")


@pytest_asyncio.fixture(loop_scope="session")
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.fixture
def closed_place(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A user's directory, inside one that nobody but this user may enter."""
    uid: int = getattr(request, "param", 0)
    outer = Path(tempfile.mkdtemp(prefix="closed-"))
    inner = outer / "project"
    inner.mkdir()
    for place in (outer, inner):
        place.chmod(0o700)
        os.chown(place, uid, uid)
    yield inner
    modes = {place.stat().st_mode & 0o777 for place in (outer, inner)}
    shutil.rmtree(outer)
    assert modes == {0o700}


async def ask(http: aiohttp.ClientSession, url: str, query: str) -> str:
    async with http.post(url, data=query) as reply:
        text = await reply.text()
        assert reply.status == 200, text
        return text.strip()


async def run(dsn: str, *statements: str) -> object:
    """Run statements; the value of the last."""
    connection = await asyncpg.connect(dsn)
    try:
        for statement in statements[:-1]:
            await connection.execute(statement)
        return await connection.fetchval(statements[-1])
    finally:
        await connection.close()


def gone(pid: int) -> bool:
    """A zombie counts as gone: whoever inherited it has only not looked yet."""
    try:
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True


def all_gone(pids: list[int]) -> Callable[[], Awaitable[bool]]:
    async def holds() -> bool:
        return all(gone(pid) for pid in pids)

    return holds


def owner(pid: int) -> int:
    return Path(f"/proc/{pid}").stat().st_uid


def descendants(pid: int) -> list[int]:
    """Every process below ``pid``; none below one that has ended."""
    children = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            children += [int(child) for child in (task / "children").read_text().split()]
    return [*children, *(deeper for child in children for deeper in descendants(child))]


def interpreter(uid: int) -> str:
    """A Python that the user may run: ours, or the system's when it is of the same version."""
    for path in (sys.executable, "/usr/bin/python3"):
        script = "import sys; print(*sys.version_info[:2])"
        try:
            said = subprocess.run([path, "-c", script], user=uid, capture_output=True, text=True, check=True, cwd="/")
        except (OSError, subprocess.CalledProcessError):
            continue
        if said.stdout.split() == [str(part) for part in sys.version_info[:2]]:
            return path
    pytest.skip(f"user {uid} can run no Python here")


def launch(kind: str, directory: Path, uid: int) -> subprocess.Popen[bytes]:
    arguments = [sys.executable if uid == os.geteuid() else interpreter(uid), str(STAND_IN), kind, str(directory)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "PYTHONDONTWRITEBYTECODE": "1"}
    pipe = subprocess.PIPE
    if uid == os.geteuid():
        return subprocess.Popen(arguments, stdin=pipe, stdout=pipe, env=environment, cwd="/")
    return subprocess.Popen(
        arguments, stdin=pipe, stdout=pipe, env=environment, cwd="/", user=uid, group=uid, extra_groups=()
    )


async def start_stand_in(
    kind: str, directory: Path, uid: int | None = None
) -> tuple[subprocess.Popen[bytes], str, list[int]]:
    """A separate gateway with one engine: its process, the engine's address, every process below it."""
    process = await asyncio.to_thread(launch, kind, directory, os.geteuid() if uid is None else uid)
    assert process.stdout is not None
    started = json.loads(await asyncio.to_thread(process.stdout.readline))
    return process, started["address"], descendants(process.pid)


def put_away(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    process.send_signal(number)
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


async def test_clickhouse_killed_during_inserts_is_back_on_the_same_port_with_what_it_confirmed(
    tmp_path: Path, http: aiohttp.ClientSession
) -> None:
    restarted = asyncio.Event()
    engine = EmbeddedClickHouse(tmp_path, port=0, on_restart=restarted.set)
    url = await engine.start()
    await ask(http, url, "CREATE TABLE t (n UInt64) ENGINE = MergeTree ORDER BY n")
    confirmed: list[int] = []
    failures = 0

    async def insert(numbers: range) -> None:
        nonlocal failures
        for number in numbers:
            try:
                await ask(http, url, f"INSERT INTO t VALUES ({number})")
                confirmed.append(number)
            except aiohttp.ClientError:
                failures += 1
                await restarted.wait()

    inserting = [asyncio.create_task(insert(range(start, start + 60))) for start in (0, 1000, 2000, 3000)]

    async def under_way() -> bool:
        return len(confirmed) > 40

    await becomes_true(under_way)
    first = engine.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    killed_s = asyncio.get_running_loop().time()
    async with asyncio.timeout(10):
        await restarted.wait()
    away_s = asyncio.get_running_loop().time() - killed_s
    await asyncio.gather(*inserting)
    assert failures > 0, "the control: nobody was inserting when it was killed"
    assert (engine.url, engine.pid != first) == (url, True)
    stored = {int(line) for line in (await ask(http, url, "SELECT n FROM t")).splitlines()}
    assert stored >= set(confirmed)
    assert away_s < 5.0
    await engine.stop()


async def test_clickhouse_killed_again_and_again_is_back_each_time(
    tmp_path: Path, http: aiohttp.ClientSession, caplog: pytest.LogCaptureFixture
) -> None:
    lives = 1

    def count() -> None:
        nonlocal lives
        lives += 1
        raise RuntimeError("a listener's mistake")

    engine = EmbeddedClickHouse(tmp_path, port=0, on_restart=count)
    url = await engine.start()
    for life in (1, 2, 3):
        assert lives == life
        os.kill(engine.pid or 0, signal.SIGKILL)

        async def back(life: int = life) -> bool:
            return lives == life + 1

        await becomes_true(back)
        assert await ask(http, url, "SELECT 1") == "1"
    assert caplog.text.count("was ended by SIGKILL") == 3
    await engine.stop()


@pytest.mark.parametrize("kind", ["clickhouse", "postgres"])
async def test_an_engine_is_gone_soon_after_its_gateway_was_killed_and_its_successor_starts(
    tmp_path: Path, kind: str
) -> None:
    process, _, below = await start_stand_in(kind, tmp_path)
    assert below
    put_away(process, signal.SIGKILL)
    # At once: the successor meets what the predecessor left.
    process, _, successors = await start_stand_in(kind, tmp_path)
    await becomes_true(all_gone(below), within_s=5)
    put_away(process, signal.SIGKILL)
    await becomes_true(all_gone(successors), within_s=5)


async def test_clickhouse_keeps_its_data_over_stop_and_start(tmp_path: Path, http: aiohttp.ClientSession) -> None:
    engine = EmbeddedClickHouse(tmp_path, port=0)
    url = await engine.start()
    pid = engine.pid
    assert pid is not None
    await ask(http, url, "CREATE TABLE t ENGINE = MergeTree ORDER BY n AS SELECT number AS n FROM numbers(1000)")
    await engine.stop()
    assert gone(pid)
    again = EmbeddedClickHouse(tmp_path, port=0)
    assert await ask(http, await again.start(), "SELECT count(), sum(n) FROM t") == "1000\t499500"
    await again.stop()


async def test_nobody_else_may_read_what_clickhouse_keeps(tmp_path: Path) -> None:
    there_before = tmp_path / "clickhouse"
    there_before.mkdir(mode=0o755)
    engine = EmbeddedClickHouse(tmp_path, port=0)
    await engine.start()
    await engine.stop()
    assert there_before.stat().st_mode & 0o777 == 0o700


async def test_clickhouse_takes_another_port_when_the_wanted_one_is_taken(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        engine = EmbeddedClickHouse(tmp_path, port=other.getsockname()[1])
        url = await engine.start()
        assert not url.endswith(f":{other.getsockname()[1]}")
        await engine.stop()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    engine = EmbeddedClickHouse(tmp_path, port=port)
    assert await engine.start() == f"http://127.0.0.1:{port}"
    await engine.stop()


async def test_a_start_that_cannot_succeed_says_why(tmp_path: Path) -> None:
    (tmp_path / "postgres" / "data").mkdir(parents=True)
    (tmp_path / "postgres" / "data" / "PG_VERSION").write_text("9\n")
    with pytest.raises(EngineFailed, match=r"embedded Postgres ended with status .*postgres\.log"):
        await EmbeddedPostgres(tmp_path).start()


async def test_postgres_is_back_on_the_same_address_after_its_guard_or_its_server_was_killed(tmp_path: Path) -> None:
    restarted = asyncio.Event()
    engine = EmbeddedPostgres(tmp_path, on_restart=restarted.set)
    dsn = await engine.start()
    await run(dsn, "CREATE TABLE t (n int)", "SELECT 1")
    for number, victim in enumerate(("guard", "server"), 1):
        await run(dsn, f"INSERT INTO t VALUES ({number})", "SELECT 1")
        guard = engine.pid
        assert guard is not None
        restarted.clear()
        os.kill(guard if victim == "guard" else descendants(guard)[0], signal.SIGKILL)
        async with asyncio.timeout(10):
            await restarted.wait()
        assert engine.dsn == dsn
        assert await run(dsn, "SELECT count(*) FROM t") == number
    await engine.stop()


async def test_postgres_keeps_data_and_password_and_starts_quickly_the_second_time(tmp_path: Path) -> None:
    first = EmbeddedPostgres(tmp_path)
    dsn = await first.start()
    await run(dsn, "CREATE TABLE t AS SELECT 7 AS n", "SELECT 1")
    await first.stop()
    # An unclean end: its process id is now somebody else's.
    (tmp_path / "postgres" / "data" / "postmaster.pid").write_text(f"{os.getpid()}\n{tmp_path}\n0\n1\n\n\n0 0\n")
    started_s = asyncio.get_running_loop().time()
    second = EmbeddedPostgres(tmp_path)
    dsn = await second.start()
    assert asyncio.get_running_loop().time() - started_s < 2.0
    assert await run(dsn, "SELECT n FROM t") == 7
    assert (tmp_path / "postgres" / "password").stat().st_mode & 0o777 == 0o600
    await second.stop()


async def test_postgres_asks_for_the_password_and_syncs(postgres: EmbeddedPostgres) -> None:
    password = postgres.dsn.split(":")[2].split("@")[0]
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(postgres.dsn.replace(password, "wrong"))
    assert await run(postgres.dsn, "SHOW fsync") == "on"
    assert await run(postgres.dsn, "SHOW server_encoding") == "UTF8"


@as_root
@pytest.mark.parametrize("kind", ["clickhouse", "postgres"])
@pytest.mark.parametrize(("closed_place", "uid"), [(0, 0), (NOBODY, NOBODY)], indirect=["closed_place"])
async def test_engines_run_below_a_directory_closed_to_others(closed_place: Path, uid: int, kind: str) -> None:
    process, _, below = await start_stand_in(kind, closed_place, uid)
    assert below
    assert {owner(pid) for pid in below} == {uid}
    put_away(process, signal.SIGKILL)
    await becomes_true(all_gone(below), within_s=5)


@as_root
@pytest.mark.parametrize("closed_place", [DAEMON], indirect=True)
async def test_root_in_somebodys_closed_home_runs_postgres_as_them(closed_place: Path) -> None:
    engine = EmbeddedPostgres(closed_place)
    try:
        dsn = await engine.start()
    except EngineFailed as error:
        # Where the interpreter itself is in root's closed home there is nobody to run it as; the error says so.
        assert "none of these can reach both" in str(error)  # noqa: PT017
        pytest.skip("the binaries are closed to others here")
    assert await run(dsn, "SELECT 1") == 1
    assert owner(descendants(engine.pid or 0)[0]) == DAEMON
    await engine.stop()
