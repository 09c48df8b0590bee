"""Settings: where they come from, what is refused, and that the shipped file tells the truth."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from gateway import config
from gateway.config import Config, ConfigError

ROOT = Path(__file__).resolve().parents[2]


def written(folder: Path, text: str) -> Path:
    path = folder / "weir.toml"
    path.write_text(text)
    return path


def problems_of(path: Path | None, **environ: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        config.load(path, environ)
    return caught.value.problems


def test_without_a_file_and_an_environment_the_defaults_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert config.load(None, {}) == Config()


def test_the_defaults_do_not_contradict_each_other() -> None:
    assert list(config.contradictions(Config())) == []


def test_the_shipped_file_is_the_defaults_with_every_key_and_its_meaning() -> None:
    shipped = (ROOT / "config" / "weir.toml").read_text()
    assert shipped.partition("\n\n")[2] == config.to_toml(config.masked(Config()))
    assert config.load(ROOT / "config" / "weir.toml", {}) == Config()


def test_every_key_has_a_meaning() -> None:
    assert [key for key, _, meaning in config.fields() if not meaning] == []


def test_what_is_printed_reads_back_as_what_is_in_force(tmp_path: Path) -> None:
    before = config.load(None, {"WEIR__DATA_DIR": 'a "b" \\ é', "WEIR__INGEST__LISTEN": "127.0.0.1:0"})
    assert config.load(written(tmp_path, config.to_toml(config.masked(before))), {}) == before


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, '[delivery]\nshards = 1\nbatch_rows = 5\n[ingest]\nlisten = ["127.0.0.1:1"]\n')
    loaded = config.load(path, {"WEIR__DELIVERY__SHARDS": "2", "WEIR__INGEST__LISTEN": "127.0.0.1:0, [::1]:0"})
    assert (loaded.delivery.shards, loaded.delivery.batch_rows) == (2, 5)
    assert loaded.ingest.listen == ["127.0.0.1:0", "[::1]:0"]


def test_a_section_given_in_part_keeps_its_own_defaults(tmp_path: Path) -> None:
    loaded = config.load(written(tmp_path, "[limits.loguro]\ninflated_bytes_max = 2_000_000\n"), {})
    assert loaded.limits.loguro.body_bytes_max == 1024 * 1024


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[ingest]\nlistn = []", "unknown key ingest.listn. Did you mean ingest.listen?"),
        ("shards = 2", "unknown key shards. Did you mean delivery.shards?"),
        ("[ingress]\nx = 1", "unknown key ingress. Did you mean ingest?"),
        ("zzz = 2", "unknown key zzz. See config/weir.toml"),
        ("ingest = 3", "ingest is a section: write [ingest]"),
        ("[delivery]\nshards = 'two'", "delivery.shards: Expected `int`, got `str`"),
        ("[delivery]\nshards = 0", "delivery.shards: Expected `int` >= 1"),
        ("[log]\nlevel = 'loud'", "log.level: Expected `str` matching"),
        ("[clickhouse]\ndatabase = 'a b'", "clickhouse.database"),
        ("[ingest", "is not TOML"),
        ("  \n", "is empty"),
    ],
)
def test_a_wrong_file_is_refused_with_what_to_change(tmp_path: Path, text: str, said: str) -> None:
    path = written(tmp_path, text)
    [problem] = problems_of(path)
    assert problem.startswith(f"{path}: ")
    assert said in problem


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert "cannot be read: No such file" in problems_of(tmp_path / "none.toml")[0]


def test_every_problem_is_told_at_once(tmp_path: Path) -> None:
    path = written(tmp_path, "[delivery]\nshards = 0\nshrads = 1\n")
    assert len(problems_of(path, WEIR__INGEST__LISTN="x", WEIR__LIMITS__COLUMN_BYTES_MAX="many")) == 4


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("WEIR__INGEST__LISTN", "x", "unknown variable WEIR__INGEST__LISTN. Did you mean WEIR__INGEST__LISTEN?"),
        ("WEIR__DELIVERY__SHARDS", "two", "WEIR__DELIVERY__SHARDS: Expected `int`, got `str`"),
        ("WEIR__DATA_DIR", "", "WEIR__DATA_DIR: Expected `str` of length >= 1"),
    ],
)
def test_a_wrong_variable_is_refused_by_its_name(name: str, value: str, said: str) -> None:
    [problem] = problems_of(None, **{name: value})
    assert said in problem


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"WEIR__INGEST__LISTEN": ""}, "ingest.listen is empty"),
        ({"WEIR__INGEST__LISTEN": "localhost"}, "'localhost' is not host:port"),
        ({"WEIR__INGEST__LISTEN": "localhost:70000"}, "'localhost:70000' is not host:port"),
        ({"WEIR__ADMIN__LISTEN": "127.0.0.1:8080"}, "admin.listen: 127.0.0.1:8080 is already in ingest.listen"),
        ({"WEIR__CLICKHOUSE__URL": "tcp://host:9000"}, "clickhouse.url must be http://"),
        ({"WEIR__CLICKHOUSE__URL": "http://[::1:8123"}, "clickhouse.url must be http://"),
        ({"WEIR__CLICKHOUSE__URL": "http://host:99999"}, "clickhouse.url must be http://"),
        ({"WEIR__POSTGRES__DSN": "postgresql://weir:password@[::1/weir"}, "postgres.dsn must begin with postgresql://"),
        ({"WEIR__POSTGRES__DSN": "host=a password=b"}, "postgres.dsn must begin with postgresql://"),
        ({"WEIR__DELIVERY__BLOCK_AGE_MS": "600"}, "delivery.block_age_ms (600) is more than delivery.batch_age_ms"),
        ({"WEIR__DELIVERY__BATCH_BYTES": "8192"}, "delivery.block_bytes (262144) is more than delivery.batch_bytes"),
        ({"WEIR__DELIVERY__RETRY_FIRST_MS": "9000"}, "delivery.retry_first_ms (9000) is more than"),
        (
            {"WEIR__DELIVERY__SPOOL_BYTES_MAX": "2000000"},
            "delivery.segment_bytes (67108864) is more than a worker's part",
        ),
        (
            {"WEIR__WORKERS": "4", "WEIR__DELIVERY__SEGMENT_BYTES": "3000000000"},
            "a worker's part of the spool (2684354560",
        ),
        ({"WEIR__DELIVERY__INSERTS_IN_FLIGHT": "64"}, "delivery.batch_bytes x delivery.inserts_in_flight"),
        ({"WEIR__DELIVERY__SHARDS": "3"}, "limits.column_bytes_max (100663296) is more than one shard holds"),
        (
            {"WEIR__LIMITS__PROJECT_REQUESTS_IN_FLIGHT_MAX": "2000"},
            "limits.project_requests_in_flight_max (2000) is more than limits.requests_in_flight_max (1024)",
        ),
        ({"WEIR__LIMITS__BYTES_IN_FLIGHT_MAX": "2000000"}, "less than the largest otlp request takes"),
        ({"WEIR__LIMITS__LOGURO__BODY_BYTES_MAX": "2000000"}, "limits.loguro.body_bytes_max (2000000) is more than"),
        (
            {"WEIR__DELIVERY__SHARDS": "8", "WEIR__LIMITS__COLUMN_BYTES_MAX": "1000000"},
            "limits.otlp.inflated_bytes_max (67108864) is more than one shard holds (33554432",
        ),
        (
            {
                "WEIR__DELIVERY__BLOCK_BYTES": "64000000",
                "WEIR__DELIVERY__BATCH_BYTES": "64000000",
                "WEIR__DELIVERY__INSERTS_IN_FLIGHT": "1",
            },
            "delivery.block_bytes (64000000) is more than a quarter of what one shard holds",
        ),
        ({"WEIR__SHUTDOWN__DELAY_MS": "5000"}, "a stop must end within 10000 ms"),
        (
            {"WEIR__ALERTS__WEBHOOK_HOSTS": "*,https://hooks.example.com/x"},
            "'https://hooks.example.com/x' is not the name of a host",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(environ: dict[str, str], said: str) -> None:
    assert any(said in problem for problem in problems_of(None, **environ))


def test_a_secret_comes_from_its_file(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("s3cret\n")
    loaded = config.load(None, {"WEIR__CLICKHOUSE__PASSWORD_FILE": str(tmp_path / "password")})
    assert loaded.clickhouse.password == "s3cret"


def test_a_secret_comes_from_a_systemd_credential(tmp_path: Path) -> None:
    (tmp_path / "admin.token").write_text("token\n")
    assert config.load(None, {"CREDENTIALS_DIRECTORY": str(tmp_path)}).admin.token == "token"


def test_a_secret_given_twice_or_not_readable_is_refused(tmp_path: Path) -> None:
    both = problems_of(None, WEIR__ADMIN__TOKEN="a", WEIR__ADMIN__TOKEN_FILE="b")
    assert both == ["admin.token and admin.token_file are both set. Remove one of them."]
    assert "cannot be read" in problems_of(None, WEIR__ADMIN__TOKEN_FILE=str(tmp_path / "none"))[0]


def test_no_secret_is_ever_printed() -> None:
    loaded = config.load(
        None,
        {
            "WEIR__ADMIN__TOKEN": "canary",
            "WEIR__CLICKHOUSE__PASSWORD": "canary",
            "WEIR__CLICKHOUSE__URL": "http://user:canary@host:8123/",
            "WEIR__POSTGRES__DSN": "postgresql://user:canary@host/db?sslmode=require&password=canary",
        },
    )
    printed = config.to_toml(config.masked(loaded))
    assert "canary" not in printed
    assert "postgresql://user:********@host/db?sslmode=require" in printed


def test_no_problem_quotes_a_secret(tmp_path: Path) -> None:
    path = written(tmp_path, '[postgres]\ndsn = "host=a password=canary"\n[admin]\ntoken = ["canary"]\n')
    assert "canary" not in " ".join(problems_of(path))
    assert "canary" not in " ".join(problems_of(None, WEIR__CLICKHOUSE__URL="ftp://u:canary@host"))


def test_the_schema_describes_every_key() -> None:
    definitions = config.schema()["$defs"]
    described = {
        ("*" if name in ("DialectLimits", "CountedLimits") else name, key)
        for name, section in definitions.items() for key, about in section["properties"].items()
        if "description" in about
    }  # fmt: skip
    # The dialects share the definitions of their limits.
    keys = {("limits", "*", key[2]) if key[0] == "limits" and len(key) == 3 else key for key, _, _ in config.fields()}
    assert len(described) == len(keys)
    json.dumps(definitions)


def test_the_shipped_file_is_toml() -> None:
    assert set(tomllib.loads((ROOT / "config" / "weir.toml").read_text())) == set(Config.__struct_fields__)
