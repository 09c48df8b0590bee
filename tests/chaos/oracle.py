"""The oracle: knows what was promised, and asks ClickHouse whether it was kept.

    python -m tests.chaos.oracle send --ledger DIR --run NAME --ingest HOST:PORT --keys FILE [--connections N]

posts until SIGTERM, from several connections in every dialect, some of them rude (they hang up in the
middle of a body, or before the answer). The ledger has a file for each connection, a line for each event:

    posted FIRST COUNT DIALECT      written before the first byte leaves
    acked FIRST SUM                 written when the 2xx is there, before it counts for anything

``SUM`` is of the contents as they were sent. Ids are ``RUN.CONNECTION.NUMBER`` and are never used again: a
sender that failed mints new ones. ``check`` reads a ledger, and then the tables:

    missing     acked and not there             duplicate   there more than once, acked or not
    invented    there and never posted          corrupt     there with another content

What was posted and not acked may be there, once, or not.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import json
import random
import signal
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.records import DIALECTS, LINES, Record, record, sums

ANSWER_S = 30.0
SAMPLES = 20
POLITE = (429, 503)
"""Refusals that say when to come back."""
BATCHES = (1, 1, 2, 5, 10, 20, 50)


@dataclass
class Report:
    """What a check found. ``samples`` names a few ids of each kind of fault."""

    run: str = ""
    posted: int = 0
    acked: int = 0
    rows: int = 0
    missing: int = 0
    duplicate: int = 0
    invented: int = 0
    corrupt: int = 0
    clashing: int = 0
    """Rows whose frame and number another row has too; since the check before."""
    held: float = 0.0
    """Rows the gateway says it still holds though all is over; NaN when it does not say."""
    odd_answers: dict[str, int] = field(default_factory=dict)
    """Answers that are neither 2xx nor a polite refusal, by status."""
    samples: dict[str, list[str]] = field(default_factory=dict)

    @property
    def clean(self) -> bool:
        """Whether every promise was kept."""
        faults = self.missing + self.duplicate + self.invented + self.corrupt + self.clashing
        return not faults and self.held == 0 and not self.odd_answers

    def __str__(self) -> str:
        faults = f"missing {self.missing}, duplicate {self.duplicate}, invented {self.invented}, corrupt {self.corrupt}"
        return (
            f"run {self.run}: posted {self.posted}, acked {self.acked}, rows {self.rows}: {faults}, clashing"
            f" {self.clashing}, still held {self.held}, odd answers {self.odd_answers}; {self.samples}"
        )


class Sender(threading.Thread):
    """One connection, opened again when it breaks."""

    def __init__(self, number: int, given: argparse.Namespace, keys: dict[str, str], stop: threading.Event) -> None:
        super().__init__(name=f"sender-{number}")
        self._random = random.Random(f"{given.run}.{number}")
        self._prefix = f"{given.run}.{number}"
        self._address: str = given.ingest
        self._base_s: int = given.base_s
        self._pause_s: float = given.pause_ms / 1000
        self._dialect = list(DIALECTS)[number % len(DIALECTS)]
        self._key = keys[self._dialect]
        self._rude = number % 4 == 3
        self._stop_asked = stop
        self._next = 0
        self.failed = False
        self._ledger = (given.ledger / f"{self._prefix}.log").open("w", encoding="ascii")

    def run(self) -> None:
        try:
            self._send()
        except BaseException:
            self.failed = True
            raise
        finally:
            self._ledger.close()

    def _send(self) -> None:
        connection = http.client.HTTPConnection(self._address, timeout=ANSWER_S)
        is_alone = False
        while not self._stop_asked.is_set():
            if connection.sock is None:
                try:
                    connection.connect()
                except OSError as error:  # nobody is there: nothing was posted
                    if not is_alone:
                        self._note(f"broken {self._next} {type(error).__name__}")
                    is_alone = True
                    self._stop_asked.wait(0.005)
                    continue
            is_alone = False
            try:
                keep = self._post(connection)
            except (OSError, http.client.HTTPException) as error:
                self._note(f"broken {self._next} {type(error).__name__}")
                keep = False
            if not keep:
                connection.close()
            self._stop_asked.wait(self._pause_s)
        connection.close()

    def _post(self, connection: http.client.HTTPConnection) -> bool:
        """One batch; whether the connection goes on."""
        count = self._random.choice(BATCHES)
        first = self._next
        self._next += count
        records = [record(f"{self._prefix}.{first + at}", self._dialect, self._base_s) for at in range(count)]
        path, media_type, write = DIALECTS[self._dialect]
        body = write(records)
        headers = {"Authorization": f"Bearer {self._key}", "Content-Type": media_type}
        self._note(f"posted {first} {count} {self._dialect}")
        if self._rude and self._random.random() < 0.3:
            self._break_off(connection, path, headers, body)
            return False
        connection.request("POST", path, body, headers)
        answer = connection.getresponse()
        said = answer.read()
        if answer.status in (200, 202) and b"rejected" not in said:
            self._note(f"acked {first} {sum_of(records)}")
        else:
            polite = answer.status not in POLITE or "Retry-After" in answer.headers
            self._note(f"answer {first} {answer.status}{'' if polite else '-without-Retry-After'}")
            self._stop_asked.wait(0.02)
        return not answer.will_close

    def _break_off(
        self, connection: http.client.HTTPConnection, path: str, headers: dict[str, str], body: bytes
    ) -> None:
        """Hang up in the middle of the body, or right behind it."""
        connection.putrequest("POST", path)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            connection.putheader(name, value)
        connection.endheaders()
        connection.send(body[: self._random.choice((len(body) // 2, len(body)))])

    def _note(self, line: str) -> None:
        self._ledger.write(line + "\n")
        self._ledger.flush()


class Ledger:
    """What the connections of one run have written, read again and again as it grows."""

    def __init__(self, directory: Path, run: str) -> None:
        self._directory = directory
        self._run = run
        self._read_to: dict[Path, int] = {}
        self._counts: dict[tuple[Path, int], int] = {}
        self.acked = 0
        self.posted = 0
        self.answers: Counter[str] = Counter()
        self.broken: Counter[str] = Counter()
        """Connections, by what the sender met; a streak of refused ones counts once."""

    def update(self) -> int:
        """Records acked so far."""
        for _, words in self.lines():
            if words[0] == "answer":
                self.answers[words[2]] += 1
            elif words[0] == "broken":
                self.broken[words[2]] += 1
        return self.acked

    def lines(self) -> Iterator[tuple[Path, list[str]]]:
        """New whole lines as words, by file."""
        for path in sorted(self._directory.glob(f"{self._run}.*.log")):
            with path.open(encoding="ascii") as file:
                file.seek(self._read_to.get(path, 0))
                text = file.read()
            whole = text[: text.rfind("\n") + 1]
            self._read_to[path] = self._read_to.get(path, 0) + len(whole)
            for line in whole.splitlines():
                words = line.split()
                place = (path, int(words[1]))
                if words[0] == "posted":
                    self._counts[place] = int(words[2])
                    self.posted += int(words[2])
                elif words[0] == "acked":
                    self.acked += self._counts[place]
                yield path, words


def check(
    directory: Path, run: str, url: str, *, base_s: int, database: str = "default", rows_before: dict[str, int]
) -> Report:
    """Hold the tables to the ledger of one run. ``rows_before``: what each had before it; brought up to date."""
    report = Report(run)
    posted, obliged = _promises(directory, run, base_s, report)
    for table, (id_, line) in LINES.items():
        expected = posted.get(table, {})
        found: Counter[str] = Counter()
        sql = (
            f"SELECT {id_} AS id, lower(hex(MD5({line}))) AS sum, count() AS rows FROM {database}.{table}"
            f" WHERE startsWith(id, '{run}.') GROUP BY id, sum FORMAT TSV"
        )
        for name, sum_, count in (text.split("\t") for text in ask(url, sql).splitlines()):
            found[name] += int(count)
            if name not in expected:
                _fault(report, "invented", name)
            elif expected[name].hex() != sum_:
                _fault(report, "corrupt", name)
        for name in obliged.get(table, ()):
            if not found[name]:
                _fault(report, "missing", f"{table}:{name}")
        for name, rows in found.items():
            for _ in range(rows - 1):
                _fault(report, "duplicate", f"{table}:{name}")
        whole, different = ask(
            url, f"SELECT count(), uniqExact(SpoolFrame, SpoolRow) FROM {database}.{table} FORMAT TSV"
        ).split()
        clashing = int(whole) - int(different)
        report.clashing += clashing - rows_before.get(f"{table} clashing", 0)
        rows_before[f"{table} clashing"] = clashing
        report.rows += found.total()
        strangers = int(whole) - rows_before.get(table, 0) - found.total()
        if strangers:  # rows of no run, or of an earlier one once more, or fewer of it
            report.invented += abs(strangers)
            report.samples.setdefault("invented", []).append(f"{table}: {strangers} rows beyond this run's and before")
        rows_before[table] = int(whole)
    return report


def missing_now(directory: Path, run: str, url: str, *, base_s: int, database: str = "default") -> int:
    """Acked rows that are not there yet; cheap enough to poll."""
    _, obliged = _promises(directory, run, base_s, Report())
    count = 0
    for table, names in obliged.items():
        id_ = LINES[table][0]
        sql = f"SELECT DISTINCT {id_} AS id FROM {database}.{table} WHERE startsWith(id, '{run}.') FORMAT TSV"
        count += len(names - set(ask(url, sql).splitlines()))
    return count


def ask(url: str, sql: str) -> str:
    """ClickHouse's answer to a query. Raises OSError when there is none."""
    with urllib.request.urlopen(urllib.request.Request(url, sql.encode(), method="POST"), timeout=60) as answer:
        return str(answer.read().decode())


def _promises(
    directory: Path, run: str, base_s: int, report: Report
) -> tuple[dict[str, dict[str, bytes]], dict[str, set[str]]]:
    """Of each table: id -> sum of every row posted, and the ids of those acked."""
    posted: dict[str, dict[str, bytes]] = {}
    obliged: dict[str, set[str]] = {}
    batches: dict[tuple[Path, int], list[Record]] = {}
    for path, words in Ledger(directory, run).lines():
        place = (path, int(words[1]))
        if words[0] == "posted":
            prefix = path.name.removesuffix(".log")
            batch = [record(f"{prefix}.{place[1] + at}", words[3], base_s) for at in range(int(words[2]))]
            batches[place] = batch
            report.posted += len(batch)
            for table, ids in sums(batch).items():
                posted.setdefault(table, {}).update(ids)
        elif words[0] == "acked":
            batch = batches[place]
            report.acked += len(batch)
            if sum_of(batch) != words[2]:
                raise AssertionError(f"the oracle does not know its own records again: {path.name} {place[1]}")
            for table, ids in sums(batch).items():
                obliged.setdefault(table, set()).update(ids)
        elif words[0] == "answer" and words[2] not in map(str, POLITE):
            report.odd_answers[words[2]] = report.odd_answers.get(words[2], 0) + 1
    return posted, obliged


def _fault(report: Report, kind: str, what: str) -> None:
    setattr(report, kind, getattr(report, kind) + 1)
    named = report.samples.setdefault(kind, [])
    if len(named) < SAMPLES:
        named.append(what)


def sum_of(records: Sequence[Record]) -> str:
    """Of what was sent, in order; what the ledger says of it."""
    digest = hashlib.md5(usedforsecurity=False)
    for each in records:
        for table, line in each.lines().items():
            digest.update(f"{table}\0{line}\0".encode())
    return digest.hexdigest()


def send(given: argparse.Namespace) -> int:
    """Post until SIGTERM; the exit code, 1 when a sender failed by itself."""
    keys = json.loads(given.keys.read_text())
    given.ledger.mkdir(parents=True, exist_ok=True)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    senders = [Sender(number, given, keys, stop) for number in range(given.connections)]
    for sender in senders:
        sender.start()
    deadline = time.monotonic() + given.seconds_max  # should whoever started us die, we do not go on for ever
    while not stop.is_set() and time.monotonic() < deadline and not any(sender.failed for sender in senders):
        with suppress(InterruptedError):
            stop.wait(0.2)
    stop.set()
    for sender in senders:
        sender.join()
    return int(any(sender.failed for sender in senders))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["send"])
    parser.add_argument("--ledger", type=Path, required=True)
    parser.add_argument("--run", required=True)
    parser.add_argument("--ingest", required=True)
    parser.add_argument("--keys", type=Path, required=True)
    parser.add_argument("--base-s", type=int, required=True)
    parser.add_argument("--connections", type=int, default=6)
    parser.add_argument("--pause-ms", type=float, default=2.0)
    parser.add_argument("--seconds-max", type=float, default=600.0)
    return send(parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
