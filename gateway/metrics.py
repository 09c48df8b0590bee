"""Every metric and its meaning, in one table for a worker and one for its supervisor.

Values are plain numbers, bumped at most a few times a request (never per record) and read when
Prometheus scrapes. Labels are bounded: dialect, reason, table, shard, worker; never a key or a project.

Two identities hold at any moment, and a test holds them:
    requests_received = requests_accepted + requests_refused + requests in flight
    rows_accepted + rows_recovered =
        rows_stored + rows_dead_lettered + rows_refused + rows_damaged + rows_buffered   (per table)
and of the records in the requests that were decoded: records_received = records_accepted
+ records_rejected + records_repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import msgspec
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector


class Counter:
    """A number that only grows, per label values. ``read``, when set, supplies (labels, value) pairs at scrape."""

    def __init__(self, name: str, meaning: str, labels: tuple[str, ...] = ()) -> None:
        self.name, self.meaning, self.labels = name, meaning, labels
        self.values: dict[tuple[str, ...], float] = {} if labels else {(): 0}
        self.read: Callable[[], dict[tuple[str, ...], float]] | None = None

    def add(self, amount: float, *labels: str) -> None:
        self.values[labels] = self.values.get(labels, 0) + amount

    def total(self) -> float:
        return sum(self.values.values())

    def family(self) -> Metric:
        family = CounterMetricFamily(f"weir_{self.name}", self.meaning, labels=self.labels)
        for labels, value in (self.read() if self.read else self.values).items():
            family.add_metric(labels, value)
        return family


class Gauge:
    """A number that comes and goes. ``read``, when set, supplies (labels, value) pairs at scrape.

    ``adds``: of two processes in one worker's place (an old one is ending while the new one works) the
    sum is told; else the larger number.
    """

    def __init__(self, name: str, meaning: str, labels: tuple[str, ...] = (), *, adds: bool = True) -> None:
        self.name, self.meaning, self.labels, self.adds = name, meaning, labels, adds
        self.values: dict[tuple[str, ...], float] = {}
        self.read: Callable[[], dict[tuple[str, ...], float]] | None = None

    def set(self, value: float, *labels: str) -> None:
        self.values[labels] = value

    def family(self) -> Metric:
        family = GaugeMetricFamily(f"weir_{self.name}", self.meaning, labels=self.labels)
        for labels, value in (self.read() if self.read else self.values).items():
            family.add_metric(labels, value)
        return family


class Histogram:
    """Counts of observations up to each of ``bounds``, per label values."""

    def __init__(self, name: str, meaning: str, bounds: tuple[float, ...], labels: tuple[str, ...] = ()) -> None:
        self.name, self.meaning, self.labels, self.bounds = name, meaning, labels, bounds
        self.counts: dict[tuple[str, ...], list[int]] = {}
        self.sums: dict[tuple[str, ...], float] = {}

    def observe(self, value: float, *labels: str) -> None:
        counts = self.counts.get(labels)
        if counts is None:
            counts = self.counts[labels] = [0] * (len(self.bounds) + 1)
        slot = 0
        for bound in self.bounds:
            if value <= bound:
                break
            slot += 1
        counts[slot] += 1
        self.sums[labels] = self.sums.get(labels, 0.0) + value

    def family(self) -> Metric:
        family = HistogramMetricFamily(f"weir_{self.name}", self.meaning, labels=self.labels)
        for labels, counts in self.counts.items():
            running, buckets = 0, []
            for bound, count in zip((*(str(bound) for bound in self.bounds), "+Inf"), counts, strict=True):
                running += count
                buckets.append((bound, running))
            family.add_metric(labels, buckets, self.sums[labels])
        return family


_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Family(msgspec.Struct, frozen=True, array_like=True):
    """A metric with its values in one process; ``samples`` are (name, labels, value)."""

    name: str
    meaning: str
    type: str
    adds: bool
    samples: list[tuple[str, dict[str, str], float]]


class Table(Collector):
    """Metrics that are its attributes."""

    def collect(self) -> Iterator[Metric]:
        for metric in vars(self).values():
            if isinstance(metric, Counter | Gauge | Histogram):
                yield metric.family()

    def families(self) -> list[Family]:
        """What ``collect`` gives, as it is told to another process."""
        told = []
        for metric in vars(self).values():
            if isinstance(metric, Counter | Gauge | Histogram):
                family = metric.family()
                adds = not isinstance(metric, Gauge) or metric.adds
                samples = [(sample.name, sample.labels, sample.value) for sample in family.samples]
                told.append(Family(family.name, family.documentation, family.type, adds, samples))
        return told


def together(several: Iterable[Sequence[Family]]) -> list[Family]:
    """The metrics of several processes as if they were one."""
    families: dict[str, Family] = {}
    values: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]] = {}
    for one in several:
        for family in one:
            families.setdefault(family.name, family)
            into = values.setdefault(family.name, {})
            for name, labels, value in family.samples:
                at = name, tuple(labels.items())
                before = into.get(at)
                into[at] = value if before is None else before + value if family.adds else max(before, value)
    return [
        Family(
            family.name,
            family.meaning,
            family.type,
            family.adds,
            [(name, dict(labels), value) for (name, labels), value in values[family.name].items()],
        )
        for family in families.values()
    ]


def exposed(by_worker: Mapping[str, Sequence[Family]]) -> Iterator[Metric]:
    """As Prometheus is told them: with a label ``worker``, unless there is only one."""
    metrics: dict[str, Metric] = {}
    for worker, families in by_worker.items():
        label = {"worker": worker} if len(by_worker) > 1 else {}
        for family in families:
            metric = metrics.get(family.name)
            if metric is None:
                metric = metrics[family.name] = Metric(family.name, family.meaning, family.type)
            for name, labels, value in family.samples:
                metric.add_sample(name, {**label, **labels}, value)
    return iter(metrics.values())


class SupervisorMetrics(Table):
    """What the supervisor counts; the rest is counted by its workers."""

    def __init__(self) -> None:
        self.clickhouse_restarts = Counter("clickhouse_restarts", "Restarts of the embedded ClickHouse.")
        self.worker_restarts = Counter("worker_restarts", "Workers that died and were replaced.", ("worker",))
        self.worker_answers = Gauge("worker_answers", "1 when this worker's numbers are in this answer.", ("worker",))


class Metrics(Table):
    """The table of a worker. One instance per process, passed to whoever counts."""

    def __init__(self) -> None:
        by_dialect = ("dialect",)
        self.requests_received = Counter("requests_received", "Requests whose path a dialect answers.", by_dialect)
        self.requests_accepted = Counter("requests_accepted", "Requests answered with a 2xx.", by_dialect)
        self.requests_refused = Counter("requests_refused", "Requests answered with an error.", ("dialect", "reason"))
        self.requests_repeated = Counter(
            "requests_repeated", "Accepted requests whose Idempotency-Key had been kept before.", by_dialect
        )
        self.request_seconds = Histogram("request_seconds", "From first header to answer.", _SECONDS, by_dialect)
        self.body_bytes = Counter("body_bytes", "Bytes of request bodies as sent.", by_dialect)
        self.records_received = Counter("records_received", "Records in the requests that were decoded.", by_dialect)
        self.records_accepted = Counter("records_accepted", "Records that became rows.", by_dialect)
        self.records_rejected = Counter("records_rejected", "Records that did not.", ("dialect", "reason"))
        self.records_repeated = Counter("records_repeated", "Records of repeated requests.", by_dialect)
        self.attributes_cut = Counter("attributes_cut", "Attributes, keys and values cut at a cap.", by_dialect)
        self.timestamps_clamped = Counter("timestamps_clamped", "Timestamps outside the table's range.", by_dialect)
        self.rows_accepted = Counter("rows_accepted", "Rows taken into the buffers.", ("table",))
        self.rows_stored = Counter("rows_stored", "Rows ClickHouse confirmed.", ("table",))
        self.rows_buffered = Gauge(
            "rows_buffered",
            "Rows accepted and not yet stored; those from before a start once spool_recovering is 0.",
            ("table",),
        )
        self.rows_recovered = Counter(
            "rows_recovered", "Rows found in the spool at the start, or lost by ClickHouse.", ("table",)
        )
        self.rows_refused = Counter(
            "rows_refused", "Rows whose sender was refused after all: the spool could not be written.", ("table",)
        )
        self.rows_dead_lettered = Counter(
            "rows_dead_lettered", "Rows ClickHouse will never take, kept for `weir replay`.", ("table",)
        )
        self.rows_damaged = Counter("rows_damaged", "Rows the disk has lost; see quarantine/.", ("table",))
        self.idempotency_keys_displaced = Gauge(
            "idempotency_keys_displaced", "Idempotency-Keys that had to make room for newer ones before their time."
        )
        self.spool_bytes = Gauge("spool_bytes", "Bytes on disk of rows not yet stored.")
        self.spool_capacity_bytes = Gauge("spool_capacity_bytes", "What the spool may take of the disk.")
        self.spool_disk_bytes = Gauge("spool_disk_bytes", "Size of the spool's files.")
        self.spool_segments = Gauge("spool_segments", "Files of the spool.")
        self.spool_recovering = Gauge(
            "spool_recovering", "1 while the spool is looked through after a start: what it holds is not counted yet."
        )
        self.spool_failures = Gauge("spool_failures", "Groups in a row that could not be written.")
        self.spool_damaged_bytes = Counter("spool_damaged_bytes", "Bytes of the spool that the disk has changed.")
        self.ring_bytes = Gauge("ring_bytes", "Bytes buffered, of columns, blocks and inserts in flight.", ("shard",))
        self.ring_capacity_bytes = Gauge("ring_capacity_bytes", "What a shard may buffer.", ("shard",))
        self.oldest_unstored_seconds = Gauge(
            "oldest_unstored_seconds", "Age of the oldest row not yet stored.", adds=False
        )
        self.inserts = Counter("inserts", "Insert attempts, by what became of them.", ("table", "outcome"))
        self.insert_seconds = Histogram("insert_seconds", "Duration of an insert attempt.", _SECONDS, ("table",))
        self.batch_rows = Histogram("batch_rows", "Rows of a batch.", (10, 100, 1e3, 1e4, 1e5, 1e6), ("table",))
        self.inserts_in_flight = Gauge("inserts_in_flight", "Inserts sent and not yet answered.", ("shard",))
        self.last_insert_timestamp_seconds = Gauge(
            "last_insert_timestamp_seconds", "When an insert last succeeded.", adds=False
        )
        self.keys_loaded = Gauge("keys_loaded", "API keys held in memory.", adds=False)
        self.keys_age_seconds = Gauge("keys_age_seconds", "Since the keys were last known to be current.", adds=False)
        self.key_store_failures = Counter("key_store_failures", "How often Postgres was lost for the keys.")
        self.key_tables_refused = Counter("key_tables_refused", "Empty key tables that were not obeyed.")
        self.usage_store_failures = Counter("usage_store_failures", "How often Postgres was lost for the quotas.")
        self.usage_unsettled_records = Gauge("usage_unsettled_records", "Records counted, not yet told to Postgres.")
        self.alert_evaluations = Counter("alert_evaluations", "Alerts looked at, by whether it worked.", ("outcome",))
        self.alerts_fired = Counter("alerts_fired", "How often alerts fired.")
        self.alert_webhooks = Counter("alert_webhooks", "Words of alerts: delivered, failed, dropped.", ("outcome",))
        self.alert_webhook_retries = Counter("alert_webhook_retries", "Webhooks called again after a failure.")
