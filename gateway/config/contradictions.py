"""Settings that are fine alone and wrong together, each as a sentence that says what to change."""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import urlsplit

from gateway.config.settings import (
    ENGINES_MS,
    SHARD_BLOCKS_MIN,
    STOP_MS_MAX,
    Config,
    Delivery,
    DialectLimits,
    Limits,
    Shutdown,
)


def contradictions(config: Config) -> Iterator[str]:
    """All of them; none where the settings can work."""
    shard_bytes = config.delivery.ring_bytes_max // config.delivery.shards
    yield from _bad_addresses(config)
    yield from _largest_requests(config.limits, shard_bytes)
    yield from _delivery(config.delivery, shard_bytes)
    yield from _spool(config)
    for host in config.alerts.webhook_hosts:
        if not re.fullmatch(r"\*|[\w.:-]+", host):
            yield f"alerts.webhook_hosts: {host!r} is not the name of a host: write hooks.example.com, or * for any."
    yield from _stop(config.shutdown)


def _largest_requests(limits: Limits, shard_bytes: int) -> Iterator[str]:
    for name, dialect in ((name, getattr(limits, name)) for name in Limits.__struct_fields__):
        if not isinstance(dialect, DialectLimits):
            continue
        if dialect.body_bytes_max > dialect.inflated_bytes_max:
            yield (
                f"limits.{name}.body_bytes_max ({dialect.body_bytes_max}) is more than "
                f"limits.{name}.inflated_bytes_max ({dialect.inflated_bytes_max}): a body that is not compressed "
                "could never use it. Raise the second or lower the first."
            )
        needed = dialect.body_bytes_max + dialect.inflated_bytes_max
        if needed > limits.bytes_in_flight_max:
            yield (
                f"limits.bytes_in_flight_max ({limits.bytes_in_flight_max}) is less than the largest {name} request "
                f"takes, body and inflated ({needed}): it would be refused for ever. Raise it to at least {needed}."
            )
        if dialect.inflated_bytes_max > shard_bytes:
            yield (
                f"limits.{name}.inflated_bytes_max ({dialect.inflated_bytes_max}) is more than one shard holds "
                f"({shard_bytes} = delivery.ring_bytes_max / delivery.shards): the largest request would be refused "
                "for ever. Lower it, raise delivery.ring_bytes_max, or use fewer shards."
            )
    if limits.project_requests_in_flight_max > limits.requests_in_flight_max:
        yield (
            f"limits.project_requests_in_flight_max ({limits.project_requests_in_flight_max}) is more than "
            f"limits.requests_in_flight_max ({limits.requests_in_flight_max}): it would never count. "
            "Lower the first or raise the second."
        )
    if limits.column_bytes_max > shard_bytes:
        yield (
            f"limits.column_bytes_max ({limits.column_bytes_max}) is more than one shard holds ({shard_bytes} = "
            "delivery.ring_bytes_max / delivery.shards): such a request would be refused for ever. "
            "Lower it, raise delivery.ring_bytes_max, or use fewer shards."
        )


def _delivery(delivery: Delivery, shard_bytes: int) -> Iterator[str]:
    if delivery.block_bytes > delivery.batch_bytes:
        yield (
            f"delivery.block_bytes ({delivery.block_bytes}) is more than delivery.batch_bytes "
            f"({delivery.batch_bytes}): an insert carries whole blocks. Lower the first or raise the second."
        )
    under_way = delivery.batch_bytes * delivery.inserts_in_flight
    if under_way > shard_bytes:
        yield (
            f"delivery.batch_bytes x delivery.inserts_in_flight ({under_way}) is more than one shard holds "
            f"({shard_bytes}): the inserts could never all be under way. "
            "Lower one of them or raise delivery.ring_bytes_max."
        )
    if SHARD_BLOCKS_MIN * delivery.block_bytes > shard_bytes:
        yield (
            f"delivery.block_bytes ({delivery.block_bytes}) is more than a quarter of what one shard holds "
            f"({shard_bytes} = delivery.ring_bytes_max / delivery.shards): blocks are filled while others are under "
            "way. Lower it, raise delivery.ring_bytes_max, or use fewer shards."
        )
    if delivery.block_age_ms > delivery.batch_age_ms:
        yield (
            f"delivery.block_age_ms ({delivery.block_age_ms}) is more than delivery.batch_age_ms "
            f"({delivery.batch_age_ms}): rows would be due before their block is cut. Lower the first."
        )
    if delivery.retry_first_ms > delivery.retry_max_ms:
        yield (
            f"delivery.retry_first_ms ({delivery.retry_first_ms}) is more than delivery.retry_max_ms "
            f"({delivery.retry_max_ms}): waits only grow. Lower the first or raise the second."
        )


def _spool(config: Config) -> Iterator[str]:
    delivery, of_each = config.delivery, config.delivery.spool_bytes_max // config.workers
    if delivery.segment_bytes > of_each:
        yield (
            f"delivery.segment_bytes ({delivery.segment_bytes}) is more than a worker's part of the spool ({of_each} = "
            "delivery.spool_bytes_max / workers): its first file would fill it. Lower the first or raise the second."
        )


def _stop(stop: Shutdown) -> Iterator[str]:
    needed = stop.workers_ms_max + ENGINES_MS
    if needed > STOP_MS_MAX:
        yield (
            f"shutdown.delay_ms + requests_ms_max + flush_ms_max, and {ENGINES_MS} for the engines, come to "
            f"{needed} ms: a stop must end within {STOP_MS_MAX} ms. Lower one of them."
        )


def _bad_addresses(config: Config) -> Iterator[str]:
    seen: dict[str, str] = {}
    for key, addresses in (("ingest.listen", config.ingest.listen), ("admin.listen", config.admin.listen)):
        if not addresses:
            yield f"{key} is empty: name at least one address, such as 127.0.0.1:0."
        for address in addresses:
            host, _, port = address.rpartition(":")
            if not host or not port.isascii() or not port.isdecimal() or int(port) > 65535:
                yield f"{key}: {address!r} is not host:port with a port from 0 to 65535."
            elif int(port) and address in seen:
                yield f"{key}: {address} is already in {seen[address]}. Use another port in one of them."
            else:
                seen[address] = key
    if config.clickhouse.url and not _is_address(config.clickhouse.url, ("http", "https"), host_needed=True):
        yield "clickhouse.url must be http://host:port or https://host:port (ClickHouse's HTTP port, usually 8123)."
    if config.postgres.dsn and not _is_address(config.postgres.dsn, ("postgres", "postgresql"), host_needed=False):
        yield "postgres.dsn must begin with postgresql://, as in postgresql://user:password@host:5432/database."


def _is_address(text: str, schemes: tuple[str, ...], *, host_needed: bool) -> bool:
    try:
        parts = urlsplit(text)
        # Of several hosts, which Postgres takes, the ports are its client's to judge.
        return parts.scheme in schemes and (not host_needed or (bool(parts.hostname) and parts.port != 0))
    except ValueError:  # brackets that do not match, a port that is no number
        return False
