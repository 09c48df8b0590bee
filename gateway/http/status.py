"""How a project is: its last heartbeats and its rate of errors, over all and by service.

    GET /api/v1/projects/{project_id}/status?timeout_s=120

``timeout_s`` is how long a service may be silent, 120 (which it is when not given) to 300 seconds. Errors are
``{"detail": ...}``: 400 names the parameter, otherwise as of the other reads. See docs/reading.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from gateway.dialects.dialect import Reply
from gateway.http.api import ApiRequest, ApiRoute, json_reply
from gateway.http.reads import Projects, asked, error_body, known, project_named, whole
from gateway.reading.status import TIMEOUT_S_MAX, TIMEOUT_S_MIN, StatusReader


def routes(reader: StatusReader, projects: Projects) -> list[ApiRoute]:
    """The path above."""
    return [ApiRoute("GET", "/api/v1/projects/{project_id}/status", _Status(reader, projects).status, error_body)]


@dataclass(frozen=True, slots=True)
class _Status:
    _reader: StatusReader
    _projects: Projects

    async def status(self, request: ApiRequest) -> Reply:
        sent = known(request.query_pairs, ("timeout_s",))
        timeout_s = whole("timeout_s", sent.get("timeout_s", str(TIMEOUT_S_MIN)), TIMEOUT_S_MIN, TIMEOUT_S_MAX)
        project = await project_named(self._projects, request.path_values["project_id"])
        answer = self._reader.status(project.id, timeout_s)
        return json_reply(200, await asked(answer, "The project's logs of the last day take too long to count"))
