"""What a browser is told before it posts, by keys that come and go; no browser needed."""

from __future__ import annotations

import urllib.error
import urllib.request

import pytest

from tests.interop.rig import Project, Weir, poll

pytestmark = pytest.mark.interop

PATHS = ("/", "/batch", "/v1/logs", "/api/v1/logs/batch", "/api/v1/errors", "/v1/errors", "/v1/ingest", "/v1/ndjson")


def ask(weir: Weir, path: str, origin: str) -> tuple[int, str | None]:
    """Status and allowed origin of the answer to a preflight."""
    headers = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    request = urllib.request.Request(f"{weir.url}{path}", headers=headers, method="OPTIONS")
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.headers["Access-Control-Allow-Origin"]
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers["Access-Control-Allow-Origin"]


@pytest.mark.parametrize("path", PATHS)
def test_on_every_path_an_origin_is_allowed_to_the_letter_and_no_other(weir: Weir, path: str) -> None:
    page = "http://localhost:3000"  # the demo project's
    assert ask(weir, path, page) == (204, page)
    for other in (
        "http://localhost:3001",
        "https://localhost:3000",
        "http://localhost",
        "http://127.0.0.1:3000",
        "null",
    ):
        assert ask(weir, path, other) == (403, None), other


def test_an_origin_is_allowed_as_long_as_a_key_for_it_lives(project: Project) -> None:
    weir, page = project.weir, "https://shop.example:8443"
    assert ask(weir, "/", page) == (403, None)
    project.key("loguro", origins=[page])
    poll(lambda: ask(weir, "/", page) == (204, page), "the page is allowed", within_s=1)
    [record] = weir.manage(lambda store: store.list_keys(project.slug))
    assert weir.manage(lambda store: store.revoke_key(record.id))
    poll(lambda: ask(weir, "/", page) == (403, None), "the page is not allowed any more", within_s=1)
