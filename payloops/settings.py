"""Settings: read from the environment once, in the composition root, and passed on as values.

docs/operating.md lists them with the same descriptions; tests/test_docs.py compares.
"""

import json
import re
from collections.abc import Iterable
from difflib import get_close_matches
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import SplitResult, urlsplit

import psycopg
from psycopg.conninfo import conninfo_to_dict
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    FilePath,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from payloops.events import crash_points

HIGHEST_PORT = 65_535
MISSPELLED_SIMILARITY = 0.85
"""Similarity of names, from 0 to 1, from which on a variable is taken for a misspelled setting."""


def _keys_of(value: Any) -> Any:
    if isinstance(value, str) and value.strip().startswith("["):  # a JSON array, for keys that contain commas
        try:
            return tuple(json.loads(value))
        except ValueError:
            raise ValueError("write keys with commas between them, or as a JSON array") from None
    return _parts_of(value)


def _parts_of(value: Any) -> Any:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


def _rate_limit(value: str) -> str:
    from limits import parse_many  # noqa: PLC0415  # slow, and most commands read other settings

    try:
        windows = parse_many(value)
    except ValueError:
        raise ValueError("write limits as 10/minute; 100/hour") from None
    if any(window.amount < 1 for window in windows):
        raise ValueError("a limit must allow at least 1")
    return value


Secret32 = Annotated[SecretStr, Field(min_length=32)]
OlderKeys = Annotated[tuple[Secret32, ...], NoDecode, BeforeValidator(_keys_of)]
RateLimit = Annotated[str, AfterValidator(_rate_limit)]


class Environment(StrEnum):
    DEVELOPMENT = "development"
    PRODUCTION = "production"


class DatabaseSettings(BaseSettings):
    """The settings of commands that need only the database."""

    model_config = SettingsConfigDict(
        env_prefix="", env_ignore_empty=True, extra="ignore", frozen=True, hide_input_in_errors=True
    )

    database_url: SecretStr = Field(
        description="PostgreSQL 15 or later, `postgresql://user:password@host:port/name`"
    )

    @field_validator("database_url")
    @classmethod
    def _database_url(cls, value: SecretStr) -> SecretStr:
        try:
            given = conninfo_to_dict(value.get_secret_value())
        except psycopg.ProgrammingError:
            given = {}
        ports = [port for port in str(given.get("port", "")).split(",") if port]
        if not given or not all(port.isdecimal() and 0 < int(port) <= HIGHEST_PORT for port in ports):
            raise ValueError("write it as postgresql://user:password@host:5432/name")
        return value


class KeySettings(DatabaseSettings):
    """The settings for decrypting what is encrypted in tables."""

    encryption_key: Secret32 = Field(description="encrypts processor credentials, 32 characters or more")
    encryption_keys_older: OlderKeys = Field(
        default=(),
        description=(
            "further keys for decrypting what was encrypted with them, comma-separated or as a JSON array"
        ),
    )


class AuditSettings(DatabaseSettings):
    """The settings for verifying the log, and for signing seals and evidence."""

    audit_key: Secret32 = Field(
        description=(
            "authenticates every event and signs the seals over the log, so that changes by hand are "
            "detected; 32 characters or more, the same in every process, never to be lost"
        )
    )
    audit_keys_older: OlderKeys = Field(
        default=(),
        description=(
            "former values of `AUDIT_KEY`, written like `ENCRYPTION_KEYS_OLDER`, for verifying what "
            "was made with them"
        ),
    )


class StoreSettings(AuditSettings):
    """The settings for appending events."""

    database_pool_size: int = Field(
        default=5,
        ge=2,
        le=200,
        description=(
            "connections in the pool of an API process, subscriber or worker, opened as needed; each "
            "process has a few more of its own ([the sum](#connections-to-postgresql))"
        ),
    )
    append_queue_size: int = Field(
        default=2_000, ge=1, description="appends that may wait in a process before it answers 503"
    )
    append_patience: float = Field(
        default=0.5,
        gt=0,
        description=(
            "seconds that an append may wait to be sent; once the first in the queue has waited that "
            "long, no more are accepted"
        ),
    )


class Settings(StoreSettings, KeySettings):
    """All settings: one field per environment variable, whose name is the field's in upper case."""

    redis_url: SecretStr = Field(
        description="Redis or Valkey, `redis://…`, `unix://…` or `rediss://…`"
        " (`…/0?ssl_ca_certs=FILE.pem` for an authority of your own)"
    )
    temporal_address: str = Field(description="host:port of the Temporal frontend")
    temporal_namespace: str = Field(default="loop", description="Temporal namespace")
    temporal_tls: bool | None = Field(
        default=None,
        description=(
            "whether Temporal is spoken to over TLS; by default if one of the next five is set. Without "
            "`TEMPORAL_TLS_SERVER_CA_CERT_PATH`, the system's authorities are trusted"
        ),
    )
    temporal_tls_server_ca_cert_path: FilePath | None = Field(
        default=None,
        description="PEM file with the authority that signed the certificate of Temporal's frontend",
    )
    temporal_tls_server_name: str | None = Field(
        default=None, description="name in that certificate, if not the host's of `TEMPORAL_ADDRESS`"
    )
    temporal_tls_client_cert_path: FilePath | None = Field(
        default=None,
        description="PEM file with the certificate that this service shows (mTLS), of X.509 version 3",
    )
    temporal_tls_client_key_path: FilePath | None = Field(
        default=None, validate_default=True, description="PEM file with its private key"
    )
    temporal_api_key: SecretStr | None = Field(
        default=None, description="API key sent to Temporal, as Temporal Cloud issues them"
    )
    temporal_codec_key: Secret32 | None = Field(
        default=None,
        description=(
            "encrypts workflow payloads if set, 32 characters or more; every worker needs the same. "
            "Without it, workflow histories at Temporal contain processor credentials in the clear, as "
            "a warning says at start"
        ),
    )
    temporal_ui_url: str | None = Field(
        default=None,
        description="Temporal's web interface, to which the support console then links; `make dev` sets it",
    )
    jwt_secret: Secret32 = Field(description="signs dashboard tokens, 32 characters or more")
    jwt_expires_in: int = Field(default=604_800, ge=60, description="lifetime of a dashboard token, seconds")
    environment: Environment = Field(
        default=Environment.PRODUCTION,
        description=(
            "`development` issues `sk_test_` keys and logs for a terminal; `production` `sk_live_` and "
            "JSON lines"
        ),
    )
    host: str = Field(default="127.0.0.1", description="address the API listens on")
    port: int = Field(default=3000, ge=0, le=HIGHEST_PORT, description="port the API listens on")
    cors_origins: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_parts_of)] = Field(
        default=(), description="origins that browsers may call from, comma-separated"
    )
    checkout_base_url: str = Field(
        default="http://localhost:3000", description="start of a checkout session's url"
    )
    database_patience: float = Field(
        default=0.04,
        gt=0,
        description=(
            "if no waiting request gets a connection for this many seconds, all that wait are answered 503"
        ),
    )
    max_in_flight: int = Field(
        default=512,
        ge=1,
        description=(
            "upper limit of requests that a process works on at a time before it answers 503; below "
            "it, under overload, the limit is what it answers in 25 ms (reads: in 12.5 ms), but at least 96"
        ),
    )
    request_timeout: float = Field(
        default=15.0,
        gt=0,
        description="seconds a request may take, not counting a wait that the client asked for",
    )
    shutdown_grace: float = Field(
        default=1.0, ge=0, description="seconds between `/ready` answering 503 and the listener closing"
    )
    bcrypt_rounds: int = Field(default=12, ge=4, le=16, description="cost of password and key hashes")
    rate_limits: bool = Field(
        default=True,
        description="`false` turns off the limits on passwords and registrations: for benchmarks",
    )
    login_limit_per_address: RateLimit = Field(
        default="30/minute",
        description=(
            "password attempts from an address, successful ones included; several limits as "
            "`10/minute; 100/hour`"
        ),
    )
    login_limit_per_account: RateLimit = Field(
        default="10/5 minutes", description="password attempts for an account, from any address"
    )
    register_limit_per_address: RateLimit = Field(
        default="30/minute; 200/hour", description="registrations from an address"
    )
    register_limit_per_account: RateLimit = Field(
        default="10/hour", description="registrations of an email address, refused ones included"
    )
    trusted_proxies: int = Field(
        default=0,
        ge=0,
        le=10,
        description=(
            "number of proxies in front of this process that append to `X-Forwarded-For`; with `0` the "
            "header is ignored"
        ),
    )
    metrics_port: int | None = Field(
        default=None,
        ge=0,
        le=HIGHEST_PORT,
        description=(
            "port on which a projector, subscriber or worker serves `/metrics` and `/health`, at "
            "`HOST`; `0` takes any free port and logs it"
        ),
    )
    webhook_allow_loopback: bool = Field(
        default=False,
        description=(
            "`true`, in the API and the worker, allows webhooks to this machine's own addresses: for development;"
            " `make dev` sets it"
        ),
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="lowest level logged: `debug`, `info`, `warning`, `error`"
    )

    crash_at: str | None = Field(
        default=None,
        description=(
            "for tests: `<point>:<n>` makes the process kill itself there "
            "([docs/faults.md](faults.md)); refused unless `ENVIRONMENT` is `development`"
        ),
    )

    @field_validator("crash_at")
    @classmethod
    def _crash_at(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None:
            return None
        if info.data.get("environment") is not Environment.DEVELOPMENT:
            raise ValueError("for tests, only with ENVIRONMENT=development")
        crash_points.parse(value)
        return value

    @field_validator("host")
    @classmethod
    def _host(cls, value: str) -> str:
        if not value:  # it would bind every address
            raise ValueError("write an address, such as 127.0.0.1, or 0.0.0.0 for all")
        return value

    @field_validator("cors_origins")
    @classmethod
    def _origins(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if "*" in value and info.data.get("environment") is Environment.PRODUCTION:
            raise ValueError("in production name each origin, not *")
        for origin in value:
            parts = _url_parts(origin)
            if origin != "*" and (
                parts is None or f"{parts.scheme}://{parts.netloc}".lower() != origin.lower()
            ):
                raise ValueError(
                    "write origins as browsers do, https://dashboard.example:8443, without a path"
                )
        return tuple(origin.lower() for origin in value)

    @field_validator("redis_url")
    @classmethod
    def _redis_url(cls, value: SecretStr) -> SecretStr:
        from redis.asyncio import ConnectionPool  # noqa: PLC0415  # as above
        from redis.exceptions import RedisError  # noqa: PLC0415

        try:
            pool = ConnectionPool.from_url(value.get_secret_value())
            pool.make_connection()  # type: ignore[no-untyped-call]  # connects at its first use only
        except (ValueError, TypeError, RedisError):
            raise ValueError(
                "write it as redis://user:password@host:6379/0, or with rediss:// or unix://, and behind ? only"
                " what these take, such as ssl_ca_certs with rediss://"
            ) from None
        return value

    @field_validator("temporal_address")
    @classmethod
    def _temporal_address(cls, value: str) -> str:
        address = re.fullmatch(r"(?:\[[0-9a-fA-F:.]+\]|[\w.-]+):([0-9]{1,5})", value)
        if address is None or not 0 < int(address[1]) <= HIGHEST_PORT:
            raise ValueError("write it as host:port, as in temporal.internal:7233")
        return value

    @field_validator("temporal_tls_client_key_path")
    @classmethod
    def _temporal_client_key(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if (value is None) != (info.data.get("temporal_tls_client_cert_path") is None):
            raise ValueError("set it and TEMPORAL_TLS_CLIENT_CERT_PATH together, or neither")
        return value

    @field_validator("checkout_base_url", "temporal_ui_url")
    @classmethod
    def _base_url(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None:
            return None
        parts = _url_parts(value)
        if parts is None or parts.scheme not in ("http", "https") or parts.query or parts.fragment:
            example = "checkout" if info.field_name == "checkout_base_url" else "temporal"
            raise ValueError(f"write it as https://{example}.example, without ? and #")
        return value


def _url_parts(url: str) -> SplitResult | None:
    """The parts of a URL; None if it has no host, or contains a user name."""
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises ValueError if it is not a number
    except ValueError:
        return None
    return parts if parts.scheme and parts.hostname and parts.username is None and url.isprintable() else None


class InvalidSettings(Exception):
    """The environment is not valid; the message names each variable, and what is wrong with it."""


def misspelled_settings(variables: Iterable[str]) -> dict[str, str]:
    """Variables that look like misspelled settings, each with the setting that is probably meant."""
    names = [name.upper() for name in Settings.model_fields]
    similar = {
        each: get_close_matches(each, names, n=1, cutoff=MISSPELLED_SIMILARITY)
        for each in set(variables).difference(names)
    }
    return {each: matches[0] for each, matches in sorted(similar.items()) if matches}


S = TypeVar("S", bound=DatabaseSettings)


def read_settings(kind: type[S], **overrides: Any) -> S:
    """Read and validate the environment. `overrides`: by name of the field, what takes precedence over it.

    Raises:
        InvalidSettings: one line for each variable that is missing or wrong, without its value.
    """
    try:
        return kind(**overrides)
    except ValidationError as error:
        lines = [
            f"{'.'.join(str(part) for part in item['loc']).upper() or 'settings'}: {_what_is_wrong(item)}"
            for item in error.errors(include_input=False, include_url=False)
        ]
        raise InvalidSettings("\n".join(lines)) from None


def _what_is_wrong(item: ErrorDetails) -> str:
    match item["type"]:
        case "missing":
            return "required"
        case "too_short":
            return f"must have at least {item['ctx']['min_length']} characters"
        case "value_error":
            return item["msg"].removeprefix("Value error, ")
        case _:
            return item["msg"]
