"""A page in a headless Chromium, with a browser key: from an allowed origin, and from a foreign one."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.interop.browser import CHROMIUM, Site, site, visit
from tests.interop.rig import Project, poll

pytestmark = [
    pytest.mark.interop,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium installed: apt-get install chromium"),
]

JSON = "application/json"


@pytest.fixture
def shop() -> Iterator[Site]:
    with site() as served:
        yield served


@pytest.fixture
def stranger() -> Iterator[Site]:
    with site() as served:
        yield served


def log(project: Project, key: str, message: str, path: str = "/") -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {key}", "Content-Type": JSON, "X-Request-Id": "page-1"}
    body = json.dumps({"level": "error", "message": message, "context": {"path": "/checkout"}})
    return {"url": project.weir.url + path, "headers": headers, "body": body}


def beacon(project: Project, key: str, message: str) -> dict[str, Any]:
    """What Proliferate's script sends when its page is closed: no header can be set, the key is in the body."""
    entry = {"level": "error", "message": message, "timestamp": time.time()}
    body = json.dumps({"api_key": key, "logs": [entry]})
    return {"beacon": True, "url": f"{project.weir.url}/api/v1/logs/batch", "body": body}


def stored(project: Project) -> list[str]:
    return sorted(row["Body"] for row in project.rows())


def test_a_page_of_an_allowed_origin_logs_and_reads_every_answer(project: Project, shop: Site) -> None:
    key = project.key("loguro", origins=[shop.origin])
    seen = visit(
        shop,
        [
            log(project, key, "first"),
            log(project, key, "second"),
            log(project, "nobody", "with a wrong key"),
            {**log(project, key, ""), "body": "{"},
            log(project, key, "lost", path="/wrong"),
            {**log(project, key, ""), "body": "x" * 1_100_000},
        ],
    )
    assert [answer.get("status") for answer in seen] == [202, 202, 401, 400, 404, 413]
    assert {answer["type"] for answer in seen} == {"cors"}
    assert all("x-request-id" in answer["headers"] for answer in seen)
    assert json.loads(seen[0]["body"]) == {"success": True, "status": "queued"}
    assert "unknown or was revoked" in json.loads(seen[2]["body"])["error"]
    assert all(json.loads(answer["body"])["error"] for answer in seen[2:])
    assert stored(project) == ["first", "second"]
    [row] = [row for row in project.rows() if row["Body"] == "first"]
    assert (row["LogAttributes"], row["TraceId"], row["SeverityNumber"]) == ({"path": "/checkout"}, "page-1", 17)


def test_a_page_of_a_foreign_origin_is_refused_and_sees_nothing(project: Project, shop: Site, stranger: Site) -> None:
    key = project.key("loguro", origins=[shop.origin])
    simple = {"url": f"{project.weir.url}/", "headers": {"Content-Type": "text/plain"}, "body": '{"message":"x"}'}
    seen = visit(stranger, [log(project, key, "stolen"), log(project, "nobody", "stolen"), simple])
    assert seen == [{"error": "TypeError"}] * 3
    assert visit(shop, [log(project, key, "own")])[0]["status"] == 202
    assert stored(project) == ["own"]


def test_an_origin_that_another_key_allows_is_told_why_this_key_is_refused(
    project: Project, shop: Site, stranger: Site
) -> None:
    key = project.key("loguro", origins=[shop.origin])
    project.key("loguro", origins=[stranger.origin])
    [answer] = visit(stranger, [log(project, key, "stolen")])
    assert answer["status"] == 403
    assert stranger.origin in json.loads(answer["body"])["error"]
    assert stored(project) == []


def test_beacons_arrive_from_an_allowed_origin_only(project: Project, shop: Site, stranger: Site) -> None:
    key = project.key("proliferate", origins=[shop.origin])
    refused = project.weir.refused("origin", "proliferate")

    def refused_one() -> None:
        poll(lambda: project.weir.refused("origin", "proliferate") == refused + 1, "the stranger's beacon is refused")

    def stored_one() -> None:
        poll(lambda: stored(project) == ["leaving ✓"], "the shop's beacon is stored")

    assert visit(stranger, [beacon(project, key, "stolen")], refused_one) == [{"queued": True}]
    assert visit(shop, [beacon(project, key, "leaving ✓")], stored_one) == [{"queued": True}]


def test_a_beacon_of_a_page_that_stays_is_answered_as_its_script_expects(
    project: Project, shop: Site, stranger: Site
) -> None:
    key = project.key("proliferate", origins=[shop.origin])
    # The same request as a beacon's, whose answer a page is not shown.
    post = {**beacon(project, key, "here"), "beacon": False, "headers": {"Content-Type": "text/plain"}}
    [foreign] = visit(stranger, [{**post, "mode": "no-cors"}])
    assert [foreign["type"], foreign["status"]] == ["opaque", 0]
    [own] = visit(shop, [post])
    assert [own["status"], json.loads(own["body"])] == [202, {"accepted": 1, "dropped": 0}]
    assert stored(project) == ["here"]
