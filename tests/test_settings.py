"""Settings: what is missing or wrong is said at the start, one line for each variable, without its value."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from payloops.cli.execution import database_url_of, settings_of
from payloops.dev.environment import write_environment
from payloops.settings import AuditSettings, InvalidSettings, Settings, read_settings

NAMES = {name.upper() for name in Settings.model_fields}


def wrong(settings: Settings, **fields: object) -> str:
    with pytest.raises(InvalidSettings) as refusal:
        read_settings(Settings, **{**settings.model_dump(), **fields})
    return str(refusal.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("database_url", value) for value in ("x", "", "http://db/x", "postgresql://u:hunter2@h:x/db")),
        *(("database_url", value) for value in ("postgresql://h:70000/db", "host=h port=0")),
        *(
            ("redis_url", value)
            for value in (
                *("http://x", "x", "", "redis://h:x/0", "redis://h?socket_timeout=x", "redis://h?hunter2=1"),
                *("redis://h?ssl_ca_certs=/ca.pem", "rediss://h?ssl_cert_reqs=sometimes"),
            )
        ),
        *(
            ("temporal_address", value)
            for value in ("nonsense", "", "h:", ":7233", "h:0", "h:70000", "http://h:1")
        ),
        *(
            ("cors_origins", value)
            for value in ("foo", "https://a.example,foo", "https://a.example/", "http://")
        ),
        *(
            ("cors_origins", value)
            for value in ("https://a.example/x", "https://a.example:x", "https://u@a.example")
        ),
        ("host", ""),
        *(("checkout_base_url", value) for value in ("nope", "", "ftp://h", "http://", "https://h/?a=1")),
    ],
)
def test_what_nobody_could_connect_by_is_named_with_a_remedy(
    settings: Settings, name: str, value: str
) -> None:
    said = wrong(settings, **{name: value})
    assert said.startswith(f"{name.upper()}: ")
    assert "write" in said
    assert "\n" not in said
    assert "Value error" not in said
    assert "hunter2" not in said


def test_what_proves_this_service_to_temporal_is_checked_at_the_start(
    settings: Settings, tmp_path: Path
) -> None:
    there = tmp_path / "there.pem"
    there.touch()
    said = wrong(settings, temporal_tls_client_cert_path=there)
    assert said.startswith("TEMPORAL_TLS_CLIENT_KEY_PATH: set it and TEMPORAL_TLS_CLIENT_CERT_PATH together")
    assert wrong(settings, temporal_tls_client_key_path=there) == said
    said = wrong(settings, temporal_tls_server_ca_cert_path=tmp_path / "away.pem")
    assert said.startswith("TEMPORAL_TLS_SERVER_CA_CERT_PATH: Path does not point to a file")


def test_production_has_no_wildcard_for_origins(settings: Settings) -> None:
    said = wrong(settings, environment="production", cors_origins="*")
    assert said == "CORS_ORIGINS: in production name each origin, not *"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(
            ("database_url", value)
            for value in ("postgresql://u:p@[::1]:5432/db?sslmode=require", "host=/run dbname=x")
        ),
        ("database_url", "postgres://u@one:5432,two:5433/db"),
        *(
            ("redis_url", value)
            for value in ("redis://:p@h:6379/0", "rediss://h?ssl_ca_certs=/ca.pem", "unix:///run/valkey.sock")
        ),
        *(
            ("temporal_address", value)
            for value in ("127.0.0.1:7233", "[::1]:7233", "payloops.a1b2.tmprl.cloud:7233")
        ),
        *(
            ("cors_origins", value)
            for value in ("*", "https://a.example, http://localhost:5173", "", "http://[::1]:1")
        ),
        *(
            ("checkout_base_url", value)
            for value in ("http://localhost:3000", "https://pay.example/c/", "http://[::1]:1")
        ),
    ],
)
def test_what_somebody_could_connect_by_is_taken(settings: Settings, name: str, value: str) -> None:
    read_settings(Settings, **{**settings.model_dump(), name: value})


def test_origins_are_compared_as_browsers_write_them(settings: Settings) -> None:
    taken = read_settings(Settings, **{**settings.model_dump(), "cors_origins": "https://Dashboard.Example"})
    assert taken.cors_origins == ("https://dashboard.example",)


@pytest.mark.parametrize("name", Settings.model_fields)
def test_an_empty_variable_counts_as_not_set(
    settings: Settings, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name.upper(), "")
    given = {each: value for each, value in settings.model_dump().items() if each != name}
    if Settings.model_fields[name].is_required():
        with pytest.raises(InvalidSettings, match=f"^{name.upper()}: required$"):
            read_settings(Settings, **given)
    else:
        assert getattr(read_settings(Settings, **given), name) == Settings.model_fields[name].default


def test_an_empty_variable_does_not_stand_for_what_a_command_takes_from_payloops_dev(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, key = settings.database_url.get_secret_value(), settings.audit_key.get_secret_value()
    write_environment({"DATABASE_URL": url, "AUDIT_KEY": key}, data_dir=tmp_path)
    for name in NAMES:
        monkeypatch.setenv(name, "")
    assert settings_of(AuditSettings, tmp_path).audit_key == settings.audit_key
    assert database_url_of(tmp_path) == url
    monkeypatch.setenv("DATABASE_URL", "postgresql://elsewhere/db")
    with pytest.raises(typer.Exit):  # its events were written with another key
        settings_of(AuditSettings, tmp_path)


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "payloops", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={name: value for name, value in os.environ.items() if name not in NAMES} | variables,
    )


@pytest.mark.parametrize("arguments", [["serve"], ["projector"], ["subscriber"], ["worker"]])
def test_a_process_does_not_start_with_wrong_settings(arguments: list[str]) -> None:
    shown = run(
        *arguments,
        DATABASE_URL="x",
        REDIS_URL="http://x",
        TEMPORAL_ADDRESS="nonsense",
        JWT_SECRET="j" * 32,
        ENCRYPTION_KEY="e" * 32,
        AUDIT_KEY="a" * 32,
    )
    assert shown.returncode == 2
    names = [line.split(": ")[1] for line in shown.stderr.splitlines()]
    assert names == ["DATABASE_URL", "REDIS_URL", "TEMPORAL_ADDRESS"]


def test_a_misspelled_setting_is_named_with_the_one_that_is_meant() -> None:
    shown = run("serve", DATABASE_POOL_SIZ="5", LOG_LEVEL="loud", REDIS_URI="redis://x", HOME="/nonexistent")
    lines = [line.removeprefix("payloops: ") for line in shown.stderr.splitlines()]
    assert lines[:2] == [
        "DATABASE_POOL_SIZ is not a setting, and is ignored: did you mean DATABASE_POOL_SIZE?",
        "REDIS_URI is not a setting, and is ignored: did you mean REDIS_URL?",
    ]
    assert "LOG_LEVEL: Input should be 'debug', 'info', 'warning' or 'error'" in lines
    assert not any("HOME" in line for line in lines)


@pytest.mark.parametrize(
    ("arguments", "misspelled", "meant"),
    [
        (["keys", "status"], "ENCRYPTION_KEYS_OLD", "ENCRYPTION_KEYS_OLDER"),
        (["audit", "verify"], "AUDIT_KEY_OLDER", "AUDIT_KEYS_OLDER"),
    ],
)
def test_commands_that_need_a_key_name_the_setting_that_is_meant(
    arguments: list[str], misspelled: str, meant: str
) -> None:
    shown = run(*arguments, **{misspelled: "k" * 32})
    assert f"{misspelled} is not a setting, and is ignored: did you mean {meant}?" in shown.stderr


@pytest.mark.parametrize("arguments", [["projections", "status"], ["migrate"], ["staff", "list"]])
def test_commands_that_need_the_database_alone_say_it_in_one_line(arguments: list[str]) -> None:
    shown = run(*arguments, DATABASE_URL="x")
    assert (shown.returncode, shown.stderr) == (
        2,
        "payloops: DATABASE_URL: write it as postgresql://user:password@host:5432/name\n",
    )


def test_a_database_that_does_not_answer_is_said_without_the_librarys_lines() -> None:
    shown = run("projections", "status", DATABASE_URL="postgresql://nobody@127.0.0.1:1/none")
    assert shown.returncode == 1
    assert all(line.startswith("payloops: ") for line in shown.stderr.splitlines()), shown.stderr
