"""The records of the fault programme: each a pure function of its id, so that whoever knows the id knows every byte.

A batch of them as each dialect carries it, and the one line that a stored row has to come to.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord

DAY_S = 86_400
DAYS = 3
"""Records are of so many days: a table has a partition a day, and an insert over several is not atomic."""
WORDS = ("plain", "Grüße", "it's", 'so "quoted"', "back\\slash", "tab\there", "line\nbreak", "\u2713", "\U0001f600", "")
LARGE_BYTES = 8 << 10


@dataclass(frozen=True, slots=True)
class Record:
    """``event``: it is a GenAI event, a row of ``genai_events`` too."""

    id: str
    time_ns: int
    text: str
    number: int
    event: bool

    def lines(self) -> dict[str, str]:
        """Table -> what ``LINES`` makes of this record's row there."""
        attributes = {"id": self.id, "n": str(self.number)}
        if self.event:
            attributes |= {"gen_ai.response.id": self.id, "gen_ai.usage.input_tokens": str(self.number)}
        pairs = ";".join(sorted(f"{name}={value}" for name, value in attributes.items()))
        lines = {"otel_logs": f"{self.time_ns}|9|{self.text}|{pairs}"}
        if self.event:
            lines["genai_events"] = f"{self.time_ns}|{self.text}|{self.number}"
        return lines


LINES = {
    "otel_logs": (
        "LogAttributes['id']",
        "concat(toString(toUnixTimestamp64Nano(Timestamp)), '|', toString(SeverityNumber), '|', Body, '|', "
        "arrayStringConcat(arraySort(arrayMap((k, v) -> concat(k, '=', v), mapKeys(LogAttributes),"
        " mapValues(LogAttributes))), ';'))",
    ),
    "genai_events": (
        "ResponseId",
        "concat(toString(toUnixTimestamp64Nano(Timestamp)), '|', InputMessages, '|', toString(InputTokens))",
    ),
}
"""Table -> the expressions for a row's id and for the line it comes to."""


def record(id_: str, dialect: str, base_s: int) -> Record:
    """The record of an id, sent in ``dialect``, on one of the ``DAYS`` days from ``base_s`` on.

    ``DIALECT+N``: with N bytes more that hardly compress.
    """
    dialect, _, more = dialect.partition("+")
    seed = hashlib.blake2b(id_.encode(), digest_size=16).digest()
    length = LARGE_BYTES if seed[0] == 0 else seed[1]
    words = " ".join(WORDS[seed[at % 16] % len(WORDS)] + str(at) for at in range(length // 8 + 1))
    time_ns = (base_s + seed[2] % DAYS * DAY_S + seed[3]) * 10**9 + int.from_bytes(seed[4:7]) * 1000
    noise = hashlib.shake_256(seed).hexdigest(int(more) // 2) if more else ""
    return Record(id_, time_ns, f"{id_} {words}{noise}", int.from_bytes(seed[8:12]), dialect == "otlp" and seed[7] < 64)


def sums(records: Sequence[Record]) -> dict[str, dict[str, bytes]]:
    """Table -> id -> MD5 of the row's line."""
    found: dict[str, dict[str, bytes]] = {}
    for each in records:
        for table, line in each.lines().items():
            found.setdefault(table, {})[each.id] = hashlib.md5(line.encode(), usedforsecurity=False).digest()
    return found


def loguro(records: Sequence[Record]) -> bytes:
    return json.dumps(
        [
            {
                "level": "info",
                "message": each.text,
                "timestamp": _rfc3339(each.time_ns),
                "context": {"id": each.id, "n": each.number},
            }
            for each in records
        ]
    ).encode()


def streamlogia(records: Sequence[Record]) -> bytes:
    return json.dumps(
        [
            {
                "level": "INFO",
                "message": each.text,
                "source": "chaos",
                "timestamp": _rfc3339(each.time_ns),
                "meta": {"id": each.id, "n": each.number},
            }
            for each in records
        ],
        ensure_ascii=False,
    ).encode()


def otlp(records: Sequence[Record]) -> bytes:
    request = ExportLogsServiceRequest()
    scope = request.resource_logs.add().scope_logs.add()
    for each in records:
        attributes = [_text("id", each.id), KeyValue(key="n", value=AnyValue(int_value=each.number))]
        if each.event:
            tokens = AnyValue(int_value=each.number)
            attributes += [
                _text("gen_ai.response.id", each.id),
                KeyValue(key="gen_ai.usage.input_tokens", value=tokens),
            ]
        scope.log_records.append(
            LogRecord(
                time_unix_nano=each.time_ns,
                severity_number=9,  # type: ignore[arg-type]  # the enumeration's name is longer than its number
                body=AnyValue(string_value=each.text),
                attributes=attributes,
                event_name="gen_ai.user.message" if each.event else "",
            )
        )
    return bytes(request.SerializeToString())


DIALECTS: dict[str, tuple[str, str, Callable[[Sequence[Record]], bytes]]] = {
    "loguro": ("/batch", "application/json", loguro),
    "otlp": ("/v1/logs", "application/x-protobuf", otlp),
    "streamlogia": ("/v1/ingest", "application/json", streamlogia),
}
"""Name -> path, content type, how a batch of records is written."""


def _text(key: str, value: str) -> KeyValue:
    return KeyValue(key=key, value=AnyValue(string_value=value))


def _rfc3339(time_ns: int) -> str:
    whole = datetime.fromtimestamp(time_ns // 10**9, UTC)
    return f"{whole:%Y-%m-%dT%H:%M:%S}.{time_ns % 10**9:09d}Z"
