"""The tables as data: ordered columns, each with its ClickHouse type, what feeds it and its meaning.

A table is nothing but this description. The compiled decoders are given the columns and build their
plan from it at run time, so a table known only at run time needs no new compiled code. ``source``
names the field of a record that feeds the column: one of ``SOURCES``, or ``attribute:`` and the key of
an attribute (tables of GenAI events). A column without a source is filled by name (an entry plan's
rule) or with its type's default. Of several keys, separated by ``|``, the first one present counts;
``@message`` and ``@choice`` are the body of events of that kind, ``@finish_reason`` is in the latter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

SOURCES = (
    # of the record
    "time", "observed_time", "trace_id", "span_id", "flags", "severity_text", "severity_number",
    "body", "attributes", "event_name", "record_id",
    # of its scope and its resource: written once per group and repeated
    "scope_name", "scope_version", "scope_attributes", "scope_schema_url",
    "resource_attributes", "resource_schema_url", "service_name",
    # of the request
    "project_id", "dialect",
    # of the block it ends up in: the row's identity, see docs/decisions
    "frame", "row",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Column:
    """One column: ``type`` as ClickHouse spells it, ``source`` as above, or empty."""

    name: str
    type: str
    meaning: str
    source: str = ""


@dataclass(frozen=True, slots=True)
class Index:
    """A data-skipping index. ``text`` is its type on ClickHouse 26.2 and later, ``bloom`` before."""

    name: str
    expression: str
    text: str
    bloom: str


@dataclass(frozen=True, slots=True)
class Table:
    """A ClickHouse table. ``aliases`` are read-only computed columns: (name, type, expression)."""

    name: str
    columns: tuple[Column, ...]
    order_by: str
    partition_by: str
    ttl_column: str
    indexes: tuple[Index, ...] = ()
    aliases: tuple[tuple[str, str, str], ...] = ()

    @property
    def layout(self) -> tuple[tuple[str, str], ...]:
        """(name, type) of each column in order: what a block of this table is made of."""
        return tuple((column.name, column.type) for column in self.columns)

    @property
    def feeds(self) -> dict[str, str]:
        """Column name -> source, for the columns that have one."""
        return {column.name: column.source for column in self.columns if column.source}


_MAP = "Map(LowCardinality(String), String)"
_LOW = "LowCardinality(String)"

_IDENTITY = (
    Column("SpoolFrame", "UInt64", "the frame this row was written in: gateway, slot, epoch, sequence number", "frame"),
    Column("SpoolRow", "UInt32", "the row's number within its frame; with SpoolFrame its identity for ever", "row"),
)
_IDENTITY_INDEX = Index("idx_spool_frame", "SpoolFrame", "minmax GRANULARITY 1", "minmax GRANULARITY 1")


def _map_indexes(prefix: str, column: str) -> tuple[Index, Index]:
    return (
        Index(f"idx_{prefix}_key", f"mapKeys({column})", "text(tokenizer = 'array') GRANULARITY 100000000",
              "bloom_filter(0.01) GRANULARITY 1"),
        Index(f"idx_{prefix}_value", f"mapValues({column})", "text(tokenizer = 'array') GRANULARITY 100000000",
              "bloom_filter(0.01) GRANULARITY 1"),
    )  # fmt: skip


OTEL_LOGS = Table(
    name="otel_logs",
    columns=(
        Column("Timestamp", "DateTime64(9)", "when it happened: time, else observed time, else arrival", "time"),
        Column("TraceId", "String", "W3C trace id as 32 hex digits, or the sender's own text", "trace_id"),
        Column("SpanId", "String", "W3C span id as 16 hex digits, or the sender's own text", "span_id"),
        Column("TraceFlags", "UInt8", "W3C trace flags", "flags"),
        Column("SeverityText", _LOW, "the level as sent, else derived from the number", "severity_text"),
        Column("SeverityNumber", "UInt8", "OpenTelemetry severity 1-24; 0 is unset", "severity_number"),
        Column("ServiceName", _LOW, "the resource's service.name", "service_name"),
        Column("Body", "String", "the message", "body"),
        Column("ResourceSchemaUrl", _LOW, "schema URL of the resource", "resource_schema_url"),
        Column("ResourceAttributes", _MAP, "what the record came from", "resource_attributes"),
        Column("ScopeSchemaUrl", _LOW, "schema URL of the scope", "scope_schema_url"),
        Column("ScopeName", "String", "the logger", "scope_name"),
        Column("ScopeVersion", _LOW, "the logger's version", "scope_version"),
        Column("ScopeAttributes", _MAP, "attributes of the logger", "scope_attributes"),
        Column("LogAttributes", _MAP, "attributes of the record", "attributes"),
        Column("EventName", "String", "the event's name where the record is an event", "event_name"),
        Column("ProjectId", _LOW, "the project the key belongs to", "project_id"),
        Column("ObservedTimestamp", "DateTime64(9)", "when it was first seen; arrival when not sent", "observed_time"),
        Column("RecordId", "String", "the id returned to the sender, or log.record.uid", "record_id"),
        Column("Dialect", _LOW, "the wire dialect it arrived in", "dialect"),
        *_IDENTITY,
    ),
    order_by="(ProjectId, toStartOfFiveMinutes(Timestamp), ServiceName, Timestamp)",
    partition_by="toDate(Timestamp)",
    ttl_column="Timestamp",
    indexes=(
        # Grafana filters on Timestamp alone; without this every granule of the day is read.
        Index("idx_timestamp", "Timestamp", "minmax GRANULARITY 1", "minmax GRANULARITY 1"),
        # Status and alerts ask for what arrived lately, whatever time it bears.
        Index("idx_observed_timestamp", "ObservedTimestamp", "minmax GRANULARITY 1", "minmax GRANULARITY 1"),
        Index("idx_trace_id", "TraceId", "bloom_filter(0.001) GRANULARITY 1", "bloom_filter(0.001) GRANULARITY 1"),
        *_map_indexes("resource_attr", "ResourceAttributes"),
        *_map_indexes("scope_attr", "ScopeAttributes"),
        *_map_indexes("log_attr", "LogAttributes"),
        Index("idx_body", "Body",
              "text(tokenizer = 'splitByNonAlpha', preprocessor = lower(Body)) GRANULARITY 100000000",
              "tokenbf_v1(32768, 3, 0) GRANULARITY 8"),
        _IDENTITY_INDEX,
    ),
    aliases=(("TimestampTime", "DateTime", "toDateTime(Timestamp)"),),
)  # fmt: skip

GENAI_EVENTS = Table(
    name="genai_events",
    columns=(
        Column("Timestamp", "DateTime64(9)", "when it happened", "time"),
        Column("ProjectId", _LOW, "the project the key belongs to", "project_id"),
        Column("EventName", _LOW, "gen_ai.* event name, without a leading event.", "event_name"),
        Column("OperationName", _LOW, "gen_ai.operation.name", "attribute:gen_ai.operation.name"),
        Column(
            "ProviderName",
            _LOW,
            "gen_ai.provider.name, else gen_ai.system",
            "attribute:gen_ai.provider.name|gen_ai.system",
        ),
        Column("RequestModel", _LOW, "gen_ai.request.model", "attribute:gen_ai.request.model"),
        Column("ResponseModel", _LOW, "gen_ai.response.model", "attribute:gen_ai.response.model"),
        Column("ResponseId", "String", "gen_ai.response.id", "attribute:gen_ai.response.id"),
        Column(
            "FinishReasons",
            "String",
            "gen_ai.response.finish_reasons as JSON",
            "attribute:gen_ai.response.finish_reasons|@finish_reason",
        ),
        Column("ConversationId", "String", "gen_ai.conversation.id", "attribute:gen_ai.conversation.id"),
        Column(
            "InputTokens",
            "Nullable(UInt64)",
            "gen_ai.usage.input_tokens, else .prompt_tokens",
            "attribute:gen_ai.usage.input_tokens|gen_ai.usage.prompt_tokens",
        ),
        Column(
            "OutputTokens",
            "Nullable(UInt64)",
            "gen_ai.usage.output_tokens, else .completion_tokens",
            "attribute:gen_ai.usage.output_tokens|gen_ai.usage.completion_tokens",
        ),
        Column(
            "CacheReadTokens",
            "Nullable(UInt64)",
            "gen_ai.usage.cache_read.input_tokens",
            "attribute:gen_ai.usage.cache_read.input_tokens",
        ),
        Column(
            "CacheCreationTokens",
            "Nullable(UInt64)",
            "gen_ai.usage.cache_creation.input_tokens",
            "attribute:gen_ai.usage.cache_creation.input_tokens",
        ),
        Column(
            "ReasoningTokens",
            "Nullable(UInt64)",
            "gen_ai.usage.reasoning.output_tokens",
            "attribute:gen_ai.usage.reasoning.output_tokens|gen_ai.usage.reasoning_tokens",
        ),
        Column(
            "Temperature", "Nullable(Float64)", "gen_ai.request.temperature", "attribute:gen_ai.request.temperature"
        ),
        Column("TopP", "Nullable(Float64)", "gen_ai.request.top_p", "attribute:gen_ai.request.top_p"),
        Column("TopK", "Nullable(Float64)", "gen_ai.request.top_k", "attribute:gen_ai.request.top_k"),
        Column("MaxTokens", "Nullable(UInt64)", "gen_ai.request.max_tokens", "attribute:gen_ai.request.max_tokens"),
        Column("Seed", "Nullable(Int64)", "gen_ai.request.seed", "attribute:gen_ai.request.seed"),
        Column(
            "Stream", "Nullable(UInt8)", "gen_ai.request.stream: 1 streaming, 0 not", "attribute:gen_ai.request.stream"
        ),
        Column("ErrorType", _LOW, "error.type", "attribute:error.type"),
        Column("EvaluationName", _LOW, "gen_ai.evaluation.name", "attribute:gen_ai.evaluation.name"),
        Column(
            "EvaluationScore",
            "Nullable(Float64)",
            "gen_ai.evaluation.score.value",
            "attribute:gen_ai.evaluation.score.value",
        ),
        Column("EvaluationLabel", _LOW, "gen_ai.evaluation.score.label", "attribute:gen_ai.evaluation.score.label"),
        Column(
            "EvaluationExplanation",
            "String",
            "gen_ai.evaluation.explanation",
            "attribute:gen_ai.evaluation.explanation",
        ),
        Column(
            "InputMessages",
            "String",
            "what was asked, as JSON text",
            "attribute:gen_ai.input.messages|gen_ai.prompt|@message",
        ),
        Column(
            "OutputMessages",
            "String",
            "what was answered, as JSON text",
            "attribute:gen_ai.output.messages|gen_ai.completion|@choice",
        ),
        Column("UserId", "String", "user.id", "attribute:user.id|brokle.user_id"),
        Column("SessionId", "String", "session.id", "attribute:session.id|brokle.session_id"),
        Column("TraceId", "String", "W3C trace id as 32 hex digits", "trace_id"),
        Column("SpanId", "String", "W3C span id as 16 hex digits", "span_id"),
        *_IDENTITY,
    ),
    order_by="(ProjectId, EventName, RequestModel, Timestamp)",
    partition_by="toDate(Timestamp)",
    ttl_column="Timestamp",
    indexes=(
        Index("idx_timestamp", "Timestamp", "minmax GRANULARITY 1", "minmax GRANULARITY 1"),
        Index("idx_trace_id", "TraceId", "bloom_filter(0.001) GRANULARITY 1", "bloom_filter(0.001) GRANULARITY 1"),
        _IDENTITY_INDEX,
    ),
)

ERROR_EVENTS = Table(
    name="error_events",
    columns=(
        Column("Timestamp", "DateTime64(9)", "when it happened", "time"),
        Column("ProjectId", _LOW, "the project the key belongs to", "project_id"),
        Column("EventId", "String", "the sender's event id"),
        Column("TraceId", "String", "the sender's own trace id, as text", "trace_id"),
        Column("Type", _LOW, "exception type"),
        Column("Value", "String", "exception message"),
        Column("Stack", "String", "stack trace, one string"),
        Column("Handled", "Nullable(UInt8)", "whether the application caught it"),
        Column("Platform", _LOW, "python, javascript, ..."),
        Column("Environment", _LOW, "deployment environment"),
        Column("Release", _LOW, "release version or commit"),
        Column("Context", "String", "everything else that was sent, as JSON text"),
        *_IDENTITY,
    ),
    order_by="(ProjectId, EventId, Timestamp)",
    partition_by="toDate(Timestamp)",
    ttl_column="Timestamp",
    indexes=(
        Index("idx_timestamp", "Timestamp", "minmax GRANULARITY 1", "minmax GRANULARITY 1"),
        Index("idx_trace_id", "TraceId", "bloom_filter(0.001) GRANULARITY 1", "bloom_filter(0.001) GRANULARITY 1"),
        _IDENTITY_INDEX,
    ),
)

TABLES: tuple[Table, ...] = (OTEL_LOGS, GENAI_EVENTS, ERROR_EVENTS)

TEXT_INDEX_SINCE = (26, 2)
"""The first ClickHouse version whose text indexes are ready for production."""


def create_table(
    table: Table, *, database: str, version: Sequence[int], retention_days: int, replicated: bool = False
) -> str:
    """The ``CREATE TABLE IF NOT EXISTS`` statement of a table for a server of this version."""
    text = tuple(version[:2]) >= TEXT_INDEX_SINCE
    lines = [f"`{column.name}` {column.type} COMMENT {quote(column.meaning)}" for column in table.columns]
    lines += [f"`{name}` {type_} ALIAS {expression}" for name, type_, expression in table.aliases]
    lines += [
        f"INDEX {index.name} {index.expression} TYPE {index.text if text else index.bloom}" for index in table.indexes
    ]
    engine = "ReplicatedMergeTree" if replicated else "MergeTree"
    # Its default 0 turns insert deduplication off on a plain MergeTree.
    window = "replicated_deduplication_window" if replicated else "non_replicated_deduplication_window"
    ttl = f"TTL toDateTime({table.ttl_column}) + toIntervalDay({retention_days})\n" if retention_days else ""
    return (
        f"CREATE TABLE IF NOT EXISTS `{database}`.`{table.name}`\n(\n    "
        + ",\n    ".join(lines)
        + f"\n)\nENGINE = {engine}\nPARTITION BY {table.partition_by}\nORDER BY {table.order_by}\n{ttl}"
        + f"SETTINGS index_granularity = 8192, ttl_only_drop_parts = 1, {window} = 10000"
    )


def quote(text: str) -> str:
    """A ClickHouse string literal."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
