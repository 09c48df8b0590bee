"""What a drop-in gateway does, behaviour by behaviour, and the cases and tests that hold each of them.

The list is of what the vendors' clients and servers do and their documents promise. ``dialect/case`` is a
folder below ``cases/``; ``dialect/part*`` all whose names begin so; ``path::test`` is a test elsewhere, for
what no single request can show.
"""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CASES = Path(__file__).parent / "cases"
SERVER, STORY = "tests/unit/http/test_server.py", "tests/unit/http/test_ingest.py"
REFUSALS = "tests/unit/dialects/test_refusals.py"

CHECKLIST: dict[int, tuple[str, tuple[str, ...]]] = {
    1: (
        "all paths on one listener, without a clash",
        (
            "loguro/seed-single",
            "loguro/seed-batch",
            "proliferate/seed-curl",
            "streamlogia/seed-raw-http",
            "brokle/seed-curl",
            "datasets/ingest-record",
            "otlp/json",
            "ndjson/lines",
        ),
    ),
    2: (
        "an answer is one TCP segment; connections are kept or closed as asked",
        (
            f"{SERVER}::test_an_answer_comes_in_one_segment",
            f"{SERVER}::test_a_connection_serves_one_request_after_the_other",
            "streamlogia/connection-close",
        ),
    ),
    3: (
        "no relying on retries: keys of clients that never retry are not held to the others' rate",
        (
            "tests/tenants/test_rates.py::test_keys_of_dialects_whose_clients_never_retry_have_another_rate",
            "tests/interop/test_streamlogia.py::test_what_a_full_gateway_refuses_calls_the_error_callback",
        ),
    ),
    4: (
        "load is shed with 503 and Retry-After; a key's rate is 429 with Retry-After",
        (
            f"{REFUSALS}::test_every_error_has_a_reply_in_every_dialect",
            f"{STORY}::test_one_project_cannot_take_every_place_and_gives_its_own_back",
            "tests/unit/http/test_notices.py::test_one_request_too_many_is_refused_unread_with_the_wait_and_the_policy",
            "tests/interop/test_brokle.py::test_what_a_full_gateway_refuses_is_sent_again_by_both",
        ),
    ),
    5: (
        "an answer waits until the rows are as safe as it says",
        (
            f"{STORY}::test_the_reply_waits_for_the_receipt_and_holds_no_body_meanwhile",
            f"{STORY}::test_a_broken_promise_is_503",
        ),
    ),
    6: ("POST / and /batch, 202 queued", ("loguro/seed-single*", "loguro/seed-batch", "loguro/api-key-header")),
    7: (
        "the same path takes plain JSON, OTLP JSON and OTLP protobuf",
        (
            "loguro/seed-single",
            "loguro/seed-otlp-json",
            "loguro/otlp-protobuf",
            "loguro/otlp-words-in-a-message",
        ),
    ),
    8: (
        "a missing or empty timestamp is arrival; context is kept",
        ("loguro/timestamps", "loguro/seed-context", "loguro/context-of-every-type"),
    ),
    9: (
        "browser keys have their origins; pages may ask before they post",
        (
            "loguro/seed-browser",
            "loguro/browser-*",
            "tests/interop/test_preflight.py::test_on_every_path_an_origin_is_allowed_to_the_letter_and_no_other",
            "tests/interop/test_browser.py::test_a_page_of_an_allowed_origin_logs_and_reads_every_answer",
        ),
    ),
    10: (
        "1 MB is 413, the rate 429, a spent quota 402; X-Quota-Warning above 80 %",
        (
            "loguro/oversized*",
            "tests/tenants/test_rates.py::test_the_request_after_the_last_is_refused_and_told_how_long_to_wait",
            f"{REFUSALS}::test_errors_are_worded_as_the_vendor_words_them",
            "tests/unit/http/test_notices.py::test_accepted_records_are_counted_and_the_reply_says_what_is_left",
        ),
    ),
    11: (
        "heartbeats count by arrival, errors by their rate; their absence calls somebody",
        (
            "loguro/levels",
            "loguro/heartbeat",
            "loguro/status-*",
            "loguro/alert-*",
            "tests/reading/test_status.py::test_the_bands_of_the_error_rate",
            "tests/reading/test_status.py::test_a_late_heartbeat_degrades_and_after_twice_the_timeout_it_is_down",
            "tests/alerts/test_end_to_end.py::test_heartbeats_that_stay_away_call_the_webhook",
            "tests/alerts/test_evaluator.py::test_an_absence_fires_after_the_timeout_and_again_after_the_cooldown",
        ),
    ),
    12: (
        "X-Request-Id is the trace",
        ("loguro/request-id-is-the-trace-id", "loguro/otlp-json-with-request-id", "datasets/ingest-record"),
    ),
    13: (
        "datasets: a key sends, a token controls and queries; pending until registered",
        (
            "datasets/control-*",
            "datasets/ingest-with-a-token",
            "datasets/schema-not-found",
            "datasets/ingest-before-the-schema",
            "datasets/query-before-the-schema",
        ),
    ),
    14: (
        "schemas wrapped or bare, once and for ever, of four types; records are strict",
        (
            "datasets/schema-wrapped",
            "datasets/schema-bare",
            "datasets/schema-is-immutable",
            "datasets/schema-of-another-type",
            "datasets/schema-declares-timestamp",
            "datasets/ingest-*",
        ),
    ),
    15: ("paths without an id, and the header that names it", ("datasets/legacy-*", "datasets/dataset-id-header")),
    16: (
        "queries: seven days, count, 100 of at most 1,000; grouping; no context; counts are texts",
        ("datasets/query-*",),
    ),
    17: (
        "the key in the body, else in a header; JSON under any label",
        (
            "proliferate/seed-batch",
            "proliferate/api-key-header",
            "proliferate/bearer",
            "proliferate/beacon",
            "proliferate/no-content-type",
            "proliferate/body-key-goes-first",
        ),
    ),
    18: (
        "202 accepted and dropped; 401 and 503 as detail; a hundred at most",
        (
            "proliferate/seed-curl",
            "proliferate/hundred*",
            "proliferate/unknown-key",
            f"{REFUSALS}::test_errors_are_worded_as_the_vendor_words_them",
        ),
    ),
    19: (
        "seconds with fractions, opaque traces, six severities, attributes as text",
        (
            "proliferate/timestamps",
            "proliferate/trace-ids-are-text",
            "proliferate/levels",
            "proliferate/attributes-of-every-type",
        ),
    ),
    20: (
        "errors are taken on both paths and lead to their logs",
        ("proliferate/errors-*", "proliferate/read-event-logs", "proliferate/read-unknown-event"),
    ),
    21: (
        "logs are read by level, text, trace and time, in pages",
        (
            "proliferate/read-seed",
            "proliferate/read-trace",
            "proliferate/read-page",
            "proliferate/read-bad-level",
            "proliferate/read-limit-too-high",
        ),
    ),
    22: (
        "an object or an array, with any key as a Bearer",
        (
            "streamlogia/object",
            "streamlogia/sdk-0.4.0-client",
            "streamlogia/jwt-looking-key",
            "streamlogia/seed-raw-http",
        ),
    ),
    23: (
        "200 with JSON: how many, and their ids in order",
        (
            "streamlogia/sdk-0.4.0-client",
            "tests/interop/test_streamlogia.py::test_the_ids_it_is_given_are_the_rows_in_order",
        ),
    ),
    24: (
        "validated as the server does, whole or not at all, every problem by index",
        (
            "streamlogia/every-problem",
            "streamlogia/bad-level",
            "streamlogia/empty-message",
            "streamlogia/empty-source",
            "streamlogia/empty-timestamp",
            "streamlogia/another-project",
            "streamlogia/levels",
        ),
    ),
    25: ("what only Python puts into JSON is kept", ("streamlogia/sdk-0.4.0-odd-values",)),
    26: (
        "a connection for each line, several at once, in any order",
        (
            "tests/interop/test_streamlogia.py::test_every_record_of_the_client_is_stored_once",
            "streamlogia/connection-close",
        ),
    ),
    27: (
        "messages over 8 KB and meta over 64 KB are kept, as by the vendor; the request is what is limited",
        ("streamlogia/long-message-and-meta", "streamlogia/oversized"),
    ),
    28: ("reads: filters and a cursor, with both names of project and time", ("streamlogia/read-*",)),
    29: (
        "either header; 401 in the envelope; the request's id or a ULID",
        (
            "brokle/bearer-and-request-id",
            "brokle/seed-curl",
            "brokle/no-key",
            "brokle/unknown-key-json",
            "brokle/unknown-key-protobuf",
        ),
    ),
    30: (
        "protobuf and JSON, gzip and more, capped on the wire and once decompressed",
        (
            "brokle/sdk-protobuf*",
            "brokle/protobuf-deflate",
            "brokle/protobuf-zstd",
            "brokle/oversized*",
        ),
    ),
    31: ("protobuf behind a JSON label", ("brokle/protobuf-labelled-json", "brokle/traces-protobuf-labelled-json")),
    32: ("OTLP/JSON by OTLP's rules", ("brokle/seed-trace-flags", "otlp/json-lenient", "otlp/sdk-json")),
    33: (
        "the envelope, ULIDs, a count with GenAI events; 400, 413 and 415 by its codes",
        (
            "brokle/seed-request-body",
            "brokle/genai-1-28-json",
            "brokle/truncated-json",
            "brokle/oversized",
            "brokle/wrong-content-type",
        ),
    ),
    34: (
        "no records at all is a 400",
        ("brokle/empty-object", "brokle/empty-json", "brokle/empty-protobuf", "brokle/no-records-protobuf"),
    ),
    35: ("a missing time is the observed one, else arrival", ("brokle/time-falls-back", "otlp/time-falls-back")),
    36: ("attributes are flattened to text", ("brokle/sdk-protobuf", "otlp/sdk-protobuf", "otlp/sdk-json")),
    37: ("GenAI events of every spelling, in the attribute and in the field", ("brokle/genai-*", "otlp/genai-1-28")),
    38: (
        "a whole client runs clean: traces, metrics, the key's check",
        ("brokle/traces-*", "brokle/metrics-*", "brokle/validate-*"),
    ),
    39: (
        "OTLP over HTTP, the SDK's default; there is no gRPC",
        ("tests/interop/test_brokle.py::test_every_record_is_stored_once_with_every_field",),
    ),
}


def test_the_list_has_every_number_once() -> None:
    assert list(CHECKLIST) == list(range(1, 40))


@pytest.mark.parametrize("number", CHECKLIST)
def test_every_behaviour_is_held_by_cases_or_tests_that_are_there(number: int) -> None:
    _, held_by = CHECKLIST[number]
    assert held_by
    for name in held_by:
        path, _, test = name.partition("::")
        if test:
            assert f"def {test}(" in (ROOT / path).read_text(), name
        else:
            assert list(CASES.glob(f"{name}/request.http")), name
