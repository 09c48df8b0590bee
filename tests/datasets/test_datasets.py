"""The documents' own steps: create, register, ingest, query; and who may take them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.datasets.rig import House, Project
from tests.support.projects import running

FIELDS = {"country": "string", "plan": "string", "amount": "number", "active": "boolean", "signup_at": "timestamp"}
RECORD = {
    "timestamp": "2026-06-10T10:58:00Z",
    "context": {"source": "backend", "request_id": "req_123"},
    "country": "RO",
    "plan": "pro",
    "amount": 42.5,
    "active": True,
    "signup_at": "2026-06-01T08:00:00Z",
}
DAY = {"from": "2026-06-10T00:00:00Z", "to": "2026-06-10T23:59:59Z"}
REVENUE = {
    "range": DAY,
    "select": [
        {"field": "country"},
        {"aggregate": "count", "as": "events"},
        {"aggregate": "sum", "field": "amount", "as": "revenue"},
    ],
    "groupBy": ["country"],
    "orderBy": [{"field": "events", "direction": "desc"}],
    "limit": 100,
}
QUEUED = (202, {"success": True, "status": "queued"})
NO_SCHEMA = (404, {"error": "Dataset schema not found"})
NO_DATASET = (404, {"error": "Dataset not found"})


def test_the_steps_of_the_documents_give_the_answers_of_the_documents(project: Project) -> None:
    created = project.control("POST", "", {"name": "Orders", "description": "Paid orders from billing"})
    number = created[1]["dataset"]["id"]
    pending = {
        "id": number,
        "name": "Orders",
        "slug": "orders",
        "description": "Paid orders from billing",
        "schema": None,
        "isDefault": False,
        "status": "pending_schema",
    }
    assert created == (201, {"dataset": pending})
    assert isinstance(number, int)
    assert project.control("GET", f"/{number}/schema") == NO_SCHEMA
    assert project.control("POST", f"/{number}/query", {}) == NO_SCHEMA
    assert project.send(f"/datasets/{number}", RECORD) == NO_SCHEMA

    schema = {"version": 1, "fields": FIELDS}
    registered = {"dataset": {**pending, "schema": schema, "status": "active"}, "schema": schema}
    status, answer = project.control("POST", f"/{number}/schema", {"fields": FIELDS})
    assert (status, answer) == (201, registered)
    assert list(answer["schema"]["fields"]) == list(FIELDS), "in the order of the declaration"
    assert project.control("GET", f"/{number}/schema") == (200, registered)
    assert project.control("GET") == (200, {"datasets": [registered["dataset"]]})

    assert project.send(f"/datasets/{number}", RECORD, X_Request_Id="req-7") == QUEUED
    more = [{**RECORD, "amount": 20}, {**RECORD, "country": "US", "amount": 5}]
    assert project.send(f"/datasets/{number}/batch", more) == QUEUED
    project.house.gateway.wait_until_stored()
    assert project.control("POST", f"/{number}/query", REVENUE) == (
        200,
        {
            "rows": [
                {"country": "RO", "events": "2", "revenue": 62.5},
                {"country": "US", "events": "1", "revenue": 5},
            ],
            "dataset": {"id": number, "name": "Orders", "slug": "orders"},
        },
    )
    stored = project.house.gateway.query(f"SELECT context, __traceId FROM dataset_{number} WHERE amount = 42.5")
    assert stored == [{"context": '{"source":"backend","request_id":"req_123"}', "__traceId": "req-7"}]


def test_a_schema_is_registered_once(project: Project) -> None:
    number = project.dataset(FIELDS)
    for again in (FIELDS, {"fields": FIELDS}, {"other": "string"}):
        status, answer = project.control("POST", f"/{number}/schema", again)
        assert (status, "never changes" in answer["error"]) == (409, True)
    assert project.control("GET", f"/{number}/schema")[1]["schema"]["fields"] == FIELDS


def test_of_many_registrations_at_once_one_wins_and_the_table_is_its(project: Project) -> None:
    number = project.control("POST", "", {"name": "Race"})[1]["dataset"]["id"]

    async def race() -> list[int]:
        tries = (
            asyncio.to_thread(project.control, "POST", f"/{number}/schema", {f"f{place}": "number"})
            for place in range(6)
        )
        return sorted([status for status, _ in await asyncio.gather(*tries)])

    assert asyncio.run(race()) == [201, 409, 409, 409, 409, 409]
    (field,) = project.control("GET", f"/{number}/schema")[1]["schema"]["fields"]
    record = {"timestamp": "2026-06-10T10:58:00Z", "context": {}, field: 1}
    assert project.send(f"/datasets/{number}", record) == QUEUED
    assert project.rows(number, {"range": DAY, "select": [{"field": field}]}) == [{field: 1}]


def test_the_paths_without_an_id_mean_the_default_dataset(project: Project) -> None:
    assert project.control("GET", "/schema") == NO_SCHEMA
    assert project.control("POST", "/query", {}) == NO_SCHEMA
    assert project.send("/datasets", RECORD) == NO_SCHEMA
    status, answer = project.control("POST", "/schema", FIELDS)
    assert (status, answer["dataset"]["isDefault"], answer["dataset"]["status"]) == (201, True, "active")
    assert project.control("POST", "/schema", FIELDS)[0] == 409
    assert project.control("GET", "/schema")[1]["schema"]["fields"] == FIELDS
    assert project.send("/datasets", RECORD) == QUEUED
    assert project.send("/datasets/batch", [RECORD, RECORD]) == QUEUED
    project.house.gateway.wait_until_stored()
    assert project.control("POST", "/query", {"range": DAY})[1]["rows"] == [{"count": "3"}]


def test_a_header_names_the_dataset_on_the_paths_without_an_id(project: Project) -> None:
    number = project.dataset({"word": "string"})
    record = {"timestamp": "2026-06-10T10:58:00Z", "context": {}, "word": "here"}
    assert project.send("/datasets", record, X_Loguro_Dataset_Id=str(number)) == QUEUED
    assert project.send("/datasets/batch", [record], X_Loguro_Dataset_Id=str(number)) == QUEUED
    assert project.send("/datasets", record, X_Loguro_Dataset_Id="none") == NO_DATASET
    assert project.rows(number, {"range": DAY}) == [{"count": "2"}]


def test_another_projects_dataset_is_not_there(project: Project, other: Project) -> None:
    number = project.dataset(FIELDS)
    assert other.send(f"/datasets/{number}", RECORD) == NO_DATASET
    assert other.send("/datasets", RECORD, X_Loguro_Dataset_Id=str(number)) == NO_DATASET
    for method, path in (
        ("GET", f"/{number}"), ("PATCH", f"/{number}"), ("DELETE", f"/{number}"), ("GET", f"/{number}/schema"),
        ("POST", f"/{number}/schema"), ("POST", f"/{number}/query"),
    ):  # fmt: skip
        body = None if method in ("GET", "DELETE") else {"fields": FIELDS} if path.endswith("schema") else {}
        assert other.control(method, path, body) == NO_DATASET, (method, path)
    assert project.rows(number, {"range": DAY}) == [{"count": "0"}]
    assert project.send(f"/datasets/{number}", RECORD) == QUEUED


def test_control_takes_a_token_and_ingest_a_key(house: House, project: Project) -> None:
    number = project.dataset(FIELDS)
    path = f"/api/datasets/{project.slug}"
    for token in (None, project.key, "pat_" + "a" * 40, house.token[:-1], "pat_" + "a" * 5_000, "pat_1"):
        status, answer = house.ask("GET", path, token=token)
        assert (status, list(answer)) == (401, ["error"])
        assert token is None or token not in answer["error"]
    assert house.ask("POST", f"/datasets/{number}", RECORD, token=house.token)[0] == 401


def test_what_is_not_there_is_404(house: House, project: Project) -> None:
    assert house.ask("GET", "/api/datasets/nobody", token=house.token) == (404, {"error": "Project not found"})
    for slug in ("No%20Slug", "a%00b", "%27%3B--", "x" * 300):
        assert house.ask("GET", f"/api/datasets/{slug}", token=house.token)[0] == 404
    for number in ("0", "999999", "99999999999999999999", "-1", "1e3", "abc", "1%00", "%D9%A1", "1;DROP"):
        assert project.control("GET", f"/{number}/schema") == NO_DATASET
        assert project.control("POST", f"/{number}/query", {}) == NO_DATASET
        assert project.send(f"/datasets/{number}", RECORD) == NO_DATASET
    assert project.control("PUT", "/1")[0] == 405


def test_names_change_and_slugs_stay(project: Project) -> None:
    number = project.dataset(FIELDS)
    status, answer = project.control("PATCH", f"/{number}", {"name": "Sales", "description": "d"})
    changed = answer["dataset"]
    assert (status, changed["name"], changed["slug"], changed["description"]) == (200, "Sales", "orders", "d")
    assert project.control("PATCH", f"/{number}", {})[1]["dataset"] == changed
    assert project.control("GET", f"/{number}")[1]["dataset"] == changed
    slugs = [
        project.control("POST", "", {"name": name})[1]["dataset"]["slug"] for name in ("Orders!", "Órders", "東京")
    ]
    assert slugs == ["orders-2", "orders-3", "dataset"]


def test_a_deleted_dataset_takes_nothing_and_answers_nothing(project: Project) -> None:
    number = project.dataset(FIELDS)
    assert project.send(f"/datasets/{number}", RECORD) == QUEUED
    assert project.control("DELETE", f"/{number}") == (200, {"success": True})
    assert project.send(f"/datasets/{number}", RECORD) == NO_DATASET
    assert project.control("POST", f"/{number}/query", {}) == NO_DATASET
    assert project.control("DELETE", f"/{number}") == NO_DATASET
    assert project.control("GET") == (200, {"datasets": []})
    project.house.gateway.wait_until_stored()
    assert project.dataset(FIELDS) > number, "an id is never given out again"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"Orders"',
        b"{}",
        b'{"name":5}',
        b'{"name":""}',
        b'{"name":"a\\u0000b"}',
        b'{"name":"\xff"}',
        b'{"name":"' + b"x" * 201 + b'"}',
        b'{"name":"x","description":5}',
        b'{"name":"x","description":"\\u0000"}',
    ],
)
def test_a_dataset_needs_a_name(project: Project, body: bytes) -> None:
    status, answer = project.control("POST", "", body)
    assert (status, list(answer)) == (400, ["error"])


def test_bodies_are_at_most_a_mebibyte(project: Project) -> None:
    number = project.dataset(FIELDS)
    large = b" " * (1 << 20) + b"{}"
    assert project.control("POST", f"/{number}/query", large)[0] == 413
    assert project.send(f"/datasets/{number}", large)[0] == 413


def test_a_project_has_at_most_a_hundred_datasets(project: Project) -> None:
    made = [project.control("POST", "", {"name": "one of many"})[0] for _ in range(101)]
    assert made == [201] * 100 + [409]


def test_datasets_survive_a_restart(tmp_path: Path) -> None:
    with running(tmp_path / "var") as gateway:
        before = House(gateway).project("shop")
        number = before.dataset(FIELDS)
        assert before.send(f"/datasets/{number}", RECORD) == QUEUED
        assert gateway.stop() == 0
        gateway.start()
        after = Project(House(gateway), "shop", before.key)
        assert after.send(f"/datasets/{number}", RECORD) == QUEUED
        assert after.rows(number, {"range": DAY}) == [{"count": "2"}]
        assert after.control("POST", f"/{number}/schema", FIELDS)[0] == 409


def test_what_a_registration_that_failed_left_behind_is_replaced_unless_it_holds_rows(project: Project) -> None:
    gateway = project.house.gateway
    number = project.control("POST", "", {"name": "Orders"})[1]["dataset"]["id"]
    gateway.query(f"CREATE TABLE dataset_{number} (other String) ENGINE = MergeTree ORDER BY other")
    gateway.query(f"INSERT INTO dataset_{number} VALUES ('somebody else''s')")
    status, answer = project.control("POST", f"/{number}/schema", FIELDS)
    assert (status, f"dataset_{number}" in answer["error"]) == (503, True)
    assert project.control("GET", f"/{number}/schema") == NO_SCHEMA
    gateway.query(f"TRUNCATE TABLE dataset_{number}")
    assert project.control("POST", f"/{number}/schema", FIELDS)[0] == 201
    assert project.send(f"/datasets/{number}", RECORD) == QUEUED
    assert project.rows(number, {"range": DAY}) == [{"count": "1"}]
