"""A person sees what waits on disk, beside a running gateway too, and can bring it to ClickHouse by hand."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from gateway.delivery.inspection import Inspection
from gateway.delivery.segments import HEADER_BYTES, Damage, Frame, Kind, SegmentName, SegmentReader, listed
from tests.delivery.rig import Engine, Rig, answered, rig, until, until_it
from tests.delivery.segment_files import NAME, Spec, segment
from tests.delivery.things import things
from tests.support.proxy import Fault

ROOT = Path(__file__).resolve().parents[2]
AWAY = [answered(503)] * 1_000_000
BOTH = (things(), things("others"))


async def kept(rig: Rig, numbers: Sequence[int], **how: Any) -> None:
    await rig.send(numbers, **how).wait()


def inspected(directory: Path, *, whole: bool = True) -> Inspection:
    inspection = Inspection(directory, whole=whole, pause=lambda _: None)
    for done, of in inspection.read():
        assert 0 <= done <= of
    return inspection


def exported(directory: Path, to: Path) -> Inspection:
    inspection = inspected(directory)
    to.mkdir()
    for done, of in inspection.export(to):
        assert 0 <= done <= of
    return inspection


def placed(directory: Path, specs: Sequence[Spec], name: SegmentName = NAME) -> Path:
    """A segment of these frames in slot 0."""
    slot = directory / "slot-00"
    slot.mkdir(parents=True, exist_ok=True)
    (slot / name.file).write_bytes(segment(specs, name, room_bytes=4096)[0])
    return slot / name.file


def weir(data_dir: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command, as a person runs it."""
    return subprocess.run(
        [sys.executable, "-m", "gateway", "spool", *arguments],
        cwd=ROOT,
        env={**os.environ, "WEIR__DATA_DIR": str(data_dir)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def by_hand(engine: Engine, database: str, folder: Path) -> None:
    """What docs/spool.md tells a person to run, run."""
    text = (ROOT / "docs" / "spool.md").read_text()
    (script,) = (block for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) if "curl" in block)
    environment = {**os.environ, "CLICKHOUSE": f"{engine.url}/?database={database}"}
    subprocess.run(["bash", "-euc", script], cwd=folder, env=environment, check=True, timeout=60)


async def test_what_waits_is_shown_by_segment_and_table(engine: Engine, tmp_path: Path) -> None:
    async with rig(engine, tmp_path / "a", tables=BOTH, plan=AWAY) as rig_:
        for start in range(0, 3_000, 100):
            await kept(rig_, range(start, start + 100))
        await kept(rig_, range(50), table="others", project="q")
        described: Any = inspected(tmp_path / "a").described()
    assert {row["table"]: row["rows"] for row in described["tables"]} == {"things": 3_000, "others": 50}
    assert sum(row["live_rows"] for row in described["segments"]) == 3_050
    assert {row["slot"] for row in described["segments"]} == {"slot-00"}
    assert all(row["damaged_bytes"] == 0 for row in described["segments"])
    assert all(row["oldest"].startswith("20") for row in described["tables"])
    assert described["quarantine"] == []


async def test_what_is_stored_does_not_wait(engine: Engine, tmp_path: Path) -> None:
    async with rig(engine, tmp_path / "a", audit_ms=60_000) as rig_:
        await kept(rig_, range(1_000))
        await rig_.flush()
        await until(lambda: not inspected(tmp_path / "a").described()["tables"], "all of it is done")
        (row,) = inspected(tmp_path / "a").described()["segments"]
    assert (row["rows"], row["live"], row["live_rows"], row["open_seals"]) == (1_000, 0, 0, 0)


async def test_a_running_gateway_is_not_disturbed_and_its_half_written_frames_are_no_damage(
    engine: Engine, tmp_path: Path
) -> None:
    directory = tmp_path / "a"
    async with rig(engine, directory, segment_bytes=64 << 10) as rig_:

        async def load() -> None:
            for start in range(0, 40_000, 100):
                await kept(rig_, range(start, start + 100), body=f"{start * 7919:x} " * 20)

        def looked() -> int:
            inspection = Inspection(directory, whole=True)
            for _ in inspection.read():
                pass
            assert [fault for segment_ in inspection.segments for fault in segment_.faults] == []
            return len(inspection.segments)

        loading = asyncio.create_task(load())
        looks = []
        while not loading.done():
            looks.append(await asyncio.to_thread(looked))
        await loading
        await rig_.flush()
        assert await rig_.stored() == list(range(40_000))
        assert len(looks) > 3
        assert max(looks) > 1
        rig_.check_counters()


@pytest.mark.parametrize("goes_on", [True, False])
def test_a_frame_that_is_being_written_is_looked_at_again(tmp_path: Path, goes_on: bool) -> None:
    """Though the disk holds it up for seconds. Without the gateway going on, the positive control, it is damage."""
    specs = [Spec(Kind.DATA, b"block" * 20, number, "things", "p", 10) for number in (1, 2, 3)]
    path = placed(tmp_path, specs)
    whole = path.read_bytes()
    half = segment(specs)[1][1].offset + 80
    path.write_bytes(whole[:half] + bytes(len(whole) - half))

    waited_s = 0.0

    def pause(seconds: float) -> None:
        nonlocal waited_s
        waited_s += seconds
        if goes_on and waited_s >= 3.0:
            path.write_bytes(whole)

    inspection = Inspection(tmp_path, whole=True, pause=pause)
    for _ in inspection.read():
        pass
    (found,) = inspection.segments
    assert bool(found.damage) != goes_on
    if goes_on:
        assert (found.frames[Kind.DATA], found.live_rows) == (3, 30)


@pytest.mark.parametrize("goes_on", [True, False])
def test_a_frame_that_is_whole_a_moment_later_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, goes_on: bool
) -> None:
    """Several are written at once, and the next one may be whole when it is come to. The control is really damaged."""
    specs = [Spec(Kind.DATA, b"block" * 20, number, "things", "p", 10) for number in (1, 2, 3)]
    path = placed(tmp_path, specs)
    as_written = path.read_bytes()
    second = segment(specs)[1][1]
    half = bytearray(as_written)
    half[second.offset + 80 : second.offset + second.bytes] = bytes(second.bytes - 80)
    path.write_bytes(half)

    class Slow(SegmentReader):
        def frames(self, offset: int = HEADER_BYTES, *, whole: bool = False) -> Iterator[Frame | Damage]:
            for found in super().frames(offset, whole=whole):
                yield found
                if goes_on and isinstance(found, Damage):
                    path.write_bytes(as_written)

    monkeypatch.setattr("gateway.delivery.inspection.SegmentReader", Slow)
    (found,) = inspected(tmp_path, whole=True).segments
    assert [place.offset for place in found.damage] == ([] if goes_on else [second.offset])
    assert found.live_rows == (30 if goes_on else 20)


@pytest.mark.parametrize("goes_on", [True, False])
def test_a_seal_whose_list_is_being_written_is_looked_at_again(tmp_path: Path, goes_on: bool) -> None:
    """Its head is whole already, and payloads are not checked: its list is read all the same."""
    members = [(NAME.id, number) for number in range(1, 40)]
    specs = [
        *(Spec(Kind.DATA, b"block", number, "things", "p", 10) for _, number in members),
        Spec(Kind.SEAL, listed(members, "token"), table="things"),
    ]
    path = placed(tmp_path, specs)
    whole, seal = path.read_bytes(), segment(specs)[1][-1]
    half = seal.offset + seal.bytes // 2
    path.write_bytes(whole[:half] + bytes(len(whole) - half))

    def pause(_: float) -> None:
        if goes_on:
            path.write_bytes(whole)

    inspection = Inspection(tmp_path, whole=False, pause=pause)
    for _ in inspection.read():
        pass
    (found,) = inspection.segments
    assert found.damage == ([] if goes_on else [seal])
    assert (found.frames[Kind.DATA], found.frames[Kind.SEAL], len(inspection.sealed())) == (39, goes_on, goes_on)


def test_what_is_damaged_in_front_of_a_seal_that_is_being_written_is_counted_once(tmp_path: Path) -> None:
    specs = [
        *(Spec(Kind.DATA, b"block", number, "things", "p", 10) for number in (1, 2)),
        Spec(Kind.SEAL, listed([(NAME.id, number) for number in range(1, 40)], "token"), table="things"),
    ]
    path = placed(tmp_path, specs)
    _, hurt, seal = segment(specs)[1]
    damaged = bytearray(path.read_bytes())
    damaged[hurt.offset : hurt.offset + 8] = b"\xff" * 8
    half = seal.offset + seal.bytes // 2
    path.write_bytes(damaged[:half] + bytes(len(damaged) - half))
    looks = 0

    def pause(_: float) -> None:
        nonlocal looks
        looks += 1
        if looks == 3:
            path.write_bytes(damaged)

    inspection = Inspection(tmp_path, whole=False, pause=pause)
    for _ in inspection.read():
        pass
    (found,) = inspection.segments
    assert [place.offset for place in found.damage] == [hurt.offset]
    assert (found.rows, found.frames[Kind.SEAL]) == (10, 1)


def test_inspecting_changes_nothing(tmp_path: Path) -> None:
    path = placed(tmp_path, [Spec(Kind.DATA, b"block", 1, "things", "p", 3, 1_790_000_000_000)])
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")}
    inspected(tmp_path).described()
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")} == before
    path.parent.chmod(0o500)
    try:
        assert inspected(tmp_path).segments[0].live_rows == 3
    finally:
        path.parent.chmod(0o700)


def test_a_copy_takes_the_place_of_its_original_and_done_frames_are_not_live(tmp_path: Path) -> None:
    def data(number: int, **more: Any) -> Spec:
        return Spec(Kind.DATA, b"block", number, "things", "p", 10, 1_790_000_000_000, **more)

    newer = SegmentName(NAME.ordinal + 1, NAME.id + 1)
    placed(
        tmp_path,
        [
            *(data(number) for number in range(1, 6)),
            Spec(Kind.SEAL, listed([(NAME.id, 1), (NAME.id, 2)], "00c0ffee12345678-3-5-1"), table="things"),
            Spec(Kind.SEAL, listed([(NAME.id, 5)], "00c0ffee12345678-3-5-2"), table="things"),
        ],
    )
    placed(
        tmp_path,
        [
            data(3, origin=NAME.id),
            Spec(Kind.DONE, listed([(NAME.id, 1), (NAME.id, 2)]), table="things"),
            Spec(Kind.SKIP, listed([(NAME.id, 4)]), table="things"),
        ],
        newer,
    )
    inspection = inspected(tmp_path)
    assert [sorted(found.live) for found in inspection.segments] == [[5], [3]]
    assert inspection.sealed() == {"00c0ffee12345678-3-5-2": {5}}
    (row,) = inspection.described()["tables"]
    assert (row["rows"], row["sealed_rows"]) == (20, 10)
    assert [found["open_seals"] for found in inspection.described()["segments"]] == [1, 0]


async def test_an_export_is_inserted_by_hand_as_the_documents_say(engine: Engine, tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("the documented lines need curl")
    async with rig(engine, tmp_path / "a", tables=BOTH, plan=AWAY, segment_bytes=64 << 10) as rig_:
        for start in range(0, 5_000, 100):
            await kept(rig_, range(start, start + 100), body=f"{start * 7919:x} " * 20)
        await kept(rig_, range(50), table="others")
        exported(tmp_path / "a", tmp_path / "export")
        assert sorted(path.name for path in (tmp_path / "export").iterdir()) == ["others.native", "things.native"]
        assert all(path.stat().st_mode & 0o777 == 0o600 for path in (tmp_path / "export").iterdir())
        for _ in range(2):
            await asyncio.to_thread(by_hand, engine, rig_.direct.database, tmp_path)
            assert await rig_.stored() == list(range(5_000))
            assert await rig_.stored("others") == list(range(50))


async def test_rows_that_clickhouse_has_already_are_not_doubled_by_hand(engine: Engine, tmp_path: Path) -> None:
    """Committed, and the answer never came: the batch is sealed, and its rows are exported."""
    if shutil.which("curl") is None:
        pytest.skip("the documented lines need curl")
    async with rig(engine, tmp_path / "a", plan=[Fault("swallow")] * 1_000) as rig_:
        await kept(rig_, range(1_000))

        async def stored() -> bool:
            return len(await rig_.stored()) == 1_000

        await until_it(stored, "the insert is committed")
        inspection = exported(tmp_path / "a", tmp_path / "export")
        (row,) = inspection.described()["tables"]
        assert (row["rows"], row["sealed_rows"]) == (1_000, 1_000)
        await asyncio.to_thread(by_hand, engine, rig_.direct.database, tmp_path)
        assert await rig_.stored() == list(range(1_000))
        # The positive control: inserted as they are, they are doubled.
        block = (tmp_path / "export" / "things.native").read_bytes()
        await rig_.direct.insert(things(), [block], token="by hand")
        assert len(await rig_.stored()) == 2_000


def test_the_command_shows_checks_and_exports(tmp_path: Path) -> None:
    specs = [Spec(Kind.DATA, b"block %d" % number, number, "things", "p", 10, 1_790_000_000_000) for number in (1, 2)]
    path = placed(tmp_path / "spool", specs)
    shown = weir(tmp_path, "inspect")
    assert shown.returncode == 0, shown.stderr
    assert "live_rows" in shown.stdout
    assert json.loads(weir(tmp_path, "inspect", "--json").stdout)["tables"][0]["rows"] == 20
    checked = weir(tmp_path, "verify")
    assert (checked.returncode, checked.stderr) == (0, "")

    image = bytearray(path.read_bytes())
    image[HEADER_BYTES + 60] ^= 1
    path.write_bytes(image)
    checked = weir(tmp_path, "verify")
    assert checked.returncode == 1
    assert checked.stderr == f"slot-00/{NAME.file}: 64 bytes at 64 are damaged\n"
    written = weir(tmp_path, "export", str(tmp_path / "out"))
    assert written.returncode == 1
    assert f"{NAME.file}: 64 bytes at 64 are damaged" in written.stderr
    assert (tmp_path / "out" / "things.native").read_bytes() == b"block 2"
    again = weir(tmp_path, "export", str(tmp_path / "out"))
    assert again.returncode == 1
    assert "File exists" in again.stderr


def test_a_damaged_header_is_told(tmp_path: Path) -> None:
    path = placed(tmp_path, [Spec(Kind.DATA, b"block", 1, "things", "p", 10)])
    path.write_bytes(b"X" + path.read_bytes()[1:])
    (found,) = inspected(tmp_path).segments
    assert found.faults == [f"slot-00/{NAME.file}: its header is damaged"]
    assert found.live_rows == 10
