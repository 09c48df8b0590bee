"""What a new user does: start it, paste the printed lines, look at the result."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import stat
import subprocess
import urllib.request

import pytest

from tests.end_to_end.conftest import NewGateway
from tests.end_to_end.gateway_process import ROOT, GatewayProcess, poll


def pasted(line: str) -> str:
    """What a printed curl line answers: run by a shell where there is curl, else read and done by hand."""
    if shutil.which("curl") and shutil.which("bash"):
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=30, check=True)
        return done.stdout
    words = shlex.split(line)
    url = next(word for word in words if word.startswith("http://"))
    data = next(words[at + 1] for at, word in enumerate(words) if word in ("-d", "--data-binary"))
    headers = dict(words[at + 1].split(": ") for at, word in enumerate(words) if word == "-H")
    with urllib.request.urlopen(urllib.request.Request(url, data.encode(), headers), timeout=30) as answer:
        return f"HTTP/1.1 {answer.status}\r\n\r\n{answer.read().decode()}"


def test_the_printed_lines_work_as_pasted_and_the_printed_query_shows_the_rows(gateway: GatewayProcess) -> None:
    lines = re.findall(r"^curl .*$", gateway.told, re.MULTILINE)
    *sends, query = lines
    statuses = [re.match(r"HTTP/1.1 (\d+)", pasted(line)) for line in sends]
    assert [match and match[1] for match in statuses] == ["200", "202", "202", "200", "200", "200"], gateway.told
    said = [greeting for line in sends for greeting in re.findall(r"Hello from \w+", line)]
    assert len(set(said)) == len(sends)
    poll(
        lambda: all(greeting in (shown := pasted(query)) and shown for greeting in said),
        within_s=10,
        what="the printed query shows all records",
    )


def test_the_lines_of_the_readme_work_as_pasted(gateway: GatewayProcess) -> None:
    readme = (ROOT / "README.md").read_text()
    listen = gateway.listen
    for documented, real in (
        ("127.0.0.1:8080", listen["ingest"][0]),
        ("http://127.0.0.1:8123", listen["clickhouse"]),
        ("'$KEY'", gateway.demo["keys"]["loguro"]),
        ("$KEY", gateway.demo["keys"]["loguro"]),
        ("$BROKLE", gateway.demo["keys"]["brokle"]),
    ):
        readme = readme.replace(documented, real)
    *sends, query = re.findall(r"^curl .*$", readme, re.MULTILINE)
    replies = [pasted(line).rpartition("\r\n\r\n")[2] for line in sends]
    for reply, expected in zip(
        replies, ("{}", '"queued"', '"accepted":1', '"ingested":1', '"event_count":1', '"accepted":1'), strict=True
    ):
        assert expected in reply.replace(" ", ""), reply
    said = [greeting for line in sends for greeting in re.findall(r"Hello from \w+", line)]
    poll(lambda: all(greeting in pasted(query) for greeting in said), within_s=10, what="all rows are shown")


def test_listen_json_says_where_it_listens(gateway: GatewayProcess) -> None:
    listen = gateway.listen
    assert set(listen) == {"ingest", "admin", "clickhouse"}
    assert (len(listen["ingest"]), len(listen["admin"])) == (2, 1)
    for address in (*listen["ingest"], *listen["admin"]):
        assert re.fullmatch(r"127\.0\.0\.1:[1-9]\d*", address)
        assert address in gateway.told
    assert listen["clickhouse"] in gateway.told


def test_demo_json_holds_every_secret_for_its_owner_alone(gateway: GatewayProcess) -> None:
    demo = gateway.demo
    assert set(demo) == {"project", "project_id", "keys", "pat", "admin_token"}
    assert demo["project"] == "demo"
    assert set(demo["keys"]) == {"loguro", "browser", "proliferate", "streamlogia", "brokle"}
    assert demo["keys"]["proliferate"].startswith("pk_")
    assert demo["keys"]["brokle"].startswith("bk_")
    assert demo["pat"].startswith("pat_")
    for name in ("demo.json", "admin_token", "postgres.dsn", "keys.snapshot"):
        assert stat.S_IMODE((gateway.data_dir / name).stat().st_mode) == 0o600, name
    for secret in (*demo["keys"].values(), demo["pat"], demo["admin_token"]):
        assert secret in gateway.told
        assert secret not in gateway.log()


@pytest.mark.parametrize(
    ("origin", "status"), [("http://localhost:3000", 202), ("http://localhost:3001", 403), ("null", 403), ("", 403)]
)
def test_the_demo_browser_key_is_for_its_origin(gateway: GatewayProcess, origin: str, status: int) -> None:
    headers = {"Origin": origin} if origin else {}
    assert gateway.post("/", b'{"message":"from a page"}', gateway.demo["keys"]["browser"], **headers) == status


def test_the_probes_answer(gateway: GatewayProcess) -> None:
    for path in ("/livez", "/readyz", "/readyz?verbose", "/healthz", "/-/healthy", "/-/ready", "/metrics"):
        assert gateway.request(path, None, {}, at="admin")[0] == 200, path
    assert gateway.request("/healthz", None, {})[0] == 200


def test_what_the_management_commands_print_is_json(gateway: GatewayProcess) -> None:
    keys = json.loads(gateway.command("keys", "list", "--project", "demo", "--json").stdout)
    assert {key["dialect"] for key in keys} >= {"loguro", "proliferate", "streamlogia", "brokle"}
    assert not any(secret in json.dumps(keys) for secret in gateway.demo["keys"].values())
    projects = json.loads(gateway.command("projects", "list", "--json").stdout)
    assert [project["id"] for project in projects if project["slug"] == "demo"] == [gateway.demo["project_id"]]


def test_a_created_key_works_and_a_revoked_one_stops_within_a_second(gateway: GatewayProcess) -> None:
    made = gateway.command("keys", "create", "--project", "demo", "--dialect", "loguro", "--json")
    key = json.loads(made.stdout)
    poll(lambda: gateway.post("/", b'{"message":"new"}', key["secret"]) == 202, within_s=1, what="the new key works")
    assert gateway.command("keys", "revoke", key["id"]).returncode == 0
    poll(
        lambda: gateway.post("/", b'{"message":"old"}', key["secret"]) == 401, within_s=1, what="the key stops working"
    )
    again = gateway.command("keys", "revoke", key["id"])
    assert (again.returncode, key["id"] in again.stderr) == (1, True)


def test_a_revoked_token_stops_within_a_second_and_is_listed_without_its_secret(gateway: GatewayProcess) -> None:
    pat = json.loads(gateway.command("pat", "create", "ada", "--json").stdout)

    def status() -> int:
        return gateway.request("/api/datasets/demo", None, {"Authorization": f"Bearer {pat['secret']}"})[0]

    assert status() == 200
    assert gateway.command("pat", "revoke", pat["id"]).returncode == 0
    poll(lambda: status() == 401, within_s=1, what="the token stops working")
    listed = gateway.command("pat", "list", "--json").stdout
    assert {token["name"]: bool(token["revoked_at"]) for token in json.loads(listed)} == {"demo": False, "ada": True}
    assert pat["secret"] not in listed
    again = gateway.command("pat", "revoke", pat["id"])
    assert (again.returncode, pat["id"] in again.stderr) == (1, True)


def test_a_project_of_its_own_has_rows_of_its_own(gateway: GatewayProcess) -> None:
    project = json.loads(gateway.command("projects", "create", "own", "--json").stdout)
    made = gateway.command("keys", "create", "--project", "own", "--dialect", "otlp", "--json")
    key = json.loads(made.stdout)["secret"]
    poll(lambda: gateway.post("/batch", b'[{"message":"a"},{"message":"b"}]', key) == 202, within_s=1, what="taken")
    where = f"ProjectId = '{project['id']}'"
    poll(lambda: gateway.count(where) == 2, within_s=10, what="its rows are stored")
    rows = gateway.query(f"SELECT ProjectId AS project, Body AS text FROM otel_logs WHERE {where} ORDER BY text")
    assert rows == [{"project": project["id"], "text": text} for text in ("a", "b")]
    demo = gateway.demo["keys"]["loguro"]
    assert gateway.post("/batch", b'[{"message":"another project\'s"}]', demo) == 202
    others = "Body = 'another project\\'s'"
    poll(lambda: gateway.count(others) == 1, within_s=10, what="the other project's row is stored")
    assert gateway.count(f"{where} AND {others}") == 0
    assert gateway.count(where) == 2


def test_a_project_keeps_as_much_of_genai_content_as_it_says(gateway: GatewayProcess) -> None:
    gateway.command("projects", "create", "private", "--json")
    key = json.loads(gateway.command("keys", "create", "--project", "private", "--dialect", "otlp", "--json").stdout)
    event = {"body": {"stringValue": "a secret plan"}, "eventName": "gen_ai.user.message", "attributes": []}
    body = json.dumps({"resourceLogs": [{"scopeLogs": [{"logRecords": [event]}]}]}).encode()

    def stored() -> list[str]:
        kept = f"ProjectId = '{key['project_id']}'"
        logs = gateway.query(f"SELECT Body AS text FROM otel_logs WHERE {kept} ORDER BY ObservedTimestamp")
        events = gateway.query(f"SELECT InputMessages AS text FROM genai_events WHERE {kept} ORDER BY Timestamp")
        return [row["text"] for row in (*logs, *events)]

    poll(lambda: gateway.post("/v1/logs", body, key["secret"]) == 200, within_s=2, what="the new key works")
    poll(lambda: stored() == ["a secret plan"] * 2, within_s=10, what="all content is stored")
    assert gateway.command("projects", "set", "private", "--genai-content", "none").returncode == 0
    poll(
        lambda: gateway.post("/v1/logs", body, key["secret"]) == 200 and "" in stored(),
        within_s=10,
        what="no content is stored any more",
    )
    assert gateway.command("projects", "set", "private", "--genai-content", "some").returncode == 2


def test_wrong_usage_and_failures_have_their_exit_codes(gateway: GatewayProcess) -> None:
    assert gateway.command("projects").returncode == 2
    assert gateway.command("keys", "create", "--project", "none", "--dialect", "otlp").returncode == 1
    assert gateway.command("check").returncode == 0


def test_a_second_gateway_on_the_same_directory_is_refused(gateway: GatewayProcess) -> None:
    second = gateway.command("serve")
    assert second.returncode == 1
    assert f"in use by process {gateway.pid}" in second.stderr
    assert gateway.post("/", b'{"message":"still here"}', gateway.demo["keys"]["loguro"]) == 202


def test_an_address_that_is_taken_is_named_and_the_next_start_is_still_the_first(
    gateway: GatewayProcess, new_gateway: NewGateway
) -> None:
    taken = gateway.listen["ingest"][0]
    second = new_gateway("second", WEIR__INGEST__LISTEN=taken)
    refused = second.command("serve")
    assert refused.returncode == 1
    assert refused.stderr.splitlines()[-1].startswith(f"weir: cannot listen on {taken}")
    assert refused.stdout == ""
    assert gateway.post("/", b'{"message":"still here"}', gateway.demo["keys"]["loguro"]) == 202
    second.environ["WEIR__INGEST__LISTEN"] = "127.0.0.1:0"
    second.start()
    assert "curl" in second.told, "nobody has seen the keys yet"
    assert second.post("/", b'{"message":"at last"}', second.demo["keys"]["loguro"]) == 202


def test_a_first_start_that_died_half_way_is_made_good(new_gateway: NewGateway) -> None:
    gateway = new_gateway().start()
    lost = gateway.demo["keys"]["loguro"]
    assert gateway.stop()[0] == 0
    (gateway.data_dir / "demo.json").write_text("{}")
    gateway.start()
    found = gateway.demo["keys"]["loguro"]
    assert "curl" in gateway.told
    assert gateway.post("/", b'{"message":"the new key"}', found) == 202
    assert gateway.post("/", b'{"message":"a key nobody has seen"}', lost) == 401


def test_migrating_beside_a_running_gateway_finds_everything_there(gateway: GatewayProcess) -> None:
    assert gateway.command("migrate").stdout == "Everything is there.\n"
