"""GenAI events, slow and obvious: what the compiled decoder's second table is held to.

Such an event is a log record whose event name begins with ``gen_ai.`` or ``event.gen_ai.``; it is a
row of the log table and one of ``genai_events``. Attributes alone never make one. Three generations
of the semantic conventions are in use: content in attributes (1.26), in the body (1.28), in other
attributes (from 1.37).

For each column the attributes that feed it, the first one that is there counting, whatever it holds.
Of duplicates the last one wins; only the kept attributes count.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from gateway.schema import GENAI_EVENTS
from tests.reference import otlp, otlp_json
from tests.reference.strict_json import NUMBER, exact

TEXTS: Mapping[str, tuple[str, ...]] = {
    "OperationName": ("gen_ai.operation.name",),
    "ProviderName": ("gen_ai.provider.name", "gen_ai.system"),
    "RequestModel": ("gen_ai.request.model",),
    "ResponseModel": ("gen_ai.response.model",),
    "ResponseId": ("gen_ai.response.id",),
    "FinishReasons": ("gen_ai.response.finish_reasons",),
    "ConversationId": ("gen_ai.conversation.id",),
    "ErrorType": ("error.type",),
    "EvaluationName": ("gen_ai.evaluation.name",),
    "EvaluationLabel": ("gen_ai.evaluation.score.label",),
    "EvaluationExplanation": ("gen_ai.evaluation.explanation",),
    "InputMessages": ("gen_ai.input.messages", "gen_ai.prompt"),
    "OutputMessages": ("gen_ai.output.messages", "gen_ai.completion"),
    "UserId": ("user.id", "brokle.user_id"),
    "SessionId": ("session.id", "brokle.session_id"),
}
COUNTS: Mapping[str, tuple[str, ...]] = {
    "InputTokens": ("gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens"),
    "OutputTokens": ("gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens"),
    "CacheReadTokens": ("gen_ai.usage.cache_read.input_tokens",),
    "CacheCreationTokens": ("gen_ai.usage.cache_creation.input_tokens",),
    "ReasoningTokens": ("gen_ai.usage.reasoning.output_tokens", "gen_ai.usage.reasoning_tokens"),
    "MaxTokens": ("gen_ai.request.max_tokens",),
}
NUMBERS: Mapping[str, tuple[str, ...]] = {
    "Temperature": ("gen_ai.request.temperature",),
    "TopP": ("gen_ai.request.top_p",),
    "TopK": ("gen_ai.request.top_k",),
    "EvaluationScore": ("gen_ai.evaluation.score.value",),
}
SEED = ("gen_ai.request.seed",)
STREAM = ("gen_ai.request.stream",)

MESSAGES = ("gen_ai.system.message", "gen_ai.user.message", "gen_ai.assistant.message", "gen_ai.tool.message")
"""Events whose body is what a model was told."""
CHOICE = "gen_ai.choice"
"""The event whose body is what it answered."""
CONTENT = (
    "gen_ai.prompt", "gen_ai.completion", "gen_ai.input.messages", "gen_ai.output.messages",
    "gen_ai.system_instructions", "gen_ai.tool.definitions",
)  # fmt: skip
"""Attributes with what a model was told or answered; cut where a project keeps less than all of it."""


def decode(
    body: bytes, *, json: bool, constants: Mapping[str, str], arrival_ns: int, time_min_ns: int, time_max_ns: int
) -> list[otlp.Row]:
    """The rows of ``genai_events`` of a request, by column name. Raises Malformed."""
    rows = []
    for single, size in _single_records(body, json=json):
        result = otlp.rows_of(
            single,
            iter([size]),
            constants=constants,
            arrival_ns=arrival_ns,
            time_min_ns=time_min_ns,
            time_max_ns=time_max_ns,
        )
        if result.rows:
            record = single.resource_logs[0].scope_logs[0].log_records[0]
            event = event_of(record, result.rows[0])
            if event is not None:
                rows.append(event)
    return rows


def name_of(row: otlp.Row) -> str:
    """The name of the event that a log row (by source) is of, empty when it is of none."""
    name = str(row["event_name"])
    if name.startswith("event.gen_ai."):
        name = name.removeprefix("event.")
    return name if name.startswith("gen_ai.") else ""


def cut_event(event: otlp.Row, content_bytes_max: int) -> otlp.Row:
    """An event of which only so much content is kept."""
    cut = {name: otlp.cut_bytes(str(event[name]), content_bytes_max) for name in ("InputMessages", "OutputMessages")}
    return event | cut


def cut_log(row: otlp.Row, content_bytes_max: int) -> otlp.Row:
    """A log row (by source) with no more content than its event may hold. What is cut is not counted."""
    row = dict(row)
    if name_of(row) in (*MESSAGES, CHOICE):
        row["body"] = otlp.cut_bytes(str(row["body"]), content_bytes_max)
    for source in ("attributes", "scope_attributes", "resource_attributes"):
        sent = row[source]
        assert isinstance(sent, dict)
        row[source] = {
            key: otlp.cut_bytes(value, content_bytes_max) if key in CONTENT else value for key, value in sent.items()
        }
    return row


def _single_records(body: bytes, *, json: bool) -> Iterator[tuple[Any, int]]:
    """Each record of a request as a request of its own, and the record's size in bytes."""
    if json:
        request, sizes = otlp_json.to_message(body), None
    else:
        otlp.decode_protobuf(body, constants={}, arrival_ns=0, time_min_ns=0, time_max_ns=1)
        request, sizes = otlp.parse(body), iter(otlp.scan(body).record_bytes)
    for group in request.resource_logs:
        for scope in group.scope_logs:
            for record in scope.log_records:
                single = otlp.Request()
                single.resource_logs.add().scope_logs.add().log_records.add().CopyFrom(record)
                yield single, record.ByteSize() if sizes is None else next(sizes)


def event_of(record: Any, row: otlp.Row) -> otlp.Row | None:
    """The event that a record is, from it and its log row (by source); None when it is none."""
    name = name_of(row)
    if not name:
        return None
    attributes = {otlp.text(entry.key): entry.value for entry in record.attributes[: otlp.ATTRIBUTES_MAX]}
    texts = {column: _text(_first(attributes, keys)) for column, keys in TEXTS.items()}
    if name in MESSAGES and _first(attributes, TEXTS["InputMessages"]) is None:
        texts["InputMessages"] = otlp.value_text(record.body)
    if name == CHOICE and _first(attributes, TEXTS["OutputMessages"]) is None:
        texts["OutputMessages"] = otlp.value_text(record.body)
    if name == CHOICE and _first(attributes, TEXTS["FinishReasons"]) is None:
        texts["FinishReasons"] = _finish_reasons(record.body)
    cells: otlp.Row = {column.name: row[column.source] for column in GENAI_EVENTS.columns if column.source in row}
    cells |= {"EventName": name} | texts
    cells |= {column: _integer(_first(attributes, keys), 0, 1 << 64) for column, keys in COUNTS.items()}
    cells |= {column: _number(_first(attributes, keys)) for column, keys in NUMBERS.items()}
    cells["Seed"] = _integer(_first(attributes, SEED), -(1 << 63), 1 << 63)
    cells["Stream"] = _boolean(_first(attributes, STREAM))
    return {column.name: cells.get(column.name, otlp.default_of(column.type)) for column in GENAI_EVENTS.columns}


def _first(attributes: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    """The value of the first of the keys that is there, else None."""
    return next((attributes[key] for key in keys if key in attributes), None)


def _text(value: Any) -> str:
    return "" if value is None else otlp.value_text(value)


def _finish_reasons(body: Any) -> str:
    """``["stop"]``, from the body of a choice; empty when it is no map that says so."""
    reasons = [
        entry.value for entry in body.kvlist_value.values if otlp.text(entry.key) == "finish_reason"
    ]  # of another kind of body this is empty
    return f"[{otlp.json_string(otlp.value_text(reasons[-1]))}]" if reasons else ""


def _integer(value: Any, lowest: int, over: int) -> int | None:
    """An integer, an integral double or a string that is a JSON number of integral value."""
    kind = None if value is None else value.WhichOneof("value")
    whole: int | None = None
    if kind == "int_value":
        whole = value.int_value
    elif kind == "double_value" and value.double_value.is_integer():
        whole = int(value.double_value)
    elif kind == "string_value":
        digits = otlp.text(value.string_value)
        number = exact(digits) if NUMBER.fullmatch(digits) else None
        if number is not None and number.denominator == 1:
            whole = number.numerator
    return whole if whole is not None and lowest <= whole < over else None


def _number(value: Any) -> float | None:
    """An integer, a finite double or a string that is a JSON number."""
    kind = None if value is None else value.WhichOneof("value")
    number = math.nan
    if kind == "int_value":
        number = float(value.int_value)
    elif kind == "double_value":
        number = value.double_value
    elif kind == "string_value":
        digits = otlp.text(value.string_value)
        number = float(digits) if NUMBER.fullmatch(digits) else math.nan
    return number if math.isfinite(number) else None


def _boolean(value: Any) -> int | None:
    if value is None or value.WhichOneof("value") != "bool_value":
        return None
    return int(value.bool_value)
